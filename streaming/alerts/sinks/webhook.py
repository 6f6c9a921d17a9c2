"""Webhooks, as Standard Webhooks 1.0 describes them: signed, one alarm a message, tried again for three days."""

import base64
import binascii
import ipaddress
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from standardwebhooks import Webhook
from urllib3.util import parse_url

from streaming.alerts.alarm import Alarm, Delivered, Disabled, Outcome, Refused, Retry
from streaming.alerts.sinks.addresses import is_allowed
from streaming.alerts.sinks.httppeer import Answer, AuthorityFile, HttpPeer, HttpUrl, PostError
from streaming.alerts.sinks.secret import Secret, SecretError
from streaming.alerts.sinks.wording import message_id, to_json

RETRIES_S = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""The specification's waits after an attempt: 5 s, 5 and 30 min, 2, 5, 10, 14, 20 and 24 h, so ten attempts."""
MAX_BODY_BYTES = 20_000
"""The specification's bound of a message."""

_JITTER = 0.1
"""A wait is up to a tenth longer, so that what failed together does not come again together."""
_SECRET_BYTES = (24, 64)
_PREFIX = "whsec_"
_SLOW = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
_FIRST_SLOW_S = 5.0
_LONGEST_SLOW_S = 1800.0
_SHORT_WAIT_S = 5.0
"""What is to be left alone for no longer is waited for: a receiver that takes ten a second gets ten a second."""


def _check_signs(secret: Secret) -> Secret:
    try:
        _parse_secret(secret)
    except SecretError as exc:
        raise ValueError(str(exc)) from exc
    return secret


class WebhookSettings(BaseModel):
    """A webhook.

    Parameters
    ----------
    url : str
        Where to post. It begins with ``https://``; with ``http://`` only where private addresses are allowed.
    secrets : tuple of Secret
        One, or two while one replaces the other: each message is signed with both. ``whsec_`` and 24 to 64 bytes in
        base64.
    allow_private : bool
        Whether the URL may lead to private, loopback and link-local addresses.
    ca : Path or None
        PEM file of the authority that signs the receiver's certificate; those that the system trusts, when left out.
    timeout_s : float
        For one attempt, the whole of it.
    retries_s : tuple of float
        Waits after failed attempts; after the last one an alarm is given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["webhook"]
    url: HttpUrl
    secrets: Annotated[tuple[Annotated[Secret, AfterValidator(_check_signs)], ...], Field(min_length=1, max_length=2)]
    allow_private: bool = False
    ca: AuthorityFile | None = None
    timeout_s: float = Field(default=15.0, gt=0, le=30)
    retries_s: tuple[Annotated[float, Field(gt=0)], ...] = RETRIES_S

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        url = parse_url(self.url)
        if url.scheme != "https" and not self.allow_private:
            msg = "url begins with http://, expected https://; or allow_private: true for a receiver in the own network"
            raise ValueError(msg)
        try:
            address = str(ipaddress.ip_address(str(url.host).strip("[]").partition("%")[0]))
        except ValueError:
            return self  # a name: what it leads to is known at each attempt
        if not is_allowed(address, allow_private=self.allow_private):
            msg = "url leads to an address that is not allowed; allow_private: true allows private ones"
            raise ValueError(msg)
        return self


class WebhookSink:
    """Posts each alarm to a URL, signed.

    A receiver that says 429, 502 or 504, or when to come again (``Retry-After``), gets nothing until then: no other
    alarm either.

    Parameters
    ----------
    name : str
        As routes call it.
    settings : WebhookSettings
        See there.
    """

    resend_s = None
    resolved_for_s = 0.0
    at_once = 1

    def __init__(self, name: str, settings: WebhookSettings) -> None:
        self.name = name
        self._settings = settings
        self._peer = HttpPeer(
            settings.url, timeout_s=settings.timeout_s, ca=settings.ca, allow_private=settings.allow_private
        )
        self._closed_until = 0.0
        self._slow_s = 0.0

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        """Post each of them, up to the first that is not taken; see `streaming.alerts.alarm.Sink`."""
        outcome: Outcome = Delivered()
        for alarm in alarms:
            outcome = self._deliver_one(alarm, attempt)
            if not isinstance(outcome, Delivered):
                break
        return outcome

    def next_try_s(self, attempt: int) -> float | None:
        """Give the wait after an attempt; see `streaming.alerts.alarm.Sink`."""
        if attempt >= len(self._settings.retries_s):
            return None
        return self._settings.retries_s[attempt] * random.uniform(1, 1 + _JITTER)

    def _deliver_one(self, alarm: Alarm, attempt: int) -> Outcome:
        body = to_json(alarm)
        if len(body) >= MAX_BODY_BYTES:
            return Refused(f"its message has {len(body)} bytes, expected less than {MAX_BODY_BYTES}")
        left_s = self._closed_until - time.monotonic()
        if left_s > _SHORT_WAIT_S:
            return Retry(left_s, f"{self._peer.place}: asked to be left alone", tried=False)
        time.sleep(max(0.0, left_s))
        try:
            answer = self._peer.post(body.encode(), self._sign(message_id(alarm), body))
        except (PostError, SecretError) as exc:
            return Retry(None, str(exc))
        return self._judge(answer, attempt)

    def _sign(self, ident: str, body: str) -> dict[str, str]:
        now = datetime.now(UTC)
        keys = [_parse_secret(secret) for secret in self._settings.secrets]
        return {
            "Content-Type": "application/json",
            "webhook-id": ident,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(Webhook(key).sign(ident, now, body) for key in keys),
        }

    def _judge(self, answer: Answer, attempt: int) -> Outcome:
        why = f"{self._peer.place}: HTTP status {answer.status}"
        if answer.is_success:
            self._slow_s = 0.0
            return Delivered()
        if answer.status == HTTPStatus.GONE:
            return Disabled(f"{why}: it wants no more")
        asked_s = answer.retry_after_s
        if asked_s is None and answer.status in _SLOW:
            self._slow_s = asked_s = min(max(2 * self._slow_s, _FIRST_SLOW_S), _LONGEST_SLOW_S)
        if asked_s is None:
            return Retry(None, why)
        self._closed_until = time.monotonic() + asked_s
        # Never sooner than the schedule says: ten attempts within ten seconds would lose the alarm.
        own_s = self.next_try_s(attempt)
        return Retry(None if own_s is None else max(asked_s, own_s), why)


def _parse_secret(secret: Secret) -> bytes:
    text = secret.read()
    fewest, most = _SECRET_BYTES
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(_PREFIX) or not fewest <= len(key) <= most:
        msg = f"{secret.place} holds no signing secret: expected {_PREFIX} and {fewest} to {most} bytes in base64"
        raise SecretError(msg)
    return key
