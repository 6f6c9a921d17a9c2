"""The last stage of SCORE: every scored row becomes the Kafka rows of its outcome.

An image gives a prediction and a feature record; a row that failed gives a dead letter; a canary gives a prediction on
its own topic. Everything here is Spark SQL, so the JVM does it without asking Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import (
    array,
    array_contains,
    coalesce,
    col,
    concat,
    date_format,
    explode,
    expr,
    filter,
    length,
    lit,
    lower,
    lpad,
    map_from_arrays,
    octet_length,
    sha2,
    struct,
    substring,
    timestamp_millis,
    to_json,
    transform,
    unhex,
    when,
)
from pyspark.sql.functions import hex as hex_

from schemas import envelope
from schemas.errors import Reason
from schemas.modelcard import Flag, ModelCard, Remark
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.transformers.featurizer import NOVEL_COLUMN
from streaming.score.published import NOTHING, ImageOffsets, Published
from streaming.settings import KafkaSettings

_ISO_UTC = "yyyy-MM-dd'T'HH:mm:ss.SSS'Z'"


@dataclass(frozen=True)
class Route:
    """Where outcomes go and what they say of the model.

    Parameters
    ----------
    kafka : KafkaSettings
        Names of the topics.
    card : ModelCard
        The model that scores.
    features_column : str
        Where the featurizer put its vectors.
    published : Published
        Outcomes that are on the topics already and are left out.
    topic_ids : Mapping of str to str
        Kafka's ids of the topics that images come from, by name; a canary is in no account and needs none.
    """

    kafka: KafkaSettings
    card: ModelCard
    features_column: str
    published: Published = NOTHING
    topic_ids: Mapping[str, str] = field(default_factory=dict)


def add_decision(frame: DataFrame, card: ModelCard) -> DataFrame:
    """Add what the model says in words, and when.

    Parameters
    ----------
    frame : DataFrame
        With ``probability``, ``reason`` and, where the model tells images unlike its training images, `NOVEL_COLUMN`.
    card : ModelCard
        Names the classes and holds the threshold and the abstain band.

    Returns
    -------
    DataFrame
        With ``probabilities`` (array of double in the order of ``card.labels``), ``score``, ``label_name`` (null where
        the row failed), ``flags`` (array of `Flag`; null where the row failed or the model flags nothing) and
        ``scored_ms``, the wall clock in milliseconds once the row was scored.
    """
    probabilities = vector_to_array(col("probability"))
    score = col("probabilities")[card.labels.index(card.positive_label)]
    names = array(*[lit(label) for label in card.labels])
    # Every row's own moment; current_timestamp() would be the micro-batch's.
    clock = expr("reflect('java.lang.System', 'currentTimeMillis')").cast("long")
    framed = frame.withColumn("probabilities", when(col("reason").isNull(), probabilities)).withColumn(
        "scored_ms", clock
    )
    decided = {"label_name": _name_label(names, card), "flags": _raise_flag(card)}
    return framed.withColumn("score", score).withColumns(
        {name: when(col("reason").isNull(), value) for name, value in decided.items()}
    )


def _name_label(names: Column, card: ModelCard) -> Column:
    """Decide, but not on an image unlike those that the model knows: whatever it says of that one means nothing."""
    if card.novelty is None:
        return _decide_label(names, card)
    return when(col(NOVEL_COLUMN), lit(Flag.UNLIKE_TRAINING.value)).otherwise(_decide_label(names, card))


def _raise_flag(card: ModelCard) -> Column:
    """Give the one flag that counts, if any: an image that is not judged cannot be uncertain as well."""
    if not card.flags:
        return lit(None).cast("array<string>")
    unlike = lit(False) if card.novelty is None else col(NOVEL_COLUMN)
    score = col("score")
    near = lit(False) if card.abstain is None else (score >= card.abstain.low) & (score < card.abstain.high)
    raised = when(unlike, array(lit(Flag.UNLIKE_TRAINING.value))).when(near, array(lit(Flag.UNCERTAIN.value)))
    return raised.otherwise(array().cast("array<string>"))


def _decide_label(names: Column, card: ModelCard) -> Column:
    most_probable = names[expr("array_position(probabilities, array_max(probabilities)) - 1").cast("int")]
    if card.threshold is None:
        return most_probable
    negative = next(label for label in card.labels if label != card.positive_label)
    return when(col("score") >= card.threshold, lit(card.positive_label)).otherwise(lit(negative))


def route_outcomes(frame: DataFrame, route: Route) -> DataFrame:
    """Turn scored rows into the rows of the Kafka sink.

    Parameters
    ----------
    frame : DataFrame
        Columns of `streaming.score.decoding.DECODED_DDL`, the pipeline's and those of `add_decision`.
    route : Route
        See there.

    Returns
    -------
    DataFrame
        ``topic, key, value, headers``: what Spark's Kafka sink reads.
    """
    is_canary = col("topic") == route.kafka.canary_topic
    outcomes = (
        when(is_canary, array(_prediction(route.kafka.canary_results_topic, replace(route, topic_ids={}))))
        .when(col("reason").isNotNull(), array(_dead_letter(route.kafka.deadletters_topic, route)))
        .otherwise(array(_prediction(route.kafka.predictions_topic, route), _features(route)))
    )
    place = struct("topic", "partition", "offset").alias("place")
    # A canary without an answer is noticed by whoever waits for it.
    routed = frame.where(~is_canary | col("reason").isNull()).select(place, explode(outcomes).alias("outcome"))
    return _leave_out(routed, route).select("outcome.*")


def _leave_out(routed: DataFrame, route: Route) -> DataFrame:
    published = route.published
    if not published.answered and not published.featured:
        return routed
    is_features = col("outcome.topic") == route.kafka.features_topic
    return routed.where(when(is_features, ~_is_at(published.featured)).otherwise(~_is_at(published.answered)))


def _is_at(images: ImageOffsets) -> Column:
    found = lit(False)
    for (topic, partition), offsets in images.items():
        here = (col("place.topic") == topic) & (col("place.partition") == partition)
        # As text: thousands of literals by way of Python take seconds.
        found |= here & expr(f"place.offset IN ({', '.join(map(str, sorted(offsets)))})")
    return found


def _prediction(topic: str, route: Route) -> Column:
    card = route.card
    # Only what follows from the image and the model: a replay writes the same bytes.
    value = to_json(
        struct(
            col("event_id"),
            struct("source", "id", "sha256", "media_type", "height", "width", "payload_bytes").alias("image"),
            _model(card).alias("model"),
            col("label_name").alias("label"),
            map_from_arrays(array(*[lit(label) for label in card.labels]), col("probabilities")).alias("probabilities"),
            lit(card.positive_label).alias("positive_label"),
            lit(card.threshold).cast("double").alias("threshold"),
            lit(card.operating_point).alias("operating_point"),
            # Null, and so left out, where the model checks nothing: its messages are what they were before flags.
            col("flags"),
            # Likewise where there is nothing to remark.
            _list_remarks(card).alias("remarks"),
            lit(envelope.DISCLAIMER).alias("disclaimer"),
        )
    )
    timings = [
        _header(envelope.DECODE_SECONDS, col("decode_seconds")),
        _header(envelope.PREDICT_SECONDS, col("predict_seconds")),
    ]
    return _outcome(topic, value, _cloud_event(envelope.PREDICTION_TYPE, timings, route))


def _list_remarks(card: ModelCard) -> Column:
    if card.rendering_version == RENDERING_VERSION:
        return lit(None).cast("array<string>")
    return array(lit(Remark.OLD_RENDERING.value))


def _features(route: Route) -> Column:
    value = to_json(
        struct(
            col("event_id"),
            struct("source", "id", "sha256").alias("image"),
            struct(
                lit(route.card.network).alias("network"),
                lit(route.card.precision).alias("precision"),
                lit(route.card.rendering_version).alias("rendering_version"),
                lit(route.card.sha256).alias("model_sha256"),
            ).alias("featurizer"),
            vector_to_array(col(route.features_column), "float32").alias("features"),
        )
    )
    return _outcome(route.kafka.features_topic, value, _cloud_event(envelope.FEATURES_TYPE, [], route))


def _model(card: ModelCard) -> Column:
    return struct(
        lit(card.name).alias("name"),
        lit(card.version).alias("version"),
        lit(card.sha256).alias("sha256"),
        lit(card.rendering_version).alias("rendering_version"),
    )


def _cloud_event(event_type: str, more: list[Column], route: Route) -> Column:
    scored_at = date_format(timestamp_millis(col("scored_ms")), _ISO_UTC)
    own = [
        _header(envelope.CONTENT_TYPE, lit("application/json")),
        _header(envelope.CE_SPECVERSION, lit(envelope.SPECVERSION)),
        _header(envelope.CE_ID, col("event_id")),
        _header(envelope.CE_SOURCE, lit(envelope.SCORE_SOURCE)),
        _header(envelope.CE_TYPE, lit(event_type)),
        _header(envelope.CE_TIME, scored_at),
        *_position(route),
        *more,
    ]
    subject = when(col("id").isNotNull(), array(_header(envelope.CE_SUBJECT, col("id"))))
    captured = when(col("captured_at").isNotNull(), array(_header(envelope.CAPTURED_AT, col("captured_at"))))
    traced = filter(col("headers"), lambda header: lower(header["key"]).isin(*envelope.TRACE_HEADERS))
    return concat(array(*own), *[coalesce(part, _no_headers()) for part in (subject, captured, traced)])


def _dead_letter(topic: str, route: Route) -> Column:
    """Give the original record, and Kafka Connect's headers that say what was wrong with it.

    Spark's sink cannot set a record's timestamp, so the original one travels in a header.
    """
    added = [
        *_position(route),
        _header(envelope.EVENT_ID, col("event_id")),
        _header(envelope.REASON, col("reason")),
        _header(envelope.ERROR_TOPIC, col("topic")),
        _header(envelope.ERROR_PARTITION, col("partition")),
        _header(envelope.ERROR_OFFSET, col("offset")),
        _header(envelope.ERROR_CONNECTOR, lit("xray-score")),
        _header(envelope.ERROR_TASK, col("partition")),
        _header(envelope.ERROR_STAGE, lit("VALUE_CONVERTER")),
        _header(envelope.ERROR_CLASS, _failed_in()),
        _header(envelope.ERROR_EXCEPTION_CLASS, col("error_class")),
        _header(envelope.ERROR_EXCEPTION_MESSAGE, col("error_message")),
        _header(envelope.ERROR_EXCEPTION_STACKTRACE, col("error_trace")),
    ]
    original = coalesce(col("headers"), _no_headers())
    taken = transform(original, lambda header: header["key"])
    # A record that failed elsewhere before tells so under Kafka Connect's names; that is kept. Our own names say where
    # it failed now: they go behind whatever the record brought, and the last one counts.
    new = filter(
        array(*added), lambda h: ~h["key"].startswith(envelope.ERROR_PREFIX) | ~array_contains(taken, h["key"])
    )
    return _outcome(topic, col("payload"), concat(original, new), value_is_bytes=True)


def _failed_in() -> Column:
    # Names that consumers have seen since the first release; no paths of modules, though they were once.
    in_model = col("reason") == Reason.NO_FEATURES.value
    return when(in_model, lit("streaming.score.apply_model")).otherwise(lit("streaming.decoding.decode_record"))


def dead_letter_id() -> Column:
    """Derive a dead letter's id as decoding does (`schemas.envelope.derive_event_id`), in SQL."""
    named = (length("source") > 0) & (length("id") > 0)
    identity = when(named, concat(_framed(col("source")), _framed(col("id")))).otherwise(
        concat(*[_framed(col(name).cast("string")) for name in ("topic", "partition", "offset")])
    )
    whole = concat(identity, _framed(col("sha256")), _framed(lit("dead-letter")))
    return substring(sha2(whole, 256), 1, 32)


