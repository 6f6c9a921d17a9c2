"""Every benchmark runs to its end at its smallest size and prints its figures."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from benchmarks.onnx import ONNX_PACKAGES, name_missing
from tests.paths import ROOT
from xray.phantom import write_folder

pytestmark = [
    pytest.mark.long,
    pytest.mark.spark,
    pytest.mark.train,
    pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra"),
    pytest.mark.timeout(1200),  # a busy machine takes its time
]


def run(jars: Path, name: str, *arguments: str) -> Any:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("XRAY_")}
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**environ, "XRAY_JARS": str(jars)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def is_figure(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


@pytest.mark.kafka
@pytest.mark.delta
def test_throughput_and_the_tutorial_way(jars: Path) -> None:
    small = ("--images", "20", "--rounds", "1", "--bare-s", "0.5", "--tutorial-images", "4")
    (found,) = run(jars, "throughput", "--networks", "InceptionV3:fp32", *small, "--json")
    wanted = {"score_img_s", "bare_img_s", "ratio"}
    if find_spec("tensorflow") is not None:
        wanted.add("tutorial_img_s")
    assert found["network"] == "InceptionV3"
    assert all(is_figure(found[name]) for name in wanted), found


@pytest.mark.kafka
@pytest.mark.delta
def test_latency(jars: Path) -> None:
    small = ("--seconds", "2", "--burst", "10", "--quiet-s", "0", "--quiet-rounds", "1")
    found = run(jars, "latency", *small, "--json")
    assert is_figure(found["throughput_img_s"])
    assert len(found["latency_seconds"]) == 5
    assert all(0 < each["p50"] <= each["p95"] <= each["p99"] for each in found["latency_seconds"]), found


@pytest.mark.kafka
@pytest.mark.delta
def test_latency_of_one_image(jars: Path) -> None:
    found = run(jars, "latency", "--one-image", "4", "--json")
    assert found["images"] == 4
    assert 1 <= found["batches"] <= 4
    whole, parts = found["parts_ms"].pop("triggerExecution"), found["parts_ms"]
    assert parts.keys() == {"queryPlanning", "addBatch", "walCommit", "commitOffsets"}
    assert all(0 <= part["median"] <= part["p95"] <= whole["p95"] for part in parts.values()), found
    assert parts["addBatch"]["median"] > 0
    assert 0 < found["latency_seconds"]["p50"] <= found["latency_seconds"]["p95"]


@pytest.mark.kafka
@pytest.mark.delta
def test_peers(jars: Path) -> None:
    small = ("--images", "40", "--rounds", "1", "--seconds", "1", "--tutorial-images", "4")
    found = run(jars, "peers", *small, "--json")
    peers = {peer["name"]: peer for peer in found["peers"]}
    assert list(peers) == ["score", "bare", "consumer", "consumer_onnx", "tutorial"]
    absent = {"consumer_onnx": name_missing(*ONNX_PACKAGES), "tutorial": name_missing("tensorflow")}
    for name, peer in peers.items():
        assert peer["note"] == absent.get(name, "")
        figures = [peer[figure] for figure in ("img_s", "of_bare", "cpu_s_per_1000", "pss_mb")]
        assert all(figure is None if peer["note"] else is_figure(figure) for figure in figures), peer
        idle, *loads = peer["latency_seconds"]
        assert len(loads) == 2
        assert (idle["p50"] is None) == (name == "bare" or bool(peer["note"])), peer
        assert all(each["p50"] is None or 0 < each["p50"] <= each["p95"] for each in (idle, *loads)), peer
    assert peers["tutorial"]["img_s"] is None or peers["tutorial"]["img_s"] < peers["consumer"]["img_s"]


def test_decoding(jars: Path) -> None:
    found = run(jars, "decoding", "--smallest", "--json")
    ways: dict[str, list[str]] = {}
    for each in found:
        assert is_figure(each["ms"]), each
        assert is_figure(each["ratio"]), each
        ways.setdefault(each["file"], []).append(each["way"])
    assert len(ways) == 7
    assert all(names[0] == "decode_image" and len(names) > 1 for names in ways.values()), ways
    aims = {each["way"] for each in found if each["aim"]}
    assert {"Pillow", "numpy: table, mean"} <= aims


def test_featurize(jars: Path) -> None:
    small = ("--network", "EfficientNetLite0", "--images", "40", "--rounds", "1", "--precisions", "fp32")
    found = run(jars, "featurize", *small, "--json")
    ours, bare, tensorflow, _ = found["featurize"]
    assert is_figure(ours["img_s"])
    assert is_figure(bare["img_s"])
    assert is_figure(ours["of_bare"])
    assert is_figure(tensorflow["img_s"]) or tensorflow["note"], tensorflow
    assert all(is_figure(start["seconds"]) and is_figure(start["rss_mb"]) for start in found["start"])


def test_folder(jars: Path) -> None:
    found = run(jars, "folder", "--images", "100", "--images-per-batch", "50")
    assert (found["images"], found["failed"]) == (100, 0)
    assert is_figure(found["images_per_second"])
    assert found["jvm_live_heap_mb_by_images_done"].keys() == {"50", "100"}
    assert found["rss_mb_at_end"].keys() == {"driver", "jvm", "workers"}


@pytest.mark.skipif(find_spec("nncf") is None, reason="int8 needs the int8 extra (NNCF)")
def test_precision(jars: Path, tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "images", 24, seed=3)
    found = run(jars, "precision", str(manifest), "--folds", "2", "--json")
    assert [each["precision"] for each in found] == ["fp32", "bf16", "int8"]
    assert all(0 <= each["auroc"] <= 1 and 0.9 < each["cosine_mean"] <= 1.001 for each in found), found


@pytest.mark.skipif(find_spec("nncf") is None, reason="int8 needs the int8 extra (NNCF)")
def test_maps(jars: Path, tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "images", 24, seed=3)
    found = run(jars, "maps", "--train", "20", "--test", "2", "--xrays", str(manifest), "--json")
    assert {(one["images"], one["precision"]) for one in found["sums"]} == {
        (images, precision) for images in ("phantoms", "X-rays") for precision in ("fp32", "bf16", "int8")
    }
    assert all(one["max_error"] < 1e-4 for one in found["sums"] if one["precision"] == "fp32"), found
    assert {one["map"] for one in found["hits"]} >= {"with opacities", "same chest without"}
    assert all(abs(one["upper"] + one["middle"] + one["lower"] - 1) < 1e-9 for one in found["zones"]), found


@pytest.mark.kafka
@pytest.mark.skipif(find_spec("pynetdicom") is None, reason="DICOM needs the gateway extra")
@pytest.mark.skipif(which("storescp") is None, reason="dcmtk is not installed (apt-get install dcmtk)")
@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="processor time is read from /proc")
def test_gateway(jars: Path) -> None:
    small = (
        "--senders",
        "2",
        "--megabytes",
        "1",
        "--objects",
        "2",
        "--single",
        "2",
        "--rounds",
        "1",
        "--seconds",
        "0.5",
    )
    found = run(jars, "gateway", *small, "--json")
    figures = ("gateway_mb_s", "storescp_mb_s", "kafka_mb_s", "ratio", "gateway_peak_pss_mb", "object_s", "answer_s")
    assert all(is_figure(found[name]) for name in figures), found
    assert found["answer_s"] < found["object_s"], "what is behind the last byte is a part of the whole"
    for latency in (*found["single_latency_s"].values(), found["http"]["latency_s"]):
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"], found
    assert is_figure(found["http"]["requests_s"])
    assert found["http"]["gateway_cpu_share"] <= 1.05, "it had one core"
    assert 45 < found["http"]["png_kb"] < 55
    assert found["profile"]["objects"] == 4
    assert sum(found["profile"]["callers"].values()) == pytest.approx(found["profile"]["cpu_s"], rel=0.2)


@pytest.mark.kafka
@pytest.mark.skipif(find_spec("standardwebhooks") is None, reason="alarms need the alerts extra")
def test_alarms(jars: Path) -> None:
    found = run(jars, "alarms", "--alarms", "10", "--burst", "20", "--json")["latency_seconds"]
    assert [each["alarms"] for each in found] == [10, 10, 20]
    for each in found:
        assert 0 < each["p50"] <= each["p95"] <= each["p99"] <= each["longest"], each
        assert is_figure(each["alarms_s"]), each
    assert found[0]["alarms_s"] == pytest.approx(25, rel=0.5), "it is what is published in a second"


@pytest.mark.kafka
@pytest.mark.delta
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are found through /proc")
def test_chaos(jars: Path) -> None:
    small = ("--faults", "sigterm", "--rounds", "1", "--records", "60", "--seed", "7")
    found = run(jars, "chaos", *small, "--json")
    assert found["balanced"] is True
    assert found["records"] >= 60
    assert found["missing"] == 0
    assert [each["passed"] for each in found["rounds"]] == [True]
