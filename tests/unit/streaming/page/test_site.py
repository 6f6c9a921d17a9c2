"""What the site answers, without a broker: outcomes are put into memory by hand, and pictures are a double's."""

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from schemas.envelope import DISCLAIMER
from streaming.accessfile import hash_token
from streaming.kafka.places import Place
from streaming.lookup.outcome import Kind, Outcome, ScoredBy
from streaming.page.desk import Desk
from streaming.page.guard import Sessions
from streaming.page.knows.feed import Feed, FeedState
from streaming.page.knows.findings import Findings
from streaming.page.knows.modelsview import ModelsView
from streaming.page.knows.moves import MoveAnswer, Operator
from streaming.page.knows.servicefigures import LabelledService
from streaming.page.knows.trace import Tracer
from streaming.page.knows.trail import Trail
from streaming.page.knows.vitals import Vitals
from streaming.page.people import People
from streaming.page.pictures.picture import Explanation, Picture, PictureGone
from streaming.page.site import Site
from streaming.page.views import Views
from streaming.results.findingsledger import LEDGER_FILE
from streaming.settings import StreamSettings, load_settings

HOST = "127.0.0.1:8050"
ORIGIN = f"http://{HOST}"
MODEL = ScoredBy("cxr", "20260131T120000Z", "e" * 64, ("normal", "opacities"), "opacities", 0.5, "probability 0.5")
PICTURE = Picture(b"a picture", "image/png", "etag-1", 3, 2, bits=16, low=100, high=4000)
HOSTILE = "<script>alert(1)</script>\"'"


class Pictures:
    """A double of the gallery: every image has the same picture, but for those that are gone."""

    def __init__(self) -> None:
        self.is_gone = False

    def thumbnail(self, place: Place, *, sha256: str = "") -> Picture:
        if self.is_gone:
            msg = "Kafka has removed this image, as its retention says"
            raise PictureGone(msg)
        return PICTURE

    full = thumbnail

    def explain(self, place: Place, outcome: Any, *, sha256: str = "") -> Explanation:
        assert (outcome.model, outcome.probability) == (MODEL.version, 0.9)
        return Explanation(why_none="this network's features are no mean of its last map")

    def steps(self, place: Place, *, sha256: str = "") -> list[Any]:
        return []

    def novelty(self, place: Place, *, model: str = "", sha256: str = "") -> None:
        assert model == MODEL.version

    def neighbours(self, place: Place, k: int = 8, *, model: str = "", sha256: str = "") -> list[Any]:
        msg = "the model has no vectors beside its report"
        raise PictureGone(msg)


