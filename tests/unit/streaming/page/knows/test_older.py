"""Outcomes that are in the tables alone, which the archive's own code has filled here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from schemas.documents import load_tables
from schemas.modelcard import AbstainBand
from streaming.archive.rows import read_row, to_arrow
from streaming.lookup.outcome import NO_PLACE, Outcome, read_dead_letter, read_prediction
from streaming.page.knows.older import OlderOutcomes
from streaming.settings import KafkaSettings
from tests.imageoutcomes import broken, outgoing, score

KAFKA = KafkaSettings()


def find_band(version: str, sha256: str) -> AbstainBand | None:
    return AbstainBand(0.4, 0.6)


def archive(folder: Path, name: str, *records: Any) -> None:
    """Write records into a table as the archive does."""
    rows = [row for row in (read_row(name, record) for record in records) if row is not None]
    assert len(rows) == len(records)
    write_deltalake(str(folder / name), to_arrow(rows, load_tables()[name]), mode="append", partition_by=["date"])


def without_delivery(outcome: Outcome | None) -> Outcome:
    """Leave out what the tables do not note."""
    assert outcome is not None
    return replace(outcome, record=NO_PLACE, published_at=0.0, scored_at=0.0, topic_id="")


def test_a_prediction_is_what_it_was_in_memory(tmp_path: Path) -> None:
    records = [score(outgoing(), KAFKA, place=f"2@{offset}", flags=["uncertain"]) for offset in range(3)]
    archive(tmp_path, "predictions", *records)
    said = read_prediction(records[1], find_band)
    assert said is not None
    found = OlderOutcomes(str(tmp_path), find_band).find(said.event_id)
    assert found is not None
    assert found.record == NO_PLACE
    assert found.scored_at == pytest.approx(said.scored_at, abs=0.001)
    assert without_delivery(found) == without_delivery(said)


def test_a_dead_letter_can_be_sent_again_from_its_row(tmp_path: Path) -> None:
    record = score(broken(), KAFKA, place="1@9").changed(offset=7)
    archive(tmp_path, "predictions", score(outgoing(), KAFKA))
    archive(tmp_path, "dead_letters", record)
    said = read_dead_letter(record)
    assert said is not None
    found = OlderOutcomes(str(tmp_path), find_band).find(said.event_id)
    assert found is not None
    assert found.record == said.record
    assert without_delivery(found) == replace(without_delivery(said), captured_at=found.captured_at)


@pytest.mark.parametrize("event_id", ["ab" * 16, "", "' OR 1=1", "AB" * 16, "../predictions"])
def test_what_is_not_there_is_not_found(tmp_path: Path, event_id: str) -> None:
    older = OlderOutcomes(str(tmp_path), find_band)
    assert older.find(event_id) is None
    archive(tmp_path, "predictions", score(outgoing(), KAFKA))
    assert older.find(event_id) is None


def test_a_row_that_lacks_what_is_shown_is_left_out(tmp_path: Path) -> None:
    pa_table = pa.table({"event_id": ["ab" * 16], "date": pa.array([20_000], pa.date32())})
    write_deltalake(str(tmp_path / "predictions"), pa_table, partition_by=["date"])
    assert OlderOutcomes(str(tmp_path), find_band).find("ab" * 16) is None
