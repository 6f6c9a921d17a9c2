"""What all routes of the HTTP door share: who asks, how a body comes in, and where an object goes from there."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from streaming.folders import make_own_folder
from streaming.gateway.devicelist import Device, DeviceList, UnknownTokenError
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.http.bodies import Body
from streaming.gateway.http.problems import ProblemError, UnauthorizedError
from streaming.gateway.intake import BUSY_SHARE, Intake
from streaming.gateway.offer import Offer, Taken
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import GatewaySettings

DOOR = "http"
_MOST_BODIES = 256
"""Objects that are received at once; each takes `bodies.IN_MEMORY_BYTES` at most while it comes."""
_TAKERS = 64
"""Objects that wait for Kafka at once. They are threads that sleep; memory is bounded by bytes, in `Intake`."""
_LOOKERS = 4
_WRITERS = 4
_SLOWEST_BYTES_PER_S = 1024
"""On average, beyond `idle_s`: who drips a byte now and then holds a place for nothing."""
_BEARER = "bearer "
_TRACE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
T = TypeVar("T")


class Reception:
    """Receives what clients send; each method is called in the event loop.

    Parameters
    ----------
    settings : GatewaySettings
        Times.
    intake : Intake
        Takes objects.
    devices : DeviceList
        Who may send, and how much.
    metrics : GatewayMetrics
        Requests under way.
    folder : Path
        Where bodies are while they are received; made where it is missing, for its owner alone.
    """

    def __init__(
        self, settings: GatewaySettings, intake: Intake, devices: DeviceList, metrics: GatewayMetrics, folder: Path
    ) -> None:
        self.intake = intake
        self.max_bytes = intake.max_bytes
        self._idle_s, self._answer_s = settings.idle_s, settings.answer_s
        self._devices = devices
        self._connections = metrics.connections.labels(DOOR)
        self._folder = folder
        self._bodies = 0
        self._takers = ThreadPoolExecutor(_TAKERS, "gateway-http-take")
        self._free = asyncio.Semaphore(_TAKERS)
        self._lookers = ThreadPoolExecutor(_LOOKERS, "gateway-http-look")
        self._writers = ThreadPoolExecutor(_WRITERS, "gateway-http-write")
        make_own_folder(folder, "XRAY_HOME")

    def close(self) -> None:
        """Wait for what its threads do."""
        for pool in (self._takers, self._lookers, self._writers):
            pool.shutdown()

    def identify(self, request: Request) -> Device:
        """Find the device that asks.

        Raises
        ------
        UnauthorizedError
            It has no token, or a wrong one.
        Refusal
            ``NOT_ALLOWED``: it may not do so from there.
        """
        text = request.headers.get("authorization", "")
        token = text[len(_BEARER) :].strip() if text.lower().startswith(_BEARER) else None
        address = request.client.host if request.client is not None else "0.0.0.0"  # noqa: S104
        try:
            return self._devices.find_by_token(token, address)
        except UnknownTokenError as exc:
            self.intake.note_refusal(DOOR, None, exc)
            raise UnauthorizedError(exc.detail) from exc
        except Refusal as exc:
            self.intake.note_refusal(DOOR, None, exc)
            raise

    @contextmanager
    def receiving(self, device: Device) -> Iterator[None]:
        """Hold a place for a request with objects.

        Raises
        ------
        Refusal
            ``BUSY``: there is none.
        """
        if self._bodies >= _MOST_BODIES:
            raise self.refuse(device, Refusal(Cause.BUSY, f"{_MOST_BODIES} objects are being received"))
        self._bodies += 1
        self._connections.inc()
        try:
            yield
        finally:
            self._bodies -= 1
            self._connections.dec()

    def refuse(self, device: Device, refusal: Refusal, size: int = 0) -> Refusal:
        """Count an object that does not get as far as `Intake`; gives the refusal, to be raised."""
        self.intake.note_refusal(DOOR, device, refusal, size)
        return refusal

    def make_body(self) -> Body:
        """Give room for an object."""
        return Body(self._folder, self.max_bytes, self._writers)

    async def read(self, request: Request, max_bytes: int) -> AsyncIterator[bytes]:
        """Give the chunks of a body as they come.

        Raises
        ------
        Refusal
            ``TOO_LARGE``, before anything is read where the request says so.
        ProblemError
            408: it does not come in time; 400 or 415: it is in a coding that is not read.
        ClientDisconnect
            The client is gone.
        """
        _check_coding(request)
        if int(request.headers.get("content-length", "0")) > max_bytes:
            raise Refusal(Cause.TOO_LARGE, f"a body of more than {max_bytes} bytes")
        loop = asyncio.get_running_loop()
        received, waited, more = 0, 0.0, True
        while more:
            before = loop.time()
            left_s = self._idle_s + received / _SLOWEST_BYTES_PER_S - waited
            try:
                async with asyncio.timeout(min(self._idle_s, left_s)):
                    message = await request.receive()
            except TimeoutError:
                detail = "the body does not come in time"
                raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, detail) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            waited += loop.time() - before
            chunk, more = message.get("body", b""), message.get("more_body", False)
            received += len(chunk)
            if received > max_bytes:
                raise Refusal(Cause.TOO_LARGE, f"a body of more than {max_bytes} bytes")
            if chunk:
                yield chunk

    async def take(
        self,
        device: Device,
        body: Body,
        make_offer: Callable[[], Offer],
        on_named: Callable[[str], None] = lambda event_id: None,
    ) -> Taken:
        """Hand an object to `Intake`, in a thread.

        Raises
        ------
        Refusal
            See there; ``RATE`` too.
        """
        loop = asyncio.get_running_loop()
        received = loop.time()
        try:
            self._devices.admit(device)
            async with asyncio.timeout(self._answer_s * BUSY_SHARE):
                await self._free.acquire()
        except TimeoutError:
            raise self.refuse(device, Refusal(Cause.BUSY), body.size) from None
        except Refusal as exc:
            raise self.refuse(device, exc, body.size) from exc
        try:
            waited_s = loop.time() - received
            return await loop.run_in_executor(
                self._takers,
                lambda: self.intake.take(DOOR, device, body.size, make_offer, on_named=on_named, waited_s=waited_s),
            )
        finally:
            self._free.release()

    async def look(self, action: Callable[[], T]) -> T:
        """Do something short that may wait for a disk, in a thread that no object holds up."""
        return await asyncio.get_running_loop().run_in_executor(self._lookers, action)


def read_trace(request: Request) -> str | None:
    """Give the trace that a request belongs to; None where it has none, or no valid one, as W3C has it."""
    text = request.headers.get("traceparent", "").strip()
    return text if _TRACE.fullmatch(text) else None


def _check_coding(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        detail = "the body has a content encoding; send it as it is"
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, {"accept-encoding": "identity"})
