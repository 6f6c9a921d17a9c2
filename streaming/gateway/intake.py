"""Takes an object in: from bytes that a device sent to a record that Kafka has, or the spool.

This is the one way of an object, whichever door it came by. Its answer is the device's: what `Intake.take` gives back
is safe, what it raises is not taken.
"""

import hashlib
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from schemas import envelope
from schemas.errors import CorruptImageError, Reason, RecordError
from streaming.devices.crosswalk import Crosswalk
from streaming.devices.deidentify import Deidentified
from streaming.devices.publish import image_message
from streaming.gateway.devicelist import Device
from streaming.gateway.gatewaymetrics import PUBLISHED, SPOOLED, GatewayMetrics
from streaming.gateway.keeping.originals import Originals
from streaming.gateway.keeping.spool import Spool
from streaming.gateway.memory import Memory
from streaming.gateway.offer import OTHER_BYTES, Offer, Outgoing, Taken
from streaming.gateway.publisher import Publisher
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_HEADROOM_BYTES = 64 * 1024
"""Of a Kafka message: key, headers, and the record's own frame."""
BUSY_SHARE = 0.25
"""Of the time for an answer: how long an object may wait for its turn, and for memory. The rest is Kafka's."""
_ORIGIN = "the object"
"""What errors call it: its own names may be a patient's."""


@dataclass(frozen=True)
class Keeping:
    """What is kept of objects, and where; each may be absent.

    Parameters
    ----------
    spool : Spool, optional
        Where they wait while Kafka is away.
    originals : Originals, optional
        Where they stay as they came.
    crosswalk : Crosswalk, optional
        Where their ids stay beside the pseudonyms.
    """

    spool: Spool | None = None
    originals: Originals | None = None
    crosswalk: Crosswalk | None = None


