"""A table has one writer and its own places; it is taken over from a former release, after a loss and after RESTORE."""

import shutil
from datetime import date
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from schemas.deltatable import append_rows, create_table
from schemas.documents import load_tables
from schemas.errors import DataLossError, TableClaimedError, TableError, TableMovedError
from streaming.account.archived import read_places, recorded_topic
from streaming.account.checkpoints import committed_offsets
from streaming.archive.archivetable import WRITER_PROPERTY, ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row, to_arrow
from streaming.archive.tables import join_files
from streaming.kafka.topicids import TopicIds
from tests.paths import FIXTURES

_NAME, _TOPIC = "predictions", "xray.predictions"
_IDS = TopicIds("cluster", {_TOPIC: "topic-1"})
_SPANS = {0: range(100), 1: range(100)}
_DAY = date(2026, 1, 31)
_NUMBER = (_DAY - date(1970, 1, 1)).days


def row(event_id: str) -> Row:
    return Row(event_id, _NUMBER, _NUMBER, {"event_id": event_id, "date": _DAY}, 100)


def archive_table(folder: Path, writer: str = "w") -> ArchiveTable:
    return ArchiveTable(str(folder), load_tables()[_NAME], _TOPIC, writer, KnownIds(35))


def claimed(folder: Path, writer: str = "w", ids: TopicIds = _IDS) -> ArchiveTable:
    table = archive_table(folder, writer)
    table.claim(ids, _SPANS)
    return table


def stored(folder: Path) -> list[str]:
    return sorted(DeltaTable(folder / _NAME).to_pyarrow_table()["event_id"].to_pylist())


def places(folder: Path, ids: TopicIds = _IDS) -> dict[int, int]:
    return read_places(DeltaTable(folder / _NAME), ids, _TOPIC, _SPANS)


def test_rows_and_places_land_together_and_are_found_again(tmp_path: Path) -> None:
    first = claimed(tmp_path)
    assert first.places == {}
    assert first.append([row("a"), row("b"), row("a")], {0: 5, 1: 2}) == 2
    assert first.append([row("b"), row("c")], {0: 7, 1: 2}) == 1
    assert (stored(tmp_path), places(tmp_path)) == (["a", "b", "c"], {0: 7, 1: 2})
    second = claimed(tmp_path, "x")
    assert second.places == {0: 7, 1: 2}
    assert second.append([row("a"), row("d")], {0: 9, 1: 2}) == 1
    assert stored(tmp_path) == ["a", "b", "c", "d"]


def test_rows_that_are_known_move_the_places_all_the_same(tmp_path: Path) -> None:
    table = claimed(tmp_path)
    table.append([row("a")], {0: 1})
    files = DeltaTable(tmp_path / _NAME).file_uris()
    assert table.append([row("a")], {0: 2}) == 0
    assert places(tmp_path) == {0: 2}
    assert DeltaTable(tmp_path / _NAME).file_uris() == files


def test_a_writer_that_was_overtaken_writes_nothing_and_ends(tmp_path: Path) -> None:
    old = claimed(tmp_path, "old")
    old.append([row("a")], {0: 1})
    new = claimed(tmp_path, "new")
    with pytest.raises(TableMovedError):
        old.append([row("b")], {0: 2})
    new.append([row("b")], {0: 2})
    with pytest.raises(TableMovedError):
        old.append([row("c")], {0: 3})
    with pytest.raises(TableClaimedError, match="filled by another archive"):
        old.reopen(_SPANS)
    assert (stored(tmp_path), places(tmp_path)) == (["a", "b"], {0: 2})


def test_a_compaction_of_a_writer_that_was_overtaken_fails(tmp_path: Path) -> None:
    # Without the claim between them both would land, and every row be there twice: see `join_files`.
    old = claimed(tmp_path, "old")
    for number in range(4):
        old.append([row(f"id-{number}")], {0: number})
    frozen = DeltaTable(tmp_path / _NAME)
    claimed(tmp_path, "new")
    join_files(f"{tmp_path}/{_NAME}")
    with pytest.raises(CommitFailedError, match="Metadata changed"):
        frozen.optimize.compact()
    assert stored(tmp_path) == [f"id-{number}" for number in range(4)]


def test_somebody_else_s_commit_is_no_other_archive(tmp_path: Path) -> None:
    table = claimed(tmp_path)
    table.append([row("a"), row("b")], {0: 2})
    DeltaTable(tmp_path / _NAME).delete("event_id = 'a'")
    with pytest.raises(TableMovedError):
        table.append([row("c")], {0: 3})
    table.reopen(_SPANS)
    assert table.places == {0: 2}
    assert table.append([row("c"), row("b")], {0: 4}) == 1
    assert stored(tmp_path) == ["b", "c"]


def test_two_that_make_the_table_at_one_moment_are_told_apart(tmp_path: Path) -> None:
    tables = [archive_table(tmp_path, writer) for writer in ("one", "two")]
    for table in tables:
        table.claim(_IDS, _SPANS)
    with pytest.raises(TableMovedError):
        tables[0].append([row("a")], {0: 1})
    assert tables[1].append([row("a")], {0: 1}) == 1


