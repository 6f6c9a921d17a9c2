"""Confirmed findings: the file, the images that it names, and the table."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from schemas.errors import DatasetError
from schemas.labels import LABELS_COLUMNS
from tests.stored import LABELS, Scored, add_champion, score_images
from training.labels import Confirmation, match_images, read_label_file, read_labels, record_labels
from xray.cli import app

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


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_repeated_file_changes_nothing(tmp_path: Path) -> None:
    tables = str(tmp_path)
    first = record_labels(tables, confirm(patient_id="p"), now=_NOW)
    again = record_labels(tables, confirm(patient_id="p"), now=_NOW + timedelta(days=1))
    assert (first.added, first.total, first.by_label) == (1, 1, {"ill": 1})
    assert (again.added, again.changed, again.unchanged, again.total) == (0, 0, 1, 1)
    table = DeltaTable(f"{tables}/labels")
    assert table.version() == 1  # made, and written once
    assert [column.name for column in table.schema().fields] == list(LABELS_COLUMNS)
    [row] = rows_of(tables).values()
    assert row["confirmed_at"] == row["recorded_at"] == _NOW


def test_the_newest_confirmation_wins(tmp_path: Path) -> None:
    tables = str(tmp_path)
    record_labels(tables, confirm("ill", confirmed_at=_NOW, patient_id="p"), now=_NOW)
    older = record_labels(tables, confirm("normal", confirmed_at=_NOW - timedelta(days=1)), now=_NOW)
    assert (older.older, older.changed, older.by_label) == (1, 0, {"ill": 1})
    newer = record_labels(tables, confirm("normal", confirmed_at=_NOW + timedelta(days=1)), now=_NOW)
    assert (newer.changed, newer.by_label) == (1, {"normal": 1})
    [row] = rows_of(tables).values()
    assert row["patient_id"] == "p", "what is known stays where the file says nothing"
    before = DeltaTable(f"{tables}/labels", version=1).to_pyarrow_table().to_pylist()
    assert [row["label"] for row in before] == ["ill"], "history stays in the versions"


def test_two_that_record_at_once_both_count(tmp_path: Path) -> None:
    tables, failures = str(tmp_path), []
    ready = threading.Barrier(4)

    def record(number: int) -> None:
        own = {f"{number}{i:063d}": Confirmation(2, ("",), "ill") for i in range(5)}
        ready.wait()
        try:
            record_labels(tables, {**own, "a" * 64: Confirmation(2, ("",), "normal")})
        except Exception as exc:  # shown by the assertion
            failures.append(exc)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = read_labels(tables)["sha256"].to_pylist()
    assert len(found) == len(set(found)) == 21


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
