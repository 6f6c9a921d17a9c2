"""All that SCORE does in Python, in one step: Kafka rows in, the records of their outcomes out.

Decoding, the network and the records share one worker, so pixels never cross between processes, and a micro-batch
waits for one worker of each task. The classifier is Spark's: a prediction goes there with its features.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import Reason, RecordError, UnsupportedImageError
from sparkdl.engine.base import Engine
from sparkdl.image.row import ImageRow
from sparkdl.transformers.batches import TellNovel, read_row
from streaming.score.decoding import DecodePlan, DecodeRecord, decode_rows, name_origin, reject_record
from streaming.score.outcomes import Outcome, OutcomePlan, write_dead_letter, write_features, write_prediction

_HEADERS_DDL = "array<struct<key: string, value: binary>>"
SCORED_DDL = f"""
    topic string, key binary, value binary, headers {_HEADERS_DDL}, head string,
    features array<float>, novel boolean, is_published boolean,
    image struct<payload_bytes: bigint, reason: string, decode_seconds: double, predict_seconds: double,
                 waited_seconds: double>,
    refusal struct<value: binary, headers: {_HEADERS_DDL}>
"""
"""The records of outcomes: one or two rows per image.

``head`` is a prediction's, whose ``value`` is null. ``features`` are the image's; zeros, which nobody looks at, for a
dead letter. ``image`` is what metrics count, on one row of each image and on none of a canary. ``refusal`` is what a
prediction becomes where the classifier has no answer; null unless the plan wants it."""

NO_FEATURES = "the network or the classifier gave no numbers, or some that are not finite; expected finite ones"

_HEADERS_TYPE = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
_IMAGE_TYPE = pa.struct(
    [
        ("payload_bytes", pa.int64()),
        ("reason", pa.string()),
        ("decode_seconds", pa.float64()),
        ("predict_seconds", pa.float64()),
        ("waited_seconds", pa.float64()),
    ]
)
_REFUSAL_TYPE = pa.struct([("value", pa.binary()), ("headers", _HEADERS_TYPE)])

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoringPlan:
    """What a worker must know to score.

    Parameters
    ----------
    decoding : DecodePlan
        How images are decoded.
    outcomes : OutcomePlan
        Where outcomes go and what they say.
    refusals : bool
        Send along what becomes of each image that the classifier has no answer for, with its original bytes.
    """

    decoding: DecodePlan
    outcomes: OutcomePlan
    refusals: bool = False


@dataclass(frozen=True)
class _Scored:
    """One row of `SCORED_DDL`."""

    outcome: Outcome
    is_published: bool
    features: Features | None = None
    novel: bool | None = None
    image: dict[str, Any] | None = None
    refusal: dict[str, Any] | None = None


def score_batches(
    batches: Iterator[pa.RecordBatch],
    plan: ScoringPlan,
    engine: Engine,
    tell_novel: TellNovel | None = None,
    decode: DecodeRecord | None = None,
) -> Iterator[pa.RecordBatch]:
    """Score batches of Kafka rows.

    Parameters
    ----------
    batches : iterator of pyarrow.RecordBatch
        Columns of Spark's Kafka source, headers included.
    plan : ScoringPlan
        See there.
    engine : Engine
        Runs the network.
    tell_novel : callable, optional
        Asked of the features of each batch.
    decode : callable, optional
        See `decode_rows`.

    Yields
    ------
    pyarrow.RecordBatch
        Columns of `SCORED_DDL`, in the order of the rows that came in.
    """
    n_features = engine.network.n_features
    for batch in batches:
        yield _to_arrow(list(_score_batch(batch, plan, engine, tell_novel, decode)), n_features)


def _score_batch(
    batch: pa.RecordBatch,
    plan: ScoringPlan,
    engine: Engine,
    tell_novel: TellNovel | None,
    decode: DecodeRecord | None,
) -> Iterator[_Scored]:
    rows = decode_rows(batch, plan.decoding, decode)
    vectors = [None if "reason" in row else _run_network(row, engine) for row in rows]
    present = [vector for vector in vectors if vector is not None]
    novel = iter(tell_novel(np.stack(present)).tolist() if tell_novel and present else ())
    scored_ms = time.time_ns() // 1_000_000
    for row, vector, payload in zip(rows, vectors, batch.column("value"), strict=True):
        if vector is not None:
            yield from _answer(row, vector, next(novel, None), payload, plan, scored_ms)
        elif not plan.outcomes.is_canary(row):  # one without an answer is noticed by whoever waits for it
            failed = row if "reason" in row else _refuse(row, payload)
            is_published = plan.outcomes.published.has_answer(row)
            yield _Scored(write_dead_letter(failed, plan.outcomes), is_published, image=_count(failed, scored_ms))


def _run_network(row: dict[str, Any], engine: Engine) -> Features | None:
    """Compute an image's features, and note how long it took; None where they are no numbers."""
    started = time.perf_counter()
    image: ImageRow = row.pop("image")
    try:
        features = engine.infer(read_row(image, engine.network))
    except RecordError:
        return None
    row["predict_seconds"] = time.perf_counter() - started
    return features if np.isfinite(features).all() else None


