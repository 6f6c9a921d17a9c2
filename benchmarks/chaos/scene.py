"""A stage for faults: one broker and two models for a whole run, topics and a state folder for each scene."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.halts import Halts
from benchmarks.chaos.oracle import PREDICTION, Known, Oracle, OutcomeReader, Place, Verdict, check, publish
from benchmarks.chaos.stream import Checkpoint, StreamProcess
from benchmarks.chaos.traffic import Message, Traffic
from benchmarks.ports import find_ports
from schemas.errors import JobError, TableError
from streaming.account.archived import find_archived, topics_by_table
from streaming.kafka.topics import create_topics
from streaming.settings import KafkaSettings, StreamSettings, load_settings
from tests.testimages import MAX_PAYLOAD_BYTES
from xray.broker import LocalBroker

PARTITIONS = 2
_TRAINING_IMAGES = 24
_COMMAND_TIMEOUT_S = 200
_READY_TIMEOUT_S = 180
_MAX_RESTARTS = 3
_TOPICS = ("images", "predictions", "features", "deadletters", "canary", "canary_results")


def clean_environ() -> dict[str, str]:
    """Give this process's environment without the user's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}


@dataclass(frozen=True)
class Site:
    """What all scenes of a run share.

    Parameters
    ----------
    folder : Path
        Everything is below it.
    jars : Path
        The connectors' and the broker's jars.
    broker : LocalBroker
        Running.
    models : tuple of Path
        Two trained models.
    """

    folder: Path
    jars: Path
    broker: LocalBroker
    models: tuple[Path, Path]

    @property
    def environ(self) -> dict[str, str]:
        """Environment of a command at this site, but for the state folder."""
        return clean_environ() | {
            "XRAY_JARS": str(self.jars),
            "XRAY_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "XRAY_KAFKA__PARTITIONS": str(PARTITIONS),
            "XRAY_METRICS__PORT": "0",
            "XRAY_ARCHIVE__TRIGGER_S": "1",
            "XRAY_ARCHIVE__METRICS_PORT": "0",
            "XRAY_ARCHIVE__COMPACT_FILES": "5",
            "XRAY_SCORE__MAX_PAYLOAD_BYTES": str(MAX_PAYLOAD_BYTES),
        }


