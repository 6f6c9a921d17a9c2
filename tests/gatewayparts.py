"""Parts of a gateway for tests of its doors: a real intake and publisher, and doubles of what is behind them.

`plain_objects` and `Book` are doubles: nothing is de-identified, and receipts are in memory alone.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
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
from streaming.gateway.receipts.receipt import Receipt
from streaming.gateway.receipts.waiters import Answer, Waiter, Waiters
from streaming.settings import StreamSettings


@dataclass(frozen=True)
class PlainObject:
    """Stands for a de-identified object: the object as it is."""

    payload: bytes
    media_type: str
    image_id: str | None
    flags: tuple[str, ...] = ()
    identity: None = None
    named: tuple[str, str] | None = None


def plain_objects(payload: bytes, *, origin: str) -> PlainObject:
    """Stand for the de-identifier."""
    media_type = sniff_media_type(payload)
    if media_type is None:
        raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, origin, "no PNG, JPEG or DICOM")
    if media_type != "application/dicom":
        return PlainObject(payload, media_type, None)
    found = read_dicom(payload, origin=origin).dataset
    named = (str(found.SOPClassUID), str(found.SOPInstanceUID))
    return PlainObject(payload, media_type, hashlib.sha256(named[1].encode()).hexdigest()[:32], named=named)


class Book:
    """Stands for the receipt book: in memory, and without Kafka.

    ``told`` is what it answers whoever waits, the moment that an image is safe.
    """

    def __init__(self) -> None:
        self.told: Answer | None = None
        self.receipts: dict[str, Receipt] = {}
        self.waiters = Waiters()
        self.waited_for: list[str] = []
        self.began = threading.Event()

    def other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        return False

    def note_accepted(self, outgoing: Outgoing, place: str | None, *, sha256: str | None = None) -> None:
        self.receipts[outgoing.event_id] = Receipt.of_accepted(outgoing, place, datetime.now(UTC), sha256=sha256)
        if self.told is not None:
            self.waiters.answer(outgoing.event_id, self.told)

    def find(self, event_id: str) -> Receipt | None:
        return self.receipts.get(event_id)

    @contextmanager
    def expect(self, event_id: str) -> Iterator[Waiter]:
        with self.waiters.expect(event_id) as waiter:
            self.waited_for.append(event_id)
            self.began.set()
            try:
                yield waiter
            finally:
                self.waited_for.remove(event_id)


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
