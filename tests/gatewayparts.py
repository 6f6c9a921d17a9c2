"""Parts of a gateway for tests of its doors: a real intake and publisher, and doubles of what is behind them.

`plain_objects` and `Book` are doubles: nothing is de-identified, and receipts are in memory alone.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from schemas.errors import Reason, UnsupportedImageError
from sparkdl.image.decode import sniff_media_type
from sparkdl.image.dicomfile import read_dicom
from streaming.gateway.devicelist import DeviceList
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import Intake, Keeping
from streaming.gateway.offer import Outgoing
from streaming.gateway.publisher import Publisher
from streaming.settings import StreamSettings


@dataclass(frozen=True)
class PlainObject:
    """Stands for a de-identified object: the object as it is."""

    payload: bytes
    media_type: str
    image_id: str | None
    flags: tuple[str, ...] = ()
    identity: None = None


def plain_objects(payload: bytes, *, origin: str) -> PlainObject:
    """Stand for the de-identifier."""
    media_type = sniff_media_type(payload)
    if media_type is None:
        raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, origin, "no PNG, JPEG or DICOM")
    if media_type != "application/dicom":
        return PlainObject(payload, media_type, None)
    uid = str(read_dicom(payload, origin=origin).dataset.SOPInstanceUID)
    return PlainObject(payload, media_type, hashlib.sha256(uid.encode()).hexdigest()[:32])


@dataclass(frozen=True)
class Note:
    """Stands for a receipt."""

    event_id: str
    source: str
    place: str | None

    def to_json(self) -> bytes:
        return json.dumps({"event_id": self.event_id, "state": "accepted", "place": self.place}).encode()


@dataclass(frozen=True)
class Word:
    """Stands for `streaming.gateway.waiters.Answer`."""

    prediction: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Wait:
    """Stands for `streaming.gateway.waiters.Waiter`."""

    future: "Future[Word]"


@dataclass
class Book:
    """Stands for the receipt book. ``told`` is what it answers whoever waits, the moment that an image is safe."""

    told: Word | None = None
    notes: dict[str, Note] = field(default_factory=dict)
    waits: "defaultdict[str, list[Future[Word]]]" = field(default_factory=lambda: defaultdict(list))
    began: threading.Event = field(default_factory=threading.Event)

    def other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        return False

    def note_accepted(self, outgoing: Outgoing, place: str | None) -> None:
        self.notes[outgoing.event_id] = Note(outgoing.event_id, outgoing.header("ce_source"), place)
        if self.told is not None:
            self.answer(outgoing.event_id, self.told)

    def find(self, event_id: str) -> Note | None:
        return self.notes.get(event_id)

    @contextmanager
    def expect(self, event_id: str) -> Iterator[Wait]:
        future: Future[Word] = Future()
        future.set_running_or_notify_cancel()
        self.waits[event_id].append(future)
        self.began.set()
        try:
            yield Wait(future)
        finally:
            self.waits[event_id].remove(future)

    def answer(self, event_id: str, word: Word) -> None:
        for future in self.waits[event_id]:
            future.set_result(word)


class Parts:
    """A gateway without its doors."""

    def __init__(self, settings: StreamSettings, *, spool: Any = None, publisher: Any = None) -> None:
        self.settings = settings
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.book = Book()
        self.devices = DeviceList(settings.gateway)
        self.publisher = publisher or Publisher(settings.kafka, timeout_s=settings.gateway.answer_s)
        self.intake = Intake(
            settings,
            deidentify=plain_objects,  # type: ignore[arg-type]
            name=lambda name: hashlib.sha256(name.encode()).hexdigest()[:32],
            publisher=self.publisher,
            book=self.book,  # type: ignore[arg-type]
            metrics=self.metrics,
            keeping=Keeping(spool=spool),
        )

    def count(self, result: str, door: str = "http") -> float:
        """Give how many objects had this result."""
        labels = {"door": door, "result": result}
        return self.metrics.registry.get_sample_value("xray_gateway_objects_total", labels) or 0.0
