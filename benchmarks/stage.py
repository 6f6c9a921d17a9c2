"""What both benchmarks stand on: images, a model, a broker and a session, in a folder that is removed afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from benchmarks.ports import find_ports
from schemas.modelcard import ModelCard, read_card
from streaming.devices.publish import ImagePublisher
from streaming.kafka.topics import create_topics
from streaming.run.models import load_model
from streaming.run.session import open_session
from streaming.settings import StreamSettings, load_settings
from training.data.dataset import read_dataset
from training.model.fit import train_model
from xray.broker import LocalBroker
from xray.console import err, step
from xray.phantom import FINDINGS, encode_png, generate_radiograph, write_folder

SIDE_PX = 1024
"""Of the generated images: what public X-ray sets have most."""

_DISTINCT_IMAGES = 24
_TRAINING_IMAGES = 24


@dataclass(frozen=True)
class Stage:
    """A running broker and session.

    Parameters
    ----------
    settings : StreamSettings
        Of the temporary folder.
    spark : SparkSession
        With the connectors.
    images : tuple of bytes
        Encoded PNG files of `SIDE_PX` squared gray pixels.
    training : Path
        Manifest of a small training set.
    """

    settings: StreamSettings
    spark: SparkSession
    images: tuple[bytes, ...]
    training: Path

    def fresh_settings(self) -> StreamSettings:
        """Return settings with empty topics and no checkpoint."""
        own = uuid4().hex[:8]
        names = ("images", "predictions", "features", "deadletters", "canary", "canary_results")
        topics = {f"{name}_topic": f"{own}.{name}" for name in names}
        kafka = self.settings.kafka.model_copy(update=topics)
        settings = self.settings.model_copy(update={"home": self.settings.home / own, "kafka": kafka})
        create_topics(kafka)
        return settings

    def train(self, network: str, weights: str, precision: str) -> tuple[PipelineModel, ModelCard, Path]:
        """Fit a model on a few phantoms; its speed does not depend on how good it is."""
        result = train_model(
            lambda: self.spark,
            read_dataset(self.training),
            out=self.settings.home / "models",
            network=network,
            weights=weights,
            precision=precision,
        )
        return load_model(result.folder), read_card(result.folder), result.folder


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Start broker and session; end them and remove their files."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="xray-benchmark-")))
        user = load_settings()
        kafka = user.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
        settings = user.model_copy(update={"home": home, "jars": user.jars_folder, "kafka": kafka})
        ports = {
            "metrics": user.metrics.model_copy(update={"port": 0}),
            "archive": user.archive.model_copy(update={"metrics_port": 0}),
        }
        settings = settings.model_copy(update=ports)
        with step("starting broker and Spark"):
            broker = LocalBroker.of(settings)
            stack.callback(broker.stop)
            broker.start()
            spark = open_session(settings)
            stack.callback(spark.stop)
        with step("drawing images"):
            images = tuple(_draw(seed) for seed in range(_DISTINCT_IMAGES))
            training = write_folder(home / "training", _TRAINING_IMAGES, seed=5)
        err.print(f"images: {SIDE_PX}x{SIDE_PX} gray PNG, {sum(map(len, images)) // len(images) // 1000} kB each")
        yield Stage(settings, spark, images, training)


def publish_images(settings: StreamSettings, images: tuple[bytes, ...], count: int) -> None:
    """Publish so many images, round robin, without envelope."""
    failed: list[str] = []
    publisher = ImagePublisher(settings.kafka, lambda _token, error: failed.append(error) if error else None)
    for i in range(count):
        publisher.publish(images[i % len(images)], [], key=b"%d" % i, token=i)
    publisher.flush()
    if failed:
        msg = f"{len(failed)} images were not confirmed: {failed[0]}"
        raise RuntimeError(msg)


def _draw(seed: int) -> bytes:
    finding = FINDINGS[seed % len(FINDINGS)]
    return encode_png(generate_radiograph(seed, finding=finding, height=SIDE_PX, width=SIDE_PX))
