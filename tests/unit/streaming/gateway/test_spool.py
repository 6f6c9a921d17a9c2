"""The spool: what put has returned is there, whole, once and in order, whatever the disk or a kill does."""

import errno
import json
import logging
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.gateway.keeping.spool import DAMAGED, REFUSED, Spool, SpoolDrain, read_spool
from streaming.gateway.offer import Outgoing
from streaming.gateway.refusals import Cause, Refusal
from streaming.kafka.producer import Delivery
from streaming.settings import RetrySettings
from tests.unit.streaming.gateway.killing import kill_everywhere

MUCH = 10**12
BRISK = RetrySettings(first_wait_s=0.001, max_wait_s=0.01, give_up_s=float("inf"))
DONE = Delivery(None, "t-0@1")
AWAY = Delivery("the broker is away")
TOO_LARGE = Delivery("above the limit", is_too_large=True)


def record(number: int, *, key: bytes | None = None, size: int = 100) -> Outgoing:
    return Outgoing(
        event_id=f"{number:032x}",
        key=f"key-{number}".encode() if key is None else key,
        headers=(("ce_id", f"{number}".encode()), ("content-type", b"image/png"), ("odd", b"\xff\x00"), ("ce_id", b"")),
        value=number.to_bytes(4, "big") + os.urandom(size),
    )


def open_spool(folder: Path, *, max_bytes: int = MUCH, min_free_bytes: int = 0) -> Spool:
    return Spool(folder, max_bytes=max_bytes, min_free_bytes=min_free_bytes)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = open_spool(tmp_path / "spool")
    yield spool
    spool.close()


def contents(spool: Spool) -> list[Outgoing]:
    return [spool.read(number) for number, _ in spool.first(10_000)]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "lock")


class Kafka:
    """What a drain publishes to: it answers by what ``decide`` says, and keeps what it confirmed."""

    def __init__(self, decide=lambda outgoing: DONE) -> None:
        self.decide = decide
        self.published: list[Outgoing] = []
        self._lock = threading.Lock()

    def publish(self, outgoing: Outgoing) -> Delivery:
        delivery = self.decide(outgoing)
        if delivery.error is None:
            with self._lock:
                self.published.append(outgoing)
        return delivery


