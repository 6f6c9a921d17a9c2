"""Tables as the archive's own code fills them, and a double of the topics, for tests of what is found where."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deltalake import write_deltalake

from schemas import envelope
from schemas.documents import load_tables
from schemas.errors import BrokerError
from streaming.archive.rows import read_row, to_arrow
from streaming.gateway.offer import Outgoing
from streaming.lookup import search, topics
from streaming.settings import KafkaSettings
from tests.imageoutcomes import Record

DAY = datetime(2026, 1, 31, tzinfo=UTC)
"""Of the images that `tests.imageoutcomes` makes."""


def archive(folder: Path, name: str, *records: Record) -> None:
    """Write records into a table as the archive does."""
    rows = [row for row in (read_row(name, record) for record in records) if row is not None]
    assert len(rows) == len(records)
    write_deltalake(str(folder / name), to_arrow(rows, load_tables()[name]), mode="append", partition_by=["date"])


def at(record: Record, moment: datetime) -> Record:
    """Have an outcome be of an image that Kafka took at another time."""
    return record.with_headers(**{envelope.INPUT_TIMESTAMP: moment.isoformat().encode()})


def redriven(image: Outgoing, origin: str) -> Outgoing:
    """The same image, sent again."""
    return replace(image, headers=[*image.headers, (envelope.REDRIVEN_FROM, origin.encode())])


@dataclass
class Topics:
    """Stands in for the broker: records of one partition for each topic, and how far the tables have them."""

    kafka: KafkaSettings
    records: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    archived: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    away: bool = False
    missing: set[str] = field(default_factory=set)
    scanned: list[tuple[str, int]] = field(default_factory=list)

    def put(self, *records: Record) -> None:
        for one in records:
            own = self.records[one.topic()]
            own.append(one.changed(offset=len(own)))

    def names(self) -> set[str]:
        kafka = self.kafka
        names = {kafka.images_topic, kafka.predictions_topic, kafka.deadletters_topic}
        return (names | {kafka.receipts_topic, kafka.labels_topic}) - self.missing

    def describe(self, _kafka: KafkaSettings) -> Any:
        if self.away:
            msg = "no Kafka broker answers at 127.0.0.1:1"
            raise BrokerError(msg)
        return SimpleNamespace(topics=dict.fromkeys(self.names()))

    @contextmanager
    def open_reader(self, kafka: KafkaSettings) -> Iterator[str]:
        self.describe(kafka)
        yield "reader"

    def read_spans(self, _reader: str, topic: str) -> dict[int, range]:
        if topic not in self.names():
            msg = f"topic {topic}: no such topic"
            raise BrokerError(msg)
        return {0: range(self.starts.get(topic, 0), len(self.records[topic]))}

    def find_offsets(self, _reader: str, topic: str, spans: Mapping[int, range], moment: datetime) -> dict[int, int]:
        late = (one.offset() for one in self.records[topic] if one.timestamp()[1] >= moment.timestamp() * 1000)
        return {0: next(late, spans[0].stop)}

    def scan(self, _kafka: KafkaSettings, topic: str, spans: Mapping[int, range]) -> Iterator[Record]:
        self.scanned += [(topic, span.start) for span in spans.values()]
        return (one for one in self.records[topic] if one.offset() in spans[0])

    def find_archived(self, _folder: str, _kafka: KafkaSettings, spans: Mapping[str, Any]) -> dict[str, dict[int, int]]:
        return {topic: {0: self.archived[topic]} if topic in self.archived else {} for topic in spans}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the search ask this one."""
        monkeypatch.setattr(search, "describe_cluster", self.describe)
        for name in ("open_reader", "read_spans", "find_offsets", "find_archived"):
            monkeypatch.setattr(topics, name, getattr(self, name))
        monkeypatch.setattr(topics, "scan_offsets", self.scan)
