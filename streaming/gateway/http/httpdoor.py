"""The HTTP door: STOW-RS and plain images in, receipts out.

For research use only; see `docs/security.md` for who may reach it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from schemas import envelope
from streaming.gateway.certificates import Certificates
from streaming.gateway.devicelist import DeviceList
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.http.exchange import Border
from streaming.gateway.http.httpserver import HttpServer
from streaming.gateway.http.imageroutes import ImageRoutes
from streaming.gateway.http.openapi import describe_door
from streaming.gateway.http.reception import Reception
from streaming.gateway.http.stowroutes import StowRoutes
from streaming.gateway.intake import Intake
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.settings import GatewaySettings

_MARGIN_S = 2.0
"""Beyond the time that an object may take: until its answer is on its way."""


class HttpDoor:
    """Takes objects by HTTP, in threads of its own.

    Parameters
    ----------
    settings : GatewaySettings
        ``host``, ``http_port``, ``tls_...``, ``idle_s``, ``answer_s``, ``max_waiters``.
    intake : Intake
        Takes objects.
    devices : DeviceList
        Who may send.
    metrics : GatewayMetrics
        Also what ``/metrics`` shows.
    book : ReceiptBook
        What became of an image.
    folder : Path
        Where bodies are while they are received; made where it is missing, for its owner alone.

    Raises
    ------
    SettingsError
        TLS is on, and its files are not what they should be.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        intake: Intake,
        devices: DeviceList,
        metrics: GatewayMetrics,
        book: ReceiptBook,
        *,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._ending = asyncio.Event()
        certificates = Certificates(settings)
        self._reception = Reception(settings, intake, devices, metrics, folder)
        images = ImageRoutes(self._reception, book, max_waiters=settings.max_waiters, ending=self._ending)
        self._router = _make_router(images, StowRoutes(self._reception), intake, metrics.registry)
        self._server = HttpServer(Border(self._router), idle_s=settings.idle_s, certificates=certificates)

    def start(self) -> int:
        """Listen, and give the port.

        Raises
        ------
        SettingsError
            It cannot listen there, or the door is closed by its setting.
        """
        port = self._settings.http_port
        assert port != "off"  # noqa: S101
        return self._server.start(self._settings.host, port)

    def routes(self) -> set[tuple[str, str]]:
        """Give path and method, in small letters, of all that can be asked for."""
        found = (route for route in self._router.routes if isinstance(route, Route))
        return {(route.path, method.lower()) for route in found for method in (route.methods or ()) if method != "HEAD"}

    def stop(self) -> None:
        """Take nothing new, answer what is under way, and end; who waits for a prediction is told where to ask."""
        self._server.stop(self._settings.answer_s + _MARGIN_S, self._ending.set)
        self._reception.close()


def _make_router(images: ImageRoutes, stow: StowRoutes, intake: Intake, registry: CollectorRegistry) -> Router:
    """Put the routes together."""
    routes = [
        Route("/", _introduce, methods=["GET"]),
        Route("/studies", stow.post, methods=["POST"]),
        Route("/studies/{study}", stow.post, methods=["POST"]),
        Route("/images", images.post, methods=["POST"]),
        Route("/images/{event_id}", images.get, methods=["GET"]),
        Route("/healthz", _say_alive, methods=["GET"]),
        Route("/readyz", _say_ready(intake), methods=["GET"]),
        Route("/metrics", _show_metrics(registry), methods=["GET"]),
        Route("/openapi.json", _describe, methods=["GET"]),
    ]
    return Router(routes, redirect_slashes=False)  # a redirection would have the objects sent twice


async def _introduce(_: Request) -> Response:
    return JSONResponse({"name": "xray gateway", "notice": envelope.DISCLAIMER, "description": "/openapi.json"})


async def _say_alive(_: Request) -> Response:
    return PlainTextResponse("alive\n")


def _say_ready(intake: Intake) -> Callable[[Request], Awaitable[Response]]:
    async def say_ready(_: Request) -> Response:
        if intake.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("Kafka takes no images, and no spool does\n", 503)

    return say_ready


def _show_metrics(registry: CollectorRegistry) -> Callable[[Request], Awaitable[Response]]:
    async def show_metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": media_type})

    return show_metrics


async def _describe(_: Request) -> Response:
    return JSONResponse(describe_door())
