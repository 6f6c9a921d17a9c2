"""ARCHIVE into an object store: one row per event id, whoever else writes, and whatever becomes of the store."""

import errno
import fcntl
import json
import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from prometheus_client import CollectorRegistry

from schemas import deltatable
from schemas.documents import load_tables
from schemas.errors import DatasetError, TableClaimedError
from schemas.objectstore import store_options
from streaming.account.audit import audit_stream
from streaming.archive.archivetable import WRITER_PROPERTY, ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.process import ArchiveProcess
from streaming.archive.rows import Row
from streaming.archive.service import run_archive
from streaming.archive.tables import compact_table, describe_tables, join_files
from streaming.kafka.topicids import TopicIds
from streaming.metrics import StreamMetrics
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.test_archive import NAMES, archive, outcomes, publish, read_ids, wanted_ids
from tests.integration.streams import environment
from tests.objectstore import BUCKET, KEY_ID, SECRET, ObjectStore, commits
from tests.paths import ROOT
from tests.stored import NO_CARD
from training.data.archive import features_version
from training.data.labelfile import Confirmation, LabelFile
from training.data.labelstable import match_images, read_labels, record_labels

pytestmark = [pytest.mark.kafka, pytest.mark.delta]

_WAIT_S = 60.0
_WEEK = timedelta(days=7)


@pytest.fixture
def remote(settings: StreamSettings, store: ObjectStore) -> StreamSettings:
    """The settings, with a folder of this test's own in the object store."""
    folder = f"s3://{BUCKET}/{uuid.uuid4().hex}/tables"
    own = {"folder": folder, "trigger_s": 0.2, "metrics_port": 0}
    return settings.model_copy(update={"archive": settings.archive.model_copy(update=own)})


class Running:
    """An archive in a thread of its own."""

    def __init__(self, settings: StreamSettings) -> None:
        self.ended, self.ready = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        self._settings = settings
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_archive(self._settings, ended=self.ended, on_ready=lambda _: self.ready.set())
        except BaseException as exc:
            self.failure = exc

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> BaseException | None:
        """Wait until it has ended; give what ended it."""
        self._thread.join(_WAIT_S)
        assert not self.runs
        return self.failure


@contextmanager
def running(settings: StreamSettings) -> Iterator[Running]:
    """An archive that has had its first turn, and is ended at the end."""
    one = Running(settings)
    try:
        wait_until(lambda: one.ready.is_set() or not one.runs)
        yield one
    finally:
        one.ended.set()
        one.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_rows(settings: StreamSettings, count: int) -> None:
    """Wait until each table has so many."""

    def are_there() -> bool:
        states = describe_tables(settings.tables_folder).values()
        return all(state is not None and state.rows >= count for state in states)

    wait_until(are_there)


@pytest.mark.long
def test_all_is_archived_read_again_and_joined(remote: StreamSettings) -> None:
    publish(remote, outcomes(range(4)))
    archive(remote)
    publish(remote, outcomes(range(2, 6)))
    archive(remote)
    archive(remote, from_beginning=True)
    assert read_ids(remote) == wanted_ids(range(6))

    assert compact_table(remote.tables_folder, "dead_letters", keep=_WEEK, dry_run=True) is not None
    done = {name: compact_table(remote.tables_folder, name, keep=_WEEK) for name in NAMES}
    for name, compaction in done.items():
        assert compaction is not None
        assert (compaction.joined_files, compaction.after.files, compaction.after.rows) == (2, 1, 6), name
        assert compaction.after.dead_files == 2
    publish(remote, outcomes(range(7)))
    archive(remote)
    assert read_ids(remote) == wanted_ids(range(7))
    assert not Path(remote.home / "tables").exists()


