"""How the product is: every part by its own metrics page, each asked by a thread of its own.

A part that hangs or is absent delays nobody but itself. What is shown of one that does not answer any more is its
state, not its last figures.
"""

import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from streaming.periodic import PeriodicTask
from streaming.scraping import ALERTS, ARCHIVE, GATEWAY, REPORTS, STREAM, Answer, PartState, ask_part

AUDIT, DRIFT = "audit", "drift"

EVERY_S = 2.0
HISTORY_S = 1800.0

_RATE_S = 10.0
_SPAN_S = 300.0
_STALE_S = 3 * EVERY_S + 2.0
_CANARY_S = 120.0
"""A canary comes every twenty seconds by default, every fifty at most."""
_NOT_ASKED = Answer(PartState.UNKNOWN, "not asked yet", 0.0, 0.0)


@dataclass(frozen=True)
class Part:
    """One part of the product.

    Parameters
    ----------
    name : str
        ``stream``, ``archive``, ``gateway``, ``alerts``, ``reports``; ``audit`` and ``drift`` are the stream's account
        and measurement.
    state : PartState
        See there.
    why : str
        Why it is not up; of ``audit`` and ``drift`` what they say.
    address : str
        Where it was asked; empty where nothing says where it is.
    asked_at : float
        Unix time in seconds; 0 before the first time.
    figures : Mapping of str to float
        Of its own, by name.
    """

    name: str
    state: PartState
    why: str = ""
    address: str = ""
    asked_at: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantiles:
    """Seconds, estimated from a histogram: within a bucket evenly spread; None where nothing was counted."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """How the product is now; figures are None where nobody tells them.

    Parameters
    ----------
    at : float
        Unix time in seconds.
    parts : tuple of Part
        Every part, in the order in which an image meets them.
    images_per_s : float or None
        Of the last ten seconds.
    lag : int or None
        Images that are published and not read.
    latency : Quantiles
        From the image's Kafka timestamp to its score, of the last five minutes.
    dead_letters : Mapping of str to int
        By reason, since the stream's start; reasons that none had are left out.
    classes : Mapping of str to int
        Predictions by what the model said, of the last five minutes.
    flags : Mapping of str to int
        Flagged predictions by flag, of the last five minutes.
    model : Mapping of str to str
        ``name``, ``version``, ``sha256`` of the one in service; empty where nobody tells.
    challenger : str
        Version; empty where there is none.
    """

    at: float
    parts: tuple[Part, ...]
    images_per_s: float | None = None
    lag: int | None = None
    latency: Quantiles = Quantiles()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    challenger: str = ""

    def find_part(self, name: str) -> Part:
        """Find a part by its name."""
        return next(part for part in self.parts if part.name == name)


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of the history, for a chart; None where nobody told.

    Parameters
    ----------
    at : float
        Unix time in seconds.
    images_per_s, dead_letters_per_s : float or None
        Of the ten seconds before.
    lag : int or None
        See `Snapshot`.
    """

    at: float
    images_per_s: float | None
    dead_letters_per_s: float | None
    lag: int | None


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is subtracted from a later reading."""

    at: float
    consumed: float
    dead: float
    waited: Mapping[float, float]
    classes: Mapping[str, float]
    flags: Mapping[str, float]


class Vitals:
    """Asks the parts again and again; a context manager.

    Parameters
    ----------
    addresses : Mapping of str to str
        ``http://HOST:PORT`` of the parts' metrics pages; parts that are left out are unknown.
    images_topic : str
        Whose lag is shown.
    optional : collection of str
        Parts that an installation may do without: none of them is down before it was seen up.
    every_s : float
        Seconds between two questions to a part.
    """

    def __init__(
        self,
        addresses: Mapping[str, str],
        *,
        images_topic: str = "xray.images",
        optional: Collection[str] = (),
        every_s: float = EVERY_S,
    ) -> None:
        self._addresses = dict(addresses)
        self._unseen = set(optional)
        self._images_topic = images_topic
        self._answers: dict[str, Answer] = {}
        self._counts: deque[_Counts] = deque(maxlen=max(2, int(_SPAN_S / every_s) + 1))
        self._history: deque[Point] = deque(maxlen=int(HISTORY_S / every_s))
        self._lock = threading.Lock()
        self._tasks = [
            PeriodicTask(f"page-{name}", partial(self._ask, name), every_s, failure=f"{name} not asked", first_wait_s=0)
            for name in self._addresses
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start to ask."""
        for task in self._tasks:
            task.start()

    def stop(self) -> None:
        """Ask no more; questions that are under way end by their deadline."""
        for task in self._tasks:
            task.stop()

    def list_history(self) -> list[Point]:
        """List the last half hour, oldest first."""
        with self._lock:
            return list(self._history)

    def take_snapshot(self) -> Snapshot:
        """Say how the product is, as far as the last answers tell; asks nobody."""
        now = time.time()
        with self._lock:
            answers = {name: self._answers.get(name, _NOT_ASKED) for name in self._addresses}
            counts = list(self._counts)
        answers = {name: _forget_old(answer, now) for name, answer in answers.items()}
        parts = tuple(self._describe_part(name, answers) for name in (GATEWAY, STREAM, ARCHIVE, ALERTS, REPORTS))
        stream = answers.get(STREAM, _NOT_ASKED)
        parts += (_describe_audit(stream), _describe_drift(stream))
        if not stream.series:
            return Snapshot(now, parts)
        since = _earlier(counts, _SPAN_S)
        return Snapshot(
            now,
            parts,
            images_per_s=_rate(counts, "consumed"),
            lag=_lag(stream, self._images_topic),
            latency=_quantiles(counts, since),
            dead_letters=_by_label(stream, "xray_dead_letters_total", "reason"),
            classes=_grown(counts[-1].classes, since.classes) if since else {},
            flags=_grown(counts[-1].flags, since.flags) if since else {},
            model=next((one.labels for one in stream.select("xray_model_info")), {}),
            challenger=next((one.labels["version"] for one in stream.select("xray_challenger_info")), ""),
        )

    def _ask(self, name: str) -> None:
        answer = ask_part(self._addresses[name], has_health=name != STREAM)
        if name == STREAM and answer.state is PartState.UP and not answer.select("xray_query_up", query="score"):
            why = f"what answers at {self._addresses[name]} is not the stream"
            answer = Answer(PartState.NOT_READY, why, answer.asked_at, answer.took_s)
        with self._lock:
            self._answers[name] = answer
            if answer.state is not PartState.DOWN:
                self._unseen.discard(name)
            if name == STREAM:
                self._note_stream(answer)

    def _note_stream(self, answer: Answer) -> None:
        if answer.series:
            self._counts.append(_count(answer))
        counts = list(self._counts) if answer.series else []
        point = Point(
            answer.asked_at, _rate(counts, "consumed"), _rate(counts, "dead"), _lag(answer, self._images_topic)
        )
        self._history.append(point)

    def _describe_part(self, name: str, answers: Mapping[str, Answer]) -> Part:
        address = self._addresses.get(name, "")
        if not address:
            return Part(name, PartState.UNKNOWN, "no setting says where its metrics are")
        answer = answers[name]
        state, why = _judge_stream(answer) if name == STREAM else (answer.state, answer.why)
        if state is PartState.DOWN and name in self._unseen:
            state, why = PartState.NOT_SEEN, f"nothing at {address} since the page was started"
        return Part(name, state, why, address, answer.asked_at, _figures(name, answer))


