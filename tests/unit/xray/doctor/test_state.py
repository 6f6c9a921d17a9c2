"""Models and tables: real folders and real Delta tables."""

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.deltatable import append_rows, arrow_schema, create_table
from schemas.documents import load_tables
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import promote, set_challenger
from sparkdl.image.limits import RENDERING_VERSION
from streaming.archive.archivetable import WRITER_PROPERTY
from streaming.settings import StreamSettings
from xray.doctor.finding import Finding, Verdict
from xray.doctor.state import check_models, check_tables, find_holder

CARD = ModelCard(
    name="cxr", version="v1", labels=("normal", "opacities"), positive_label="opacities", threshold=0.5,
    operating_point="", network="EfficientNetLite0", precision="fp32", rendering_version=RENDERING_VERSION,
    sha256="", created_at="2026-01-01T00:00:00Z", metrics={},
)  # fmt: skip


def make_model(home: Path, version: str, rendering_version: int = RENDERING_VERSION) -> Path:
    folder = home / "models" / version
    folder.mkdir(parents=True)
    (folder / "weights").write_text(version)
    card = replace(CARD, version=version, rendering_version=rendering_version, sha256=hash_model_folder(folder))
    write_card(folder, card)
    return folder


def models_of(home: Path) -> list[Finding]:
    return list(check_models(StreamSettings(home=home)))


def test_without_a_promoted_model_there_is_a_fault(tmp_path: Path) -> None:
    make_model(tmp_path, "v1")
    [finding] = models_of(tmp_path)
    assert finding.verdict is Verdict.FAULT
    assert "xray train" in finding.advice


def test_a_champion_that_is_as_its_hash_says_is_well(tmp_path: Path) -> None:
    make_model(tmp_path, "v1")
    promote(tmp_path / "models", "v1")
    [finding] = models_of(tmp_path)
    assert (finding.verdict, finding.found) == (Verdict.OK, "the champion v1: its files are as its hash says")


def test_a_champion_that_was_changed_is_a_fault_and_a_challenger_a_warning(tmp_path: Path) -> None:
    folders = [make_model(tmp_path, version) for version in ("v1", "v2")]
    promote(tmp_path / "models", "v1")
    set_challenger(tmp_path / "models", "v2")
    for folder in folders:
        (folder / "weights").write_text("other")
    assert [one.verdict for one in models_of(tmp_path)] == [Verdict.FAULT, Verdict.WARNING]


def test_a_champion_of_a_rendering_that_nobody_knows_is_a_fault(tmp_path: Path) -> None:
    make_model(tmp_path, "v1", rendering_version=99)
    promote(tmp_path / "models", "v1")
    [finding] = models_of(tmp_path)
    assert finding.verdict is Verdict.FAULT
    assert finding.advice


def test_a_model_that_a_setting_names_is_looked_at_instead(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "v1")
    [finding] = check_models(StreamSettings(home=tmp_path, model=folder))
    assert finding.verdict is Verdict.OK
    assert "XRAY_MODEL" in finding.found


def test_tables_that_are_not_there_yet_are_no_fault(tmp_path: Path) -> None:
    found = list(check_tables(StreamSettings(home=tmp_path)))
    assert {one.verdict for one in found} == {Verdict.OK}
    assert len(found) == len(load_tables())
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_a_table_tells_who_has_claimed_it_and_a_damaged_one_is_a_fault(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    definition = load_tables()["predictions"]
    table = create_table(str(tables / "predictions"), definition, {WRITER_PROPERTY: "archive of host-7"})
    append_rows(table, pa.Table.from_pylist([], schema=arrow_schema(definition)), {"x": 1})
    create_table(str(tables / "features"), load_tables()["features"], {})
    for commit in (tables / "features" / "_delta_log").glob("*.json"):
        commit.write_text("{")
    found = list(check_tables(StreamSettings(home=tmp_path)))
    assert "predictions opens at version 1, claimed by archive of host-7" in [one.found for one in found]
    [fault] = [one for one in found if one.verdict is Verdict.FAULT]
    assert "features" in fault.found


def test_who_holds_the_lock_is_found_without_taking_it(tmp_path: Path) -> None:
    if not Path("/proc/locks").is_file():
        pytest.skip("this system does not tell of locks")
    assert find_holder(tmp_path) is None
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = find_holder(tmp_path)
    finally:
        os.close(lock)
    if holder is None:
        pytest.skip("this kernel hides locks, as some sandboxes do")
    assert holder == os.getpid()


def test_the_kernels_list_of_locks_is_read_by_device_and_inode(tmp_path: Path) -> None:
    status = tmp_path.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    locks = tmp_path / "locks"
    locks.write_text(
        f"1: POSIX  ADVISORY  WRITE 41 {place}:{status.st_ino} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 42 {place}:{status.st_ino + 1} 0 EOF\n"
        f"3: -> FLOCK  ADVISORY  WRITE 44 {place}:{status.st_ino} 0 EOF\n"
        f"4: FLOCK  ADVISORY  WRITE 43 {place}:{status.st_ino} 0 EOF\n"
    )
    assert find_holder(tmp_path, locks=locks) == 43
    assert find_holder(tmp_path, locks=tmp_path / "none") is None
