"""What is asked for: files, hashes and ids, and the other outcomes of an image that was found."""

import hashlib
from pathlib import Path

import pytest

from schemas.errors import JobError
from streaming.lookup.query import AskedBy, Image, Query, read_query
from tests.unit.streaming.page.knows.outcomes import failed, scored


def test_a_file_is_asked_for_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "scan.png"
    file.write_bytes(b"bytes")
    query = read_query(str(file))
    assert (query.by, query.digests) == (AskedBy.FILE, frozenset({hashlib.sha256(b"bytes").hexdigest()}))
    assert not query.image_ids
    assert not query.hex_ids


def test_a_hash_counts_in_capitals_too() -> None:
    assert read_query("AB" * 32).digests == {"ab" * 32}
    assert read_query("AB" * 32).by is AskedBy.SHA256


def test_an_event_id_may_be_a_publishers_id_as_well() -> None:
    # 'xray publish --hide-names' names an image by half of its SHA-256.
    query = read_query("Ab" * 16)
    assert (query.hex_ids, query.image_ids) == (frozenset({"ab" * 16}), frozenset({"Ab" * 16}))


def test_any_other_text_is_a_publishers_id() -> None:
    query = read_query("1.2.840.1")
    assert (query.by, query.image_ids, query.hex_ids) == (AskedBy.ID, frozenset({"1.2.840.1"}), frozenset())


@pytest.mark.parametrize("text", ["scan.png-\0", "x" * 5000], ids=["a zero byte", "too long"])
def test_a_text_that_no_file_can_be_named_is_an_id(text: str) -> None:
    assert read_query(text).image_ids == {text}


@pytest.mark.parametrize("text", ["", "  "])
def test_nothing_is_no_question(text: str) -> None:
    with pytest.raises(JobError, match="nothing is asked for"):
        read_query(text)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is a folder"):
        read_query(str(tmp_path))


def test_the_other_outcomes_of_an_image_are_meant_once_it_is_known() -> None:
    first, again = failed(1), scored(7, source="/dx-1", image_id="1.2.1", sha256=f"{1:064x}")
    query = Query("", AskedBy.ID, hex_ids=frozenset({first.event_id}))
    assert query.takes(first)
    assert not query.takes(again)
    followed = query.follow([first])
    assert followed.images == {Image("/dx-1", "1.2.1", f"{1:064x}")}
    assert followed.takes(again)
    assert not followed.takes(scored(2))
    assert followed.follow([first, again]) == followed


def test_an_image_is_meant_by_its_own_event_id() -> None:
    one = scored(1)
    assert read_query(one.image_key).takes(one)


def test_a_thousand_images_of_one_id_are_no_thousand_names() -> None:
    query = read_query("1.2.1")
    assert query.follow(scored(number, image_id="1.2.1") for number in range(1000)) == query


def test_plain_bytes_have_no_name_to_follow() -> None:
    one = scored(1, source=None, image_id=None)
    query = read_query(one.event_id)
    assert query.follow([one]) == query
    assert not query.takes(scored(2, source=None, image_id=None))
