"""Images per second of `DeepImageFeaturizer`, beside three baselines in the same run, and the start-up of a worker.

The bare limit is the engine in as many processes as the session has cores, one thread each, on the same image rows
without Spark. Beside it: Spark's ``predict_batch_udf`` with TensorFlow, as Spark's documentation shows it, and ONNX
Runtime bare. Images have the network's size already and are cached, so that featurizing alone is measured. Everybody
takes turns, since a machine's speed moves while one looks; ratios are taken within a round, to the mean of the bare run
before and the one after.

Run it: ``python -m benchmarks.featurize`` (``--help``). It needs the ``train`` and ``int8`` extras; TensorFlow and ONNX
Runtime are measured where they are installed. Nothing else should run on the machine.
"""

import json
import multiprocessing as mp
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import typer
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FloatType

from benchmarks.onnx import ONNX_PACKAGES, export_onnx, name_missing, start_onnx
from benchmarks.tutorial import save_keras
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.image.row import IMAGE_ARROW_TYPE, ImageRow, array_from_row, row_from_array
from sparkdl.network.base import Network
from sparkdl.network.catalog import NETWORKS, build_network
from sparkdl.spark.session import start_session
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from xray.console import err, new_table, print_json, step
from xray.phantom import FINDINGS, generate_radiograph

PRECISIONS = ("fp32", "bf16", "int8")
WEIGHTS = {"EfficientNetLite0": "imagenet"}
"""Weights do not change the speed; the others' would be a download."""

STARTING = ("InceptionV3", "EfficientNetLite0")
START_GOAL_S, RSS_GOAL_MB = 3, 700

_PROCESSES = 2
_PARTITIONS = 8  # more than one for each core: a disturbed one must not hold up the end
_DISTINCT_IMAGES = 24
_CALIBRATION_IMAGES = 24
_TENSORFLOW_BATCH = 64
_TENSORFLOW_IMAGES = 128  # it is slow, and its input arrays are of four bytes a value
_CHUNK = 4
_ANSWER_TIMEOUT_S = 300

_Rows = list[ImageRow]
_Infer = Callable[[npt.NDArray[np.uint8]], object]


@dataclass
class Result:
    """One party's images per second, one value a round, or why there is none."""

    name: str
    precision: str
    rates: list[float] = field(default_factory=list)
    bare_rates: list[float] = field(default_factory=list)
    img_s: float | None = None
    of_bare: float | None = None
    of_tensorflow: float | None = None
    note: str = ""


@dataclass
class Start:
    """A fresh serving process's way from its start to its first feature."""

    network: str
    seconds: float
    rss_mb: float
    peak_mb: float


