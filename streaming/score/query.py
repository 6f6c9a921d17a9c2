"""SCORE: images in, outcomes out, through one Kafka source and one Kafka sink.

Spark's own guarantees hold because nothing else is written: a micro-batch that is not committed is done again, with the
same offsets. Outcomes are published at least once, each with an id that a replay repeats.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import (
    array_max,
    array_min,
    array_repeat,
    coalesce,
    col,
    collect_list,
    lit,
    raise_error,
    struct,
    when,
)
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import ModelLoadError, Reason
from schemas.modelcard import ModelCard
from sparkdl.spark.worker import prepare_worker
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.metrics import BatchTotals
from streaming.score.decoding import DECODED_DDL, DecodePlan, decode_batches
from streaming.score.isolation import IsolatedDecoder
from streaming.score.published import NOTHING, Published
from streaming.score.routing import Route, add_decision, dead_letter_id, route_outcomes
from streaming.settings import KafkaSettings, StreamSettings

OBSERVATION = "score"
_IMAGES = "images"
SOUND_COLUMN = "sound"
_PREDICT_COLUMN = "predict_seconds"
NO_FEATURES_MARK = "XRAY_NO_FEATURES"
"""What a micro-batch raises that meets an image without features."""
_NO_FEATURES = "the network or the classifier gave no numbers, or some that are not finite; expected finite ones"


@dataclass(frozen=True)
class ScorePlan:
    """What may differ between two starts of the query.

    Parameters
    ----------
    max_images : int
        Upper bound of a micro-batch.
    isolated : bool
        Decode each image in a process of its own, see `streaming.score.isolation`.
    skip_lost : bool
        Go on behind records that are gone, rather than fail.
    keep_payloads : bool
        Carry each image's original bytes along, so that one without features can become a dead letter.
    published : Published
        Outcomes of an unfinished micro-batch that are not to be published again.
    topic_ids : Mapping of str to str
        Kafka's ids of the topics that images are read from, by name; every outcome says which one it is about.
    """

    max_images: int
    isolated: bool = False
    skip_lost: bool = False
    keep_payloads: bool = False
    published: Published = NOTHING
    topic_ids: Mapping[str, str] = field(default_factory=dict)


def start_score(
    spark: SparkSession,
    model: PipelineModel,
    card: ModelCard,
    settings: StreamSettings,
    plan: ScorePlan | None = None,
    *,
    available_now: bool = False,
) -> StreamingQuery:
    """Start the query.

    Parameters
    ----------
    spark : SparkSession
        With the Kafka connector's jars.
    model : PipelineModel
        A `DeepImageFeaturizer` first, with a detector where the card names one; a classifier last.
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
        # Images of a transaction that was aborted were never published, and the account does not count them.
        "kafka.isolation.level": "read_committed",
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
    decoding = DecodePlan(
        size=featurizer_of(model).network.input_size,
        limits=settings.score.to_limits(),
        model_sha256=card.sha256,
        rendering=card.rendering_version,
        max_record_bytes=settings.kafka.max_message_bytes,
        keep_payloads=plan.keep_payloads,
    )
    decoded = decode_frame(images, decoding, tries_isolated=settings.score.decode_tries if plan.isolated else 0)
    answered = refuse_unsound(apply_model(model, decoded), settings.kafka, payloads_kept=plan.keep_payloads)
    scored = add_decision(answered, card)
    observed = scored.observe(OBSERVATION, _observe_images(settings.kafka))
    route = Route(settings.kafka, card, featurizer_of(model).getOutputCol(), plan.published, plan.topic_ids)
    return route_outcomes(observed, route)