@contextmanager
def open_site(folder: Path, jars: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[Site]:
    """Start a broker and train two models; end the broker."""
    home = folder / "site"
    settings = load_settings(home=home, jars=jars, kafka={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
    say("training two models")
    models = _train_two(home, jars)
    say("starting the broker")
    broker = LocalBroker.of(settings)
    broker.start()
    try:
        yield Site(folder, jars, broker, models)
    finally:
        broker.stop()


def _train_two(home: Path, jars: Path) -> tuple[Path, Path]:
    """Train with two seeds: other images are held out, so the models differ."""
    environ = clean_environ() | {"XRAY_HOME": str(home), "XRAY_JARS": str(jars)}
    images = home / "images"
    _run(environ, "phantom", str(images), "--count", str(_TRAINING_IMAGES))
    for seed in ("0", "1"):
        _run(environ, "train", "--data", str(images), "--seed", seed)
    first, second = sorted(path for path in (home / "models").iterdir() if path.is_dir())
    return first, second


def _run(environ: Mapping[str, str], *arguments: str) -> None:
    done = run_command(environ, *arguments, timeout_s=_COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        msg = f"'xray {' '.join(arguments)}' ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        raise JobError(msg)


class Scene:
    """A stream with topics and a state folder of its own, and an oracle of all that was published to it.

    Parameters
    ----------
    site : Site
        Broker and models.
    name : str
        Of folder and topics.
    seed : int
        Of the traffic.
    images_per_batch : int
        Small, so that there are many micro-batches to hit.
    """

    def __init__(self, site: Site, name: str, *, seed: int, images_per_batch: int = 40) -> None:
        self.site = site
        self.images_per_batch = images_per_batch
        self.home = site.folder / name
        self.home.mkdir(parents=True)
        topics = {f"{topic}_topic": f"{name}.{topic}" for topic in _TOPICS}
        self.environ = site.environ | {
            "XRAY_HOME": str(self.home),
            "XRAY_SCORE__MAX_IMAGES_PER_BATCH": str(images_per_batch),
            **{f"XRAY_KAFKA__{field.upper()}": topic for field, topic in topics.items()},
        }
        kafka = {"bootstrap_servers": site.broker.bootstrap_servers, "partitions": PARTITIONS, **topics}
        self.settings: StreamSettings = load_settings(home=self.home, jars=site.jars, kafka=kafka)
        create_topics(self.kafka)
        self._link_models()
        self.traffic = Traffic(seed, name)
        self.everything = Oracle(self.home / "oracle.jsonl")
        self.oracle = Oracle(self.home / "oracles" / "first.jsonl")
        self._oracles = [self.everything, self.oracle]
        self.reader = OutcomeReader(self.kafka)
        self.halts = Halts(self.home / "halts")
        self.stream: StreamProcess | None = None
        self.deaths: list[str] = []

    @property
    def kafka(self) -> KafkaSettings:
        """The broker, and this scene's topics."""
        return self.settings.kafka

    @property
    def stderr(self) -> Path:
        """What all streams of this scene printed on standard error."""
        return self.home / "stream.stderr"

    @property
    def score(self) -> Checkpoint:
        """SCORE's checkpoint."""
        return Checkpoint(self.home / "checkpoints" / "score")

    @property
    def outcome_topics(self) -> dict[str, str]:
        """The topic that each table is filled from."""
        return topics_by_table(self.kafka)

    def archived(self) -> dict[str, dict[int, int]]:
        """Give the offsets up to which everything is in the tables; nothing where one cannot be read just now."""
        partitions = {topic: range(PARTITIONS) for topic in self.outcome_topics.values()}
        with suppress(TableError):
            return find_archived(self.settings.tables_folder, self.kafka, partitions)
        return {}

    def _link_models(self) -> None:
        folder = self.home / "models"
        folder.mkdir()
        for model in self.site.models:
            (folder / model.name).symlink_to(model)
        (folder / "champion").write_text(f"{self.site.models[0].name}\n", encoding="utf-8")

    def champion(self) -> str:
        """Name the version that is promoted."""
        return (self.home / "models" / "champion").read_text(encoding="utf-8").strip()

    # -- publishing ----------------------------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """Begin a new oracle; `everything` goes on."""
        self.oracle = Oracle(self.home / "oracles" / f"{name}.jsonl")
        self._oracles.append(self.oracle)

    def publish(self, count: int, seconds: float = 0.0) -> None:
        """Publish the next messages of the traffic."""
        self.publish_messages(self.traffic.take(count), seconds)

    def publish_messages(self, messages: Iterator[Message], seconds: float = 0.0) -> None:
        """Publish these messages."""
        publish(self.kafka, messages, (self.oracle, self.everything), seconds)

    def publish_aside(self, count: int, seconds: float) -> None:
        """Publish messages of which only `everything` is told: the next account is not about them."""
        publish(self.kafka, self.traffic.take(count), (self.everything,), seconds)

    @contextmanager
    def publishing(self, count: int, seconds: float = 0.0) -> Iterator[None]:
        """Publish beside the body, and wait for the confirmations behind it."""
        thread = threading.Thread(target=self.publish, args=(count, seconds))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    # -- the stream ----------------------------------------------------------------------------------------------------

    def ensure_running(self) -> StreamProcess:
        """Give the running stream; start one where there is none, and wait until it is ready.

        Raises
        ------
        JobError
            It does not come up.
        """
        for _ in range(_MAX_RESTARTS):
            stream = self.supervise()
            if stream.wait_ready(_READY_TIMEOUT_S):
                return stream
        msg = f"the stream does not come up: {self.stderr.read_text(encoding='utf-8', errors='replace')[-500:]}"
        raise JobError(msg)

    def supervise(self, *options: str) -> StreamProcess:
        """Start the stream where it does not run, as a supervisor does; note the death of one that ended by itself.

        Options are those of ``xray stream``, for such a start alone.
        """
        if self.stream is not None and not self.stream.alive:
            said = self.stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self.deaths.append(f"exit {self.stream.exit_code}: {said[-1] if said else ''}"[:300])
            self.stream.kill()  # what it left behind
            self.stream = None
        if self.stream is None:
            self.stream = StreamProcess(self.environ | self.halts.environ(self.environ), self.stderr, options)
        return self.stream

    def kill(self) -> None:
        """Kill driver, JVM and workers at once."""
        if self.stream is not None:
            self.stream.kill()
            self.stream = None

    def stop(self) -> int:
        """End the stream in order; give its exit code, 0 where none runs."""
        stream, self.stream = self.stream, None
        return 0 if stream is None else stream.terminate()

    def close(self) -> None:
        """Kill what runs and close the files."""
        self.kill()
        for oracle in self._oracles:
            oracle.close()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def time_new_prediction(
        self, records: int = 0, *, since_s: float | None = None, timeout_s: float = 240
    ) -> float | None:
        """Publish some records, and wait for the prediction of an image that had none before.

        Starts the stream where it does not run, and again where it ends by itself.

        Parameters
        ----------
        records : int
            To publish first, so that there is something to predict.
        since_s : float, optional
            Moment to count from, on the monotonic clock; by default that of the start of the stream.
        timeout_s : float
            Give up after so many seconds.

        Returns
        -------
        float or None
            Seconds; None where no such prediction came.
        """
        self.reader.refresh()
        seen = self.reader.places(PREDICTION)
        with tail(self.kafka, self.kafka.predictions_topic) as consumer:
            self.publish(records)
            started = time.monotonic()
            while time.monotonic() < started + timeout_s:
                self.supervise()
                message = consumer.poll(0.05)
                if message is not None and message.error() is None and _place_of(message.headers()) not in seen:
                    return time.monotonic() - (started if since_s is None else since_s)
        return None

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until SCORE has committed all that is published now, and ARCHIVE all that SCORE wrote; False where not.

        Waits three minutes, and longer for more than a thousand records; a stream that ends by itself is started again,
        some times.
        """
        deadline = time.monotonic() + (timeout_s or 180 + len(self.everything.records) / 20)
        kafka = self.kafka
        images = {kafka.images_topic: self.everything.ends()}
        if not self._await_progress(self.score.progress, images, deadline):
            return False
        ends = {topic: read_ends(kafka, topic) for topic in self.outcome_topics.values()}
        return self._await_progress(self.archived, ends, deadline)

    def _await_progress(
        self,
        read_progress: Callable[[], Mapping[str, Mapping[int, int]]],
        wanted: Mapping[str, Mapping[int, int]],
        deadline: float,
    ) -> bool:
        died = len(self.deaths)
        while time.monotonic() < deadline and len(self.deaths) - died <= _MAX_RESTARTS:
            self.supervise()
            done = read_progress()
            if all(done.get(topic, {}).get(p, 0) >= end for topic, ends in wanted.items() for p, end in ends.items()):
                return True
            time.sleep(0.1)
        return False

    def check(self, records: Sequence[Known] | None = None) -> Verdict:
        """Draw up the account of the current oracle's records."""
        return check(self.settings, self.oracle.records if records is None else records, self.environ, self.reader)

    def keep_evidence(self, folder: Path) -> None:
        """Copy what tells what happened: oracles, checkpoints, tables and logs."""
        for path in self.home.iterdir():
            if path.name in ("oracles", "checkpoints", "tables", "logs"):
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            elif path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder)

    def remove(self) -> None:
        """Remove the scene's files."""
        shutil.rmtree(self.home, ignore_errors=True)


def _place_of(headers: Sequence[tuple[str, bytes]] | None) -> Place:
    values = dict(headers or ())
    return int(values["xray_input_partition"]), int(values["xray_input_offset"])


def new_consumer(kafka: KafkaSettings) -> Consumer:
    """Make a consumer without a group that sees what is new at once."""
    options = {
        "group.id": "xray-chaos",
        "enable.auto.commit": False,
        "log_level": 0,
        "fetch.wait.max.ms": 10,
        "reconnect.backoff.max.ms": 500,
        "fetch.message.max.bytes": 4 * 1024 * 1024,
    }
    return Consumer(kafka.to_librdkafka() | options)


class Ends:
    """Asks the broker how much some topics hold; a question takes about a millisecond for each partition."""

    def __init__(self, kafka: KafkaSettings, *topics: str) -> None:
        self._consumer = new_consumer(kafka)
        self._partitions = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]

    def total(self) -> int:
        """Sum the end offsets."""
        answers = [self._consumer.get_watermark_offsets(partition, timeout=10) for partition in self._partitions]
        return sum(int(answer[1]) for answer in answers if answer is not None)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


@contextmanager
def measuring_ends(kafka: KafkaSettings, *topics: str) -> Iterator[Ends]:
    """Open `Ends` and close it."""
    ends = Ends(kafka, *topics)
    try:
        yield ends
    finally:
        ends.close()


def read_ends(kafka: KafkaSettings, topic: str) -> dict[int, int]:
    """Read the end offset of each partition.

    Raises
    ------
    JobError
        The broker does not answer.
    """
    consumer = new_consumer(kafka)
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return {p.partition: int(consumer.get_watermark_offsets(p, timeout=20)[1]) for p in partitions}
    except KafkaException as exc:
        msg = f"{topic}: {exc}"
        raise JobError(msg) from exc
    finally:
        consumer.close()


@contextmanager
def tail(kafka: KafkaSettings, topic: str) -> Iterator[Consumer]:
    """Open a consumer that begins behind the newest record."""
    ends = read_ends(kafka, topic)
    consumer = new_consumer(kafka)
    try:
        consumer.assign([TopicPartition(topic, partition, end) for partition, end in ends.items()])
        yield consumer
    finally:
        consumer.close()
