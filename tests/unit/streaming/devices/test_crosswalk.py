"""The crosswalk: what was noted is there after any end, for who has the key, and for nobody else."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.devices import crosswalk as crosswalks
from streaming.devices.crosswalk import FILE_SETTING, KEY_SETTING, Crosswalk, CrosswalkIndex, read_crosswalk
from streaming.devices.identity import Identity, Known
from tests.paths import ROOT


def identity(number: int) -> Identity:
    known = [Known(f"{name} Müller {number}", f"{name}{number}") for name in ("P", "A", "S", "R", "I")]
    return Identity(*known, sop_class="1.2.840.10008.5.1.4.1.1.1.1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "crosswalk"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key"


@pytest.fixture
def crosswalk(file: Path, key: Path) -> Iterator[Crosswalk]:
    opened = Crosswalk(file, key)
    yield opened
    opened.close()


def note(file: Path, key: Path, *numbers: int) -> None:
    opened = Crosswalk(file, key)
    for number in numbers:
        opened.note(identity(number))
    opened.close()


def numbers_in(file: Path, key: Path) -> list[int]:
    return [int(one.sop_uid.pseudonym[1:]) for one in read_crosswalk(file, key)]


def test_what_is_noted_is_read(crosswalk: Crosswalk, file: Path, key: Path) -> None:
    for number in (3, 1, 2):
        crosswalk.note(identity(number))
    assert list(read_crosswalk(file, key)) == [identity(3), identity(1), identity(2)]


def test_the_same_is_noted_once(crosswalk: Crosswalk, file: Path, key: Path) -> None:
    for number in (1, 2, 1, 1, 2):
        crosswalk.note(identity(number))
    assert numbers_in(file, key) == [1, 2]


def test_what_is_remembered_is_bounded(
    crosswalk: Crosswalk, file: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crosswalks, "_MOST_KNOWN", 2)
    for number in (1, 2, 3, 3, 2, 1):
        crosswalk.note(identity(number))
    assert numbers_in(file, key) == [1, 2, 3, 1]


def test_its_owner_alone_can_read_it(file: Path, key: Path) -> None:
    old = os.umask(0)
    try:
        note(file, key, 1)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file, key)} == {0o600}
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(SettingsError, match=f"{FILE_SETTING}.*others"):
            Crosswalk(file, key)


def test_nothing_of_a_patient_is_in_the_file(file: Path, key: Path) -> None:
    note(file, key, *range(50))
    content = file.read_bytes()
    for text in (b"Muller", b"ller", b"P 1", b"sop_uid", b"patient"):
        assert text not in content
    assert "Müller" not in repr(identity(1))


def test_several_runs_go_on_in_one_file(file: Path, key: Path) -> None:
    for number in range(4):
        note(file, key, number)
    assert numbers_in(file, key) == [0, 1, 2, 3]


def test_one_process_at_a_time(crosswalk: Crosswalk, file: Path, key: Path) -> None:
    with pytest.raises(SettingsError, match="another process"):
        Crosswalk(file, key)
    crosswalk.note(identity(1))
    assert numbers_in(file, key) == [1]


# --- damage -----------------------------------------------------------------------------------------------------------


def test_whatever_a_kill_leaves_half_written_is_cut(file: Path, key: Path) -> None:
    note(file, key, 1)
    one = file.stat().st_size
    note(file, key, 2)
    whole = file.read_bytes()
    for size in range(one, len(whole)):
        file.write_bytes(whole[:size])
        assert numbers_in(file, key) == [1]
        note(file, key, 3)
        assert numbers_in(file, key) == [1, 3]


def test_half_a_first_record_is_none(file: Path, key: Path) -> None:
    note(file, key)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert numbers_in(file, key) == []
        note(file, key, 7)
        assert numbers_in(file, key) == [7]


@pytest.mark.parametrize("tail", [bytes(5), bytes(4096), b"\0\0\1\0" + bytes(300), b"\xff" * 100])
def test_a_tail_that_says_nothing_is_cut(file: Path, key: Path, tail: bytes) -> None:
    note(file, key, 1)
    with file.open("ab") as stream:
        stream.write(tail)
    note(file, key, 2)
    assert numbers_in(file, key) == [1, 2]


def test_a_record_that_was_changed_is_told(file: Path, key: Path) -> None:
    note(file, key, 1, 2, 3)
    whole = bytearray(file.read_bytes())
    for at in (60, 100, 150):
        file.write_bytes(bytes(whole[:at]) + bytes([whole[at] ^ 1]) + bytes(whole[at + 1 :]))
        with pytest.raises(SettingsError, match=f"{FILE_SETTING}.*damaged at byte"):
            numbers_in(file, key)


def test_records_cannot_change_places(file: Path, key: Path) -> None:
    note(file, key)
    start = file.stat().st_size
    note(file, key, 1)
    middle = file.stat().st_size
    note(file, key, 2, 3)
    whole = file.read_bytes()
    size = middle - start
    swapped = whole[:start] + whole[middle : middle + size] + whole[start:middle] + whole[middle + size :]
    file.write_bytes(swapped)
    with pytest.raises(SettingsError, match="damaged"):
        numbers_in(file, key)


def test_much_that_cannot_be_read_is_not_cut(file: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosswalks, "_MOST_BYTES", 2000)
    note(file, key, *range(20))
    whole = bytearray(file.read_bytes())
    whole[48:52] = b"\xff" * 4
    file.write_bytes(whole)
    with pytest.raises(SettingsError, match="damaged"):
        Crosswalk(file, key)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"my notes\n", b"\x89PNG" + bytes(500), bytes(48)])
def test_a_file_of_something_else_is_refused_and_stays(file: Path, key: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="no crosswalk"):
        Crosswalk(file, key)
    assert file.read_bytes() == content


def test_another_key_is_refused(file: Path, key: Path, tmp_path: Path) -> None:
    note(file, key, 1)
    whole = file.read_bytes()
    with pytest.raises(SettingsError, match=f"{KEY_SETTING}.*another key"):
        Crosswalk(file, tmp_path / "other")
    with pytest.raises(SettingsError, match=f"{KEY_SETTING}.*another key"):
        list(read_crosswalk(file, tmp_path / "other"))
    assert file.read_bytes() == whole


def test_reading_makes_no_key(file: Path, key: Path) -> None:
    with pytest.raises(SettingsError, match=KEY_SETTING):
        list(read_crosswalk(file, key))
    assert not key.exists()


# --- durability -------------------------------------------------------------------------------------------------------


def test_it_is_synced_before_it_counts(
    crosswalk: Crosswalk, file: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        sync(descriptor)
        seen.append(numbers_in(file, key))

    monkeypatch.setattr(os, "fsync", watch)
    crosswalk.note(identity(1))
    crosswalk.note(identity(2))
    crosswalk.note(identity(2))
    assert seen == [[1], [1, 2]]


def test_threads_share_a_sync(crosswalk: Crosswalk, file: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, waiting = [], threading.Event()
    sync = os.fsync

    def slow(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) == 1:
            waiting.wait(30)  # until the others have come
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(crosswalk.note, identity(0))]
        while not syncs:
            threading.Event().wait(0.001)
        futures += [pool.submit(crosswalk.note, identity(number)) for number in range(1, 20)]
        while len(crosswalk._group.contents) < 19:
            threading.Event().wait(0.001)
        waiting.set()
        for future in futures:
            future.result()
    assert len(syncs) == 2
    assert sorted(numbers_in(file, key)) == list(range(20))


@pytest.mark.parametrize("failing", ["pwrite", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_is_not_on_disk_is_told_and_may_be_noted_again(
    crosswalk: Crosswalk, file: Path, key: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: int
) -> None:
    crosswalk.note(identity(1))

    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        for number in (2, 2, 3):
            with pytest.raises(OSError, match=os.strerror(error)) as caught:
                crosswalk.note(identity(number))
            assert caught.value.errno == error
    crosswalk.note(identity(2))
    crosswalk.note(identity(4))
    assert numbers_in(file, key) == [1, 2, 4]


@pytest.mark.parametrize("how", ["removed", "replaced", "with its folder"])
def test_what_would_go_into_a_file_that_is_gone_is_told(crosswalk: Crosswalk, file: Path, key: Path, how: str) -> None:
    crosswalk.note(identity(1))
    if how == "replaced":
        other = file.with_name("other")
        other.touch()
        other.rename(file)
    else:
        file.unlink()
    if how == "with its folder":
        key.unlink()
        file.parent.rmdir()
    for _ in range(2):
        with pytest.raises(OSError, match="removed") as raised:
            crosswalk.note(identity(2))
        assert raised.value.errno == errno.ENOENT


@pytest.mark.parametrize("written", [1, 4, 200, 3000])
def test_half_a_write_is_written_over(file: Path, key: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    write, calls = os.pwrite, list[int]()

    def stop_short(descriptor: int, content: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, content[:written], offset)

    crosswalk = Crosswalk(file, key)
    crosswalk.note(identity(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stop_short)
        with pytest.raises(OSError, match="full"):
            crosswalk.note(Identity(*[Known("x" * 900, "y")] * 5))
    crosswalk.note(identity(2))
    crosswalk.close()
    assert len(calls) == 2
    note(file, key, 3)
    assert numbers_in(file, key) == [1, 2, 3]


def test_what_was_noted_before_a_kill_is_there(file: Path, key: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from streaming.devices.crosswalk import Crosswalk\n"
        "from tests.unit.streaming.devices.test_crosswalk import identity\n"
        "crosswalk = Crosswalk(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "for number in range(int(sys.argv[3]), 10**6):\n"
        "    crosswalk.note(identity(number))\n"
        "    print(number, flush=True)\n"
    )
    told: list[int] = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for run in range(3):
        command = [sys.executable, "-c", program, str(file), str(key), str(run * 10_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told.append(int(line))
                if told[-1] % 10_000 == 60:
                    process.send_signal(signal.SIGKILL)
                    break
            told += [int(line) for line in process.stdout if line.endswith("\n")]
        note(file, key, run + 900_000)
        told.append(run + 900_000)
    assert len(told) >= 3 * 50
    assert set(told) <= set(numbers_in(file, key))
    assert len(numbers_in(file, key)) <= len(told) + 3


# --- finding one ------------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_its_pseudonym(crosswalk: Crosswalk, file: Path, key: Path) -> None:
    for number in (3, 1, 2):
        crosswalk.note(identity(number))
    index = CrosswalkIndex(file, key)
    assert [index.find(f"I{number}") for number in (1, 2, 3)] == [identity(1), identity(2), identity(3)]
    assert [index.find(name) for name in ("I4", "P1", "", "I Müller 1")] == [None] * 4


def test_what_is_noted_later_is_found_too(crosswalk: Crosswalk, file: Path, key: Path) -> None:
    index = CrosswalkIndex(file, key)
    for number in range(1, 6):
        assert index.find(f"I{number}") is None
        crosswalk.note(identity(number))
        assert index.find(f"I{number}") == identity(number)


def corrected(number: int, **names: str) -> Identity:
    was = identity(number)
    return replace(was, **{name: Known(own, getattr(was, name).pseudonym) for name, own in names.items()})


@pytest.mark.parametrize("name", ["patient_id", "accession_number", "study_uid"])
def test_what_was_corrected_after_it_was_looked_for_is_found_corrected(
    crosswalk: Crosswalk, file: Path, key: Path, name: str
) -> None:
    crosswalk.note(identity(1))
    index = CrosswalkIndex(file, key)
    assert index.find("I1") == identity(1)
    crosswalk.note(corrected(1, **{name: "another"}))
    assert index.find("I1") == corrected(1, **{name: "another"})
    assert index.has_several_patients("I1") == (name == "patient_id")


@pytest.mark.parametrize("is_open", [True, False])
def test_one_image_of_several_patients_is_told(crosswalk: Crosswalk, file: Path, key: Path, *, is_open: bool) -> None:
    index = CrosswalkIndex(file, key) if is_open else None
    for one in (identity(1), identity(2), corrected(1, patient_id="another"), identity(3)):
        crosswalk.note(one)
    index = index or CrosswalkIndex(file, key)
    found = {}
    for name in ("I1", "I2", "I3", "I4"):
        index.find(name)
        found[name] = index.has_several_patients(name)
    assert found == {"I1": True, "I2": False, "I3": False, "I4": False}


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_record_half_written_is_found_once_it_is_whole(file: Path, key: Path, cut: int) -> None:
    note(file, key, 1, 2)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    index = CrosswalkIndex(file, key)
    assert index.find("I1") == identity(1)
    assert index.find("I2") is None
    with file.open("r+b") as stream:
        stream.write(whole)
    assert index.find("I2") == identity(2)


def test_a_record_written_over_by_its_gateway_is_not_taken_for_the_old_one(file: Path, key: Path) -> None:
    note(file, key, 1)
    end = file.stat().st_size
    note(file, key, 2)
    index = CrosswalkIndex(file, key)
    with file.open("r+b") as stream:
        stream.truncate(end)
    note(file, key, 3, 2)
    assert index.find("I2") == identity(2)
    assert index.find("I3") == identity(3)


def test_another_file_in_its_place_is_read_anew(file: Path, key: Path) -> None:
    note(file, key, 1)
    index = CrosswalkIndex(file, key)
    file.rename(file.with_name("old"))
    note(file, key, 2, 3)
    assert index.find("I2") == identity(2)
    assert index.find("I1") is None


def test_an_index_wants_a_file_the_right_key_and_no_damage(file: Path, key: Path) -> None:
    note(file, key, 1, 2, 3)
    with pytest.raises(SettingsError, match=FILE_SETTING):
        CrosswalkIndex(file.with_name("missing"), key)
    other = key.with_name("other")
    other.write_bytes(bytes(32))
    other.chmod(0o600)
    with pytest.raises(SettingsError, match=KEY_SETTING):
        CrosswalkIndex(file, other)
    damaged = bytearray(file.read_bytes())
    damaged[120] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(SettingsError, match="damaged"):
        CrosswalkIndex(file, key)


def test_a_crosswalk_without_sop_classes_is_read(file: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = crosswalks._encode
    monkeypatch.setattr(
        crosswalks, "_encode", lambda one: encode(one).replace(b',"sop_class":"1.2.840.10008.5.1.4.1.1.1.1"', b"")
    )
    note(file, key, 1)
    assert [one.sop_class for one in read_crosswalk(file, key)] == [""]
