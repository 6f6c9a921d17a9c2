"""All devices together: drawn from one seed, a thread for each, ended in order."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from xray.simulator.account import Account
from xray.simulator.device import Device, Sender, Work
from xray.simulator.habits import Habits, Way, draw_habits
from xray.simulator.pictures import Pictures
from xray.simulator.posting import HttpSender, HttpTarget
from xray.simulator.storing import DicomSender, DicomTarget

_TICK_S = 0.25


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Parameters
    ----------
    count : int
        Devices.
    rate : float
        Images a second of each.
    seed : int
        The same one gives the same devices, patients and faults.
    broken : float
        Share of objects that are broken on purpose.
    images : int, optional
        End after so many of all devices together.
    duration_s : float, optional
        No more examinations after that.
    give_up_s : float
        How long a device tries to be rid of an image.
    dicom : DicomTarget, optional
        Where those devices send that have DICOM; without it none has.
    http : HttpTarget, optional
        Where those send that have HTTP; without it none has.
    http_share : float
        Of the devices, where there are both.
    """

    count: int
    rate: float
    seed: int
    broken: float = 0.0
    images: int | None = None
    duration_s: float | None = None
    give_up_s: float = 300.0
    dicom: DicomTarget | None = None
    http: HttpTarget | None = None
    http_share: float = 0.2

    def draw_devices(self) -> list[Habits]:
        """Draw them all; as near to the share as whole devices can be."""
        share = 0.0 if self.http is None else 1.0 if self.dicom is None else self.http_share
        by_http = [round(share * (number + 1)) > round(share * number) for number in range(self.count)]
        return [draw_habits(place + 1, seed=self.seed, http=http) for place, http in enumerate(by_http)]


class Numbers:
    """Numbers of images, each given once, to any thread.

    Parameters
    ----------
    most : int, optional
        How many there are.
    on_end : callable
        Called when none is left.
    """

    def __init__(self, most: int | None, on_end: Callable[[], None]) -> None:
        self._most = most
        self._on_end = on_end
        self._given = 0
        self._lock = threading.Lock()

    def take(self, wanted: int) -> range:
        """Give so many, or what is left."""
        with self._lock:
            start = self._given
            self._given = start + wanted if self._most is None else min(start + wanted, self._most)
            if self._given == self._most:
                self._on_end()
            return range(start, self._given)


def run_devices(
    plan: Plan,
    account: Account,
    pictures: Pictures,
    stop: threading.Event,
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Let all devices work until the plan's end, or until `stop`, and wait for what they have on the way.

    Parameters
    ----------
    plan : Plan
        What is simulated.
    account : Account
        Of all tries.
    pictures : Pictures
        What the images show.
    stop : Event
        Ends it in order: no object is cut off.
    on_tick : callable
        Called a few times a second.
    """
    closing = threading.Event()
    numbers = Numbers(plan.images, closing.set)
    work = Work(plan.rate, plan.broken, plan.give_up_s, numbers.take, account, closing, stop)
    threads = []
    for habits in plan.draw_devices():
        device = Device(habits, _make_sender(plan, habits, pictures, stop), work)
        threads.append(threading.Thread(target=device.run, name=habits.aet))
    ends_at = None if plan.duration_s is None else time.monotonic() + plan.duration_s
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if stop.is_set() or (ends_at is not None and time.monotonic() >= ends_at):
            closing.set()
        on_tick()
        next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(_TICK_S)
    account.end()
    on_tick()


def _make_sender(plan: Plan, habits: Habits, pictures: Pictures, stop: threading.Event) -> Sender:
    def pause(seconds: float) -> None:
        stop.wait(seconds)

    if habits.way is Way.C_STORE:
        assert plan.dicom is not None  # noqa: S101
        return DicomSender(habits, plan.dicom, pictures, pause)
    assert plan.http is not None  # noqa: S101
    return HttpSender(habits.way, plan.http, pictures, pause)
