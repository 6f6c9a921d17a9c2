"""Who knows what must come out: every confirmed record with its fate, and the account against topics and tables.

The oracle is written when the broker confirms a record, never before, and it knows nothing of the stream. The topics
are read with kafka-python, a client that the stream does not use, the tables with deltalake.
"""

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as KafkaMessage
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from kafka import KafkaConsumer, TopicPartition

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.traffic import Message, digest
from streaming.settings import KafkaSettings, StreamSettings

PREDICTION, FEATURES, DEAD_LETTER = "predictions", "features", "dead_letters"
"""Kinds of outcomes; each has a topic and a table."""

_DELIVERY_TIMEOUT_MS = 240_000
_AUDIT_TIMEOUT_S = 300
_SHOWN = 5

Place = tuple[int, int]
"""Partition and offset in the images topic."""


@dataclass(frozen=True)
class Known:
    """A record that the broker confirmed.

    Parameters
    ----------
    id, kind : str
        See `benchmarks.chaos.traffic.Message`.
    reason : str or None
        Of the dead letter it must become; None where it must be predicted.
    sha256 : str
        Of its bytes; ``null`` for a tombstone.
    partition, offset : int
        Where the broker put it.
    """

    id: str
    kind: str
    reason: str | None
    sha256: str
    partition: int
    offset: int

    @property
    def place(self) -> Place:
        """Partition and offset."""
        return self.partition, self.offset


class Oracle:
    """A file of confirmed records, one JSON document a line, and the same in memory.

    Parameters
    ----------
    path : Path
        Lines are appended.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.path = path
        self.records: list[Known] = []
        self.unconfirmed: list[str] = []

    def confirm(self, known: Known) -> None:
        """Add a record that the broker confirmed."""
        with self._lock:
            self.records.append(known)
            self._file.write(json.dumps(asdict(known)) + "\n")
            self._file.flush()

    def doubt(self, name: str) -> None:
        """Note a record of which nobody knows whether the broker has it."""
        with self._lock:
            self.unconfirmed.append(name)

    def ends(self) -> dict[int, int]:
        """Give the offset behind the last confirmed record of each partition."""
        with self._lock:
            found: dict[int, int] = {}
            for known in self.records:
                found[known.partition] = max(found.get(known.partition, 0), known.offset + 1)
            return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_oracle(path: Path) -> list[Known]:
    """Read an oracle's file."""
    return [Known(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def publish(kafka: KafkaSettings, messages: Iterable[Message], oracles: Sequence[Oracle], seconds: float = 0.0) -> None:
    """Publish messages, and tell the oracles which of them are confirmed and where they are.

    It outlives an outage of the broker of some minutes: until then nothing is given up.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    messages : iterable of Message
        In their order.
    oracles : sequence of Oracle
        Told of each.
    seconds : float
        Spread evenly over so long; at once where 0.
    """
    producer = Producer(
        {
            **kafka.to_librdkafka(),
            "log_level": 0,
            "enable.idempotence": True,
            "message.max.bytes": kafka.max_message_bytes,
            "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
            "reconnect.backoff.max.ms": 500,
            "queue.buffering.max.kbytes": 256 * 1024,
            "linger.ms": 2,
        }
    )
    listed = list(messages) if seconds else messages
    pause_s = seconds / max(1, len(listed)) if isinstance(listed, list) else 0.0
    started = time.monotonic()
    for i, message in enumerate(listed):
        while (early_s := started + i * pause_s - time.monotonic()) > 0:
            producer.poll(early_s)
        _produce(producer, kafka.images_topic, message, oracles)
    while producer.flush(0.5):
        pass


def _produce(producer: Producer, topic: str, message: Message, oracles: Sequence[Oracle]) -> None:
    def settle(error: KafkaError | None, delivered: KafkaMessage) -> None:
        for oracle in oracles:
            if error is None:
                place = delivered.partition(), delivered.offset()
                oracle.confirm(Known(message.id, message.kind, message.reason, message.sha256, *place))
            else:
                oracle.doubt(message.id)

    while True:
        try:
            producer.produce(
                topic, message.payload, key=message.id.encode(), headers=message.headers, on_delivery=settle
            )
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)


# -- what came out -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One message of an outcome topic.

    Parameters
    ----------
    kind : str
        `PREDICTION`, `FEATURES` or `DEAD_LETTER`.
    place : tuple of int
        Partition and offset of the image that it is about.
    event_id : str
        Its id.
    value_sha256 : str
        Of its value as it is.
    image_sha256 : str or None
        Of the image's bytes as the outcome tells it; None for features, which are not taken apart.
    reason : str or None
        Of a dead letter.
    model : str or None
        Version of the model, of a prediction.
    """

    kind: str
    place: Place
    event_id: str
    value_sha256: str
    image_sha256: str | None = None
    reason: str | None = None
    model: str | None = None


class OutcomeReader:
    """Reads the outcome topics with kafka-python; each call of `refresh` reads on from where the last one ended.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._topics = {
            kafka.predictions_topic: PREDICTION,
            kafka.features_topic: FEATURES,
            kafka.deadletters_topic: DEAD_LETTER,
        }
        self._next: dict[TopicPartition, int] = {}
        self.outcomes: list[Outcome] = []

    def refresh(self) -> list[Outcome]:
        """Read what is new; give all outcomes so far."""
        consumer = KafkaConsumer(
            bootstrap_servers=self._kafka.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_bytes=64 * 1024 * 1024,
            max_partition_fetch_bytes=40 * 1024 * 1024,
        )
        try:
            partitions = [
                TopicPartition(topic, number)
                for topic in self._topics
                for number in sorted(consumer.partitions_for_topic(topic) or ())
            ]
            consumer.assign(partitions)
            ends = consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, self._next.get(partition, 0))
            while any(consumer.position(partition) < ends[partition] for partition in partitions):
                for partition, records in consumer.poll(timeout_ms=1000).items():
                    self._take(self._topics[partition.topic], records)
            self._next = {partition: consumer.position(partition) for partition in partitions}
        finally:
            consumer.close()
        return self.outcomes

    def _take(self, kind: str, records: Sequence[Any]) -> None:
        for record in records:
            headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
            if headers.get("xray_input_topic") == self._kafka.images_topic:
                self.outcomes.append(read_outcome(kind, record.value, headers))

    def places(self, kind: str) -> set[Place]:
        """Give the images that have an outcome of a kind, as far as it was read."""
        return {outcome.place for outcome in self.outcomes if outcome.kind == kind}


