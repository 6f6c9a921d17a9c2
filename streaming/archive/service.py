"""The archive as a service: the outcome topics into the tables, with upkeep, metrics and health, until told to end.

It shares nothing with SCORE but the broker. Whatever fails here is tried again, or ends this process alone; the topics
keep the outcomes meanwhile.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry

from schemas.documents import load_tables
from schemas.objectstore import local_folder
from streaming.account.archived import topics_by_table
from streaming.archive.archivemetrics import ArchiveMetrics
from streaming.archive.archiver import Archiver
from streaming.archive.lease import hold_tables
from streaming.archive.rivals import refuse_rival
from streaming.folders import check_folder
from streaming.kafka.topicids import read_topic_ids
from streaming.kafka.topics import create_topics, wanted_topics
from streaming.metrics import serve_metrics
from streaming.periodic import PeriodicTask
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_WATCH_S = 10.0
_LEASE_WAIT_S = 15.0
"""An archive whose stream was killed finishes its write before it ends."""
_SOON_S = 1.0
_HANGS = 70
"""Exit code, EX_SOFTWARE of sysexits.h."""


@dataclass(frozen=True)
class ArchiveState:
    """What the caller may show once the archive works.

    Parameters
    ----------
    metrics_url : str
        Address of its Prometheus page.
    """

    metrics_url: str


def run_archive(
    settings: StreamSettings,
    *,
    available_now: bool = False,
    accept_loss: bool = False,
    from_beginning: bool = False,
    ended: threading.Event | None = None,
    on_ready: Callable[[ArchiveState], None] = lambda state: None,
    note_turn: Callable[[], None] = lambda: None,
    on_begun: Callable[[], None] = lambda: None,
) -> None:
    """Bring outcomes into the tables until told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    available_now : bool
        Write what the topics have now, then return. No metrics are served.
    accept_loss : bool
        Go on behind outcomes that retention removed before they were archived, and in topics that were made anew.
    from_beginning : bool
        Read all that the topics have; no row is added twice.
    ended : threading.Event, optional
        Set it to end the archive: the running write is finished.
    on_ready : callable
        Called once each table has had a turn.
    note_turn : callable
        Called after each step, to show a supervisor that it goes on.
    on_begun : callable
        Called once every table has its places: what was agreed to is done.

    Raises
    ------
    TableClaimedError
        Another archive fills the tables.
    DataLossError
        Outcomes are gone that are not in the tables.
    JobError
        Something is missing or wrong before the start, or kept failing.
    """
    ended = ended or threading.Event()
    topics = topics_by_table(settings.kafka).values()
    create_topics(
        settings.kafka, {name: config for name, config in wanted_topics(settings.kafka).items() if name in topics}
    )
    local = local_folder(settings.tables_folder)
    if local is not None:
        check_folder(local, "XRAY_ARCHIVE__FOLDER")
    with ExitStack() as stack:
        held = stack.enter_context(hold_tables(settings.tables_folder, wait_s=_LEASE_WAIT_S))
        run = _Run(settings, ended, note_turn, available_now=available_now)
        run.watch(stack)
        url = "" if available_now else run.serve(stack)
        if not held:
            run.refuse_rival()
        run.fill(
            accept_loss=accept_loss,
            from_beginning=from_beginning,
            on_ready=lambda: on_ready(ArchiveState(url)),
            on_begun=on_begun,
        )


class _Run:
    """One run: its archivers, its watch over the topics, and what `/health` says."""

    def __init__(
        self, settings: StreamSettings, ended: threading.Event, note_turn: Callable[[], None], *, available_now: bool
    ) -> None:
        self._settings = settings
        self._ended = ended
        self._note_turn = note_turn
        self._available_now = available_now
        self._archivers: list[Archiver] = []
        self._registry = CollectorRegistry()
        self._metrics = ArchiveMetrics(self._registry, load_tables())
        self._stepped_at = time.monotonic()
        self._is_resting = False

    def watch(self, stack: ExitStack) -> None:
        """Watch over what may hang, and over topics."""
        watchdog = PeriodicTask("archive-watchdog", self._end_what_hangs, 1.0, failure="the watchdog failed")
        # A topic that is made anew while nothing is published shows nowhere else.
        topics = PeriodicTask(
            "topic-watch", self._check_topics, _WATCH_S, failure="topics could not be compared", level=logging.INFO
        )
        for task in (watchdog, topics):
            stack.callback(task.stop)
            task.start()

    def serve(self, stack: ExitStack) -> str:
        """Serve metrics and health; give the page's address."""
        archive = self._settings.archive
        url, stop = serve_metrics(
            self._registry,
            self._settings.metrics.host,
            archive.metrics_port,
            setting="XRAY_ARCHIVE__METRICS_PORT",
            health=self._describe_health,
        )
        stack.callback(stop)
        return url

    def refuse_rival(self) -> None:
        """Refuse to start where another archive writes to the tables, which nothing locks."""
        refuse_rival(self._settings, self._ended, self._note_step)

    def fill(
        self, *, accept_loss: bool, from_beginning: bool, on_ready: Callable[[], None], on_begun: Callable[[], None]
    ) -> None:
        """Give each table its turn, again and again."""
        settings, tables, writer = self._settings, load_tables(), str(uuid.uuid4())
        self._archivers = [
            Archiver(
                settings,
                tables[name],
                topic,
                writer,
                self._metrics,
                accept_loss=accept_loss,
                from_beginning=from_beginning,
                note_step=self._note_step,
            )
            for name, topic in topics_by_table(settings.kafka).items()
        ]
        is_ready = has_begun = False
        try:
            while not self._ended.is_set():
                more = self._give_turns()
                if not is_ready:
                    is_ready = True
                    on_ready()
                if not has_begun and all(archiver.has_begun for archiver in self._archivers):
                    has_begun = True
                    on_begun()
                if self._is_done():
                    for archiver in self._archivers:
                        archiver.tidy()
                    return
                if not more:
                    self._rest()
        finally:
            for archiver in self._archivers:
                archiver.close()

    def _give_turns(self) -> bool:
        more = False
        for archiver in self._archivers:
            if not self._ended.is_set():
                more = archiver.turn() or more
                self._note_step()
        self._metrics.record_turn(ok=all(archiver.is_working for archiver in self._archivers))
        return more

    def _is_done(self) -> bool:
        """Tell whether there is nothing more to do.

        A table that has lost outcomes waits for somebody to say so; the others go on without it for as long as there is
        something to do for them.
        """
        lost = [archiver.lost for archiver in self._archivers if archiver.lost is not None]
        drained = self._available_now and all(one.has_drained or one.lost for one in self._archivers)
        if lost and (drained or len(lost) == len(self._archivers)):
            raise lost[0]
        return drained

    def _rest(self) -> None:
        trigger_s = self._settings.archive.trigger_s
        self._is_resting = True
        self._ended.wait(min(trigger_s, _SOON_S) if self._available_now else trigger_s)
        self._is_resting = False
        self._note_step()

    def _note_step(self) -> None:
        self._stepped_at = time.monotonic()
        self._note_turn()

    def _check_topics(self) -> None:
        ids = read_topic_ids(self._settings.kafka, list(topics_by_table(self._settings.kafka).values()))
        for archiver in self._archivers:
            archiver.check_topic(ids)

    def _hangs(self) -> bool:
        return not self._is_resting and time.monotonic() - self._stepped_at > self._settings.archive.deadline_s

    def _end_what_hangs(self) -> None:
        if self._hangs():
            log.critical(
                "no step of the archive has ended for %.0f s: it is ended, to be started again",
                self._settings.archive.deadline_s,
            )
            # Whatever hangs may hold a lock that an orderly end waits for. A commit lands whole or not at all.
            os._exit(_HANGS)

    def _describe_health(self) -> dict[str, Any]:
        tables = {one.name: {"ok": one.is_working, "lag": one.lag} for one in self._archivers}
        ok = bool(tables) and not self._hangs() and all(table["ok"] for table in tables.values())
        return {"ok": ok, "tables": tables, "seconds_since_step": round(time.monotonic() - self._stepped_at, 1)}


def bound_threads() -> None:
    """Let Arrow use one core; what delta-rs uses, its environment says when it is started."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
