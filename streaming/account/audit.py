"""The account of the stream: each consumed image is a prediction or a dead letter, once, in topic and table.

It needs no Spark: it reads the topics with a plain consumer, SCORE's checkpoint as files, and the tables, which say
themselves how far they were filled, with ``deltalake``. Of an outcome only the headers are looked at: they say which
image it is about. No image is read, except a few to see what time it was or whether there is a record at all.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, Message, TopicPartition

from schemas.deltatable import failing_as, open_table
from schemas.errors import NoCheckpointError, SettingsError
from streaming.account.archived import find_archived
from streaming.account.checkpoints import committed_offsets, has_begun
from streaming.account.outcomes import Outcomes, read_outcomes
from streaming.kafka.reader import find_offsets, list_partitions, open_reader, read_spans, scan_offsets
from streaming.kafka.topicids import check_topic_ids
from streaming.settings import KafkaSettings, StreamSettings

_TIMEOUT_S = 20.0
_SHOWN_OFFSETS = 20
"""How many missing offsets an account names; enough to start looking."""
_MISSING_LOOKED_AT = 1000
"""Offsets without outcome that were seen to hold a record; when so many are missing, the others are believed."""
_NEAR = 100
"""Offsets to read on rather than to jump over: a jump throws away what was fetched."""
_SUMMED = ("predicted", "dead_lettered", "both", "missing", "repeated", "repeated_under_another_id")
_CLOCK_SLACK_MS = 15 * 60_000
"""How far the clock of the machine that scores may be behind the broker's. Outcomes carry the first, images the second;
with a larger difference an account of a time range reports images as missing that are not, never the reverse."""


@dataclass(frozen=True)
class Scope:
    """Which images an account is about; by default all that the topic holds.

    Parameters
    ----------
    since, until : datetime, optional
        By the image's Kafka timestamp, with a time zone; ``until`` is not included.
    first, end : Mapping of int to int
        Offset by partition; ``end`` is not included. Where there are any, only the partitions that are named count.
    """

    since: datetime | None = None
    until: datetime | None = None
    first: Mapping[int, int] = field(default_factory=dict)
    end: Mapping[int, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.since is None and self.until is None and not self.first and not self.end


@dataclass
class PartitionAccount:
    """One partition of the images topic.

    Parameters
    ----------
    partition : int
        Its number.
    first, end : int
        Offsets: the oldest one that is there, and the next one to be written; where the account is about a range, its
        first one, and the one behind its last.
    consumed_end : int
        Next offset that SCORE has not committed.
    predicted, dead_lettered : int
        Offsets below ``consumed_end`` with that outcome.
    both, missing : int
        Offsets with two kinds of outcome, and with none. Both should be 0.
    repeated : int
        Outcomes beyond the first of an offset. A consumer that drops ids it has seen does not notice those that have
        the id of the first.
    repeated_under_another_id : int
        Of them, those with another id than the first: another model scored the image again. Consumers act on them anew.
    missing_offsets : list of int
        The first few.
    """

    partition: int
    first: int
    end: int
    consumed_end: int
    predicted: int = 0
    dead_lettered: int = 0
    both: int = 0
    missing: int = 0
    repeated: int = 0
    repeated_under_another_id: int = 0
    missing_offsets: list[int] = field(default_factory=list)


@dataclass
class TableAccount:
    """One Delta table against its topic.

    Parameters
    ----------
    rows : int
        Rows of the table; where the account is about a range, those of its events.
    duplicates : int
        Rows beyond the first of an event id within ``XRAY_ARCHIVE__SPAN_DAYS``. Should be 0.
    missing : int
        Events that ARCHIVE has committed and the table lacks. Should be 0.
    pending : int
        Events on the topic that ARCHIVE has still to read.
    """

    rows: int = 0
    duplicates: int = 0
    missing: int = 0
    pending: int = 0


@dataclass
class Account:
    """The whole account.

    Parameters
    ----------
    partitions : list of PartitionAccount
        The images topic.
    tables : dict of str to TableAccount
        Predictions and dead letters.
    dead_letter_reasons : dict of str to int
        Records by reason.
    scope : Scope
        Which images it is about.
    outcomes_read : int
        Messages that were read for it.
    seconds : float
        How long that took.
    """

    partitions: list[PartitionAccount]
    tables: dict[str, TableAccount]
    dead_letter_reasons: dict[str, int]
    scope: Scope = Scope()
    outcomes_read: int = 0
    seconds: float = 0.0

    def total(self, name: str) -> int:
        """Sum a field over the partitions."""
        return sum(int(getattr(partition, name)) for partition in self.partitions)

    @property
    def consumed(self) -> int:
        """Images that SCORE has committed and that the topic still has."""
        return sum(p.predicted + p.dead_lettered - p.both + p.missing for p in self.partitions)

    @property
    def pending(self) -> int:
        """Images that SCORE has still to commit."""
        return sum(p.end - p.consumed_end for p in self.partitions)

    @property
    def unaccounted(self) -> int:
        """Consumed images without exactly one kind of outcome."""
        return self.total("missing") + self.total("both")

    @property
    def balanced(self) -> bool:
        """Whether nothing is missing and nothing is twice where it must not be."""
        return self.unaccounted == 0 and not any(t.duplicates or t.missing for t in self.tables.values())

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        sums = {name: self.total(name) for name in _SUMMED}
        return {
            "balanced": self.balanced,
            "since": None if self.scope.since is None else self.scope.since.isoformat(),
            "until": None if self.scope.until is None else self.scope.until.isoformat(),
            "consumed": self.consumed,
            "pending": self.pending,
            "unaccounted": self.unaccounted,
            **sums,
            "dead_letter_reasons": self.dead_letter_reasons,
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "partitions": [asdict(partition) for partition in self.partitions],
            "outcomes_read": self.outcomes_read,
            "seconds": round(self.seconds, 3),
        }


def audit_stream(settings: StreamSettings, scope: Scope | None = None) -> Account:
    """Draw up the account.

    An image is consumed once SCORE has committed its offset; it then must have an outcome, by topic, partition and
    offset. Several records about one image (sent again, re-driven) are several inputs, each with an outcome of its own.

    Parameters
    ----------
    settings : StreamSettings
        Topics, checkpoints, tables.
    scope : Scope, optional
        Which images; all of them when absent. Outcomes are read from the time of the scope's first image to their
        topic's end, for an outcome may come late.

    Returns
    -------
    Account
        See there.

    Raises
    ------
    NoCheckpointError
        No stream has run from this state folder.
    DataLossError
        The images topic is another one than SCORE has read.
    BrokerError
        The topics cannot be read.
    SettingsError
        The scope names a partition that is not there.
    """
    started = time.monotonic()
    scope = scope or Scope()
    kafka = settings.kafka
    _require_checkpoint(settings)
    ids = check_topic_ids(settings)
    partitions = _read_positions(settings, scope)
    archived = find_archived(settings.tables_folder, kafka, _partitions_of_outcomes(kafka))
    images = {partition.partition: _span_of(partition) for partition in partitions}
    since_ms = 0 if scope.whole else _earliest_ms(kafka, partitions)
    predictions, dead_letters = (
        read_outcomes(kafka, topic, ids, images, archived=archived.get(topic, {}), since_ms=since_ms, whole=scope.whole)
        for topic in (kafka.predictions_topic, kafka.deadletters_topic)
    )
    for partition in partitions:
        _account_partition(partition, predictions, dead_letters, kafka)
    tables = {
        "predictions": _account_table(settings, "predictions", predictions, whole=scope.whole),
        "dead_letters": _account_table(settings, "dead_letters", dead_letters, whole=scope.whole),
    }
    reasons = {reason.decode(errors="replace"): count for reason, count in dead_letters.reasons.most_common()}
    read = predictions.read + dead_letters.read
    return Account(partitions, tables, reasons, scope, read, time.monotonic() - started)


def _partitions_of_outcomes(kafka: KafkaSettings) -> dict[str, list[int]]:
    with open_reader(kafka) as reader:
        return {topic: list_partitions(reader, topic) for topic in (kafka.predictions_topic, kafka.deadletters_topic)}


def _require_checkpoint(settings: StreamSettings) -> None:
    checkpoint = settings.checkpoints_folder / "score"
    if not has_begun(checkpoint):
        msg = (
            f"no stream has run from this state folder: there is no checkpoint in {checkpoint}. It alone says what "
            "SCORE has consumed, so there is no account. Is XRAY_HOME the stream's?"
        )
        raise NoCheckpointError(msg)


def _read_positions(settings: StreamSettings, scope: Scope) -> list[PartitionAccount]:
    """Find the scope's offsets, and how far SCORE has committed."""
    topic = settings.kafka.images_topic
    committed = committed_offsets(settings.checkpoints_folder / "score") or {}
    accounts = []
    for partition, span in _scoped_spans(settings.kafka, scope).items():
        consumed = committed.get(topic, {}).get(partition, span.start)
        clipped = min(max(consumed, span.start), span.stop)
        accounts.append(PartitionAccount(partition, span.start, span.stop, clipped))
    return accounts


