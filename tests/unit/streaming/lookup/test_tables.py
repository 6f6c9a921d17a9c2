"""Images in the tables, which the archive's own code has filled here."""

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from schemas.deltatable import arrow_schema
from schemas.labels import LABELS_TABLE
from streaming.gateway.offer import Outgoing
from streaming.lookup import rows
from streaming.lookup.history import Reach
from streaming.lookup.outcome import Kind, no_band, read_prediction
from streaming.lookup.query import AskedBy, Query, read_query
from streaming.lookup.rows import Days, find_rows
from streaming.lookup.tables import search_labels, search_tables
from streaming.settings import KafkaSettings
from tests.imageoutcomes import broken, outgoing, score
from tests.testimages import gray_pixels, png
from tests.unit.streaming.lookup.stores import DAY, archive, at

KAFKA = KafkaSettings()


def test_both_outcomes_of_an_image_are_found_by_the_event_id_of_either(tmp_path: Path) -> None:
    image = broken(name="1.2.3")
    letter, other = score(image, KAFKA, place="0@4"), score(broken(), KAFKA)
    # The same bytes were readable for a later release.
    prediction = score(outgoing(), KAFKA, place="0@90").with_value(
        image={**_image_of(image), "media_type": "image/png", "height": 20, "width": 30, "payload_bytes": 9}
    )
    archive(tmp_path, "dead_letters", other, letter)
    archive(tmp_path, "predictions", score(outgoing(), KAFKA), prediction)
    said = read_prediction(prediction, no_band)
    assert said is not None
    finds = search_tables(str(tmp_path), read_query(said.event_id), Days())
    assert {one.kind for one in finds.outcomes} == {Kind.PREDICTION, Kind.DEAD_LETTER}
    assert {one.image_key for one in finds.outcomes} == {image.event_id}
    assert [(one.where, one.found, one.reach) for one in finds.looked] == [
        ("table predictions, version 0", 1, Reach.ALL),
        ("table dead_letters, version 0", 1, Reach.ALL),
        ("table features", 0, Reach.ALL),
    ]


def _image_of(image: Outgoing) -> dict[str, str]:
    return {"source": "/dx-1", "id": "1.2.3", "sha256": hashlib.sha256(image.value).hexdigest()}


@pytest.mark.parametrize("by", ["image_id", "sha256", "event_id", "image_key"])
def test_a_prediction_is_found_by_each_of_its_names(tmp_path: Path, by: str) -> None:
    record = score(outgoing(), KAFKA)
    archive(tmp_path, "predictions", record, score(outgoing(png(gray_pixels(30, 40))), KAFKA), record)
    said = read_prediction(record, no_band)
    assert said is not None
    finds = search_tables(str(tmp_path), read_query(getattr(said, by)), Days())
    assert {one.event_id for one in finds.outcomes} == {said.event_id}
    assert [row.day for row in finds.rows] == [DAY.date()] * 2


def test_plain_bytes_are_found_by_the_event_id_of_their_place(tmp_path: Path) -> None:
    plain = replace(outgoing(), headers=[])
    records = [score(plain, KAFKA, place=f"0@{offset}") for offset in (7, 8)]
    archive(tmp_path, "predictions", *records)
    said = read_prediction(records[1], no_band)
    assert said is not None
    assert said.image_id is None
    [found] = search_tables(str(tmp_path), read_query(said.image_key), Days()).outcomes
    assert (found.place.offset, found.image_key) == (8, said.image_key)


def test_a_hint_of_days_leaves_the_others_unread(tmp_path: Path) -> None:
    image = outgoing(name="often")
    records = [at(score(image, KAFKA, place=f"0@{i}"), DAY + timedelta(days=i)) for i in range(4)]
    archive(tmp_path, "predictions", *records)
    days = Days(date(2026, 2, 1), date(2026, 2, 2))
    finds = search_tables(str(tmp_path), read_query("often"), days)
    assert {row.day for row in finds.rows} == {date(2026, 2, 1), date(2026, 2, 2)}
    [looked] = [one for one in finds.looked if "predictions" in one.where]
    assert looked.reach is Reach.PART
    assert "from 2026-02-01 to 2026-02-02" in looked.limits


def test_of_too_many_rows_the_newest_days_are_given_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    image = outgoing(name="1")
    records = [at(score(image, KAFKA, place=f"0@{i}"), DAY + timedelta(days=i // 2)) for i in range(8)]
    archive(tmp_path, "predictions", *records)
    finds = search_tables(str(tmp_path), read_query("1"), Days())
    assert len(finds.rows) == 3
    assert {row.day for row in finds.rows} <= {date(2026, 2, 3), date(2026, 2, 2)}
    [looked] = [one for one in finds.looked if "predictions" in one.where]
    assert looked.reach is Reach.PART
    assert "5 more rows" in looked.limits


def test_a_row_without_a_date_is_found(tmp_path: Path) -> None:
    record = score(broken(name="1.2"), KAFKA).with_headers(xray_input_timestamp=b"no time")
    archive(tmp_path, "dead_letters", record)
    finds = search_tables(str(tmp_path), read_query("1.2"), Days())
    assert [row.day for row in finds.rows] == [None]
    assert finds.outcomes == []  # when it was received is not known
    assert any("lacks" in one.limits for one in finds.looked)


def test_a_damaged_table_is_told_and_the_others_are_searched(tmp_path: Path) -> None:
    archive(tmp_path, "dead_letters", score(broken(name="1.2"), KAFKA))
    archive(tmp_path, "predictions", score(outgoing(), KAFKA))
    for log in (tmp_path / "predictions" / "_delta_log").glob("*.json"):
        log.write_text("{", encoding="utf-8")
    finds = search_tables(str(tmp_path), read_query("1.2"), Days())
    assert len(finds.outcomes) == 1
    assert [one.reach for one in finds.looked] == [Reach.FAILED, Reach.ALL, Reach.ALL]


def test_no_tables_have_nothing(tmp_path: Path) -> None:
    finds = search_tables(str(tmp_path), read_query("ab" * 16), Days())
    assert finds.outcomes == []
    assert all("no such table" in one.limits for one in finds.looked)
    assert find_rows(str(tmp_path / "predictions"), read_query("x").to_filter()) is None


def test_a_query_of_many_names_is_one_filter(tmp_path: Path) -> None:
    images = [outgoing() for _ in range(5)]
    archive(tmp_path, "predictions", *(score(one, KAFKA) for one in images))
    names = frozenset(one.header("ce_id") for one in images[:2])
    assert len(search_tables(str(tmp_path), Query("", AskedBy.ID, image_ids=names), Days()).outcomes) == 2


def test_a_confirmed_finding_is_found_by_the_bytes(tmp_path: Path) -> None:
    when = datetime(2026, 2, 1, 8, tzinfo=UTC)
    row = {"sha256": "ab" * 32, "label": "normal", "patient_id": None, "confirmed_by": "dr-1", "confirmed_at": when}
    table = pa.Table.from_pylist([{**row, "recorded_at": when}], schema=arrow_schema(LABELS_TABLE))
    write_deltalake(str(tmp_path / "labels"), table)
    [confirmed], [found], looked = search_labels(str(tmp_path), frozenset({"ab" * 32}))
    assert (confirmed.label, confirmed.who, confirmed.confirmed_at) == ("normal", "dr-1", when)
    assert (found.table, found.day, looked.found) == ("labels", None, 1)
    confirmed_none, _, unknown = search_labels(str(tmp_path), frozenset())
    assert confirmed_none == []
    assert "SHA-256" in unknown.limits
