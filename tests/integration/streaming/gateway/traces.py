"""The search for patients' markers in what a gateway and a stream leave behind: files, topics, tables, databases."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from confluent_kafka import Consumer

from streaming.settings import KafkaSettings
from tests.integration.consumers import read_topic
from tests.unit.streaming.devices.markers import find_markers
from xray.simulator.patient import MARKER

_PIECE_BYTES, _OVERLAP_BYTES = 8 << 20, 256 << 10
_SIMULATED = tuple(MARKER.encode(encoding) for encoding in ("ascii", "utf-16-le", "utf-16-be"))
_UID = re.compile(rb"2\.25\.[0-9]{30,39}")
_SQLITE = b"SQLite format 3\0"


def search_bytes(content: bytes, uids: frozenset[bytes] = frozenset()) -> list[bytes]:
    """Search bytes, and what inflates from any place of them.

    Parameters
    ----------
    content : bytes
        Where.
    uids : frozenset of bytes
        What is searched beside the markers.
    """
    found: list[bytes] = []
    for start in range(0, max(1, len(content)), _PIECE_BYTES):
        piece = content[start : start + _PIECE_BYTES + _OVERLAP_BYTES]
        found += find_markers(piece)
        found += [text for text in _SIMULATED if text in piece]
        found += [uid for uid in _UID.findall(piece) if uid in uids]
    return found


def search_folder(folder: Path, uids: frozenset[bytes] = frozenset()) -> dict[str, list[bytes]]:
    """Search each file in a folder, its name too, and the columns of tables and the rows of databases as text.

    Returns
    -------
    dict
        What was found, by the file that it is in.
    """
    found: dict[str, list[bytes]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        parts = [name.encode(), *(_read(path) if path.is_file() else ())]
        if hits := [hit for part in parts for hit in search_bytes(part, uids)]:
            found[name] = hits
    return found


def search_topics(kafka: KafkaSettings, uids: frozenset[bytes] = frozenset()) -> dict[str, list[bytes]]:
    """Search keys, values and headers of all that topics hold, as their consumers see it."""
    consumer = Consumer(kafka.to_librdkafka() | {"group.id": "search"})
    topics = [name for name in consumer.list_topics(timeout=30).topics if not name.startswith("__")]
    consumer.close()
    found: dict[str, list[bytes]] = {}
    for topic in topics:
        for record in read_topic(kafka, topic):
            headers = [part for name, value in record.headers for part in (name.encode(), value)]
            for part in (record.key or b"", record.value or b"", *headers):
                if hits := search_bytes(part, uids):
                    found.setdefault(topic, []).extend(hits)
    return found


def _read(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    if path.suffix == ".parquet":
        yield repr(pq.read_table(path).to_pydict()).encode()
    if content.startswith(_SQLITE):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            yield "\n".join(database.iterdump()).encode()