def read_outcome(kind: str, value: bytes | None, headers: Mapping[str, str]) -> Outcome:
    """Take apart one message of an outcome topic; of several headers with one name the last one counts."""
    place = int(headers["xray_input_partition"]), int(headers["xray_input_offset"])
    if kind == DEAD_LETTER:
        value_sha256 = digest(value)
        return Outcome(kind, place, headers["xray_event_id"], value_sha256, value_sha256, headers["xray_reason"])
    value_sha256 = hashlib.sha256(value or b"").hexdigest()
    if kind == FEATURES:
        return Outcome(kind, place, headers["ce_id"], value_sha256)
    event = json.loads(value or b"{}")
    return Outcome(
        kind, place, headers["ce_id"], value_sha256, event["image"]["sha256"], None, event["model"]["version"]
    )


@dataclass(frozen=True)
class Row:
    """One row of a table, as far as the account looks at it."""

    event_id: str
    place: Place
    sha256: str
    reason: str | None = None


def read_rows(settings: StreamSettings) -> dict[str, list[Row]]:
    """Read the three tables with deltalake; a table that is not there has no rows."""
    return {
        kind: _read_table(f"{settings.tables_folder}/{kind}", settings.kafka.images_topic)
        for kind in (PREDICTION, FEATURES, DEAD_LETTER)
    }


def _read_table(path: str, images_topic: str) -> list[Row]:
    try:
        table = DeltaTable(path)
    except TableNotFoundError:
        return []
    names = [field.name for field in table.schema().fields]
    wanted = ["event_id", "input_topic", "input_partition", "input_offset", "sha256"]
    columns = [*wanted, *(["reason"] if "reason" in names else [])]
    return [
        Row(row["event_id"], (row["input_partition"], row["input_offset"]), row["sha256"], row.get("reason"))
        for row in table.to_pyarrow_table(columns=columns).to_pylist()
        if row["input_topic"] == images_topic
    ]


