"""One table's loop, with a topic that is made up: what waits in it, and what is gone from it."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from schemas.documents import load_tables
from schemas.errors import TableError
from streaming.archive.archivemetrics import ArchiveMetrics
from streaming.archive.archiver import Archiver
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.outcomereader import Piece
from streaming.kafka.topicids import TopicIds
from streaming.settings import StreamSettings

TOPIC, TABLE = "xray.features", "features"
DAY_S = 86_400.0
RETENTION_S = 7 * DAY_S


class MadeUpReader:
    """A topic of one partition, that has some offsets and gives the pieces it is told."""

    pieces: Iterator[Piece]
    span = range(10)

    def __init__(self, *_: object) -> None:
        self.places: Mapping[int, int] = {}

    def read_spans(self) -> dict[int, range]:
        return {0: self.span}

    def go_to(self, places: Mapping[int, int]) -> None:
        self.places = dict(places)

    def read(self, *_: object, **__: object) -> Piece:
        piece = next(self.pieces)
        self.places = dict(piece.places)
        return piece

    def last_ends(self) -> dict[int, int]:
        return {0: self.span.stop}

    def tell_group(self, places: Mapping[int, int]) -> None:
        pass


def piece(place: int, *, days: float | None, is_full: bool) -> Piece:
    """A piece up to a place, whose first record is so many days old; without records where ``days`` is None."""
    n_records = 0 if days is None else 2
    oldest_ms = None if days is None else int(1000 * (time.time() - days * DAY_S))
    return Piece({0: place}, 2 if is_full else 5000, n_records=n_records, oldest_ms=oldest_ms)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def start(tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Archiver]:
    """Begin a loop over one and the same table, as each start of an archive does."""
    where = "streaming.archive.archiver"
    monkeypatch.setattr(f"{where}.OutcomeReader", MadeUpReader)
    monkeypatch.setattr(f"{where}.read_topic_ids", lambda *_: TopicIds("a cluster", {TOPIC: "a topic"}))
    monkeypatch.setattr(f"{where}.read_retention_ms", lambda *_: int(1000 * RETENTION_S))
    tables = load_tables()
    metrics = ArchiveMetrics(registry, tables)

    def begin(*, accept_loss: bool = False) -> Archiver:
        settings = StreamSettings(home=tmp_path)
        return Archiver(settings, tables[TABLE], TOPIC, str(uuid4()), metrics, accept_loss=accept_loss)

    return begin


@pytest.fixture
def archiver(start: Callable[..., Archiver]) -> Archiver:
    return start()


def days_left(registry: CollectorRegistry) -> float:
    left, waiting = (
        registry.get_sample_value(f"xray_archive_{name}_seconds", {"table": TABLE})
        for name in ("retention_left", "oldest_waiting")
    )
    assert left is not None
    assert left + (waiting or 0) == pytest.approx(7 * DAY_S), "the retention is a week"
    return left / DAY_S


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        pytest.param([(0, None, False)], 7, id="nothing waits"),
        pytest.param([(4, 6.5, False)], 7, id="all is written"),
        pytest.param([(4, 6.5, True)], 0.5, id="more waits behind a full piece"),
        pytest.param([(4, 6.5, True), (6, 5, True)], 2, id="a backlog is caught up with"),
        pytest.param([(4, 6.5, True), (10, 5, False)], 7, id="it is caught up with"),
    ],
)
def test_what_waits_is_counted_from_the_last_known_age(
    pieces: list[tuple[int, float | None, bool]], left: float, archiver: Archiver, registry: CollectorRegistry
) -> None:
    MadeUpReader.pieces = (piece(place, days=days, is_full=is_full) for place, days, is_full in pieces)
    for _, _, is_full in pieces:
        assert archiver.turn() is is_full
    assert days_left(registry) == pytest.approx(left, abs=0.01)


def test_what_cannot_be_written_waits(
    archiver: Archiver, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise TableError("no space left")

    MadeUpReader.pieces = iter([piece(0, days=None, is_full=False), piece(4, days=6, is_full=False)])
    assert not archiver.turn()
    monkeypatch.setattr(ArchiveTable, "append", fail)
    assert not archiver.turn()
    assert days_left(registry) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "span",
    [
        pytest.param(range(7, 10), id="retention removed some"),
        pytest.param(range(10, 10), id="retention removed all there was"),
        pytest.param(range(2), id="the brokers lost some"),
    ],
)
def test_a_loss_is_agreed_to_once(span: range, start: Callable[..., Archiver], monkeypatch: pytest.MonkeyPatch) -> None:
    MadeUpReader.pieces = iter([piece(4, days=1, is_full=False)])
    start().turn()
    monkeypatch.setattr(MadeUpReader, "span", span)
    refused = start()
    assert not refused.turn()
    assert refused.lost is not None
    # Nothing comes that would be written, and the archive ends again.
    MadeUpReader.pieces = iter([piece(span.start, days=None, is_full=False)] * 2)
    agreed = start(accept_loss=True)
    agreed.turn()
    assert agreed.lost is None
    later = start()
    later.turn()
    assert later.lost is None
    assert later.is_working
