"""A finding that a person entered on the page, and the event of the labels topic that tells it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from schemas import envelope
from schemas.errors import XrayError
from streaming.kafka.places import Headers


class FindingError(XrayError):
    """A finding was not taken; nothing of it is kept. The message says why, and what to do."""


class LedgerError(FindingError):
    """The ledger cannot be written or read now; the same finding may be taken later."""


class Progress(StrEnum):
    """How far a finding has come."""

    QUEUED = "queued"
    SENDING = "sending"
    """Perhaps in the topic: whether it is, is looked up before it is sent again."""
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a person said of one image.

    Parameters
    ----------
    event_id : str
        Of the prediction.
    label : str
        One of its model's classes.
    who : str
        A pseudonym.
    request : str
        The browser's own id of this entry: sent again, it is the same entry.
    confirmed_ms : int
        When, Unix time in milliseconds; later than what was said of the image before.
    progress : Progress
        See there.
    place : str or None
        ``topic-partition@offset`` of a published one.
    number : int
        In the order of entering, from 1.
    """

    event_id: str
    label: str
    who: str
    request: str
    confirmed_ms: int
    progress: Progress = Progress.QUEUED
    place: str | None = None
    number: int = 0

    @property
    def ce_id(self) -> str:
        """Id of its event; the same whenever it is sent."""
        return envelope.derive_event_id(self.event_id, self.who, self.request, "finding")

    @property
    def confirmed_at(self) -> str:
        """When, RFC 3339 in UTC with milliseconds."""
        moment = datetime.fromtimestamp(self.confirmed_ms / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "event_id": self.event_id,
            "label": self.label,
            "who": self.who,
            "confirmed_at": self.confirmed_at,
            "progress": self.progress.value,
            "place": self.place,
        }

    def to_json(self) -> bytes:
        """Render as the value of its event; the schema is ``label``."""
        value = {
            "label": self.label,
            "event_id": self.event_id,
            "confirmed_by": self.who,
            "confirmed_at": self.confirmed_at,
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def to_headers(self) -> Headers:
        """Give the headers of its event, as a CloudEvent, Kafka binding, binary mode."""
        headers = {
            envelope.CONTENT_TYPE: "application/json",
            envelope.CE_SPECVERSION: envelope.SPECVERSION,
            envelope.CE_ID: self.ce_id,
            envelope.CE_SOURCE: envelope.PAGE_SOURCE,
            envelope.CE_TYPE: envelope.LABEL_TYPE,
            envelope.CE_TIME: self.confirmed_at,
        }
        return [(name, text.encode()) for name, text in headers.items()]
