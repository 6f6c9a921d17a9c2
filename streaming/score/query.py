"""SCORE: images in, outcomes out, through one Kafka source and one Kafka sink.

Spark's own guarantees hold because nothing else is written: a micro-batch that is not committed is done again, with the
same offsets. Outcomes are published at least once, each with an id that a replay repeats.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import col, collect_list, struct, when
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.metrics import BatchTotals
from streaming.score.decision import add_decision, refuse_unanswered, write_answers
from streaming.score.decoding import DecodePlan
from streaming.score.isolation import IsolatedDecoder
from streaming.score.outcomes import OutcomePlan, Topics
from streaming.score.published import NOTHING, Published
from streaming.score.scoring import SCORED_DDL, ScoringPlan, score_batches
from streaming.settings import KafkaSettings, StreamSettings

OBSERVATION = "score"
_IMAGES = "images"


@dataclass(frozen=True)
class ScorePlan:
    """What may differ between two starts of the query.

    Parameters
    ----------
    max_images : int
        Upper bound of a micro-batch.
    isolated_tries : int
        Above 0, each image is decoded in a process of its own, with so many tries; see `streaming.score.isolation`.
    skip_lost : bool
        Go on behind records that are gone, rather than fail.
    keep_payloads : bool
        Carry each image's original bytes along, so that one without an answer can become a dead letter.
    published : Published
        Outcomes of an unfinished micro-batch that are not to be published again.
    topic_ids : Mapping of str to str
        Kafka's ids of the topics that images are read from, by name; every outcome says which one it is about.
    """

    max_images: int
    isolated_tries: int = 0
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
    # Spark writes its log while the batch runs: to wait for two small files costs as much as to score an image. With no
    # interval between two writes the log has every batch, and so a clean stop leaves nothing to do again.
    writer = writer.option("asyncProgressTrackingEnabled", "true")
    writer = writer.option("asyncProgressTrackingCheckpointIntervalMs", "0")
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
    kafka = settings.kafka
    scoring = _plan_scoring(model, card, settings, plan)
    decided = add_decision(apply_model(images, model, scoring, plan.isolated_tries), card)
    sound = refuse_unanswered(decided, kafka.deadletters_topic, refusals=plan.keep_payloads)
    observed = sound.observe(OBSERVATION, _observe_images())
    return write_answers(observed, card).where(~col("is_published")).select("topic", "key", "value", "headers")


def _plan_scoring(model: PipelineModel, card: ModelCard, settings: StreamSettings, plan: ScorePlan) -> ScoringPlan:
    """Gather what workers must know.

    Parameters
    ----------
    model, card, settings, plan
        See `start_score`.
    """
    kafka = settings.kafka
    decoding = DecodePlan(
        size=featurizer_of(model).network.input_size,
        limits=settings.score.to_limits(),
        model_sha256=card.sha256,
        rendering=card.rendering_version,
        max_record_bytes=kafka.max_message_bytes,
    )
    topics = Topics(
        canary=kafka.canary_topic,
        canary_results=kafka.canary_results_topic,
        predictions=kafka.predictions_topic,
        features=kafka.features_topic,
        deadletters=kafka.deadletters_topic,
    )
    outcomes = OutcomePlan(topics, card, plan.topic_ids.get(kafka.images_topic), plan.published)
    return ScoringPlan(decoding, outcomes, refusals=plan.keep_payloads)


def apply_model(images: DataFrame, model: PipelineModel, scoring: ScoringPlan, tries_isolated: int = 0) -> DataFrame:
    """Apply a pipeline to Kafka rows of images: its featurizer in the step that decodes, its other stages after it.

    Parameters
    ----------
    images : DataFrame
        Columns of Spark's Kafka source, with headers.
    model : PipelineModel
        A `DeepImageFeaturizer` first.
    scoring : ScoringPlan
        What workers must know.
    tries_isolated : int
        Above 0, each image is decoded in a process of its own, with so many tries.

    Returns
    -------
    DataFrame
        Columns of `SCORED_DDL` and those that the other stages add.
    """
    featurizer = featurizer_of(model)
    sent = featurizer.send(images.sparkSession)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        engine, tell_novel = sent.open()
        if tries_isolated:
            with IsolatedDecoder(tries_isolated) as decoder:
                yield from score_batches(batches, scoring, engine, tell_novel, decoder.decode)
        else:
            yield from score_batches(batches, scoring, engine, tell_novel)

    wanted = images.select("topic", "partition", "offset", "timestamp", "key", "headers", "value")
    scored = wanted.mapInArrow(score, SCORED_DDL)
    featurized = scored.withColumn(featurizer.getOutputCol(), array_to_vector("features"))
    classified: DataFrame = reduce(lambda frame, stage: stage.transform(frame), model.stages[1:], featurized)
    return classified


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


def _observe_images() -> Column:
    """Collect what metrics count of each image of a micro-batch; `read_totals` takes it apart.

    One list, whatever is counted: an aggregate for each bucket and label, about 70, cost as much for one image as all
    else that Spark does for it.
    """
    answered = col("head").isNotNull()
    said = struct(
        col("image"),
        when(answered, col("label_name")).alias("label"),
        when(answered, col("flags")).alias("flags"),
        when(answered, col("score")).alias("score"),
    )
    # Nulls are left out: a canary is nobody's image, and of the two records of an image one counts.
    return collect_list(when(col("image").isNotNull(), said)).alias(_IMAGES)


def read_totals(observed: Any) -> BatchTotals:
    """Take apart what Spark observed in one micro-batch.

    Parameters
    ----------
    observed : pyspark.sql.Row
        Of the observation `OBSERVATION`.
    """
    said = observed[_IMAGES]
    images = [one["image"] for one in said]
    scored = [one for one in said if one["image"]["reason"] is None]
    return BatchTotals(
        consumed=len(images),
        input_bytes=sum(image["payload_bytes"] for image in images),
        predictions=Counter(one["label"] for one in scored),
        flags=Counter(flag for one in scored for flag in one["flags"] or ()),
        dead_letters=Counter(image["reason"] for image in images if image["reason"] is not None),
        decode_seconds=[image["decode_seconds"] for image in images],
        predict_seconds=[one["image"]["predict_seconds"] for one in scored],
        waited_seconds=[one["image"]["waited_seconds"] for one in scored],
        scores=[one["score"] for one in scored],
    )
