"""Pseudonyms and the file of their key."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.devices.keyfiles import read_key
from streaming.devices.pseudonyms import FINGERPRINT_FILE, KEY_SETTING, Pseudonyms, open_pseudonyms

KEY = bytes(range(32))


def write_key(file: Path, key: bytes = KEY, mode: int = 0o600) -> Path:
    file.write_bytes(key)
    file.chmod(mode)
    return file


@pytest.fixture
def pseudonyms(tmp_path: Path) -> Pseudonyms:
    return Pseudonyms(write_key(tmp_path / "key"))


def test_they_stay_as_they_are(pseudonyms: Pseudonyms) -> None:
    """Every event id hangs on them: a release that changes one makes a new image of each that is sent again."""
    assert pseudonyms.uid("1.2.3") == "2.25.43347429814822636908190333218175269403"
    assert pseudonyms.identifier("1.2.3") == "724a3bb4861c8dd5"
    assert pseudonyms.days("1.2.3") == -2151
    assert pseudonyms.fingerprint == "d40bd7f0bde9ad87"


@pytest.mark.parametrize("text", ["", "1.2.3", "Müller\0\\x", "x" * 5000, "\udcff"])
def test_uids_are_uids_and_identifiers_are_short(pseudonyms: Pseudonyms, text: str) -> None:
    uid, identifier = pseudonyms.uid(text), pseudonyms.identifier(text)
    assert re.fullmatch(r"2\.25\.(0|[1-9]\d{0,38})", uid)
    assert int(uid[5:]) < 1 << 128
    assert re.fullmatch(r"[0-9a-f]{16}", identifier)
    assert -3650 <= pseudonyms.days(text) <= -1


def test_the_same_text_has_another_pseudonym_for_each_purpose(pseudonyms: Pseudonyms) -> None:
    as_number = int(pseudonyms.uid("A1")[5:])
    assert not f"{as_number:032x}".startswith(pseudonyms.identifier("A1"))
    assert pseudonyms.fingerprint != pseudonyms.identifier("")
    shifts = {pseudonyms.days(str(n)) for n in range(200)}
    assert len(shifts) > 150


def test_another_key_gives_other_pseudonyms(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    other = Pseudonyms(write_key(tmp_path / "other", KEY[::-1]))
    for text in ("", "A1", "1.2.840"):
        assert other.uid(text) != pseudonyms.uid(text)
        assert other.identifier(text) != pseudonyms.identifier(text)
    assert other.fingerprint != pseudonyms.fingerprint


def test_a_missing_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "key"
    old = os.umask(0)
    try:
        made = Pseudonyms(file)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(set(file.read_bytes())) > 10
    assert Pseudonyms(file).fingerprint == made.fingerprint
    assert [path.name for path in file.parent.iterdir()] == ["key"]


def test_several_that_make_a_key_at_once_get_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: read_key(tmp_path / "key", "X"), range(64)))
    assert len(keys) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsError, match=f"{KEY_SETTING}.*others"):
        Pseudonyms(write_key(tmp_path / "key", mode=mode))


@pytest.mark.parametrize("key", [b"", KEY[:-1], KEY + b"\n", b"x" * 10_000])
def test_a_damaged_key_is_refused_and_stays(tmp_path: Path, key: bytes) -> None:
    file = write_key(tmp_path / "key", key)
    with pytest.raises(SettingsError, match=f"{KEY_SETTING}.*no key"):
        Pseudonyms(file)
    assert file.read_bytes() == key


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", write_key(tmp_path / "file") / "below"):
        with pytest.raises(SettingsError, match=KEY_SETTING):
            Pseudonyms(path)


def test_a_missing_key_is_not_made_for_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_key(tmp_path / "key", "X", make=False)
    assert not list(tmp_path.iterdir())


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_another_key_is_refused_at_the_start(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    state = tmp_path / "gateway"
    for _ in range(2):
        pseudonyms.check_fingerprint(state)
    assert (state / FINGERPRINT_FILE).read_text() == f"{pseudonyms.fingerprint}\n"
    assert [path.name for path in state.iterdir()] == [FINGERPRINT_FILE]
    other = Pseudonyms(write_key(tmp_path / "other", KEY[::-1]))
    with pytest.raises(SettingsError, match=f"{KEY_SETTING}.*another key.*Put that key back"):
        other.check_fingerprint(state)
    (state / FINGERPRINT_FILE).unlink()
    other.check_fingerprint(state)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 16])
def test_a_damaged_fingerprint_refuses_the_start(tmp_path: Path, pseudonyms: Pseudonyms, content: bytes) -> None:
    (tmp_path / FINGERPRINT_FILE).write_bytes(content)
    with pytest.raises(SettingsError, match=KEY_SETTING):
        pseudonyms.check_fingerprint(tmp_path)


def test_a_fingerprint_that_cannot_be_kept_refuses_the_start(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=f"cannot be used.*{KEY_SETTING}"):
        pseudonyms.check_fingerprint(tmp_path / "file")


def test_the_fingerprint_does_not_hold_the_key(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    pseudonyms.check_fingerprint(tmp_path)
    assert KEY[:4].hex() not in (tmp_path / FINGERPRINT_FILE).read_text()


def test_a_key_that_is_lost_is_not_made_anew(tmp_path: Path) -> None:
    file, folder = tmp_path / "keys" / "key", tmp_path / "state"
    folder.mkdir()
    first = open_pseudonyms(file, folder)
    assert open_pseudonyms(file, folder).uid("1.2") == first.uid("1.2")
    key = file.read_bytes()
    file.unlink()
    with pytest.raises(SettingsError, match="is gone"):
        open_pseudonyms(file, folder)
    assert not file.exists()
    write_key(file, key)
    assert open_pseudonyms(file, folder).uid("1.2") == first.uid("1.2")
    file.unlink()
    (folder / FINGERPRINT_FILE).unlink()
    assert open_pseudonyms(file, folder).uid("1.2") != first.uid("1.2")
