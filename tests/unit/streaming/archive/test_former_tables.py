"""What former releases archived with Spark is read here without it: their tables, and how far their query came."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from schemas.documents import load_tables
from streaming.account.checkpoints import committed_offsets
from streaming.kafka.topicids import recorded_ids
from tests.paths import FIXTURES

FIRST = FIXTURES / "tables-first-release"
LAST_OF_SPARK = FIXTURES / "tables-spark-release"
RELEASES = [FIRST, LAST_OF_SPARK]
NAMES = ("predictions", "features", "dead_letters")

_FRIDAY, _SATURDAY = date(2026, 1, 30), date(2026, 1, 31)
_CHECK = {"delta.constraints.score_is_probability": "score IS NULL OR ( score >= 0 AND score <= 1 )"}


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def read(release: Path, name: str) -> DeltaTable:
    return DeltaTable(release / "tables" / name)


def read_rows(release: Path, name: str) -> list[dict[str, Any]]:
    return list(read(release, name).to_pyarrow_table().sort_by("event_id").to_pylist())


def numbers(release: Path, name: str) -> range:
    """What the event ids of a table are made of."""
    if name == "dead_letters":
        return range(100, 104)
    return range(12 if (release, name) == (LAST_OF_SPARK, "predictions") else 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_there_once_with_its_date(release: Path, name: str) -> None:
    rows = read_rows(release, name)
    assert [row["event_id"] for row in rows] == [f"{number:032x}" for number in numbers(release, name)]
    days = [_FRIDAY, _SATURDAY, _SATURDAY, None, *[_SATURDAY] * (len(rows) - 4)]
    assert [row["date"] for row in rows] == days


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_still_those_of_the_contract(release: Path, name: str) -> None:
    table, wanted = read(release, name), load_tables()[name]
    names = [field.name for field in table.schema().fields]
    assert len(names) > 12
    assert names == [column for column in wanted.columns if column in names]
    assert tuple(table.metadata().partition_columns) == wanted.partition_by


def test_a_prediction_has_its_values(release: Path) -> None:
    row = read_rows(release, "predictions")[1]
    times = {name: row.pop(name) for name in ("captured_at", "received_at", "scored_at")}
    minute = datetime(2026, 1, 31, 12, 1, tzinfo=UTC)
    assert times == {
        "captured_at": minute,
        "received_at": minute.replace(second=30),
        "scored_at": minute.replace(second=30, microsecond=250_000),
    }
    assert dict(row.pop("probabilities")) == {"normal": 0.9375, "opacities": 0.0625}
    assert row == {
        "event_id": f"{1:032x}",
        "source": "/dx-1",
        "id": "image-1",
        "sha256": f"{1:064x}",
        "media_type": "image/png",
        "height": 30,
        "width": 20,
        "payload_bytes": 701,
        "model_name": "cxr",
        "model_version": "20260101T000000Z",
        "model_sha256": "ab" * 32,
        "rendering_version": 1,
        "label": "normal",
        "positive_label": "opacities",
        "score": 0.0625,
        "threshold": 0.5,
        "operating_point": "default",
        "decode_seconds": 0.004,
        "predict_seconds": 0.015,
        "input_topic": "xray.images",
        "input_partition": 1,
        "input_offset": 0,
        "date": _SATURDAY,
        "flags": ["unlike_training"],
    }


def test_a_row_without_a_time_has_the_rest(release: Path) -> None:
    for name, number in (("predictions", 3), ("features", 3), ("dead_letters", 103)):
        row = read_rows(release, name)[3]
        assert row.get("received_at") is None
        assert (row["input_topic"], row["input_partition"], row["input_offset"]) == ("xray.images", 1, number // 2)


def test_features_are_those_that_were_published(release: Path) -> None:
    rows = read_rows(release, "features")
    assert [row["features"] for row in rows] == [[number + place / 8 for place in range(8)] for number in range(4)]


def test_dead_letters_tell_their_place_in_the_topic(release: Path) -> None:
    rows = read_rows(release, "dead_letters")
    places = [(row["dead_letter_partition"], row["dead_letter_offset"]) for row in rows]
    assert places == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {row["reason"] for row in rows} == {"corrupt_image"}
    assert {row["payload_bytes"] for row in rows} == {len(b"no image")}


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol_is_one_that_deltalake_writes(release: Path, name: str) -> None:
    has_check = (release, name) == (LAST_OF_SPARK, "predictions")
    table = read(release, name)
    protocol = table.protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 3 if has_check else 2)
    assert not protocol.reader_features
    assert not protocol.writer_features
    assert table.metadata().configuration == (_CHECK if has_check else {})


def test_spark_wrote_them(release: Path) -> None:
    for name in NAMES:
        history = read(release, name).history()
        engines = [entry["engineInfo"].split("/")[0] for entry in history if "engineInfo" in entry]
        assert engines
        assert set(engines) == {"Apache-Spark"}


def test_the_log_of_the_last_one_begins_with_a_checkpoint_of_spark() -> None:
    log = LAST_OF_SPARK / "tables" / "predictions" / "_delta_log"
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == 10
    assert sorted(path.name for path in log.glob("*.json")) == [f"{version:020}.json" for version in range(10, 14)]
    assert read(LAST_OF_SPARK, "predictions").version() == 13


def test_each_file_has_statistics(release: Path) -> None:
    for name in NAMES:
        rows = read(release, name).get_add_actions(flatten=True)
        counts, least = rows["num_records"].to_pylist(), rows["min.event_id"].to_pylist()
        assert sum(counts) == len(numbers(release, name))
        assert None not in least


def test_the_checkpoint_tells_how_far_the_archive_came(release: Path) -> None:
    checkpoint = release / "checkpoints" / "archive"
    half = len(numbers(release, "predictions")) // 2
    assert committed_offsets(checkpoint) == {
        "xray.predictions": {0: half, 1: half},
        "xray.features": {0: 2, 1: 2},
        "xray.deadletters": {0: 2, 1: 2},
    }


def test_the_last_one_noted_the_ids_of_the_topics() -> None:
    assert recorded_ids(FIRST / "checkpoints" / "archive") is None
    ids = recorded_ids(LAST_OF_SPARK / "checkpoints" / "archive")
    assert ids is not None
    assert {*ids.topics} == {"xray.predictions", "xray.features", "xray.deadletters"}
    assert all([ids.cluster, *ids.topics.values()])
