"""Records of the topics, as predictions and findings."""

import time
from datetime import UTC, datetime

from confluent_kafka import Message

from schemas import envelope
from streaming.kafka.places import header_text, read_headers
from streaming.reports.findings import Finding, read_finding
from streaming.reports.report import LeftOut, NotReportedError, Prediction, read_prediction


def read_prediction_record(message: Message) -> Prediction:
    """Read a record of the predictions topic.

    Raises
    ------
    NotReportedError
        It is no prediction.
    """
    headers = read_headers(message)
    if headers.get(envelope.CE_TYPE) != envelope.PREDICTION_TYPE.encode():
        raise NotReportedError(LeftOut.NOT_A_PREDICTION)
    published_at = read_published_at(message)
    return read_prediction(
        message.value(),
        received_at=_read_time(header_text(headers, envelope.INPUT_TIMESTAMP), published_at),
        scored_at=_read_time(header_text(headers, envelope.CE_TIME), published_at),
    )


def read_finding_record(message: Message) -> Finding | None:
    """Read a record of the labels topic; None where it says nothing."""
    return read_finding(message.value(), received_at=read_published_at(message))


def read_published_at(message: Message) -> datetime:
    """Give a record's Kafka timestamp, UTC; the present for one that lies ahead, as far as no calendar goes."""
    return datetime.fromtimestamp(min(max(message.timestamp()[1], 0) / 1000, time.time()), UTC)


def _read_time(text: str | None, otherwise: datetime) -> datetime:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return otherwise
    return found if found.tzinfo else found.replace(tzinfo=UTC)