def _answer(
    row: dict[str, Any],
    features: Features,
    novel: bool | None,
    payload: pa.BinaryScalar,
    plan: ScoringPlan,
    scored_ms: int,
) -> Iterator[_Scored]:
    outcomes = plan.outcomes
    prediction = write_prediction(row, outcomes, scored_ms)
    if outcomes.is_canary(row):
        yield _Scored(prediction, is_published=False, features=features, novel=novel)
        return
    refusal = None
    if plan.refusals:
        dead_letter = write_dead_letter(_refuse(row, payload), outcomes)
        refusal = {"value": dead_letter.value, "headers": _name_parts(dead_letter)}
    yield _Scored(prediction, outcomes.published.has_answer(row), features, novel, _count(row, scored_ms), refusal)
    record = write_features(row, features, outcomes, scored_ms)
    yield _Scored(record, outcomes.published.has_features(row), features, novel)


def _refuse(row: Mapping[str, Any], payload: pa.BinaryScalar) -> dict[str, Any]:
    """Make a row of an image that was decoded one that failed."""
    error = UnsupportedImageError(Reason.NO_FEATURES, name_origin(row), NO_FEATURES)
    return {**row, **reject_record(row, payload.as_py(), error), "decode_seconds": row["decode_seconds"]}


def _count(row: Mapping[str, Any], scored_ms: int) -> dict[str, Any]:
    # From the broker's time stamp (see `streaming.kafka.topics`): a device's clock may be wrong by years.
    waited = (scored_ms - row["timestamp_ms"]) / 1000
    return {field.name: row.get(field.name) for field in _IMAGE_TYPE} | {"waited_seconds": waited}


def _name_parts(outcome: Outcome) -> list[dict[str, Any]]:
    return [{"key": name, "value": value} for name, value in outcome.headers]


def _to_arrow(rows: list[_Scored], n_features: int) -> pa.RecordBatch:
    outcomes = [row.outcome for row in rows]
    columns = {
        "topic": pa.array([one.topic for one in outcomes], pa.string()),
        "key": pa.array([one.key for one in outcomes], pa.binary()),
        "value": pa.array([one.value for one in outcomes], pa.binary()),
        "headers": _headers_to_arrow(outcomes),
        "head": pa.array([one.head for one in outcomes], pa.string()),
        "features": _features_to_arrow(rows, n_features),
        "novel": pa.array([row.novel for row in rows], pa.bool_()),
        "is_published": pa.array([row.is_published for row in rows], pa.bool_()),
        "image": pa.array([row.image for row in rows], _IMAGE_TYPE),
        "refusal": pa.array([row.refusal for row in rows], _REFUSAL_TYPE),
    }
    return pa.RecordBatch.from_pydict(columns)


def _headers_to_arrow(outcomes: list[Outcome]) -> pa.ListArray:
    """Build the lists from whole columns: one dictionary per header would cost more than the record."""
    flat = [header for one in outcomes for header in one.headers]
    ends = np.cumsum([0, *(len(one.headers) for one in outcomes)])
    names = pa.array([name for name, _ in flat], pa.string())
    values = pa.array([value for _, value in flat], pa.binary())
    parts = pa.StructArray.from_arrays([names, values], fields=list(_HEADERS_TYPE.value_type))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), parts)


def _features_to_arrow(rows: list[_Scored], n_features: int) -> pa.ListArray:
    zeros = np.zeros(n_features, np.float32)
    vectors = [zeros if row.features is None else row.features for row in rows]
    ends = pa.array(np.arange(len(rows) + 1) * n_features, pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate([np.empty(0, np.float32), *vectors])))
