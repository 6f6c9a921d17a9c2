"""One hunt: bombs, whole files, then damaged ones, each to the jail and into the tally."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.bombs import BOMB_LIMITS, build_bombs
from benchmarks.fuzz.finds import Find, keep, shrink
from benchmarks.fuzz.jail import Jail, Limits
from benchmarks.fuzz.kinds import Kind
from benchmarks.fuzz.report import Tally

_TURN_S = 10.0
"""For one kind, then the next: a run that is ended early has seen every kind."""

_TWICE = 0.3
"""This share of files is damaged twice: what the first time has moved is then known at its new place."""


@dataclass
class Hunt:
    """What a hunt needs.

    Parameters
    ----------
    jail : Jail
        Decodes.
    seed : int
        Of the draw: the same gives the same files in the same order. How many, depends on the time.
    folder : Path
        For finds.
    say : callable
        Tells of a find.
    """

    jail: Jail
    seed: int
    folder: Path
    say: Callable[[str], None]

    def run(
        self, kinds: list[Kind], seconds: float, *, bombs: bool, progress: Callable[[str], None]
    ) -> dict[str, Tally]:
        """Hunt for so many seconds by the clock over all kinds; bombs and whole files come first and on top.

        Parameters
        ----------
        kinds : list of Kind
            Which.
        seconds : float
            In all.
        bombs : bool
            Whether they are tried.
        progress : callable
            Told the kind before each file.
        """
        tallies = {kind.name: Tally() for kind in kinds}
        for kind in kinds:
            for payload in kind.seeds():
                progress(kind.name)
                self.try_file(payload, kind, tallies[kind.name])
            for build in build_bombs(kind.name).values() if bombs else ():
                progress(kind.name)
                self.try_file(build(), kind, tallies[kind.name], BOMB_LIMITS)
        draws = {kind.name: self._draw(kind) for kind in kinds}
        turns = max(1, round(seconds / len(kinds) / _TURN_S))
        for kind in kinds * turns:
            tally, started = tallies[kind.name], time.monotonic()
            while time.monotonic() - started < seconds / len(kinds) / turns:
                progress(kind.name)
                self.try_file(next(draws[kind.name]), kind, tally)
            tally.seconds += time.monotonic() - started
        return tallies

    def try_file(self, payload: bytes, kind: Kind, tally: Tally, limits: Limits | None = None) -> None:
        """Decode one file, count it, and keep a find that is the first of its signature."""
        limits = limits or Limits(max_seconds=kind.max_seconds)
        outcome = self.jail.decode(payload, kind.name, limits)
        if outcome.kind == "slow":  # processor time grows where others use the caches: what is slow is so again
            outcome = self.jail.decode(payload, kind.name, limits)
        tally.add(outcome)
        signature = outcome.signature
        if not outcome.is_find:
            return
        if signature in tally.finds:
            tally.finds[signature].times += 1
            return

        def is_same(shorter: bytes) -> bool:
            return self.jail.decode(shorter, kind.name, limits).signature == signature

        self.say(f"{kind.name}: {signature}; making it small ...")
        small = shrink(payload, kind, is_same)
        path = keep(small, kind, outcome, self.seed, self.folder)
        self.say(f"{kind.name}: {len(small)} bytes in {path}")
        tally.finds[signature] = Find(kind, small, outcome, path)

    def _draw(self, kind: Kind) -> Iterator[bytes]:
        rng = random.Random(f"{self.seed} {kind.name}")
        while True:
            payload = kind.draw(rng)
            yield kind.damage(payload, rng) if rng.random() < _TWICE else payload