# -- the account -------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What the account found.

    Parameters
    ----------
    records : int
        Confirmed records that it is about.
    predicted, dead_lettered : int
        Records with that outcome.
    missing : int
        Records without outcome.
    both : int
        Records with a prediction and a dead letter.
    wrong_reason : int
        Records with another fate than they must have.
    wrong_bytes : int
        Outcomes that tell other bytes than the record has.
    topic_duplicates : int
        Outcomes of one kind beyond the first of a record, features included.
    duplicates_by_kind : dict of str to int
        The same by kind.
    ids_with_different_bytes : int
        Event ids under which one topic has several values.
    places_with_several_ids : int
        Records with outcomes of one kind under several event ids: scored by two models.
    features_missing : int
        Predictions without feature vector.
    foreign : int
        Outcomes about records that this account is not about.
    table_rows : int
        Rows of predictions and dead letters about these records.
    table_duplicates : int
        Rows beyond the first of an event id, and beyond the first of a record, in any of the three tables.
    table_missing : int
        Events on the topics that their table lacks.
    table_wrong : int
        Rows that tell another hash or reason than the record must have.
    audit_exit : int or None
        Exit code of ``xray audit``.
    audit : dict
        Its JSON.
    examples : dict of str to list
        The first few records of each trouble.
    """

    records: int = 0
    predicted: int = 0
    dead_lettered: int = 0
    missing: int = 0
    both: int = 0
    wrong_reason: int = 0
    wrong_bytes: int = 0
    topic_duplicates: int = 0
    duplicates_by_kind: dict[str, int] = field(default_factory=dict)
    ids_with_different_bytes: int = 0
    places_with_several_ids: int = 0
    features_missing: int = 0
    foreign: int = 0
    table_rows: int = 0
    table_duplicates: int = 0
    table_missing: int = 0
    table_wrong: int = 0
    audit_exit: int | None = None
    audit: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def troubles(self) -> dict[str, int]:
        """What must be 0 and is not, whatever was done to the stream; topic duplicates are another matter."""
        names = ("missing", "both", "wrong_reason", "wrong_bytes", "ids_with_different_bytes", "features_missing",
                 "table_duplicates", "table_missing", "table_wrong")  # fmt: skip
        found = {name: int(getattr(self, name)) for name in names}
        found["audit_exit"] = self.audit_exit or 0
        return {name: count for name, count in found.items() if count}

    @property
    def balanced(self) -> bool:
        """Whether nothing that must be 0 is not."""
        return not self.troubles

    def note(self, trouble: str, example: str) -> None:
        """Keep an example of a trouble, if there are not enough yet."""
        kept = self.examples.setdefault(trouble, [])
        if len(kept) < _SHOWN:
            kept.append(example)


def draw_account(records: Sequence[Known], outcomes: Iterable[Outcome], rows: Mapping[str, Sequence[Row]]) -> Verdict:
    """Hold what came out against what must.

    Parameters
    ----------
    records : sequence of Known
        What the account is about.
    outcomes : iterable of Outcome
        Of all topics; those of other records are counted as foreign.
    rows : Mapping of str to sequence of Row
        Of each table, by its name.
    """
    by_place = {known.place: known for known in records}
    verdict = Verdict(records=len(records))
    if len(by_place) < len(records):
        msg = "the oracle has two records at one place"
        raise ValueError(msg)
    mine: dict[Place, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.place in by_place:
            mine[outcome.place].append(outcome)
        else:
            verdict.foreign += 1
    for place, known in by_place.items():
        _account_record(verdict, known, mine.get(place, []))
    verdict.topic_duplicates = sum(verdict.duplicates_by_kind.values())
    _account_ids(verdict, mine)
    for kind, table in rows.items():
        _account_table(verdict, kind, table, mine, by_place)
    return verdict


def _account_record(verdict: Verdict, known: Known, outcomes: Sequence[Outcome]) -> None:
    kinds = Counter(outcome.kind for outcome in outcomes)
    predicted, dead = PREDICTION in kinds, DEAD_LETTER in kinds
    verdict.predicted += predicted
    verdict.dead_lettered += dead
    text = f"{known.kind} {known.id} at {known.partition}@{known.offset}"
    if not predicted and not dead:
        verdict.missing += 1
        verdict.note("missing", text)
    if predicted and dead:
        verdict.both += 1
        verdict.note("both", text)
    found = {outcome.reason for outcome in outcomes if outcome.kind != FEATURES}
    if found - {known.reason}:
        verdict.wrong_reason += 1
        verdict.note("wrong_reason", f"{text}: {sorted(map(str, found))}, wanted {known.reason}")
    if predicted and FEATURES not in kinds:
        verdict.features_missing += 1
        verdict.note("features_missing", text)
    for outcome in outcomes:
        if outcome.image_sha256 not in (None, known.sha256):
            verdict.wrong_bytes += 1
            verdict.note("wrong_bytes", f"{text}: {outcome.kind} {outcome.event_id}")
    for kind, count in kinds.items():
        if count > 1:
            verdict.duplicates_by_kind[kind] = verdict.duplicates_by_kind.get(kind, 0) + count - 1
            verdict.note("topic_duplicates", f"{text}: {count} {kind}")
    ids = {(outcome.kind, outcome.event_id) for outcome in outcomes}
    if len(ids) > len(kinds):
        verdict.places_with_several_ids += 1
        verdict.note("places_with_several_ids", text)


def _account_ids(verdict: Verdict, mine: Mapping[Place, Sequence[Outcome]]) -> None:
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for outcomes in mine.values():
        for outcome in outcomes:
            values[outcome.kind, outcome.event_id].add(outcome.value_sha256)
    for (kind, event_id), hashes in values.items():
        if len(hashes) > 1:
            verdict.ids_with_different_bytes += 1
            verdict.note("ids_with_different_bytes", f"{kind} {event_id}: {len(hashes)} values")


def _account_table(
    verdict: Verdict,
    kind: str,
    table: Sequence[Row],
    mine: Mapping[Place, Sequence[Outcome]],
    by_place: Mapping[Place, Known],
) -> None:
    ids, places = Counter(row.event_id for row in table), Counter(row.place for row in table if row.place in by_place)
    for event_id, count in ids.items():
        if count > 1:
            verdict.note("table_duplicates", f"{kind} {event_id}: {count} rows")
    by_id = sum(count - 1 for count in ids.values())
    by_record = sum(count - 1 for count in places.values())
    # A row that repeats its id mostly repeats its record too: count it once.
    verdict.table_duplicates += max(by_id, by_record)
    if by_record > by_id:
        twice = next(place for place, count in places.items() if count > 1)
        verdict.note("table_duplicates", f"{kind}: {by_record} records with several rows, e.g. {twice[0]}@{twice[1]}")
    wanted = {outcome.event_id for outcomes in mine.values() for outcome in outcomes if outcome.kind == kind}
    absent = sorted(wanted - set(ids))
    verdict.table_missing += len(absent)
    for event_id in absent[:_SHOWN]:
        verdict.note("table_missing", f"{kind} {event_id}")
    for row in table:
        known = by_place.get(row.place)
        if known is None:
            continue
        verdict.table_rows += kind != FEATURES
        # A table cannot tell a tombstone from an empty file: both are 0 bytes to it.
        sha256 = digest(b"") if known.sha256 == "null" else known.sha256
        if row.sha256 != sha256 or (kind == DEAD_LETTER and row.reason != known.reason):
            verdict.table_wrong += 1
            verdict.note("table_wrong", f"{kind} {row.event_id}: {row.reason}, wanted {known.reason}")


def check(
    settings: StreamSettings, records: Sequence[Known], environ: Mapping[str, str], reader: OutcomeReader | None = None
) -> Verdict:
    """Draw up the account of confirmed records, and ask ``xray audit`` for its own.

    Parameters
    ----------
    settings : StreamSettings
        Topics and tables.
    records : sequence of Known
        What it is about.
    environ : Mapping
        Environment of the command.
    reader : OutcomeReader, optional
        Of an earlier account; only what is new is read then.
    """
    reader = reader or OutcomeReader(settings.kafka)
    verdict = draw_account(records, reader.refresh(), read_rows(settings))
    done = run_command(environ, "audit", "--json", timeout_s=_AUDIT_TIMEOUT_S)
    verdict.audit_exit = done.returncode
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    verdict.audit = json.loads(lines[-1]) if lines else {"stderr": done.stderr.strip()[-500:]}
    return verdict