class Moves:
    """A double of what decides on models: notes what was asked for, and promotes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def promote(self, version: str, *, why: str) -> MoveAnswer:
        self.asked.append(f"{version}: {why}")
        return MoveAnswer(True, f"Promoted {version}.")

    def roll_back(self, *, why: str) -> MoveAnswer:
        return MoveAnswer(False, "there is nothing to go back to")


def make_outcome(number: int, **changes: Any) -> Outcome:
    event_id = hashlib.sha256(str(number).encode()).hexdigest()[:32]
    fields: dict[str, Any] = {
        "kind": Kind.PREDICTION,
        "event_id": event_id,
        "image_key": event_id,
        "topic": "xray.images",
        "topic_id": "",
        "place": Place(0, number),
        "record": Place(1, number),
        "received_at": 1_769_868_239.0,
        "scored_at": 1_769_868_239.5,
        "published_at": 1_769_868_240.0,
        "source": "/hospital/ward-3/dx-1",
        "image_id": f"study-{number}",
        "sha256": f"{number:064x}",
        "model": MODEL,
        "label": "opacities",
        "probabilities": (0.1, 0.9),
    }
    return Outcome(**fields | changes)


def make_dead_letter(number: int, **changes: Any) -> Outcome:
    gone = {"kind": Kind.DEAD_LETTER, "model": None, "label": None, "probabilities": ()}
    return make_outcome(number, **gone, reason="truncated_image", error="the file ends early", **changes)


class Opened:
    """A site with its parts."""

    def __init__(self, settings: StreamSettings, findings: Findings) -> None:
        self.feed = Feed(settings)
        self.feed._state = FeedState(is_reading=True, why="", is_filled=True)
        self.pictures = Pictures()
        self.moves = Moves()
        self.trail = settings.page_trail
        people = People(settings.page.people, user="me", allow_operate=settings.page.allow_operate)
        desk = Desk(
            settings,
            self.feed,
            self.pictures,  # type: ignore[arg-type]
            findings,
            Vitals({}),
            Tracer(settings, self.feed, findings),
            ModelsView(settings),
            LabelledService(settings.tables_folder),
            Operator(settings, self.moves, Trail(settings.page_trail)),
            Views(),
        )
        self.site = Site(desk, Sessions(people), hosts=lambda: frozenset({HOST}), secure=False)

    def log_in(self, role: str) -> TestClient:
        client = TestClient(self.site.guard, base_url=ORIGIN, headers={"accept": "text/html", "origin": ORIGIN})
        assert client.get(f"/login?token=token-of-{role}").status_code == 200
        csrf = client.get("/").text.partition('data-csrf="')[2].partition('"')[0]
        client.headers["x-csrf-token"] = csrf
        return client


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    people = tmp_path / "people.toml"
    people.write_text(
        "\n".join(
            f'[[person]]\nname = "{role}er"\nrole = "{role}"\ntokens = ["{hash_token(f"token-of-{role}")}"]'
            for role in ("look", "label", "operate")
        )
    )
    settings = load_settings({}, home=tmp_path, page={"people": people, "allow_operate": True})
    with Findings(settings, settings.page_folder) as findings:
        yield Opened(settings, findings)


@pytest.mark.parametrize("path", ["/", "/images", "/images?show=unanswered", "/label", "/models", "/nothing", "/login"])
def test_every_view_says_what_it_is_not_and_holds_no_inline_code(opened: Opened, path: str) -> None:
    opened.feed.latest.add([make_outcome(1), make_dead_letter(2)])
    answer = opened.log_in("operate").get(path)
    assert DISCLAIMER in answer.text
    assert " style=" not in answer.text
    assert "<script>" not in answer.text
    assert " onclick" not in answer.text
    assert answer.status_code == (404 if path == "/nothing" else 200)


def test_what_a_device_says_is_text(opened: Opened) -> None:
    opened.feed.latest.add([make_outcome(1, image_id=HOSTILE, source=HOSTILE), make_dead_letter(2, image_id=HOSTILE)])
    client = opened.log_in("label")
    for path in ("/", "/images", *(f"/outcomes/{one.event_id}" for one in opened.feed.latest.since(0).outcomes)):
        assert "<script>alert" not in client.get(path).text
    message = opened.site.streams._make()
    assert all("<script>alert" not in card for card in message["cards"])


def test_without_a_session_a_person_gets_the_login_and_a_script_a_sentence(opened: Opened) -> None:
    client = TestClient(opened.site.guard, base_url=ORIGIN)
    view = client.get("/images", headers={"accept": "text/html"})
    assert (view.status_code, "Log in" in view.text) == (401, True)
    part = client.get("/images", headers={"accept": "text/html", "hx-request": "true"})
    assert part.text == "Nobody is logged in here, or no longer."
    assert client.get("/pictures/0/1/thumbnail").status_code == 401
    assert client.get("/events").status_code == 401


def test_a_token_can_be_typed(opened: Opened) -> None:
    client = TestClient(opened.site.guard, base_url=ORIGIN, headers={"accept": "text/html", "origin": ORIGIN})
    assert client.post("/login", content="token=guessed").status_code == 401
    assert client.post("/login", content="token=token-of-look").status_code == 200
    assert client.get("/images").status_code == 200


def test_images_are_filtered_and_turned_over(opened: Opened) -> None:
    flagged = {"flags": ("uncertain",), "probabilities": (0.5, 0.5)}
    opened.feed.latest.add([make_outcome(i, **(flagged if i % 2 else {})) for i in range(130)])
    client = opened.log_in("look")

    def shown(path: str) -> list[str]:
        return [part.partition('"')[0] for part in client.get(path).text.split('data-number="')[1:]]

    assert shown("/images") == [str(n) for n in range(130, 70, -1)]
    assert shown("/images?before=71") == [str(n) for n in range(70, 10, -1)]
    assert shown("/images?label=undecided&before=5") == ["4", "2"]
    assert shown("/images?q=STUDY-128") == ["129"]
    assert shown("/images?show=dead_letter") == []
    assert shown("/images?before=99999999999999999999") == shown("/images")


def test_a_picture_is_kept_by_its_hash_and_says_its_window(opened: Opened) -> None:
    client = opened.log_in("look")
    answer = client.get("/pictures/0/1/full?v=abc")
    assert answer.content == PICTURE.content
    assert "immutable" in answer.headers["cache-control"]
    assert (answer.headers["x-picture-low"], answer.headers["x-picture-high"]) == ("100", "4000")
    again = client.get("/pictures/0/1/full?v=abc", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" not in client.get("/pictures/0/1/full").headers["cache-control"]


def test_pictures_that_hang_leave_everything_else_its_threads(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(place: Place, *, sha256: str = "") -> Picture:
        released.wait(20)
        return PICTURE

    monkeypatch.setattr(opened.pictures, "thumbnail", hang)
    cookies = dict(opened.log_in("look").cookies)

    async def run() -> None:
        transport = httpx2.ASGITransport(opened.site.guard)
        async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN, cookies=cookies) as client:
            hung = [asyncio.create_task(client.get(f"/pictures/0/{n}/thumbnail")) for n in range(60)]
            try:
                await asyncio.sleep(0.5)
                assert (await asyncio.wait_for(client.get("/images"), 5)).status_code == 200
            finally:
                released.set()
            assert {answer.status_code for answer in await asyncio.gather(*hung)} == {200}

    asyncio.run(run())


def test_a_picture_that_is_gone_says_so(opened: Opened) -> None:
    opened.pictures.is_gone = True
    answer = opened.log_in("look").get("/pictures/0/1/thumbnail?v=abc")
    assert answer.status_code == 410
    assert "retention" in answer.text
    assert "immutable" not in answer.headers["cache-control"]


def test_parts_of_an_image_say_why_there_are_none(opened: Opened) -> None:
    opened.feed.latest.add([make_outcome(1)])
    client = opened.log_in("look")
    one = f"/outcomes/{make_outcome(1).event_id}"
    assert "no mean of its last map" in client.get(f"{one}/map").text
    assert "no vectors" in client.get(f"{one}/neighbours").text
    assert "does not compare" in client.get(f"{one}/novelty").text
    assert client.get("/outcomes/unknown").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/pictures/0/99999999999999999999/full", "/pictures/4294967296/1/full", f"/models/{'a' * 300}/report"],
)
def test_an_address_of_nothing_is_told_as_such(opened: Opened, tmp_path: Path, path: str) -> None:
    (tmp_path / "reports").mkdir()
    assert opened.log_in("look").get(path).status_code == 404


def test_the_record_of_a_prediction_is_not_taken_for_a_dead_letter(opened: Opened) -> None:
    opened.feed.latest.add([make_outcome(1)])
    answer = opened.log_in("look").get(f"/outcomes/{make_outcome(1).event_id}/bytes")
    assert answer.status_code == 404


def test_another_dead_letter_at_the_same_place_is_not_described(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.feed.latest.add([make_dead_letter(1)])
    other = SimpleNamespace(letter=SimpleNamespace(event_id="cd" * 16), headers=[], payload=b"", media_type="image/png")
    monkeypatch.setattr("streaming.page.imageroutes.show_dead_letter", lambda kafka, place: other)
    answer = opened.log_in("look").get(f"/outcomes/{make_dead_letter(1).event_id}/bytes").text
    assert "another dead letter now" in answer
    assert "image/png" not in answer


def test_a_stream_of_events_ends_with_its_session(opened: Opened, tmp_path: Path) -> None:
    client = opened.log_in("look")
    [(name, key)] = client.cookies.items()
    headers = [(b"host", HOST.encode()), (b"cookie", f"{name}={key}".encode())]

    async def run() -> None:
        answer = await opened.site._follow(Request({"type": "http", "headers": headers}))
        assert isinstance(answer, StreamingResponse)
        events = answer.body_iterator
        for wanted in (b"retry:", b"id: 1"):
            assert bytes(await anext(events)).startswith(wanted)  # type: ignore[call-overload]
        opened.site._sessions.close(key)
        assert [event async for event in events] == []
        opened.site.streams.end()

    asyncio.run(asyncio.wait_for(run(), 10))


def say(client: TestClient, outcome: Outcome, label: str, request: str) -> Any:
    body = {"event_id": outcome.event_id, "label": label, "request_id": request}
    return client.post("/label", json=body)


def test_what_is_said_is_kept_once_however_often_it_comes(opened: Opened) -> None:
    outcome = make_outcome(1)
    opened.feed.latest.add([outcome])
    client = opened.log_in("label")
    first = say(client, outcome, "normal", "request-1")
    assert (first.status_code, first.json()["who"], first.json()["label"]) == (200, "labeler", "normal")
    for _ in range(3):
        assert say(client, outcome, "normal", "request-1").json()["confirmed_at"] == first.json()["confirmed_at"]
    say(client, outcome, "opacities", "request-2")
    view = client.get(f"/outcomes/{outcome.event_id}").text
    assert view.count("by labeler") == 0, "the way is asked for by a script"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 422),
        (b"[]", 422),
        (b"[" * 100_000, 422),
        (b'{"event_id": 1, "label": "normal", "request_id": "a"}', 422),
        (b'{"event_id": "unknown", "label": "normal", "request_id": "a"}', 404),
        (b"x" * 200_000, 413),
    ],
)
def test_a_wrong_answer_is_refused_for_good(opened: Opened, body: bytes, status: int) -> None:
    assert opened.log_in("label").post("/label", content=body).status_code == status


def test_an_answer_is_not_refused_for_good_while_outcomes_are_still_read(opened: Opened) -> None:
    client = opened.log_in("label")
    opened.feed._state = FeedState(why="cannot reach Kafka")
    answer = client.post("/label", json={"event_id": "ab" * 16, "label": "normal", "request_id": "request-1"})
    assert (answer.status_code, "cannot reach Kafka" in answer.text) == (503, True)


def test_an_answer_that_the_disk_does_not_take_is_not_refused_for_good(opened: Opened, tmp_path: Path) -> None:
    outcome = make_outcome(1)
    opened.feed.latest.add([outcome])
    client = opened.log_in("label")
    [ledger] = tmp_path.rglob(LEDGER_FILE)
    with closing(sqlite3.connect(ledger)) as other:  # fails as a full disk does
        other.execute("CREATE TRIGGER full BEFORE INSERT ON findings BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        answer = say(client, outcome, "normal", "request-1")
        assert (answer.status_code, "disk is full" in answer.text) == (503, True)
        other.execute("DROP TRIGGER full")
    assert say(client, outcome, "normal", "request-1").status_code == 200


def test_a_label_that_the_model_does_not_have_is_refused(opened: Opened) -> None:
    outcome = make_outcome(1)
    opened.feed.latest.add([outcome])
    assert say(opened.log_in("label"), outcome, "fracture", "request-1").status_code == 422


def test_the_queue_asks_about_undecided_images_first_and_about_none_twice(opened: Opened) -> None:
    scores = {1: 0.9, 2: 0.55, 3: 0.2}
    outcomes = [make_outcome(n, probabilities=(1 - p, p)) for n, p in scores.items()]
    outcomes.append(make_outcome(4, probabilities=(0.2, 0.8), flags=("unlike_training",)))
    opened.feed.latest.add([*outcomes, make_dead_letter(5)])
    client = opened.log_in("label")

    def ask(*known: Outcome, which: str = "undecided") -> list[str]:
        body = {"known": [one.event_id for one in known]}
        return [one["image_id"] for one in client.post(f"/label/queue?which={which}", json=body).json()["images"]]

    assert ask() == ["study-4", "study-2", "study-3", "study-1"]
    assert ask(which="newest") == ["study-4", "study-3", "study-2", "study-1"]
    say(client, outcomes[1], "normal", "request-1")
    assert ask(outcomes[3]) == ["study-3", "study-1"]


FORBIDDEN: list[tuple[str, Callable[[TestClient, str], Any]]] = [
    (
        "look",
        lambda client, event: client.post("/label", json={"event_id": event, "label": "normal", "request_id": "a"}),
    ),
    ("look", lambda client, event: client.post("/label/queue", json={})),
    ("label", lambda client, event: client.post(f"/outcomes/{event}/redrive")),
    ("label", lambda client, event: client.post("/models/promote", content="version=a&typed=a")),
    ("label", lambda client, event: client.post("/models/roll-back", content="typed=a")),
]


@pytest.mark.parametrize(("role", "act"), FORBIDDEN)
def test_a_role_does_no_more_than_it_may(opened: Opened, role: str, act: Callable[[TestClient, str], Any]) -> None:
    opened.feed.latest.add([make_outcome(1)])
    assert act(opened.log_in(role), make_outcome(1).event_id).status_code == 403
    assert opened.moves.asked == []


def test_a_model_is_promoted_where_its_name_was_typed_and_it_is_written_down(opened: Opened) -> None:
    client = opened.log_in("operate")
    assert "Promoted" not in client.post("/models/promote", content="version=v2&typed=v1").text
    assert opened.moves.asked == []
    assert "Promoted v2." in client.post("/models/promote", content="version=v2&typed=v2").text
    assert opened.moves.asked == ["v2: asked for on the page by operateer"]
    lines = [json.loads(line) for line in opened.trail.read_text().splitlines()]
    assert [line.get("who") for line in lines if "who" in line] == ["operateer", "operateer"]


def test_figures_in_service_are_of_models_that_are_there(opened: Opened, tmp_path: Path) -> None:
    client = opened.log_in("look")
    assert client.get("/models/v7/service").status_code == 404
    (tmp_path / "models" / "v7").mkdir(parents=True)
    assert client.get("/models/v7/service").status_code == 200


def test_a_report_may_do_nothing_but_be_read(opened: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "v1"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<style>p {}</style><p>figures</p><script>alert(1)</script>")
    client = opened.log_in("look")
    answer = client.get("/models/v1/report.html")
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert client.get("/models/..%2f..%2fetc/report.html").status_code == 404


def test_assets_are_kept_and_nothing_else_is_given(opened: Opened) -> None:
    client = TestClient(opened.site.guard, base_url=ORIGIN)
    answer = client.get("/assets/page.css", headers={"accept-encoding": "gzip"})
    assert (answer.headers["content-encoding"], "immutable" in answer.headers["cache-control"]) == ("gzip", True)
    for path in (
        "/assets/%2e%2e/guard.py",
        "/assets/..%2fguard.py",
        "/assets/vendor",
        "/assets/nothing.js",
        "/assets/",
        "/assets/%00",
        f"/assets/{'a' * 300}",
    ):
        assert client.get(path).status_code == 404


def test_tabs_are_told_the_newest_and_how_many_there_were(opened: Opened) -> None:
    opened.feed.latest.add([make_outcome(n) for n in range(100)])
    message = opened.site.streams._make()
    assert (message["first"], message["last"], len(message["cards"])) == (0, 100, 12)
    assert 'data-number="100"' in message["cards"][-1]
    assert opened.site.streams._make()["cards"] == []
