"""One device at work: examinations at random times, and a queue of images, each sent until it is taken or refused."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xray.simulator.account import Account, Try
from xray.simulator.answers import Answer, Verdict
from xray.simulator.damage import Damage, draw_damage
from xray.simulator.habits import Habits
from xray.simulator.objects import Shot
from xray.simulator.storing import AbortedOnPurposeError

_MAX_QUEUE = 300
"""Images that wait in a device: its disk is full then, and nobody is examined."""
_MAX_DOUBLINGS = 4
_SPOILED_TRIES = 3
"""An object that is broken may never have an answer: those behind it do not wait for that."""


class Sender(Protocol):
    """`DicomSender` or `HttpSender`."""

    def send(self, shot: Shot, damage: Damage | None) -> Answer:
        """Send an image once."""

    def close(self) -> None:
        """End the study."""


@dataclass(frozen=True)
class Work:
    """What all devices have in common.

    Parameters
    ----------
    rate : float
        Images a second of each device, on average.
    broken : float
        Share of its objects that are broken on purpose.
    give_up_s : float
        How long an image is tried.
    take_numbers : callable
        Gives the numbers of as many new images as are left, at most so many; none at the end.
    account : Account
        Of all tries.
    closing : Event
        No more examinations; what waits is sent.
    stop : Event
        End after the object that is on its way.
    """

    rate: float
    broken: float
    give_up_s: float
    take_numbers: Callable[[int], range]
    account: Account
    closing: threading.Event
    stop: threading.Event


class Device:
    """A device; `run` is its thread.

    Parameters
    ----------
    habits : Habits
        What it is and does.
    sender : Sender
        Its network side.
    work : Work
        What it shares with the others.
    """

    def __init__(self, habits: Habits, sender: Sender, work: Work) -> None:
        self._habits = habits
        self._sender = sender
        self._work = work
        self._rng = np.random.default_rng([habits.seed, habits.number, 2])
        self._queue: deque[tuple[Shot, Damage | None]] = deque()
        self._next = time.monotonic() + self._draw_wait(1)

    def run(self) -> None:
        """Examine and send until the end, then send what waits."""
        work = self._work
        try:
            while not work.stop.is_set():
                self._examine()
                if self._queue:
                    self._send_study()
                elif work.closing.is_set():
                    break
                else:
                    work.closing.wait(max(0.0, self._next - time.monotonic()))
        finally:
            self._sender.close()
            work.account.note_unfinished(len(self._queue))

    def _examine(self) -> None:
        """Put the images of every examination whose time has come into the queue."""
        work = self._work
        while not work.closing.is_set() and time.monotonic() >= self._next and len(self._queue) < _MAX_QUEUE:
            wanted = int(self._rng.integers(1, self._habits.max_images + 1))
            numbers = work.take_numbers(wanted)
            for number in numbers:
                shot = Shot(self._habits, number, numbers.start)
                self._queue.append((shot, draw_damage(self._rng, work.broken, self._habits.way)))
            self._next += self._draw_wait(wanted)
        # Where the queue was full, what should have been examined meanwhile never was.
        self._next = max(self._next, time.monotonic() - 1)

    def _draw_wait(self, images: int) -> float:
        """Draw the time to the next examination: with it the device keeps its rate of images, as a Poisson process."""
        return float(self._rng.exponential(images / self._work.rate))

    def _send_study(self) -> None:
        study = self._queue[0][0].study
        while self._queue and self._queue[0][0].study == study and not self._work.stop.is_set():
            self._send_first()
        self._sender.close()

    def _send_first(self) -> None:
        """Send the first image of the queue again and again; on its way it stays in the queue."""
        work, (shot, damage) = self._work, self._queue[0]
        began, number = time.monotonic(), 0
        while not work.stop.is_set():
            number += 1
            # What was aborted on purpose comes whole the second time.
            done_wrong = None if damage is Damage.ABORTED and number > 1 else damage
            started = time.monotonic()
            try:
                answer = self._sender.send(shot, done_wrong)
            except AbortedOnPurposeError:
                answer = None
            now = time.monotonic()
            settled = answer is not None and answer.verdict is not Verdict.LATER
            in_vain = damage is not None and damage.spoils and number >= _SPOILED_TRIES
            gives_up = not settled and (in_vain or now - began > work.give_up_s)
            work.account.note(Try(shot, number, done_wrong, answer, now - started, gives_up))
            if settled or gives_up:
                self._queue.popleft()
                return
            work.stop.wait(self._wait_before(number + 1, answer))

    def _wait_before(self, number: int, answer: Answer | None) -> float:
        told = 0.0 if answer is None or answer.wait_s is None else answer.wait_s
        own = self._habits.retry_s * math.ldexp(1, min(number - 2, _MAX_DOUBLINGS))
        return max(own, told) * float(self._rng.uniform(0.8, 1.2))
