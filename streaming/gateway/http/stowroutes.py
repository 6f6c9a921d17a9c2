"""``/studies``: STOW-RS. Each object is safe, or refused, before the next one of the same request is read.

References
----------
DICOM PS3.18 10.5 (Store Transaction).
"""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from streaming.gateway.devicelist import Device
from streaming.gateway.http.bodies import Body
from streaming.gateway.http.multipart import MultipartError, PartBegin, PartData, PartReader, read_media_type
from streaming.gateway.http.objectnames import HEAD_BYTES, ObjectNames, is_uid, read_names
from streaming.gateway.http.problems import ProblemError, retry_headers
from streaming.gateway.http.reception import Reception, read_trace
from streaming.gateway.http.stow import JSON_TYPE, XML_TYPE, StowAnswer, choose_type
from streaming.gateway.offer import Offer
from streaming.gateway.refusals import Cause, Refusal

MAX_PARTS = 1000
_OBJECTS_IN_BODY = 100
"""Of the largest size: what one request may carry."""
_DICOM = "application/dicom"
_PART_TYPES = ("", _DICOM, "application/octet-stream")
"""A part has to say that it is DICOM; some clients say nothing, or that they do not know."""


class StowRoutes:
    """Answers ``POST /studies`` and ``POST /studies/{study}``.

    Parameters
    ----------
    reception : Reception
        Takes objects.
    """

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    async def post(self, request: Request) -> Response:
        """Take the objects of a study."""
        device = self._reception.identify(request)
        media_type = choose_type(request.headers.get("accept", ""))
        if media_type is None:
            detail = f"the answer is {JSON_TYPE} or {XML_TYPE}"
            raise ProblemError(HTTPStatus.NOT_ACCEPTABLE, detail)
        study = request.path_params.get("study")
        if study is not None and not is_uid(study):
            detail = "the path names no study: that is digits and dots, at most 64"
            raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
        with self._reception.receiving(device):
            try:
                reader = _make_reader(request)
                delivery = _Delivery(self._reception, device, study, read_trace(request))
            except Refusal as exc:
                raise self._reception.refuse(device, exc) from exc
            answer = await delivery.receive(request, reader)
        refusal = delivery.last_transient
        headers = {} if refusal is None or answer.stored else retry_headers(refusal)
        return Response(answer.render(media_type), answer.status, headers, media_type)


def _make_reader(request: Request) -> PartReader:
    found = read_media_type(request.headers.get("content-type", ""))
    kind = read_media_type(found.parameters.get("type", _DICOM)).name
    if found.name != "multipart/related" or kind != _DICOM:
        detail = f'the content type is not multipart/related; type="{_DICOM}": objects are taken whole, as files'
        raise Refusal(Cause.UNSUPPORTED, detail)
    try:
        return PartReader(found.parameters.get("boundary", ""))
    except MultipartError as exc:
        raise ProblemError(HTTPStatus.BAD_REQUEST, str(exc)) from exc


class _Delivery:
    """The objects of one request, one after the other."""

    def __init__(self, reception: Reception, device: Device, study: str | None, traceparent: str | None) -> None:
        self._reception = reception
        self._device = device
        self._study = study
        self._traceparent = traceparent
        self._answer = StowAnswer()
        self._body: Body | None = None
        self._refusal: Refusal | None = None
        self._parts = 0
        self.last_transient: Refusal | None = None

    async def receive(self, request: Request, reader: PartReader) -> StowAnswer:
        """Read the body to its end, or to where it is not understood.

        Raises
        ------
        ProblemError
            It is not understood, and nothing of it was.
        Refusal
            ``TOO_LARGE``, likewise.
        """
        try:
            async for chunk in self._reception.read(request, _OBJECTS_IN_BODY * self._reception.max_bytes):
                await self._read(reader, chunk)
            reader.finish()
            if not self._parts:
                detail = "the body has no part"
                raise ProblemError(HTTPStatus.BAD_REQUEST, detail)
        except MultipartError as exc:
            if self._is_silent:
                raise ProblemError(HTTPStatus.BAD_REQUEST, str(exc)) from exc
            self._give_up(Refusal(Cause.UNREADABLE, str(exc)))
        except Refusal as exc:
            if self._is_silent:
                raise self._reception.refuse(self._device, exc) from exc
            self._give_up(exc)
        finally:
            self._end_part()
        return self._answer

    async def _read(self, reader: PartReader, chunk: bytes) -> None:
        for event in reader.feed(chunk):
            if isinstance(event, PartBegin):
                self._begin_part(event)
            elif isinstance(event, PartData):
                self._add(event.data)
            else:
                await self._take()
        if self._body is not None:
            await self._body.settle()

    def _begin_part(self, event: PartBegin) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Refusal(Cause.TOO_LARGE, f"more than {MAX_PARTS} objects in one request")
        self._body, self._refusal = self._reception.make_body(), None
        if event.media_type.name not in _PART_TYPES:
            self._refusal = Refusal(Cause.UNSUPPORTED, f"the content type of a part is not {_DICOM}")

    def _add(self, data: bytes) -> None:
        assert self._body is not None  # noqa: S101
        if self._refusal is None:
            try:
                self._body.add(data)
            except Refusal as exc:  # the rest of the part is read over
                self._refusal = exc

    async def _take(self) -> None:
        body = self._body
        assert body is not None  # noqa: S101
        names = ObjectNames()

        def make_offer() -> Offer:
            nonlocal names
            payload = body.read()
            names = read_names(payload)
            if self._study is not None and names.study != self._study:
                raise Refusal(Cause.WRONG_CLASS, "the object is of another study than the path says")
            return Offer(payload, self._device.source, None, self._traceparent, _DICOM)

        try:
            if self._refusal is not None:
                raise self._reception.refuse(self._device, self._refusal, body.size)
            taken = await self._reception.take(self._device, body, make_offer)
            self._answer.stored.append((names, taken.event_id))
        except Refusal as exc:
            if names == ObjectNames():
                names = await self._reception.look(lambda: read_names(body.read_head(HEAD_BYTES)))
            self._note(exc, names)
        finally:
            self._end_part()

    @property
    def _is_silent(self) -> bool:
        """Whether there is nothing to tell of any object. Else it is told: a client shall know what is safe."""
        return not self._answer.stored and not self._answer.failed

    def _give_up(self, refusal: Refusal) -> None:
        """Refuse the part that is being read, and with it the rest of the body."""
        names = ObjectNames() if self._body is None else read_names(self._body.read_head(HEAD_BYTES))
        self._reception.refuse(self._device, refusal, 0 if self._body is None else self._body.size)
        self._note(refusal, names)

    def _note(self, refusal: Refusal, names: ObjectNames) -> None:
        self._answer.failed.append((names, refusal.cause))
        if refusal.cause.value.is_transient:
            self.last_transient = refusal

    def _end_part(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
