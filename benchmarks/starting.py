"""Seconds from ``xray stream`` to the first prediction, of the installed command as a process of its own.

Cold: images wait, and no checkpoint is there. Killed: images come at a rate, the whole stream is killed (SIGKILL) and
started again at once; what counts is the first prediction that was not there before. Archive and canary run as always.

Beside the seconds, which move with the machine, the processor's seconds of all processes of the stream until then, and
when each step was reached. Source trees given with ``--tree`` take turns, so that two states of the code meet the same
machine.

Run it: ``python -m benchmarks.starting`` (``--help``). Nothing else should run on the machine.
"""

import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import Consumer, Message

from benchmarks.chaos.commands import command_line
from benchmarks.chaos.scene import clean_environ
from benchmarks.chaos.stream import StreamProcess
from benchmarks.stage import Stage, open_stage, publish_images
from benchmarks.throughput import WEIGHTS
from streaming.devices.publish import ImagePublisher
from streaming.kafka.reader import assign_all
from streaming.settings import StreamSettings
from xray.console import err, new_table, step

_FIRST_TIMEOUT_S = 120.0
_POLL_S = 0.05
_HERE = Path(__file__).resolve().parent.parent
_KAFKA = ("images", "predictions", "features", "deadletters", "canary", "canary_results")


@dataclass
class Start:
    """One start.

    Parameters
    ----------
    tree, situation : str
        Whose code, and what was measured.
    seconds : float
        From the start of the process, or from the kill, to the first prediction.
    cpu_seconds : float
        Of all its processes, user and system, until that prediction was seen.
    steps : dict of str to float
        Seconds after the start at which each step was reached.
    """

    tree: str
    situation: str
    seconds: float
    cpu_seconds: float
    steps: dict[str, float] = field(default_factory=dict)


