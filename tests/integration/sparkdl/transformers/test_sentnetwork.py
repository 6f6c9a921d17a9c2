"""A network's files on their way to the workers: one copy on a machine, for as long as it is used."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from pyspark import SparkFiles
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import JobError
from sparkdl import DeepImageFeaturizer
from sparkdl.engine.novelty import StoredDetector
from sparkdl.image.row import IMAGE_DDL, row_from_array
from sparkdl.network.base import BIN_FILE, XML_FILE
from sparkdl.spark.sentfiles import SentFiles, send_files, withdraw_files
from tests.paths import ROOT
from tests.unit.sparkdl.engine.test_engine import mean_network

pytestmark = pytest.mark.spark

_PIXELS = np.full((4, 6, 3), (10, 20, 30), np.uint8)


def stage(folder: Path, scale: float = 1.0) -> DeepImageFeaturizer:
    """A featurizer whose features are the means of blue, green and red, times `scale`."""
    featurizer = DeepImageFeaturizer(inputCol="image", outputCol="features", modelName="EfficientNetLite0")
    featurizer._network = mean_network(folder, scale=scale)
    return featurizer


@pytest.fixture
def featurizer(tmp_path: Path, request: pytest.FixtureRequest) -> DeepImageFeaturizer:
    made = stage(tmp_path, scale=_scale_of(request.node.name))
    request.addfinalizer(made.withdraw)
    return made


def _scale_of(name: str) -> float:
    """A network of each test's own: workers keep what they have opened."""
    return 1 + int.from_bytes(name.encode(), "little") % 997


@pytest.fixture
def images(spark: SparkSession) -> DataFrame:
    row = astuple(row_from_array(_PIXELS, origin="x"))
    return spark.createDataFrame([(row,)] * 4, f"image struct<{IMAGE_DDL}>").repartition(2)


def features(frame: DataFrame) -> list[list[float]]:
    return [row["features"].toArray().tolist() for row in frame.select("features").collect()]


def copies_of(featurizer: DeepImageFeaturizer, spark: SparkSession) -> list[Path]:
    """Every file with the network's weights or references below the session's temporary folder."""
    wanted = {bytes(content) for content in featurizer.network.graph.values()}
    temporary = Path(spark.sparkContext._temp_dir).parent
    return [path for path in temporary.rglob("*") if path.is_file() and path.read_bytes() in wanted]


def pickles(spark: SparkSession) -> int:
    """How many broadcasts lie in the session's temporary folder."""
    return len(list(Path(spark.sparkContext._temp_dir).iterdir()))


def detector(threshold: float, digest: str) -> StoredDetector:
    return StoredDetector(np.eye(3, dtype=np.float32)[:1].repeat(5, axis=0), threshold, digest * 64)


def test_five_starts_leave_one_copy_and_withdrawing_leaves_none(
    featurizer: DeepImageFeaturizer, images: DataFrame, spark: SparkSession
) -> None:
    broadcasts = pickles(spark)
    found = [features(featurizer.copy().transform(images)) for _ in range(5)]
    assert found == [found[0]] * 5
    assert sorted(path.name for path in copies_of(featurizer, spark)) == [BIN_FILE, XML_FILE]
    assert pickles(spark) == broadcasts
    featurizer.withdraw()
    assert copies_of(featurizer, spark) == []
    assert features(featurizer.transform(images)) == found[0], "a stage that was withdrawn is sent again"


def test_a_network_stays_until_the_last_who_uses_it_withdraws_it(
    featurizer: DeepImageFeaturizer, images: DataFrame, spark: SparkSession
) -> None:
    """A retrained model has the network of the one before it."""
    retrained = DeepImageFeaturizer(inputCol="image", outputCol="features", modelName="EfficientNetLite0")
    retrained._network = replace(featurizer.network)
    frames = [one.transform(images) for one in (featurizer, retrained)]
    assert len(copies_of(featurizer, spark)) == 2
    featurizer.withdraw()
    assert features(frames[1]) == features(retrained.transform(images))
    retrained.withdraw()
    assert copies_of(featurizer, spark) == []


def test_networks_and_detectors_go_one_by_one(images: DataFrame, spark: SparkSession, tmp_path: Path) -> None:
    stages = [stage(tmp_path, scale=scale).setNoveltyDetector(detector(0.2, "ab"[i])) for i, scale in enumerate((5, 6))]
    frames = [one.transform(images) for one in stages]
    for frame, scale in zip(frames, (5, 6), strict=True):
        assert features(frame) == [[10 * scale, 20 * scale, 30 * scale]] * 4
        assert {row["novel"] for row in frame.collect()} == {True}
    root = Path(SparkFiles.getRootDirectory())
    digests = [one.network.sha256 for one in stages]
    names = [f"network-{digests[0]}", f"detector-{'a' * 64}", f"network-{digests[1]}", f"detector-{'b' * 64}"]
    assert all((root / name).is_dir() for name in names)
    stages[0].withdraw()
    assert [(root / name).exists() for name in names] == [False, False, True, True]
    stages[1].withdraw()
    assert not any((root / name).exists() for name in names)


