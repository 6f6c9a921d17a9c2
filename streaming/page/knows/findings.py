"""Takes findings that people enter, and publishes each as one event of the labels topic, in a thread of its own.

Once
    A finding is on the disk before it is taken, and noted as being sent, with the ends of the topic, before it is.
    After a kill or a failure the topic is read from there: what has arrived is not sent again. One case is left: a
    broker that hangs, and takes a record after it was looked for. Then the same event is there twice, with the same
    ``ce_id``, image, time and label; recording it twice changes nothing.
"""

import logging
import re
import threading
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas import envelope
from schemas.errors import BrokerError, XrayError
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.places import place_of, read_headers
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.lookup.outcome import Outcome
from streaming.periodic import first_line
from streaming.results.finding import Finding, FindingError, Progress
from streaming.results.findingsledger import FindingsLedger, now_ms, open_ledger
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_AT_ONCE = 200
_WAIT_S = 1.0
_DELIVERY_S = 15.0
_END_S = 5.0
_WHO = re.compile(r"[\w.@-][\w.@ -]{0,63}")
_REQUEST = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class FindingState:
    """What was said of an image.

    Parameters
    ----------
    current : Finding
        The last word.
    former : tuple of Finding
        What it corrects, oldest first.
    """

    current: Finding
    former: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class OutboxState:
    """How the publishing goes.

    Parameters
    ----------
    waiting : int
        Findings that are taken and not published.
    oldest_ms : int or None
        When the oldest of them was entered, Unix time in milliseconds.
    why : str
        Why they are not published; empty where nothing is wrong.
    """

    waiting: int
    oldest_ms: int | None
    why: str