@pytest.mark.parametrize("place", ["object store", "folder without locks"])
def test_one_that_starts_beside_one_that_writes_is_refused(
    remote: StreamSettings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "folder without locks":
        local = remote.archive.model_copy(update={"folder": None})
        remote = remote.model_copy(update={"archive": local})

        def flock(*_: int) -> None:
            raise OSError(errno.EBADF, "as NFS says")

        monkeypatch.setattr(fcntl, "flock", flock)
    with running(remote) as first:
        number = 0
        second = Running(remote)
        while second.runs:
            publish(remote, outcomes([number]))
            number += 1
            wait_for_rows(remote, number)
        assert first.runs
        owner = DeltaTable(f"{remote.tables_folder}/predictions").metadata().configuration[WRITER_PROPERTY]
        with pytest.raises(TableClaimedError, match=f"is being filled by another archive \\({owner}\\)"):
            raise second.failure or AssertionError
    assert read_ids(remote) == wanted_ids(range(number))


@pytest.mark.long
def test_one_that_has_nothing_to_write_is_taken_over_from(remote: StreamSettings) -> None:
    publish(remote, outcomes(range(3)))
    with running(remote) as first:
        wait_for_rows(remote, 3)
        with running(remote) as second:
            publish(remote, outcomes(range(3, 9)))
            with pytest.raises(TableClaimedError, match="filled by another archive since"):
                raise first.wait() or AssertionError
            wait_for_rows(remote, 9)
            publish(remote, outcomes(range(6, 12)))
            wait_for_rows(remote, 12)
            assert second.runs
    assert read_ids(remote) == wanted_ids(range(12))


def test_two_that_start_at_one_moment_double_and_lose_nothing(remote: StreamSettings) -> None:
    # Neither has seen the other: no table is claimed yet, so nobody looks on.
    publish(remote, outcomes(range(20)))
    with running(remote) as one, running(remote) as other:
        wait_until(lambda: not (one.runs and other.runs) or len(read_ids_or_none(remote)) == 60)
        publish(remote, outcomes(range(10, 30)))
        wait_for_rows(remote, 30)
        wait_until(lambda: not (one.runs and other.runs))
        assert one.runs or other.runs
    assert read_ids(remote) == wanted_ids(range(30))
    assert sum(isinstance(each.failure, TableClaimedError) for each in (one, other)) == 1


def read_ids_or_none(settings: StreamSettings) -> list[str]:
    """All ids, for as long as there are such tables."""
    states = describe_tables(settings.tables_folder).values()
    return [] if None in states else [event_id for ids in read_ids(settings).values() for event_id in ids]


@pytest.mark.long
def test_a_compaction_by_hand_ends_the_archive_which_then_goes_on(remote: StreamSettings) -> None:
    with running(remote) as first:
        for number in range(3):
            publish(remote, outcomes([number]))
            wait_for_rows(remote, number + 1)
        done = [compact_table(remote.tables_folder, name, keep=_WEEK) for name in NAMES]
        assert [each.joined_files for each in done if each is not None] == [3] * 3
        publish(remote, outcomes(range(6)))
        with pytest.raises(TableClaimedError, match="is being compacted by hand"):
            raise first.wait() or AssertionError
    with running(remote):
        wait_for_rows(remote, 6)
    assert read_ids(remote) == wanted_ids(range(6))


def test_every_reader_of_the_tables_finds_them_there(remote: StreamSettings) -> None:
    folder, kafka = remote.tables_folder, remote.kafka
    with pytest.raises(DatasetError, match="there is no archive in s3://"):
        features_version(folder)
    publish(remote, outcomes(range(4)))
    archive(remote)

    assert features_version(folder) > 0
    file = LabelFile(("source", "id"), (Confirmation(1, ("/dx-1", "2"), "covid"),))
    matched = match_images(folder, file)
    assert record_labels(folder, matched.by_sha256).added == 1
    assert record_labels(folder, matched.by_sha256).unchanged == 1
    assert read_labels(folder)["label"].to_pylist() == ["covid"]
    checkpoint = remote.checkpoints_folder / "score"
    places = json.dumps({kafka.images_topic: {"0": 0, "1": 0}})
    for name, text in (("offsets", f"v1\n{{}}\n{places}"), ("commits", "v1\n{}")):
        (checkpoint / name).mkdir(parents=True)
        (checkpoint / name / "0").write_text(text, encoding="utf-8")
    account = audit_stream(remote)
    assert {name: (table.rows, table.missing, table.pending) for name, table in account.tables.items()} == {
        "predictions": (4, 0, 0),
        "dead_letters": (4, 0, 0),
    }


def test_the_commands_and_the_process_beside_a_stream_take_the_environment(
    remote: StreamSettings, store: ObjectStore
) -> None:
    publish(remote, outcomes(range(3)))
    own = {"PYTHONPATH": str(ROOT), "XRAY_ARCHIVE__FOLDER": remote.tables_folder}

    def xray(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "xray", *arguments, "--json"]
        done = subprocess.run(
            command, env=environment(remote) | own, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1] if "archive" in arguments else done.stdout)
        return told

    assert xray("archive", "--available-now") == {"event": "ended"}
    shown = xray("tables", "show")["tables"]
    assert {name: shown[name]["rows"] for name in NAMES} == dict.fromkeys(NAMES, 3)

    store.close()  # the process waits for it; the one that it is beside has nothing to do with it
    registry = CollectorRegistry()
    beside = ArchiveProcess(remote, StreamMetrics(registry, NO_CARD))
    beside.start()
    try:
        publish(remote, outcomes(range(3, 5)))
        wait_until(lambda: (beside.check(), registry.get_sample_value("xray_query_up", {"query": "archive"}))[1] == 1)
        store.open()
        wait_for_rows(remote, 5)
        assert registry.get_sample_value("xray_query_failures_total", {"query": "archive"}) in (0, None)
    finally:
        beside.stop()
    assert read_ids(remote) == wanted_ids(range(5))