def main(
    network: Annotated[str, typer.Option(help="Network.")] = "InceptionV3",
    images: Annotated[int, typer.Option(min=40, help="Images of one run.")] = 400,
    rounds: Annotated[int, typer.Option(min=1, help="Turns for each party.")] = 2,
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PRECISIONS),
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure the featurizer against the bare engine, TensorFlow in Spark, and ONNX Runtime."""
    if network not in NETWORKS:
        msg = f"{network!r}, expected one of {', '.join(NETWORKS)}"
        raise typer.BadParameter(msg, param_hint="--network")
    if unknown := set(precisions.split(",")) - set(PRECISIONS):
        msg = f"{', '.join(sorted(unknown))}, expected one or more of {', '.join(PRECISIONS)}"
        raise typer.BadParameter(msg, param_hint="--precisions")
    with TemporaryDirectory(prefix="xray-benchmark-") as name:
        home = Path(name)
        starts = [measure_start(each, home, rounds) for each in STARTING]
        results = measure(network, precisions.split(","), images, rounds, home)
    if json_:
        goals = {"start_seconds": START_GOAL_S, "rss_mb": RSS_GOAL_MB}
        parts = {"featurize": [asdict(result) for result in results], "start": [asdict(start) for start in starts]}
        print_json({"network": network, "images": images, "rounds": rounds, **parts, "goals": goals})
    show(results, starts, f"{network}, {images} images, {rounds} rounds, {_PROCESSES} processes")


def measure(network: str, precisions: list[str], images: int, rounds: int, home: Path) -> list[Result]:
    """Let all parties take turns."""
    rows = draw_rows(NETWORKS[network].input_size)
    with ExitStack() as stack:
        with step("starting Spark"):
            spark = stack.enter_context(open_spark(home))
            frame = cache(frame_of(spark, rows, images))
        stages = {precision: build(network, precision, frame) for precision in precisions}
        bare = {
            precision: stack.enter_context(open_bare(start_openvino, stage.network, rows))
            for precision, stage in stages.items()
        }
        others = [Result("predict_batch_udf, TensorFlow", "fp32"), Result("ONNX Runtime bare", "fp32")]
        tensorflow, onnx = others
        run_tensorflow, run_onnx = _open_others(
            stack, others, network, home, rows, partial(_open_tensorflow, spark, images=min(images, _TENSORFLOW_IMAGES))
        )
        bare_fp32 = partial(bare["fp32"], images) if "fp32" in bare else None
        runs: dict[str, tuple[Result, Callable[[], float]]] = {}
        for precision, stage in stages.items():
            result = Result("DeepImageFeaturizer", precision)
            runs[precision] = (result, partial(measure_frame, stage.transform(frame), images))
        for turn in range(-1, rounds):  # the first warms up
            with step(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up"):
                for precision, (result, run) in runs.items():
                    _take_turn(result, run, partial(bare[precision], images), keep=turn >= 0)
                if run_tensorflow:
                    _take_turn(tensorflow, run_tensorflow, None, keep=turn >= 0)
                if run_onnx:
                    _take_turn(onnx, partial(run_onnx, images), bare_fp32, keep=turn >= 0)
    results = [result for result, _ in runs.values()]
    bares = [Result("engine bare", result.precision, rates=result.bare_rates) for result in results]
    return summarize([*results, *bares, *others], tensorflow)


def _take_turn(result: Result, run: Callable[[], float], bare: Callable[[], float] | None, *, keep: bool) -> None:
    before = bare() if bare else None
    rate = run()
    after = bare() if bare else None
    beside = f", bare {before:.1f} and {after:.1f}" if before and after else ""
    err.print(f"  {result.name} {result.precision} {rate:.1f}{beside}")
    if keep:
        result.rates.append(rate)
    if keep and before and after:
        result.bare_rates.append(mean((before, after)))


def summarize(results: list[Result], tensorflow: Result) -> list[Result]:
    """Take the medians over the rounds, of the rates and of the ratios."""
    for result in results:
        if result.rates:
            result.img_s = median(result.rates)
        if result.bare_rates:
            result.of_bare = _ratio(result.rates, result.bare_rates)
        if result.rates and tensorflow.rates and result is not tensorflow:
            result.of_tensorflow = _ratio(result.rates, tensorflow.rates)
    return results


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


# -- Spark -------------------------------------------------------------------------------------------------------------


@contextmanager
def open_spark(home: Path) -> Iterator[SparkSession]:
    """Start Spark without connectors; end it."""
    spark = start_session(app_name="featurize", log_folder=home / "logs", master=f"local[{_PROCESSES}]")
    try:
        yield spark
    finally:
        spark.stop()


def draw_rows(size: tuple[int, int]) -> _Rows:
    """Draw radiographs at the network's size, gray in three channels, as a colour decoder gives them."""
    height, width = size
    rows = []
    with step("drawing images"):
        for seed in range(_DISTINCT_IMAGES):
            gray = generate_radiograph(seed, finding=FINDINGS[seed % len(FINDINGS)], height=height, width=width).pixels
            rows.append(row_from_array(np.repeat(gray[:, :, np.newaxis], 3, axis=2), origin=f"phantom-{seed}"))
    return rows


