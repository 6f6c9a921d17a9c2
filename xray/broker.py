"""A real Kafka broker on this machine: one KRaft node, its files under one folder, started and ended by process id."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.envelope import MAX_MESSAGE_BYTES
from schemas.errors import BrokerError, SettingsError
from sparkdl.spark.java import find_java
from streaming.folders import check_folder
from streaming.run.jars import KAFKA_JARS, resolve_jars
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost")

_CLUSTER_ID = "xrayLocalStreamBroker0"
_READY_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 30
_HEAP = "512m"


@dataclass(frozen=True)
class LocalBroker:
    """The broker of one state folder.

    Parameters
    ----------
    folder : Path
        Data, configuration, log and process id.
    jars_folder : Path
        Where resolved jars are kept.
    port : int
        Port for clients on 127.0.0.1; the controller's is the next one.
    """

    folder: Path
    jars_folder: Path
    port: int = 19092

    @classmethod
    def of(cls, settings: StreamSettings) -> "LocalBroker":
        """Return the broker that the settings describe.

        Raises
        ------
        SettingsError
            They name a Kafka on another machine, or no port.
        """
        host, _, port = settings.kafka.bootstrap_servers.rpartition(":")
        if host not in LOCAL_HOSTS or not port.isdigit():
            msg = (
                f"XRAY_KAFKA__BOOTSTRAP_SERVERS is {settings.kafka.bootstrap_servers!r}: a broker is started or ended "
                "on this machine only; wanted 127.0.0.1:PORT"
            )
            raise SettingsError(msg)
        return cls(settings.home / "kafka", settings.jars_folder, int(port))

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> bool:
        """Start the broker and wait until it answers.

        Returns
        -------
        bool
            False when it ran already.

        Raises
        ------
        BrokerError
            The port is taken by someone else, or the broker ended; says where its log is.
        DependencyError
            Java or the jars cannot be had.
        """
        if self.pid() is not None:
            self._await_ready()
            return False
        check_folder(self.folder, "XRAY_HOME")
        self._refuse_taken_port()
        self._write_configuration()
        self._format_storage()
        self._launch()
        self._await_ready()
        return True

    @property
    def has_jars(self) -> bool:
        """Whether a start has nothing to fetch."""
        return (self.jars_folder / KAFKA_JARS.name).is_dir()

    def stop(self) -> bool:
        """End the broker, in order where it lets itself be ended so.

        Returns
        -------
        bool
            False when it did not run.
        """
        pid = self.pid()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        if not _await_end(pid, _STOP_TIMEOUT_S):
            log.warning("the broker (process %s) did not end in %s s; killing it", pid, _STOP_TIMEOUT_S)
            os.kill(pid, signal.SIGKILL)
            _await_end(pid, _STOP_TIMEOUT_S)
        self._pid_file.unlink(missing_ok=True)
        return True

    def kill(self) -> None:
        """End the broker as a power cut would."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            _await_end(pid, _STOP_TIMEOUT_S)
            self._pid_file.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """Process id of the running broker, or None."""
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return pid if _is_running(pid, marker=str(self._properties)) else None

    def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether a client gets an answer within the given seconds."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return bool(admin.list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return False

    @property
    def log_file(self) -> Path:
        """What the broker prints."""
        return self.folder / "kafka.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "kafka.pid"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _refuse_taken_port(self) -> None:
        for port in (self.port, self.port + 1):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as exc:
                    msg = (
                        f"port {port} of this machine is taken, and not by the broker of {self.folder.parent}; end "
                        "what has it ('xray down' with the XRAY_HOME that started it), or choose another port with "
                        "XRAY_KAFKA__BOOTSTRAP_SERVERS"
                    )
                    raise BrokerError(msg) from exc

    def _write_configuration(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        template = Template((files("xray") / "server.properties").read_text(encoding="utf-8"))
        values = {"port": self.port, "controller": self.port + 1, "data": self._data, "bytes": MAX_MESSAGE_BYTES}
        self._properties.write_text(template.substitute(values), encoding="utf-8")
        shutil.copyfile(str(files("xray") / "broker-log4j2.properties"), self.folder / "log4j2.properties")

    def _format_storage(self) -> None:
        if (self._data / "meta.properties").is_file():
            return
        command = [*self._java("256m"), "kafka.tools.StorageTool", "format"]
        command += ["--cluster-id", _CLUSTER_ID, "--config", str(self._properties)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode != 0:
            msg = f"Kafka cannot format {self._data}: {(answer.stderr or answer.stdout).strip()[-500:]}"
            raise BrokerError(msg)

    def _launch(self) -> None:
        command = [*self._java(_HEAP), "kafka.Kafka", str(self._properties)]
        with self.log_file.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal is for the stream, not for the broker under it.
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, start_new_session=True
            )
        self._pid_file.write_text(str(process.pid), encoding="ascii")

    def _java(self, heap: str) -> list[str]:
        jars = resolve_jars(KAFKA_JARS, self.jars_folder)
        options = [f"-Xmx{heap}", f"-Xms{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        options += [f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"]
        return [str(find_java()), *options, "-cp", os.pathsep.join(map(str, jars))]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self.answers():
            if self.pid() is None or time.monotonic() > deadline:
                tail = self.log_file.read_text(errors="replace").strip().splitlines()[-3:]
                msg = f"the broker did not come up; {self.log_file} ends with: {' | '.join(tail)}"
                raise BrokerError(msg)


def _is_running(pid: int, marker: str) -> bool:
    """Whether the process lives and is the broker, not a later process with its number."""
    with suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)  # our own ended child would stay as a zombie, and look alive
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    try:
        return marker in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Path("/proc").is_dir() is False  # no /proc on this system: the living process has to do


def _await_end(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(ChildProcessError, OSError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