def _forget_old(answer: Answer, now: float) -> Answer:
    """Take an answer that is older than the next one should be for none: the thread itself hangs, or the clock ran."""
    if answer.asked_at and now - answer.asked_at - answer.took_s > _STALE_S:
        return Answer(PartState.UNKNOWN, "not asked for some time", answer.asked_at, answer.took_s)
    return answer


def _judge_stream(answer: Answer) -> tuple[PartState, str]:
    """Judge SCORE, which has no health page."""
    if answer.state is not PartState.UP:
        return answer.state, answer.why
    last = answer.total("xray_last_canary_timestamp_seconds") or answer.asked_at
    faults = {
        "the query score does not run: it is tried again, or about to start": not answer.total(
            "xray_query_up", query="score"
        ),
        "the archive that the stream starts does not run": answer.total("xray_query_up", query="archive") == 0,
        f"the canary has not come through for {answer.asked_at - last:.0f} s": answer.asked_at - last > _CANARY_S,
        "the promoted model cannot be served, and the one before it still is": bool(answer.total("xray_model_waiting")),
    }
    found = next((why for why, holds in faults.items() if holds), "")
    return (PartState.NOT_READY if found else PartState.UP), found


def _describe_audit(stream: Answer) -> Part:
    at = stream.total("xray_last_audit_timestamp_seconds")
    if not at:
        return Part(AUDIT, PartState.UNKNOWN, "the stream has not drawn up an account yet")
    unaccounted = stream.total("xray_unaccounted_records") or 0.0
    faults = stream.total("xray_table_fault_rows") or 0.0
    figures = {"at": at, "unaccounted": unaccounted, "table_faults": faults}
    if unaccounted or faults:
        why = f"{unaccounted:.0f} images without exactly one outcome, {faults:.0f} rows missing or twice in the tables"
        return Part(AUDIT, PartState.NOT_READY, f"{why}: see 'xray audit'", figures=figures)
    return Part(AUDIT, PartState.UP, "every image has exactly one outcome", figures=figures)