class Findings:
    """The outbox of findings; a context manager.

    Parameters
    ----------
    settings : StreamSettings
        Broker and topic.
    folder : Path
        Of the ledger, of this process alone.
    """

    def __init__(self, settings: StreamSettings, folder: Path) -> None:
        self._kafka = settings.kafka
        self._folder = folder
        self._resources = ExitStack()
        self._ledger: FindingsLedger | None = None
        self._why = ""
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page-findings", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Open the ledger, and start to publish what is in it; does not wait for Kafka.

        Raises
        ------
        SettingsError
            See `streaming.results.findingsledger.open_ledger`.
        """
        self._ledger = self._resources.enter_context(open_ledger(self._folder))
        self._thread.start()

    def stop(self) -> None:
        """End; what is not published stays in the ledger for the next start.

        A broker that hangs is waited for a little. The thread closes the ledger when it ends.
        """
        self._ended.set()
        self._wake.set()
        self._thread.join(_END_S)

    def label(self, outcome: Outcome, label: str, *, who: str, request: str) -> Finding:
        """Take what a person said of an image: a confirmation, or a correction of what was said before.

        Parameters
        ----------
        outcome : Outcome
            The prediction.
        label : str
            One of its model's classes.
        who : str
            A pseudonym of 1 to 64 letters, digits, spaces and ``._@-``.
        request : str
            The browser's id of this entry, of letters, digits and ``-``: sent again, it is taken once.

        Returns
        -------
        Finding
            As it is kept, on the disk. The one before where the same person said the same last.

        Raises
        ------
        FindingError
            It cannot be taken.
        LedgerError
            The disk does not take it now.
        """
        if outcome.model is None:
            msg = f"{outcome.event_id} is a dead letter: the model said nothing that could be confirmed or corrected"
            raise FindingError(msg)
        if label not in outcome.model.labels:
            msg = f"the finding is {label!r}, wanted one of {', '.join(outcome.model.labels)}"
            raise FindingError(msg)
        if not _WHO.fullmatch(who):
            msg = "who says it is given wrong: wanted a pseudonym of 1 to 64 letters, digits, spaces and ._@-"
            raise FindingError(msg)
        if not _REQUEST.fullmatch(request):
            msg = "the entry's id is given wrong: wanted 1 to 64 letters, digits and -"
            raise FindingError(msg)
        taken = self._opened().enter(Finding(outcome.event_id, label, who, request, now_ms()))
        self._wake.set()
        return taken

    def find_state(self, event_id: str) -> FindingState | None:
        """Find what was said of an image; None where nothing was."""
        found = self._opened().list_for(event_id)
        return FindingState(found[-1], tuple(found[:-1])) if found else None

    def select_known(self, event_ids: Collection[str]) -> set[str]:
        """Select those of some images of which anything was said, e.g. to leave them out of a queue."""
        return self._opened().select_known(event_ids)

    def list_newest(self, limit: int = 50) -> list[Finding]:
        """List the findings entered last, newest first."""
        return self._opened().list_newest(limit)

    @property
    def state(self) -> OutboxState:
        """How the publishing goes."""
        waiting, oldest_ms = self._opened().count_open()
        return OutboxState(waiting, oldest_ms, self._why)

    def _opened(self) -> FindingsLedger:
        if self._ledger is None:
            msg = "findings are not started"
            raise FindingError(msg)
        return self._ledger

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._resources:
            self._publish_until_end()

    def _publish_until_end(self) -> None:
        wait_s: float | None = 0.0
        while not self._ended.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            try:
                while not self._ended.is_set() and self._publish_some():
                    pass
                self._why, wait_s = "", None
            except Exception as exc:  # whatever it is, a thread that ended would go unseen, and findings wait for good
                if not self._why:
                    is_expected = isinstance(exc, XrayError)
                    why = "findings are not published, and are kept until they can be: %s"
                    log.warning(why, first_line(exc), exc_info=None if is_expected else exc)
                self._why, wait_s = first_line(exc), _WAIT_S
                self._ended.wait(_WAIT_S)

    def _publish_some(self) -> bool:
        """Publish the oldest findings; tell whether there were some."""
        ledger = self._opened()
        if begun := ledger.list_open(Progress.SENDING, _AT_ONCE):
            self._settle(begun)
            return True
        queued = ledger.list_open(Progress.QUEUED, _AT_ONCE)
        if not queued:
            return False
        ledger.note_sending(queued, {partition: span.stop for partition, span in self._read_spans().items()})
        self._send(queued)
        return True

    def _settle(self, begun: Iterable[Finding]) -> None:
        """Look in the topic for findings whose sending was begun and of which nothing more is known."""
        wanted = {one.ce_id: one for one in begun}
        marks = self._opened().read_marks()
        spans = {
            partition: _span_behind(span, marks.get(partition, span.start))
            for partition, span in self._read_spans().items()
        }
        arrived: dict[int, str] = {}
        topic = self._kafka.labels_topic
        for message in scan_offsets(self._kafka, topic, spans):
            one = wanted.pop(read_headers(message).get(envelope.CE_ID, b"").decode(errors="replace"), None)
            if one is not None:
                arrived[one.number] = f"{topic}-{place_of(message)}"
        self._opened().note_published(arrived)
        self._opened().note_unsent(wanted.values())

    def _read_spans(self) -> dict[int, range]:
        # Asked for by a consumer: of a producer a broker may make a topic that is missing.
        with open_reader(self._kafka) as reader:
            return read_spans(reader, self._kafka.labels_topic)

    def _send(self, findings: Iterable[Finding]) -> None:
        places: dict[int, str] = {}
        failed: list[str] = []
        producer = RecordProducer(self._kafka, self._kafka.labels_topic, timeout_s=_DELIVERY_S)
        for one in findings:

            def settle(delivery: Delivery, number: int = one.number) -> None:
                if delivery.place is None:
                    failed.append(delivery.error or "")
                else:
                    places[number] = delivery.place

            key = one.event_id.encode()
            producer.send(one.to_json(), key=key, headers=one.to_headers(), on_delivery=settle)
        try:
            producer.flush()
        finally:
            self._opened().note_published(places)
        if failed:
            describe_cluster(self._kafka)  # a broker that is away is told by its name and the settings to look at
            msg = f"topic {self._kafka.labels_topic}: {failed[0]}"
            raise BrokerError(msg)


def _span_behind(span: range, mark: int) -> range:
    """Give what a partition has behind a mark; all of one that has become shorter: it was made anew."""
    return range(max(span.start, mark), span.stop) if mark <= span.stop else span
