"""What is known of the images that were asked for, and where it was looked for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import groupby
from typing import Any

from streaming.alerts.ledger import Delivery, Entry
from streaming.gateway.receipts.receipt import Receipt
from streaming.lookup.outcome import NO_PLACE, Outcome
from streaming.lookup.query import Query
from streaming.reports.ledger import Reported


@dataclass(frozen=True, slots=True)
class TableRow:
    """Where a row is.

    Parameters
    ----------
    table : str
        Its name.
    event_id : str
        Its key; of the labels table the image's SHA-256.
    day : date or None
        Of its partition; None in a table without.
    """

    table: str
    event_id: str
    day: date | None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a person said an image shows.

    Parameters
    ----------
    label : str
        The finding.
    confirmed_at : datetime
        When, UTC.
    who : str or None
        A pseudonym; None where it is not noted there.
    known_by : str
        Where this was read.
    """

    label: str
    confirmed_at: datetime
    who: str | None
    known_by: str

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "label": self.label,
            "confirmed_at": write_time(self.confirmed_at.timestamp()),
            "who": self.who,
            "known_by": self.known_by,
        }


@dataclass(frozen=True, slots=True)
class Alarmed:
    """An alarm about an image, and what became of its deliveries."""

    entry: Entry
    deliveries: tuple[Delivery, ...]

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        alarm = self.entry.alarm
        return {
            "id": alarm.id,
            "rule": alarm.rule,
            "kind": self.entry.kind.value,
            "severity": alarm.severity,
            "state": alarm.state.value,
            "starts_at": write_time(alarm.starts_at.timestamp()),
            "deliveries": [
                {
                    "sink": one.sink,
                    "status": one.status.value,
                    "delivered_at": None if one.delivered_at is None else write_time(one.delivered_at),
                }
                for one in self.deliveries
            ],
        }


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A record of the images topic.

    Parameters
    ----------
    place : str
        ``topic-partition@offset``.
    received_at : float
        Kafka's clock, Unix time in seconds.
    redriven_from : str or None
        Where the record was that had failed, of one that was sent again.
    """

    place: str
    received_at: float
    redriven_from: str | None

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        times = {"received_at": write_time(self.received_at)}
        return {"place": self.place, **times, "redriven_from": self.redriven_from}


class Reach(StrEnum):
    """How much of a place was looked through."""

    ALL = "all"
    """What is not found there is not there."""
    PART = "part"
    """Some of it is left off, or gone."""
    FAILED = "failed"
    LEFT_OUT = "left_out"
    """Nobody asked for it."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One place where it was looked.

    Parameters
    ----------
    where : str
        A table, a topic, a file.
    found : int
        Records of it that are about the image.
    limits : str
        What this place cannot tell, and why; empty where nothing is to be said.
    reach : Reach
        How much of it was looked through.
    """

    where: str
    found: int = 0
    limits: str = ""
    reach: Reach = Reach.ALL

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {"where": self.where, "found": self.found, "reach": self.reach.value, "limits": self.limits}


@dataclass
class History:
    """What became of the images that were asked for.

    Parameters
    ----------
    query : Query
        What was asked, with the names that were learned.
    outcomes : list of Outcome
        Oldest first by when Kafka took the image; each image's outcomes may be several.
    receipts : list of Receipt
        The last state of each image.
    rows : list of TableRow
        Of all tables.
    confirmed : list of Confirmed
        Oldest first.
    reports : list of Reported
        Oldest first.
    alarms : list of Alarmed
        Oldest first.
    images : list of ImageRecord
        Of the images topic, where it was looked through.
    looked : list of Looked
        Everywhere it was looked, and where it was not.
    """

    query: Query
    outcomes: list[Outcome] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    rows: list[TableRow] = field(default_factory=list)
    confirmed: list[Confirmed] = field(default_factory=list)
    reports: list[Reported] = field(default_factory=list)
    alarms: list[Alarmed] = field(default_factory=list)
    images: list[ImageRecord] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)

    @property
    def is_found(self) -> bool:
        """Whether anything is known."""
        known = (self.outcomes, self.receipts, self.rows, self.confirmed, self.reports, self.alarms, self.images)
        return any(known)

    @property
    def is_whole(self) -> bool:
        """Whether all that was asked could be looked through, so that what is not found is in none of these places."""
        return all(one.reach in (Reach.ALL, Reach.LEFT_OUT) for one in self.looked)

    def add_outcomes(self, outcomes: list[Outcome]) -> None:
        """Add outcomes, but for those that are there: of an event at a place the first that was added stays.

        What a topic's record says and a table's row does not is taken over.
        """
        known = {(one.event_id, one.topic, one.place): one for one in self.outcomes}
        for one in outcomes:
            key = (one.event_id, one.topic, one.place)
            before = known.get(key)
            if before is None or before.record == NO_PLACE or (one.redriven_from and not before.redriven_from):
                known[key] = one
        self.outcomes = sorted(known.values(), key=lambda one: (one.received_at, one.published_at))

    def by_image(self) -> Iterator[tuple[str, list[Outcome]]]:
        """Give the outcomes of each image, by the image's own event id, in their order."""
        ordered = sorted(self.outcomes, key=lambda one: one.image_key)
        for key, found in groupby(ordered, key=lambda one: one.image_key):
            yield key, list(found)

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        query = self.query
        return {
            "asked": {"text": query.text, "by": query.by.value, "sha256": sorted(query.digests)},
            "found": self.is_found,
            "whole": self.is_whole,
            "outcomes": [describe_outcome(one) for one in self.outcomes],
            "receipts": [one.to_dict() for one in self.receipts],
            "rows": [
                {"table": row.table, "key": row.event_id, "date": None if row.day is None else row.day.isoformat()}
                for row in self.rows
            ],
            "confirmed": [one.to_dict() for one in self.confirmed],
            "reports": [one.to_dict() for one in self.reports],
            "alarms": [one.to_dict() for one in self.alarms],
            "images": [one.to_dict() for one in self.images],
            "looked": [one.to_dict() for one in self.looked],
        }


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Render an outcome for JSON: what a year later is to be shown, with times as RFC 3339."""
    said = outcome.to_dict()
    model = outcome.model
    left_out = ("number", "latency_s", "abstain", "shown_label", "place", "topic", "record")
    return {
        **{name: value for name, value in said.items() if name not in left_out},
        "image_event_id": outcome.image_key,
        "image_place": f"{outcome.topic}-{outcome.place}",
        "record": None if outcome.record == NO_PLACE else str(outcome.record),
        "model": None if model is None else {"name": model.name, "version": model.version, "sha256": model.sha256},
        "operating_point": None if model is None else model.operating_point,
        "received_at": write_time(outcome.received_at),
        "scored_at": write_time(outcome.scored_at) if outcome.is_prediction else None,
        "published_at": None if outcome.record == NO_PLACE else write_time(outcome.published_at),
    }


def write_time(seconds: float) -> str:
    """Write a Unix time as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