def _scoped_spans(kafka: KafkaSettings, scope: Scope) -> dict[int, range]:
    with open_reader(kafka) as reader:
        spans = read_spans(reader, kafka.images_topic)
        if unknown := sorted({*scope.first, *scope.end} - {*spans}):
            known = ", ".join(map(str, spans))
            msg = f"topic {kafka.images_topic} has no partition {unknown[0]}; it has {known}"
            raise SettingsError(msg)
        if scope.first or scope.end:
            spans = {p: span for p, span in spans.items() if p in scope.first or p in scope.end}
        firsts = find_offsets(reader, kafka.images_topic, spans, scope.since) if scope.since else {}
        ends = find_offsets(reader, kafka.images_topic, spans, scope.until) if scope.until else {}
    return {
        partition: _clip(
            span,
            max(firsts.get(partition, span.start), scope.first.get(partition, span.start)),
            min(ends.get(partition, span.stop), scope.end.get(partition, span.stop)),
        )
        for partition, span in spans.items()
    }


def _clip(span: range, first: int, end: int) -> range:
    first = min(max(first, span.start), span.stop)
    return range(first, max(first, min(end, span.stop)))


def _earliest_ms(kafka: KafkaSettings, partitions: Sequence[PartitionAccount]) -> int:
    """Find a time before which no image of the scope has an outcome, in ms; 0 where there is none to rely on."""
    times = []
    for account in partitions:
        if account.first < account.end:
            message = next(scan_offsets(kafka, kafka.images_topic, {account.partition: _span_of(account)}), None)
            kind, ms = (TIMESTAMP_LOG_APPEND_TIME, 0) if message is None else message.timestamp()
            # A device's own clock says nothing about when its image was scored.
            times.append(ms - _CLOCK_SLACK_MS if kind == TIMESTAMP_LOG_APPEND_TIME else 0)
    return max(0, min(times, default=0))


