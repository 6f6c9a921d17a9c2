"""Brings one outcome topic into its table, piece by piece; after a failure it begins again where the table stands."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from schemas.documents import Table
from schemas.errors import BrokerError, DataLossError, JobError, TableClaimedError, TableError, TableMovedError
from streaming.account.checkpoints import committed_offsets
from streaming.account.losses import compare_places, name_losses
from streaming.archive.archivemetrics import ArchiveMetrics
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.outcomereader import OutcomeReader, Piece
from streaming.archive.rows import read_row
from streaming.archive.upkeep import Upkeep
from streaming.kafka.topicchecks import read_retention_ms
from streaming.kafka.topicids import TopicIds, read_topic_ids, recorded_ids
from streaming.retry import Backoff
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_HEALTHY_S = 60.0
_READ_S = 0.3
"""How long a turn waits for more; the next one comes after the trigger, or at once where there is more."""
_NEW_PARTITIONS_S = 60.0
_CONFLICTS = 20
"""In a row, from which on there is a wait between two tries."""
_FORMER_CHECKPOINT = "archive"
"""In XRAY_HOME/checkpoints: of the Spark query that this once was. It is read once and left as it is: the way back."""


class Archiver:
    """Fills one table.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    table : Table
        Its definition.
    topic : str
        Its topic.
    writer : str
        Name of this archive, unlike any other's.
    metrics : ArchiveMetrics
        Where it shows.
    accept_loss : bool
        Go on behind records that are gone, and in a topic that was made anew.
    from_beginning : bool
        Read all that the topic has; no row is added twice.
    note_step : callable
        Called after each step of a long piece of work.

    Attributes
    ----------
    name : str
        The table's.
    lost : DataLossError or None
        What is gone that the table lacks, or that the topic is another one; nothing is written then.
    has_begun : bool
        Whether it ever knew where to go on.
    """

    def __init__(
        self,
        settings: StreamSettings,
        table: Table,
        topic: str,
        writer: str,
        metrics: ArchiveMetrics,
        *,
        accept_loss: bool = False,
        from_beginning: bool = False,
        note_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = table.name
        self._settings = settings
        self._topic = topic
        self._metrics = metrics
        self._accept_loss = accept_loss
        self._from_beginning = from_beginning
        self._known = KnownIds(settings.archive.span_days, note_step)
        self._table = ArchiveTable(
            settings.tables_folder,
            table,
            topic,
            writer,
            self._known,
            keep_days=settings.archive.keep_days,
            min_free_bytes=settings.archive.min_free_bytes,
        )
        self._upkeep = Upkeep(f"{settings.tables_folder}/{table.name}", writer, settings.archive, note_step)
        self._backoff = Backoff(settings.retry, healthy_s=_HEALTHY_S)
        self._reader: OutcomeReader | None = None
        self._ids: TopicIds | None = None
        self._spans: dict[int, range] = {}
        self._first_ends: dict[int, int] = {}
        self._retention_ms: int | None = None
        self._oldest_ms: int | None = None
        self.lost: DataLossError | None = None
        self._is_ready = self.has_begun = False
        self._n_conflicts = 0
        self._next_try = 0.0
        self._partitions_at = time.monotonic() + _NEW_PARTITIONS_S

    @property
    def is_working(self) -> bool:
        """Whether the table could be written at the last turn, or read where nothing was to be written."""
        return self._is_ready and self.lost is None

    @property
    def has_drained(self) -> bool:
        """Whether all that the topic had at the first turn is in the table."""
        return self._is_ready and all(self._places[p] >= end for p, end in self._first_ends.items())

    @property
    def lag(self) -> int:
        """Outcomes that the topic had when it was last asked, and the table has not."""
        return sum(self._lags().values())

    def _lags(self) -> dict[int, int]:
        return {p: max(0, span.stop - max(span.start, self._places.get(p, 0))) for p, span in self._spans.items()}

    @property
    def _places(self) -> Mapping[int, int]:
        return self._reader.places if self._is_ready and self._reader is not None else self._table.places

    def turn(self) -> bool:
        """Bring what there is into the table, up to one piece.

        Returns
        -------
        bool
            Whether there is more to do at once. A table that has lost something has nothing to do any more.

        Raises
        ------
        TableClaimedError
            Another archive fills the table now.
        BrokerError, TableError
            It has been failing for longer than ``XRAY_RETRY__GIVE_UP_S``.
        """
        if self.lost is not None:
            self._show_lag()
            return False
        if time.monotonic() < self._next_try:
            return False
        try:
            if not self._is_ready:
                self._begin()
            more = self._bring()
        except DataLossError as exc:
            self._stop(exc)
            return False
        except TableClaimedError:
            raise
        except TableMovedError as exc:
            return self._note_conflict(exc)
        except (BrokerError, TableError) as exc:
            self._note_failure(exc)
            return False
        self._n_conflicts = 0
        if self._backoff.is_failing:
            log.warning("the table %s is written again", self.name)
            self._backoff.reset()
        return more

    def _stop(self, exc: DataLossError) -> None:
        """Write nothing more until somebody has said to go on behind what is gone."""
        self._is_ready = False
        self._metrics.record_failure()
        self.lost = exc
        log.error("%s", exc)

    def _note_conflict(self, exc: TableMovedError) -> bool:
        """Begin again at once; with a wait where somebody else is first again and again, for whatever reason."""
        self._is_ready = False
        self._metrics.conflicts.labels(self.name).inc()
        self._n_conflicts += 1
        if self._n_conflicts % _CONFLICTS == 0:
            self._note_failure(exc)
            return False
        log.info("%s; beginning again", exc)
        return True

    def _note_failure(self, exc: BrokerError | TableError) -> None:
        self._is_ready = False
        self._metrics.record_failure()
        wait_s = self._backoff.note_failure()
        if wait_s is None:
            raise exc
        log.warning("%s; trying again in %.0f s", exc, wait_s)
        self._next_try = time.monotonic() + wait_s
        self._show_lag()

    def tidy(self) -> None:
        """Do the upkeep that is due once a day, for one that ends before its time comes."""
        if self.is_working and self._upkeep.finish(self._table.opened):
            self._take_over_upkeep()

    def close(self) -> None:
        """Close the consumer."""
        if self._reader is not None:
            self._reader.close()

    # --- where to begin -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Find out where the table stands, and read on from there."""
        kafka = self._settings.kafka
        ids = read_topic_ids(kafka, [self._topic])
        if self._reader is None:
            self._reader = OutcomeReader(kafka, self._topic, partial(read_row, self.name))
            self._retention_ms = read_retention_ms(kafka, self._topic)
        self._spans = self._reader.read_spans()
        if self._ids is None:
            self._table.claim(
                ids,
                self._spans,
                find_former=lambda: self._find_former_places(ids),
                accept_loss=self._accept_loss,
                from_beginning=self._from_beginning,
            )
            self._ids = ids
            self._first_ends = {partition: span.stop for partition, span in self._spans.items()}
        else:
            self._refuse_other_topic(ids)
            self._table.reopen(self._spans)
        self._reader.go_to(self._find_places())
        self._accept_loss = False  # what is gone later, nobody has agreed to
        self._is_ready = self.has_begun = True
        self._backoff.start_try()

    def check_topic(self, ids: TopicIds) -> None:
        """Stop where the topic is not the one any more that it was at the start; may be called in another thread.

        Parameters
        ----------
        ids : TopicIds
            Of all outcome topics, as they are now.
        """
        if self._ids is not None and self.lost is None:
            try:
                self._refuse_other_topic(ids.select([self._topic]))
            except DataLossError as exc:
                self._stop(exc)

    def _refuse_other_topic(self, present: TopicIds) -> None:
        if self._ids is not None and present.differ_from(self._ids):
            msg = (
                f"{self._topic} was deleted and created again while the archive ran: what the old topic held unread is "
                "gone. Start once with 'xray archive --accept-loss' (or 'xray stream --accept-loss') to read the new "
                "one from its beginning."
            )
            raise DataLossError(msg)

    def _find_former_places(self, ids: TopicIds) -> Mapping[int, int]:
        """Read where the Spark query stood that filled this table before, if one did and it read these topics."""
        checkpoint = self._settings.checkpoints_folder / _FORMER_CHECKPOINT
        try:
            places = (committed_offsets(checkpoint) or {}).get(self._topic, {})
            noted = recorded_ids(checkpoint)
        except (JobError, OSError, ValueError) as exc:
            log.warning("checkpoints/%s cannot be read (%s); all of %s is read", checkpoint.name, exc, self._topic)
            return {}
        if (
            places
            and noted is not None
            and self._topic in noted.topics
            and ids.differ_from(noted.select([self._topic]))
        ):
            log.warning("checkpoints/%s is of another topic than %s; all of it is read", checkpoint.name, self._topic)
            return {}
        return places

    def _find_places(self) -> dict[int, int]:
        """Give the place to begin at in each partition, none of which may have lost anything."""
        # A partition that was added later begins at 0; of the others nothing was ever read where there is no place.
        places = {
            partition: self._table.places.get(partition, 0 if self._table.places else span.start)
            for partition, span in self._spans.items()
        }
        if losses := list(compare_places({self._topic: places}, {self._topic: self._spans})):
            shown = name_losses(losses)
            if not self._accept_loss:
                msg = (
                    f"the table {self.name} lacks outcomes that its topic does not have any more: {shown}. Retention "
                    "removed them before they were archived, or the topic's brokers lost them. Start once with 'xray "
                    "archive --accept-loss' (or 'xray stream --accept-loss') to go on behind the gap."
                )
                raise DataLossError(msg)
            log.warning("the table %s goes on behind outcomes that are gone: %s", self.name, shown)
            places |= {loss.partition: self._spans[loss.partition].start for loss in losses}
            self._table.append([], places)  # it is agreed to once, whether anything is left to write or not
        return places

    # --- a piece ------------------------------------------------------------------------------------------------------

    def _bring(self) -> bool:
        reader = self._open_reader
        if time.monotonic() > self._partitions_at:
            self._partitions_at = time.monotonic() + _NEW_PARTITIONS_S
            if reader.has_new_partitions():
                self._is_ready = False
                return True
        started = time.monotonic()
        ends = None if self.has_drained else self._first_ends
        piece = reader.read(self._settings.archive.max_records_per_batch, _READ_S, ends=ends)
        if piece.n_records:
            self._oldest_ms = piece.oldest_ms
            self._write(piece, started)
            reader.tell_group(piece.places)
        if not piece.is_full:  # what waits behind a full one is not older than its first
            self._oldest_ms = None
        if self._upkeep.turn(self._table.opened):
            self._take_over_upkeep()
        self._show_lag()
        return piece.is_full

    def _write(self, piece: Piece, started: float) -> None:
        if piece.n_nameless:
            log.warning("records without event id were left out: %s of %s", piece.n_nameless, self._topic)
        written = self._table.append(piece.rows, piece.places)
        self._metrics.record_batch(
            self.name,
            read=piece.n_records,
            written=written,
            nameless=piece.n_nameless,
            seconds=time.monotonic() - started,
        )

    def _take_over_upkeep(self) -> None:
        before, places = self._table.opened, dict(self._table.places)
        self._table.reopen(self._spans)
        if self._table.places != places:
            self._is_ready = False  # restored to an older version: what is read next is not what the reader has next
        if self._upkeep.joined and self._table.version == before.version() + 1:  # that join and nothing else
            self._known.note_joined(before, self._table.opened)
        self._metrics.joined_files.labels(self.name).inc(self._upkeep.joined)
        self._metrics.upkeep_failures.labels(self.name).inc(self._upkeep.failures)
        self._upkeep.joined = self._upkeep.failures = 0

    def _show_lag(self) -> None:
        if self._reader is not None:
            ends = self._reader.last_ends()
            self._spans = {p: range(span.start, max(span.stop, ends.get(p, 0))) for p, span in self._spans.items()}
        for partition, behind in self._lags().items():
            self._metrics.lag.labels(self.name, self._topic, str(partition)).set(behind)
        self._metrics.oldest_waiting.labels(self.name).set(self._waiting_s)
        if self._retention_ms is not None:
            self._metrics.retention_left.labels(self.name).set(self._retention_ms / 1000 - self._waiting_s)

    @property
    def _waiting_s(self) -> float:
        """How long the oldest outcome waits that is not in the table; not a number where no one could be read yet."""
        if self._oldest_ms is not None:
            return time.time() - self._oldest_ms / 1000
        return 0.0 if self._is_ready else math.nan

    @property
    def _open_reader(self) -> OutcomeReader:
        assert self._reader is not None  # noqa: S101  `_begin` came before
        return self._reader
