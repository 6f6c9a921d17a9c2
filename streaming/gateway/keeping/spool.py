"""Where images wait on disk while Kafka is away: one file for each, in the order in which they came.

A file, integers big-endian::

    8 bytes    b"XRSPOOL1"
    4 bytes    length of the header
    8 bytes    length of the value
    header     JSON, UTF-8: event_id, key (base64), headers (pairs of name and base64)
    value      the image as Kafka will get it: de-identified, where that is on
    32 bytes   SHA-256 of all that is before

Its name is a number that only grows: microseconds since 1970, or one more than the last. So the names say the order and
the age, and none is used twice, whatever the clock does. A file is removed once the broker has confirmed its record;
one that was sent already is sent again after a kill between the two, with the same event id. What can never be sent is
moved to ``refused/`` (above Kafka's limit) or ``damaged/`` (other bytes than were written), where somebody has to look.
"""

import base64
import errno
import hashlib
import json
import logging
import os
import re
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from schemas.folders import sync_folder
from streaming.gateway.keeping.ownfolder import OwnFolder, discard, make_folder
from streaming.gateway.offer import Outgoing
from streaming.gateway.refusals import Cause, Refusal
from streaming.kafka.producer import Delivery
from streaming.retry import Backoff
from streaming.settings import RetrySettings

log = logging.getLogger(__name__)

SETTING = "XRAY_GATEWAY__SPOOL"
REFUSED = "refused"
DAMAGED = "damaged"

_MAGIC = b"XRSPOOL1"
_LENGTHS = struct.Struct(">IQ")
_FRAME_BYTES = len(_MAGIC) + _LENGTHS.size
_DIGEST_BYTES = 32
_NAME = re.compile(r"(\d{20})\.record")
_MICROSECONDS = 1_000_000

_WINDOW = 16
"""Records on their way at once: one by one, the broker's time for an answer would bound the rate to 100 a second."""
_WINDOW_BYTES = 64 * 1024 * 1024
"""Of these records, unless a single one is larger."""
_LOOK_S = 0.1
_FOREVER = RetrySettings(first_wait_s=0.5, max_wait_s=5.0, give_up_s=float("inf"))
"""A record is tried for as long as Kafka is away, and a try itself takes the client's time for it."""


