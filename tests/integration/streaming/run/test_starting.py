"""How a stream starts: its JVM runs up beside the checks, by Java's classes that were made ready before, or without."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.chaos.scene import clean_environ
from benchmarks.chaos.stream import list_processes
from streaming.run.session import find_shared_classes
from streaming.settings import StreamSettings, load_settings
from tests.conftest import Trained

pytestmark = pytest.mark.spark

_TIMEOUT_S = 180
_COUNT = """
import sys
from pathlib import Path
from streaming.run.session import open_session
from streaming.settings import load_settings
spark = open_session(load_settings())
found = spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments()
print(spark.range(10).count(), any("SharedArchiveFile" in word for word in found))
spark.stop()
"""


@contextmanager
def begin(environ: Mapping[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python in a session of its own, by whose number its processes are found."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def environ_of(settings: StreamSettings, **more: str) -> dict[str, str]:
    return clean_environ() | {"XRAY_HOME": str(settings.home), "XRAY_JARS": str(settings.jars_folder)} | more


@pytest.fixture
def own_jars(base_settings: StreamSettings, tmp_path: Path) -> StreamSettings:
    """Settings with the same jars in a folder of their own, where no file of Java's classes is."""
    jars = tmp_path / "jars"
    jars.mkdir()
    for found in base_settings.jars_folder.iterdir():
        if found.is_dir():
            (jars / found.name).symlink_to(found)
    return load_settings(home=tmp_path / "home", jars=jars)


def count_in_session(settings: StreamSettings) -> list[str]:
    with begin(environ_of(settings), "-c", _COUNT) as process:
        said, complaints = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 0, complaints
    return said.split()


@pytest.mark.long
@pytest.mark.parametrize(
    "content",
    [b"", b"no archive\n", os.urandom(1 << 20), b"\xf0\x0b\xab\xa2" + bytes(1 << 16)],
    ids=["empty", "text", "noise", "only its first bytes"],
)
def test_a_file_of_classes_that_is_damaged_stops_no_start(own_jars: StreamSettings, content: bytes) -> None:
    shared = find_shared_classes(own_jars)
    assert shared is not None
    shared.path.write_bytes(content)
    assert count_in_session(own_jars) == ["10", "True"]


@pytest.mark.long
@pytest.mark.parametrize("damage", ["none", "half", "blocks", "of another class path"])
def test_a_file_of_classes_that_was_right_once_stops_no_start(own_jars: StreamSettings, damage: str) -> None:
    shared = find_shared_classes(own_jars)
    assert shared is not None
    assert shared.make()
    size = shared.path.stat().st_size
    shared.path.chmod(0o600)
    if damage == "half":
        os.truncate(shared.path, size // 2)
    if damage == "blocks":
        with shared.path.open("r+b") as file:
            for place in range(size // 4, size - (1 << 20), 1 << 21):
                file.seek(place)
                file.write(os.urandom(64))
    if damage == "of another class path":
        jar = next((own_jars.jars_folder / "spark-4.2.0").resolve().glob("kafka-clients*.jar"))
        own_jars = own_jars.model_copy(update={"jars": own_jars.jars_folder.with_name("others")})
        others = own_jars.jars_folder / "spark-4.2.0"
        others.mkdir(parents=True)
        for other in jar.parent.iterdir():
            (others / other.name).write_bytes(other.read_bytes())
        renewed = find_shared_classes(own_jars)
        assert renewed is not None
        shared.path.rename(renewed.path)
    assert count_in_session(own_jars) == ["10", "True"]


def _without_model(_settings: StreamSettings) -> None:
    return


def _with_broken_model(settings: StreamSettings) -> None:
    (settings.models_folder / "one").mkdir(parents=True)
    (settings.models_folder / "champion").write_text("one\n", encoding="utf-8")


def _with_file_for_logs(settings: StreamSettings) -> None:
    settings.logs_folder.write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("prepare", "code", "said"),
    [
        (_without_model, 1, "no model was promoted"),
        (_with_broken_model, 1, "one"),
        (_with_file_for_logs, 1, "no model was promoted"),
    ],
)
def test_a_check_that_fails_beside_the_jvm_says_the_same_and_leaves_no_process(
    base_settings: StreamSettings, tmp_path: Path, prepare: object, code: int, said: str
) -> None:
    settings = load_settings(home=tmp_path, jars=base_settings.jars_folder)
    assert callable(prepare)
    prepare(settings)
    told = {}
    for name, jars in (("beside", settings.jars_folder), ("alone", tmp_path / "no-jars")):
        environ = environ_of(settings, XRAY_JARS=str(jars))
        with begin(environ, "-m", "xray", "stream", "--json") as process:
            _, told[name] = process.communicate(timeout=_TIMEOUT_S)
            assert process.returncode == code, told[name]
            wait_for_none(process.pid)
    assert told["beside"] == told["alone"]
    assert said in told["beside"]
    assert told["beside"].startswith("error:")
    assert len(told["beside"].splitlines()) == 1


def test_a_broker_that_is_away_is_told_and_leaves_no_process(
    base_settings: StreamSettings, trained: Trained, tmp_path: Path
) -> None:
    settings = load_settings(home=tmp_path, jars=base_settings.jars_folder)
    environ = environ_of(settings, XRAY_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    with begin(environ, "-m", "xray", "stream", "--json", "--model", str(trained.folder)) as process:
        _, told = process.communicate(timeout=_TIMEOUT_S)
        assert process.returncode == 1
        wait_for_none(process.pid)
    assert told.startswith("error: cannot reach Kafka at 127.0.0.1:1: ")


def test_a_second_stream_is_refused_and_leaves_no_process(
    base_settings: StreamSettings, trained: Trained, tmp_path: Path
) -> None:
    settings = load_settings(home=tmp_path, jars=base_settings.jars_folder)
    settings.checkpoints_folder.mkdir(parents=True)
    with (settings.checkpoints_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = ("-m", "xray", "stream", "--json", "--model", str(trained.folder))
        with begin(environ_of(settings), *arguments) as process:
            _, told = process.communicate(timeout=_TIMEOUT_S)
            assert process.returncode == 2
            wait_for_none(process.pid)
    assert "another stream runs on" in told


def wait_for_none(session: int) -> None:
    """Wait until no process of a session lives."""
    deadline = time.monotonic() + 10
    while left := list_processes(session):
        assert time.monotonic() < deadline, json.dumps([process.command[:80] for process in left])
        time.sleep(0.05)
