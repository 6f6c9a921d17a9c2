"""Featurizing a folder: each file once, whatever stops the run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from schemas.errors import SettingsError
from sparkdl.folders import IDENTITY_FILE, count_reasons, featurize_folder
from sparkdl.image.limits import MAX_PAYLOAD_BYTES, RENDERING_VERSION, DecodeLimits
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from tests.testimages import good_files

pytestmark = [pytest.mark.spark, pytest.mark.train]

_N_GOOD = 20
_LITE0_FEATURES = 1280


@pytest.fixture(scope="module")
def featurizer() -> DeepImageFeaturizer:
    stage: DeepImageFeaturizer = DeepImageFeaturizer(
        inputCol="any", outputCol="thing", modelName="EfficientNetLite0", weights="random", seed=3
    )
    assert stage.network.n_features == _LITE0_FEATURES
    return stage


def _write_png(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind, at several depths, a space, an umlaut and what Hadoop takes for a pattern in their names."""
    images = tmp_path / "Bilder für alle [1] %20"
    for index in range(_N_GOOD):
        _write_png(images / f"{index % 3}" / f"{index:03}.png", index)
    good = good_files()
    (images / "a.dcm").write_bytes(next(payload for name, payload in good.items() if name.endswith(".dcm")))
    (images / "1.2.840.17").write_bytes((images / "a.dcm").read_bytes())
    (images / "photo.JPG").write_bytes(next(payload for name, payload in good.items() if name.endswith(".jpg")))
    (images / "empty.png").touch()
    (images / "broken.png").write_bytes((images / "0" / "000.png").read_bytes()[:-30])
    (images / "text.dcm").write_text("no image")
    (images / "gone.png").symlink_to("nowhere")
    # No images: not counted.
    (images / "manifest.csv").write_text("file,label\n")
    (images / "._000.png").write_text("a resource fork")
    return images


_N_FAILED = 4
_N_ALL = _N_GOOD + 3 + _N_FAILED


def _rows(out: Path) -> dict[str, tuple[list[float] | None, str | None]]:
    """Read the results without Spark; a path that comes twice is an error."""
    table = pq.read_table(out)
    assert table.column_names == ["path", "features", "reason"]
    rows = table.to_pylist()
    by_path = {row["path"]: (row["features"], row["reason"]) for row in rows}
    assert len(by_path) == len(rows)
    return by_path


class _Stop(Exception):
    pass


