"""The crosswalk: whose image is whose, encrypted, so that a report finds its way back to a patient.

The file has one record after the other, each with its length before it. A record is encrypted by itself (AES-GCM) and
bound to its place in the file, so that none can be moved, changed or left out in the middle. The first one tells
whether the key is the right one, and nothing else.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas.errors import SettingsError
from schemas.folders import sync_folder
from streaming.devices.identity import Identity, Known
from streaming.devices.keyfiles import read_key

FILE_SETTING = "XRAY_GATEWAY__CROSSWALK"
KEY_SETTING = "XRAY_GATEWAY__CROSSWALK_KEY"

_LENGTH: Final = struct.Struct(">I")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_MOST_TOGETHER: Final = 2000
"""Identities that are written at once, at most: twice as many as there may be associations."""
_MOST_BYTES: Final = 8 << 20
"""What a kill may leave half written. A record has some 600 bytes; its texts are cut at 4 kB where they are read."""
_FIRST: Final = b"xray crosswalk 1"
_FIRST_BYTES: Final = _LENGTH.size + _NONCE_BYTES + len(_FIRST) + _TAG_BYTES
_DIGEST_BYTES: Final = 16
_MOST_KNOWN: Final = 100_000
"""Identities of which it is remembered that they are kept: some 10 MB. One that is forgotten is kept twice."""


class Crosswalk:
    """Keeps identities; for one process at a time.

    Parameters
    ----------
    file : Path
        Made where it is missing, for its owner alone.
    key_file : Path
        32 random bytes; made where it is missing.

    Raises
    ------
    SettingsError
        Another process has the file, it cannot be used, others may read it or the key, it is damaged, or the key is
        another one.
    """

    def __init__(self, file: Path, key_file: Path) -> None:
        self._file = file
        self._cipher = AESGCM(read_key(key_file, KEY_SETTING))
        self._turn = threading.Lock()
        self._writing = threading.Lock()
        self._group = _Group()
        self._known: dict[bytes, None] = {}
        self._is_soiled = False  # behind the end there may be half of a group
        try:
            self._descriptor = _open(file)
            try:
                self._end = self._find_end()
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as exc:
            msg = f"{FILE_SETTING}: {file} cannot be used: {exc.strerror}"
            raise SettingsError(msg) from exc

    def note(self, identity: Identity) -> None:
        """Keep an identity; it is on disk when this returns.

        Several threads that note at once share one sync of the file. What was kept already, is not kept again, as far
        as is remembered.

        Raises
        ------
        OSError
            It is not on disk: the disk is full or fails. It may be noted again.
        """
        content = _encode(identity)
        digest = hashlib.sha256(content).digest()[:_DIGEST_BYTES]
        with self._turn:
            if digest in self._known:
                return
            group = self._group
            group.contents[digest] = content
        with self._writing:  # whoever is first writes for all of the group; the others find it done
            if not group.is_done:
                with self._turn:
                    self._group = _Group()
                self._write(group)
        if group.error is not None:
            raise OSError(group.error.errno, group.error.strerror)

    def close(self) -> None:
        """Let another process have the file."""
        with self._writing:
            os.close(self._descriptor)

    def _write(self, group: "_Group") -> None:
        group.is_done = True
        try:
            if not os.fstat(self._descriptor).st_nlink:
                raise OSError(errno.ENOENT, "somebody has removed the file")
            if self._is_soiled:
                os.ftruncate(self._descriptor, self._end)
            self._is_soiled = True
            records = bytearray()
            for content in group.contents.values():
                records += _seal(self._cipher, content, self._end + len(records))
            _append(self._descriptor, records, self._end)
        except OSError as exc:
            group.error = exc
            return
        self._is_soiled = False
        self._end += len(records)
        with self._turn:
            self._known |= dict.fromkeys(group.contents)
            while len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]

    def _find_end(self) -> int:
        """Check the first record and the last ones; cut what a kill left half written."""
        size, end = os.fstat(self._descriptor).st_size, 0
        latest = deque[tuple[int, bytes]](maxlen=_MOST_TOGETHER)
        with open(self._descriptor, "rb", closefd=False) as stream:
            for start, record in _read_records(stream):
                if start == 0:
                    _check_first(self._cipher, record, self._file)
                latest.append((start, record))
                end = start + _LENGTH.size + len(record)
            stream.seek(0)
            begin = stream.read(_FIRST_BYTES)
        if end == 0:
            if len(begin) == _FIRST_BYTES or not _LENGTH.pack(_FIRST_BYTES - _LENGTH.size).startswith(begin[:4]):
                msg = f"{FILE_SETTING}: {self._file} is no crosswalk; name a file that is not there yet"
                raise SettingsError(msg)
            return self._begin()
        for start, record in reversed(latest):
            if _unseal(self._cipher, record, start) is not None:
                break
            end = start
        if size - end > _MOST_BYTES:
            raise _damaged(self._file, end)
        os.ftruncate(self._descriptor, end)
        os.fsync(self._descriptor)
        return end

    def _begin(self) -> int:
        """Write the first record; there is none, or half of it."""
        os.ftruncate(self._descriptor, 0)
        _append(self._descriptor, _seal(self._cipher, _FIRST, 0), 0)
        sync_folder(self._file.parent)
        return _FIRST_BYTES


class _Group:
    """Identities that are written together, each by a hash of it."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}
        self.is_done = False
        self.error: OSError | None = None