def _framed(text: Column) -> Column:
    """Give a text as UTF-8 behind its length in eight bytes."""
    return concat(unhex(lpad(hex_(octet_length(text)), 16, "0")), text.cast("binary"))


def _position(route: Route) -> list[Column]:
    received_at = date_format(col("timestamp"), _ISO_UTC)
    topic_id = route.topic_ids.get(route.kafka.images_topic)
    noted = [_header(envelope.INPUT_TOPIC_ID, lit(topic_id))] if topic_id else []
    return [
        _header(envelope.INPUT_TOPIC, col("topic")),
        _header(envelope.INPUT_PARTITION, col("partition")),
        _header(envelope.INPUT_OFFSET, col("offset")),
        _header(envelope.INPUT_TIMESTAMP, received_at),
        *noted,
    ]


def _outcome(topic: str, value: Column, headers: Column, *, value_is_bytes: bool = False) -> Column:
    return struct(
        lit(topic).alias("topic"),
        col("key").alias("key"),
        (value if value_is_bytes else value.cast("binary")).alias("value"),
        headers.alias("headers"),
    )


def _header(name: str, value: Column) -> Column:
    return struct(lit(name).alias("key"), value.cast("string").cast("binary").alias("value"))


def _no_headers() -> Column:
    return expr("cast(array() as array<struct<key: string, value: binary>>)")
