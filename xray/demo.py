"""The demo: everything the stream does, on this machine, with generated radiographs, in front of the user."""

import shlex
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from rich.live import Live
from rich.markup import escape

from schemas.envelope import DISCLAIMER
from schemas.errors import DependencyError, JobError
from schemas.extras import check_extra
from schemas.modelcard import DEMONSTRATION, UNDECIDED
from schemas.registry import promote
from sparkdl.spark.java import find_java
from streaming.account.audit import Account, audit_stream
from streaming.devices.publish import ImagePublisher, image_message, publish_files
from streaming.ending import end_on_signals
from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
from streaming.results.watch import SeenPrediction, watch_predictions
from streaming.run.service import StreamState, run_stream
from streaming.run.session import open_session
from streaming.settings import StreamSettings
from training.data.dataset import read_dataset
from training.model.fit import train_model
from training.model.material import Procedure
from xray.broker import LocalBroker
from xray.console import err, new_progress, new_table, print_json, say_positive, step
from xray.demolock import lock_demo
from xray.phantom import FINDINGS, Radiograph, encode_dicom, encode_jpeg, encode_png, generate_radiograph
from xray.prepare import fetch_jars
from xray.sandbox import Trickle, run_trickle
from xray.tabular import print_table
from xray.views import list_flags, prediction_table

_TRAINING_IMAGES = 120
PORT = 19292
"""Of the demo's broker, where nothing else is asked for."""
_LATENCY_SHARE = 0.15
"""Part of the images that come one by one, for the latency; the others come at once, for the throughput."""
_LATENCY_RATE = 10.0
"""Images a second of those: far below what the stream can do, so that none waits for another."""
_PATIENCE_S = 120.0
_BROKEN_EVERY = 40
_SANDBOX_PROCEDURE = Procedure(abstain=0.1, novelty_quantile=0.99)
"""So that a sandbox has flags of both kinds."""


