"""The view where people say what images show: which image is next, and what was said of it."""

from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streaming.lookup.outcome import Kind, Outcome
from streaming.page.desk import Desk, read_json
from streaming.page.guard import Refused, want
from streaming.page.knows.latest import Filter
from streaming.page.people import Role
from streaming.page.views import write_score
from streaming.results.finding import FindingError, LedgerError

_AT_ONCE = 8
_LOOKED_AT = 2000
"""Of the newest predictions: those that a day's labelling comes to."""
_PREDICTIONS = Filter(kind=Kind.PREDICTION)


class LabelRoutes:
    """Answers what the view asks.

    Parameters
    ----------
    desk : Desk
        See there.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[Route]:
        """Which addresses these are."""
        return [
            Route("/label", self.show),
            Route("/label", self.enter, methods=["POST"]),
            Route("/label/queue", self.give_queue, methods=["POST"]),
        ]

    def show(self, request: Request) -> Response:
        """Show the view; its script asks for the images."""
        newest = self._desk.feed.latest.search(_PREDICTIONS, 1)
        labels = newest[0].model.labels if newest and newest[0].model is not None else ()
        return self._desk.answer(request, "label.html", view="Label", labels=labels)

    async def give_queue(self, request: Request) -> Response:
        """Give some images that nobody has said anything of, in the order in which to ask about them."""
        want(request, Role.LABEL)
        asked = await read_json(request)
        known = asked.get("known")
        seen = frozenset(filter(lambda one: isinstance(one, str), known)) if isinstance(known, list) else frozenset()
        is_undecided_first = request.query_params.get("which") == "undecided"
        images = await run_in_threadpool(self._find_next, seen, is_undecided_first=is_undecided_first)
        return JSONResponse({"images": [_describe(one) for one in images]})

    async def enter(self, request: Request) -> Response:
        """Take what somebody said of an image; the browser sends it again until it has this answer."""
        person = want(request, Role.LABEL)
        said = await read_json(request)
        event_id, label, entry = (said.get(name) for name in ("event_id", "label", "request_id"))
        if not (isinstance(event_id, str) and isinstance(label, str) and isinstance(entry, str)):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Wanted event_id, label and request_id, each a text.")
        outcome = await run_in_threadpool(self._desk.find_outcome, event_id)
        try:
            finding = await run_in_threadpool(self._desk.findings.label, outcome, label, who=person.name, request=entry)
        except LedgerError as exc:  # the browser keeps what was said, and sends it again
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(exc)) from exc
        except FindingError as exc:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(exc)) from exc
        return JSONResponse(finding.to_dict())

    def _find_next(self, seen: frozenset[str], *, is_undecided_first: bool) -> list[Outcome]:
        found = self._desk.feed.latest.search(_PREDICTIONS, _LOOKED_AT)
        if is_undecided_first:
            found.sort(key=_rank)
        done = seen | self._desk.findings.select_known([one.event_id for one in found])
        return [one for one in found if one.event_id not in done][:_AT_ONCE]


def _rank(outcome: Outcome) -> tuple[bool, float]:
    """Order images by how much a person's word is worth: undecided ones, then those near the threshold."""
    model, score = outcome.model, outcome.score
    if model is None or score is None or model.threshold is None:
        return not outcome.flags, 0.0
    return not outcome.flags, abs(score - model.threshold)


def _describe(outcome: Outcome) -> dict[str, Any]:
    return {
        "event_id": outcome.event_id,
        "image_id": outcome.image_id,
        "source": outcome.source,
        "label": outcome.label,
        "score": write_score(outcome.score),
        "flags": [one.replace("_", " ") for one in outcome.flags],
        "picture": f"/pictures/{outcome.place.partition}/{outcome.place.offset}/full?v={outcome.sha256 or ''}",
    }
