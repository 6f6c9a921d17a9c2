"""The account of the stream: each consumed image is a prediction or a dead letter, once, in topic and table.

It needs no Spark: it reads the topics with a plain consumer, the queries' checkpoints as files, and the tables with
``deltalake``.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Message, TopicPartition
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from schemas import envelope
from schemas.errors import BrokerError
from streaming.checkpoints import committed_offsets
from streaming.messages import header_text, list_partitions, read_headers, scan_topic
from streaming.settings import KafkaSettings, StreamSettings

_TIMEOUT_S = 20.0
_SHOWN_OFFSETS = 20
"""How many missing offsets an account names; enough to start looking."""


@dataclass
class PartitionAccount:
    """One partition of the images topic.

    Parameters
    ----------
    partition : int
        Its number.
    first, end : int
        Offsets: the oldest one that is there, and the next one to be written.
    consumed_end : int
        Next offset that SCORE has not committed.
    predicted, dead_lettered : int
        Offsets below ``consumed_end`` with that outcome.
    both, missing : int
        Offsets with two kinds of outcome, and with none. Both should be 0.
    repeated : int
        Outcomes beyond the first of an offset; a kill can leave some, each with the id of the first.
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
    missing_offsets: list[int] = field(default_factory=list)


@dataclass
class TableAccount:
    """One Delta table against its topic.

    Parameters
    ----------
    rows : int
        Rows of the table.
    duplicates : int
        Rows beyond the first of an event id. Should be 0.
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
    """

    partitions: list[PartitionAccount]
    tables: dict[str, TableAccount]
    dead_letter_reasons: dict[str, int]

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
        sums = {name: self.total(name) for name in ("predicted", "dead_lettered", "both", "missing", "repeated")}
        return {
            "balanced": self.balanced,
            "consumed": self.consumed,
            "pending": self.pending,
            "unaccounted": self.unaccounted,
            **sums,
            "dead_letter_reasons": self.dead_letter_reasons,
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "partitions": [asdict(partition) for partition in self.partitions],
        }


@dataclass
class _Outcomes:
    """What one outcome topic says: how often each input offset occurs, and which events ARCHIVE should have."""

    counts: dict[int, npt.NDArray[np.int32]]
    archived_ids: set[str]
    pending_ids: set[str]
    reasons: Counter[str]


def audit_stream(settings: StreamSettings) -> Account:
    """Draw up the account.

    Parameters
    ----------
    settings : StreamSettings
        Topics, checkpoints, tables.

    Returns
    -------
    Account
        See there.

    Raises
    ------
    BrokerError
        The topics cannot be read.
    """
    kafka = settings.kafka
    partitions = _read_positions(settings)
    archived = committed_offsets(settings.checkpoints_folder / "archive") or {}
    predictions = _read_outcomes(kafka, kafka.predictions_topic, partitions, archived)
    dead_letters = _read_outcomes(kafka, kafka.deadletters_topic, partitions, archived)
    for partition in partitions:
        _account_partition(partition, predictions, dead_letters, kafka)
    tables = {
        "predictions": _account_table(settings, "predictions", predictions),
        "dead_letters": _account_table(settings, "dead_letters", dead_letters),
    }
    return Account(partitions, tables, dict(dead_letters.reasons.most_common()))


def _read_positions(settings: StreamSettings) -> list[PartitionAccount]:
    """Read the images topic's watermarks, and how far SCORE has committed; without its checkpoint, to the end."""
    topic = settings.kafka.images_topic
    committed = committed_offsets(settings.checkpoints_folder / "score")
    consumer = Consumer(settings.kafka.to_librdkafka() | {"group.id": "xray-audit", "log_level": 0})
    try:
        accounts = []
        for partition in list_partitions(consumer, topic):
            first, end = _watermarks(consumer, topic, partition)
            consumed = end if committed is None else committed.get(topic, {}).get(partition, first)
            accounts.append(PartitionAccount(partition, first, end, min(max(consumed, first), end)))
        return accounts
    finally:
        consumer.close()


