"""``/images``: a device posts one image as it is, may wait for its prediction, and asks what became of it."""

import asyncio
import re
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from streaming.gateway.devicelist import Device
from streaming.gateway.http.bodies import Body
from streaming.gateway.http.multipart import read_media_type
from streaming.gateway.http.problems import ProblemError
from streaming.gateway.http.reception import Reception, read_trace
from streaming.gateway.offer import Offer, Taken
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.gateway.receipts.waiters import Answer, Waiter
from streaming.gateway.refusals import Cause, Refusal

MEDIA_TYPES = ("image/png", "image/jpeg", "application/dicom")
MAX_WAIT_S = 30.0
MAX_KEY = 255
_KEY = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_NO_STORE = {"cache-control": "no-store"}


class ImageRoutes:
    """Answers ``POST /images`` and ``GET /images/{event_id}``.

    Parameters
    ----------
    reception : Reception
        Takes images.
    book : ReceiptBook
        Knows what became of them.
    max_waiters : int
        Requests at once that may wait for a prediction; further ones are answered at once.
    ending : asyncio.Event
        Set when the door is about to end: nobody waits any more then.
    """

    def __init__(self, reception: Reception, book: ReceiptBook, *, max_waiters: int, ending: asyncio.Event) -> None:
        self._reception = reception
        self._book = book
        self._max_waiters = max_waiters
        self._ending = ending
        self._waiting = 0

    async def post(self, request: Request) -> Response:
        """Take an image."""
        device = self._reception.identify(request)
        wait_s = _read_wait(request)
        with self._reception.receiving(device), ExitStack() as stack:
            try:
                make_offer = _read_head(request, device)
                body = self._reception.make_body()
                stack.callback(body.close)
                async for chunk in self._reception.read(request, self._reception.max_bytes):
                    body.add(chunk)
                    await body.settle()
                if not body.size:
                    detail = "the request has no body"
                    raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
            except Refusal as exc:
                raise self._reception.refuse(device, exc) from exc
            if not wait_s or self._waiting >= self._max_waiters:
                taken = await self._reception.take(device, body, lambda: make_offer(body))
                return _tell(taken, None, waited=bool(wait_s))
            self._waiting += 1
            stack.callback(self._leave)
            waiters: list[Waiter] = []
            taken = await self._reception.take(
                device,
                body,
                lambda: make_offer(body),
                lambda event_id: waiters.append(stack.enter_context(self._book.expect(event_id))),
            )
            body.close()
            return _tell(taken, await self._wait(request, taken, waiters[0], wait_s), waited=True)

    async def get(self, request: Request) -> Response:
        """Tell what became of an image; of another device's as of none."""
        device = self._reception.identify(request)
        event_id = request.path_params["event_id"]
        receipt = await self._reception.look(lambda: self._book.find(event_id))
        if receipt is None or receipt.source != device.source:
            detail = "no image of this device has this event id, or its receipt is older than receipts are kept"
            raise ProblemError(HTTPStatus.NOT_FOUND, detail)
        return Response(receipt.to_json(), HTTPStatus.OK, _NO_STORE, "application/json")

    def _leave(self) -> None:
        self._waiting -= 1

    async def _wait(self, request: Request, taken: Taken, waiter: Waiter, wait_s: float) -> Answer | None:
        """Give the answer if it comes in time; not to a client that is gone, nor of an image that is not in Kafka."""
        if taken.place is None:
            return None
        answer = asyncio.wrap_future(waiter.future)
        waits: list[asyncio.Future[Any]] = [
            answer,
            asyncio.ensure_future(self._ending.wait()),
            asyncio.ensure_future(request.receive()),
        ]
        try:
            await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            for one in waits:
                one.cancel()


def _read_wait(request: Request) -> float:
    text = request.query_params.get("wait", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        detail = f"wait is not a number of seconds from 0 to {MAX_WAIT_S:g}"
        raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
    return wait_s


def _read_head(request: Request, device: Device) -> Callable[[Body], Offer]:
    """Read the headers; gives what makes the offer once the body is there."""
    media_type = read_media_type(request.headers.get("content-type", "")).name
    if media_type not in MEDIA_TYPES:
        raise Refusal(Cause.UNSUPPORTED, f"the content type is none of {', '.join(MEDIA_TYPES)}")
    name = _read_key(request.headers.get("idempotency-key"))
    traceparent = read_trace(request)
    return lambda body: Offer(body.read(), device.source, name, traceparent, media_type)


def _read_key(text: str | None) -> str | None:
    if text is None:
        return None
    # The draft of the header wants a quoted string, most clients send none: both are the same name.
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    key = text[1:-1] if is_quoted else text
    if len(key) > MAX_KEY or not _KEY.fullmatch(key):
        detail = f"Idempotency-Key is not 1 to {MAX_KEY} printable characters of ASCII"
        raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
    return key


def _tell(taken: Taken, answer: Answer | None, *, waited: bool) -> Response:
    """Say where an image is: 201 of one in Kafka, 202 where something is still to be waited for."""
    where = f"/images/{taken.event_id}"
    content: dict[str, Any] = {"event_id": taken.event_id, "state": "accepted", "place": taken.place}
    content["flags"] = list(taken.flags)
    if answer is not None and answer.prediction is not None:
        content |= {"state": "predicted", "prediction": answer.prediction}
    elif answer is not None:
        content |= {"state": "dead_lettered", "reason": answer.reason}
    is_open = taken.place is None or (waited and answer is None)
    status = HTTPStatus.ACCEPTED if is_open else HTTPStatus.CREATED
    return JSONResponse(content, status, {"location": where, **_NO_STORE})
