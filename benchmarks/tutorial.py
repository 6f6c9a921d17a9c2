"""The way of the tutorials, as the benchmark's second baseline.

foreachBatch; TensorFlow in a pandas UDF, which decodes and predicts; the batch cached because two sinks read it; a
table first, Kafka second. The table is of Parquet files where tutorials take Delta, and the classifier is left out:
both flatter it a little.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, pandas_udf, to_json

from sparkdl.network.base import KERAS_FILE, Network
from sparkdl.network.catalog import build_network
from streaming.score.query import ScorePlan, read_images
from streaming.settings import StreamSettings


def save_keras(network: str, weights: str, folder: Path) -> tuple[Path, Network]:
    """Save a network as one Keras file, preprocessing inside; give the file and what it holds."""
    built = build_network(network, weights=weights, engine="tensorflow")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KERAS_FILE
    path.write_bytes(built.graph[KERAS_FILE])
    return path, built


def start_tutorial(spark: SparkSession, settings: StreamSettings, model: Path, images_per_batch: int) -> Any:
    """Start the query on a network of `save_keras`; it ends when its caller stops it."""
    folder, saved = Path(settings.home), str(model)

    @pandas_udf("array<float>")  # type: ignore[untyped-decorator]
    def featurize(payloads: Iterator[pd.Series]) -> Iterator[pd.Series]:
        os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
        import keras  # noqa: PLC0415 - in the worker, after its backend is chosen

        network = keras.saving.load_model(saved, compile=False)
        height, width = network.input_shape[1:3]
        for batch in payloads:
            pixels = [Image.open(io.BytesIO(payload)).convert("RGB").resize((width, height)) for payload in batch]
            yield pd.Series(list(network.predict(np.stack([np.asarray(p) for p in pixels]), verbose=0)))

    def write(batch: DataFrame, batch_id: int) -> None:
        scored = batch.select("key", featurize(col("value")).alias("features")).persist()
        scored.write.mode("append").parquet(str(folder / "tutorial"))
        kafka = settings.kafka
        message = scored.select("key", to_json("features").alias("value"))
        message.write.format("kafka").options(**kafka.to_spark()).option("topic", kafka.predictions_topic).save()
        scored.unpersist()

    writer = read_images(spark, settings, ScorePlan(images_per_batch)).writeStream.foreachBatch(write)
    return writer.option("checkpointLocation", str(folder / "tutorial-checkpoint")).start()
