"""The view of models: the one in service beside the next one, what is known of each, and moving between them."""

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from schemas.errors import JobError
from streaming.page.desk import Desk, read_body
from streaming.page.guard import Refused, want
from streaming.page.knows.moves import MoveAnswer
from streaming.page.knows.trail import TrailError
from streaming.page.people import Role

_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"
"""Of a training report: a page that stands alone, with its own styles. It runs no script, and reaches nothing."""
_MAX_TYPED = 200


class ModelRoutes:
    """Answers what is asked of models.

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
            Route("/models", self.show),
            Route("/models/promote", self.promote, methods=["POST"]),
            Route("/models/roll-back", self.roll_back, methods=["POST"]),
            Route("/models/{version}/report", self.show_report),
            Route("/models/{version}/report.html", self.give_report),
            Route("/models/{version}/service", self.show_service),
        ]

    def show(self, request: Request) -> Response:
        """Show the models."""
        models = self._desk.models
        champion, challenger = models.find_champion(), models.find_challenger()
        others = [one for one in models.list_models() if not one.aliases]
        return self._desk.answer(
            request,
            "models.html",
            view="Models",
            champion=champion,
            challenger=challenger,
            others=others,
            history=models.list_history(20),
        )

    def show_report(self, request: Request) -> Response:
        """Show the training report of a model, inside."""
        version = self._find_report(request)[0]
        return self._desk.answer(request, "report.html", view="Models", version=version)

    def give_report(self, request: Request) -> Response:
        """Give the training report itself, which may do nothing but be read."""
        path = self._find_report(request)[1]
        return HTMLResponse(path.read_bytes(), headers={"content-security-policy": _REPORT_POLICY})

    def show_service(self, request: Request) -> Response:
        """Show what a model said of images whose finding a person has confirmed."""
        version = request.path_params["version"]
        if not self._desk.models.knows(version):  # figures are kept for each version that was asked about
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no model {version} in the folder of models.")
        figures, why = None, ""
        try:
            figures = self._desk.service.measure(version)
        except JobError as exc:
            why = str(exc)
        return self._desk.answer(request, "service.html", figures=figures, why=why)

    async def promote(self, request: Request) -> Response:
        """Let the stream serve another model, where the comparison permits it."""
        person = want(request, Role.OPERATE)
        form = parse_qs((await read_body(request)).decode(errors="replace"))
        version, typed = (form.get(name, [""])[0].strip()[:_MAX_TYPED] for name in ("version", "typed"))
        operator = self._desk.operator
        return await self._do(request, lambda: operator.promote(version, typed=typed, who=person.name))

    async def roll_back(self, request: Request) -> Response:
        """Serve the model before the last promotion again."""
        person = want(request, Role.OPERATE)
        form = parse_qs((await read_body(request)).decode(errors="replace"))
        typed = form.get("typed", [""])[0].strip()[:_MAX_TYPED]
        operator = self._desk.operator
        return await self._do(request, lambda: operator.roll_back(typed=typed, who=person.name))

    async def _do(self, request: Request, act: Callable[[], MoveAnswer]) -> Response:
        try:
            answer = await run_in_threadpool(act)
        except TrailError as exc:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(exc)) from exc
        return self._desk.answer(request, "moved.html", answer=answer)

    def _find_report(self, request: Request) -> tuple[str, Path]:
        version = request.path_params["version"]
        path = self._desk.models.find_report_page(version)
        if path is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no training report on {version} in the folder of reports.")
        return version, path