def test_a_worker_opens_what_was_sent(featurizer: DeepImageFeaturizer, spark: SparkSession) -> None:
    """The engine and what tells novel inputs, in whatever function a worker runs."""
    plain = featurizer.send(spark)
    novel = featurizer.copy().setNoveltyDetector(detector(0.9, "c")).send(spark)

    def run(sent) -> tuple[list[float], list[bool] | None]:  # type: ignore[no-untyped-def]
        engine, tell_novel = sent.open()
        assert sent.open()[0] is engine
        output = engine.infer(_PIXELS)
        return output.tolist(), None if tell_novel is None else tell_novel(np.stack([output])).tolist()

    wanted = run(plain)[0]
    found = spark.sparkContext.parallelize([plain, novel], 2).map(run).collect()
    assert found == [(wanted, None), (wanted, [False])]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("name", [XML_FILE, BIN_FILE])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_file_is_told_by_the_worker_and_mended_by_the_next_start(
    featurizer: DeepImageFeaturizer, images: DataFrame, damage: Callable[[Path], None], name: str
) -> None:
    frame = featurizer.transform(images)
    damage(Path(SparkFiles.getRootDirectory()) / f"network-{featurizer.network.sha256}" / name)
    with pytest.raises(PySparkException, match=rf"{name} missing or damaged"):
        features(frame)
    assert features(featurizer.transform(images)) == features(frame)


_TWO_SESSIONS = """
import sys
from pathlib import Path
from dataclasses import astuple
from sparkdl.image.row import IMAGE_DDL, row_from_array
from sparkdl.spark.session import start_session
from tests.integration.sparkdl.transformers.test_sentnetwork import _PIXELS, detector, features, stage

home = Path(sys.argv[1])
kept = stage(home).setNoveltyDetector(detector(0.2, "d"))
for _ in range(2):
    spark = start_session(app_name="sent", log_folder=home, master="local[1]", driver_memory="512m",
                          conf={"spark.local.dir": str(home / "scratch")})
    frame = spark.createDataFrame([(astuple(row_from_array(_PIXELS, origin="x")),)], f"image struct<{IMAGE_DDL}>")
    print(features(kept.transform(frame)), len(list((home / "scratch").rglob("network.bin"))))
    spark.stop()
    print(len(list((home / "scratch").rglob("network.bin"))))
kept.withdraw()
"""


@pytest.mark.long
def test_a_stage_outlives_its_session_and_its_files_do_not(tmp_path: Path) -> None:
    assert run_apart(_TWO_SESSIONS, tmp_path) == ["[[10.0, 20.0, 30.0]] 1", "0"] * 2


_CLUSTER = """
import os, sys
from dataclasses import replace
from pathlib import Path
from sparkdl.spark import sentfiles
from sparkdl.spark.session import start_session

home, encrypted = Path(sys.argv[1]), sys.argv[2]
conf = {"spark.local.dir": str(home / "scratch"), "spark.io.encryption.enabled": encrypted,
        "spark.executor.memory": "512m", "spark.driver.memory": "512m"}
spark = start_session(app_name="sent", log_folder=home, master="local-cluster[1,2,1024]", conf=conf)
context = spark.sparkContext
context.master = "spark://elsewhere:7077"  # as far as it is asked where the workers are

def send(number):
    files = sentfiles.send_files(spark, f"set-{number}", {"weights": bytes([number]) * 100_000}, "holder")
    return replace(files, folder=files.folder.replace("/userFiles", "/of-another-machine"))

def read(sent):
    content, folders = [], []
    for one in sent:
        folders += [one.find(), one.find()]
        content.append((folders[-1] / "weights").read_bytes()[:1].hex())
    kept = [one for one in sent if "_value" in vars(one.content)]
    sets = sorted(path.name for path in folders[0].parent.iterdir() if path.is_dir())
    return content, len(set(folders)), len(kept), sets

# Two workers share what fits; of more than that one alone must not lose what it has just found.
for tasks, numbers in ((2, [1]), (1, [2, 3, 4, 5, 6])):
    sent = [send(number) for number in numbers]
    found = context.parallelize(range(tasks), tasks).map(lambda _: read(sent)).collect()
    print(found[0] if found == [found[0]] * tasks else found)
sentfiles.withdraw_files("holder")
print(len(list(Path(context._temp_dir).iterdir())))
spark.stop()
"""


@pytest.mark.long
@pytest.mark.parametrize("encrypted", ["false", "true"])
def test_executors_on_another_machine_write_what_is_sent_once_and_keep_the_last(tmp_path: Path, encrypted: str) -> None:
    first, later, left = run_apart(_CLUSTER, tmp_path, encrypted)
    assert first == "(['01'], 1, 0, ['set-1'])"
    assert later == "(['02', '03', '04', '05', '06'], 5, 0, ['set-3', 'set-4', 'set-5', 'set-6'])"
    assert left == "0", "broadcasts go with what was withdrawn"


def run_apart(code: str, *arguments: object) -> list[str]:
    """Run a program with sessions of its own; give the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_cannot_be_written_is_told_where_it_is_sent(spark: SparkSession) -> None:
    (Path(SparkFiles.getRootDirectory()) / "in-the-way").write_bytes(b"a file")
    with pytest.raises(FileExistsError, match="in-the-way"):
        send_files(spark, "in-the-way", {"a": b"1"}, "holder")
    withdraw_files("holder")


def test_files_that_are_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="a, b missing or damaged"):
        SentFiles(str(tmp_path / "gone"), {"a": "0", "b": "1"}).find()
