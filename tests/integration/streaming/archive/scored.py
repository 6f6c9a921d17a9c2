"""What SCORE leaves behind, without SCORE: images, their outcomes, its checkpoint; and what must be in the tables."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

from confluent_kafka import Producer
from deltalake import DeltaTable

from schemas import envelope
from schemas.envelope import derive_event_id
from streaming.account.audit import audit_stream
from streaming.kafka.topicids import read_topic_ids, record_ids
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.test_archive import NAMES, Outcome, outcome, publish

_DEAD_EVERY = 5


@dataclass
class Scored:
    """Images that were scored: every fifth is a dead letter, the others have a prediction and a feature vector.

    Parameters
    ----------
    settings : StreamSettings
        Topics and state folder.
    count : int
        How many images there are.
    """

    settings: StreamSettings
    count: int = 0
    _batches: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, count: int, *, twice: bool = False) -> "Scored":
        """Publish images and their outcomes, perhaps each outcome twice; SCORE has committed them."""
        kafka = self.settings.kafka
        producer = Producer(kafka.to_librdkafka())
        for _ in range(count):
            producer.produce(kafka.images_topic, b"image", partition=0)
        assert producer.flush(20) == 0
        new = [one for number in range(self.count, self.count + count) for one in self._outcomes_of(number)]
        publish(self.settings, new * (2 if twice else 1))
        self.outcomes += new
        self.count += count
        self._commit()
        return self

    def publish_again(self) -> None:
        """Publish every outcome once more."""
        publish(self.settings, self.outcomes)

    def _outcomes_of(self, number: int) -> list[Outcome]:
        topic = [(envelope.INPUT_TOPIC, self.settings.kafka.images_topic.encode())]
        tables = ["dead_letters"] if number % _DEAD_EVERY == 0 else ["predictions", "features"]
        return [replace(one := outcome(name, number), headers=[*one.headers, *topic]) for name in tables]

    def _commit(self) -> None:
        kafka, checkpoint = self.settings.kafka, self.settings.checkpoints_folder / "score"
        for folder, lines in {
            "offsets": ["v1", "{}", json.dumps({kafka.images_topic: {"0": self.count, "1": 0}})],
            "commits": ["v1", "{}"],
        }.items():
            (checkpoint / folder).mkdir(parents=True, exist_ok=True)
            (checkpoint / folder / str(self._batches)).write_text("\n".join(lines), encoding="utf-8")
        self._batches += 1
        record_ids(checkpoint, read_topic_ids(kafka, [kafka.images_topic]))

    @property
    def wanted(self) -> dict[str, set[str]]:
        """Event ids that each table must have."""
        dead = {number for number in range(self.count) if number % _DEAD_EVERY == 0}
        others = {*range(self.count)} - dead
        return {
            name: {derive_event_id(name, str(number)) for number in (dead if name == "dead_letters" else others)}
            for name in NAMES
        }

    def faults(self) -> dict[str, tuple[int, int]]:
        """Count what each table lacks, and has more than once; without entries where nothing is wrong."""
        found = {}
        for name, wanted in self.wanted.items():
            rows = read_rows(self.settings, name)
            lost, doubled = len(wanted - set(rows)), sum(rows.values()) - len(rows)
            if lost or doubled:
                found[name] = (lost, doubled)
        return found

    @property
    def is_archived(self) -> bool:
        """Whether every row is there."""
        return all(self.wanted[name] <= set(read_rows(self.settings, name)) for name in NAMES)

    def check(self) -> None:
        """Hold the tables against what was scored: nothing lost, nothing twice, the account balanced."""
        faults = self.faults()
        assert faults == {}, faults  # as name: (lost, doubled); pytest shows the values of test modules alone
        account = audit_stream(self.settings)
        assert account.balanced
        assert account.consumed == self.count
        assert {name: table.pending for name, table in account.tables.items()} == {"predictions": 0, "dead_letters": 0}


def read_rows(settings: StreamSettings, name: str) -> Counter[str]:
    """Count the rows of each event id; there is nothing where there is no table."""
    place = f"{settings.tables_folder}/{name}"
    if not DeltaTable.is_deltatable(place):
        return Counter()
    return Counter(DeltaTable(place).to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())
