"""Prometheus Alertmanager, API v2: every open alarm again and again, for Alertmanager forgets at a restart."""

import base64
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from json import dumps
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Alarm, Delivered, Outcome, Refused, Retry, State
from streaming.alerts.sinks.httppeer import AuthorityFile, HttpPeer, HttpUrl, PostError
from streaming.alerts.sinks.secret import Secret, SecretError
from streaming.alerts.sinks.wording import format_time

log = logging.getLogger(__name__)

_PATH = "/api/v2/alerts"
_ENDS_AFTER = 3
"""An open alarm ends by itself after so many times the wait for its repetition: two may go missing before it flaps."""
_LONGEST_WAIT_S = 60.0
_MAX_DOUBLINGS = 6
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)


class AlertmanagerSettings(BaseModel):
    """Alertmanager: one, or all members of a cluster.

    Parameters
    ----------
    urls : tuple of str
        Where each member is, without ``/api/v2``. Every member gets every alarm, as Alertmanager wants it.
    resend_s : float
        An open alarm is sent again after so many seconds.
    resolved_for_s : float
        A resolved alarm is sent again for so many seconds.
    timeout_s : float
        For one post.
    ca : Path or None
        PEM file of the authority that signs the members' certificates; those that the system trusts, when left out.
    bearer : Secret or None
        Token.
    username : str or None
        With ``password``, for basic authentication.
    password : Secret or None
        See ``username``.
    generator_url : str or None
        Where Alertmanager's page leads from an alarm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["alertmanager"]
    urls: Annotated[tuple[HttpUrl, ...], Field(min_length=1)]
    resend_s: float = Field(default=60.0, ge=1)
    resolved_for_s: float = Field(default=900.0, ge=0)
    timeout_s: float = Field(default=10.0, gt=0, le=30)
    ca: AuthorityFile | None = None
    bearer: Secret | None = None
    username: str | None = Field(default=None, min_length=1, pattern=r"^[^:]*$")
    password: Secret | None = None
    generator_url: HttpUrl | None = None

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if (self.username is None) != (self.password is None):
            msg = "username and password belong together, found one of them"
            raise ValueError(msg)
        if self.bearer is not None and self.password is not None:
            msg = "expected bearer or password, found both"
            raise ValueError(msg)
        return self


class AlertmanagerSink:
    """Posts alarms to all members of a cluster at once; one that has them is enough, for they are sent again anyway.

    Parameters
    ----------
    name : str
        As routes call it.
    settings : AlertmanagerSettings
        See there.
    """

    at_once = 256
    """As many as Prometheus itself sends at once."""

    def __init__(self, name: str, settings: AlertmanagerSettings) -> None:
        self.name = name
        self.resend_s = settings.resend_s
        self.resolved_for_s = settings.resolved_for_s
        self._settings = settings
        self._members = [
            HttpPeer(url.rstrip("/") + _PATH, timeout_s=settings.timeout_s, ca=settings.ca) for url in settings.urls
        ]
        self._failing: set[str] = set()
        self._threads = ThreadPoolExecutor(len(self._members), thread_name_prefix=f"alerts-{name}")

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        """Post them to every member; see `streaming.alerts.alarm.Sink`."""
        now = datetime.now(UTC)
        body = dumps([self._to_alert(alarm, now) for alarm in alarms]).encode()
        try:
            headers = {"Content-Type": "application/json", **self._authorization()}
        except SecretError as exc:
            return Retry(None, str(exc))
        posts = [self._threads.submit(_post, member, body, headers) for member in self._members]
        outcomes = [post.result() for post in posts]
        for member, outcome in zip(self._members, outcomes, strict=True):
            self._note(member.place, outcome)
        return _take_best(outcomes)

    def next_try_s(self, attempt: int) -> float | None:
        """Give the wait after an attempt, from 1 s to a minute, without an end; see `streaming.alerts.alarm.Sink`."""
        return min(2.0 ** min(attempt, _MAX_DOUBLINGS), _LONGEST_WAIT_S, self.resend_s)

    def _to_alert(self, alarm: Alarm, now: datetime) -> dict[str, Any]:
        # Alertmanager refuses an alert that ends before it starts.
        starts = min(alarm.starts_at, now)
        if alarm.state is State.OPEN:
            ends = now + timedelta(seconds=_ENDS_AFTER * self.resend_s)
        else:
            ends = max(starts, min(alarm.ends_at or now, now))
        event_id = alarm.event.get("event_id")
        alert = {
            "labels": _to_labels(alarm),
            "annotations": {
                **{_to_name(name): text for name, text in alarm.annotations.items()},
                **({"event_id": event_id} if isinstance(event_id, str) else {}),
                "notice": DISCLAIMER,
            },
            "startsAt": format_time(starts),
            "endsAt": format_time(ends),
        }
        link = self._settings.generator_url
        return alert if link is None else {**alert, "generatorURL": link}

    def _authorization(self) -> dict[str, str]:
        if self._settings.bearer is not None:
            return {"Authorization": f"Bearer {self._settings.bearer.read()}"}
        if self._settings.password is not None:
            both = f"{self._settings.username}:{self._settings.password.read()}".encode()
            return {"Authorization": f"Basic {base64.b64encode(both).decode()}"}
        return {}

    def _note(self, place: str, outcome: Outcome) -> None:
        """Log when a member begins to fail and when it is well again, not every time."""
        is_failing = not isinstance(outcome, Delivered)
        if is_failing and place not in self._failing:
            log.warning("sink %s: a member has not taken the alarms: %s", self.name, _why(outcome))
            self._failing.add(place)
        elif not is_failing and place in self._failing:
            log.warning("sink %s: %s takes alarms again", self.name, place)
            self._failing.discard(place)


def _to_labels(alarm: Alarm) -> dict[str, str]:
    """Make what an alert is known by: with the alarm's id no alarm is another one's repetition, nor resolves it."""
    given = {_to_name(name): text for name, text in alarm.labels.items()}
    labels = {**given, "alertname": alarm.rule, "severity": alarm.severity, "alarm_id": alarm.id}
    return {name: text for name, text in labels.items() if text}


def _to_name(text: str) -> str:
    name = re.sub(r"[^a-zA-Z0-9_]", "_", text)
    return f"_{name}" if not name or name[0].isdigit() else name


def _post(member: HttpPeer, body: bytes, headers: dict[str, str]) -> Outcome:
    try:
        answer = member.post(body, headers)
    except PostError as exc:
        return Retry(None, str(exc))
    if answer.is_success:
        return Delivered()
    why = f"{member.place}: HTTP status {answer.status}"
    return Refused(why) if answer.status in _REFUSALS else Retry(answer.retry_after_s, why)


def _take_best(outcomes: Sequence[Outcome]) -> Outcome:
    if any(isinstance(outcome, Delivered) for outcome in outcomes):
        return Delivered()
    why = "; ".join(_why(outcome) for outcome in outcomes)
    retries = [outcome for outcome in outcomes if isinstance(outcome, Retry)]
    if not retries:
        return Refused(why)
    asked = [retry.after_s for retry in retries]
    known = [after_s for after_s in asked if after_s is not None]
    return Retry(min(known) if len(known) == len(asked) else None, why)


def _why(outcome: Outcome) -> str:
    return "" if isinstance(outcome, Delivered) else outcome.why