def decode_frame(images: DataFrame, plan: DecodePlan, *, tries_isolated: int = 0) -> DataFrame:
    """Decode Kafka rows into `DECODED_DDL`; with tries, each in a process of its own."""

    def decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        prepare_worker("decode")
        if tries_isolated:
            with IsolatedDecoder(tries_isolated) as decoder:
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

    Spark's classifiers fail on null features, so rows without features get zeros behind the featurizer. Whatever the
    classifier makes of the zeros is no answer: `SOUND_COLUMN` tells those rows.

    Returns
    -------
    DataFrame
        With the pipeline's columns and `SOUND_COLUMN`, never null: whether features and probabilities are there and
        finite.
    """
    featurizer = featurizer_of(model).copy().setTimingCol(_PREDICT_COLUMN)
    name = featurizer.getOutputCol()
    zeros = array_to_vector(array_repeat(lit(0.0), featurizer.network.n_features))
    featurized = featurizer.transform(decoded).withColumn(SOUND_COLUMN, col(name).isNotNull())
    filled = featurized.withColumn(name, coalesce(col(name), zeros))
    classified: DataFrame = reduce(lambda frame, stage: stage.transform(frame), model.stages[1:], filled)
    return classified.withColumn(SOUND_COLUMN, col(SOUND_COLUMN) & _is_finite(name) & _is_finite("probability"))


def _is_finite(vector: str) -> Column:
    """Tell whether a vector has finite numbers alone; to Spark NaN is more than infinity."""
    values = vector_to_array(col(vector))
    return coalesce((array_max(values) < math.inf) & (array_min(values) > -math.inf), lit(False))


def refuse_unsound(scored: DataFrame, kafka: KafkaSettings, *, payloads_kept: bool) -> DataFrame:
    """Give images that were decoded and have no sound features a reason, instead of an answer made from nothing.

    A dead letter holds the original bytes, which are left behind after decoding. So without them the micro-batch fails,
    with `NO_FEATURES_MARK`, and is done again with them.

    Parameters
    ----------
    scored : DataFrame
        Columns of `DECODED_DDL` and of `apply_model`.
    kafka : KafkaSettings
        Names of the topics; a canary without features has no answer, which is noticed where it is waited for.
    payloads_kept : bool
        Whether ``payload`` is there in every row.

    Returns
    -------
    DataFrame
        The same columns.
    """
    unsound = col("reason").isNull() & ~col(SOUND_COLUMN)
    fails = unsound & (col("topic") != kafka.canary_topic) & lit(not payloads_kept)
    refused = when(fails, raise_error(lit(f"{NO_FEATURES_MARK}: {_NO_FEATURES}")).cast("string"))
    changed = {
        "reason": refused.when(unsound, lit(Reason.NO_FEATURES.value)).otherwise(col("reason")),
        "error_class": when(unsound, lit("schemas.errors.UnsupportedImageError")).otherwise(col("error_class")),
        "error_message": when(unsound, lit(_NO_FEATURES)).otherwise(col("error_message")),
        "error_trace": when(unsound, lit("")).otherwise(col("error_trace")),
        "event_id": when(unsound, dead_letter_id()).otherwise(col("event_id")),
    }
    return scored.withColumns(changed)


def _observe_images(kafka: KafkaSettings) -> Column:
    """Collect what metrics count of each image of a micro-batch; `read_totals` takes it apart.

    One list, whatever is counted: an aggregate for each bucket and label, about 70, cost as much for one image as all
    else that Spark does for it.
    """
    # From the broker's time stamp (see `kafka.topics`): a device's clock may be wrong by years.
    waited_s = col("scored_ms") / 1000 - col("timestamp").cast("double")
    image = struct(
        "payload_bytes",
        "reason",
        col("label_name").alias("label"),
        "flags",
        "decode_seconds",
        _PREDICT_COLUMN,
        waited_s.alias("waited_seconds"),
        "score",
    )
    # Nulls are left out: a canary is nobody's image.
    return collect_list(when(col("topic") != kafka.canary_topic, image)).alias(_IMAGES)


def read_totals(observed: Any) -> BatchTotals:
    """Take apart what Spark observed in one micro-batch.

    Parameters
    ----------
    observed : pyspark.sql.Row
        Of the observation `OBSERVATION`.
    """
    images = observed[_IMAGES]
    scored = [image for image in images if image["reason"] is None]
    return BatchTotals(
        consumed=len(images),
        input_bytes=sum(image["payload_bytes"] for image in images),
        predictions=Counter(image["label"] for image in scored),
        flags=Counter(flag for image in scored for flag in image["flags"] or ()),
        dead_letters=Counter(image["reason"] for image in images if image["reason"] is not None),
        decode_seconds=[image["decode_seconds"] for image in images],
        predict_seconds=[image[_PREDICT_COLUMN] for image in scored],
        waited_seconds=[image["waited_seconds"] for image in scored],
        scores=[image["score"] for image in scored],
    )
