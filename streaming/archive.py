"""ARCHIVE: outcomes from the result topics into Delta tables, one row per event id.

Two guards, because each alone fails once: the transaction id ``(query id, batch id)`` makes Delta skip a micro-batch
that it has already, but a new checkpoint starts counting anew under a new query id; the MERGE on the event id covers
that, and every other way in which a record comes twice.
"""

from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import (
    coalesce,
    col,
    from_json,
    length,
    lit,
    lower,
    map_from_entries,
    sha2,
    struct,
    to_timestamp,
    transform,
    when,
)
from pyspark.sql.streaming import StreamingQuery

from schemas import envelope
from schemas.documents import Table, load_tables
from schemas.errors import JobError
from streaming.settings import KafkaSettings, StreamSettings
from streaming.topics import HEADROOM_BYTES

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
    label string, probabilities map<string, double>, positive_label string, threshold double, operating_point string
"""
_FEATURES_DDL = """
    event_id string, image struct<source: string, id: string, sha256: string>,
    featurizer struct<network: string, precision: string, rendering_version: int, model_sha256: string>,
    features array<float>
"""


def create_tables(spark: SparkSession, folder: str) -> None:
    """Create the tables that are missing.

    Raises
    ------
    JobError
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
        except Exception as exc:  # Spark wraps what the file system says in types of many packages
            first_line = str(exc).strip().splitlines()[0]
            msg = f"cannot create the table {folder}/{table.name}: {first_line}. See XRAY_ARCHIVE__FOLDER."
            raise JobError(msg) from exc


def start_archive(spark: SparkSession, settings: StreamSettings, *, available_now: bool = False) -> StreamingQuery:
    """Start the query.

    Parameters
    ----------
    spark : SparkSession
        With the Kafka and Delta jars and `DELTA_CONF`.
    settings : StreamSettings
        Topics, folder, checkpoint.
    available_now : bool
        Write what is there, then end.

    Returns
    -------
    StreamingQuery
        Named ``archive``.
    """
    folder, kafka = settings.tables_folder, settings.kafka

    def write_batch(batch: DataFrame, batch_id: int) -> None:
        _write_batch(batch, batch_id, folder, kafka)

    writer = _read_outcomes(spark, settings).writeStream.queryName("archive").foreachBatch(write_batch)
    writer = writer.option("checkpointLocation", str(settings.checkpoints_folder / "archive"))
    if available_now:
        return writer.trigger(availableNow=True).start()
    return writer.trigger(processingTime=f"{settings.archive.trigger_s} seconds").start()


def _read_outcomes(spark: SparkSession, settings: StreamSettings) -> DataFrame:
    kafka = settings.kafka
    options = {
        **kafka.to_spark(),
        "subscribe": ",".join([kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic]),
        "includeHeaders": "true",
        # Outcomes that were published before the first start belong into the tables as well.
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(settings.archive.max_records_per_batch),
        "failOnDataLoss": "true",
        "kafka.max.partition.fetch.bytes": str(kafka.max_message_bytes + HEADROOM_BYTES),
        "kafka.fetch.max.bytes": str(2 * kafka.max_message_bytes),
    }
    return spark.readStream.format("kafka").options(**options).load()


def _write_batch(batch: DataFrame, batch_id: int, folder: str, kafka: KafkaSettings) -> None:
    rows = _slim(batch, kafka).persist()
    try:
        present = {row["topic"] for row in rows.select("topic").distinct().collect()}
        for name, topic, parse in (
            ("predictions", kafka.predictions_topic, parse_predictions),
            ("features", kafka.features_topic, parse_features),
            ("dead_letters", kafka.deadletters_topic, parse_dead_letters),
        ):
            if topic in present:
                merge_rows(parse(rows.where(col("topic") == topic)), load_tables()[name], folder, batch_id)
    finally:
        rows.unpersist()


