"""ARCHIVE: outcomes from the result topics into Delta tables, one row per event id.

The MERGE on the event id is what keeps a row single, however often its record comes: a micro-batch that is done twice,
a checkpoint that is new, lost or restored, a record that is published again. Delta's transaction ids
(``txnAppId``, ``txnVersion``) are not used: with them Delta skips a micro-batch whose number it has seen, without
looking at its rows, and after an old checkpoint was restored that number belongs to other records. They would be lost
without a word. Of two writers at one moment Delta's own conflict detection lets one commit; the other tries again.

Anybody may write to the topics. What cannot be a row never stops the query: records without an event id are left out
and counted, and a field that is not what it should be becomes null.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import (
    coalesce,
    col,
    count,
    from_json,
    length,
    lit,
    lower,
    make_valid_utf8,
    map_from_entries,
    nullif,
    sha2,
    struct,
    transform,
    when,
)
from pyspark.sql.streaming import StreamingQuery

from schemas import envelope
from schemas.documents import Table, load_tables
from schemas.errors import TableError
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.settings import KafkaSettings, StreamSettings

log = logging.getLogger(__name__)

DELTA_CONF = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Delta reads its own log with 50 tasks by default; on one machine that is most of a small commit's time.
    "spark.databricks.delta.snapshotPartitions": "2",
    # Of two headers with one name the last one counts: the stream appends its own behind what it was given.
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
}

_PREDICTION_DDL = """
    event_id string,
    image struct<source: string, id: string, sha256: string, media_type: string, height: int, width: int,
                 payload_bytes: bigint>,
    model struct<name: string, version: string, sha256: string, rendering_version: int>,
    label string, probabilities map<string, double>, positive_label string, threshold double, operating_point string,
    flags array<string>
"""
_FEATURES_DDL = """
    event_id string, image struct<source: string, id: string, sha256: string>,
    featurizer struct<network: string, precision: string, rendering_version: int, model_sha256: string>,
    features array<float>
