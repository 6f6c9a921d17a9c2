"""Who receives: dcmtk's storescp, which writes files, and the gateway, with a broker of the run's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.ports import find_ports
from benchmarks.processes import cpu_seconds, pss_bytes
from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings, load_settings
from xray.broker import LocalBroker
from xray.console import step

STORESCP = "storescp"
_PDU_BYTES = 131_072
"""The largest that dcmtk takes, and what the gateway takes by default."""
_OWN = "XRAY_GATEWAY__"
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_SAMPLE_S = 0.1


@dataclass(frozen=True)
class Receiver:
    """A process that receives.

    Parameters
    ----------
    pid : int
        Its id.
    dicom_port : int
        Of its DICOM door.
    http_port : int or None
        Of its HTTP door, where it has one.
    metrics : str or None
        Address of its Prometheus page, where it has one.
    """

    pid: int
    dicom_port: int
    http_port: int | None = None
    metrics: str | None = None

    def read_answers(self, door: str) -> tuple[float, float]:
        """Give how many objects were answered, and seconds from their last bytes to their answers, all together."""
        found = {"count": 0.0, "sum": 0.0}
        if self.metrics is not None:
            with urllib.request.urlopen(self.metrics, timeout=_READY_TIMEOUT_S) as page:  # noqa: S310  ours, of this machine
                families = list(text_string_to_metric_families(page.read().decode()))
            samples = [one for family in families for one in family.samples if one.labels.get("door") == door]
            for name in found:
                found[name] = sum(one.value for one in samples if one.name == f"xray_gateway_answer_seconds_{name}")
        return found["count"], found["sum"]


@dataclass
class Usage:
    """What a process took meanwhile."""

    cpu_s: float = 0.0
    peak_pss_bytes: int = 0


@contextmanager
def watching(pid: int) -> Iterator[Usage]:
    """Measure processor time and the highest memory (PSS) of a process and its children."""
    usage = Usage()
    ended = threading.Event()

    def look() -> None:
        while True:
            usage.peak_pss_bytes = max(usage.peak_pss_bytes, pss_bytes([pid]))
            if ended.wait(_SAMPLE_S):
                return

    before = cpu_seconds([pid])
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield usage
    finally:
        ended.set()
        thread.join()
        usage.cpu_s = cpu_seconds([pid]) - before


@contextmanager
def open_broker() -> Iterator[StreamSettings]:
    """Start a broker in a folder that is removed afterwards; gives settings with its topics."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="xray-benchmark-")))
        user = load_settings()
        kafka = user.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
        settings = user.model_copy(update={"home": home, "jars": user.jars_folder, "kafka": kafka})
        with step("starting the broker"):
            broker = LocalBroker.of(settings)
            stack.callback(broker.stop)
            broker.start()
            create_topics(settings.kafka)
        yield settings


@contextmanager
def run_storescp(folder: Path) -> Iterator[Receiver]:
    """Run dcmtk's storescp: a process for each association, which writes each object as it comes."""
    port = find_ports(1)
    options = ["--fork", "+B", "+xa", "--max-pdu", str(_PDU_BYTES), "-aet", "XRAY", "-od", str(folder)]
    process = subprocess.Popen(  # noqa: S603  a fixed command
        [STORESCP, *options, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(port, process)
        yield Receiver(process.pid, port)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def run_gateway(
    settings: StreamSettings, *, core: int | None = None, profile: Path | None = None
) -> Iterator[Receiver]:
    """Run ``xray gateway`` on free ports, with all else as it is by default, or as ``XRAY_GATEWAY__...`` says.

    Parameters
    ----------
    settings : StreamSettings
        Home, broker.
    core : int, optional
        The one core that it may use.
    profile : Path, optional
        Gets the profile, once it has ended.
    """
    own = [str(profile or "none"), "all" if core is None else str(core)]
    command = [sys.executable, "-m", "benchmarks.gateway.profiler", *own]
    options = ["gateway", "--dicom-port", "0", "--http-port", "0", "--json"]
    kept = {name: value for name, value in os.environ.items() if name.startswith(_OWN) or not name.startswith("XRAY_")}
    environ = kept | {
        "XRAY_HOME": str(settings.home),
        "XRAY_JARS": str(settings.jars_folder),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "XRAY_GATEWAY__METRICS_PORT": "0",
    }
    process = subprocess.Popen([*command, *options], env=environ, stdout=subprocess.PIPE)  # noqa: S603  our own
    try:
        told = _read_ready(process)
        yield Receiver(process.pid, told["dicom_port"], told["http_port"], told.get("metrics"))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read_ready(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101
    line = process.stdout.readline()
    if not line:
        msg = f"the gateway ended with {process.wait()}; its own words are on standard error"
        raise RuntimeError(msg)
    told: dict[str, Any] = json.loads(line)
    return told


def _await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(_SAMPLE_S)
        else:
            return
    msg = f"storescp does not listen on {port}; it ended with {process.poll()}"
    raise RuntimeError(msg)
