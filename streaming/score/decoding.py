"""The first step of SCORE, inside a Spark Python worker: Kafka rows to image rows.

It imports no Spark, so that a worker starts fast and the tests need no JVM.
"""

import hashlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from schemas.errors import ContractError, Reason, RecordError
from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import DecodeLimits

_MAX_TRACE_CHARS = 8000
"""Of a stack trace in a dead letter's header: enough to find the place, small beside the broker's message limit."""

_OVERHEAD = envelope.HEADER_OVERHEAD_BYTES
_REDRIVE_MARKS = pa.array([envelope.REDRIVEN_FROM, envelope.REDRIVEN_TOPIC_ID])


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
    rendering : int
        Rendering version of the model's card.
    max_record_bytes : int
        Largest record whose dead letter can hold all of it: key, headers and value together. Brokers and clients
        limit a batch of records as it was compressed, so what is unpacked here can be larger.
    """

    size: tuple[int, int]
    limits: DecodeLimits
    model_sha256: str
    rendering: int
    max_record_bytes: int = envelope.MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class RecordSizes:
    """How large a Kafka record is, in bytes.

    Parameters
    ----------
    key, value : int
        0 where there is none.
    largest_header : int
        Name and value.
    headers : int
        Names and values, and `envelope.HEADER_OVERHEAD_BYTES` for each header; the marks of a re-drive do not count, up
        to `envelope.MAX_REDRIVE_BYTES`.
    n_headers : int
        How many there are.
    """

    key: int
    value: int
    largest_header: int
    headers: int
    n_headers: int

    @property
    def whole(self) -> int:
        """All of it."""
        return self.key + self.value + self.headers


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


def decode_rows(batch: pa.RecordBatch, plan: DecodePlan, decode: DecodeRecord | None = None) -> list[dict[str, Any]]:
    """Decode a batch of Kafka rows; a row that fails carries its reason and its original bytes.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Columns of Spark's Kafka source, headers included.
    plan : DecodePlan
        See there.
    decode : callable, optional
        Decodes one row; by default `decode_record`.

    Returns
    -------
    list of dict
        As many as rows came in: ``topic``, ``partition``, ``offset``, ``timestamp_ms`` (the broker's), ``key`` and
        ``headers``, null where they are too large to travel on, and what `decode_record` adds.
    """
    decode = decode or decode_record
    stamps = (batch.column("timestamp").cast(pa.int64()).to_numpy(zero_copy_only=False) // 1000).tolist()
    return [
        _decode_row(batch, i, sizes, plan, decode) | {"timestamp_ms": stamp}
        for i, (sizes, stamp) in enumerate(zip(measure_records(batch), stamps, strict=True))
    ]


def _decode_row(
    batch: pa.RecordBatch, i: int, sizes: RecordSizes, plan: DecodePlan, decode: DecodeRecord
) -> dict[str, Any]:
    row = {name: batch.column(name)[i].as_py() for name in ("topic", "partition", "offset")}
    payload = batch.column("value")[i].as_py()
    left_out = _left_out(sizes, plan)
    # Headers are not made Python's own before they are known to be few.
    kept = {name: None if name in left_out else batch.column(name)[i].as_py() for name in ("key", "headers")}
    error = _find_excess(sizes, plan, name_origin(row))
    if error is None:
        return row | kept | decode(row | kept, payload, plan)
    rejected = reject_record(row, payload, error)
    return row | kept | rejected | ({"payload": None} if "value" in left_out else {})


def _left_out(sizes: RecordSizes, plan: DecodePlan) -> frozenset[str]:
    """Name the parts of a record that its dead letter cannot hold; they stay in the images topic alone."""
    if sizes.whole > plan.max_record_bytes:
        return frozenset({"key", "headers", "value"})
    return frozenset({"headers"} if sizes.n_headers > envelope.MAX_KEPT_HEADERS else ())


def measure_records(batch: pa.RecordBatch) -> list[RecordSizes]:
    """Measure Kafka rows without making Python objects of them.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Columns of Spark's Kafka source.
    """
    headers = batch.column("headers")
    flat = headers.flatten()
    names = pc.struct_field(flat, "key")
    sizes = _lengths(names) + _lengths(pc.struct_field(flat, "value"))
    marks = np.where(pc.is_in(names, _REDRIVE_MARKS).to_numpy(zero_copy_only=False), sizes + _OVERHEAD, 0)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(headers), 0).to_numpy())
    keys, values = _lengths(batch.column("key")), _lengths(batch.column("value"))
    measured = []
    for key, value, own, own_marks in zip(keys, values, *(np.split(x, ends)[:-1] for x in (sizes, marks)), strict=True):
        room = min(int(own_marks.sum()), envelope.MAX_REDRIVE_BYTES)
        largest, total = int(own.max(initial=0)), int(own.sum()) + _OVERHEAD * len(own) - room
        measured.append(RecordSizes(int(key), int(value), largest, total, len(own)))
    return measured


def _lengths(column: pa.Array) -> Any:
    return pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)


def _find_excess(sizes: RecordSizes, plan: DecodePlan, origin: str) -> ContractError | None:
    """Say which bound of the contract a record breaks; None where it keeps them all."""
    bounds = (
        (Reason.RECORD_TOO_LARGE, "the record unpacked", sizes.whole, plan.max_record_bytes),
        (Reason.KEY_TOO_LARGE, "the key", sizes.key, envelope.MAX_KEY_BYTES),
        (Reason.HEADER_TOO_LARGE, "the largest header", sizes.largest_header, envelope.MAX_HEADER_BYTES),
        (Reason.HEADERS_TOO_LARGE, "all headers together", sizes.headers, envelope.MAX_HEADERS_BYTES),
    )
    for reason, what, found, most in bounds:
        if found > most:
            return ContractError(reason, origin, f"{what} has {found} bytes, expected at most {most}")
    return None


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
        ``sha256``, ``payload_bytes``, ``event_id`` and ``decode_seconds``; where its headers can be read ``source``,
        ``id`` and ``captured_at``. Of an image ``image`` (`ImageRow`), ``media_type``, ``height`` and ``width`` as they
        came; of one that fails ``reason``, ``error_class``, ``error_message``, ``error_trace`` and ``payload``, its
        bytes.
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
            payload,
            origin=origin,
            content_type=header.content_type,
            size=plan.size,
            limits=plan.limits,
            rendering=plan.rendering,
        )
        added |= _describe(decoded)
        added["event_id"] = envelope.derive_event_id(*identity, sha256, plan.model_sha256)
    except (MemoryError, ImportError):
        raise  # the machine's fault, not the record's: the batch stops and is retried
    except RecordError as exc:
        added |= _describe_failure(exc, exc.reason, exc.detail, identity, sha256, payload)
    except Exception as exc:
        detail = f"an error that nobody foresaw ({type(exc).__name__}); its own words are withheld"
        added |= _describe_failure(exc, Reason.UNEXPECTED, detail, identity, sha256, payload)
    added["decode_seconds"] = time.perf_counter() - started
    return added


def reject_record(row: Mapping[str, Any], payload: bytes | None, error: RecordError) -> dict[str, Any]:
    """Describe a row that is to become a dead letter, decoded or not; see `decode_record`."""
    sha256 = hashlib.sha256(payload or b"").hexdigest()
    identity = (row["source"], row["id"]) if row.get("source") and row.get("id") else _position(row)
    failure = _describe_failure(error, error.reason, error.detail, identity, sha256, payload)
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
        "image": decoded.image,
        "media_type": decoded.media_type,
        "height": decoded.original_height,
        "width": decoded.original_width,
    }


def _describe_failure(
    exc: Exception, reason: Reason, detail: str, identity: tuple[str, ...], sha256: str, payload: bytes | None
) -> dict[str, Any]:
    return {
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
