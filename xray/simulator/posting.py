"""Sending by HTTP: one image to ``POST /images``, or DICOM objects of a study to STOW-RS, ``POST /studies``.

References
----------
DICOM PS3.18 section 10.5 (Store), annex F (JSON); RFC 2387 (multipart/related).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from xray.simulator.answers import NO_ANSWER, Answer, Verdict, read_http, read_status
from xray.simulator.damage import Damage, spoil
from xray.simulator.habits import Way
from xray.simulator.objects import Shot, write_file_bytes, write_jpeg, write_png
from xray.simulator.pictures import Pictures
from xray.simulator.storing import CT, SLOW_S, AbortedOnPurposeError

_DICOM = "application/dicom"
_TYPES = {Way.POST_PNG: "image/png", Way.POST_JPEG: "image/jpeg", Way.POST_DICOM: _DICOM}
_PART_BYTES = 65_536
_MAX_ANSWER_BYTES = 1_000_000
_BOUNDARY = "xray-devices-boundary"
_REFERENCED, _FAILED, _REASON, _INSTANCE = "00081199", "00081198", "00081197", "00081155"
_EVENT_ID = "00091001"
"""A private element of the gateway's, in the answer's item of an instance."""


@dataclass(frozen=True)
class HttpTarget:
    """Where devices send by HTTP.

    Parameters
    ----------
    host : str
        Name or address.
    port : int
        Of the gateway's HTTP door.
    token : str, optional
        Bearer token of all devices.
    timeout_s : float
        For each answer.
    """

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class _Request:
    path: str
    headers: dict[str, str]
    body: bytes


class HttpSender:
    """A device's HTTP side.

    Parameters
    ----------
    way : Way
        STOW-RS, or what it posts.
    target : HttpTarget
        Where to.
    pictures : Pictures
        What its images show.
    pause : callable
        Waits so many seconds, of a slow sender.
    """

    def __init__(self, way: Way, target: HttpTarget, pictures: Pictures, pause: Callable[[float], None]) -> None:
        self._way = way
        self._target = target
        self._pictures = pictures
        self._pause = pause
        self._open: HTTPConnection | None = None

    def send(self, shot: Shot, damage: Damage | None) -> Answer:
        """Send an image once.

        Parameters
        ----------
        shot : Shot
            The image.
        damage : Damage or None
            What is done wrong with it.

        Raises
        ------
        AbortedOnPurposeError
            There is no answer, and none was wanted.
        """
        if shot.habits.connection_each:
            self.close()
        request = self._make_request(shot, damage)
        connection = self._connect()
        try:
            response = self._exchange(connection, request, damage)
            body = response.read(_MAX_ANSWER_BYTES)
            response.close()
        except AbortedOnPurposeError:
            self.close()
            raise
        except (OSError, HTTPException):
            self.close()
            return NO_ANSWER
        if self._way is Way.STOW:
            return _read_stored(response, body, shot.sop_uid)
        return read_http(response.status, _event_id(body), _retry_after(response))

    def close(self) -> None:
        """End the study: close its connection."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def _connect(self) -> HTTPConnection:
        if self._open is None:
            self._open = HTTPConnection(self._target.host, self._target.port, timeout=self._target.timeout_s)
        return self._open

    def _make_request(self, shot: Shot, damage: Damage | None) -> _Request:
        payload = spoil(self._make_payload(shot, damage), damage, shot.number)
        headers = {"Accept": "application/json"}
        if self._target.token is not None:
            headers["Authorization"] = f"Bearer {self._target.token}"
        if self._way is Way.STOW:
            headers |= {
                "Accept": "application/dicom+json",
                "Content-Type": f'multipart/related; type="{_DICOM}"; boundary={_BOUNDARY}',
            }
            return _Request("/studies", headers, _as_multipart(payload, shot.file_name))
        kind = _TYPES[self._way]
        if damage is Damage.WRONG_CLASS:
            kind = "image/png" if kind != "image/png" else "image/jpeg"
        headers |= {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{shot.file_name}"'}
        if shot.habits.names_objects:
            headers["Idempotency-Key"] = shot.sop_uid
        return _Request("/images", headers, payload)

    def _make_payload(self, shot: Shot, damage: Damage | None) -> bytes:
        if self._way is Way.POST_PNG:
            return write_png(shot, self._pictures)
        if self._way is Way.POST_JPEG:
            return write_jpeg(shot, self._pictures)
        if self._way is Way.STOW and damage is Damage.WRONG_CLASS:
            shot = replace(shot, habits=replace(shot.habits, sop_class=CT))
        syntax = shot.habits.syntaxes[0]
        return write_file_bytes(shot, self._pictures, syntax, pixels=damage is not Damage.NO_PIXELS)

    def _exchange(self, connection: HTTPConnection, request: _Request, damage: Damage | None) -> HTTPResponse:
        connection.putrequest("POST", request.path)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders()
        # A server may answer before it has all, and close: its answer is worth more than the write's error.
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in self._parts(request.body, damage):
                connection.send(part)
        return connection.getresponse()

    def _parts(self, body: bytes, damage: Damage | None) -> Iterator[bytes]:
        if damage not in {Damage.ABORTED, Damage.SLOW}:
            yield body
            return
        starts = range(0, len(body), _PART_BYTES)
        for place, start in enumerate(starts):
            if damage is Damage.SLOW:
                self._pause(SLOW_S / len(starts))
            elif 2 * place >= len(starts):
                raise AbortedOnPurposeError
            # What is aborted must never have been whole: a small body would be, after its first part.
            end = start + _PART_BYTES if damage is Damage.SLOW else min(start + _PART_BYTES, len(body) // 2)
            yield body[start:end]
        if damage is Damage.ABORTED:
            raise AbortedOnPurposeError


def _as_multipart(payload: bytes, file_name: str) -> bytes:
    head = f"--{_BOUNDARY}\r\nContent-Type: {_DICOM}\r\nContent-Location: {file_name}.dcm\r\n\r\n"
    return head.encode() + payload + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _read_stored(response: HTTPResponse, body: bytes, sop_uid: str) -> Answer:
    """Understand a Store response: what it says of the one instance counts, where it says something."""
    answer = read_http(response.status, wait_s=_retry_after(response))
    found = _parse(body)
    for item in _items(found, _FAILED):
        reason = _first(item, _REASON)
        if _first(item, _INSTANCE) in {None, sop_uid} and isinstance(reason, int):
            told = read_status(reason)
            return replace(told, name=f"{response.status} {told.name}")
    stored = [item for item in _items(found, _REFERENCED) if _first(item, _INSTANCE) == sop_uid]
    if answer.verdict is Verdict.TAKEN and not stored:
        return replace(answer, name=f"{response.status} without reference", verdict=Verdict.REFUSED)
    return replace(answer, event_id=_first(stored[0], _EVENT_ID) if stored else None)


def _items(found: Any, tag: str) -> Iterator[dict[str, Any]]:
    element = found.get(tag) if isinstance(found, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    yield from (item for item in values or () if isinstance(item, dict))


def _first(item: dict[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _event_id(body: bytes) -> str | None:
    found = _parse(body)
    event_id = found.get("event_id") if isinstance(found, dict) else None
    return event_id if isinstance(event_id, str) else None


def _retry_after(response: HTTPResponse) -> float | None:
    text = response.getheader("Retry-After", "")
    return float(text) if text.isdigit() else None