class Intake:
    """Takes objects in, several at once.

    Parameters
    ----------
    settings : StreamSettings
        The gateway's, and Kafka's limit.
    deidentify : callable
        `streaming.devices.deidentify.Deidentifier.deidentify`, or `examine` where that is off.
    name : callable
        Gives the id of an object that its sender has named: its pseudonym, or the name itself.
    publisher : Publisher
        To the images topic.
    book : ReceiptBook
        What was taken before, and what became of it.
    metrics : GatewayMetrics
        Where all of it is counted.
    keeping : Keeping
        See there.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        deidentify: Callable[..., Deidentified],
        name: Callable[[str], str],
        publisher: Publisher,
        book: ReceiptBook,
        metrics: GatewayMetrics,
        keeping: Keeping,
    ) -> None:
        self._gateway = settings.gateway
        self._max_bytes = min(settings.gateway.max_object_bytes, settings.kafka.max_message_bytes - _HEADROOM_BYTES)
        self._deidentify = deidentify
        self._name = name
        self._publisher = publisher
        self._book = book
        self._metrics = metrics
        self._keeping = keeping
        self._memory = Memory(settings.gateway.max_pending_bytes)
        metrics.pending.set_function(lambda: self._memory.reserved)

    @property
    def max_bytes(self) -> int:
        """Of one object: a door may end receiving a larger one."""
        return self._max_bytes

    @property
    def is_ready(self) -> bool:
        """Whether an object that comes now would be taken."""
        spool = self._keeping.spool
        return self._publisher.is_up or (spool is not None and spool.has_room)

    def take(
        self,
        door: str,
        device: Device,
        size: int,
        receive: Callable[[], Offer],
        *,
        on_named: Callable[[str], None] = lambda event_id: None,
        waited_s: float = 0.0,
    ) -> Taken:
        """Take an object in, or raise why not; counts it either way.

        Parameters
        ----------
        door : str
            ``"dicom"`` or ``"http"``.
        device : Device
            Who sends.
        size : int
            Bytes of the object as it came.
        receive : callable
            Gives the object, once there is memory for it: until then it is on disk, or on the network.
        on_named : callable
            Called with the event id before the object is published: who waits for its outcome begins there.
        waited_s : float
            How long it has waited in its door since its last byte: its device waits for all of it.

        Raises
        ------
        Refusal
            It is not taken.
        """
        started = time.monotonic() - waited_s
        result = Cause.FAILED.label
        try:
            taken = self._take(size, receive, on_named, started)
            result = SPOOLED if taken.place is None else PUBLISHED
            self._metrics.record_taken(device.label, taken.flags)
        except Refusal as exc:
            result = exc.cause.label
            log.warning("%s: an object of %s is not taken: %s: %s", door, device.source, result, exc.detail)
            raise
        except Exception as exc:
            # The record's boundary: a fault of ours is this object's answer, and the gateway goes on.
            # Its words are withheld: libraries quote what they read, and so a patient's name.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            log.error("%s: an object of %s met %s:\n%s", door, device.source, type(exc).__name__, stack)
            raise Refusal(Cause.FAILED) from exc
        finally:
            self._metrics.record_object(door, result, size, time.monotonic() - started)
        return taken

    def note_refusal(self, door: str, device: Device | None, refusal: Refusal, size: int = 0) -> None:
        """Count an object that its door refuses before `take`."""
        source = "a stranger" if device is None else device.source
        log.warning("%s: an object of %s is not taken: %s: %s", door, source, refusal.cause.label, refusal.detail)
        self._metrics.record_object(door, refusal.cause.label, size, 0.0)

    def _take(self, size: int, receive: Callable[[], Offer], on_named: Callable[[str], None], started: float) -> Taken:
        if size > self._max_bytes:
            raise Refusal(Cause.TOO_LARGE, f"{size} bytes, at most {self._max_bytes} are taken")
        spool = self._keeping.spool
        if spool is None and not self._publisher.is_up:
            raise Refusal(Cause.BROKER_AWAY)
        left_s = started + self._gateway.answer_s * BUSY_SHARE - time.monotonic()
        with self._memory.reserve(size, max(0.0, left_s)):
            outgoing, sha256 = self._prepare(receive())
            on_named(outgoing.event_id)
            taken = self._hand_over(outgoing, spool)
            self._book.note_accepted(outgoing, taken.place, sha256=sha256)
            return taken

    def _prepare(self, offer: Offer) -> tuple[Outgoing, str]:
        """Make the record of an object, and the SHA-256 of its value."""
        found = self._read(offer)
        sha256 = hashlib.sha256(found.payload).hexdigest()
        image_id = found.image_id or (sha256[:32] if offer.name is None else self._name(offer.name))
        flags = found.flags
        if self._book.other_bytes(offer.source, image_id, sha256):
            flags = (*flags, OTHER_BYTES)
        if found.named is not None and self._keeping.originals is not None:
            self._keeping.originals.keep(*found.named, offer.payload)
        if found.identity is not None and self._keeping.crosswalk is not None:
            self._note_crosswalk(self._keeping.crosswalk, found)
        value, headers = image_message(found.payload, image_id=image_id, source=offer.source)
        # The library makes up a time, the present one, where none is given; it would count as that of the exposure.
        headers = [(name, text) for name, text in headers if name != envelope.CE_TIME]
        headers.append(("traceparent", (offer.traceparent or _begin_trace()).encode()))
        if flags:
            headers.append((envelope.IMAGE_FLAGS, ",".join(flags).encode()))
        event_id = envelope.derive_image_event_id(offer.source, image_id, sha256)
        return Outgoing(event_id, image_id.encode(), tuple(headers), value), sha256

    def _read(self, offer: Offer) -> Deidentified:
        try:
            found = self._deidentify(offer.payload, origin=_ORIGIN)
        except CorruptImageError as exc:
            raise Refusal(Cause.UNREADABLE, exc.detail) from exc
        except RecordError as exc:
            is_too_large = exc.reason is Reason.PAYLOAD_TOO_LARGE
            raise Refusal(Cause.TOO_LARGE if is_too_large else Cause.UNSUPPORTED, exc.detail) from exc
        if offer.content_type is not None and offer.content_type != found.media_type:
            raise Refusal(Cause.UNSUPPORTED, f"the bytes are {found.media_type}, which is not what was announced")
        if offer.announced is not None and found.named != offer.announced:
            raise Refusal(Cause.WRONG_CLASS)
        if len(found.payload) > self._max_bytes:
            raise Refusal(Cause.TOO_LARGE, f"{len(found.payload)} bytes, at most {self._max_bytes} are taken")
        return found

    def _note_crosswalk(self, crosswalk: Crosswalk, found: Deidentified) -> None:
        assert found.identity is not None  # noqa: S101
        try:
            crosswalk.note(found.identity)
        except OSError as exc:
            raise Refusal(Cause.KEEP_FAILED, f"the crosswalk cannot be written: {exc.strerror}") from exc

    def _hand_over(self, outgoing: Outgoing, spool: Spool | None) -> Taken:
        taken = Taken(outgoing.event_id, None, outgoing.flags)
        # What comes while others wait in the spool goes behind them.
        if spool is None or (self._publisher.is_up and not spool.holds_anything):
            delivery = self._publisher.publish(outgoing)
            if delivery.error is None:
                return replace(taken, place=delivery.place)
            if delivery.is_too_large:
                raise Refusal(Cause.TOO_LARGE, f"Kafka refuses it: {delivery.error}")
            if spool is None:
                raise Refusal(Cause.BROKER_AWAY, f"Kafka did not confirm it: {delivery.error}")
        spool.put(outgoing)
        return taken


def _begin_trace() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
