"""The page: first paint of its views, and what many events and open tabs cost the server and the browser.

The page is ``xray page`` as a process, in front of a real broker; outcomes are written by SCORE's own code, without
Spark. The browser is Debian's Chromium without a window: it draws in software, on the same processors.

Run it: ``python -m benchmarks.page [--events N] [--tabs N] [--json]``. It needs the extra ``page`` and Chromium.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.chaos.commands import command_line
from benchmarks.chaos.scene import clean_environ
from benchmarks.ports import find_ports
from benchmarks.processes import pss_bytes
from schemas.errors import JobError
from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
from streaming.settings import StreamSettings, load_settings
from tests.browser import Tab, find_browser, start_browser
from tests.imageoutcomes import outgoing
from tests.pageparts import answer, draw_images, publish
from tests.testimages import dicom
from xray.broker import LocalBroker
from xray.console import err, new_table, print_json, step

_PLATE = (4160, 4000)
"""Rows and columns of 16 bits: just below the 32 MiB that a record may have."""
_PIECE = 2_000
_LIVE_S = 20.0
_RATE = 50
_VIEWS = {"now": "/", "images": "/images", "label": "/label", "models": "/models"}
_IS_LIVE = "document.querySelector('#live').dataset.state === 'live'"
_FIND_PLATE = "fetch('/images?q=plate').then(r => r.text()).then(t => (t.match(/\\/outcomes\\/[0-9a-f]+/) || [])[0])"
_COUNT_FRAMES = (
    "window.frames_ = 0; window.slow_ = 0; (function next(before) { requestAnimationFrame(at => { window.frames_ += 1; "
    "window.slow_ = Math.max(window.slow_, at - before); next(at); }); })(performance.now()); 0"
)


@dataclass(frozen=True)
class Paint:
    """First contentful paint of a view, in milliseconds, of several loads."""

    view: str
    p50: float
    longest: float


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6 bytes) after so many events: the server with its children, and the scripts of all tabs."""

    events: int
    server: float
    tabs: float


@dataclass(frozen=True)
class Smoothness:
    """Frames of a tab in which something happens, and what it says that it left out."""

    situation: str
    frames_s: float
    longest_ms: float
    live: str


