"""Confirmed findings: the file, the images that it names, and the table."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from schemas.documents import load_schema
from schemas.errors import DatasetError
from schemas.labels import LabelReason
from tests.stored import LABELS, Scored, add_champion, score_images
from tests.unit.docs.test_docs import code_blocks, names_in, section
from tests.unit.docs.test_docs import rows_of as rows_of_docs
from training.data.labelevents import read_events
from training.data.labelfile import Confirmation, read_label_file
from training.data.labelstable import match_images, read_labels, record_labels
from xray.commands.app import app

_NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return score_images(tmp_path, add_champion(tmp_path), 12)


@pytest.fixture
def tables(tmp_path: Path, scored: Scored) -> str:
    return str(tmp_path / "tables")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def confirm(label: str = "ill", **parts: object) -> dict[str, Confirmation]:
    return {"a" * 64: Confirmation(2, ("a" * 64,), label, **parts)}  # type: ignore[arg-type]


def rows_of(tables: str) -> dict[str, Mapping[str, object]]:
    return {row["sha256"]: row for row in read_labels(tables).to_pylist()}


# --- the file ---------------------------------------------------------------------------------------------------------


def test_every_column_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "\ufeffevent_id, label ,patient_id,confirmed_by,confirmed_at,remark",
        "AB12,ill,p1,Dr. R,2026-01-31T12:00+01:00,x",
        '"ab13","normal",,,,',
    )
    found = read_label_file(path, LABELS, now=_NOW)
    assert found.key_names == ("event_id",)
    assert found.unread_columns == ("remark",)
    assert found.confirmations == (
        Confirmation(2, ("ab12",), "ill", "p1", "Dr. R", datetime(2026, 1, 31, 11, tzinfo=UTC)),
        Confirmation(3, ("ab13",), "normal"),
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["sha256,label", "ab,sick"], "row 2: label is 'sick', wanted one of normal, ill"),
        (["sha256,label", "ab,ill", ",ill"], "row 3: sha256 is empty"),
        (["source,id,label", "a,,ill"], "row 2: id is empty"),
        (["sha256,label,confirmed_at", "ab,ill,soon"], "row 2: confirmed_at is 'soon'"),
        (
            ["sha256,label,confirmed_at", "ab,ill,2026-03-03"],
            "row 2: confirmed_at is 2026-03-03, which is in the future",
        ),
        (["id,label", "a,ill"], "has the columns id, label; wanted label, and sha256, event_id or both source and id"),
        (["sha256", "a"], "wanted label, and sha256"),
        ([""], "has the columns nothing"),
    ],
)
def test_a_wrong_file_is_refused_and_the_row_named(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_label_file(write(tmp_path / "a.csv", *lines), LABELS, now=_NOW)
    assert said in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot read"):
        read_label_file(path, LABELS)
    with pytest.raises(DatasetError, match="cannot read"):
        read_label_file(tmp_path / "none.csv", LABELS)


# --- events -----------------------------------------------------------------------------------------------------------


_RECEIVED = datetime(2026, 2, 1, 8, tzinfo=UTC)
_EVENT_ID = "0123456789abcdef" * 2
_MARKERS = {"patient_id": "MUSTERMANN", "confirmed_by": "FERNARZT", "source": "KLINIKUM", "id": "ERIKA-4711"}


def marked(**changes: object) -> bytes:
    """An event about a patient."""
    event = {"label": "ill", "confirmed_at": "2026-01-31", **_MARKERS} | changes
    return json.dumps({name: value for name, value in event.items() if value != ""}).encode()


def test_events_name_images_in_every_way() -> None:
    values = [
        {"label": "ill", "sha256": "AB" * 32, "patient_id": " p1 ", "confirmed_at": "2026-01-31T12:00+01:00"},
        {"label": "normal", "source": "/ris", "id": "Q7", "sha256": None, "remark": {"not": "read"}},
        {"label": "ill", "event_id": _EVENT_ID, "confirmed_by": "r", "confirmed_at": "2026-01-31"},
        {"label": "ill", "sha256": "cd" * 32, "patient_id": "", "confirmed_at": None},
    ]
    for value in values:
        jsonschema.validate(value, load_schema("label"))
    found = read_events([(json.dumps(value).encode(), _RECEIVED) for value in values], LABELS, now=_NOW)
    assert found.wrong == ()
    assert {file.key_names: file.confirmations for file in found.files} == {
        ("sha256",): (
            Confirmation(0, ("ab" * 32,), "ill", "p1", None, datetime(2026, 1, 31, 11, tzinfo=UTC)),
            Confirmation(3, ("cd" * 32,), "ill", confirmed_at=_RECEIVED),
        ),
        ("source", "id"): (Confirmation(1, ("/ris", "Q7"), "normal", confirmed_at=_RECEIVED),),
        ("event_id",): (Confirmation(2, (_EVENT_ID,), "ill", None, "r", datetime(2026, 1, 31, tzinfo=UTC)),),
    }


_WRONG: dict[str, tuple[bytes | None, LabelReason, str]] = {
    "no value": (None, LabelReason.TOMBSTONE, "wanted a JSON object"),
    "no bytes": (b"", LabelReason.NOT_JSON, "wanted a JSON object"),
    "other text": (b"ERIKA-4711;ill", LabelReason.NOT_JSON, "no JSON in UTF-8"),
    "other characters": ('{"label": "krank", "id": "M\u00fcller"}'.encode("latin-1"), LabelReason.NOT_JSON, "UTF-8"),
    "a list": (b'["MUSTERMANN"]', LabelReason.NOT_JSON, "other JSON, wanted a JSON object"),
    "deep": (b"[" * 200_000, LabelReason.NOT_JSON, "no JSON"),
    "a long number": (b'{"id": ' + b"4" * 9000 + b"}", LabelReason.NOT_JSON, "no JSON"),
    "an envelope": (
        marked(specversion="1.0", data={"label": "ill"}),
        LabelReason.STRUCTURED_MODE,
        "wanted the finding itself, with the envelope in the headers",
    ),
    "no image": (
        marked(source="", id=""),
        LabelReason.INVALID_FIELD,
        "named by nothing, wanted exactly one of sha256, event_id, or source and id",
    ),
    "half a name": (marked(id=""), LabelReason.INVALID_FIELD, "named by source, wanted exactly one of"),
    "two names": (
        marked(sha256="a" * 64),
        LabelReason.INVALID_FIELD,
        "named by sha256 and source and id, wanted exactly one of",
    ),
    "an empty name": (marked(id=" "), LabelReason.INVALID_FIELD, "id is empty"),
    "another digest": (
        marked(source="", id="", sha256="ERIKA"),
        LabelReason.INVALID_FIELD,
        "sha256 is something else, wanted 64 hexadecimal digits",
    ),
    "another event id": (
        marked(source="", id="", event_id="a" * 33),
        LabelReason.INVALID_FIELD,
        "event_id is something else, wanted 32 hexadecimal digits",
    ),
    "no label": (marked(label=""), LabelReason.INVALID_FIELD, "label is empty"),
    "another label": (
        marked(label="MUSTERMANN"),
        LabelReason.UNKNOWN_LABEL,
        "label is another one, wanted one of normal, ill",
    ),
    "a number": (marked(patient_id=4711), LabelReason.INVALID_FIELD, "patient_id is no text"),
    "half a character": (marked(patient_id="\ud800"), LabelReason.INVALID_FIELD, "patient_id is no text"),
    "no time": (marked(confirmed_at="FERNARZT"), LabelReason.INVALID_TIME, "confirmed_at is no time, wanted"),
    "before all time": (marked(confirmed_at="0001-01-01T00:00+14:00"), LabelReason.INVALID_TIME, "is no time"),
    "the future": (marked(confirmed_at="2026-03-03"), LabelReason.INVALID_TIME, "confirmed_at is in the future"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_a_wrong_event_is_told_without_its_words_and_stops_no_other(case: str) -> None:
    value, reason, said = _WRONG[case]
    found = read_events([(marked(), _RECEIVED), (value, _RECEIVED), (marked(), _RECEIVED)], LABELS, now=_NOW)
    [wrong] = found.wrong
    assert (wrong.row, wrong.reason) == (1, reason)
    assert said in wrong.detail
    words = [*_MARKERS.values(), "4711", "2026-03-03", "0001"]
    assert [word for word in words if word.lower() in wrong.detail.lower()] == []
    assert [one.row for file in found.files for one in file.confirmations] == [0, 2]


def test_no_reason_goes_without_a_case() -> None:
    of_images = {LabelReason.UNKNOWN_IMAGE, LabelReason.AMBIGUOUS_IMAGE}  # test_labels_topic.py has these
    assert {reason for _, reason, _ in _WRONG.values()} | of_images == set(LabelReason)


def test_events_of_several_kinds_about_one_image_are_one_confirmation(tables: str, scored: Scored) -> None:
    digest = scored.digests[0]
    values: list[dict[str, Any]] = [
        {"label": "ill", "sha256": digest, "patient_id": "p", "confirmed_at": "2026-01-02"},
        {"label": "normal", "event_id": digest[:32], "confirmed_at": "2026-01-03"},
        {"label": "ill", "source": "ward 1", "id": "image 0 0", "patient_id": "q", "confirmed_at": "2026-01-01"},
        {"label": "ill", "sha256": "0" * 64},
    ]
    read = read_events([(json.dumps(value).encode(), _RECEIVED) for value in values], LABELS)
    found = match_images(tables, *read.files)
    assert [(one.row, one.label, one.patient_id) for one in found.by_sha256.values()] == [(1, "normal", "p")]
    assert [one.row for one in found.unknown] == [3]


def test_an_event_without_a_time_that_is_read_again_changes_nothing(tmp_path: Path, tables: str) -> None:
    first, second = (
        (json.dumps({"label": label, "source": "ward 1", "id": "image 0 0"}).encode(), _RECEIVED + timedelta(hours=i))
        for i, label in enumerate(("ill", "normal"))
    )
    for batch in ([first], [second], [first]):
        recorded = record_labels(tables, match_images(tables, *read_events(batch, LABELS).files).by_sha256)
    assert (recorded.older, recorded.changed) == (1, 0)
    [row] = rows_of(tables).values()
    assert (row["label"], row["confirmed_at"]) == ("normal", _RECEIVED + timedelta(hours=1))


def test_the_docs_say_what_an_event_is_and_why_one_is_left_out() -> None:
    for block in code_blocks("retraining", "json"):
        jsonschema.validate(json.loads(block), load_schema("label"))
    assert code_blocks("retraining", "json")
    rows = rows_of_docs(section("retraining", "Labels as events"), "reason")
    assert [names_in(row[0]) for row in rows] == [[reason.value] for reason in LabelReason]
    assert all(all(row) for row in rows), "a cell is empty"


# --- the images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sha256", "event_id", "source,id"])
def test_images_are_found_by_any_name(tmp_path: Path, tables: str, scored: Scored, by: str) -> None:
    names = {
        "sha256": scored.digests[3],
        "event_id": scored.digests[3][:32],
        "source,id": "ward 2,image 0 3",
    }
    unknown = {"sha256": "0" * 64, "event_id": "0" * 32, "source,id": "ward 1,image 0 3"}
    path = write(tmp_path / "a.csv", f"{by},label", f"{names[by]},ill", f"{unknown[by]},ill")
    found = match_images(tables, read_label_file(path, LABELS))
    assert set(found.by_sha256) == {scored.digests[3]}
    assert [one.row for one in found.unknown] == [3]


def test_of_several_rows_about_an_image_the_newest_counts(tmp_path: Path, tables: str, scored: Scored) -> None:
    times = ["2026-01-02", "2026-01-03", "2026-01-01"]
    lines = [f"{scored.digests[0]},{label},{time}" for label, time in zip(["ill", "normal", "ill"], times, strict=True)]
    found = match_images(
        tables, read_label_file(write(tmp_path / "a.csv", "sha256,label,confirmed_at", *lines), LABELS)
    )
    assert [one.row for one in found.by_sha256.values()] == [3]


def test_a_name_of_several_images_is_left_out(tmp_path: Path, tables: str, scored: Scored) -> None:
    card = add_champion(tmp_path, "other")
    score_images(tmp_path, card, 1, seed=9)
    score_images(tmp_path, card, 2, seed=9)  # its first image is the same as above, so it is one
    file = read_label_file(write(tmp_path / "a.csv", "source,id,label", "ward 1,image 9 0,ill"), LABELS)
    assert not match_images(tables, file).ambiguous
    again = score_images(tmp_path, card, 1, seed=9).digests[0]
    table = DeltaTable(f"{tables}/features")
    table.update({"sha256": f"'{'f' * 64}'"}, predicate=f"event_id = '{again[:32]}' and model_sha256 = '{card.sha256}'")
    score_images(tmp_path, card, 1, seed=9)
    found = match_images(tables, file)
    assert [one.row for one in found.ambiguous] == [2]
    assert not found.by_sha256


def test_without_an_archive_it_says_what_to_do(tmp_path: Path) -> None:
    file = read_label_file(write(tmp_path / "a.csv", "sha256,label", "ab,ill"), LABELS)
    with pytest.raises(DatasetError, match="'xray stream' writes it"):
        match_images(str(tmp_path / "tables"), file)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_left_out(tmp_path: Path, scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    path = write(tmp_path / "a.csv", "sha256,label", f"{scored.digests[0]},ill", f"{'0' * 64},ill")
    refused = CliRunner().invoke(app, ["label", str(path)])
    assert refused.exit_code == 1
    assert "1 added, 0 changed, 0 unchanged." in refused.stdout
    assert "not in the archive" in refused.stderr
    allowed = CliRunner().invoke(app, ["label", str(path), "--allow-unknown", "--json"])
    assert allowed.exit_code == 0
    assert '"unchanged": 1' in allowed.stdout
    assert '"left_out": [{"row": 3, "sha256": "' in allowed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "FILE.csv or --follow"),
        (["a.csv", "--follow"], "FILE.csv or --follow"),
        (["a.csv", "--wait", "5"], "go with --follow"),
        (["a.csv", "--available-now"], "go with --follow"),
        (["--follow", "--allow-unknown"], "--allow-unknown is about a file"),
    ],
)
def test_a_file_and_events_exclude_each_other(arguments: list[str], said: str) -> None:
    refused = CliRunner().invoke(app, ["label", *arguments])
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.replace("│", " ").split())