class DamagedError(Exception):
    """A file of the spool is not what was written."""


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What is in a spool.

    Parameters
    ----------
    count, size : int
        Records that wait, and the bytes of their files.
    oldest_at : float or None
        When the oldest of them was put, in seconds since 1970.
    refused, damaged : int
        Records that were set aside.
    """

    count: int
    size: int
    oldest_at: float | None
    refused: int
    damaged: int


class Spool:
    """The records that wait; several threads may put at once.

    Parameters
    ----------
    folder : Path
        Of this gateway alone; it is made where it is missing.
    max_bytes : int
        Of all files, those that were set aside among them.
    min_free_bytes : int
        Room that is left on the disk.

    Raises
    ------
    SettingsError
        The folder cannot be used, or another gateway has it.
    """

    def __init__(self, folder: Path, *, max_bytes: int, min_free_bytes: int) -> None:
        self._folder = OwnFolder(folder, SETTING)
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._changed = threading.Condition()
        waiting = _list_records(folder)
        aside = {name: _list_records(folder / name) for name in (REFUSED, DAMAGED)}
        self._waiting = OrderedDict(waiting)
        self._aside = {name: len(records) for name, records in aside.items()}
        self._aside_bytes = sum(sum(records.values()) for records in aside.values())
        self._bytes = sum(waiting.values())
        self._unwritten = 0
        self._last = max((number for records in (waiting, *aside.values()) for number in records), default=0)

    def close(self) -> None:
        """Let another gateway have the folder."""
        self._folder.close()

    @property
    def holds_anything(self) -> bool:
        """Whether a record waits, or is on its way and not confirmed."""
        return bool(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether a small record would be taken."""
        with self._changed:
            try:
                return self._has_room_for(0)
            except OSError:
                return False

    @property
    def state(self) -> SpoolState:
        """What is in it."""
        with self._changed:
            first = next(iter(self._waiting), None)
            oldest_at = None if first is None else first / _MICROSECONDS
            return SpoolState(len(self._waiting), self._bytes, oldest_at, self._aside[REFUSED], self._aside[DAMAGED])

    def put(self, outgoing: Outgoing) -> None:
        """Put a record behind all others; it is on the disk when this returns.

        Raises
        ------
        Refusal
            ``SPOOL_FULL``: there is no room, or the disk did not take it. Nothing of it is kept then.
        """
        parts = _encode(outgoing)
        size = sum(len(part) for part in parts)
        try:
            self._reserve(size)
            try:
                self._write(parts, size)
            finally:
                with self._changed:
                    self._unwritten -= size
        except OSError as exc:
            raise Refusal(Cause.SPOOL_FULL, f"the spool cannot be written: {exc.strerror}") from exc

    def wait(self, timeout_s: float) -> bool:
        """Wait until a record is there; tell whether one is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.holds_anything, timeout_s)

    def first(self, count: int) -> list[tuple[int, int]]:
        """Give number and size of the oldest records, so many at most."""
        with self._changed:
            return list(islice(self._waiting.items(), count))

    def read(self, number: int) -> Outgoing:
        """Read a record.

        Raises
        ------
        DamagedError
            It is not what was put, or its part of the disk cannot be read.
        OSError
            Anything else.
        """
        try:
            return _decode(self._path(number).read_bytes())
        except OSError as exc:
            if exc.errno == errno.EIO:
                msg = "the disk cannot read it"
                raise DamagedError(msg) from exc
            raise

    def remove(self, number: int) -> None:
        """Remove a record that the broker has."""
        self._forget(number)
        try:
            self._path(number).unlink(missing_ok=True)
        except OSError as exc:
            log.warning("a published image stays in the spool, and will be published again: %s", exc.strerror)

    def set_aside(self, number: int, kind: str) -> None:
        """Move a record to where it bars no other one's way.

        Parameters
        ----------
        number : int
            Which.
        kind : str
            `REFUSED` or `DAMAGED`.
        """
        size = self._forget(number)
        target = self._folder.path / kind
        try:
            make_folder(target)
            os.rename(self._path(number), target / self._path(number).name)
            sync_folder(target)
        except OSError as exc:
            log.error("an image of the spool could not be moved to %s, and is left out: %s", target, exc.strerror)
            return
        with self._changed:
            self._aside[kind] += 1
            self._aside_bytes += size

    def _reserve(self, size: int) -> None:
        with self._changed:
            if not self._has_room_for(size):
                raise Refusal(Cause.SPOOL_FULL)
            self._unwritten += size

    def _has_room_for(self, size: int) -> bool:
        wanted = self._unwritten + size
        return (
            self._bytes + self._aside_bytes + wanted <= self._max_bytes
            and self._folder.free_bytes - wanted >= self._min_free_bytes
        )

    def _write(self, parts: Sequence[bytes], size: int) -> None:
        path = self._folder.write(parts)
        with self._changed:
            # Numbered and renamed at once, so that no later one is seen before it.
            number = max(self._last + 1, time.time_ns() // 1000)
            try:
                os.rename(path, self._path(number))
            except OSError:
                discard(path)
                raise
            self._last = number
            self._waiting[number] = size
            self._bytes += size
            self._changed.notify_all()
        try:
            self._folder.sync()
        except OSError:
            # It may have been sent already: the device sends it again then, with the same event id.
            self._forget(number)
            discard(self._path(number))
            raise

    def _forget(self, number: int) -> int:
        with self._changed:
            size = self._waiting.pop(number, 0)
            self._bytes -= size
            return size

    def _path(self, number: int) -> Path:
        return self._folder.path / f"{number:020}.record"


class SpoolDrain:
    """Publishes what waits, in a thread of its own, the oldest first.

    Of each key one record is on its way at a time, so records of one key keep their order, whatever fails.

    Parameters
    ----------
    spool : Spool
        What waits.
    publish : callable
        Gives what became of a record, once that is known. It is called by several threads at once.
    retry : RetrySettings
        How long to wait between failures; ``give_up_s`` should be endless.
    """

    def __init__(self, spool: Spool, publish: Callable[[Outgoing], Delivery], retry: RetrySettings = _FOREVER) -> None:
        self._spool = spool
        self._publish = publish
        self._backoff = Backoff(retry, healthy_s=0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-drain", daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def stop(self) -> None:
        """End it, once what is on its way is told about; what was not confirmed stays in the spool."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(_WINDOW, thread_name_prefix="spool-drain") as pool:
            while not self._ended.is_set():
                if self._spool.wait(_LOOK_S) and not self._turn(pool):
                    self._ended.wait(self._backoff.note_failure())

    def _turn(self, pool: ThreadPoolExecutor) -> bool:
        try:
            window = self._read_window()
            told = list(zip(window, pool.map(self._publish, window.values()), strict=True))
        except Exception:  # whatever it is, the next turn may succeed, and a thread that ended would go unseen
            log.exception("the spool could not be emptied, for an unexpected reason")
            return False
        for number, delivery in told:
            self._settle(number, window[number], delivery)
        failed = [delivery.error for _, delivery in told if delivery.error is not None and not delivery.is_too_large]
        if not failed:
            self._backoff.reset()
        elif not self._backoff.is_failing:
            log.warning("the spool waits, with %s images: %s", self._spool.state.count, failed[0])
        return not failed

    def _settle(self, number: int, outgoing: Outgoing, delivery: Delivery) -> None:
        if delivery.error is None:
            self._spool.remove(number)
        elif delivery.is_too_large:
            log.error(
                "the image of event %s cannot be published and is set aside: %s", outgoing.event_id, delivery.error
            )
            self._spool.set_aside(number, REFUSED)

    def _read_window(self) -> dict[int, Outgoing]:
        window: dict[int, Outgoing] = {}
        keys: set[bytes] = set()
        left = _WINDOW_BYTES
        for number, size in self._spool.first(_WINDOW):
            if window and size > left:
                break
            outgoing = self._read(number)
            if outgoing is None:
                continue
            if outgoing.key in keys:
                break
            window[number] = outgoing
            keys.add(outgoing.key)
            left -= size
        return window

    def _read(self, number: int) -> Outgoing | None:
        try:
            return self._spool.read(number)
        except DamagedError as exc:
            log.error("image %s of the spool is damaged and is set aside: %s", number, exc)
            self._spool.set_aside(number, DAMAGED)
        except FileNotFoundError:
            log.error("image %s of the spool is gone; somebody has removed its file", number)
            self._spool.remove(number)
        return None