class CrosswalkIndex:
    """Finds whose image it is by the image's pseudonym, while a gateway goes on writing.

    In memory is where each record begins, and of the pseudonyms a hash: no name of a patient. That is about 200 bytes
    for each image; a record is read and decrypted when it is asked for.

    Parameters
    ----------
    file, key_file : Path
        As `Crosswalk` has them.

    Raises
    ------
    SettingsError
        File or key cannot be read, the key is another one, or a record other than the last is damaged.
    """

    def __init__(self, file: Path, key_file: Path) -> None:
        self._file = file
        self._cipher = AESGCM(read_key(key_file, KEY_SETTING, make=False))
        self._forget(0)
        self._refresh()

    def find(self, sop_pseudonym: str) -> Identity | None:
        """Find an image; None where no gateway with this crosswalk has taken it in.

        Parameters
        ----------
        sop_pseudonym : str
            What stands for its SOP Instance UID; ``ce_id`` of the image.

        Raises
        ------
        SettingsError
            The file cannot be read any more, or is damaged.
        """
        digest = _shorten(sop_pseudonym)
        self._refresh()  # also of one that is known: it may have been sent again, for another patient
        if (start := self._starts.get(digest)) is None:
            return None
        found = self._read(start)
        if found is None or found.sop_uid.pseudonym != sop_pseudonym:
            # A gateway whose disk was full wrote another record there.
            self._forget(0)
            self._refresh()
            start = self._starts.get(digest)
            found = None if start is None else self._read(start)
        return found

    def has_several_patients(self, sop_pseudonym: str) -> bool:
        """Tell whether an image was noted for more than one patient, as far as was read when it was last looked for.

        A patient id that was corrected, or an instance UID that a device gave out twice: nobody can tell which.
        """
        return _shorten(sop_pseudonym) in self._disputed

    def _forget(self, inode: int) -> None:
        self._inode = inode
        self._disputed: set[bytes] = set()
        self._end = 0
        self._latest = (0, b"")
        self._starts: dict[bytes, int] = {}

    def _refresh(self) -> None:
        """Read what was written since."""
        try:
            with self._file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if status.st_ino != self._inode or status.st_size < self._end or not self._has_latest(stream):
                    self._forget(status.st_ino)
                stream.seek(self._end)
                unread = None
                for start, record in _read_records(stream, self._end):
                    if unread is not None:
                        raise _damaged(self._file, unread)
                    if start == 0:
                        _check_first(self._cipher, record, self._file)
                    elif (content := _unseal(self._cipher, record, start)) is None:
                        unread = start  # half written, if it is the last
                        continue
                    else:
                        self._add(_decode(content), start)
                    self._end = start + _LENGTH.size + len(record)
                    self._latest = (start, record)
        except OSError as exc:
            raise _unreadable(self._file, exc) from exc

    def _has_latest(self, stream: BinaryIO) -> bool:
        """Tell whether the last record that was read is there still: a gateway whose disk was full writes over it."""
        start, latest = self._latest
        stream.seek(start)
        return next((record for _, record in _read_records(stream, start)), b"") == latest or not latest

    def _add(self, identity: Identity, start: int) -> None:
        digest = _shorten(identity.sop_uid.pseudonym)
        before = self._starts.get(digest)
        former = None if before is None else self._read(before)
        if former is not None and former.patient_id.own.strip() != identity.patient_id.own.strip():
            self._disputed.add(digest)
        self._starts[digest] = start

    def _read(self, start: int) -> Identity | None:
        try:
            with self._file.open("rb") as stream:
                stream.seek(start)
                record = next((record for _, record in _read_records(stream, start)), b"")
        except OSError as exc:
            raise _unreadable(self._file, exc) from exc
        content = _unseal(self._cipher, record, start) if len(record) > _NONCE_BYTES + _TAG_BYTES else None
        return None if content is None else _decode(content)


