"""Views of images: the latest ones, one of them, a dead letter, and their pictures."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from schemas.errors import JobError
from streaming.deadletters.read import show_dead_letter
from streaming.kafka.places import Place
from streaming.lookup.outcome import Kind, Outcome
from streaming.page.desk import Desk, attempt
from streaming.page.guard import Refused, want
from streaming.page.knows.latest import Filter
from streaming.page.knows.trail import TrailError
from streaming.page.people import Role
from streaming.page.pictures.picture import Picture, PictureError, PictureGone

SHOWN = 60
_UNANSWERED = "unanswered"
_ASKED = ("q", "show", "label", "flag", "source", "model", "reason")
_MAX_TEXT = 200
_KEEP = "private, max-age=86400, immutable"
"""A picture's address has the hash of its image, so it never changes."""
_MAKERS = 20
"""Threads that wait for pictures. Of those of everything else none may be lost to a decoder or a broker that hangs."""
_MOST_PARTITION, _MOST_OFFSET = 2**31 - 1, 2**63 - 1
"""Kafka's own numbers."""
_KEEP_ERROR = "private, max-age=30"


@dataclass(frozen=True)
class _Scored:
    """What `Gallery.explain` must know of a prediction."""

    model: str
    probability: float | None


class ImageRoutes:
    """Answers what is asked of images.

    Parameters
    ----------
    desk : Desk
        See there.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._makers = CapacityLimiter(_MAKERS)

    @property
    def routes(self) -> list[Route]:
        """Which addresses these are."""
        one = "/outcomes/{event_id}"
        return [
            Route("/images", self.show_latest),
            Route(one, self.show_one),
            Route(f"{one}/way", self.show_way),
            Route(f"{one}/map", self._apart(self.show_map)),
            Route(f"{one}/novelty", self._apart(self.show_novelty)),
            Route(f"{one}/steps", self._apart(self.show_steps)),
            Route(f"{one}/neighbours", self._apart(self.show_neighbours)),
            Route(f"{one}/bytes", self.show_bytes),
            Route(f"{one}/redrive", self.redrive, methods=["POST"]),
            Route("/pictures/{partition:int}/{offset:int}/{kind}", self._apart(self.give_picture)),
            Route("/training/{model}", self._apart(self.give_training_thumbnail)),
        ]

    def _apart(self, answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def answer_apart(request: Request) -> Response:
            return await to_thread.run_sync(answer, request, limiter=self._makers)

        return answer_apart

    def show_latest(self, request: Request) -> Response:
        """Show the latest images that are asked for."""
        latest = self._desk.feed.latest
        asked = {name: request.query_params.get(name, "")[:_MAX_TEXT] for name in _ASKED}
        before = _read_number(request.query_params.get("before"))
        newest = latest.last
        unanswered, outcomes, older = None, [], None
        if asked["show"] == _UNANSWERED:
            unanswered = self._desk.feed.find_unanswered()
        else:
            outcomes = latest.search(_read_filter(asked), SHOWN + 1, before)
            if len(outcomes) > SHOWN:
                outcomes = outcomes[:SHOWN]
                older = {**asked, "before": outcomes[-1].number}
        return self._desk.answer(
            request,
            "images.html",
            view="Images",
            asked=asked,
            choices=latest.count_choices(),
            outcomes=outcomes,
            unanswered=unanswered,
            older=older,
            newest=newest,
            run=self._desk.run,
            is_plain=not any(asked.values()) and before is None,
            state_text=self._describe_memory(),
        )

    def show_one(self, request: Request) -> Response:
        """Show one image, or a dead letter."""
        outcome = self._desk.find(request)
        latest = self._desk.feed.latest
        older = latest.search(Filter(), 1, outcome.number)
        newer = latest.since(outcome.number, latest.last)
        return self._desk.answer(
            request,
            "outcome.html",
            view="Images",
            outcome=outcome,
            older=older[0].event_id if older else None,
            newer=newer.outcomes[0].event_id if newer.outcomes else None,
            facts=_list_facts(outcome),
        )

    def show_way(self, request: Request) -> Response:
        """Show the way of an image, with its times."""
        way = self._desk.tracer.trace(self._desk.find(request))
        befores = [None, *(one.at for one in way)]
        return self._desk.answer(request, "way.html", way=list(zip(way, befores, strict=False)))

    def show_map(self, request: Request) -> Response:
        """Show what the score is the sum of."""
        outcome = self._desk.find(request)
        if outcome.model is None:
            raise Refused(HTTPStatus.NOT_FOUND, "A dead letter has no score.")
        scored, sha256 = _Scored(outcome.model.version, outcome.score), outcome.sha256 or ""
        found, why = attempt(lambda: self._desk.gallery.explain(outcome.place, scored, sha256=sha256))
        positive = outcome.model.positive_label
        return self._desk.answer(request, "map.html", explanation=found, why=why, positive=positive)

    def show_novelty(self, request: Request) -> Response:
        """Show how unlike the training images an image is."""
        outcome = self._desk.find(request)
        asked = {"model": _version_of(outcome), "sha256": outcome.sha256 or ""}
        found, why = attempt(lambda: self._desk.gallery.novelty(outcome.place, **asked))
        return self._desk.answer(request, "novelty.html", novelty=found, why=why)

    def show_steps(self, request: Request) -> Response:
        """Show what rendering did."""
        outcome = self._desk.find(request)
        found, why = attempt(lambda: self._desk.gallery.steps(outcome.place, sha256=outcome.sha256 or ""))
        return self._desk.answer(request, "steps.html", steps=found, why=why)

    def show_neighbours(self, request: Request) -> Response:
        """Show the training images that are most like an image to the network."""
        outcome = self._desk.find(request)
        model, sha256 = _version_of(outcome), outcome.sha256 or ""
        found, why = attempt(lambda: self._desk.gallery.neighbours(outcome.place, model=model, sha256=sha256))
        return self._desk.answer(request, "neighbours.html", neighbours=found, why=why, model=model)

    def show_bytes(self, request: Request) -> Response:
        """Describe the bytes of a dead letter; they are not shown, since nobody has looked what is in them."""
        outcome = self._desk.find(request)
        if outcome.is_prediction:  # its record is of another topic: another image would be described
            raise Refused(HTTPStatus.NOT_FOUND, "This image has a prediction; only dead letters are described.")
        try:
            details = show_dead_letter(self._desk.settings.kafka, outcome.record)
        except JobError as exc:  # of a broker too
            return self._desk.answer(request, "bytes.html", facts=[], why=str(exc))
        if details.letter.event_id != outcome.event_id:
            why = f"At {outcome.record} is another dead letter now: the topic was made anew since this one came."
            return self._desk.answer(request, "bytes.html", facts=[], why=why)
        headers = ", ".join(f"{one.name} ({one.size_bytes} B)" for one in details.headers)
        facts = [
            ("size", "no value" if details.payload is None else f"{len(details.payload)} bytes"),
            ("looks like", details.media_type or "nothing that is known"),
            ("key", "none" if details.key_bytes is None else f"{details.key_bytes} bytes"),
            ("headers", headers or "none"),
            ("stage", details.letter.stage or "not said"),
        ]
        return self._desk.answer(request, "bytes.html", facts=facts, why="")

    def redrive(self, request: Request) -> Response:
        """Publish the original bytes of a dead letter again."""
        person = want(request, Role.OPERATE)
        outcome = self._desk.find(request)
        if outcome.is_prediction:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, "This image has a prediction; only dead letters are sent again."
            )
        try:
            answer = self._desk.operator.redrive(outcome.record, who=person.name, event_id=outcome.event_id)
        except TrailError as exc:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(exc)) from exc
        return self._desk.answer(request, "moved.html", answer=answer)

    def give_picture(self, request: Request) -> Response:
        """Give a thumbnail or the full view."""
        gallery = self._desk.gallery
        make = {"thumbnail": gallery.thumbnail, "full": gallery.full}.get(request.path_params["kind"])
        if make is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There are thumbnail and full.")
        partition, offset = request.path_params["partition"], request.path_params["offset"]
        if partition > _MOST_PARTITION or offset > _MOST_OFFSET:
            raise Refused(HTTPStatus.NOT_FOUND, f"Kafka has no place {partition}@{offset}.")
        place = Place(partition, offset)
        sha256 = request.query_params.get("v", "")[:_MAX_TEXT]
        return _give(request, lambda: make(place, sha256=sha256), keep=bool(sha256))

    def give_training_thumbnail(self, request: Request) -> Response:
        """Give a thumbnail of a training image."""
        file = request.query_params.get("file", "")[:4096]
        model = request.path_params["model"]
        return _give(request, lambda: self._desk.gallery.training_thumbnail(file, model=model), keep=True)

    def _describe_memory(self) -> str:
        feed = self._desk.feed
        if not feed.state.is_reading:
            return f"Kafka is not read: {feed.state.why}"
        if not feed.state.is_filled:
            return "Older outcomes are being read…"
        return f"{len(feed.latest):,} in memory".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _give(request: Request, make: Any, *, keep: bool) -> Response:
    try:
        picture: Picture = make()
    except PictureError as exc:
        status = HTTPStatus.GONE if isinstance(exc, PictureGone) else HTTPStatus.NOT_FOUND
        return PlainTextResponse(str(exc), status_code=status, headers={"cache-control": _KEEP_ERROR})
    headers = {
        "etag": f'"{picture.etag}"',
        "cache-control": _KEEP if keep else "private, no-cache",
        "x-picture-low": str(picture.low),
        "x-picture-high": str(picture.high),
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(picture.content, media_type=picture.media_type, headers=headers)


def _read_filter(asked: dict[str, str]) -> Filter:
    kind = next((one for one in (Kind.PREDICTION, Kind.DEAD_LETTER) if one.value == asked["show"]), None)
    chosen: dict[str, Any] = {name: asked[name] or None for name in ("label", "flag", "source", "model", "reason")}
    return Filter(kind=kind, text=asked["q"].strip(), **chosen)


def _read_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None  # noqa: PLR2004 - digits


def _version_of(outcome: Outcome) -> str:
    return "" if outcome.model is None else outcome.model.version


def _list_facts(outcome: Outcome) -> list[tuple[str, str]]:
    model = outcome.model
    facts: list[tuple[str, Any]] = [
        ("device", outcome.source),
        ("captured", outcome.captured_at),
        ("size", outcome.height and f"{outcome.width} by {outcome.height} pixels"),
        ("file", _describe_file(outcome)),
        ("decoding", outcome.decode_s is not None and f"{1000 * outcome.decode_s:.1f} ms"),
        ("network", outcome.predict_s is not None and f"{1000 * outcome.predict_s:.1f} ms"),
        ("model", model and f"{model.name} {model.version}"),
        ("model hash", model and model.sha256[:16]),
        ("redriven from", outcome.redriven_from),
        ("place", f"{outcome.topic} {outcome.place}"),
        ("event", outcome.event_id),
        ("SHA-256", outcome.sha256),
    ]
    return [(name, str(text)) for name, text in facts if text]


def _describe_file(outcome: Outcome) -> str | None:
    size = None if outcome.payload_bytes is None else f"{outcome.payload_bytes / 1000:,.0f} kB"
    return ", ".join(filter(None, (outcome.media_type, size))) or None