def read_spool(folder: Path) -> SpoolState:
    """Look into a spool that a gateway may own.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    records = _list_records(folder)
    oldest_at = min(records) / _MICROSECONDS if records else None
    refused, damaged = (len(_list_records(folder / name)) for name in (REFUSED, DAMAGED))
    return SpoolState(len(records), sum(records.values()), oldest_at, refused, damaged)


def _list_records(folder: Path) -> dict[int, int]:
    """Give the size of each record in a folder by its number, the oldest first; none where there is no folder."""
    found: dict[int, int] = {}
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return found
    for entry in entries:
        if name := _NAME.fullmatch(entry.name):
            try:
                found[int(name[1])] = entry.stat().st_size
            except FileNotFoundError:  # sent in between
                continue
    return dict(sorted(found.items()))


def _encode(outgoing: Outgoing) -> list[bytes]:
    content = {
        "event_id": outgoing.event_id,
        "key": base64.b64encode(outgoing.key).decode(),
        "headers": [[name, base64.b64encode(value).decode()] for name, value in outgoing.headers],
    }
    header = json.dumps(content).encode()
    parts = [_MAGIC, _LENGTHS.pack(len(header), len(outgoing.value)), header, outgoing.value]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def _decode(data: bytes) -> Outgoing:
    content = memoryview(data)[:-_DIGEST_BYTES]
    if len(data) < _FRAME_BYTES + _DIGEST_BYTES or not data.startswith(_MAGIC):
        msg = f"{len(data)} bytes that do not begin as a record of version 1"
        raise DamagedError(msg)
    if hashlib.sha256(content).digest() != data[-_DIGEST_BYTES:]:
        msg = f"{len(data)} bytes that are not those that were written, by their SHA-256"
        raise DamagedError(msg)
    header_bytes, _ = _LENGTHS.unpack_from(data, len(_MAGIC))
    value_at = _FRAME_BYTES + header_bytes
    header = json.loads(data[_FRAME_BYTES:value_at])
    return Outgoing(
        event_id=header["event_id"],
        key=base64.b64decode(header["key"]),
        headers=tuple((name, base64.b64decode(value)) for name, value in header["headers"]),
        value=data[value_at:-_DIGEST_BYTES],
    )