def _stop_after(n_files: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= n_files:
            raise _Stop

    return progress


def test_each_file_gets_one_row(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out dir"
    result = featurize_folder(
        spark, folder, featurizer, out, images_per_batch=12, progress=lambda *counts: seen.append(counts)
    )
    assert (result.n_images, result.n_failed, result.n_done_before) == (_N_ALL, _N_FAILED, 0)
    assert seen[0] == (0, _N_ALL)
    assert seen[-1] == (_N_ALL, _N_ALL)
    assert seen == sorted(seen)

    rows = _rows(out)
    assert len(rows) == _N_ALL
    assert all((features is None) != (reason is None) for features, reason in rows.values())
    assert {len(features) for features, _ in rows.values() if features is not None} == {_LITE0_FEATURES}
    codes = {Path(path).name: reason.partition(":")[0] for path, (_, reason) in rows.items() if reason is not None}
    assert codes == {
        "empty.png": "empty_payload",
        "broken.png": "truncated_image",
        "text.dcm": "unsupported_format",
        "gone.png": "cannot_be_read",
    }
    assert count_reasons(out) == dict.fromkeys(codes.values(), 1)
    assert rows[str(folder / "a.dcm")] == rows[str(folder / "1.2.840.17")]
    assert spark.read.parquet(f"file://{out}").count() == _N_ALL  # Spark sees what everybody sees

    again = featurize_folder(spark, folder, featurizer, out)
    assert (again.n_images, again.n_failed, again.n_done_before) == (0, 0, _N_ALL)


def test_a_stopped_run_goes_on_and_gives_what_an_uninterrupted_one_gives(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    featurize_folder(spark, folder, featurizer, whole)
    with pytest.raises(_Stop):
        featurize_folder(spark, folder, featurizer, out, images_per_batch=10, progress=_stop_after(10))
    assert len(_rows(out)) == 10

    resumed = featurize_folder(spark, folder, featurizer, out, images_per_batch=7)
    assert (resumed.n_images, resumed.n_done_before) == (_N_ALL - 10, 10)
    assert _rows(out) == _rows(whole)


def test_a_run_stopped_inside_a_batch_leaves_nothing_running(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first call is made before the first batch, the second while it runs
            raise _Stop

    with pytest.raises(_Stop):
        featurize_folder(spark, folder, featurizer, tmp_path / "out", progress=progress)
    assert not spark.sparkContext.statusTracker().getActiveJobsIds()
    assert not list((tmp_path / "out").glob("part-*"))
    assert featurize_folder(spark, folder, featurizer, tmp_path / "out").n_images == _N_ALL
    assert not list((tmp_path / "out").glob("_running-*"))


def test_added_files_are_done_by_the_next_run(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    out = folder / "features"  # inside: results are no images
    featurize_folder(spark, folder, featurizer, out)
    before = _rows(out)
    _write_png(folder / "0" / "000a.png", 100)  # sorts among the old ones
    os.utime(folder / "0" / "000a.png", (0, 0))  # and looks older than they
    added = featurize_folder(spark, folder, featurizer, out)
    assert (added.n_images, added.n_failed, added.n_done_before) == (1, 0, _N_ALL)
    after = _rows(out)
    assert set(after) - set(before) == {str(folder / "0" / "000a.png")}
    assert {path: after[path] for path in before} == before


def test_another_network_is_refused(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Stop):  # before the first batch: the folder has its owner already
        featurize_folder(spark, folder, featurizer, out, progress=_stop_after(0))
    other = featurizer.copy({featurizer.seed: 4})
    with pytest.raises(SettingsError, match=r"made with sha256 .*name a new folder.*or delete it"):
        featurize_folder(spark, folder, other, out)
    with pytest.raises(SettingsError, match="precision fp32, not bf16"):
        featurize_folder(spark, folder, featurizer.copy({featurizer.precision: "bf16"}), out)


def test_features_of_another_rendering_are_not_added_to(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Stop):
        featurize_folder(spark, folder, featurizer, out, progress=_stop_after(0))
    identity = json.loads((out / IDENTITY_FILE).read_text(encoding="utf-8"))
    assert identity["rendering_version"] == RENDERING_VERSION
    (out / IDENTITY_FILE).write_text(json.dumps({**identity, "rendering_version": 1}), encoding="utf-8")
    with pytest.raises(SettingsError, match=rf"rendering_version 1, not {RENDERING_VERSION}\. .*name a new folder"):
        featurize_folder(spark, folder, featurizer, out)


def test_files_above_the_limit_have_a_row_that_says_so(
    spark: SparkSession, folder: Path, featurizer: DeepImageFeaturizer, tmp_path: Path
) -> None:
    with (folder / "photo.JPG").open("ab") as stream:
        stream.truncate(MAX_PAYLOAD_BYTES + 1)  # more than a message may have
    featurize_folder(spark, folder, featurizer, tmp_path / "usual")
    assert _rows(tmp_path / "usual")[str(folder / "photo.JPG")][1] is None
    limit = (folder / "a.dcm").stat().st_size
    featurize_folder(spark, folder, featurizer, tmp_path / "small", limits=DecodeLimits(max_payload_bytes=limit))
    rows = _rows(tmp_path / "small")
    assert rows[str(folder / "a.dcm")][1] is None
    wanted = f"payload_too_large: file has {MAX_PAYLOAD_BYTES + 1} bytes, expected at most {limit}"
    assert rows[str(folder / "photo.JPG")] == (None, wanted)


@pytest.mark.e2e
@pytest.mark.long
def test_the_command_is_stopped_and_killed_and_goes_on(spark: SparkSession, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index in range(100, 200):
        _write_png(folder / "more" / f"{index}.png", index)
    stopped, stderr = _run_until_a_batch_is_done(signal.SIGINT, folder, out, tmp_path / "home")
    assert stopped == 130, stderr
    assert "Traceback" not in stderr
    assert "the same command goes on" in " ".join(stderr.split())
    assert 0 < len(_rows(out)) < _N_ALL + 100
    killed, stderr = _run_until_a_batch_is_done(signal.SIGKILL, folder, out, tmp_path / "home")
    assert killed == -signal.SIGKILL, stderr
    n_done = len(_rows(out))
    assert 10 < n_done < _N_ALL + 100

    same = DeepImageFeaturizer(inputCol="image", outputCol="features", modelName="EfficientNetLite0", weights="random")
    result = featurize_folder(spark, folder, same, out)
    assert (result.n_images, result.n_done_before) == (_N_ALL + 100 - n_done, n_done)
    assert len(_rows(out)) == _N_ALL + 100


def _run_until_a_batch_is_done(sent: signal.Signals, folder: Path, out: Path, home: Path) -> tuple[int, str]:
    """Start the command, and send it a signal when it has done one more batch; return its exit code and its words."""
    arguments = [str(folder), "--out", str(out), "--weights", "random", "--images-per-batch", "10"]
    n_before = len(list(out.glob("part-*")))
    process = subprocess.Popen(
        [sys.executable, "-m", "xray", "featurize", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XRAY_HOME": str(home)},
        # A test run that a shell started in the background was told to ignore Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no other thread of ours forks
    )
    try:
        deadline = time.monotonic() + 100
        while len(list(out.glob("part-*"))) == n_before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stderr