def _slim(batch: DataFrame, kafka: KafkaSettings) -> DataFrame:
    """Replace a dead letter's bytes by their size and hash: they can be 20 MB, and no table keeps them."""
    payload = coalesce(col("value"), lit(b""))
    is_dead_letter = col("topic") == kafka.deadletters_topic
    # As decoding reads them: in any case, the last one counts (`DELTA_CONF`).
    lowered = transform(
        "headers", lambda header: struct(lower(header["key"]).alias("key"), header["value"].alias("value"))
    )
    return batch.select(
        "topic",
        "partition",
        "offset",
        "timestamp",
        map_from_entries(lowered).alias("headers"),
        when(~is_dead_letter, col("value").cast("string")).alias("json"),
        when(is_dead_letter, sha2(payload, 256)).alias("payload_sha256"),
        when(is_dead_letter, length(payload)).alias("payload_bytes"),
    )


def parse_predictions(rows: DataFrame) -> DataFrame:
    """Turn messages of the predictions topic into rows of the table."""
    parsed = rows.withColumn("event", from_json("json", _PREDICTION_DDL))
    return parsed.select(
        "event.event_id",
        "event.image.*",
        *[col(f"event.model.{name}").alias(f"model_{name}") for name in ("name", "version", "sha256")],
        "event.model.rendering_version",
        *[f"event.{name}" for name in ("label", "probabilities", "positive_label", "threshold", "operating_point")],
        col("event.probabilities")[col("event.positive_label")].alias("score"),
        # A device may send any text as its time; what is no time becomes null, the topic keeps the text.
        _header(envelope.CAPTURED_AT).try_cast("timestamp").alias("captured_at"),
        to_timestamp(_header(envelope.CE_TIME)).alias("scored_at"),
        _header(envelope.DECODE_SECONDS).cast("double").alias("decode_seconds"),
        _header(envelope.PREDICT_SECONDS).cast("double").alias("predict_seconds"),
        *_position(),
    )


def parse_features(rows: DataFrame) -> DataFrame:
    """Turn messages of the features topic into rows of the table."""
    parsed = rows.withColumn("event", from_json("json", _FEATURES_DDL))
    return parsed.select("event.event_id", "event.image.*", "event.featurizer.*", "event.features", *_position())


def parse_dead_letters(rows: DataFrame) -> DataFrame:
    """Turn messages of the dead-letter topic into rows of the table."""
    return rows.select(
        _header(envelope.EVENT_ID).alias("event_id"),
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
    received_at = to_timestamp(_header(envelope.INPUT_TIMESTAMP))
    return [
        _header(envelope.INPUT_TOPIC).alias("input_topic"),
        _header(envelope.INPUT_PARTITION).cast("int").alias("input_partition"),
        _header(envelope.INPUT_OFFSET).cast("bigint").alias("input_offset"),
        received_at.alias("received_at"),
        received_at.cast("date").alias("date"),
    ]


def _header(name: str) -> Column:
    return col("headers")[name].cast("string")


def merge_rows(rows: DataFrame, table: Table, folder: str, batch_id: int) -> None:
    """Insert the rows whose event id the table does not have.

    Parameters
    ----------
    rows : DataFrame
        At least the table's columns.
    table : Table
        Its definition.
    folder : str
        Folder of the tables.
    batch_id : int
        Of the micro-batch; with the query's id it is the Delta transaction's name.
    """
    spark = rows.sparkSession
    rows.select(*table.columns).dropDuplicates(["event_id"]).createOrReplaceTempView(f"new_{table.name}")
    query_id = spark.sparkContext.getLocalProperty("sql.streaming.queryId")
    spark.conf.set("spark.databricks.delta.write.txnAppId", query_id or f"backfill-{table.name}")
    spark.conf.set("spark.databricks.delta.write.txnVersion", str(batch_id))
    spark.sql(
        f"MERGE INTO {_identifier(folder, table)} AS old USING new_{table.name} AS new "
        "ON old.event_id = new.event_id WHEN NOT MATCHED THEN INSERT *"
    )


def _identifier(folder: str, table: Table) -> str:
    path = folder if "://" in folder else str(Path(folder).absolute())
    return f"delta.`{path}/{table.name}`"
