"""Who can reach Spark: the ports that a real session opens, and whether its processes know one another."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyspark
import pytest

from schemas.errors import DependencyError
from sparkdl.spark.java import find_java
from tests.integration.sockets import command_line, listeners_below, needs_proc, processes_below
from tests.paths import ROOT
from tests.unit.docs.test_docs import code_blocks

CONFIGURATION = "cluster.conf"
SECRET_NAME = "spark.authenticate.secret"  # noqa: S105
SECRET = "a-secret-of-this-test-0123456789abcdef"  # noqa: S105  of a cluster that ends with the test

pytestmark = [pytest.mark.spark, needs_proc]

_START = {
    "start_session": """
from sparkdl.spark.session import start_session
spark = start_session(app_name="ports", log_folder=home / "logs", master=master, driver_memory="1g")
""",
    "open_session": """
from streaming.run.session import open_session
from streaming.settings import load_settings
spark = open_session(load_settings(home=home, spark={"master": master, "driver_memory": "1g"}))
""",
    "imageIO": """
from pyspark.sql import SparkSession
from sparkdl.image import imageIO
imageIO.filesToDF(None, str(home))
spark = SparkSession.getActiveSession()
""",
}

# A Python worker is asked by a function of one's own, the callback server is opened by a stream's batch function.
_WORK = """
batches = []
stream = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 5).load().writeStream
query = stream.foreachBatch(lambda frame, _: batches.append(frame.count())).trigger(once=True).start()
assert query.awaitTermination(60)
numbers = spark.range(8, numPartitions=2).repartition(3)
told = spark.sparkContext.broadcast(1)
rows = numbers.mapInPandas(lambda frames: (frame + told.value for frame in frames), "id long").collect()
conf = spark.sparkContext._jvm.org.apache.spark.SparkEnv.get().conf()
security = spark.sparkContext._jvm.org.apache.spark.SparkEnv.get().securityManager()
print(json.dumps({
    "sum": sum(row.id for row in rows),
    "batches": batches,
    "conf": {entry._1(): entry._2() for entry in conf.getAll()},
    "authenticated": security.isAuthenticationEnabled(),
    "encrypted": security.isEncryptionEnabled(),
    "secret": security.getSecretKey(),
    "disk_encrypted": security.getIOEncryptionKey().isDefined(),
}), flush=True)
sys.stdin.readline()
spark.stop()
"""


@contextmanager
def session(door: str, home: Path, master: str, **environ: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A program of its own with a session in it, after a job; give its process id and what it said."""
    try:
        find_java()
    except DependencyError as exc:
        pytest.skip(str(exc))
    code = f"import json, sys; from pathlib import Path; master, home = sys.argv[1], Path(sys.argv[2])\n{_START[door]}"
    process = subprocess.Popen(
        [sys.executable, "-c", code + _WORK, master, str(home)],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process.pid, json.loads(line)
        process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.communicate()


def outside_address() -> str:
    """An address of this machine that others reach; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("door", "outside"),
    [
        ("open_session", True),
        pytest.param("open_session", False, marks=pytest.mark.long),
        pytest.param("start_session", False, marks=pytest.mark.long),
        pytest.param("imageIO", False, marks=pytest.mark.long),
    ],
)
def test_a_local_session_listens_on_this_machine_only(door: str, outside: bool, jars: Path, tmp_path: Path) -> None:
    address = outside_address()
    named = {"SPARK_LOCAL_IP": address, "SPARK_LOCAL_HOSTNAME": address} if outside else {}
    with session(door, tmp_path, "local[2]", XRAY_JARS=str(jars), **named) as (pid, told):
        found = listeners_below(pid)
    assert (told["sum"], told["batches"]) == (36, [5])
    assert {one.program for one in found} == {"driver", "jvm", "python daemon"}
    assert [str(one) for one in found if not one.on_loopback] == []
    assert told["authenticated"]  # other users of this machine reach its loopback ports
    assert len(told["secret"]) >= 32


@pytest.mark.long
def test_a_cluster_on_this_machine_listens_on_it_only_and_encrypts(jars: Path, tmp_path: Path) -> None:
    address = outside_address()
    environ = {"SPARK_LOCAL_IP": address, "SPARK_LOCAL_HOSTNAME": address, "XRAY_JARS": str(jars)}
    with session("open_session", tmp_path, "local-cluster[1,1,1024]", **environ) as (pid, told):
        found = listeners_below(pid)
        words = _command_lines(pid)
    assert (told["sum"], told["batches"]) == (36, [5])
    assert {one.program for one in found} == {"driver", "jvm", "python daemon"}
    assert [str(one) for one in found if not one.on_loopback] == []
    assert (told["authenticated"], told["encrypted"], told["disk_encrypted"]) == (True, True, True)
    assert told["secret"] not in words


@contextmanager
def cluster(folder: Path, address: str) -> Iterator[str]:
    """A cluster of one worker with a secret, as docs/operating.md sets one up; give its master's URL."""
    properties = folder / CONFIGURATION
    [block] = [block for block in code_blocks("operating", "properties") if SECRET_NAME in block]
    properties.write_text(re.sub(rf"(?<={re.escape(SECRET_NAME)} ).*", SECRET, block))
    with _daemon(
        "master.Master", folder, "--host", address, "--port", "0", "--properties-file", str(properties)
    ) as log:
        url = _await_text(log, r"spark://[\d.]+:\d+")
        options = ("--cores", "1", "--memory", "1g", "--work-dir", str(folder / "work"), "--host", address)
        with _daemon("worker.Worker", folder, *options, "--properties-file", str(properties), url) as worker_log:
            _await_text(worker_log, "Successfully registered with master")
            yield url


@contextmanager
def _daemon(name: str, folder: Path, *arguments: str) -> Iterator[Path]:
    log = folder / f"{name}.log"
    home = Path(pyspark.__file__).parent
    command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--webui-port", "0"]
    # The pages of master and worker, which nobody asks for here, stay on this machine.
    environ = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_HOME": str(home), "SPARK_DAEMON_MEMORY": "256m"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments], env={**os.environ, **environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output
        )
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


