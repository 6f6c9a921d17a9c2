"""What a door hands in, and what it is told: values that every module of the gateway knows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas import envelope


@dataclass(frozen=True, slots=True)
class Offer:
    """An object that a device wants to hand over.

    Parameters
    ----------
    payload : bytes
        The file as it came: PNG, JPEG or DICOM, the latter with file meta information.
    source : str
        Who sends, as a URI reference: ``ce_source``.
    name : str or None
        The sender's own name of the object where that is not in it: an ``Idempotency-Key``.
    traceparent : str or None
        W3C trace context of the request; a new one is begun where it has none.
    content_type : str or None
        What the sender says that it is.
    announced : tuple of str, optional
        SOP Class UID and SOP Instance UID of the request, which those of the object must be.
    """

    payload: bytes
    source: str
    name: str | None = None
    traceparent: str | None = None
    content_type: str | None = None
    announced: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record for the images topic: what Kafka gets, or the spool where Kafka is away.

    Parameters
    ----------
    event_id : str
        `schemas.envelope.derive_image_event_id` of source, id and bytes.
    key : bytes
        Kafka's.
    headers : sequence of (str, bytes)
        As a CloudEvent, Kafka binding, binary mode.
    value : bytes
        The image, de-identified where that is on.
    """

    event_id: str
    key: bytes
    headers: Sequence[tuple[str, bytes]]
    value: bytes

    def header(self, name: str) -> str:
        """Give a header's text; empty where there is none."""
        return next((value.decode() for own, value in self.headers if own == name), "")

    @property
    def flags(self) -> tuple[str, ...]:
        """What is to be known of the image; see `Flag`."""
        return tuple(filter(None, self.header(envelope.IMAGE_FLAGS).split(",")))


@dataclass(frozen=True, slots=True)
class Taken:
    """An object that is safe.

    Parameters
    ----------
    event_id : str
        Under which its receipts are.
    place : str or None
        ``topic-partition@offset``; None where it waits in the spool.
    flags : tuple of str
        See `Flag`.
    """

    event_id: str
    place: str | None
    flags: tuple[str, ...] = field(default=())


BURNED_IN = envelope.BURNED_IN
OTHER_BYTES = envelope.OTHER_BYTES
