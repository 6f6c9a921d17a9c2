"""Alarms as a service: outcomes in, alarms to every sink, with metrics and health, until told to end.

The loop reads, writes into the ledger what follows, and commits the offsets behind it. Each sink has a thread of its
own, which the ledger alone connects with the loop.
"""

import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kafka.errors import FencedInstanceIdError, KafkaError
from prometheus_client import CollectorRegistry

from schemas.errors import BrokerError, SettingsError
from schemas.folders import make_folder
from schemas.registry import CHALLENGER_FILE, CHAMPION_FILE, read_aliases
from streaming.alerts.alarm import Sink
from streaming.alerts.alertmetrics import AlertMetrics
from streaming.alerts.dispatcher import Dispatcher
from streaming.alerts.evaluator import Evaluator
from streaming.alerts.ledger import LEDGER_FILE, UNDELIVERED, AlarmKind, Ledger
from streaming.alerts.matching import NEVER, Place
from streaming.alerts.outcomereader import SESSION_S, OutcomeReader, begin_group
from streaming.alerts.rules import Rules
from streaming.folders import check_folder, make_scratch
from streaming.kafka.groups import await_alone
from streaming.kafka.topics import create_topics, receipt_topics, wanted_topics
from streaming.metrics import serve_metrics
from streaming.periodic import PeriodicTask
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_SETTING = "XRAY_ALERTS__FOLDER"
_LOCK = "lock"
_BEGUN = "begun"
_MEMBER = "member"
_POLL_S = 0.1
_TICK_S = 1.0
_AGAIN_S = 5.0
_REFRESH_S = 5.0
_REMOVE_S = 600.0
_STALE_S = 60.0
_GONE_WITHIN_S = SESSION_S + 10.0
"""A process that was killed is in the group for as long as its session, where this one does not take its place."""
_STUCK_S = 300.0
"""Far longer than any sink's own time-out."""


@dataclass(frozen=True)
class AlertsState:
    """What the caller may show once outcomes are read.

    Parameters
    ----------
    metrics_url : str
        Address of its Prometheus page.
    sinks : tuple of str
        Names of the sinks.
    """

    metrics_url: str
    sinks: tuple[str, ...]


def run_alerts(
    settings: StreamSettings,
    rules: Rules,
    sinks: Mapping[str, Sink],
    *,
    ended: threading.Event | None = None,
    on_ready: Callable[[AlertsState], None] = lambda state: None,
) -> None:
    """Deliver alarms until told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    rules : Rules
        What makes an alarm.
    sinks : Mapping of str to Sink
        Where they go.
    ended : threading.Event, optional
        Set it to end: an attempt that is under way is finished.
    on_ready : callable
        Called once the group is joined.

    Raises
    ------
    SettingsError
        The folder cannot be used, another process has it, the port is taken, or another process reads in the group.
    BrokerError
        No broker answers at the start; later ones are waited for.
    JobError
        The ledger is damaged.
    """
    ended = ended or threading.Event()
    kafka = settings.kafka
    wanted = wanted_topics(kafka) | receipt_topics(kafka)
    names = (kafka.predictions_topic, kafka.deadletters_topic, kafka.receipts_topic)
    create_topics(kafka, {name: wanted[name] for name in names})
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(settings.alerts_folder))
        run = _Run(settings, rules, sinks, ledger, ended)
        url = run.serve(stack)
        run.enter()
        run.begin()
        run.deliver(stack)
        run.read(lambda: on_ready(AlertsState(url, tuple(sinks))))


@contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """Open the ledger of a folder, for one process at a time; its folder is made where it is missing.

    Raises
    ------
    SettingsError
        The folder cannot be used, or another process has it.
    JobError
        The ledger is damaged.
    """
    with suppress(OSError):  # the check says what is wrong
        make_folder(folder)
    check_folder(folder, _SETTING)
    make_scratch(folder)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(lock)
        msg = f"{_SETTING}: another 'xray alerts run' uses {folder}; each needs a folder of its own"
        raise SettingsError(msg) from exc
    try:
        ledger = Ledger(folder / LEDGER_FILE)
        try:
            yield ledger
        finally:
            ledger.close()
    finally:
        os.close(lock)