def wait_until(condition, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def draining(spool: Spool, publish) -> Iterator[None]:
    drain = SpoolDrain(spool, publish, BRISK)
    drain.start()
    try:
        yield
    finally:
        drain.stop()


def drain_all(spool: Spool, kafka: Kafka) -> list[Outgoing]:
    with draining(spool, kafka.publish):
        wait_until(lambda: not spool.holds_anything)
    return kafka.published


class TestPut:
    def test_all_of_a_record_comes_back_after_a_restart(self, tmp_path: Path) -> None:
        records = [record(1), replace(record(2), headers=(), key=b"", value=b""), record(3, size=300_000)]
        spool = open_spool(tmp_path)
        for one in records:
            spool.put(one)
        spool.close()
        again = open_spool(tmp_path)
        assert contents(again) == records
        assert [type(one.headers) for one in contents(again)] == [tuple] * 3

    def test_files_are_their_owners_alone(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "spool"
        folder.mkdir(parents=True, mode=0o755)
        former = os.umask(0)
        try:
            open_spool(folder).put(record(1))
        finally:
            os.umask(former)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    def test_file_is_synced_then_named_then_the_name_is(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename

        def note_sync(file: int) -> None:
            calls.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else f"file of {os.fstat(file).st_size}")
            fsync(file)

        def note_rename(*paths) -> None:
            calls.append("rename")
            rename(*paths)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(os, "rename", note_rename)
        spool.put(record(1))
        assert calls == [f"file of {spool.state.size}", "rename", "folder"]

    def test_order_goes_on_after_a_restart_and_a_clock_put_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = [record(n) for n in range(6)]
        spool = open_spool(tmp_path)
        for one in records[:2]:
            spool.put(one)
        monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
        spool.put(records[2])
        spool.close()
        spool = open_spool(tmp_path)
        for one in records[3:]:
            spool.put(one)
        assert contents(spool) == records

    def test_no_number_of_one_set_aside_is_used_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
        first, second = record(1), record(2)
        for one in (first, second):
            spool = open_spool(tmp_path)
            spool.put(one)
            spool.set_aside(spool.first(1)[0][0], REFUSED)
            spool.close()
        assert len(files(tmp_path / REFUSED)) == 2

    def test_many_threads_put_at_once(self, tmp_path: Path) -> None:
        records = [record(n, size=2_000) for n in range(200)]
        spool = open_spool(tmp_path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(spool.put, records))
        assert spool.state.count == 200
        assert sorted(contents(spool), key=lambda one: one.event_id) == records
        assert spool.state.size == sum(path.stat().st_size for path in tmp_path.glob("*.record"))

    def test_each_threads_own_order_is_kept(self, spool: Spool) -> None:
        def put_all(lane: int) -> None:
            for n in range(30):
                spool.put(record(lane * 100 + n))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put_all, range(4)))
        ids = [int(one.event_id, 16) for one in contents(spool)]
        for lane in range(4):
            own = [number for number in ids if number // 100 == lane]
            assert own == sorted(own)
            assert len(own) == 30


class TestBounds:
    def test_bytes_of_all_files_are_bounded(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        spool.put(record(1, size=1_000))
        one = spool.state.size
        spool.close()
        spool = open_spool(tmp_path, max_bytes=3 * one)
        spool.put(record(2, size=1_000))
        spool.put(record(3, size=1_000))
        assert spool.has_room is True
        with pytest.raises(Refusal) as refused:
            spool.put(record(4, size=1_000))
        assert refused.value.cause is Cause.SPOOL_FULL
        spool.remove(spool.first(1)[0][0])
        spool.put(record(5, size=1_000))
        spool.set_aside(spool.first(1)[0][0], REFUSED)
        with pytest.raises(Refusal):
            spool.put(record(6, size=1_000))
        assert len(files(tmp_path)) == 2

    def test_those_that_are_being_written_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spool = open_spool(tmp_path, max_bytes=30_000)
        results = []

        def put(number: int) -> None:
            try:
                spool.put(record(number, size=9_000))
                results.append(None)
            except Refusal as exc:
                results.append(exc.cause)

        barrier = threading.Barrier(3)  # three have room, and all three are written before any is there
        fsync = os.fsync

        def wait(file: int) -> None:
            if stat.S_ISREG(os.fstat(file).st_mode):
                barrier.wait(20)
            fsync(file)

        monkeypatch.setattr(os, "fsync", wait)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(8)))
        assert sorted(map(str, results)) == sorted(["None"] * 3 + [str(Cause.SPOOL_FULL)] * 5)
        assert spool.state.count == 3

    def test_room_is_left_on_the_disk(self, tmp_path: Path) -> None:
        free = os.statvfs(tmp_path)
        spool = open_spool(tmp_path, min_free_bytes=free.f_bavail * free.f_frsize * 2)
        assert spool.has_room is False
        with pytest.raises(Refusal) as refused:
            spool.put(record(1))
        assert refused.value.cause is Cause.SPOOL_FULL
        assert files(tmp_path) == []

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
    @pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "rename", "fstatvfs"])
    def test_what_the_disk_refuses_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
    ) -> None:
        spool = open_spool(tmp_path)
        spool.put(record(1))

        def fail(*arguments, **options):
            raise OSError(code, os.strerror(code), "/where/patients/are")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(Refusal) as refused:
                spool.put(record(2))
            if call == "fstatvfs":
                assert spool.has_room is False
        assert refused.value.cause is Cause.SPOOL_FULL
        assert "/where" not in str(refused.value)
        assert len(files(tmp_path)) == spool.state.count == 1
        spool.put(record(3))
        spool.close()
        assert [one.event_id for one in contents(open_spool(tmp_path))] == [record(1).event_id, record(3).event_id]

    def test_sync_of_the_folder_that_fails_is_told_to_all_who_share_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = open_spool(tmp_path)
        fsync = os.fsync
        failed = []

        def fail_once(file: int) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode) and not failed:
                failed.append(True)
                raise OSError(errno.EIO, "")
            fsync(file)

        monkeypatch.setattr(os, "fsync", fail_once)
        with ThreadPoolExecutor(4) as pool:
            with spool._folder._syncing:  # nobody syncs before all four have come
                told = [pool.submit(spool.put, record(number)) for number in range(4)]
                wait_until(lambda: spool._folder._asked == 4)
            assert [type(one.exception()) for one in told] == [Refusal] * 4
        assert files(tmp_path) == []
        assert not spool.holds_anything
        spool.put(record(5))
        assert spool.state.count == 1

    def test_full_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        answer = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {answer.stderr.strip()}")
        try:
            spool = open_spool(disk / "spool")
            taken = []
            with pytest.raises(Refusal) as refused:
                for number in range(100):
                    spool.put(record(number, size=10_000))
                    taken.append(f"{number:032x}")
            assert refused.value.cause is Cause.SPOOL_FULL
            assert 10 < len(taken) < 26
            with (disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError, match="No space"):
                while True:
                    rest.write(bytes(4096))
            spool.close()
            spool = open_spool(disk / "spool")  # a gateway starts on a full disk, to empty it
            assert [one.event_id for one in drain_all(spool, Kafka())] == taken
            (disk / "rest").unlink()
            spool.put(record(1))
            spool.close()
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class TestOwner:
    def test_second_gateway_is_refused(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        with pytest.raises(SettingsError, match="XRAY_GATEWAY__SPOOL: another gateway"):
            open_spool(tmp_path)
        spool.put(record(1))  # and changes nothing for the first
        spool.close()
        assert open_spool(tmp_path).state.count == 1

    def test_folder_that_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "spool" / "lock").mkdir(parents=True)
        for wrong in (tmp_path / "file", tmp_path / "file" / "spool", tmp_path / "spool"):
            with pytest.raises(SettingsError, match="XRAY_GATEWAY__SPOOL: cannot use"):
                open_spool(wrong)

    def test_leftovers_are_swept_and_foreign_files_stay(self, tmp_path: Path) -> None:
        for name in ("0.tmp", "17.tmp", "README", "1.record.bak", "12.record"):
            (tmp_path / name).write_bytes(b"x")
        spool = open_spool(tmp_path)
        assert files(tmp_path) == ["1.record.bak", "12.record", "README"]
        assert not spool.holds_anything

    def test_anybody_reads_what_is_in_it(self, tmp_path: Path) -> None:
        assert read_spool(tmp_path / "none").count == 0
        spool = open_spool(tmp_path)
        before = time.time()
        for number in range(4):
            spool.put(record(number))
        (one, _), (other, _) = spool.first(2)
        spool.set_aside(one, REFUSED)
        spool.set_aside(other, DAMAGED)
        state = read_spool(tmp_path)
        assert state == spool.state
        assert (state.count, state.refused, state.damaged) == (2, 1, 1)
        assert before - 0.001 <= state.oldest_at <= time.time()
        spool.close()
        assert open_spool(tmp_path).state == state