def main(
    network: Annotated[str, typer.Option(help="Network of the model.")] = "EfficientNetLite0",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each tree.")] = 5,
    waiting: Annotated[int, typer.Option(min=1, help="Images that wait for a cold start.")] = 60,
    rate: Annotated[float, typer.Option(min=0.1, help="Images a second around the kill.")] = 15,
    steady_s: Annotated[float, typer.Option(min=1, help="Seconds at that rate before the kill.")] = 15,
    tree: Annotated[list[Path] | None, typer.Option(help="Source trees to compare; by default this one.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure cold starts and starts after a kill, by turns."""
    trees = [folder.resolve() for folder in tree or [_HERE]]
    with open_stage() as stage:
        _, _, folder = stage.train(network, WEIGHTS.get(network, "random"), "fp32")
        stage.spark.stop()
        starts: list[Start] = []
        for _ in range(rounds):
            for source in trees:
                starts += measure(stage, source, folder, waiting, rate, steady_s)
                for start in starts[-2:]:
                    err.print(
                        f"{start.tree} {start.situation}: {start.seconds:.1f} s, {start.cpu_seconds:.1f} s of CPU"
                    )
    results = summarize(starts)
    if json_:
        document = {"starts": [asdict(start) for start in starts], "medians": [asdict(start) for start in results]}
        sys.stdout.write(json.dumps(document) + "\n")
    show(results)


def measure(stage: Stage, tree: Path, model: Path, waiting: int, rate: float, steady_s: float) -> Iterator[Start]:
    """Start a stream where images wait, kill it under load and start it again."""
    settings = stage.fresh_settings()
    publish_images(settings, stage.images, waiting)
    watch = _Predictions(settings)
    try:
        run = _Run(settings, tree, model)
        try:
            cold = run.time_first(watch, "cold", run.started)
            yield cold
            with step("at the rate"), _publishing(settings, stage.images, rate):
                run.process.wait_ready(_FIRST_TIMEOUT_S)
                time.sleep(steady_s)
                run.process.aim()
                killed = time.time()
                run.process.kill()
                watch.skip()
                run = _Run(settings, tree, model)
                yield run.time_first(watch, "killed", killed)
        finally:
            run.process.terminate()
    finally:
        watch.close()


class _Run:
    """A stream that starts, and what can be seen of it from outside."""

    def __init__(self, settings: StreamSettings, tree: Path, model: Path) -> None:
        settings.home.mkdir(parents=True, exist_ok=True)
        self._tree = tree
        self._checkpoint = settings.checkpoints_folder / "score"
        self._log = settings.home / f"start-{time.time_ns()}.log"
        command = command_line("stream", "--json")
        if (tree / "benchmarks" / "startlog.py").is_file():  # another tree may tell less
            command[2:3] = ["benchmarks.startlog", str(self._log)]
        environ = environ_of(settings) | {"PYTHONPATH": str(tree)}
        self.started = time.time()
        stderr = settings.home / "stream.stderr"
        stderr = settings.home / "stream.stderr"
        self.process = StreamProcess(environ, stderr, ("--model", str(model)), command=command, folder=tree)

    def time_first(self, watch: "_Predictions", situation: str, since: float) -> Start:
        """Wait for the first prediction."""
        steps: dict[str, float] = {}
        deadline = time.monotonic() + _FIRST_TIMEOUT_S
        while (message := watch.poll(_POLL_S)) is None:
            if time.monotonic() > deadline or not self.process.alive:
                msg = f"no prediction: see {self._log.parent}, exit code {self.process.exit_code}"
                raise RuntimeError(msg)
            self._note_processes(steps)
        cpu_s = sum(map(_cpu_seconds, [p.pid for p in self.process.processes()]))
        first = message.timestamp()[1] / 1000
        self._note_files(steps)
        steps["first prediction"] = first - self.started
        return Start(self._tree.name, situation, first - since, cpu_s, dict(sorted(steps.items(), key=lambda s: s[1])))

    def _note_processes(self, steps: dict[str, float]) -> None:
        now = time.time() - self.started
        found = self.process.processes()
        jvms = {p.pid for p in found if p.is_java and "org.apache.spark.deploy.SparkSubmit" in p.command}
        daemons = {p.pid for p in found if p.parent in jvms and not p.is_java}
        if jvms:
            steps.setdefault("JVM runs", now)
        if daemons:
            steps.setdefault("worker daemon runs", now)
        if any(p.parent in daemons for p in found):
            steps.setdefault("a worker runs", now)

    def _note_files(self, steps: dict[str, float]) -> None:
        if self._log.is_file():
            for line in self._log.read_text(encoding="utf-8").splitlines():
                created, _, text = line.partition(" ")
                with suppress(ValueError):
                    steps[text] = float(created) - self.started
        for name, folder in (("first batch planned", "offsets"), ("first batch committed", "commits")):
            files = [p.stat().st_mtime for p in (self._checkpoint / folder).glob("[0-9]*")]
            later = [changed - self.started for changed in files if changed > self.started]
            if later:
                steps[name] = min(later)


class _Predictions:
    """The predictions' topic, from where it ended when this was made."""

    def __init__(self, settings: StreamSettings) -> None:
        options = {"group.id": "starting", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
        self._topic = settings.kafka.predictions_topic
        self._consumer = Consumer(settings.kafka.to_librdkafka() | options)
        self.skip()

    def skip(self) -> None:
        """Go on behind what is there now."""
        assign_all(self._consumer, self._topic, at="end")

    def poll(self, timeout_s: float) -> Message | None:
        """Wait for the next prediction."""
        message = self._consumer.poll(timeout_s)
        return message if message is not None and message.error() is None else None

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()


def environ_of(settings: StreamSettings) -> dict[str, str]:
    """Give the environment in which the installed command has these settings' broker, topics and folders."""
    topics = {f"XRAY_KAFKA__{name.upper()}_TOPIC": getattr(settings.kafka, f"{name}_topic") for name in _KAFKA}
    return (
        clean_environ()
        | topics
        | {
            "XRAY_HOME": str(settings.home),
            "XRAY_JARS": str(settings.jars_folder),
            "XRAY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "XRAY_KAFKA__PARTITIONS": str(settings.kafka.partitions),
            "XRAY_METRICS__PORT": "0",
            "XRAY_ARCHIVE__METRICS_PORT": "0",
        }
    )


@contextmanager
def _publishing(settings: StreamSettings, images: Sequence[bytes], rate: float) -> Iterator[None]:
    """Publish at a rate while the body runs."""
    ended = threading.Event()
    publisher = ImagePublisher(settings.kafka, lambda _token, _error: None)

    def publish() -> None:
        began, sent = time.monotonic(), 0
        while not ended.wait(max(0.0, began + sent / rate - time.monotonic())):
            publisher.publish(images[sent % len(images)], [], key=b"%d" % sent, token=sent)
            sent += 1
            publisher.poll(0)
        publisher.flush()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _cpu_seconds(pid: int) -> float:
    """Give the processor's seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def summarize(starts: Sequence[Start]) -> list[Start]:
    """Give the medians of each tree and situation; of a step those of the starts in which it was seen."""
    groups: Mapping[tuple[str, str], list[Start]] = defaultdict(list)
    for start in starts:
        groups[start.tree, start.situation].append(start)
    return [
        Start(
            tree,
            situation,
            statistics.median(start.seconds for start in group),
            statistics.median(start.cpu_seconds for start in group),
            _median_steps(group),
        )
        for (tree, situation), group in groups.items()
    ]


def _median_steps(group: Sequence[Start]) -> dict[str, float]:
    seen: dict[str, list[float]] = defaultdict(list)
    for start in group:
        for name, seconds in start.steps.items():
            seen[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def show(results: Sequence[Start]) -> None:
    """Print the medians, and below them when each step was reached."""
    table = new_table("tree", "situation", "#s", "#CPU s")
    for result in results:
        table.add_row(result.tree, result.situation, f"{result.seconds:.1f}", f"{result.cpu_seconds:.1f}")
    err.print(table)
    for result in results:
        steps = new_table(f"{result.tree}, {result.situation}", "#s after the start")
        for name, seconds in result.steps.items():
            steps.add_row(name, f"{seconds:.2f}")
        err.print(steps)


if __name__ == "__main__":
    typer.run(main)
