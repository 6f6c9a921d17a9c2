"""The view of what happens now, and what every open tab is told of it."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streaming.lookup.outcome import Outcome
from streaming.page.desk import Desk
from streaming.page.knows.latest import Filter
from streaming.page.knows.vitals import Point

_SPAN_S = 300.0
_BUCKET_S = 10.0
_SHOWN = 6
_CARDS = 12
"""New images that a tab is shown each turn; more cannot be looked at, and each is a picture to make."""
_LIVE = ("figures", "parts", "mix", "reasons", "model")
"""Pieces of the view that change while it is looked at."""


class NowRoutes:
    """Answers what the view asks, and says what is new.

    Parameters
    ----------
    desk : Desk
        See there.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._told = desk.feed.latest.last

    @property
    def routes(self) -> list[Route]:
        """Which addresses these are."""
        return [Route("/", self.show), Route("/now/history", self.give_history)]

    def show(self, request: Request) -> Response:
        """Show what happens now."""
        newest = self._desk.feed.latest.search(Filter(), _SHOWN)
        return self._desk.answer(request, "now.html", view="Now", outcomes=newest, **self._measure())

    def give_history(self, request: Request) -> Response:
        """Give the last half hour, for the charts."""
        history = self._desk.vitals.list_history()
        latest = self._desk.feed.latest
        outcomes = latest.search(Filter(), latest.last)
        return JSONResponse({"points": [_describe(one) for one in history], "latency": _bucket(outcomes)})

    def tell(self) -> dict[str, Any]:
        """Say what is new since the turn before; the same to every tab."""
        batch = self._desk.feed.latest.since(self._told, _CARDS)
        first, self._told = self._told, batch.last
        measured = self._measure()
        history = self._desk.vitals.list_history()
        recent = [one for one in batch.outcomes if one.published_at > time.time() - _SPAN_S]
        rate = measured["snapshot"].images_per_s
        return {
            "run": self._desk.run,
            "first": min(first, batch.last),
            "last": batch.last,
            "cards": [self._desk.views.render("card.html", {"outcome": one}) for one in batch.outcomes],
            "now": {name: self._desk.views.render(f"now_{name}.html", measured) for name in _LIVE},
            "point": _describe(history[-1]) if history else None,
            "latency": [[one.published_at, one.latency_s] for one in recent],
            "says": "live" if rate is None else f"live, {rate:.1f} images/s",
        }

    def _measure(self) -> dict[str, Any]:
        feed = self._desk.feed
        return {
            "snapshot": self._desk.vitals.take_snapshot(),
            "latency": feed.latest.measure_latency(time.time() - _SPAN_S),
            "state": feed.state,
            "unanswered": feed.find_unanswered(0),
            "outbox": self._desk.findings.state,
            "tabs": self._desk.settings.page.max_tabs,
        }


def _describe(point: Point) -> list[float | None]:
    return [point.at, point.images_per_s, point.lag]


def _bucket(outcomes: list[Outcome]) -> list[list[float]]:
    """Give the middle and nearly the longest latency of each ten seconds: time, p50, p95."""
    buckets: dict[int, list[float]] = {}
    for one in outcomes:
        buckets.setdefault(int(one.published_at // _BUCKET_S), []).append(one.latency_s)
    found = []
    for bucket, latencies in sorted(buckets.items()):
        latencies.sort()
        p50, p95 = (latencies[-(-len(latencies) * percent // 100) - 1] for percent in (50, 95))
        found.append([bucket * _BUCKET_S, p50, p95])
    return found
