"""What is published: small radiographs in three formats, examples of every format that is read, and poison.

Every message has bytes or an id of its own, so each is an event of its own; the same seed gives the same messages.
"""

import hashlib
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from tests import testimages
from xray.phantom import FINDINGS, encode_dicom, encode_jpeg, encode_png, generate_radiograph

SOURCE = b"/xray-stream/chaos"

_DISTINCT_RADIOGRAPHS = 30
_HEIGHT_PX, _WIDTH_PX = 256, 224
_POISON_SHARE = 0.1
_SPECIMEN_SHARE = 0.1
_BARE_SHARE = 0.1
_LARGE_BYTES = 1_000_000
"""Poison of this size or more is left out of the traffic: it would fill the topic."""
"""Messages without any header: their place in the topic is their identity."""
_PNG_HEADER_BYTES = 33

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Message:
    """One message and what must become of it.

    Parameters
    ----------
    id : str
        Its name in the oracle, and its key.
    kind : str
        What it is, e.g. ``truncated.jpg``.
    reason : str or None
        Of the dead letter it must become; None where it must be predicted.
    payload : bytes or None
        None is a tombstone.
    headers : list
        Kafka headers.
    """

    id: str
    kind: str
    reason: str | None
    payload: bytes | None
    headers: Headers

    @property
    def sha256(self) -> str:
        """Hash of the bytes; the word ``null`` for a tombstone, which has none."""
        return digest(self.payload)


def digest(payload: bytes | None) -> str:
    """Hash a Kafka value; ``null`` where there is none."""
    return "null" if payload is None else hashlib.sha256(payload).hexdigest()


@dataclass(frozen=True)
class Example:
    """A file, and what must become of it; see `Message`."""

    kind: str
    reason: str | None
    payload: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Traffic:
    """An endless, seeded mix of messages.

    Parameters
    ----------
    seed : int
        The same seed gives the same mix.
    name : str
        Beginning of every message's id.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._random = random.Random(f"{seed} {name}")
        self._name = name
        self._count = 0
        self._lock = threading.Lock()  # two publishers may take from one traffic
        self._poison: list[Example] = []

    def take(self, count: int) -> Iterator[Message]:
        """Give the next messages."""
        for _ in range(count):
            with self._lock:
                message = self._next()
            yield message

    def _next(self) -> Message:
        draw = self._random.random()
        if draw < _POISON_SHARE:
            example = self._next_poison()
        elif draw < _POISON_SHARE + _SPECIMEN_SHARE:
            example = self._random.choice(formats())
        else:
            example = self._random.choice(radiographs())
        self._count += 1
        name = f"{self._name}-{self._count}"
        if example.reason is None and self._random.random() < _BARE_SHARE:
            return Message(name, example.kind, None, vary(example.payload or b"", name), [])
        return message_of(example, name)

    def _next_poison(self) -> Example:
        """Go through all kinds before one comes again, in a new order each time."""
        if not self._poison:
            self._poison = [example for example in poison() if len(example.payload or b"") < _LARGE_BYTES]
            self._random.shuffle(self._poison)
        return self._poison.pop()


def message_of(example: Example, name: str) -> Message:
    """Give an example an id of its own; good ones get bytes of their own too."""
    payload = example.payload
    if payload is not None and example.reason is None:
        payload = vary(payload, name)
    headers = [("ce_specversion", b"1.0"), ("ce_id", name.encode()), ("ce_source", SOURCE), *example.headers]
    return Message(name, example.kind, example.reason, payload, headers)


def vary(payload: bytes, name: str) -> bytes:
    """Write a name into a PNG or JPEG file as its comment; other files stay as they are."""
    if payload.startswith(b"\x89PNG"):
        chunk = testimages.png_chunk(b"tEXt", b"Comment\0" + name.encode())
        return payload[:_PNG_HEADER_BYTES] + chunk + payload[_PNG_HEADER_BYTES:]
    if payload.startswith(b"\xff\xd8"):
        comment = name.encode()
        return payload[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + payload[2:]
    return payload


@cache
def radiographs() -> tuple[Example, ...]:
    """Give small chest phantoms as PNG, JPEG and DICOM in turn."""
    encoders: tuple[tuple[str, Callable[..., bytes]], ...] = (
        ("phantom.png", encode_png),
        ("phantom.jpg", encode_jpeg),
        ("phantom.dcm", encode_dicom),
    )
    found = []
    for seed in range(_DISTINCT_RADIOGRAPHS):
        kind, encode = encoders[seed % len(encoders)]
        finding = FINDINGS[seed % len(FINDINGS)]
        radiograph = generate_radiograph(seed, finding=finding, height=_HEIGHT_PX, width=_WIDTH_PX)
        found.append(Example(kind, None, encode(radiograph)))
    return tuple(found)


@cache
def formats() -> tuple[Example, ...]:
    """Give a small file of every format that is read: 16 bits, palette, alpha, MONOCHROME1, each transfer syntax."""
    return tuple(Example(kind, None, payload) for kind, payload in testimages.good_files().items())


@cache
def poison() -> tuple[Example, ...]:
    """Give one message of each kind that must become a dead letter."""
    found = []
    for kind, wrong in testimages.wrong_files().items():
        declared = ((("content-type", wrong.content_type.encode())),) if wrong.content_type else ()
        found.append(Example(kind, wrong.reason.value, wrong.payload, declared))
    image = testimages.png()
    found += [
        Example("header_not_utf8", "invalid_header", image, (("content-type", b"\xff\xfe"),)),
        Example("header_of_1_MB", "header_too_large", image, (("x-thumbnail", b"\x01" * 1024 * 1024),)),
        Example("headers_of_72_kB", "headers_too_large", image, (("x-part", b"\x01" * 8000),) * 9),
    ]
    return tuple(found)


def tiny_poison(count: int, name: str) -> Iterator[Message]:
    """Give a flood of bad records of a few bytes, each of its own bytes."""
    for i in range(count):
        name_i = f"{name}-{i}"
        checksum = zlib.crc32(name_i.encode())
        yield Message(name_i, "text", "unsupported_format", b"no image %d %d" % (i, checksum), [])
