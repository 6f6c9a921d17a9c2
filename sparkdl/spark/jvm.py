"""Spark's JVM as a process that is launched now and connected to later.

pyspark launches it and waits until it answers, in one call. Its own way in for a JVM that somebody else has launched is
used here: Spark's launcher is told a file to write the JVM's port and secret to, and pyspark is told these.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pyspark import SparkContext
from pyspark.errors import PySparkRuntimeError
from pyspark.find_spark_home import _find_spark_home
from pyspark.java_gateway import launch_gateway
from pyspark.serializers import UTF8Deserializer, read_int

_CONNECTION_VARIABLE = "_PYSPARK_DRIVER_CONN_INFO_PATH"
_PORT_VARIABLE, _SECRET_VARIABLE = "PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET"
_POLL_S = 0.01


class Jvm:
    """A JVM that runs up. It ends with this process, however that ends: its standard input does.

    Parameters
    ----------
    conf : Mapping of str to str
        Spark's properties; they are on its command line.
    environ : Mapping of str to str
        Its environment.
    console : Path or None
        What it and its workers print is appended here; None leaves it on the terminal.
    """

    def __init__(self, conf: Mapping[str, str], environ: Mapping[str, str], console: Path | None) -> None:
        self.printed_before = console.stat().st_size if console is not None and console.is_file() else 0
        """Bytes that were on the console before; what follows is its own."""
        self._folder = tempfile.TemporaryDirectory()
        self._answer = Path(self._folder.name) / "connection"
        options = [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
        self._process = _launch(
            [str(Path(_find_spark_home()) / "bin" / "spark-submit"), *options, "pyspark-shell"],
            {**environ, "SPARK_CONNECT_MODE": "0", _CONNECTION_VARIABLE: str(self._answer)},
            console,
        )
        self._connected = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def connect(self) -> None:
        """Wait until it answers, and make it the one that pyspark's sessions are in.

        Raises
        ------
        PySparkRuntimeError
            It has ended.
        """
        while not self._answer.is_file():
            if self._process.poll() is not None:
                raise PySparkRuntimeError(errorClass="JAVA_GATEWAY_EXITED", messageParameters={})
            time.sleep(_POLL_S)
        with self._answer.open("rb") as answer:
            port, secret = read_int(answer), UTF8Deserializer().loads(answer)
        self._folder.cleanup()
        os.environ[_PORT_VARIABLE], os.environ[_SECRET_VARIABLE] = str(port), secret
        try:
            gateway = launch_gateway()
        finally:
            del os.environ[_PORT_VARIABLE], os.environ[_SECRET_VARIABLE]
        gateway.proc = self._process
        SparkContext._ensure_initialized(gateway=gateway)
        self._connected = True

    def end(self) -> None:
        """End it, where nobody has connected to it."""
        if self._connected or self._process.returncode is not None:
            return
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.close()
        with suppress(ProcessLookupError):
            # The launcher is a script with a JVM of its own.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def _launch(command: Sequence[str], environ: Mapping[str, str], console: Path | None) -> "subprocess.Popen[bytes]":
    """Launch a process in a group of its own: Ctrl-C on a terminal is for the program, which ends in order."""
    if console is None:
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, process_group=0)  # noqa: S603
    with console.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, process_group=0)  # noqa: S603