@pytest.mark.parametrize(
    "other",
    [
        TopicIds("cluster", {_TOPIC: "topic-2"}),
        TopicIds("another", {_TOPIC: "topic-1"}),
        TopicIds("another", {_TOPIC: "topic-2"}),
    ],
)
def test_a_topic_that_was_made_anew_is_refused_until_somebody_says_so(tmp_path: Path, other: TopicIds) -> None:
    claimed(tmp_path).append([row("a"), row("b")], {0: 50, 1: 60})
    version = DeltaTable(tmp_path / _NAME).version()
    with pytest.raises(DataLossError, match=r"another topic of that name.*--accept-loss"):
        claimed(tmp_path, "x", other)
    assert DeltaTable(tmp_path / _NAME).version() == version
    table = archive_table(tmp_path, "x")
    table.claim(other, _SPANS, accept_loss=True)
    assert table.places == {}  # its offsets say nothing about the new topic
    assert table.append([row("b"), row("c")], {0: 1}) == 1
    assert stored(tmp_path) == ["a", "b", "c"]
    assert claimed(tmp_path, "y", other).places == {0: 1}


def test_another_topic_s_name_is_refused(tmp_path: Path) -> None:
    claimed(tmp_path)
    table = ArchiveTable(str(tmp_path), load_tables()[_NAME], "results", "x", KnownIds(35))
    with pytest.raises(DataLossError, match=r"filled from the topic xray\.predictions"):
        table.claim(TopicIds("cluster", {"results": "topic-1"}), _SPANS)


def test_a_broker_that_tells_no_ids_goes_by_the_name(tmp_path: Path) -> None:
    ids = TopicIds("", {_TOPIC: ""})
    claimed(tmp_path, ids=ids).append([row("a")], {0: 1})
    assert claimed(tmp_path, "x", ids).places == {0: 1}
    # Once it tells them, the places have another name: all is read again, and no row added twice.
    assert claimed(tmp_path, "y").places == {}


@pytest.mark.parametrize("killed", [False, True])
def test_after_restore_the_topic_is_read_from_the_beginning(tmp_path: Path, killed: bool) -> None:
    table = claimed(tmp_path)
    table.append([row("a")], {0: 1})
    version = DeltaTable(tmp_path / _NAME).version()
    table.append([row("b")], {0: 2})
    DeltaTable(tmp_path / _NAME).restore(version)
    assert stored(tmp_path) == ["a"]
    spans = {0: range(1, 100), 1: range(3, 100)}
    if killed:
        table = archive_table(tmp_path, "x")
        table.claim(_IDS, spans)
    else:
        table.reopen(spans)
    assert table.places == {0: 1, 1: 3}
    # And so for whoever comes next, should this one be killed before it has read all.
    assert claimed(tmp_path, "y").places == {0: 1, 1: 3}
    again = claimed(tmp_path, "z")
    assert again.append([row("a"), row("b")], {0: 2, 1: 3}) == 1
    assert stored(tmp_path) == ["a", "b"]
    assert claimed(tmp_path, "q").places == {0: 2, 1: 3}


def test_from_the_beginning_means_where_the_topic_begins(tmp_path: Path) -> None:
    claimed(tmp_path).append([row("a")], {0: 50, 1: 60})
    table = archive_table(tmp_path, "x")
    table.claim(_IDS, {0: range(10, 50), 1: range(60), 2: range(5)}, from_beginning=True)
    assert table.places == {0: 10, 1: 0, 2: 0}


def test_an_old_copy_of_the_table_has_its_old_places(tmp_path: Path) -> None:
    table = claimed(tmp_path)
    table.append([row("a")], {0: 1})
    shutil.copytree(tmp_path / _NAME, tmp_path / "copy")
    table.append([row("b")], {0: 2})
    shutil.rmtree(tmp_path / _NAME)
    (tmp_path / "copy").rename(tmp_path / _NAME)
    again = claimed(tmp_path, "x")
    assert again.places == {0: 1}
    again.append([row("b")], {0: 2})
    assert stored(tmp_path) == ["a", "b"]


def test_a_table_that_was_removed_meanwhile_is_told(tmp_path: Path) -> None:
    table = claimed(tmp_path)
    shutil.rmtree(tmp_path / _NAME)
    with pytest.raises(TableError):
        table.append([row("a")], {0: 1})
    with pytest.raises(TableError, match="removed meanwhile"):
        table.reopen(_SPANS)