class _Run:
    """One run: its loop, its dispatchers, and what `/health` says."""

    def __init__(
        self,
        settings: StreamSettings,
        rules: Rules,
        sinks: Mapping[str, Sink],
        ledger: Ledger,
        ended: threading.Event,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._ledger = ledger
        self._ended = ended
        self._registry = CollectorRegistry()
        self._metrics = AlertMetrics(self._registry, rules)
        self._dispatchers = [Dispatcher(sink, ledger, self._metrics) for sink in sinks.values()]
        self._place = Place(settings.kafka.images_topic)
        self._evaluator = Evaluator(rules, ledger, lambda: self._place)
        self._turned_at = time.monotonic()
        self._ticked_at = 0.0
        self._is_reading = False
        self._is_current = False
        self._may_judge = True

    def serve(self, stack: ExitStack) -> str:
        """Serve metrics and health; give the page's address."""
        url, stop = serve_metrics(
            self._registry,
            self._settings.metrics.host,
            self._settings.alerts.metrics_port,
            setting="XRAY_ALERTS__METRICS_PORT",
            health=self._describe_health,
        )
        stack.callback(stop)
        return url

    def enter(self) -> None:
        """Refuse to share a group: each of two would have half of the outcomes, and so of what was seen before."""
        group = self._settings.alerts.group
        member = self._find_member_name()
        if not await_alone(self._settings.kafka, group, within_s=_GONE_WITHIN_S, ended=self._ended, member=member):
            msg = (
                f"another 'xray alerts run' reads in the group {group}, from another folder or machine: each would get "
                "a part of the outcomes. End it, or give this one an XRAY_ALERTS__GROUP of its own"
            )
            raise SettingsError(msg)

    def begin(self) -> None:
        """Give a group that has never read its place."""
        if self._ledger.read_note(_BEGUN) is not None:
            return
        since = datetime.now(UTC) - timedelta(seconds=self._rules.longest_max_age_s)
        kafka, group = self._settings.kafka, self._settings.alerts.group
        try:
            begin_group(kafka, group, (kafka.predictions_topic, kafka.deadletters_topic, kafka.receipts_topic), since)
        except KafkaError as exc:
            msg = f"the group {group} cannot be given its place: {exc}"
            raise BrokerError(msg) from exc
        with self._ledger.transaction():
            self._ledger.write_note(_BEGUN, since.isoformat())

    def deliver(self, stack: ExitStack) -> None:
        """Start a thread for each sink, and what looks after the ledger."""
        for name, n in self._note_sinks().items():
            log.warning(
                "%d alarms wait for the sink %s, which the rules do not name any more; 'xray alerts list --undelivered "
                "--sink %s' shows them, and they are delivered once there is a sink of that name",
                n,
                name,
                name,
            )
        self._refresh()
        refresh = PeriodicTask("alerts-refresh", self._refresh, _REFRESH_S, failure="figures could not be read")
        removal = PeriodicTask(
            "alerts-removal", self._remove_old, _REMOVE_S, failure="old alarms could not be removed", first_wait_s=10.0
        )
        for task in (refresh, removal):
            stack.callback(task.stop)
            task.start()
        # Told all at once and then waited for: a sink that is slow to end does not add to the others.
        for dispatcher in self._dispatchers:
            stack.callback(dispatcher.join)
            dispatcher.start()
        stack.callback(self._stop_dispatchers)

    def _note_sinks(self) -> dict[str, int]:
        return self._ledger.note_sinks([one.name for one in self._dispatchers], time.time())

    def _stop_dispatchers(self) -> None:
        for dispatcher in self._dispatchers:
            dispatcher.stop()

    def read(self, on_ready: Callable[[], None]) -> None:
        """Read outcomes, until told to end; a broker that is away is waited for."""
        member = self._find_member_name()
        while not self._ended.is_set():
            try:
                reader = OutcomeReader(self._settings.kafka, self._settings.alerts.group, member)
            except KafkaError as exc:
                self._pause(exc)
                continue
            try:
                while not self._ended.is_set():
                    self._take_turn(reader)
                    if not self._is_reading and reader.has_partitions:
                        self._is_reading = True
                        on_ready()
                        on_ready = _ignore
                reader.commit(at_end=True)
            except FencedInstanceIdError as exc:
                folder = self._settings.alerts_folder
                msg = (
                    f"another 'xray alerts run' has taken this one's place in the group: it has a copy of {folder}. "
                    "Remove one of the two"
                )
                raise SettingsError(msg) from exc
            except KafkaError as exc:
                self._pause(exc)
            finally:
                reader.close()

    def _find_member_name(self) -> str:
        """Give the name of this ledger's member of the group, which the lock on the folder keeps single."""
        name = self._ledger.read_note(_MEMBER)
        if name is None:
            name = str(uuid.uuid4())
            with self._ledger.transaction():
                self._ledger.write_note(_MEMBER, name)
        return name

    def _pause(self, exc: KafkaError) -> None:
        log.warning("outcomes cannot be read, tried again in %.0f s: %s", _AGAIN_S, exc)
        self._is_reading = False
        self._ended.wait(_AGAIN_S)

    def _take_turn(self, reader: OutcomeReader) -> None:
        events, n_foreign = reader.poll(_POLL_S)
        now = datetime.now(UTC)
        alarms = 0
        if events:
            with self._ledger.transaction():
                alarms = sum(self._take(event, now) for event in events)
        # Behind the ledger: what is committed is on the disk.
        reader.commit()
        for kind in {event.kind for event in events}:
            self._metrics.events.labels(kind).inc(sum(event.kind is kind for event in events))
        self._metrics.events.labels("foreign").inc(n_foreign)
        if time.monotonic() - self._ticked_at >= _TICK_S:
            self._tick(reader, now)
            alarms += 1
        if alarms:
            for dispatcher in self._dispatchers:
                dispatcher.wake()
        self._turned_at = time.monotonic()
        self._metrics.last_turn.set_to_current_time()

    def _take(self, event: Any, now: datetime) -> bool:
        verdicts = self._evaluator.take(event, now)
        for verdict in verdicts:
            if verdict.alarm is not None:
                self._metrics.alarms.labels(verdict.rule).inc()
        for why in {verdict.why for verdict in verdicts} & set(NEVER):
            self._metrics.barred.labels(why).inc()
        return any(verdict.alarm is not None for verdict in verdicts)

    def _tick(self, reader: OutcomeReader, now: datetime) -> None:
        self._ticked_at = time.monotonic()
        reader.look_up_ends()
        self._may_judge = reader.holds_all
        read_until = reader.read_until if self._may_judge else None
        self._is_current = read_until is not None
        with self._ledger.transaction():
            self._evaluator.tick(now, read_until=read_until)
        self._metrics.is_current.set(int(self._is_current))
        lag = reader.read_lag()
        for topic in reader.topics:
            self._metrics.lag.labels(topic).set(sum(one for (name, _), one in lag.items() if name == topic))

    def _refresh(self) -> None:
        aliases = read_aliases(self._settings.models_folder)
        challenger = aliases.get(CHALLENGER_FILE)
        self._place = Place(
            self._settings.kafka.images_topic, None if challenger == aliases.get(CHAMPION_FILE) else challenger
        )
        is_open = [one.alarm.rule for one in self._ledger.list_unsettled() if one.kind is AlarmKind.CONDITION]
        self._metrics.note_conditions(is_open)
        self._note_sinks()  # that a condition is over goes to the sinks that were told of it
        names = [dispatcher.name for dispatcher in self._dispatchers]
        self._metrics.note_deliveries(names, self._ledger.count_deliveries(), self._ledger.read_oldest_waiting())

    def _remove_old(self) -> None:
        while self._ledger.remove_old(time.time()) and not self._ended.is_set():
            pass

    def _describe_health(self) -> dict[str, Any]:
        disabled, counts = self._ledger.read_disabled(), self._ledger.count_deliveries()
        sinks = {one.name: self._describe_sink(one, disabled, counts) for one in self._dispatchers}
        seconds = time.monotonic() - self._turned_at
        ok = self._is_reading and seconds < _STALE_S and self._may_judge and all(one["ok"] for one in sinks.values())
        return {
            "ok": ok,
            "reading": self._is_reading,
            "conditions_judged": self._is_current,
            "holds_all_partitions": self._may_judge,
            "sinks": sinks,
            "seconds_since_turn": round(seconds, 1),
        }

    def _describe_sink(
        self, dispatcher: Dispatcher, disabled: Mapping[str, str], counts: Mapping[tuple[str, str], int]
    ) -> dict[str, Any]:
        since = dispatcher.attempting_since
        is_stuck = since is not None and time.monotonic() - since > _STUCK_S
        return {
            "ok": dispatcher.is_alive
            and not is_stuck
            and dispatcher.name not in disabled
            and not dispatcher.last_failure,
            "waiting": counts.get((dispatcher.name, "waiting"), 0),
            "undelivered": sum(counts.get((dispatcher.name, one), 0) for one in UNDELIVERED),
            "failure": disabled.get(dispatcher.name) or dispatcher.last_failure,
        }


def _ignore() -> None:
    """Do nothing: it was ready before."""