def _describe_drift(stream: Answer) -> Part:
    at = stream.total("xray_last_monitor_timestamp_seconds")
    if not at:
        return Part(DRIFT, PartState.UNKNOWN, "not measured yet, or the extra 'train' is not installed at the stream")
    names = ("xray_drift_score_psi", "xray_drift_score_ks", "xray_drift_vector_energy", "xray_drift_images")
    shadow = ("xray_shadow_images", "xray_shadow_agreement_ratio", "xray_shadow_score_difference")
    figures = {"at": at} | {
        name.removeprefix("xray_").removeprefix("drift_"): value
        for name in (*names, *shadow)
        if (value := stream.total(name)) is not None
    }
    if stream.total("xray_retraining_called_for"):
        return Part(
            DRIFT, PartState.NOT_READY, "the last week's images are unlike those of the training", figures=figures
        )
    if "images" not in figures:
        return Part(DRIFT, PartState.UNKNOWN, "too few images to tell", figures=figures)
    return Part(DRIFT, PartState.UP, "no drift that calls for retraining", figures=figures)


_FIGURES: dict[str, Sequence[str]] = {
    STREAM: ("xray_images_consumed_total", "xray_query_failures_total", "xray_model_reloads_total"),
    ARCHIVE: ("xray_archive_lag_records", "xray_archived_rows_total", "xray_archive_oldest_waiting_seconds"),
    GATEWAY: (
        "xray_gateway_objects_total",
        "xray_gateway_spool_objects",
        "xray_gateway_spool_set_aside_objects",
        "xray_gateway_connections",
    ),
    ALERTS: (
        "xray_alerts_open_conditions",
        "xray_alerts_waiting",
        "xray_alerts_undelivered",
        "xray_alerts_lag_records",
    ),
    REPORTS: ("xray_reports_open", "xray_reports_given_up"),
}


def _figures(name: str, answer: Answer) -> dict[str, float]:
    found = {one: answer.total(one) for one in _FIGURES[name]}
    return {one.removeprefix("xray_"): value for one, value in found.items() if value is not None}


def _count(answer: Answer) -> _Counts:
    waited: dict[float, float] = {}
    for one in answer.select("xray_end_to_end_seconds_bucket"):
        waited[float(one.labels["le"])] = one.value
    return _Counts(
        at=answer.asked_at,
        consumed=answer.total("xray_images_consumed_total") or 0.0,
        dead=answer.total("xray_dead_letters_total") or 0.0,
        waited=waited,
        classes=_sums(answer, "xray_predictions_total", "label"),
        flags=_sums(answer, "xray_flagged_predictions_total", "flag"),
    )


def _sums(answer: Answer, name: str, label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for one in answer.select(name):
        sums[one.labels[label]] = sums.get(one.labels[label], 0.0) + one.value
    return sums


def _by_label(answer: Answer, name: str, label: str) -> dict[str, int]:
    found = {key: int(value) for key, value in _sums(answer, name, label).items() if value}
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _lag(answer: Answer, images_topic: str) -> int | None:
    lag = answer.total("xray_lag_images", topic=images_topic)
    return None if lag is None else int(lag)


def _earlier(counts: Sequence[_Counts], span_s: float) -> _Counts | None:
    """Give the oldest reading of a span before the last one; none of a stream that was started again since."""
    found: _Counts | None = None
    for one in reversed(counts[:-1]):
        if counts[-1].at - one.at > span_s or one.consumed > counts[-1].consumed:
            break
        found = one
    return found


def _rate(counts: Sequence[_Counts], what: str) -> float | None:
    since = _earlier(counts, _RATE_S)
    if since is None or counts[-1].at <= since.at:
        return None
    grown: Any = getattr(counts[-1], what) - getattr(since, what)
    return float(grown) / (counts[-1].at - since.at)


def _grown(now: Mapping[str, float], then: Mapping[str, float]) -> dict[str, int]:
    return {key: int(value - then.get(key, 0.0)) for key, value in now.items()}


def _quantiles(counts: Sequence[_Counts], since: _Counts | None) -> Quantiles:
    if since is None:
        return Quantiles()
    grown = [(bound, value - since.waited.get(bound, 0.0)) for bound, value in sorted(counts[-1].waited.items())]
    if not grown or not grown[-1][1]:
        return Quantiles()
    p50, p90, p95, p99 = (_quantile(grown, share) for share in (0.5, 0.9, 0.95, 0.99))
    return Quantiles(p50, p90, p95, p99)


def _quantile(cumulative: Sequence[tuple[float, float]], share: float) -> float:
    """Estimate as Prometheus' ``histogram_quantile`` does: above the last bound, that bound."""
    rank = share * cumulative[-1][1]
    low = below = 0.0
    for bound, count in cumulative:
        if count >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low
