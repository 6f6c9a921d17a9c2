"""A whole installation that is watched: a broker and all programs, scraped by a real Prometheus."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos.commands import command_line
from benchmarks.chaos.scene import Site
from benchmarks.chaos.stream import StreamProcess
from benchmarks.ports import find_ports
from streaming.devices.publish import ImagePublisher
from streaming.settings import StreamSettings, load_settings
from tests.integration.deploy.listeners import SECRET, Listeners, write_many_rules, write_rules
from tests.integration.deploy.shortened import shorten_rules
from tests.integration.streams import read_samples
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
DEVICE = "/ward-3/dx-1"
SPOOL_BYTES = 2_000_000
NEEDED = ("prometheus", "prometheus-alertmanager")

_TOKEN = "of the device dx-1"  # noqa: S105  the test's own
_PORTS = ("stream", "archive", "gateway", "dicom", "http", "alerts", "reports")
_READY_TIMEOUT_S = 120
_POLL_S = 0.2
_WORKS_S = 0.05


class Watched:
    """The programs, each started and ended by itself, and what Prometheus says of them.

    Parameters
    ----------
    site : Site
        The broker and two trained models.
    folder : Path
        Of Prometheus, Alertmanager and all logs.
    listeners : Listeners
        Who gets alarms and reports.
    """

    def __init__(self, site: Site, folder: Path, listeners: Listeners) -> None:
        self.site, self.folder, self.started_at = site, folder, time.time()
        first = find_ports(len(_PORTS) + 2)
        self.ports = {name: first + number for number, name in enumerate(_PORTS)}
        self.prometheus_url, self.alertmanager_url = (f"http://127.0.0.1:{first + len(_PORTS) + n}" for n in (0, 1))
        self.home = site.folder / "site"
        self.spool = folder / "spool"
        self.crosswalk = folder / "crosswalk"
        devices = folder / "devices.toml"
        folder.mkdir(parents=True)
        digest = hashlib.sha256(_TOKEN.encode()).hexdigest()
        devices.write_text(f'[[device]]\nsource = "{DEVICE}"\ntokens = ["sha256:{digest}"]\n', encoding="utf-8")
        self.environ = site.environ | {
            "XRAY_HOME": str(self.home),
            "XRAY_METRICS__PORT": str(self.ports["stream"]),
            "XRAY_ARCHIVE__METRICS_PORT": str(self.ports["archive"]),
            "XRAY_SCORE__CANARY_S": "2",
            "XRAY_SCORE__MAX_IMAGES_PER_BATCH": "100",
            "XRAY_AUDIT__INTERVAL_S": "3",
            "XRAY_AUDIT__WINDOW_S": "30",
            "XRAY_MONITOR__INTERVAL_S": "5",
            "XRAY_GATEWAY__METRICS_PORT": str(self.ports["gateway"]),
            "XRAY_GATEWAY__DICOM_PORT": str(self.ports["dicom"]),
            "XRAY_GATEWAY__HTTP_PORT": str(self.ports["http"]),
            "XRAY_GATEWAY__DEVICES": str(devices),
            "XRAY_GATEWAY__ANYONE": "true",
            "XRAY_GATEWAY__SPOOL": str(self.spool),
            "XRAY_GATEWAY__SPOOL_MAX_BYTES": str(SPOOL_BYTES),
            "XRAY_GATEWAY__SPOOL_MIN_FREE_BYTES": "0",
            "XRAY_GATEWAY__ANSWER_S": "4",
            "XRAY_GATEWAY__CROSSWALK": str(self.crosswalk),
            "XRAY_ALERTS__METRICS_PORT": str(self.ports["alerts"]),
            "RIS_SECRET": SECRET,
            "XRAY_REPORTS__METRICS_PORT": str(self.ports["reports"]),
            "XRAY_REPORTS__REFUSAL_TRIES": "2",
            "XRAY_REPORTS__REFUSAL_WAIT_S": "0.1",
        }
        rules = write_rules(folder, DEVICE, webhook=listeners.webhook.url, alertmanager=self.alertmanager_url)
        self._many_rules = write_many_rules(folder)
        targets = (f"mllp:127.0.0.1:{listeners.hospital.port}", f"files:{folder / 'reports'}")
        self._commands: dict[str, tuple[str, ...]] = {
            "stream": ("stream", "--no-archive"),
            "archive": ("archive",),
            "gateway": ("gateway",),
            "alerts": ("alerts", "run", str(rules)),
            "reports": ("results", "run", "--to", targets[0], "--to", targets[1]),
        }
        kafka = {"bootstrap_servers": site.broker.bootstrap_servers}
        self.settings: StreamSettings = load_settings(home=self.home, jars=site.jars, kafka=kafka)
        self.programs: dict[str, StreamProcess] = {}
        self._servers: list[subprocess.Popen[bytes]] = []

    # --- the programs -------------------------------------------------------------------------------------------------

    def start(self, *names: str, **own: Any) -> None:
        """Start programs, and wait until each is ready; with what `launch` takes."""
        for name in names:
            self.launch(name, **own)
        for name in names:
            self.wait_ready(name)

    def launch(self, name: str, *, options: tuple[str, ...] = (), environ: Mapping[str, str] | None = None) -> None:
        """Start a program, with more options, and with settings of its own."""
        command = command_line(*self._commands[name], "--json", *options)
        own = {**self.environ, **(environ or {})}
        self.programs[name] = StreamProcess(own, self.folder / f"{name}.stderr", command=command)

    def launch_with_many_rules(self) -> None:
        """Start the alarms with rules by which they are slow."""
        command = command_line("alerts", "run", str(self._many_rules), "--json")
        self.programs["alerts"] = StreamProcess(self.environ, self.folder / "alerts.stderr", command=command)

    def wait_ready(self, name: str) -> None:
        """Wait until a program says that it is ready."""
        said = self.folder / f"{name}.stderr"
        assert self.programs[name].wait_ready(_READY_TIMEOUT_S), said.read_text(encoding="utf-8")[-2000:]

    def answers(self, name: str) -> bool:
        """Whether a program's page answers, ready or not."""
        return _answers(f"http://127.0.0.1:{self.ports[name]}/metrics")

    def page_value(self, name: str, sample: str) -> float:
        """Read a sample from a program's page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=10) as page:
            return read_samples(page.read().decode())[sample]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let Spark do nothing while the body runs; the stream's own process, and its page, go on."""
        processes = self.programs["stream"].processes()
        java = {process.pid for process in processes if process.is_java}
        (pid,) = {p.parent for p in processes if "workerdaemon" in p.command and p.parent in java}
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def slowed(self, name: str) -> Iterator[None]:
        """Let a program work a tenth of the time while the body runs, however fast the machine is; its page answers."""
        pid, ended = self.programs[name].pid, threading.Event()

        def slow() -> None:
            while not ended.wait(_WORKS_S):
                os.kill(pid, signal.SIGSTOP)
                ended.wait(9 * _WORKS_S)
                os.kill(pid, signal.SIGCONT)

        thread = threading.Thread(target=slow)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def watch(self) -> None:
        """Start Prometheus, with the rules shortened, and Alertmanager, with the file as it is."""
        for file in ("alerts.yml", "slo.yml"):
            rules = shorten_rules(DEPLOY / "prometheus" / file, spool_bytes=SPOOL_BYTES)
            (self.folder / file).write_text(yaml.safe_dump(rules), encoding="utf-8")
        config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        own = [job for job in config["scrape_configs"] if job["job_name"].removeprefix("xray-") in self.ports]
        for job in own:
            port = self.ports[job["job_name"].removeprefix("xray-")]
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        config["scrape_configs"] = own
        target = self.alertmanager_url.removeprefix("http://")
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [target]}]}]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        data = {name: self.folder / f"{name}-data" for name in NEEDED}
        self._serve(
            "prometheus-alertmanager",
            f"--config.file={DEPLOY / 'alertmanager' / 'alertmanager.yml'}",
            f"--storage.path={data['prometheus-alertmanager']}",
            f"--web.listen-address={target}",
            "--cluster.listen-address=",
        )
        self._serve(
            "prometheus",
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={data['prometheus']}",
            f"--web.listen-address={self.prometheus_url.removeprefix('http://')}",
        )
        for url in (self.prometheus_url, self.alertmanager_url):
            self.wait_for(lambda url=url: _answers(f"{url}/-/ready"), f"{url} is ready")  # type: ignore[misc]

    def _serve(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.stderr").open("ab") as log:
            self._servers.append(subprocess.Popen([name, *options], stdout=log, stderr=log))

    def close(self) -> None:
        """End everything that was started here."""
        for program in self.programs.values():
            program.kill()
        for server in self._servers:
            server.terminate()
            server.wait(30)

    # --- what devices do ----------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> int:
        """Send a DICOM object or a PNG as the known device; give the HTTP status, 0 where nobody answers."""
        media_type = "application/dicom" if payload[128:132] == b"DICM" else "image/png"
        headers = {"Content-Type": media_type, "Authorization": f"Bearer {_TOKEN}"}
        url = f"http://127.0.0.1:{self.ports['http']}/images"
        request = urllib.request.Request(url, payload, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0

    def publish(self, payloads: Iterable[bytes]) -> None:
        """Publish images past the gateway, each once confirmed."""
        failed: list[str] = []
        publisher = ImagePublisher(self.settings.kafka, lambda _, error: failed.append(error) if error else None)
        for number, payload in enumerate(payloads):
            publisher.publish(payload, [], key=str(number).encode(), token=number)
        publisher.flush()
        assert failed == []

    # --- what Prometheus says -----------------------------------------------------------------------------------------

    def query(self, expression: str, **span: float) -> list[dict[str, Any]]:
        """Ask Prometheus; with ``start``, ``end`` and ``step`` for a range."""
        kind = "query_range" if span else "query"
        words = urllib.parse.urlencode({"query": expression, **span})
        answer = _read_json(f"{self.prometheus_url}/api/v1/{kind}?{words}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """Give the one value of an expression; not a number where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else math.nan

    def fired(self, since: float, name: str, **labels: str) -> bool:
        """Whether an alert has been firing at any time since then, as Prometheus keeps it."""
        seconds = max(1, int(time.time() - since))
        return bool(self.query(f"count_over_time({_alerts(name, labels)}[{seconds}s])"))

    def firing(self) -> list[dict[str, str]]:
        """Give the labels of all alerts that fire now, as Prometheus' own list of alerts has them."""
        found = _read_json(f"{self.prometheus_url}/api/v1/alerts")["data"]["alerts"]
        return [alert["labels"] for alert in found if alert["state"] == "firing"]

    def ever_fired(self) -> list[dict[str, str]]:
        """Give the labels of all alerts that have been firing since Prometheus was started."""
        seconds = int(time.time() - self.started_at) + 1
        found = self.query(f"count_over_time({_alerts('', {})}[{seconds}s])")
        return [one["metric"] for one in found]

    def inhibited(self, name: str) -> bool:
        """Whether Alertmanager has an alert and keeps it to itself, for the sake of another."""
        found = _read_json(f"{self.alertmanager_url}/api/v2/alerts")
        return any(a["labels"]["alertname"] == name and a["status"]["inhibitedBy"] for a in found)

    def alarms(self) -> list[dict[str, str]]:
        """Give the labels of the alarms about images that Alertmanager has now."""
        found = _read_json(f"{self.alertmanager_url}/api/v2/alerts")
        return [one["labels"] for one in found if "alarm_id" in one["labels"]]

    def wait_for(self, is_so: Callable[[], Any], what: str, timeout_s: float = 180) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, f"never came: {what}; firing: {self._try_firing()}"
            time.sleep(_POLL_S)

    def wait_fired(self, since: float, *names: str, timeout_s: float = 180, **labels: str) -> None:
        """Wait until each of these alerts has been firing since then."""
        for name in names:
            self.wait_for(lambda name=name: self.fired(since, name, **labels), f"{name} {labels} fires", timeout_s)  # type: ignore[misc]

    def wait_silent(self, name: str, timeout_s: float = 240, **labels: str) -> None:
        """Wait until an alert does not fire any more."""
        wanted = {"alertname": name, **labels}.items()
        self.wait_for(lambda: not any(wanted <= one.items() for one in self.firing()), f"the end of {name}", timeout_s)

    def _try_firing(self) -> Any:
        with suppress(OSError):
            return sorted({one["alertname"] for one in self.firing()})
        return "Prometheus does not answer"


@contextmanager
def sending(watched: Watched, draw: Callable[[], bytes], pause_s: float = 0.5) -> Iterator[None]:
    """Let the known device send images while the body runs, whatever becomes of them."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(pause_s):
            watched.send(draw())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _alerts(name: str, labels: Mapping[str, str]) -> str:
    wanted = {"alertstate": "firing", **({"alertname": name} if name else {}), **labels}
    return "ALERTS{" + ",".join(f'{label}="{value}"' for label, value in wanted.items()) + "}"


def _read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def missing_programs() -> list[str]:
    """Name what is not installed."""
    return [name for name in NEEDED if shutil.which(name) is None]
