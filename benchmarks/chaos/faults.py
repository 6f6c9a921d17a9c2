"""What a fault is, and one round of one: done to a running stream until it hits, then the account.

A fault waits in a tight loop for its moment, strikes, and afterwards looks at checkpoint files and topics again: a kill
that came too early or too late is no hit, and the round is repeated.
"""

import random
import time
from dataclasses import dataclass, field
from typing import Literal, Protocol

from benchmarks.chaos.oracle import DEAD_LETTER, PREDICTION, Verdict
from benchmarks.chaos.scene import Scene
from benchmarks.chaos.stream import Checkpoint

ATTEMPTS = 4
TICK_S = 0.0005
WATCH_S = 30.0
_FEED_S = 2.0
COMMAND_TIMEOUT_S = 90

Kind = Literal["clean", "killed", "replayed"]
"""What is promised of the topics. ``clean``: the stream was not killed, so nothing is twice. ``killed``: what was
published is not published again. ``replayed``: the checkpoint is gone, so outcomes may come again, under their ids."""


@dataclass(frozen=True)
class Injury:
    """What was done, and whether it hit.

    Parameters
    ----------
    hit : bool
        Whether the intended moment was met.
    note : str
        What was seen.
    recovery_s : float or None
        From restart (or from the end of the disturbance) to the first prediction of an image that had none.
    """

    hit: bool
    note: str
    recovery_s: float | None = None


class Fault(Protocol):
    """One way to hurt a stream."""

    name: str
    about: str
    kind: Kind

    def inflict(self, scene: Scene, rng: random.Random, records: int) -> Injury:
        """Publish so many records, strike in their midst, and let the stream go on."""
        ...


@dataclass
class Round:
    """One fault, once.

    Parameters
    ----------
    fault, kind : str
        Which, and what it promises of the topics.
    hit : bool
        Whether an attempt met the moment.
    attempts : int
        How many it took.
    drained : bool
        Whether the stream caught up afterwards.
    verdict : Verdict
        The account of the round's records.
    recovery_s : list of float
        One for each attempt that had one.
    deaths : list of str
        How the stream ended where nobody ended it.
    notes : list of str
        One for each attempt.
    seconds : float
        How long all of it took.
    """

    fault: str
    kind: Kind
    hit: bool
    attempts: int
    drained: bool
    verdict: Verdict
    recovery_s: list[float] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def repeated(self) -> int:
        """Outcomes that are on the topics again although the fault is no reason for it."""
        return 0 if self.kind == "replayed" else self.verdict.topic_duplicates

    @property
    def passed(self) -> bool:
        """Whether the account balances, nothing is repeated that need not be, and the stream caught up."""
        return self.drained and self.verdict.balanced and not self.repeated


def run_fault(scene: Scene, fault: Fault, rng: random.Random, records: int, attempts: int = ATTEMPTS) -> Round:
    """Inflict a fault until it hits, let the stream catch up, and draw up the account of what was published for it.

    Parameters
    ----------
    scene : Scene
        Its stream is started where it does not run.
    fault : Fault
        Which.
    rng : random.Random
        Of the fault's own choices.
    records : int
        To publish in each attempt.
    attempts : int
        At most so many.
    """
    started = time.monotonic()
    died = len(scene.deaths)
    scene.ensure_running()
    scene.begin(f"{fault.name}-{time.time_ns()}")
    injuries: list[Injury] = []
    while not (injuries and injuries[-1].hit) and len(injuries) < attempts:
        scene.ensure_running()
        injuries.append(fault.inflict(scene, rng, records))
    drained = scene.drain()
    return Round(
        fault=fault.name,
        kind=fault.kind,
        hit=injuries[-1].hit,
        attempts=len(injuries),
        drained=drained,
        verdict=scene.check(),
        recovery_s=[injury.recovery_s for injury in injuries if injury.recovery_s is not None],
        deaths=scene.deaths[died:],
        notes=[injury.note for injury in injuries],
        seconds=time.monotonic() - started,
    )


# -- moments -----------------------------------------------------------------------------------------------------------


def next_batch(checkpoint: Checkpoint, topic: str, after: int, *, skip: int = 0) -> int | None:
    """Wait for the beginning of a micro-batch with records of a topic; None where none comes."""
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        newest = checkpoint.planned()
        if newest > after:
            after = newest
            if checkpoint.places(newest, topic):
                if not skip:
                    return newest
                skip -= 1
        time.sleep(TICK_S)
    return None


def await_halt(scene: Scene, point: str) -> bool:
    """Publish now and then until the archive's process stands at a point of its work; False where it never does.

    Its upkeep comes after some commits, and how many a number of images makes is the stream's own choice. What is not
    reached is not asked for any more: the next archive would stand there, and nobody would kill it.
    """
    deadline = time.monotonic() + WATCH_S
    next_one = time.monotonic() + _FEED_S
    while time.monotonic() < deadline:
        if scene.halts.has_halted(point):
            return True
        if time.monotonic() > next_one:
            scene.publish(1)
            next_one = time.monotonic() + _FEED_S
        time.sleep(TICK_S)
    return not scene.halts.withdraw(point)


def choose_batch(scene: Scene, rng: random.Random, records: int) -> int:
    """Choose how many batches to let pass: one at most, and none where one batch can hold all that is published."""
    return rng.randrange(2) if records > scene.images_per_batch else 0


def recover(scene: Scene, hit: bool, note: str, records: int) -> Injury:
    """Publish the rest of the records, start the stream again, and time its first new prediction."""
    return Injury(hit, note, scene.time_new_prediction(records))


def split(records: int) -> tuple[int, int]:
    """Give three quarters for before the strike and a quarter for after it."""
    after = max(1, records // 4)
    return max(1, records - after), after


def count_published(scene: Scene, places: set[tuple[int, int]]) -> int:
    """Count the records that have a prediction or a dead letter on the topics."""
    scene.reader.refresh()
    return len(places & (scene.reader.places(PREDICTION) | scene.reader.places(DEAD_LETTER)))