def read_crosswalk(file: Path, key_file: Path) -> Iterator[Identity]:
    """Read what a crosswalk keeps, in the order in which it was noted; an identity may come twice.

    Parameters
    ----------
    file, key_file : Path
        As `Crosswalk` has them. A process may be writing.

    Yields
    ------
    Identity
        Names a patient.

    Raises
    ------
    SettingsError
        File or key cannot be read, the key is another one, or a record other than the last is damaged.
    """
    cipher = AESGCM(read_key(key_file, KEY_SETTING, make=False))
    unread = None
    try:
        with file.open("rb") as stream:
            for start, record in _read_records(stream):
                if unread is not None:
                    raise _damaged(file, unread)
                if start == 0:
                    _check_first(cipher, record, file)
                elif (content := _unseal(cipher, record, start)) is None:
                    unread = start  # half written, if it is the last
                else:
                    yield _decode(content)
    except OSError as exc:
        raise _unreadable(file, exc) from exc


def _open(file: Path) -> int:
    """Open the file for its owner alone, and for this process alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            msg = f"{FILE_SETTING}: {file} may be used by others than its owner; 'chmod 600 {file}'"
            raise SettingsError(msg)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        msg = f"{FILE_SETTING}: {file} is in use by another process; give each one a file of its own"
        raise SettingsError(msg) from exc
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _append(descriptor: int, records: bytes | bytearray, offset: int) -> None:
    """Write behind what is there, and have it on disk."""
    left = memoryview(records)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
    os.fsync(descriptor)


def _read_records(stream: BinaryIO, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Give where each record begins, and the record without its length; stops at one that is not whole."""
    while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        if not _NONCE_BYTES + _TAG_BYTES < length <= _MOST_BYTES:
            return
        record = stream.read(length)
        if len(record) < length:
            return
        yield start, record
        start += _LENGTH.size + length


def _seal(cipher: AESGCM, content: bytes, offset: int) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    record = nonce + cipher.encrypt(nonce, content, _place(offset))
    return _LENGTH.pack(len(record)) + record


def _unseal(cipher: AESGCM, record: bytes, offset: int) -> bytes | None:
    try:
        return cipher.decrypt(record[:_NONCE_BYTES], record[_NONCE_BYTES:], _place(offset))
    except InvalidTag:
        return None


def _place(offset: int) -> bytes:
    return offset.to_bytes(8, "big")


def _check_first(cipher: AESGCM, record: bytes, file: Path) -> None:
    if _unseal(cipher, record, 0) != _FIRST:
        msg = f"{KEY_SETTING}: {file} was written with another key, or is damaged. Put its key back, or name a new file"
        raise SettingsError(msg)


def _unreadable(file: Path, exc: OSError) -> SettingsError:
    return SettingsError(f"{FILE_SETTING}: {file} cannot be read: {exc.strerror}")


def _shorten(pseudonym: str) -> bytes:
    return hashlib.sha256(pseudonym.encode()).digest()[:_DIGEST_BYTES]


def _damaged(file: Path, offset: int) -> SettingsError:
    advice = "Put it back from its copy, or name a new file"
    return SettingsError(f"{FILE_SETTING}: {file} is damaged at byte {offset}. {advice}")


def _encode(identity: Identity) -> bytes:
    named = asdict(identity)
    sop_class = named.pop("sop_class")
    pairs = {name: [known["own"], known["pseudonym"]] for name, known in named.items()}
    return json.dumps(pairs | {"sop_class": sop_class}, separators=(",", ":")).encode("ascii")


def _decode(content: bytes) -> Identity:
    pairs = json.loads(content)
    sop_class = pairs.pop("sop_class", "")
    return Identity(**{name: Known(*pair) for name, pair in pairs.items()}, sop_class=sop_class)