def test_columns_that_are_new_are_added_in_a_commit_of_their_own(tmp_path: Path) -> None:
    definition = load_tables()[_NAME]
    kept = {name: kind for name, kind in definition.columns.items() if name not in ("flags", "rendering_version")}
    former = type(definition)(_NAME, kept, definition.comments, definition.partition_by, definition.comment)
    append_rows(create_table(f"{tmp_path}/{_NAME}", former, {}), to_arrow([row("a")], former), {})
    table = claimed(tmp_path)
    table.append([row("b")], {0: 1})
    opened = DeltaTable(tmp_path / _NAME)
    fields = {field.name: field.metadata.get("comment") for field in opened.schema().fields}
    assert fields == definition.comments
    assert stored(tmp_path) == ["a", "b"]
    operations = [commit["operation"] for commit in opened.history()]
    assert operations[:3] == ["WRITE", "SET TBLPROPERTIES", "ADD COLUMN"]
    claimed(tmp_path, "x")
    assert DeltaTable(tmp_path / _NAME).history(1)[0]["operation"] == "SET TBLPROPERTIES"


@pytest.fixture(params=["tables-first-release", "tables-spark-release"])
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """State that a release left which archived with Spark."""
    shutil.copytree(FIXTURES / str(request.param), tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", ["predictions", "features", "dead_letters"])
def test_tables_and_places_of_a_former_release_are_taken_over(former: Path, name: str) -> None:
    topic = {"predictions": _TOPIC, "features": "xray.features", "dead_letters": "xray.deadletters"}[name]
    ids = TopicIds("cluster", {topic: "topic-1"})
    query = (committed_offsets(former / "checkpoints" / "archive") or {})[topic]
    assert len(query) == 2
    there = DeltaTable(former / "tables" / name).to_pyarrow_table().to_pylist()

    def open_as(writer: str) -> ArchiveTable:
        return ArchiveTable(str(former / "tables"), load_tables()[name], topic, writer, KnownIds(35))

    table = open_as("w")
    table.claim(ids, _SPANS, find_former=lambda: query)
    assert table.places == query
    rows = [Row(one["event_id"], _NUMBER, _NUMBER, one, 100) for one in there]
    assert table.append([*rows, row("new")], {0: 90, 1: 90}) == 1
    opened = DeltaTable(former / "tables" / name)
    found = {one["event_id"]: one for one in opened.to_pyarrow_table().to_pylist()}
    assert len(found) == opened.to_pyarrow_dataset().count_rows() == len(there) + 1
    assert {one["event_id"]: one for one in there} == {key: one for key, one in found.items() if key != "new"}
    noted = recorded_topic(opened)
    assert noted is not None
    assert not ids.differ_from(noted)
    # The query's checkpoint counts once; afterwards the table knows better.
    again = open_as("x")
    again.claim(ids, _SPANS, find_former=lambda: pytest.fail("asked"))
    assert again.places == {0: 90, 1: 90}


def test_a_former_checkpoint_says_nothing_of_a_table_that_was_lost(tmp_path: Path) -> None:
    table = archive_table(tmp_path)
    table.claim(_IDS, _SPANS, find_former=lambda: {0: 50, 1: 60})
    assert table.places == {}


def test_a_constraint_that_a_row_breaks_is_told_without_the_row(former: Path) -> None:
    table = ArchiveTable(str(former / "tables"), load_tables()[_NAME], _TOPIC, "w", KnownIds(35))
    table.claim(_IDS, _SPANS)
    DeltaTable(former / "tables" / _NAME).alter.add_constraint({"not_too_high": "score IS NULL OR score < 5"})
    table.reopen(_SPANS)
    secret = Row("new", _NUMBER, _NUMBER, {"event_id": "new", "date": _DAY, "id": "PATIENT", "score": 7.0}, 100)
    with pytest.raises(TableError, match="validation check") as told:
        table.append([secret], {0: 1})
    assert "PATIENT" not in str(told.value)


def test_properties_of_the_table_s_owner_stay(tmp_path: Path) -> None:
    create_table(f"{tmp_path}/{_NAME}", load_tables()[_NAME], {"delta.logRetentionDuration": "interval 90 days"})
    claimed(tmp_path, "w")
    properties = DeltaTable(tmp_path / _NAME).metadata().configuration
    assert properties["delta.logRetentionDuration"] == "interval 90 days"
    assert properties[WRITER_PROPERTY] == "w"


def test_room_is_left_on_the_disk_of_the_tables(tmp_path: Path) -> None:
    table = ArchiveTable(
        str(tmp_path), load_tables()[_NAME], _TOPIC, "w", KnownIds(35), min_free_bytes=shutil.disk_usage("/").total * 10
    )
    table.claim(_IDS, _SPANS)
    with pytest.raises(TableError, match=r"MB left, wanted at least .* XRAY_ARCHIVE__MIN_FREE_BYTES"):
        table.append([row("a")], {0: 1})
    assert stored(tmp_path) == []
    assert places(tmp_path) == {}


def test_commits_are_kept_for_as_long_as_the_files_that_they_name(tmp_path: Path) -> None:
    table = ArchiveTable(str(tmp_path), load_tables()[_NAME], _TOPIC, "w", KnownIds(35), keep_days=9)
    table.claim(_IDS, _SPANS)
    assert table.opened.metadata().configuration["delta.logRetentionDuration"] == "interval 9 days"
