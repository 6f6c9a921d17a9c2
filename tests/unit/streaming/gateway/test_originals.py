"""The kept originals: what keep has returned is there and whole, and nothing is said of what is not."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from schemas.errors import SettingsError
from streaming.gateway.keeping.originals import Found, Originals
from streaming.gateway.refusals import Cause, Refusal
from tests.unit.streaming.gateway.killing import kill_everywhere

CR, DX = str(ComputedRadiographyImageStorage), str(DigitalXRayImageStorageForPresentation)
UID = "1.2.826.0.1.3680043.8.498.1"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_object_is_found_whole_after_a_restart(tmp_path: Path) -> None:
    originals = Originals(tmp_path / "kept")
    objects = {f"{UID}.{n}": os.urandom(1000 * n) for n in range(5)}
    for uid, payload in objects.items():
        originals.keep(CR, uid, payload)
    originals.close()
    originals = Originals(tmp_path / "kept")
    assert [originals.look_up(CR, uid) for uid in objects] == [Found.WHOLE] * 5
    assert sorted(path.read_bytes() for path in files(tmp_path)) == sorted(objects.values())


def test_nothing_is_said_of_what_is_not_there(tmp_path: Path) -> None:
    originals = Originals(tmp_path)
    originals.keep(CR, UID, b"object")
    assert originals.look_up(DX, UID) is Found.OTHER_CLASS
    for uid in ("", UID + ".1", UID[:-1], "../../etc/passwd", "*", "?" * 20):
        assert originals.look_up(CR, uid) is Found.MISSING


def test_same_bytes_are_written_once_and_others_beside(tmp_path: Path) -> None:
    originals = Originals(tmp_path)
    for payload in (b"one", b"one", b"other", b"one"):
        originals.keep(CR, UID, payload)
    assert sorted(path.read_bytes() for path in files(tmp_path)) == [b"one", b"other"]
    assert originals.look_up(CR, UID) is Found.WHOLE
    originals.keep(DX, UID, b"one")
    assert originals.look_up(DX, UID) is Found.WHOLE
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("damage", [b"", b"objecT", b"object and more", b"objec", None])
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_object_is_not_vouched_for_and_is_mended_when_it_comes_again(
    tmp_path: Path, damage: bytes | None, which: int
) -> None:
    originals = Originals(tmp_path)
    originals.keep(CR, UID, b"object")
    originals.keep(CR, UID, b"other bytes")
    path = files(tmp_path)[which]
    payload = path.read_bytes()
    path.unlink()
    if damage is None:
        path.mkdir()  # cannot be read as a file
    else:
        path.write_bytes(damage)
    assert originals.look_up(CR, UID) is Found.DAMAGED
    if damage is not None:
        originals.keep(CR, UID, payload)
        assert originals.look_up(CR, UID) is Found.WHOLE


def test_nobody_else_reads_them(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        originals = Originals(tmp_path / "kept")
        originals.keep(CR, UID, b"object")
    finally:
        os.umask(former)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]
    assert UID not in str(path)
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__KEEP_ORIGINALS: another gateway"):
        Originals(tmp_path / "kept")


@pytest.mark.parametrize("wrong", ["", "../x", "1.2/3", "1" * 65, "1.2\n", "ä"])
def test_what_is_no_uid_is_not_kept(tmp_path: Path, wrong: str) -> None:
    originals = Originals(tmp_path)
    for uids in ((wrong, UID), (CR, wrong)):
        with pytest.raises(Refusal) as refused:
            originals.keep(*uids, b"object")
        assert refused.value.cause is Cause.UNREADABLE
    assert files(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
def test_what_the_disk_refuses_is_not_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    originals = Originals(tmp_path)

    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(Refusal) as refused:
            originals.keep(CR, UID, b"object")
    assert refused.value.cause is Cause.KEEP_FAILED
    assert originals.look_up(CR, UID) is Found.MISSING
    assert files(tmp_path) == []
    originals.keep(CR, UID, b"object")
    assert originals.look_up(CR, UID) is Found.WHOLE


def test_all_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = Originals(tmp_path)
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        calls.append("top" if path == tmp_path else "shard" if path.is_dir() else "file")
        fsync(file)

    def note_rename(*paths) -> None:
        calls.append("rename")
        rename(*paths)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    originals.keep(CR, UID, b"object")
    assert calls == ["top", "file", "rename", "shard"]
    calls.clear()
    originals.keep(CR, UID, b"object")  # another thread may have written it, and not synced it yet
    assert calls == ["shard"]


def test_many_threads_keep_at_once(tmp_path: Path) -> None:
    originals = Originals(tmp_path)
    objects = [(f"{UID}.{n % 20}", bytes([n % 40]) * 500) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: originals.keep(CR, *one), objects))
    assert len(files(tmp_path)) == 40
    assert {originals.look_up(CR, uid) for uid, _ in objects} == {Found.WHOLE}


@pytest.mark.slow
def test_killed_anywhere_what_was_kept_is_whole(tmp_path: Path) -> None:
    def work(number: int, tell) -> None:
        originals = Originals(tmp_path / str(number))
        for one in range(3):
            originals.keep(CR, f"{UID}.{one}", b"object %d" % one * 20)
            tell(str(one))

    ends = set()
    for number, told in kill_everywhere(work):
        originals = Originals(tmp_path / str(number))
        found = [originals.look_up(CR, f"{UID}.{one}") for one in range(3)]
        there = sum(one is Found.WHOLE for one in found)
        assert found == [Found.WHOLE] * there + [Found.MISSING] * (3 - there)
        assert there in (len(told), len(told) + 1)
        assert len(files(tmp_path / str(number))) == there
        ends.add((len(told), there))
    assert {(0, 0), (0, 1), (1, 2), (2, 3), (3, 3)} <= ends
