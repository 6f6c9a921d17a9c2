"""Every view in a real browser: what it looks like, what axe-core finds, what keys do, what it costs.

Screenshots go to the folder that PAGE_SCREENSHOTS names; the documentation's are made so.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Tab, find_browser, start_browser
from tests.imageoutcomes import outgoing
from tests.integration.streaming.page.conftest import Served
from tests.integration.streaming.page.test_site import read_labels
from tests.pageparts import answer, publish

AXE = "axe-core@4.14.1"
SIZES = ((360, 740), (768, 1024), (1440, 900))
VIEWS = ("now", "images", "unanswered", "image", "dead-letter", "label", "models", "error", "login")
_SETTLES_S = 1.5

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(find_browser() is None, reason="wants Debian's package chromium"),
]


@pytest.fixture(scope="module")
def tab(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        tab = browser.open_tab()
        tab.set_view(1440, 900)
        tab.open(served.state.url)
        tab.wait_until(
            "document.querySelector('#strip .card') && document.querySelector('#live').dataset.state==='live'"
        )
        yield tab


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script, as npm has it."""
    if shutil.which("npm") is None:
        pytest.skip("wants npm, for axe-core")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if packed.returncode:
        pytest.skip(f"npm cannot fetch {AXE}: {packed.stderr[-200:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


def find_outcome(tab: Tab, kind: str) -> str:
    script = f"fetch('/images?show={kind}').then(r => r.text()).then(t => t.match(/\\/outcomes\\/[0-9a-f]+/)[0])"
    return str(tab.evaluate(script))


def open_view(tab: Tab, served: Served, view: str) -> None:
    paths = {
        "now": "/",
        "images": "/images",
        "unanswered": "/images?show=unanswered",
        "label": "/label",
        "models": "/models",
        "error": "/nothing",
        "login": "/login",
    }
    if view in {"image", "dead-letter"}:
        path = find_outcome(tab, {"image": "prediction", "dead-letter": "dead_letter"}[view])
    else:
        path = paths[view]
    tab.open(served.state.address.rstrip("/") + path)
    if view == "image":
        tab.wait_until("document.getElementById('over').hidden && !document.querySelector('[hx-trigger=load]')")
    time.sleep(_SETTLES_S)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
def test_every_view_fits_and_axe_finds_nothing(
    tab: Tab, served: Served, axe: str, size: tuple[int, int], scheme: str
) -> None:
    for view in VIEWS:
        tab.set_view(*size, scheme=scheme)
        open_view(tab, served, view)
        if folder := os.environ.get("PAGE_SCREENSHOTS"):
            tab.shoot(Path(folder) / f"{view}-{size[0]}-{scheme}.png")
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0], f"{view} is wider than {size[0]} px"
        assert "Research use only. Not a medical device." in tab.evaluate("document.body.innerText")
        tab.evaluate(f"{axe};0")
        found = tab.evaluate(
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}).then(r => ({passes: "
            "r.passes.length, violations: r.violations.map(v => [v.id, v.impact, v.nodes[0].html.slice(0, 200)])}))"
        )
        assert found["passes"] > 10
        assert found["violations"] == [], view


@pytest.mark.long
def test_nothing_moves_while_a_view_comes(tab: Tab, served: Served) -> None:
    shifts = (
        "new Promise(done => { let sum = 0; new PerformanceObserver(list => { for (const one of list.getEntries()) "
        "if (!one.hadRecentInput) sum += one.value; }).observe({type: 'layout-shift', buffered: true}); "
        "setTimeout(() => done(sum), 100); })"
    )
    tab.set_view(1440, 900)
    for view in ("now", "images", "image", "label", "models"):
        open_view(tab, served, view)
        assert tab.evaluate(shifts) < 0.1, view


def test_nothing_of_a_view_is_refused_by_its_own_policy(tab: Tab, served: Served) -> None:
    tab.take_complaints()
    for view in ("now", "images", "image", "label", "models"):
        open_view(tab, served, view)
        assert tab.take_complaints() == [], view


def test_answers_come_faster_than_the_server_and_none_is_lost_or_entered_twice(tab: Tab, served: Served) -> None:
    open_view(tab, served, "label")
    before = len(read_labels(served))
    tab.wait_until("document.querySelector('#answers [data-label]').disabled === false")
    tab.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    said = 0
    for key in ("1", "2", "1", "Enter", "2"):
        tab.press(key)
        said += 1
        tab.wait_until(f"Number(document.getElementById('n-said').textContent) === {said}")
    tab.wait_until("document.getElementById('n-waiting').textContent === '5'")
    tab.send("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.open(f"{served.state.address}label")  # and the tab is closed meanwhile: the browser keeps them
    tab.wait_until("document.getElementById('n-waiting').textContent === '0'", timeout_s=40)
    deadline = time.monotonic() + 40
    while len(found := read_labels(served)) < before + said:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    new = found[-said:] if before == 0 else found
    assert len({(one["event_id"], one["confirmed_at"]) for one in new}) == len(new)
    assert len(found) == before + said


def test_keys_do_everything_and_focus_is_seen(tab: Tab, served: Served) -> None:
    open_view(tab, served, "images")
    tab.press("j")
    first = tab.evaluate("document.activeElement.className")
    tab.press("j")
    ring = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    tab.press("Enter")
    assert (first, ring) == ("card", "solid")
    tab.wait_until("location.pathname.startsWith('/outcomes/')")
    tab.wait_until("document.getElementById('over')?.hidden")
    tab.press("i")
    assert tab.evaluate("document.getElementById('invert').getAttribute('aria-pressed')") == "true"
    tab.press("g")
    tab.press("n")
    tab.wait_until("location.pathname === '/'")


def test_the_window_is_moved_over_the_pictures_own_values(tab: Tab, served: Served) -> None:
    open_view(tab, served, "image")
    middle = (
        "(() => { const c = document.getElementById('canvas'); "
        "return c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[0]; })()"
    )
    before = tab.evaluate(middle)
    tab.evaluate("const s = document.getElementById('level'); s.value = s.max; s.dispatchEvent(new Event('input')); 0")
    tab.wait_until(f"{middle} < {before}")
    tab.press("0")
    tab.wait_until(f"{middle} === {before}")


@pytest.mark.long
def test_a_stream_in_fast_motion_keeps_memory(tab: Tab, served: Served) -> None:
    tab.set_view(1440, 900)
    tab.open(f"{served.state.address}images")
    tab.wait_until("document.querySelector('#live').dataset.state === 'live'")
    if tab.evaluate("document.getElementById('follow').getAttribute('aria-pressed')") != "true":
        tab.press("f")
    heap = tab.send("Runtime.getHeapUsage")["usedSize"]
    images = publish(served.kafka, [outgoing() for _ in range(400)])
    for i in range(0, len(images), 25):  # fifty a second
        answer(served.kafka, images[i : i + 25], seed=i)
        time.sleep(0.5)
    grown = tab.send("Runtime.getHeapUsage")["usedSize"] - heap
    cards = tab.evaluate("document.querySelectorAll('#results .card').length")
    assert cards <= 60
    assert grown < 50_000_000
    tab.press("f")


def test_a_hidden_tab_costs_nothing(tab: Tab, served: Served) -> None:
    open_view(tab, served, "now")
    tab.wait_until("document.querySelector('#live').dataset.state === 'live'")
    tab.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true}); "
        "document.dispatchEvent(new Event('visibilitychange')); 0"
    )
    assert tab.evaluate("document.getElementById('live').dataset.state") == "still"
    tab.evaluate(
        "Object.defineProperty(document, 'hidden', {value: false, configurable: true}); "
        "document.dispatchEvent(new Event('visibilitychange')); 0"
    )
    tab.wait_until("document.querySelector('#live').dataset.state === 'live'")


def test_more_tabs_than_a_browser_has_connections_are_all_told(tab: Tab, served: Served) -> None:
    """One of them has the stream and tells the others; when it goes, the next one takes over."""
    opened = [tab.open_another() for _ in range(8)]
    for one in opened:
        one.open(served.state.address)
        one.wait_until("document.querySelector('#live').dataset.state === 'live'")
    for one in opened[:4]:
        one.close()
    (image,) = publish(served.kafka, [outgoing()])
    answer(served.kafka, [image])
    for one in opened[4:]:
        picture = f"/pictures/{image.place.partition}/{image.place.offset}/"
        one.wait_until(f"document.querySelector('#strip').innerHTML.includes('{picture}')")
        one.close()


def test_the_charts_show_what_was_before_the_view_was_opened(tab: Tab, served: Served) -> None:
    open_view(tab, served, "now")
    script = "import('/assets/' + document.querySelector('script[src*=\"/now.js\"]').src.split('/assets/')[1])"
    times = tab.wait_until(f"{script}.then(m => m.series.rate[0].length > 5 && m.series)")
    for columns in times.values():
        assert columns[0] == sorted(columns[0])