class TestDrain:
    def test_all_goes_in_order_and_the_folder_is_empty(self, tmp_path: Path, spool: Spool) -> None:
        records = [record(n, key=b"one") for n in range(60)]
        for one in records:
            spool.put(one)
        assert drain_all(spool, Kafka()) == records
        assert files(tmp_path / "spool") == []
        assert spool.state.size == 0

    def test_records_of_many_keys_are_on_their_way_at_once(self, spool: Spool) -> None:
        barrier = threading.Barrier(8)
        for number in range(8):
            spool.put(record(number))

        def decide(outgoing: Outgoing) -> Delivery:
            barrier.wait(20)  # one by one would never pass
            return DONE

        assert len(drain_all(spool, Kafka(decide))) == 8

    def test_keys_keep_their_order_whatever_fails(self, spool: Spool) -> None:
        records = [record(n, key=f"key-{n % 3}".encode()) for n in range(60)]
        chance = random.Random(5)
        for one in records:
            spool.put(one)
        published = drain_all(spool, Kafka(lambda outgoing: AWAY if chance.random() < 0.3 else DONE))
        for key in {one.key for one in records}:
            assert [one for one in published if one.key == key] == [one for one in records if one.key == key]

    def test_file_goes_only_after_the_word_of_the_broker(self, tmp_path: Path, spool: Spool) -> None:
        asked, answer = threading.Event(), threading.Event()

        def decide(outgoing: Outgoing) -> Delivery:
            asked.set()
            assert answer.wait(20)
            return DONE

        spool.put(record(1))
        with draining(spool, Kafka(decide).publish):
            assert asked.wait(20)
            assert files(tmp_path / "spool") != []
            assert spool.holds_anything
            answer.set()
            wait_until(lambda: not spool.holds_anything)
        assert files(tmp_path / "spool") == []

    def test_it_waits_while_kafka_is_away(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        tries: list[str] = []
        is_up = threading.Event()

        def decide(outgoing: Outgoing) -> Delivery:
            tries.append(outgoing.event_id)
            return DONE if is_up.is_set() else AWAY

        kafka = Kafka(decide)
        records = [record(n, key=b"one") for n in range(5)]
        spool.put(records[0])
        with draining(spool, kafka.publish):
            wait_until(lambda: len(tries) > 3)
            for one in records[1:]:
                spool.put(one)
            assert kafka.published == []
            is_up.set()
            wait_until(lambda: not spool.holds_anything)
        assert kafka.published == records
        assert sum("the spool waits" in line for line in caplog.messages) == 1

    def test_what_is_too_large_bars_nobodys_way(self, tmp_path: Path, spool: Spool) -> None:
        records = [record(n) for n in range(9)]
        for one in records:
            spool.put(one)
        large = {one.event_id for one in records[::4]}
        published = drain_all(spool, Kafka(lambda outgoing: TOO_LARGE if outgoing.event_id in large else DONE))
        assert {one.event_id for one in published} == {one.event_id for one in records} - large
        assert (spool.state.refused, len(files(tmp_path / "spool" / REFUSED))) == (3, 3)
        assert stat.S_IMODE((tmp_path / "spool" / REFUSED).stat().st_mode) == 0o700

    @pytest.mark.parametrize("place", ["magic", "lengths", "header", "value", "digest", "end", "empty", "longer"])
    def test_damaged_file_is_never_published(
        self, tmp_path: Path, spool: Spool, caplog: pytest.LogCaptureFixture, place: str
    ) -> None:
        records = [record(n) for n in range(3)]
        for one in records:
            spool.put(one)
        path = sorted((tmp_path / "spool").glob("*.record"))[1]
        data = bytearray(path.read_bytes())
        if place == "end":
            del data[-7:]
        elif place == "empty":
            data.clear()
        elif place == "longer":
            data += b"\0"
        else:
            data[{"magic": 3, "lengths": 9, "header": 30, "value": -60, "digest": -5}[place]] ^= 4
        path.write_bytes(data)
        assert drain_all(spool, Kafka()) == [records[0], records[2]]
        assert spool.state.damaged == 1
        assert (tmp_path / "spool" / DAMAGED / path.name).read_bytes() == data
        assert sum("damaged" in line for line in caplog.messages) == 1

    def test_part_of_the_disk_that_cannot_be_read_is_damage(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = [record(n) for n in range(3)]
        for one in records:
            spool.put(one)
        bad = spool._path(spool.first(2)[1][0])
        read = Path.read_bytes

        def fail(path: Path) -> bytes:
            if path == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", fail)
        assert drain_all(spool, Kafka()) == [records[0], records[2]]
        assert spool.state.damaged == 1

    def test_file_that_somebody_removed(self, spool: Spool) -> None:
        records = [record(n) for n in range(3)]
        for one in records:
            spool.put(one)
        spool._path(spool.first(2)[1][0]).unlink()
        assert drain_all(spool, Kafka()) == [records[0], records[2]]

    @pytest.mark.parametrize("call", ["unlink", "rename", "mkdir"])
    def test_disk_that_lets_nothing_be_moved_bars_nobodys_way(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        records = [record(n) for n in range(5)]
        for one in records:
            spool.put(one)

        def fail(*arguments, **options):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(os, call, fail)
        decide = lambda outgoing: TOO_LARGE if outgoing == records[0] else DONE  # noqa: E731
        assert len(drain_all(spool, Kafka(decide))) == 4

    def test_fault_of_ours_does_not_end_it(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        tries = []

        def decide(outgoing: Outgoing) -> Delivery:
            tries.append(outgoing)
            if len(tries) < 3:
                raise ZeroDivisionError
            return DONE

        spool.put(record(1))
        with caplog.at_level(logging.ERROR):
            assert len(drain_all(spool, Kafka(decide))) == 1
        assert "unexpected" in caplog.text

    def test_stop_leaves_what_was_not_confirmed(self, tmp_path: Path, spool: Spool) -> None:
        for number in range(3):
            spool.put(record(number))
        asked = threading.Event()

        def decide(outgoing: Outgoing) -> Delivery:
            asked.set()
            return AWAY

        with draining(spool, Kafka(decide).publish):
            assert asked.wait(20)
        assert len(files(tmp_path / "spool")) == 3

    def test_memory_is_bounded_by_bytes_as_well(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streaming.gateway.keeping.spool._WINDOW_BYTES", 25_000)
        for number, size in enumerate([9_000, 9_000, 9_000, 40_000, 9_000]):
            spool.put(record(number, size=size))
        windows = []
        drain = SpoolDrain(spool, Kafka().publish, BRISK)
        while spool.holds_anything:
            window = drain._read_window()
            windows.append([len(one.value) - 4 for one in window.values()])
            for number in window:
                spool.remove(number)
        assert windows == [[9_000, 9_000], [9_000], [40_000], [9_000]]


@pytest.mark.slow
class TestKills:
    """A process is killed before each call that changes the disk."""

    def test_put(self, tmp_path: Path) -> None:
        def work(number: int, tell) -> None:
            spool = open_spool(tmp_path / str(number))
            for one in range(3):
                spool.put(record(one, size=50))
                tell(str(one))

        ends = set()
        for number, told in kill_everywhere(work):
            folder = tmp_path / str(number)
            spool = open_spool(folder)
            there = [int(one.event_id, 16) for one in contents(spool)]
            confirmed = [int(word) for word in told]
            # One more may be there: the kill came between its name and its answer.
            assert there[: len(confirmed)] == confirmed
            assert there in (confirmed, [*confirmed, len(confirmed)])
            assert len(files(folder)) == len(there)
            assert [one.value[:4] for one in contents(spool)] == [one.to_bytes(4, "big") for one in there]
            ends.add((len(confirmed), len(there)))
            spool.put(record(9))
            assert contents(spool)[-1].event_id == record(9).event_id
            spool.close()
        assert ends == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)}
        assert number > 30

    def test_drain(self, tmp_path: Path) -> None:
        records = [record(n) for n in range(4)]
        large, damaged = 1, 2

        def decide(outgoing: Outgoing) -> Delivery:
            return TOO_LARGE if int(outgoing.event_id, 16) == large else DONE

        def prepare(folder: Path) -> None:
            spool = open_spool(folder)
            for one in records:
                spool.put(one)
            path = sorted(folder.glob("*.record"))[damaged]
            path.write_bytes(path.read_bytes()[:-1])
            spool.close()

        def work(number: int, tell) -> None:
            def publish(outgoing: Outgoing) -> Delivery:
                delivery = decide(outgoing)
                if delivery.error is None:
                    tell(str(int(outgoing.event_id, 16)))
                return delivery

            with draining(spool := open_spool(tmp_path / str(number)), publish):
                wait_until(lambda: not spool.holds_anything)

        prepare(tmp_path / "0")
        for number, told in kill_everywhere(work):
            folder = tmp_path / str(number)
            spool = open_spool(folder)
            rest = [int(one.event_id, 16) for one in drain_all(spool, Kafka(decide))]
            assert set(map(int, told)) | set(rest) == {0, 3}
            assert (spool.state.refused, spool.state.damaged) == (1, 1)
            assert files(folder) == []
            spool.close()
            prepare(tmp_path / str(number + 1))
        assert number > 10


def test_header_of_a_file_names_no_other_thing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put(record(1))
    (path,) = tmp_path.glob("*.record")
    data = path.read_bytes()
    assert data.startswith(b"XRSPOOL1")
    length = int.from_bytes(data[8:12], "big")
    assert set(json.loads(data[20 : 20 + length])) == {"event_id", "key", "headers"}
