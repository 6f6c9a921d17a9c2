"""SCORE: images in, outcomes out, through one Kafka source and one Kafka sink.

Spark's own guarantees hold because nothing else is written: a micro-batch that is not committed is done again, with the
same offsets. Outcomes are published at least once, each with an id that a replay repeats.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import array, array_contains, array_repeat, coalesce, col, count_if, lit, when
from pyspark.sql.functions import sum as sum_
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import ModelLoadError, Reason
from schemas.modelcard import Flag, ModelCard
from sparkdl.decode import DecodeLimits
from sparkdl.featurizer import DeepImageFeaturizer
from sparkdl.worker import settle_worker
from streaming.decoding import DECODED_DDL, DecodePlan, decode_batches
from streaming.metrics import (
    DECODE_BUCKETS_S,
    END_TO_END_BUCKETS_S,
    PREDICT_BUCKETS_S,
    SCORE_BUCKETS,
    BatchTotals,
)
from streaming.published import NOTHING, Published
from streaming.quarantine import ApartDecoder
from streaming.routing import Route, add_decision, route_outcomes
from streaming.settings import KafkaSettings, StreamSettings
from streaming.topics import HEADROOM_BYTES

OBSERVATION = "score"
_PREDICT_COLUMN = "predict_seconds"


@dataclass(frozen=True)
class ScorePlan:
    """What may differ between two starts of the query.

    Parameters
    ----------
    max_images : int
        Upper bound of a micro-batch.
    apart : bool
        Decode each image in a process of its own, see `streaming.quarantine`.
    skip_lost : bool
        Go on behind records that are gone, rather than fail.
    published : Published
        Outcomes of an unfinished micro-batch that are not to be published again.
    """

    max_images: int
    apart: bool = False
    skip_lost: bool = False
    published: Published = NOTHING


def start_score(
    spark: SparkSession,
    model: PipelineModel,
    card: ModelCard,
    settings: StreamSettings,
    plan: ScorePlan | None = None,
    *,
    available_now: bool = False,
) -> StreamingQuery:
    topic_ids : Mapping of str to str
        Kafka's ids of the topics that images are read from, by name; every outcome says which one it is about.
    """Start the query.

    Parameters
    ----------
    spark : SparkSession
        With the Kafka connector's jars.
    model : PipelineModel
    topic_ids: Mapping[str, str] = field(default_factory=dict)
        A `DeepImageFeaturizer` first, with a gate where the card names one; a classifier last.
    card : ModelCard
        The model's card.
    settings : StreamSettings
        Topics, limits, checkpoint.
    plan : ScorePlan, optional
        By default what the settings say.
    available_now : bool
        Score what is there, then end.

    Returns
    -------
    StreamingQuery
        Named ``score``.
    """
    plan = plan or ScorePlan(settings.score.max_images_per_batch)
    images = read_images(spark, settings, plan)
    outcomes = build_outcomes(images, model, card, settings, plan)
    writer = outcomes.writeStream.queryName("score").format("kafka").options(**_sink_options(settings.kafka))
    writer = writer.option("checkpointLocation", str(settings.checkpoints_folder / "score"))
    if available_now:
        return writer.trigger(availableNow=True).start()
    return writer.trigger(processingTime=f"{settings.score.trigger_s} seconds").start()


def read_images(spark: SparkSession, settings: StreamSettings, plan: ScorePlan) -> DataFrame:
    """Open the images and canary topics as a stream of Kafka rows."""
    kafka = settings.kafka
    options = {
        **kafka.to_spark(),
        "subscribe": f"{kafka.images_topic},{kafka.canary_topic}",
        "includeHeaders": "true",
        "startingOffsets": settings.score.starting_offsets,
        "maxOffsetsPerTrigger": str(plan.max_images),
        # Offsets that retention removed before they were read are lost images: stop and say so.
        "failOnDataLoss": "false" if plan.skip_lost else "true",
        # Kafka's default waits half a second for more data, on every trigger.
        "kafka.fetch.max.wait.ms": "10",
        # A larger message is fetched all the same, alone; what is fetched beyond a task's share is thrown away.
        "kafka.max.partition.fetch.bytes": str(4 * 1024 * 1024),
    }
    return spark.readStream.format("kafka").options(**options).load()


def _sink_options(kafka: KafkaSettings) -> dict[str, str]:
    largest = kafka.max_message_bytes + HEADROOM_BYTES
    return {
        **kafka.to_spark(),
        "kafka.acks": "all",
        "kafka.max.request.size": str(largest),
        # Must hold the largest record, or sending it fails.
        "kafka.buffer.memory": str(4 * largest),
        # Not compressed: beside the images the outcomes are small, and a plain client of any language reads them
        # (kafka-python, for one, has lz4 and zstd only as extras).
        # Images of a transaction that was aborted were never published, and the account does not count them.
        "kafka.isolation.level": "read_committed",
        "kafka.compression.type": "none",
    }


def build_outcomes(
    images: DataFrame, model: PipelineModel, card: ModelCard, settings: StreamSettings, plan: ScorePlan
) -> DataFrame:
    """Turn Kafka rows of images into Kafka rows of outcomes; the whole query but for its ends.

    Parameters
    ----------
    images : DataFrame
        Columns of Spark's Kafka source, with headers.
    model, card, settings, plan
        See `start_score`.

    Returns
    -------
    DataFrame
        ``topic, key, value, headers``; one or two rows per image.
    """
    limits = DecodeLimits(max_payload_bytes=settings.score.max_payload_bytes, max_pixels=settings.score.max_pixels)
    decoding = DecodePlan(size=featurizer_of(model).network.input_size, limits=limits, model_sha256=card.sha256)
    decoded = decode_frame(images, decoding, tries_apart=settings.score.decode_tries if plan.apart else 0)
    scored = add_decision(apply_model(model, decoded), card)
    observed = scored.observe(OBSERVATION, *_observations(card, settings.kafka))
    route = Route(settings.kafka, card, featurizer_of(model).getOutputCol(), plan.published, plan.topic_ids)
    return route_outcomes(observed, route)


def decode_frame(images: DataFrame, plan: DecodePlan, *, tries_apart: int = 0) -> DataFrame:
    """Decode Kafka rows into `DECODED_DDL`; with tries, each in a process of its own."""

    def decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        settle_worker("decode")
        if tries_apart:
            with ApartDecoder(tries_apart) as decoder:
                yield from decode_batches(batches, plan, decoder.decode)
        else:
            yield from decode_batches(batches, plan)

    wanted = images.select("topic", "partition", "offset", "timestamp", "key", "headers", "value")
    return wanted.mapInArrow(decode, DECODED_DDL)


def featurizer_of(model: PipelineModel) -> DeepImageFeaturizer:
    """Return the pipeline's first stage.

    Raises
    ------
    ModelLoadError
        It is not a `DeepImageFeaturizer`.
    """
    first = model.stages[0]
    if not isinstance(first, DeepImageFeaturizer):
        msg = f"the model's first stage is {type(first).__name__}, wanted DeepImageFeaturizer"
        raise ModelLoadError(msg)
    return first


def apply_model(model: PipelineModel, decoded: DataFrame) -> DataFrame:
    """Apply the pipeline to rows of which some have no image.

    Spark's classifiers fail on null features, so rows without an image get zeros behind the featurizer; their outcome
    is their reason, whatever the classifier makes of the zeros.
    """
    featurizer = featurizer_of(model).copy().setTimingCol(_PREDICT_COLUMN)
    name = featurizer.getOutputCol()
    zeros = array_to_vector(array_repeat(lit(0.0), featurizer.network.n_features))
    featurized = featurizer.transform(decoded)
    filled = featurized.withColumn(name, coalesce(col(name), zeros))
    return reduce(lambda frame, stage: stage.transform(frame), model.stages[1:], filled)


def _observations(card: ModelCard, kafka: KafkaSettings) -> list[Column]:
    """Aggregate a micro-batch, in the shape that `read_totals` takes apart."""
    real = col("topic") != kafka.canary_topic
    scored = real & col("reason").isNull()
    # From the broker's time stamp (see streaming.topics): a device's clock may be wrong by years.
    waited_s = col("scored_ms") / 1000 - col("timestamp").cast("double")
    return [
        count_if(real).alias("consumed"),
        coalesce(sum_(when(real, col("payload_bytes"))), lit(0)).alias("input_bytes"),
        array(*[count_if(scored & (col("label_name") == answer)) for answer in card.answers]).alias("predictions"),
        array(*[count_if(scored & array_contains("flags", flag.value)) for flag in Flag]).alias("flags"),
        array(*[count_if(real & (col("reason") == reason.value)) for reason in Reason]).alias("dead_letters"),
        *_histogram("decode", col("decode_seconds"), DECODE_BUCKETS_S, real),
        *_histogram("predict", col(_PREDICT_COLUMN), PREDICT_BUCKETS_S, scored),
        *_histogram("end_to_end", waited_s, END_TO_END_BUCKETS_S, scored),
        *_histogram("score", col("score"), SCORE_BUCKETS, scored),
    ]


def _histogram(name: str, value: Column, bounds: Sequence[float], where: Column) -> list[Column]:
    edges = [(None, bounds[0]), *pairwise(bounds), (bounds[-1], None)]
    counts = [count_if(where & _between(value, low, high)) for low, high in edges]
    total = coalesce(sum_(when(where, value)), lit(0.0))
    return [array(*counts).alias(f"{name}_counts"), total.alias(f"{name}_sum")]


def _between(value: Column, low: float | None, high: float | None) -> Column:
    above = lit(True) if low is None else value > low
    below = lit(True) if high is None else value <= high
    return above & below


def read_totals(observed: Any, card: ModelCard) -> BatchTotals:
    """Take apart what Spark observed in one micro-batch.

    Parameters
    ----------
    observed : pyspark.sql.Row
        Of the observation `OBSERVATION`.
    card : ModelCard
        The one the query was built with.
    """
    names = ("decode", "predict", "end_to_end", "score")
    return BatchTotals(
        consumed=observed["consumed"],
        input_bytes=observed["input_bytes"],
        predictions=dict(zip(card.answers, observed["predictions"], strict=True)),
        flags=dict(zip([flag.value for flag in Flag], observed["flags"], strict=True)),
        dead_letters=dict(zip([reason.value for reason in Reason], observed["dead_letters"], strict=True)),
        histograms={name: (list(observed[f"{name}_counts"]), float(observed[f"{name}_sum"])) for name in names},
    )