@dataclass
class DemoSummary:
    """What the demo found.

    Parameters
    ----------
    published, predicted, dead_letters, unaccounted : int
        Images; the last one should be 0.
    undecided : int
        Predictions among ``predicted`` that are flagged, so not to be acted on.
    dead_letter_reasons : dict of str to int
        Dead letters by reason.
    images_per_second : float
        While a backlog was scored.
    latency_p50_s, latency_p95_s : float
        From publishing an image to its prediction being on the topic, at `_LATENCY_RATE`.
    accuracy : float
        Of the predictions that are not flagged, against the known findings.
    held_out_accuracy : float
        As training measured it, on other images.
    balanced : bool
        The account's verdict, tables included.
    table : str
        Folder of the predictions table.
    metrics_url : str
        The Prometheus page while the stream runs.
    seconds : float
        The whole demo.
    trickled : int or None
        Images published after the summary; None where the demo was not kept.
    """

    published: int
    predicted: int
    dead_letters: int
    unaccounted: int
    undecided: int
    dead_letter_reasons: dict[str, int]
    images_per_second: float
    latency_p50_s: float
    latency_p95_s: float
    accuracy: float
    held_out_accuracy: float
    balanced: bool
    table: str
    metrics_url: str
    seconds: float
    trickled: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every image has its outcome."""
        return self.balanced and self.predicted + self.dead_letters == self.published

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "published": self.published,
            "predicted": self.predicted,
            "dead_letters": self.dead_letters,
            "unaccounted": self.unaccounted,
            "undecided": self.undecided,
            "images_per_second": round(self.images_per_second, 1),
            "latency_seconds": {"p50": round(self.latency_p50_s, 3), "p95": round(self.latency_p95_s, 3)},
            "accuracy": round(self.accuracy, 4),
            "held_out_accuracy": round(self.held_out_accuracy, 4),
            "dead_letter_reasons": self.dead_letter_reasons,
            "balanced": self.balanced,
            "table": self.table,
            "seconds": round(self.seconds, 1),
            "disclaimer": DISCLAIMER,
            **({} if self.trickled is None else {"trickled": self.trickled}),
        }


@dataclass(frozen=True)
class Keeping:
    """How the demo goes on after its summary.

    Parameters
    ----------
    every_s : float
        From one generated image to the next.
    as_json : bool
        Say where all is as a line of JSON on standard output.
    """

    every_s: float
    as_json: bool


def run_demo(
    settings: StreamSettings, *, count: int, seed: int, keep: Keeping | None, verbose: bool, port: int = PORT
) -> DemoSummary:
    """Run the demo and show it.

    Parameters
    ----------
    settings : StreamSettings
        The user's; the demo keeps to ``home/demo`` and a broker of its own.
    count : int
        Good images to stream; a few broken ones are added.
    seed : int
        Of the images.
    keep : Keeping, optional
        After the summary go on until Ctrl-C, SIGTERM or ``xray down``.
    verbose : bool
        Leave Spark's own words on the terminal.
    port : int
        Of the demo's broker on 127.0.0.1; the next one is its controller's.

    Returns
    -------
    DemoSummary
        See there.
    """
    find_java()  # one clear line before anything else is tried
    own = _demo_settings(settings, port)
    with lock_demo(own.home):
        return _run_alone(settings, own, count=count, seed=seed, keep=keep, verbose=verbose)


def _run_alone(
    settings: StreamSettings, own: StreamSettings, *, count: int, seed: int, keep: Keeping | None, verbose: bool
) -> DemoSummary:
    started = time.monotonic()
    _forget_last_run(own)
    broker = LocalBroker.of(own)
    with ThreadPoolExecutor() as pool:
        # Jars wait for the line and drawing for the processor, so they go together; the broker comes up while the model
        # is trained: nothing needs it before the stream.
        jars = pool.submit(fetch_jars, settings.jars_folder)
        training, streamed = _generate(own.home / "images", count=count, seed=seed)
        with step("fetching the jars of Kafka and of Spark's connector (55 MB, the first time only)"):
            jars.result()
        up = pool.submit(_start_broker, broker, own)
        try:
            with step("starting Spark"):
                spark = open_session(own, verbose=verbose)
            try:
                summary = _train_and_stream(spark, own, training, streamed, up, keep=keep, seed=seed)
            finally:
                spark.stop()
        finally:
            _settle(up)
            broker.stop()
    summary.seconds = time.monotonic() - started
    if keep is None:
        _show(summary, own)
    return summary


def _settle(future: Future[None]) -> None:
    """Wait for the start to end either way, so that what it started is seen by the stop."""
    future.exception()


def _demo_settings(settings: StreamSettings, port: int) -> StreamSettings:
    """Move the user's settings into a folder, a broker and ports of their own."""
    home = settings.home / "demo"
    return settings.model_copy(
        update={
            "home": home,
            "jars": settings.jars_folder,
            "kafka": type(settings.kafka)(bootstrap_servers=f"127.0.0.1:{port}"),
            "archive": settings.archive.model_copy(update={"folder": None, "trigger_s": 2.0, "metrics_port": 0}),
            "metrics": settings.metrics.model_copy(update={"port": 0}),
        }
    )


def _forget_last_run(settings: StreamSettings) -> None:
    """Begin with empty topics and tables; the drawn images are kept, they are the same for the same seed."""
    home = settings.home
    LocalBroker.of(settings).stop()
    for name in ("kafka", "checkpoints", "tables", "models", "logs"):
        shutil.rmtree(home / name, ignore_errors=True)


def _start_broker(broker: LocalBroker, settings: StreamSettings) -> None:
    broker.start()
    kafka = settings.kafka
    create_topics(kafka, wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka))


# -- images ------------------------------------------------------------------------------------------------------------


def _generate(folder: Path, *, count: int, seed: int) -> tuple[Path, Path]:
    """Draw the training set and the ones to stream, each patient only once; sets that are there are kept."""
    sets = {"training": (_TRAINING_IMAGES, seed * 1_000_003), "streamed": (count, seed * 1_000_003 + 500_000)}
    todo = {name: spec for name, spec in sets.items() if not _is_complete(folder / _set_name(name, *spec))}
    jobs = [(folder / _set_name(name, *spec), i, spec[1]) for name, spec in todo.items() for i in range(spec[0])]
    if jobs:
        # Spawned, not forked: the threads of the broker's start are running here.
        with new_progress() as progress, ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            task = progress.add_task("drawing chest phantoms", total=len(jobs))
            for _ in pool.map(_draw, jobs, chunksize=8):
                progress.advance(task)
        for name, spec in todo.items():
            (folder / _set_name(name, *spec) / _COMPLETE).touch()
    training, streamed = (folder / _set_name(name, *spec) for name, spec in sets.items())
    return training, streamed


_COMPLETE = ".complete"
_ENCODERS = (("png", encode_png), ("jpg", encode_jpeg), ("dcm", encode_dicom))


def _set_name(name: str, count: int, seed: int) -> str:
    return f"{name}-{count}-{seed}"


