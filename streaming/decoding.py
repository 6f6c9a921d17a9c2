"""The first stage of SCORE, inside a Spark Python worker: Kafka rows to image rows.

It imports no Spark, so that a worker starts fast and the tests need no JVM.
"""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from schemas import envelope
from schemas.errors import ContractError, Reason, RecordError
from sparkdl.decode import DecodedImage, DecodeLimits, decode_image
from sparkdl.imagerow import IMAGE_ARROW_TYPE, IMAGE_DDL

DECODED_DDL = f"""
    topic string, partition int, offset bigint, timestamp timestamp, key binary,
    headers array<struct<key: string, value: binary>>,
    image struct<{IMAGE_DDL}>,
    media_type string, height int, width int, decode_seconds double,
    source string, id string, captured_at string, sha256 string, payload_bytes bigint, event_id string,
    reason string, error_class string, error_message string, error_trace string, payload binary
"""
"""What decoding gives for every Kafka row. ``image`` is null where decoding failed; ``payload``, the original bytes, is
null where it did not: rows stay small on their way to the network."""

_MAX_TRACE_CHARS = 8000
"""Of a stack trace in a dead letter's header: enough to find the place, small beside the broker's message limit."""

_ADDED_FIELDS = [
    pa.field("image", IMAGE_ARROW_TYPE),
    pa.field("media_type", pa.string()),
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("decode_seconds", pa.float64()),
    pa.field("source", pa.string()),
    pa.field("id", pa.string()),
    pa.field("captured_at", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("payload_bytes", pa.int64()),
    pa.field("event_id", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("error_class", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("error_trace", pa.string()),
    pa.field("payload", pa.binary()),
]
_KEPT = ("topic", "partition", "offset", "timestamp", "key", "headers")


DecodeRecord = Callable[[Mapping[str, Any], bytes | None, "DecodePlan"], dict[str, Any]]
"""What `decode_record` is."""


@dataclass(frozen=True)
class DecodePlan:
    """What a worker must know to decode.

    Parameters
    ----------
    size : tuple of int
        (height, width) in pixels that the network wants.
    limits : DecodeLimits
        Caps on bytes and pixels.
    model_sha256 : str
        Part of every prediction's id.
    """

    size: tuple[int, int]
    limits: DecodeLimits
    model_sha256: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the headers of an input message say.

    Parameters
    ----------
    content_type, source, id, time : str or None
        None where the header is absent.
    """

    content_type: str | None
    source: str | None
    id: str | None
    time: str | None


def decode_batches(
    batches: Iterator[pa.RecordBatch], plan: DecodePlan, decode: DecodeRecord | None = None
) -> Iterator[pa.RecordBatch]:
    """Decode batches of Kafka rows; a row that fails carries its reason and its original bytes.

    Parameters
    ----------
    batches : iterator of pyarrow.RecordBatch
        Columns of Spark's Kafka source, headers included.
    plan : DecodePlan
        See there.
    decode : callable, optional
        Decodes one row; by default `decode_record`.

    Yields
    ------
    pyarrow.RecordBatch
        Columns of `DECODED_DDL`; as many rows as came in.
    """
    decode = decode or decode_record
    for batch in batches:
        payloads = batch.column("value")
        rows = batch.select(["topic", "partition", "offset", "headers"]).to_pylist()
        added = [decode(row, payload.as_py(), plan) for row, payload in zip(rows, payloads, strict=True)]
        columns = [pa.array([row.get(field.name) for row in added], field.type) for field in _ADDED_FIELDS]
        kept = [batch.column(name) for name in _KEPT]
        kept_fields = [batch.schema.field(name) for name in _KEPT]
        yield pa.RecordBatch.from_arrays([*kept, *columns], schema=pa.schema([*kept_fields, *_ADDED_FIELDS]))


def decode_record(row: Mapping[str, Any], payload: bytes | None, plan: DecodePlan) -> dict[str, Any]:
    """Decode one Kafka row.

    Parameters
    ----------
    row : Mapping
        ``topic``, ``partition``, ``offset`` and ``headers`` (sequence of ``{"key", "value"}`` or None).
    payload : bytes or None
        The message's value.
    plan : DecodePlan
        See there.

    Returns
    -------
    dict
        The columns that decoding adds; absent ones are null.
    """
    started = time.perf_counter()
    origin = name_origin(row)
    sha256 = hashlib.sha256(payload or b"").hexdigest()
    added: dict[str, Any] = {"sha256": sha256, "payload_bytes": len(payload or b"")}
    # Without a readable envelope the record's place in the topic is its identity.
    identity = _position(row)
    try:
        header = read_envelope(row["headers"] or (), origin=origin)
        if header.source and header.id:
            identity = (header.source, header.id)
        added |= {"source": header.source, "id": header.id, "captured_at": header.time}
        decoded = decode_image(
            payload, origin=origin, content_type=header.content_type, size=plan.size, limits=plan.limits
        )
        added |= _describe(decoded)
        added["event_id"] = envelope.derive_event_id(*identity, sha256, plan.model_sha256)
    except MemoryError:
        raise  # the machine's fault, not the record's: the batch stops and is retried
    except RecordError as exc:
        added |= _describe_failure(exc, exc.reason, exc.detail, identity, sha256, payload)
    except Exception as exc:
        detail = f"an error that nobody foresaw ({type(exc).__name__}); its own words are withheld"
        added |= _describe_failure(exc, Reason.UNEXPECTED, detail, identity, sha256, payload)
    added["decode_seconds"] = time.perf_counter() - started
    return added


def reject_record(row: Mapping[str, Any], payload: bytes | None, error: RecordError) -> dict[str, Any]:
    """Describe a row that is to become a dead letter without being decoded; see `decode_record`."""
    sha256 = hashlib.sha256(payload or b"").hexdigest()
    failure = _describe_failure(error, error.reason, error.detail, _position(row), sha256, payload)
    return {"sha256": sha256, "payload_bytes": len(payload or b""), "decode_seconds": 0.0, **failure}


def name_origin(row: Mapping[str, Any]) -> str:
    """Name a row's place, e.g. ``"xray.images-3@1024"``."""
    topic, partition, offset = _position(row)
    return f"{topic}-{partition}@{offset}"


def _position(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["topic"], str(row["partition"]), str(row["offset"])


def read_envelope(headers: Sequence[Mapping[str, Any]], *, origin: str) -> Envelope:
    """Read the headers that matter; their names are read in any case, and the last of several with one name counts.

    Raises
    ------
    ContractError
        A header that matters is not UTF-8.
    """
    raw: dict[str, bytes] = {}
    for header in headers:
        raw[header["key"].lower()] = header["value"] or b""
    return Envelope(
        content_type=_text(raw, envelope.CONTENT_TYPE, origin),
        source=_text(raw, envelope.CE_SOURCE, origin),
        id=_text(raw, envelope.CE_ID, origin),
        time=_text(raw, envelope.CE_TIME, origin),
    )


def _text(raw: Mapping[str, bytes], name: str, origin: str) -> str | None:
    if name not in raw:
        return None
    try:
        return raw[name].decode()
    except UnicodeDecodeError as exc:
        detail = f"header {name} is not UTF-8 at byte {exc.start}; headers are UTF-8 text"
        raise ContractError(Reason.INVALID_HEADER, origin, detail) from exc


def _describe(decoded: DecodedImage) -> dict[str, Any]:
    return {
        "image": asdict(decoded.image),
        "media_type": decoded.media_type,
        "height": decoded.original_height,
        "width": decoded.original_width,
    }


def _describe_failure(
    exc: Exception, reason: Reason, detail: str, identity: tuple[str, ...], sha256: str, payload: bytes | None
) -> dict[str, Any]:
    return {
        "image": None,
        "reason": reason.value,
        "error_class": f"{type(exc).__module__}.{type(exc).__qualname__}",
        "error_message": detail,
        "error_trace": _format_trace(exc)[-_MAX_TRACE_CHARS:],
        "payload": payload,
        "event_id": envelope.derive_event_id(*identity, sha256, "dead-letter"),
    }


def _format_trace(exc: BaseException) -> str:
    """Give the stack as Python prints it, without what libraries say: they quote the file, and so a patient's name."""
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    before = f"{_format_trace(cause)}\n" if cause is not None else ""
    said = f": {exc}" if isinstance(exc, RecordError) else ""
    stack = "".join(traceback.format_tb(exc.__traceback__))
    return f"{before}Traceback (most recent call last):\n{stack}{type(exc).__module__}.{type(exc).__qualname__}{said}\n"
