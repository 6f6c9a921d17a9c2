"""Where the programs of the product say how they are, and asking one of them within a deadline for the whole of it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from streaming.deadline import Deadline
from streaming.settings import StreamSettings

STREAM, ARCHIVE, GATEWAY, ALERTS, REPORTS = "stream", "archive", "gateway", "alerts", "reports"

ANSWER_S = 1.5
"""In which metrics and health must be there: longer than a busy machine takes, shorter than a person waits."""
_MAX_BYTES = 4 * 1024 * 1024


class PartState(StrEnum):
    """How a part of the product is."""

    UP = "up"
    NOT_READY = "not_ready"
    """It runs, and says itself that something is wrong."""
    HANGING = "hanging"
    """It takes connections, or drops packets, and does not answer in time."""
    DOWN = "down"
    """Nobody listens there: it is not started, or ended."""
    NOT_SEEN = "not_seen"
    """Nobody has listened there since the page was started, and no setting says that somebody should."""
    UNKNOWN = "unknown"
    """Not asked yet, or nothing is said of it."""


@dataclass(frozen=True)
class Sample:
    """One number of a metrics page."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Answer:
    """What a part said.

    Parameters
    ----------
    state : PartState
        See there.
    why : str
        Why it is not up; empty where it is.
    asked_at : float
        Unix time in seconds.
    took_s : float
        Seconds until its answer, or until nothing more was waited for.
    series : Mapping of str to sequence of Sample
        By the sample's name; empty where there was no answer.
    health : Mapping
        What ``/health`` said, where the part has one.
    """

    state: PartState
    why: str
    asked_at: float
    took_s: float
    series: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float | None:
        """Add up the samples of a name that have these labels; None where there is none."""
        found = self.select(name, **labels)
        return sum(one.value for one in found) if found else None

    def select(self, name: str, **labels: str) -> list[Sample]:
        """Give the samples of a name that have these labels."""
        return [one for one in self.series.get(name, ()) if labels.items() <= one.labels.items()]


def find_addresses(settings: StreamSettings) -> dict[str, str]:
    """Give the addresses of the parts' metrics pages, as this machine's settings say."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.metrics.host, settings.metrics.host)  # noqa: S104
    ports = {
        GATEWAY: settings.gateway.metrics_port,
        STREAM: settings.metrics.port,
        ARCHIVE: settings.archive.metrics_port,
        ALERTS: settings.alerts.metrics_port,
        REPORTS: settings.reports.metrics_port,
    }
    shown = f"[{host}]" if ":" in host else host
    # Port 0 is a free one, which nobody else knows.
    return {name: f"http://{shown}:{port}" for name, port in ports.items() if port}


def ask_part(address: str, *, has_health: bool, within_s: float = ANSWER_S) -> Answer:
    """Ask a program for its metrics, and for its health where it tells that.

    Parameters
    ----------
    address : str
        ``http://HOST:PORT``.
    has_health : bool
        Whether there is a ``/health``.
    within_s : float
        Seconds for all of it.
    """
    asked_at, began = time.time(), time.monotonic()
    with Deadline(within_s) as deadline:
        try:
            series, health = _read(address, deadline, has_health=has_health)
            state, why = _judge(address, health, has_health=has_health)
        except (OSError, HTTPException, ValueError) as exc:
            series, health = {}, {}
            if deadline.is_over:
                state, why = PartState.HANGING, f"{address} has not answered within {within_s:g} s"
            elif isinstance(exc, OSError):
                state, why = PartState.DOWN, f"{address}: {exc.strerror or type(exc).__name__}"
            else:
                state, why = PartState.NOT_READY, f"{address} answers something else than metrics and health"
    return Answer(state, why, asked_at, time.monotonic() - began, series, health)


def _read(address: str, deadline: Deadline, *, has_health: bool) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
    status, body = _get(address, "/metrics", deadline)
    if status != HTTPStatus.OK:
        msg = f"status {status}"
        raise ValueError(msg)
    series = read_series(body.decode())
    health = json.loads(_get(address, "/health", deadline)[1]) if has_health else {}
    if not isinstance(health, dict):
        msg = "health is no object"
        raise ValueError(msg)
    return series, health


def _judge(address: str, health: Mapping[str, Any], *, has_health: bool) -> tuple[PartState, str]:
    if not has_health or health.get("ok"):
        return PartState.UP, ""
    if "ok" not in health:
        return PartState.NOT_READY, f"{address}/health says nothing of its state"
    return PartState.NOT_READY, explain_health(health)


def _get(address: str, path: str, deadline: Deadline) -> tuple[int, bytes]:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 80
    connection = HTTPConnection(host, port)
    connection.sock = deadline.connect(host, port)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer: HTTPResponse = connection.getresponse()
        body = answer.read(_MAX_BYTES + 1)
    finally:
        connection.close()
    if deadline.is_over:  # what looks like the end of an answer without a length is that of the time
        raise TimeoutError
    if len(body) > _MAX_BYTES or answer.length:
        msg = f"{len(body)} bytes, wanted all of at most {_MAX_BYTES}"
        raise ValueError(msg)
    return answer.status, body


def read_series(text: str) -> dict[str, list[Sample]]:
    """Read a metrics page; samples that are not finite numbers say nothing and are left out.

    Raises
    ------
    ValueError
        It is none.
    """
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if math.isfinite(one.value):
                found.setdefault(one.name, []).append(Sample(one.labels, one.value))
    return found


def explain_health(health: Mapping[str, Any]) -> str:
    """Say in words what a program's ``/health`` finds wrong."""
    faults = [name.replace("_", " ") for name, value in health.items() if value is False and name != "ok"]
    for group in (value for value in health.values() if isinstance(value, dict)):
        for name, part in group.items():
            if isinstance(part, dict) and part.get("ok") is False:
                faults.append(f"{name}: {part.get('failure') or 'not working'}")
    return f"it says that it is not well: {'; '.join(faults) or 'no step for too long'}"