def _await_text(log: Path, pattern: str) -> str:
    for _ in range(600):
        if match := re.search(pattern, log.read_text(errors="replace")):
            return match[0]
        threading.Event().wait(0.1)
    pytest.fail(f"{pattern} is not in\n{log.read_text(errors='replace')}")


@pytest.mark.long
def test_a_standalone_cluster_takes_who_knows_its_secret(jars: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, outside_address()) as url:
        environ = {"XRAY_JARS": str(jars), "XRAY_SPARK__SECRET": SECRET}
        with session("open_session", tmp_path, url, **environ) as (pid, told):
            words = _command_lines(os.getpid())  # master, worker and executor as well
            driver = _command_lines(pid)
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != CONFIGURATION]
        written = {}
        for path in files:
            with suppress(FileNotFoundError):  # Spark removes its temporary files behind the session
                written[str(path)] = path.read_text(errors="replace")
    assert (told["sum"], told["batches"]) == (36, [5])
    assert told["secret"] == SECRET
    assert (told["authenticated"], told["encrypted"], told["disk_encrypted"]) == (True, True, True)
    assert told["conf"]["spark.master"] == url
    assert told["conf"]["spark.driver.host"] != "127.0.0.1"  # the worker would not find it
    assert "pyspark-shell" in driver
    assert "CoarseGrainedExecutorBackend" in words
    assert SECRET not in words
    assert {"spark.log", "spark-console.log", "stderr"} <= {path.name for path in files}
    assert [path for path, text in written.items() if SECRET in text] == []


def _command_lines(pid: int) -> str:
    return " ".join(word for one in processes_below(pid) for word in command_line(one))
