"""The page over a real broker and real outcomes, as a browser's requests and a script's see it."""

import http.cookiejar
import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.page.service import serve_page
from tests.integration.streaming.page.conftest import UNANSWERED, NoMoves, Served
from tests.pageparts import answer, draw_images, publish

pytestmark = pytest.mark.kafka


def ask_for(address: str, body: bytes | None, headers: dict[str, str]) -> urllib.request.Request:
    return urllib.request.Request(address, body, headers)  # noqa: S310 - of a server that the test has started


class Visitor:
    """A browser as far as the site can tell: keeps its cookie, and says where it comes from."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        self.csrf = ""

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._ask(ask_for(self.address + path, None, {"accept": "text/html", **headers}))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, str]:
        own = {"origin": self.address, "x-csrf-token": self.csrf, "content-type": "application/json", **headers}
        return self._ask(ask_for(self.address + path, json.dumps(body).encode(), own))

    def log_in(self, url: str) -> None:
        self._opener.open(url, timeout=20).close()
        self.csrf = self.get("/")[1].partition('data-csrf="')[2].partition('"')[0]

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with self._opener.open(request, timeout=20) as found:
                return found.status, found.read().decode(errors="replace")
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode(errors="replace")


@pytest.fixture(scope="module")
def visitor(served: Served) -> Visitor:
    visitor = Visitor(served.state.address)
    visitor.log_in(served.state.url)
    deadline = time.monotonic() + 60
    while f">{len(served.images) - UNANSWERED} in memory" not in visitor.get("/images")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return visitor


def list_events(visitor: Visitor, query: str = "") -> list[str]:
    view = visitor.get(f"/images{query}")[1]
    return [part.partition('"')[0] for part in view.split('href="/outcomes/')[1:]]


def test_every_outcome_of_the_broker_is_shown_with_its_picture(served: Served, visitor: Visitor) -> None:
    events = list_events(visitor)
    assert len(events) == len(served.images) - UNANSWERED
    view = visitor.get("/images?show=prediction")[1]
    status, _ = visitor.get(view.partition('<img src="')[2].partition('"')[0])
    assert status == 200


def test_an_image_shows_its_way_and_what_cannot_be_told(served: Served, visitor: Visitor) -> None:
    one = list_events(visitor, "?show=prediction")[0]
    assert visitor.get(f"/outcomes/{one}")[0] == 200
    assert served.kafka.predictions_topic in visitor.get(f"/outcomes/{one}/way")[1]
    assert "There is no map" in visitor.get(f"/outcomes/{one}/map")[1]
    assert visitor.get(f"/outcomes/{one}/steps")[1].count("<figure>") > 1


def test_images_without_an_answer_are_counted(visitor: Visitor) -> None:
    deadline = time.monotonic() + 30
    while f"{UNANSWERED} wait" not in visitor.get("/images?show=unanswered")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_dead_letter_is_described_and_sent_again_once(served: Served, visitor: Visitor) -> None:
    one = list_events(visitor, "?show=dead_letter&reason=unsupported_format")[0]
    assert "33 bytes" in visitor.get(f"/outcomes/{one}/bytes")[1]
    status, said = visitor.post(f"/outcomes/{one}/redrive", {})
    assert (status, f"was sent to {served.kafka.images_topic} again" in said) == (200, True)
    assert "sent again before" in visitor.post(f"/outcomes/{one}/redrive", {})[1]
    trail = [json.loads(line) for line in served.settings.page_trail.read_text().splitlines()]
    assert sum(line.get("action") == "redrive" for line in trail) == 2


def test_what_is_said_is_one_event_of_the_labels_topic_however_often_it_is_sent(
    served: Served, visitor: Visitor
) -> None:
    events = list_events(visitor, "?show=prediction")[:6]
    for i, event in enumerate(events):
        for _ in range(3):  # a browser whose answer was lost
            body = {"event_id": event, "label": "normal", "request_id": f"entry-{i}"}
            assert visitor.post("/label", body)[0] == 200
    deadline = time.monotonic() + 60
    while len(found := read_labels(served)) < len(events):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sorted(one["event_id"] for one in found) == sorted(events)
    assert all(one["confirmed_by"] and one["confirmed_at"] for one in found)


def read_labels(served: Served) -> list[dict[str, Any]]:
    topic = served.kafka.labels_topic
    with open_reader(served.kafka) as reader:
        spans = read_spans(reader, topic)
    return [json.loads(message.value()) for message in scan_offsets(served.kafka, topic, spans)]


def test_an_open_tab_is_told_of_what_comes(served: Served, visitor: Visitor) -> None:
    request = ask_for(f"{visitor.address}/events", None, {})
    with visitor._opener.open(request, timeout=30) as stream:
        messages = (json.loads(line[6:]) for line in stream if line.startswith(b"data: "))
        begun = next(messages)["last"]
        answer(served.kafka, publish(served.kafka, draw_images(2, seed=5000)), seed=3)
        cards: list[str] = []
        while len(cards) < 2:
            message = next(messages)
            cards += message["cards"]
    assert (len(cards), message["last"] - begun) == (2, 2)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"x-csrf-token": "guessed"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_what_comes_from_elsewhere_is_refused(visitor: Visitor, headers: dict[str, str], status: int) -> None:
    body = {"event_id": list_events(visitor)[0], "label": "normal", "request_id": "stolen"}
    assert visitor.post("/label", body, **headers)[0] == status


def test_without_a_token_nothing_is_seen(served: Served, visitor: Visitor) -> None:
    stranger = Visitor(served.state.address)
    for path in ("/", "/images", "/events", f"/outcomes/{list_events(visitor)[0]}", "/pictures/0/0/thumbnail"):
        assert stranger.get(path)[0] == 401


def test_the_page_ends_at_once_with_open_tabs(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = served.settings.model_copy(update={"home": tmp_path_factory.mktemp("another")})
    with serve_page(settings, NoMoves()) as state:
        visitor = Visitor(state.address)
        visitor.log_in(state.url)
        tabs = [visitor._opener.open(f"{visitor.address}/events", timeout=20) for _ in range(5)]
        for tab in tabs:
            assert tab.readline().startswith(b"retry")
        started = time.monotonic()
    assert time.monotonic() - started < 12
    for tab in tabs:
        tab.close()