# --- a writer that was frozen -----------------------------------------------------------------------------------------

_TOPIC_IDS, _SPANS = TopicIds("cluster", {"features": "topic"}), {0: range(1000)}


def claim(folder: str, writer: str) -> ArchiveTable:
    table = ArchiveTable(folder, load_tables()["features"], "features", writer, KnownIds(35))
    table.claim(_TOPIC_IDS, _SPANS)
    return table


def row(number: int) -> Row:
    return Row(f"id-{number}", None, 20_000, {"event_id": f"id-{number}"}, 100)


@pytest.mark.parametrize("when", ["before it looks", "before it commits", "before it commits again"])
def test_a_join_of_one_that_was_frozen_doubles_nothing(store: ObjectStore, when: str) -> None:
    folder = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    place, old = f"{folder}/features", claim(folder, "old")
    for number in range(4):
        old.append([row(number)], {0: number + 1})
    failures: list[BaseException] = []

    def join() -> None:
        try:
            join_files(place, writer="old")
        except BaseException as exc:
            failures.append(exc)

    frozen = threading.Thread(target=join)
    if when != "before it looks":
        store.spoil("hold", times=1, **commits(old.version + 1))
        frozen.start()
        wait_until(lambda: any(one.befallen == "hold" for one in store.seen()))
    if when == "before it commits again":  # an append is no reason to give up, the claim behind it is
        old.append([row(4)], {0: 5})
    new = claim(folder, "new")
    assert join_files(place, writer="new") == old.version - 1 if when == "before it commits again" else 4
    store.heal()
    if when == "before it looks":
        frozen.start()
    frozen.join(_WAIT_S)
    [failure] = failures
    with pytest.raises(TableClaimedError, match=r"filled by another archive since \(new\)"):
        raise failure
    rows = DeltaTable(place).to_pyarrow_table()["event_id"].to_pylist()
    assert sorted(rows) == [f"id-{number}" for number in range(5 if when == "before it commits again" else 4)]
    new.reopen(_SPANS)
    assert new.append([row(0), row(9)], {0: 9}) == 1


# --- the store is away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["closed", "lose answers", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("busy", "lose", "hold"))],
)
def test_a_store_that_was_away_is_written_again(
    remote: StreamSettings,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    monkeypatch.setattr(deltatable, "store_options", lambda place: (store_options(place) or {}) | {"timeout": "1s"})
    monkeypatch.setattr("schemas.objectstore._RETRY_S", 1)
    faults: dict[str, dict[str, Any]] = {"busy": {"kind": "answer", "status": 503}, "lose answers": commits()}
    publish(remote, outcomes(range(5)))
    with caplog.at_level(logging.WARNING, "streaming.archive"), running(remote) as one:
        wait_for_rows(remote, 5)
        if fault == "closed":
            store.close()
        else:
            store.spoil(**{"kind": fault} | faults.get(fault, {}))
        publish(remote, outcomes(range(3, 9)))
        if fault == "lose answers":
            wait_until(lambda: sum(seen.befallen == fault for seen in store.seen()) > 0)
        else:
            wait_until(lambda: any("trying again" in message for message in caplog.messages))
        publish(remote, outcomes(range(9, 12)))
        store.heal()
        if fault == "closed":
            store.open()
        wait_for_rows(remote, 12)
        assert one.runs
        if fault != "lose answers":
            wait_until(lambda: any("is written again" in message for message in caplog.messages))
    assert one.failure is None
    assert read_ids(remote) == wanted_ids(range(12))
    assert not [message for message in caplog.messages if KEY_ID in message or SECRET in message or "\n" in message]


@pytest.mark.long
def test_a_store_that_is_away_at_the_start_is_waited_for(remote: StreamSettings, store: ObjectStore) -> None:
    publish(remote, outcomes(range(3)))
    archive(remote)
    store.spoil("answer", status=503)
    publish(remote, outcomes(range(3, 5)))
    one = Running(remote)
    wait_until(lambda: sum(seen.befallen == "answer" for seen in store.seen()) > 0)
    store.heal()
    wait_for_rows(remote, 5)
    one.ended.set()
    assert one.wait() is None
    assert read_ids(remote) == wanted_ids(range(5))
