"""Which topics a checkpoint is of, and which outcomes are about them."""

import json
from pathlib import Path

import pytest

from schemas.errors import JobError
from streaming.kafka.places import Origin, Place
from streaming.kafka.topicids import IDS_FILE, TopicIds, record_ids, recorded_ids

_NOTED = TopicIds("c1", {"images": "one", "labels": "two"})


@pytest.mark.parametrize(
    ("present", "others"),
    [
        (TopicIds("c1", {"images": "one"}), []),
        (TopicIds("c1", {"images": "new"}), ["images"]),
        (TopicIds("c1", {"images": "new", "labels": "two"}), ["images"]),
        (TopicIds("c2", {"images": "one"}), ["images"]),  # another cluster, whatever its ids
        (TopicIds("", {"images": "one"}), []),  # a broker that tells no cluster
        (TopicIds("c1", {"images": ""}), []),  # or no topic's id
        (TopicIds("c1", {"elsewhere": "three"}), ["elsewhere"]),  # never read so far
        (TopicIds("c1", {"elsewhere": ""}), ["elsewhere"]),
    ],
)
def test_topics_are_told_by_their_ids(present: TopicIds, others: list[str]) -> None:
    assert present.differ_from(_NOTED) == others


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize(
    ("said", "is_about"),
    [("one", True), ("other", False), ("", None)],
)
def test_an_outcome_that_names_no_topic_is_about_a_former_one_where_there_was_one(
    said: str, is_about: bool | None, renewed: bool
) -> None:
    """Former releases named none: theirs count, until the topic was made anew."""
    ids = TopicIds("c1", {"images": "one"}, renewed)
    assert ids.are_of(Origin("images", Place(0, 1), said)) == (not renewed if is_about is None else is_about)


def test_where_the_broker_has_no_ids_every_outcome_counts() -> None:
    assert TopicIds("c1", {"images": ""}).are_of(Origin("images", Place(0, 1), "any"))


def test_ids_are_noted_whole_and_read_back(tmp_path: Path) -> None:
    assert recorded_ids(tmp_path / "score") is None
    for ids in (_NOTED, TopicIds("", {"images": ""}, renewed=True)):
        record_ids(tmp_path / "score", ids)
        assert recorded_ids(tmp_path / "score") == ids
    assert [path.name for path in (tmp_path / "score").iterdir()] == [IDS_FILE]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"cluster": "c", "topics": [], "renewed": False})])
def test_a_damaged_note_stops_the_start_and_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / IDS_FILE).write_text(text)
    with pytest.raises(JobError, match=IDS_FILE):
        recorded_ids(tmp_path)
