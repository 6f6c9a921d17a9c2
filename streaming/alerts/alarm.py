"""What the rules say and the sinks deliver: an alarm, what became of its delivery, and what a sink is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol


class State(StrEnum):
    """Whether what an alarm is about still holds.

    An image's alarm is `OPEN` once, and is over after its rule's ``open_for``. A condition (a rate, an absence)
    resolves.
    """

    OPEN = "open"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, as every sink gets it.

    Parameters
    ----------
    id : str
        32 hexadecimal characters, the same at each repetition. Of an image: the event id of its prediction or dead
        letter, with the rule's name (`schemas.envelope.derive_event_id`). Of a condition or a summary: of rule and
        start. A resolved alarm has the id of the open one: whoever drops known ids compares the state too.
    rule : str
        Name of the rule.
    severity : str
        As the rule says.
    state : State
        See there.
    labels : Mapping of str to str
        What receivers route by: those of the rule, and ``source``, ``model``, ``label``, ``reason`` where there is one.
        Nothing of a patient.
    annotations : Mapping of str to str
        For a reader: ``summary``, ``description``, ``runbook``.
    starts_at : datetime
        With a time zone, UTC.
    ends_at : datetime or None
        When a resolved one ended, or when an open one will.
    event : Mapping
        For a program, plain JSON: what a webhook gets. ``notice`` is `schemas.envelope.DISCLAIMER`.
    """

    id: str
    rule: str
    severity: str
    state: State
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now.

    Parameters
    ----------
    after_s : float or None
        What the receiver asked for; None: as the sink's own schedule says.
    why : str
        For the operator; nothing that the receiver wrote.
    tried : bool
        Whether it was an attempt. Not where the receiver has asked before to be left alone: nothing was sent then, and
        no attempt is used up.
    """

    after_s: float | None
    why: str
    tried: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: the receiver will not take this alarm at any time."""

    why: str


@dataclass(frozen=True, slots=True)
class Disabled:
    """Never, and no other either: the receiver wants nothing more of this sink."""

    why: str


Outcome = Delivered | Retry | Refused | Disabled


class Sink(Protocol):
    """What delivers alarms to one receiver. One thread calls it; no other sink waits for it."""

    @property
    def name(self) -> str:
        """As the rules' routes call it."""

    @property
    def resend_s(self) -> float | None:
        """Seconds after which an open alarm is delivered again, while it is open; None: it is delivered once."""

    @property
    def resolved_for_s(self) -> float:
        """Seconds for which a resolved alarm is delivered again; 0: once."""

    @property
    def at_once(self) -> int:
        """How many alarms one delivery may hold: 1 where each of them is a message that may fail by itself."""

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        """Deliver all of these, or none; it may take as long as its own time-out.

        Parameters
        ----------
        alarms : sequence of Alarm
            At least one, at most ``at_once``.
        attempt : int
            0 at the first one.
        """

    def next_try_s(self, attempt: int) -> float | None:
        """Give the seconds from the end of this attempt (0 is the first) to the next one; None: it is given up."""
