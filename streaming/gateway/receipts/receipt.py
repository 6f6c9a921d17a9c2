"""What became of an image, for the device that sent it: a receipt, and which of two is the last state."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from schemas import envelope
from streaming.gateway.offer import Outgoing
from streaming.kafka.places import Headers

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
"""Of one width, so that times are in order as their texts are."""


class State(StrEnum):
    """How far an image has come. The names are label values of metrics."""

    ACCEPTED = "accepted"
    PREDICTED = "predicted"
    DEAD_LETTERED = "dead_lettered"

    @property
    def is_final(self) -> bool:
        """Whether SCORE has said what becomes of it."""
        return self is not State.ACCEPTED


@dataclass(frozen=True, slots=True)
class Score:
    """What the model said; in a receipt only where a setting says so.

    Parameters
    ----------
    label : str or None
        None where the prediction is not to be acted on.
    probability : float or None
        Of the label.
    undecided : tuple of str
        Why it is not to be acted on: the prediction's flags.
    """

    label: str | None = None
    probability: float | None = None
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """One state of one image.

    Parameters
    ----------
    event_id : str
        The image's own: `schemas.envelope.derive_image_event_id` of the next three.
    source, image_id, sha256 : str
        As published.
    state : State
        How far it has come.
    at : str
        When it came there, RFC 3339 in UTC with milliseconds.
    flags : tuple of str
        What is to be known of the image, sorted; see `streaming.gateway.offer.Outgoing`.
    place : str or None
        ``topic-partition@offset`` of the image; None while it waits in the gateway's spool.
    reason : str or None
        Why it is a dead letter.
    outcome_event_id : str or None
        Of the prediction or dead letter.
    model : str or None
        Version of the model that predicted.
    score : Score or None
        What it said.
    """

    event_id: str
    source: str
    image_id: str
    sha256: str
    state: State
    at: str
    flags: tuple[str, ...] = ()
    place: str | None = None
    reason: str | None = None
    outcome_event_id: str | None = None
    model: str | None = None
    score: Score | None = None

    @classmethod
    def of_accepted(cls, outgoing: Outgoing, place: str | None, now: datetime, *, sha256: str | None = None) -> Self:
        """Make the receipt of an image that is safe.

        Parameters
        ----------
        outgoing : Outgoing
            The record.
        place : str or None
            See `Receipt`.
        now : datetime
            With a time zone.
        sha256 : str, optional
            Of the record's value, where it is known already: of a large image that takes a while.
        """
        return cls(
            event_id=outgoing.event_id,
            source=outgoing.header(envelope.CE_SOURCE),
            image_id=outgoing.header(envelope.CE_ID),
            sha256=sha256 or hashlib.sha256(outgoing.value).hexdigest(),
            state=State.ACCEPTED,
            at=format_time(now),
            flags=tuple(sorted(outgoing.flags)),
            place=place,
        )

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON; the schema is ``receipt``."""
        value: dict[str, Any] = {
            "event_id": self.event_id,
            "state": self.state.value,
            "at": self.at,
            "image": {"source": self.source, "id": self.image_id, "sha256": self.sha256},
            "flags": list(self.flags),
            "place": self.place,
        }
        added: dict[str, Any] = {"reason": self.reason, "outcome_event_id": self.outcome_event_id, "model": self.model}
        if self.score is not None:
            added |= {"label": self.score.label, "probability": self.score.probability}
            added |= {"undecided": list(self.score.undecided) or None, "notice": envelope.DISCLAIMER}
        return value | {name: one for name, one in added.items() if one is not None}

    def to_json(self) -> bytes:
        """Render as the value of a record. The same receipt gives the same bytes."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()

    def to_headers(self) -> Headers:
        """Give the headers of its record, as a CloudEvent, Kafka binding, binary mode."""
        digest = hashlib.sha256(self.to_json()).hexdigest()
        headers = {
            envelope.CONTENT_TYPE: "application/json",
            envelope.CE_SPECVERSION: envelope.SPECVERSION,
            envelope.CE_ID: envelope.derive_event_id(self.event_id, digest, "receipt"),
            envelope.CE_SOURCE: envelope.GATEWAY_SOURCE,
            envelope.CE_TYPE: envelope.RECEIPT_TYPE,
            envelope.CE_TIME: self.at,
            envelope.CE_SUBJECT: self.image_id,
        }
        return [(name, text.encode()) for name, text in headers.items()]

    def says_the_same(self, other: "Receipt") -> bool:
        """Tell whether two are of one state and one outcome, whenever and wherever: a repetition is no news."""
        return replace(self, at="", place=None) == replace(other, at="", place=None)


def read_receipt(value: bytes) -> Receipt | None:
    """Read the value of a record; None where no gateway has written it.

    Fields that are not known are ignored: a later release may have more.
    """
    try:
        receipt = _from_dict(json.loads(value))
        identity = envelope.derive_image_event_id(receipt.source, receipt.image_id, receipt.sha256)
        if receipt.event_id != identity or not _TIME.fullmatch(receipt.at):
            return None
        datetime.fromisoformat(receipt.at)  # of the right form, and perhaps of a thirteenth month
        return receipt
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _from_dict(value: dict[str, Any]) -> Receipt:
    image = value["image"]
    score = Score(value.get("label"), value.get("probability"), tuple(value.get("undecided", ())))
    return Receipt(
        event_id=value["event_id"],
        source=image["source"],
        image_id=image["id"],
        sha256=image["sha256"],
        state=State(value["state"]),
        at=value["at"],
        flags=tuple(map(str, value["flags"])),
        place=value["place"],
        reason=value.get("reason"),
        outcome_event_id=value.get("outcome_event_id"),
        model=value.get("model"),
        score=None if score == Score() else score,
    )


def choose_last(old: Receipt | None, new: Receipt) -> Receipt:
    """Choose which of two receipts of an image is its last state.

    A final state replaces an accepted one whatever their times say, for they are of different clocks, and never the
    other way. Of two final ones the later counts: an image that was sent again after its dead letter is predicted. What
    is known of the image's flags is kept, since a prediction does not have them.

    Parameters
    ----------
    old : Receipt or None
        What is known so far.
    new : Receipt
        Of the same image.
    """
    if old is None:
        return new
    chosen = new if _replaces(new, old) else old
    return replace(chosen, flags=tuple(sorted({*old.flags, *new.flags})))


def _replaces(new: Receipt, old: Receipt) -> bool:
    if new.state.is_final != old.state.is_final:
        return new.state.is_final
    if new.state.is_final:
        return new.at >= old.at and not new.says_the_same(replace(old, flags=new.flags))
    if (new.place is None) != (old.place is None):
        return new.place is not None  # one that is in the topic does not go back into the spool
    return new.at >= old.at


def format_time(moment: datetime) -> str:
    """Write a time as receipts have it, e.g. ``2026-01-31T14:03:59.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
