"""Reports as a service: each target with a courier of its own, metrics and health, until told to end."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from schemas.errors import JobError, SettingsError
from streaming.kafka.groups import await_alone
from streaming.kafka.topics import create_topics, label_topics, wanted_topics
from streaming.metrics import serve_metrics
from streaming.reports.courier import Courier, name_group
from streaming.reports.inbox import SESSION_S
from streaming.reports.ledger import find_left_behind, open_ledger
from streaming.reports.reporter import Reporter, find_crosswalk
from streaming.reports.reportmetrics import ReportMetrics
from streaming.reports.target import Address, read_address
from streaming.reports.targets import open_target
from streaming.settings import StreamSettings

_LOOK_S = 0.05
_WATCH_S = 1.0
_END_S = 5.0
_GONE_WITHIN_S = SESSION_S + 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportsState:
    """What the caller may show once reports are delivered.

    Parameters
    ----------
    targets : tuple of str
        Names of the targets, in the order in which they were given.
    metrics_url : str
        Address of the Prometheus page.
    reopened : int
        Reports that had been given up and are sent again.
    """

    targets: tuple[str, ...]
    metrics_url: str
    reopened: int


def run_reports(
    settings: StreamSettings,
    to: Sequence[str],
    *,
    demonstration: bool = False,
    from_beginning: bool = False,
    again: bool = False,
    ended: threading.Event | None = None,
    on_ready: Callable[[ReportsState], None] = lambda state: None,
) -> None:
    """Deliver reports until told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    to : sequence of str
        Targets, as `read_address` reads them.
    demonstration : bool
        Whether predictions of demonstration models are reported too.
    from_beginning : bool
        Whether a target that is new begins with the oldest prediction, instead of the next one.
    again : bool
        Send once more what was given up.
    ended : threading.Event, optional
        Set it to end: the report that is under way is finished.
    on_ready : callable
        Called once every target has its share of the topics: what is published from then on is reported.

    Raises
    ------
    SettingsError
        A target is none, there is no crosswalk, another process delivers to a target, here or elsewhere, or a port is
        taken.
    BrokerError
        Kafka cannot be reached.
    """
    ended = ended or threading.Event()
    warnings.simplefilter("ignore")  # those of pydicom quote what they write, and so a patient's name
    addresses = name_targets(to)
    find_crosswalk(settings)
    kafka = settings.kafka
    known = wanted_topics(kafka) | label_topics(kafka)
    create_topics(kafka, {name: known[name] for name in (kafka.predictions_topic, kafka.labels_topic)})
    metrics = ReportMetrics(CollectorRegistry(), addresses)
    files = {address: settings.reporting_folder / f"{name_group(address)}.db" for address in addresses.values()}
    with ExitStack() as stack:
        reopened = 0
        couriers = []
        for name, address in addresses.items():
            ledger = stack.enter_context(open_ledger(files[address]))
            ledger.note_target(str(address))
            _check_alone(settings, name, name_group(address), ended)
            reopened += ledger.reopen() if again else 0
            reporter = Reporter(settings, demonstration=demonstration)
            parts = (open_target(address, settings.reports), ledger, reporter, metrics)
            couriers.append(Courier(name, address, settings, parts, ended, from_beginning=from_beginning))
        left_behind = find_left_behind(settings.reporting_folder, files.values())
        for target, n in left_behind.items():
            log.warning("%d reports wait for %s, which is not among --to; nobody sends them", n, target)
        metrics.without_target.set(sum(left_behind.values()))
        url, stop = serve_metrics(
            metrics.registry,
            settings.metrics.host,
            settings.reports.metrics_port,
            setting="XRAY_REPORTS__METRICS_PORT",
            health=lambda: describe_health(couriers),
        )
        stack.callback(stop)
        end_within_s = 2 * settings.reports.answer_s + _END_S  # the report under way, and to end an association
        _run_all(couriers, ended, lambda: on_ready(ReportsState(tuple(addresses), url, reopened)), end_within_s)


def _check_alone(settings: StreamSettings, name: str, group: str, ended: threading.Event) -> None:
    """Refuse to share a target's group: of two one would read a finding, and the other have the report that it amends.

    Raises
    ------
    SettingsError
        Another process is in it.
    """
    if not await_alone(settings.kafka, group, within_s=_GONE_WITHIN_S, ended=ended):
        msg = (
            f"another 'xray results run' delivers to {name}, from another XRAY_HOME or machine: each would have a part "
            f"of the reports (consumer group {group}). End it first"
        )
        raise SettingsError(msg)


def name_targets(to: Sequence[str]) -> dict[str, Address]:
    """Give each target a name: its kind, with a number behind the second one of a kind.

    Raises
    ------
    SettingsError
        One is none, is there twice, or there is none at all.
    """
    named: dict[str, Address] = {}
    for text in to:
        address = read_address(text)
        if address in named.values():
            msg = f"--to: {text!r} is there twice"
            raise SettingsError(msg)
        n_same = sum(one.kind is address.kind for one in named.values())
        named[f"{address.kind}-{n_same + 1}" if n_same else str(address.kind)] = address
    if not named:
        msg = "--to is wanted: where reports go"
        raise SettingsError(msg)
    return named


def describe_health(couriers: Sequence[Courier]) -> dict[str, Any]:
    """Give what ``/health`` says: whether every target takes reports."""
    targets = {courier.name: courier.describe() for courier in couriers}
    return {"ok": all(target["ok"] for target in targets.values()), "targets": targets}


def _run_all(
    couriers: Sequence[Courier], ended: threading.Event, on_ready: Callable[[], None], end_within_s: float
) -> None:
    # Daemons: a target that hangs without an end, as a folder can, must not hold the program's. It is sent again.
    threads = [
        threading.Thread(target=courier.run, name=f"courier-{courier.name}", daemon=True) for courier in couriers
    ]
    try:
        for thread in threads:
            thread.start()
        while not (ended.is_set() or all(courier.is_ready for courier in couriers)):
            ended.wait(_LOOK_S)
        if not ended.is_set():
            on_ready()
        while not ended.wait(_WATCH_S):
            if not all(thread.is_alive() for thread in threads):
                msg = "a courier has ended by itself, which is a fault of this program; its trace is in the log"
                raise JobError(msg)
    finally:
        ended.set()
        deadline = time.monotonic() + end_within_s
        for courier, thread in zip(couriers, threads, strict=True):
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0.0))
            if thread.is_alive():
                log.warning("%s: it does not end; the report under way is sent again later", courier.name)