def _span_of(account: PartitionAccount) -> range:
    return range(account.first, account.end)


def _account_partition(
    account: PartitionAccount, predictions: Outcomes, dead_letters: Outcomes, kafka: KafkaSettings
) -> None:
    upto = account.consumed_end - account.first
    predicted = predictions.counts[account.partition][:upto]
    dead = dead_letters.counts[account.partition][:upto]
    account.predicted = int((predicted > 0).sum())
    account.dead_lettered = int((dead > 0).sum())
    account.both = int(((predicted > 0) & (dead > 0)).sum())
    account.repeated = int(np.maximum(predicted - 1, 0).sum() + np.maximum(dead - 1, 0).sum())
    account.repeated_under_another_id = sum(
        int(outcomes.other_ids[account.partition][:upto].sum()) for outcomes in (predictions, dead_letters)
    )
    without = [int(place) + account.first for place in np.flatnonzero((predicted == 0) & (dead == 0))]
    missing = _keep_offsets_with_record(kafka, account.partition, without)
    account.missing = len(missing)
    account.missing_offsets = missing[:_SHOWN_OFFSETS]


def _keep_offsets_with_record(kafka: KafkaSettings, partition: int, offsets: Sequence[int]) -> list[int]:
    """Keep the offsets that hold a record: transactions and compaction leave offsets without one."""
    found: list[int] = []
    if not offsets:
        return found
    with open_reader(kafka) as reader:
        position = -1
        i = 0
        while i < len(offsets) and len(found) < _MISSING_LOOKED_AT:
            wanted = offsets[i]
            if not 0 <= wanted - position <= _NEAR or position < 0:
                reader.assign([TopicPartition(kafka.images_topic, partition, wanted)])
            message = _poll_from(reader, wanted)
            if message is not None and message.error() is not None:
                return found  # the topic's end: none of the others holds a record
            # No answer counts as a record: an audit that cannot look must not say that all is well.
            there = wanted if message is None else message.offset()
            if there == wanted:
                found.append(wanted)
            position = -1 if message is None else there + 1
            while i < len(offsets) and offsets[i] < max(there, wanted + 1):
                i += 1
    return found + list(offsets[i:])