"""
_FIRST_TIME, _END_TIME = "1678-01-01T00:00:00Z", "2262-01-01T00:00:00Z"
"""What 64 bits of nanoseconds hold. Spark writes any year, as nanoseconds; one row with another year, from a device
whose clock is wrong, would make the table unreadable for everything but Spark."""

_CONFLICTS = frozenset(
    f"io.delta.exceptions.{name}" for name in ("ConcurrentAppendException", "ConcurrentDeleteReadException")
)
"""Another writer added files to what a MERGE had read, or replaced some of it: compaction does."""
_MERGE_ATTEMPTS = 5
_PY4J_SAYS = "An error occurred while calling"
"""The first line of what it wraps; the cause is in the second."""


def create_tables(spark: SparkSession, folder: str) -> None:
    """Create the tables that are missing, and add to those of an earlier version the columns that they lack.

    Raises
    ------
    TableError
        The folder cannot be written.
    """
    for table in load_tables().values():
        partitions = ", ".join(table.partition_by)
        statement = (
            f"CREATE TABLE IF NOT EXISTS {_identifier(folder, table)} ({table.ddl}) USING DELTA "
            f"PARTITIONED BY ({partitions}) COMMENT '{table.comment}'"
        )
        try:
            spark.sql(statement)
            _add_columns(spark, table, folder)
        except Exception as exc:  # Spark wraps what the file system says in types of many packages
            said = [line.lstrip(": ") for line in str(exc).strip().splitlines() if not line.startswith(_PY4J_SAYS)]
            msg = f"cannot create the table {folder}/{table.name}: {said[0]}. See XRAY_ARCHIVE__FOLDER."
            raise TableError(msg) from exc


def _add_columns(spark: SparkSession, table: Table, folder: str) -> None:
    """Add columns that are new; rows that are there have null in them."""
    there = spark.table(_identifier(folder, table)).columns
    if new := [part for name, part in zip(table.columns, table.parts, strict=True) if name not in there]:
        spark.sql(f"ALTER TABLE {_identifier(folder, table)} ADD COLUMNS ({', '.join(new)})")
        log.info("table %s: added %s", table.name, ", ".join(new))


def start_archive(
    spark: SparkSession, settings: StreamSettings, *, available_now: bool = False, skip_lost: bool = False
) -> StreamingQuery:
    """Start the query.

    Parameters
    ----------
    spark : SparkSession
        With the Kafka and Delta jars and `DELTA_CONF`.
    settings : StreamSettings
        Topics, folder, checkpoint.
    available_now : bool
        Write what is there, then end.
    skip_lost : bool
        Go on behind records that are gone, rather than fail.

    Returns
    -------
    StreamingQuery
        Named ``archive``.
    """
    folder, kafka = settings.tables_folder, settings.kafka

    def write_batch(batch: DataFrame, batch_id: int) -> None:
        _write_batch(batch, batch_id, folder, kafka)

    writer = (
        _read_outcomes(spark, settings, skip_lost=skip_lost).writeStream.queryName("archive").foreachBatch(write_batch)
    )
    writer = writer.option("checkpointLocation", str(settings.checkpoints_folder / "archive"))
    if available_now:
        return writer.trigger(availableNow=True).start()
    return writer.trigger(processingTime=f"{settings.archive.trigger_s} seconds").start()


def _read_outcomes(spark: SparkSession, settings: StreamSettings, *, skip_lost: bool) -> DataFrame:
    kafka = settings.kafka
    options = {
        **kafka.to_spark(),
        "subscribe": ",".join([kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic]),
        "includeHeaders": "true",
        # Outcomes that were published before the first start belong into the tables as well.
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(settings.archive.max_records_per_batch),
        "failOnDataLoss": "false" if skip_lost else "true",
        "kafka.max.partition.fetch.bytes": str(kafka.max_message_bytes + HEADROOM_BYTES),
        "kafka.fetch.max.bytes": str(2 * kafka.max_message_bytes),
    }
    return spark.readStream.format("kafka").options(**options).load()


def _write_batch(batch: DataFrame, batch_id: int, folder: str, kafka: KafkaSettings) -> None:
    events = read_events(batch, kafka).persist()
    try:
        counts = events.groupBy("topic").agg(count(lit(1)).alias("all"), count("event_id").alias("named")).collect()
        _report_left_out({row["topic"]: row["all"] - row["named"] for row in counts}, batch_id)
        present = {row["topic"] for row in counts if row["named"]}
        for name, topic, select_columns in (
            ("predictions", kafka.predictions_topic, select_predictions),
            ("features", kafka.features_topic, select_features),
            ("dead_letters", kafka.deadletters_topic, select_dead_letters),
        ):
            if topic in present:
                rows = events.where((col("topic") == topic) & col("event_id").isNotNull())
                merge_rows(select_columns(rows), load_tables()[name], folder)
    finally:
        events.unpersist()


def _report_left_out(counts: Mapping[str, int], batch_id: int) -> None:
    if any(counts.values()):
        parts = ", ".join(f"{number} of {topic}" for topic, number in sorted(counts.items()) if number)
        log.warning("archive batch %s: records without event id were left out: %s", batch_id, parts)


def read_events(batch: DataFrame, kafka: KafkaSettings) -> DataFrame:
    """Read Kafka's rows as events.

    Parameters
    ----------
    batch : DataFrame
        Rows of the Kafka source, headers included.
    kafka : KafkaSettings
        Names of the topics.

    Returns
    -------
    DataFrame
        ``topic, partition, offset, headers`` (a map), ``prediction`` and ``features`` (what the JSON says; null on
        other topics), ``payload_sha256`` and ``payload_bytes`` of a dead letter, whose bytes can be 32 MiB and are in
        no table, and ``event_id``, null where the record has none: such a record is not this stream's.
    """
    # As decoding reads them: in any case, the last one counts (`DELTA_CONF`).
    lowered = transform(
        "headers", lambda header: struct(lower(header["key"]).alias("key"), header["value"].alias("value"))
    )
    payload = coalesce(col("value"), lit(b""))
    is_dead_letter = col("topic") == kafka.deadletters_topic
    read = batch.select(
        "topic",
        "partition",
        "offset",
        map_from_entries(lowered).alias("headers"),
        _parse(kafka.predictions_topic, _PREDICTION_DDL).alias("prediction"),
        _parse(kafka.features_topic, _FEATURES_DDL).alias("features"),
        when(is_dead_letter, sha2(payload, 256)).alias("payload_sha256"),
        when(is_dead_letter, length(payload)).alias("payload_bytes"),
    )
    named = coalesce("prediction.event_id", "features.event_id", when(is_dead_letter, _header(envelope.EVENT_ID)))
    return read.withColumn("event_id", nullif(named, lit("")))


def _parse(topic: str, ddl: str) -> Column:
    return when(col("topic") == topic, from_json(col("value").cast("string"), ddl))


def select_predictions(events: DataFrame) -> DataFrame:
    """Turn events of the predictions topic into rows of the table."""
    event = "prediction"
    return events.select(
        "event_id",
        f"{event}.image.*",
        *[col(f"{event}.model.{name}").alias(f"model_{name}") for name in ("name", "version", "sha256")],
        f"{event}.model.rendering_version",
        *[f"{event}.{name}" for name in ("label", "probabilities", "positive_label", "threshold", "operating_point")],
        f"{event}.flags",
        col(f"{event}.probabilities")[col(f"{event}.positive_label")].alias("score"),
        # A device may send any text as its time; what is no time becomes null, the topic keeps the text.
        _time(envelope.CAPTURED_AT).alias("captured_at"),
        _time(envelope.CE_TIME).alias("scored_at"),
        _header(envelope.DECODE_SECONDS).try_cast("double").alias("decode_seconds"),
        _header(envelope.PREDICT_SECONDS).try_cast("double").alias("predict_seconds"),
        *_position(),
    )


def select_features(events: DataFrame) -> DataFrame:
    """Turn events of the features topic into rows of the table."""
    event = "features"
    return events.select("event_id", f"{event}.image.*", f"{event}.featurizer.*", f"{event}.features", *_position())


def select_dead_letters(events: DataFrame) -> DataFrame:
    """Turn events of the dead-letter topic into rows of the table."""
    return events.select(
        "event_id",
        _header(envelope.REASON).alias("reason"),
        _header(envelope.ERROR_EXCEPTION_CLASS).alias("error_class"),
        _header(envelope.ERROR_EXCEPTION_MESSAGE).alias("error_message"),
        _header(envelope.CE_SOURCE).alias("source"),
        _header(envelope.CE_ID).alias("id"),
        _header(envelope.CONTENT_TYPE).alias("content_type"),
        col("payload_sha256").alias("sha256"),
        "payload_bytes",
        col("partition").alias("dead_letter_partition"),
        col("offset").alias("dead_letter_offset"),
        *_position(),
    )


def _position() -> list[Column]:
    received_at = _time(envelope.INPUT_TIMESTAMP)
    return [
        _header(envelope.INPUT_TOPIC).alias("input_topic"),
        _header(envelope.INPUT_PARTITION).try_cast("int").alias("input_partition"),
        _header(envelope.INPUT_OFFSET).try_cast("bigint").alias("input_offset"),
        received_at.alias("received_at"),
        received_at.cast("date").alias("date"),
    ]


def _header(name: str) -> Column:
    # A header has any bytes; a table with text that is not UTF-8 cannot be read by anything but Spark. One that is
    # larger than the contract allows is a dead letter's, which keeps it; in a table it would be read again and again.
    value = col("headers")[name]
    return when(length(value) <= envelope.MAX_HEADER_BYTES, make_valid_utf8(value.cast("string")))


def _time(name: str) -> Column:
    time = _header(name).try_cast("timestamp")
    return when((time >= lit(_FIRST_TIME).cast("timestamp")) & (time < lit(_END_TIME).cast("timestamp")), time)


def merge_rows(rows: DataFrame, table: Table, folder: str) -> None:
    """Insert the rows whose event id the table does not have.

    Parameters
    ----------
    rows : DataFrame
        At least the table's columns; no event id is null, since null never matches and would be inserted each time.
    table : Table
        Its definition.
    folder : str
        Folder of the tables.

    Raises
    ------
    Py4JJavaError
        What Delta says; a conflict with another writer, `xray tables compact` for one, only after five attempts.
    """
    rows.select(*table.columns).dropDuplicates(["event_id"]).createOrReplaceTempView(f"new_{table.name}")
    statement = (
        f"MERGE INTO {_identifier(folder, table)} AS old USING new_{table.name} AS new "
        "ON old.event_id = new.event_id WHEN NOT MATCHED THEN INSERT *"
    )
    for attempt in range(1, _MERGE_ATTEMPTS + 1):
        try:
            rows.sparkSession.sql(statement)
        except Py4JJavaError as exc:  # pyspark has no types for Delta's errors
            conflict = exc.java_exception.getClass().getName()
            if conflict not in _CONFLICTS or attempt == _MERGE_ATTEMPTS:
                raise
            log.info("table %s was changed while rows were merged (%s); trying again", table.name, conflict)
        else:
            return


def _identifier(folder: str, table: Table) -> str:
    path = folder if "://" in folder else str(Path(folder).absolute())
    return f"delta.`{path}/{table.name}`"
