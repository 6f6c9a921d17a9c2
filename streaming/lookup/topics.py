"""Looks for images in the topics: of the outcomes those that the tables do not have yet, of the others all."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from confluent_kafka import Message

from schemas import envelope
from schemas.errors import TableError
from streaming.account.archived import find_archived
from streaming.gateway.receipts.receipt import Receipt, choose_last, read_receipt
from streaming.kafka.places import header_text, place_of, read_headers
from streaming.kafka.reader import find_offsets, open_reader, read_spans, scan_offsets
from streaming.lookup.history import Confirmed, ImageRecord, Looked, Reach
from streaming.lookup.outcome import Outcome, no_band, read_dead_letter, read_prediction
from streaming.lookup.query import Query
from streaming.reports.records import read_finding_record
from streaming.settings import KafkaSettings

T = TypeVar("T")

Spans = Mapping[int, range]
"""Offsets by partition."""


def search_outcomes(
    kafka: KafkaSettings, tables_folder: str, query: Query, since: datetime | None
) -> tuple[list[Outcome], list[Looked]]:
    """Search the outcome topics, from where the archive has come to.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    tables_folder : str
        Path or URI of the tables.
    query : Query
        What is asked.
    since : datetime, optional
        Outcomes before are not read; no image's outcome is before its image.

    Returns
    -------
    outcomes : list of Outcome
        As they come.
    looked : list of Looked
        One for each topic.

    Raises
    ------
    BrokerError, SettingsError
        Nobody answers, or there is no such topic.
    """
    topics = (kafka.predictions_topic, kafka.deadletters_topic)
    spans = {topic: _read_spans(kafka, topic) for topic in topics}
    archived, why = _find_archived(kafka, tables_folder, spans)
    found: list[Outcome] = []
    looked: list[Looked] = []
    for topic, read in zip(topics, (_read_scored, read_dead_letter), strict=True):
        unread, limits = cut_archived(spans[topic], archived.get(topic, {}))
        unread, late = _begin_since(kafka, topic, unread, since)
        outcomes = [one for one in _read_all(kafka, topic, unread, read) if query.takes(one)]
        found += outcomes
        told = "; ".join(filter(None, (_describe_read(unread, spans[topic]), why, limits, late)))
        looked.append(Looked(f"topic {topic}", len(outcomes), told, Reach.PART if limits or late else Reach.ALL))
    return found, looked


def cut_archived(spans: Spans, archived: Mapping[int, int]) -> tuple[dict[int, range], str]:
    """Leave out what the table of a topic has.

    Parameters
    ----------
    spans : Mapping of int to range
        What each partition has now.
    archived : Mapping of int to int
        Next offset that the table does not have, by partition.

    Returns
    -------
    spans : dict of int to range
        What is to be read.
    limits : str
        What neither topic nor table has any more; empty where there is no such gap.
    """
    unread = {number: range(max(span.start, archived.get(number, 0)), span.stop) for number, span in spans.items()}
    gaps = [
        f"{number}@{archived.get(number, 0)} to {number}@{span.start - 1}"
        for number, span in spans.items()
        if archived.get(number, 0) < span.start
    ]
    if not gaps:
        return unread, ""
    return unread, f"retention has removed {', '.join(gaps)}, which no table has: an outcome there cannot be found"


def _find_archived(
    kafka: KafkaSettings, tables_folder: str, spans: Mapping[str, Spans]
) -> tuple[dict[str, dict[int, int]], str]:
    try:
        return find_archived(tables_folder, kafka, spans), ""
    except TableError as exc:
        return {}, f"read from its beginning, for how far the tables are filled is not known: {exc}"


def _describe_read(unread: Spans, spans: Spans) -> str:
    n, total = sum(map(len, unread.values())), sum(map(len, spans.values()))
    if n == total:
        return f"all {total} records that it has were read"
    return f"the last {n} of its {total} records were read, the others are in the table"


def search_receipts(kafka: KafkaSettings, query: Query) -> tuple[list[Receipt], Looked]:
    """Search the receipts topic for the last state of each image; see `search_outcomes` for what is raised."""
    topic = kafka.receipts_topic
    last: dict[str, Receipt] = {}

    def read(message: Message) -> Receipt | None:
        receipt = read_receipt(message.value() or b"")
        return receipt if receipt is not None and takes_receipt(query, receipt) else None

    spans = _read_spans(kafka, topic)
    for one in _read_all(kafka, topic, spans, read):
        last[one.event_id] = choose_last(last.get(one.event_id), one)
    return list(last.values()), Looked(f"topic {topic}", len(last), _describe_beginning(kafka, topic, spans))


def takes_receipt(query: Query, receipt: Receipt) -> bool:
    """Whether a receipt is of an image that is meant."""
    ids = (receipt.event_id, receipt.outcome_event_id)
    return not query.hex_ids.isdisjoint(ids) or query.takes_image(receipt.source, receipt.image_id, receipt.sha256)


def search_findings(kafka: KafkaSettings, names: frozenset[str]) -> tuple[list[Confirmed], Looked]:
    """Search the labels topic; see `search_outcomes` for what is raised.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    names : frozenset of str
        Of the images, as `streaming.reports.report.name_image` gives them.
    """
    topic = kafka.labels_topic
    spans = _read_spans(kafka, topic)
    found = [
        Confirmed(one.correction.label, one.correction.confirmed_at, None, f"topic {topic}")
        for one in _read_all(kafka, topic, spans, read_finding_record)
        if one.name in names
    ]
    return found, Looked(f"topic {topic}", len(found), _describe_beginning(kafka, topic, spans))


def search_images(kafka: KafkaSettings, query: Query, since: datetime | None) -> tuple[list[ImageRecord], Looked]:
    """Search the images topic itself, which means to read every image that it has.

    See `search_outcomes` for parameters, and what is raised.
    """
    topic = kafka.images_topic
    spans, late = _begin_since(kafka, topic, _read_spans(kafka, topic), since)
    found = list(_read_all(kafka, topic, spans, lambda message: _read_image(message, query)))
    told = "; ".join(filter(None, (late, _describe_beginning(kafka, topic, spans))))
    return found, Looked(f"topic {topic}", len(found), told, Reach.PART if late else Reach.ALL)


def _read_image(message: Message, query: Query) -> ImageRecord | None:
    # As SCORE reads them: names in any case.
    headers = {name.lower(): value for name, value in read_headers(message).items()}
    source, image_id = header_text(headers, envelope.CE_SOURCE), header_text(headers, envelope.CE_ID)
    digest = hashlib.sha256(message.value() or b"").hexdigest()
    keys = {envelope.derive_image_event_id(source, image_id, digest)} if source and image_id else set()
    if query.hex_ids.isdisjoint(keys) and not query.takes_image(source, image_id, digest):
        return None
    place = f"{message.topic()}-{place_of(message)}"
    return ImageRecord(place, message.timestamp()[1] / 1000, header_text(headers, envelope.REDRIVEN_FROM))


def _read_spans(kafka: KafkaSettings, topic: str) -> dict[int, range]:
    with open_reader(kafka) as reader:
        return read_spans(reader, topic)


def _begin_since(
    kafka: KafkaSettings, topic: str, spans: Spans, since: datetime | None
) -> tuple[dict[int, range], str]:
    if since is None:
        return dict(spans), ""
    with open_reader(kafka) as reader:
        begins = find_offsets(reader, topic, spans, since)
    late = {number: range(max(span.start, begins[number]), span.stop) for number, span in spans.items()}
    return late, f"only records from {since.isoformat(timespec='seconds')} on"


def _describe_beginning(kafka: KafkaSettings, topic: str, spans: Spans) -> str:
    """Say from when on a topic has records, for what was before nobody can look up there."""
    if not any(span.start for span in spans.values()):
        return ""
    oldest = min((message.timestamp()[1] for message in _read_firsts(kafka, topic, spans)), default=None)
    if oldest is None:
        return "retention has removed all that it had"
    day = datetime.fromtimestamp(oldest / 1000, UTC).isoformat(timespec="minutes")
    return f"retention has removed what was before {day}"


def _read_firsts(kafka: KafkaSettings, topic: str, spans: Spans) -> Iterator[Message]:
    return scan_offsets(kafka, topic, {number: span[:1] for number, span in spans.items()})


def _read_scored(message: Message) -> Outcome | None:
    return read_prediction(message, no_band)


def _read_all(kafka: KafkaSettings, topic: str, spans: Spans, read: Callable[[Message], T | None]) -> Iterator[T]:
    for message in scan_offsets(kafka, topic, spans):
        one = read(message)
        if one is not None:
            yield one