def main(
    events: Annotated[int, typer.Option(min=1_000, help="Outcomes in fast motion.")] = 100_000,
    tabs: Annotated[int, typer.Option(min=1, help="Open tabs meanwhile.")] = 10,
    loads: Annotated[int, typer.Option(min=1, help="Of each view, for its first paint.")] = 7,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure the page in front of a broker of its own."""
    if find_browser() is None:
        msg = "there is no Chromium: install Debian's package chromium"
        raise JobError(msg)
    with tempfile.TemporaryDirectory() as name, _serving(Path(name)) as (settings, url, pid):
        with step("publishing images"):
            answer(settings.kafka, publish(settings.kafka, draw_images(60)))
        with start_browser(Path(name) / "profile") as browser:
            opened = [browser.open_tab() for _ in range(tabs)]
            first = opened[0]
            first.set_view(1440, 900)
            first.open(url)
            first.wait_until(_IS_LIVE)
            with step("first paints"):
                paints = [_paint(first, url, view, path, loads) for view, path in _VIEWS.items()]
            with step("a tab while nothing comes"):
                smooth = [_watch(first, "nothing comes", lambda: time.sleep(5))]
            with step(f"{events} events, {tabs} tabs"):
                memory = _flood(settings, opened, url, pid, events)
            for tab in opened[1:]:
                tab.close()
            with step(f"{_RATE} images a second"):
                first.open(_at(url, "/images"))
                first.wait_until(_IS_LIVE)
                first.press("f")
                smooth.append(_watch(first, f"{_RATE} images a second, followed", lambda: _stream(settings)))
                plate = dicom(np.random.default_rng(1).integers(0, 4096, _PLATE, np.uint16))
                answer(settings.kafka, publish(settings.kafka, [outgoing(plate, name="plate")]))
                first.open(_at(url, str(first.wait_until(_FIND_PLATE))))
                first.wait_until("document.getElementById('over').hidden", timeout_s=60)
                smooth.append(_watch(first, f"a plate in view, {_RATE} images a second", lambda: _stream(settings)))
    if json_:
        print_json(
            {
                "first_paint_ms": [asdict(one) for one in paints],
                "memory_mb": [asdict(one) for one in memory],
                "smoothness": [asdict(one) for one in smooth],
            }
        )
    _show(paints, memory, smooth)


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[StreamSettings, str, int]]:
    """Run a broker and the page while the body runs: settings, address with its token, and process id."""
    address = f"127.0.0.1:{find_ports()}"
    settings = load_settings(home=folder, jars=load_settings().jars_folder, kafka={"bootstrap_servers": address})
    broker = LocalBroker.of(settings)
    broker.start()
    try:
        create_topics(
            settings.kafka,
            wanted_topics(settings.kafka) | label_topics(settings.kafka) | receipt_topics(settings.kafka),
        )
        own = {"XRAY_HOME": str(folder), "XRAY_KAFKA__BOOTSTRAP_SERVERS": address}
        command = command_line("page", "--port", str(find_ports()), "--json")
        page = subprocess.Popen(command, env=clean_environ() | own, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            assert page.stdout is not None  # noqa: S101  it is a pipe
            yield settings, json.loads(page.stdout.readline())["url"], page.pid
        finally:
            page.terminate()
            page.wait(30)
    finally:
        broker.stop()


def _at(url: str, path: str) -> str:
    return url.partition("/?")[0] + path


def _paint(tab: Tab, url: str, view: str, path: str, loads: int) -> Paint:
    found = []
    for _ in range(loads):
        tab.open(_at(url, path))
        found.append(tab.wait_until("(performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime"))
    return Paint(view, float(np.median(found)), float(max(found)))


def _flood(settings: StreamSettings, opened: list[Tab], url: str, pid: int, events: int) -> list[Memory]:
    for place, tab in enumerate(opened):
        tab.set_view(1440, 900)
        tab.open(_at(url, ("/", "/images")[place % 2]))
        tab.wait_until(_IS_LIVE)
    found = [_weigh(opened, pid, 0)]
    for done in range(_PIECE, events + 1, _PIECE):
        answer(settings.kafka, publish(settings.kafka, [outgoing() for _ in range(_PIECE)]), seed=done)
        if done * 5 // events > (done - _PIECE) * 5 // events:
            found.append(_weigh(opened, pid, done))
    return found


def _weigh(opened: list[Tab], pid: int, events: int) -> Memory:
    heaps = 0
    for tab in opened:
        tab.send("HeapProfiler.collectGarbage")
        heaps += tab.send("Runtime.getHeapUsage")["usedSize"]
    return Memory(events, pss_bytes([pid]) / 1e6, heaps / 1e6)


def _stream(settings: StreamSettings) -> None:
    began = time.monotonic()
    sent = 0
    while (now := time.monotonic() - began) < _LIVE_S:
        due = int(now * _RATE) - sent
        answer(settings.kafka, publish(settings.kafka, [outgoing() for _ in range(due)]), seed=sent)
        sent += due
        time.sleep(0.2)


def _watch(tab: Tab, situation: str, act: Callable[[], Any]) -> Smoothness:
    tab.evaluate(_COUNT_FRAMES)
    began = time.monotonic()
    act()
    frames, longest = tab.evaluate("[window.frames_, window.slow_]")
    said = " ".join(str(tab.evaluate("document.querySelector('#live').textContent")).split())
    return Smoothness(situation, frames / (time.monotonic() - began), longest, said)


def _show(paints: list[Paint], memory: list[Memory], smooth: list[Smoothness]) -> None:
    table = new_table("view", "median", "longest", title="first paint, ms")
    for paint in paints:
        table.add_row(paint.view, f"{paint.p50:.0f}", f"{paint.longest:.0f}")
    err.print(table)
    table = new_table("events", "server", "tabs", title="memory, MB")
    for one in memory:
        table.add_row(str(one.events), f"{one.server:.0f}", f"{one.tabs:.0f}")
    err.print(table)
    table = new_table("situation", "frames/s", "longest frame, ms", "the page says", title="smoothness")
    for found in smooth:
        table.add_row(found.situation, f"{found.frames_s:.0f}", f"{found.longest_ms:.0f}", found.live)
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