def _watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    answer = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_TIMEOUT_S)
    if answer is None:
        msg = f"topic {topic}: no answer about partition {partition} within {_TIMEOUT_S} s"
        raise BrokerError(msg)
    return int(answer[0]), int(answer[1])


def _read_outcomes(
    kafka: KafkaSettings, topic: str, partitions: list[PartitionAccount], archived: Mapping[str, Mapping[int, int]]
) -> _Outcomes:
    counts = {p.partition: np.zeros(p.end - p.first, np.int32) for p in partitions}
    firsts = {p.partition: p.first for p in partitions}
    outcomes = _Outcomes(counts, set(), set(), Counter())
    committed = archived.get(topic, {})
    for message in scan_topic(kafka, topic):
        headers = read_headers(message)
        _count_input(headers, kafka.images_topic, counts, firsts)
        _note_event(message, headers, committed, outcomes)
    return outcomes


def _count_input(
    headers: Mapping[str, bytes], topic: str, counts: dict[int, npt.NDArray[np.int32]], firsts: Mapping[int, int]
) -> None:
    if header_text(headers, envelope.INPUT_TOPIC) != topic:
        return
    partition, offset = int(headers[envelope.INPUT_PARTITION]), int(headers[envelope.INPUT_OFFSET])
    place = offset - firsts.get(partition, 0)
    # Outside: retention removed the image after it was scored.
    if partition in counts and 0 <= place < counts[partition].size:
        counts[partition][place] += 1


def _note_event(
    message: Message, headers: Mapping[str, bytes], committed: Mapping[int, int], outcomes: _Outcomes
) -> None:
    event_id = header_text(headers, envelope.EVENT_ID) or header_text(headers, envelope.CE_ID) or ""
    is_archived = message.offset() < committed.get(message.partition(), 0)
    (outcomes.archived_ids if is_archived else outcomes.pending_ids).add(event_id)
    reason = header_text(headers, envelope.REASON)
    if reason is not None:
        outcomes.reasons[reason] += 1


def _account_partition(
    account: PartitionAccount, predictions: _Outcomes, dead_letters: _Outcomes, kafka: KafkaSettings
) -> None:
    upto = account.consumed_end - account.first
    predicted = predictions.counts[account.partition][:upto]
    dead = dead_letters.counts[account.partition][:upto]
    account.predicted = int((predicted > 0).sum())
    account.dead_lettered = int((dead > 0).sum())
    account.both = int(((predicted > 0) & (dead > 0)).sum())
    account.repeated = int(np.maximum(predicted - 1, 0).sum() + np.maximum(dead - 1, 0).sum())
    candidates = [int(place) + account.first for place in np.flatnonzero((predicted == 0) & (dead == 0))]
    missing = [offset for offset in candidates if _exists(kafka, account.partition, offset)] if candidates else []
    account.missing = len(missing)
    account.missing_offsets = missing[:_SHOWN_OFFSETS]


def _exists(kafka: KafkaSettings, partition: int, offset: int) -> bool:
    """Whether an offset holds a record: transactions and compaction leave offsets without one."""
    consumer = Consumer(
        kafka.to_librdkafka() | {"group.id": "xray-audit", "log_level": 0, "enable.partition.eof": True}
    )
    try:
        consumer.assign([TopicPartition(kafka.images_topic, partition, offset)])
        message = consumer.poll(_TIMEOUT_S)
        # No answer counts as a record: an audit that cannot look must not say that all is well.
        return message is None or (message.error() is None and message.offset() == offset)
    finally:
        consumer.close()


def _account_table(settings: StreamSettings, name: str, outcomes: _Outcomes) -> TableAccount:
    ids = _read_event_ids(f"{settings.tables_folder}/{name}")
    present = set(ids)
    return TableAccount(
        rows=len(ids),
        duplicates=len(ids) - len(present),
        missing=len(outcomes.archived_ids - present),
        pending=len(outcomes.pending_ids - present),
    )


def _read_event_ids(path: str) -> list[str]:
    try:
        table = DeltaTable(path)
    except TableNotFoundError:
        return []
    ids: list[str] = table.to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist()
    return ids