def _poll_from(reader: Consumer, offset: int) -> Message | None:
    """Give the first record at or behind an offset, an error message at the topic's end, None where nobody answers."""
    while True:
        message = reader.poll(_TIMEOUT_S)
        if message is None:
            return None
        if message.error() is not None:
            return message if message.error().code() == KafkaError._PARTITION_EOF else None
        if message.offset() >= offset:
            return message


def _account_table(settings: StreamSettings, name: str, outcomes: Outcomes, *, whole: bool) -> TableAccount:
    place = f"{settings.tables_folder}/{name}"
    ids = _read_event_ids(place)
    archived, pending = _id_array(outcomes.archived_ids), _id_array(outcomes.pending_ids)
    if not whole:
        ids = ids.filter(pc.is_in(ids, value_set=pa.concat_arrays([archived, pending])))
    return TableAccount(
        rows=len(ids),
        duplicates=_find_duplicates(place, ids, settings.archive.span_days),
        missing=_count_absent(archived, ids),
        pending=_count_absent(pending, ids),
    )


def _find_duplicates(place: str, ids: Any, span_days: int) -> int:
    """Count duplicates; only where an id is there more than once are dates read too."""
    counts = ids.value_counts()
    repeated = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    table = open_table(place) if len(repeated) else None
    if table is None:
        return 0
    with failing_as(f"the table {place} cannot be read"):
        rows = table.to_pyarrow_table(columns=["event_id", "date"])
    return count_duplicates(rows.filter(pc.is_in(rows["event_id"].cast(pa.binary()), value_set=repeated)), span_days)


def count_duplicates(rows: pa.Table, span_days: int) -> int:
    """Count rows that must not be there beside another one of the same event.

    An image that is sent again after more than the span is a second row by right. Where one of two has no date, nothing
    can be said: which came first, and when, decides whether both are right.

    Parameters
    ----------
    rows : pyarrow.Table
        With ``event_id`` and ``date``.
    span_days : int
        Days between two rows within which they are one event.
    """
    days_of: dict[str, list[date | None]] = {}
    for event_id, day in zip(rows["event_id"].to_pylist(), rows["date"].to_pylist(), strict=True):
        days_of.setdefault(event_id, []).append(day)
    count = 0
    for days in days_of.values():
        dated = sorted(day for day in days if day is not None)
        count += max(0, len(days) - len(dated) - 1)
        count += sum((later - earlier).days <= span_days for earlier, later in pairwise(dated))
    return count


def _id_array(ids: set[bytes]) -> Any:
    return pa.array(list(ids), pa.binary())


def _count_absent(ids: Any, present: Any) -> int:
    return len(ids) - int(pc.sum(pc.is_in(ids, value_set=present)).as_py() or 0)


def _read_event_ids(path: str) -> Any:
    """Read a table's event ids as Arrow: a million are 40 MB so, and ten times that as Python's own text."""
    table = open_table(path)
    if table is None:
        return _id_array(set())
    with failing_as(f"the table {path} cannot be read"):
        ids = table.to_pyarrow_table(columns=["event_id"])["event_id"]
    return ids.cast(pa.binary()).combine_chunks()