def _is_complete(folder: Path) -> bool:
    return (folder / _COMPLETE).is_file()


def _draw(job: tuple[Path, int, int]) -> None:
    """Draw one radiograph into its class's folder; formats take turns within each class."""
    folder, i, seed = job
    finding = FINDINGS[i % len(FINDINGS)]
    suffix, encode = _ENCODERS[(i // len(FINDINGS)) % len(_ENCODERS)]
    radiograph: Radiograph = generate_radiograph(seed + i, finding=finding)
    target = folder / finding / f"{radiograph.patient_id}.{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode(radiograph))


def _broken_payloads(files: Sequence[Path]) -> list[bytes | None]:
    """Make a few of the things that arrive besides images."""
    png = next(path for path in files if path.suffix == ".png").read_bytes()
    jpeg = next(path for path in files if path.suffix == ".jpg").read_bytes()
    return [b"", None, b"not an image, but a line of text\n", jpeg[: len(jpeg) // 2], png[: len(png) // 3]]


# -- the run -----------------------------------------------------------------------------------------------------------


def _train_and_stream(
    spark: SparkSession,
    settings: StreamSettings,
    training: Path,
    streamed: Path,
    broker: Future[None],
    *,
    keep: Keeping | None,
    seed: int,
) -> DemoSummary:
    dataset = read_dataset(training, classes=FINDINGS)
    say_positive(dataset.positive, dataset.positive_known_by)
    with new_progress() as progress:
        task = progress.add_task("training: EfficientNetLite0 and logistic regression", total=None)
        trained = train_model(
            lambda: spark,
            dataset,
            out=settings.models_folder,
            name=DEMONSTRATION,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            procedure=_SANDBOX_PROCEDURE if keep else Procedure(),
        )
    promote(settings.models_folder, trained.card.version)
    err.print(f"  held-out accuracy {trained.metrics['accuracy']:.3f} on {sum(trained.n_test.values())} phantoms")
    broker.result()
    with _streaming(spark, settings, trained.folder) as (state, ended):
        files = sorted(path for path in streamed.rglob("*.*") if path.parent.name in FINDINGS)
        seen, published, burst_s = _publish_and_watch(settings, files)
        account = _await_account(settings, published)
        summary = _summarise(settings, state, account, seen, published, burst_s)
        summary.held_out_accuracy = trained.metrics["accuracy"]
        if keep is not None:
            _show(summary, settings)
            trickle = Trickle(settings.kafka, seed * 1_000_003 + 900_000)
            with _open_page(settings, state) as page:
                _show_sandbox(settings, state, keep, page)
                _go_on(trickle, ended, keep.every_s)
            summary.trickled = trickle.published
    return summary


@contextmanager
def _streaming(
    spark: SparkSession, settings: StreamSettings, model: Path
) -> Iterator[tuple[StreamState, threading.Event]]:
    """Run the stream in a thread while the body publishes and watches; end it in order."""
    ended, ready = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def on_ready(state: StreamState) -> None:
        found["state"] = state
        ready.set()

    def run() -> None:
        try:
            run_stream(settings, model_folder=model, spark=spark, ended=ended, on_ready=on_ready)
        except JobError as exc:
            found["error"] = exc
        finally:
            ready.set()
            ended.set()  # whoever waits for the end of a stream must not wait for one that has failed

    thread = threading.Thread(target=run, name="stream")
    thread.start()
    try:
        with step("starting the stream: SCORE and ARCHIVE"):
            ready.wait()
        if "state" not in found:
            raise found.get("error") or JobError("the stream ended before it was ready")
        yield found["state"], ended
    finally:
        with step("ending the stream in order"):
            ended.set()
            thread.join()
    if "error" in found:
        raise found["error"]


def _publish_and_watch(settings: StreamSettings, files: list[Path]) -> tuple[list[SeenPrediction], int, float]:
    """Publish a burst, then single images; show predictions as they arrive.

    Returns
    -------
    tuple of list, int and float
        Predictions in order of arrival, records published, and the seconds in which the burst was scored.
    """
    calm = max(10, round(len(files) * _LATENCY_SHARE))
    order = np.random.default_rng(0).permutation(len(files))
    burst, single = [files[i] for i in order[calm:]], [files[i] for i in order[:calm]]
    broken = _broken_payloads(files)
    seen: list[SeenPrediction] = []
    recent: deque[SeenPrediction] = deque(maxlen=12)
    predictions = watch_predictions(settings.kafka, timeout_s=_PATIENCE_S)
    next(predictions)  # assigned: nothing is missed from here on
    with Live(console=err, auto_refresh=False, transient=not err.is_terminal) as live:

        def follow(upto: int) -> None:
            for prediction in predictions:
                if prediction is not None:
                    seen.append(prediction)
                    recent.append(prediction)
                    if err.is_terminal:
                        live.update(prediction_table(recent, len(seen)), refresh=True)
                if len(seen) >= upto:
                    return

        started = time.time()
        _publish(burst, broken, settings)
        follow(len(burst))
        burst_s = max(p.published_s for p in seen) - started if seen else float("nan")
        sender = threading.Thread(target=publish_files, args=(single, settings.kafka), kwargs={"rate": _LATENCY_RATE})
        sender.start()
        follow(len(files))
        sender.join()
    return seen, len(files) + len(broken), burst_s


def _publish(files: Sequence[Path], broken: Sequence[bytes | None], settings: StreamSettings) -> None:
    """Publish a burst, the broken records spread among the images."""
    failures: list[str] = []

    def settle(token: str, error: str | None) -> None:
        if error is not None:
            failures.append(f"{token}: {error}")

    publisher = ImagePublisher(settings.kafka, settle)
    stuck = {i * len(files) // len(broken): payload for i, payload in enumerate(broken)}
    for i, path in enumerate(files):
        if i in stuck:
            publisher.publish(stuck[i], [], key=f"broken-{i}".encode(), token=f"broken record {i}")
        payload, headers = image_message(path.read_bytes(), image_id=path.name, source="/xray/demo")
        publisher.publish(payload, headers, key=path.stem.encode(), token=path.name)
    publisher.flush()
    if failures:
        raise JobError("not published: " + "; ".join(failures))


def _await_account(settings: StreamSettings, published: int) -> Account:
    """Wait until SCORE has committed and ARCHIVE has written everything, or patience ends."""
    deadline = time.monotonic() + _PATIENCE_S
    with step("waiting for the tables, then drawing up the account"):
        while True:
            account = audit_stream(settings)
            behind = account.pending + sum(table.pending for table in account.tables.values())
            if (account.consumed == published and behind == 0) or time.monotonic() > deadline:
                return account
            time.sleep(0.3)


def _go_on(trickle: Trickle, ended: threading.Event, every_s: float) -> None:
    # Not as an interrupt: Spark's handler would cancel the micro-batch that is running.
    end_on_signals(ended)
    run_trickle(trickle, ended, every_s)


@contextmanager
def _open_page(settings: StreamSettings, state: StreamState) -> Iterator[str]:
    """Serve the page of this stream; gives its address, empty where the extra is not installed."""
    try:
        check_extra("page", "the page")
    except DependencyError as exc:
        err.print(f"[bold yellow]no page:[/] {escape(str(exc))}", soft_wrap=True)
        yield ""
        return
    from streaming.page.service import serve_page  # noqa: PLC0415 - of an extra
    from xray.modelmoves import PageMoves  # noqa: PLC0415 - likewise

    page = settings.page.model_copy(update={"stream_url": state.metrics_url.removesuffix("/metrics")})
    if not _is_free(page.host, page.port):  # another page has it
        page = page.model_copy(update={"port": 0})
    with serve_page(settings.model_copy(update={"page": page}), PageMoves(settings)) as served:
        yield served.url


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _show_sandbox(settings: StreamSettings, state: StreamState, keep: Keeping, page: str) -> None:
    """Say where all is, and how it ends."""
    kafka = settings.kafka
    environ = {"XRAY_HOME": str(settings.home), "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    places: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "topics": sorted(wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka)),
        "tables": settings.tables_folder,
        "metrics": state.metrics_url,
        "page": page or None,
        "model": state.card.version,
        "every_seconds": keep.every_s,
        "environ": environ,
    }
    if keep.as_json:
        print_json({"event": "ready", **places, "disclaimer": DISCLAIMER})
    err.print(
        f"\n[bold]The sandbox goes on[/]: an image each {keep.every_s:g} s, and now and then one that is repeated,"
    )
    err.print("broken, or no radiograph. Ctrl-C here ends it in order, and 'xray down' from another terminal.")
    err.print(f"Kafka    {kafka.bootstrap_servers}", soft_wrap=True, markup=False)
    err.print(f"Topics   {', '.join(places['topics'])}", soft_wrap=True, markup=False)
    err.print(f"Tables   {settings.tables_folder}", soft_wrap=True, markup=False)
    err.print(f"Metrics  {state.metrics_url}", soft_wrap=True, markup=False)
    if page:
        err.print(f"Page     {page}", soft_wrap=True, markup=False, highlight=False)
    err.print("For xray watch, publish, deadletters or gateway with it, in another terminal:")
    err.print(
        f"export {' '.join(f'{name}={shlex.quote(value)}' for name, value in environ.items())}",
        soft_wrap=True,
        markup=False,
    )


# -- the summary -------------------------------------------------------------------------------------------------------


def _summarise(
    settings: StreamSettings,
    state: StreamState,
    account: Account,
    seen: list[SeenPrediction],
    published: int,
    burst_s: float,
) -> DemoSummary:
    calm = [p for p in seen if p.event["image"]["source"] == "/xray/publish"]
    burst = len(seen) - len(calm)
    p50, p95 = np.percentile([p.latency_s for p in calm], [50, 95]) if calm else (float("nan"), float("nan"))
    known = {path.name: path.parent.name for path in (settings.home / "images").rglob("*.*")}
    return DemoSummary(
        published=published,
        predicted=account.total("predicted"),
        dead_letters=account.total("dead_lettered"),
        unaccounted=account.unaccounted + published - account.consumed,
        undecided=count_undecided(seen),
        dead_letter_reasons=account.dead_letter_reasons,
        images_per_second=burst / burst_s,
        latency_p50_s=float(p50),
        latency_p95_s=float(p95),
        accuracy=measure_accuracy(seen, known),
        held_out_accuracy=float("nan"),
        balanced=account.balanced,
        table=f"{settings.tables_folder}/predictions",
        metrics_url=state.metrics_url,
        seconds=0.0,
    )


def count_undecided(seen: Sequence[SeenPrediction]) -> int:
    """Count the flagged predictions."""
    return sum(bool(list_flags(prediction.event)) for prediction in seen)


def measure_accuracy(seen: Sequence[SeenPrediction], known: Mapping[str, str]) -> float:
    """Give the share of right labels among the predictions that are to be acted on; NaN where there is none.

    Parameters
    ----------
    seen : sequence of SeenPrediction
        Flagged ones are left out.
    known : Mapping of str to str
        The finding by the published file's name.
    """
    right = [known.get(_file_name(p)) == p.event["label"] for p in seen if not list_flags(p.event)]
    return float(np.mean(right)) if right else float("nan")


def _file_name(prediction: SeenPrediction) -> str:
    """Give the published file's name; ``xray publish`` puts the content's hash behind it."""
    name: str = prediction.event["image"]["id"]
    return name if prediction.event["image"]["source"] == "/xray/demo" else name.rsplit("-", 1)[0]


def _show(summary: DemoSummary, settings: StreamSettings) -> None:
    table = new_table("", "#", title="What happened")
    rows = {
        "records published": f"{summary.published}",
        "predictions": f"{summary.predicted}",
        f"    {UNDECIDED}, as they are flagged": f"{summary.undecided}",
        "dead letters": f"{summary.dead_letters}",
        **{f"    {escape(reason)}": f"{count}" for reason, count in summary.dead_letter_reasons.items()},
        "unaccounted": f"{summary.unaccounted}",
        "images per second, a backlog": f"{summary.images_per_second:.1f}",
        f"latency p50 / p95, {_LATENCY_RATE:.0f} images a second": (
            f"{summary.latency_p50_s:.2f} s / {summary.latency_p95_s:.2f} s"
        ),
        "accuracy where decided, against the known findings": f"{summary.accuracy:.3f}",
        "whole demo": f"{summary.seconds:.0f} s" if summary.seconds else "",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table, err)
    err.print("These are phantoms: the accuracy shows that the parts fit, not that a disease is detected.")
    err.print(f"{DISCLAIMER}\n")
    err.print(f"Predictions are a Delta table:  {summary.table}", soft_wrap=True)
    err.print("  read it without Spark:        python -c \"import deltalake, sys; "
              "print(deltalake.DeltaTable(sys.argv[1]).to_pandas())\" FOLDER", markup=False)  # fmt: skip
    err.print(f"Metrics, while it streams:      {summary.metrics_url}  (xray demo --keep)")
    err.print("Try next, with your own images: xray up; xray train --data FOLDER; xray stream;")
    err.print("                                and in another terminal: xray publish FOLDER; xray watch")