def frame_of(spark: SparkSession, rows: _Rows, count: int) -> DataFrame:
    """Make a frame of so many image rows, round robin."""
    table = pa.table({"image": pa.array([asdict(row) for row in rows], IMAGE_ARROW_TYPE)})
    repeats = spark.range(-(-count // len(rows)))
    return spark.createDataFrame(table).crossJoin(repeats).limit(count).select("image").repartition(_PARTITIONS)


def cache(frame: DataFrame) -> DataFrame:
    """Compute a frame now."""
    frame = frame.persist()
    frame.count()
    return frame


def build(network: str, precision: str, frame: DataFrame) -> DeepImageFeaturizer:
    """Build the stage; int8 is calibrated on the frame's images."""
    with step(f"building {network} {precision}"):
        stage = DeepImageFeaturizer(
            inputCol="image", outputCol="features", modelName=network, weights=WEIGHTS.get(network, "random")
        )
        if precision == "int8":
            quantized: DeepImageFeaturizer = stage.quantize(frame, n_images=_CALIBRATION_IMAGES)
            return quantized
        chosen: DeepImageFeaturizer = stage.copy({stage.precision: precision})
        chosen.network.sha256  # noqa: B018 - hashed once, before it is measured
        return chosen


def measure_frame(frame: DataFrame, count: int) -> float:
    """Compute every row and keep none; images per second."""
    started = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return count / (time.perf_counter() - started)


# -- bare --------------------------------------------------------------------------------------------------------------


@contextmanager
def open_bare(start: Callable[[Any], _Infer], network: Any, rows: _Rows) -> Iterator[Callable[[int], float]]:
    """Start processes that hold the network; what is given runs so many images and gives images per second."""
    context = mp.get_context("spawn")
    left, answers = context.Value("q", 0), context.Queue()
    commands = [context.Queue() for _ in range(_PROCESSES)]
    processes = [
        context.Process(target=_serve_bare, args=(start, network, rows, left, command, answers), daemon=True)
        for command in commands
    ]
    for process in processes:
        process.start()
    for _ in processes:
        answers.get(timeout=_ANSWER_TIMEOUT_S)

    def run(count: int) -> float:
        left.value = count
        started = time.perf_counter()
        for command in commands:
            command.put(True)
        for _ in commands:
            answers.get(timeout=_ANSWER_TIMEOUT_S)
        return count / (time.perf_counter() - started)

    try:
        yield run
    finally:
        for command in commands:
            command.put(False)
        for process in processes:
            process.join()


def _serve_bare(start: Callable[[Any], _Infer], network: Any, rows: _Rows, left: Any, commands: Any, out: Any) -> None:
    infer = start(network)
    infer(array_from_row(rows[0]))
    out.put(True)
    while commands.get():
        while (place := _take(left)) > 0:
            for offset in range(min(place, _CHUNK)):
                infer(array_from_row(rows[(place - offset) % len(rows)]))
        out.put(True)


def _take(left: Any) -> int:
    """Take a few of the images that are left: shared, so that both processes end together, as Spark's do."""
    with left.get_lock():
        place = int(left.value)
        left.value = place - _CHUNK
    return place


def start_openvino(network: Network) -> _Infer:
    """Start the engine as a Spark worker does."""
    return OpenVinoEngine(network, n_threads=1).infer


def start_onnx_bare(path: str) -> _Infer:
    """Start ONNX Runtime for one image at a time."""
    infer = start_onnx(path)
    return lambda pixels: infer(pixels[np.newaxis])


# -- TensorFlow and ONNX -----------------------------------------------------------------------------------------------


def _open_others(
    stack: ExitStack,
    results: list[Result],
    network: str,
    home: Path,
    rows: _Rows,
    open_tensorflow: Callable[[Path, _Rows], Callable[[], float]],
) -> tuple[Callable[[], float] | None, Callable[[int], float] | None]:
    """Prepare what is installed; the others' rows say what is not."""
    tensorflow, onnx = results
    with step(f"building {network} for TensorFlow"):
        model, _ = save_keras(network, WEIGHTS.get(network, "random"), home)
    tensorflow.note = name_missing("tensorflow")
    onnx.note = name_missing(*ONNX_PACKAGES)
    run_tensorflow = None if tensorflow.note else open_tensorflow(model, rows)
    if onnx.note:
        return run_tensorflow, None
    with step("exporting to ONNX"):
        onnx.note = export_onnx(model, {1: home / "network.onnx"})
    if onnx.note:
        return run_tensorflow, None
    return run_tensorflow, stack.enter_context(open_bare(start_onnx_bare, str(home / "network.onnx"), rows))


def _open_tensorflow(spark: SparkSession, model: Path, rows: _Rows, *, images: int) -> Callable[[], float]:
    """Cache the pixels as the arrays that ``predict_batch_udf`` takes, and give what runs it."""
    pixels = [array_from_row(row) for row in rows]
    shape, text = pixels[0].shape, str(model)
    values = pa.array([array.ravel().astype(np.float32) for array in pixels], pa.list_(pa.float32()))
    repeats = spark.range(-(-images // len(rows)))
    arrays = spark.createDataFrame(pa.table({"pixels": values})).crossJoin(repeats).limit(images)
    arrays = cache(arrays.select("pixels").repartition(_PROCESSES))

    def make_predict_fn() -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
        import keras  # noqa: PLC0415 - in the worker, after its backend is chosen

        loaded = keras.saving.load_model(text, compile=False)  # Keras's own preprocessing is its first layers
        return lambda inputs: loaded.predict(inputs, verbose=0)

    featurize = predict_batch_udf(
        make_predict_fn,
        return_type=ArrayType(FloatType()),
        batch_size=_TENSORFLOW_BATCH,
        input_tensor_shapes=[list(shape)],
    )

    def run() -> float:
        # The function cuts Arrow's batches and never joins them: the session's few rows would make small batches.
        name = "spark.sql.execution.arrow.maxRecordsPerBatch"
        before = spark.conf.get(name)
        spark.conf.set(name, str(_TENSORFLOW_BATCH))
        try:
            return measure_frame(arrays.select(featurize("pixels")), images)
        finally:
            spark.conf.set(name, before or "")

    return run


# -- start-up ----------------------------------------------------------------------------------------------------------

# What a Spark worker does before its first image, in a process that has nothing loaded. VmHWM and not ru_maxrss, which
# a child takes over from the process it was started from.
_START = """
import json, sys, time
from pathlib import Path
import numpy as np
from sparkdl.transformers.batches import read_image
from sparkdl.engine.cache import find_engine
from sparkdl.image.row import row_from_array
from sparkdl.network.base import Network
network = Network.from_files({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()})
pixels = np.random.default_rng(0).integers(0, 256, network.input_shape, dtype=np.uint8)
row = row_from_array(pixels, origin="start")
image = {name: getattr(row, name) for name in ("origin", "height", "width", "nChannels", "mode", "data")}
engine = find_engine(network.sha256, network.precision, lambda: network)
engine.infer(read_image(image, engine.network))
ended = time.time()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([ended, *[int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")]]))
"""


def measure_start(network: str, home: Path, rounds: int) -> Start:
    """Start fresh processes on a saved network; the medians. The first is left out, it reads from the disk."""
    folder = home / "starting" / network
    folder.mkdir(parents=True)
    with step(f"starting workers with {network}"):
        for name, data in build_network(network, weights=WEIGHTS.get(network, "random")).to_files().items():
            (folder / name).write_bytes(data)
        found = [_start_once(folder) for _ in range(rounds + 1)][1:]
    seconds, rss, peak = (median(values) for values in zip(*found, strict=True))
    return Start(network, seconds, rss, peak)


def _start_once(folder: Path) -> tuple[float, float, float]:
    started = time.time()
    command = [sys.executable, "-c", _START, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - the program above
    ended, rss, peak = json.loads(done.stdout)
    return ended - started, rss, peak


# -- output ------------------------------------------------------------------------------------------------------------


def show(results: list[Result], starts: list[Start], title: str) -> None:
    """Print the results as a table."""
    table = new_table("what", "runs in", "#img/s", "#of bare", "#of TensorFlow", "note", title=title)
    for r in results:
        rate = f"{r.img_s:.1f}" if r.img_s else ""
        ratios = (f"{value:.2f}" if value else "" for value in (r.of_bare, r.of_tensorflow))
        table.add_row(r.name, r.precision, rate, *ratios, r.note)
    for s in starts:
        found = f"{s.seconds:.2f} s (goal < {START_GOAL_S}), {s.rss_mb:.0f} MB (goal < {RSS_GOAL_MB})"
        table.add_row(f"start-up {s.network}", "fp32", "", "", "", f"{found}, peak {s.peak_mb:.0f} MB")
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
