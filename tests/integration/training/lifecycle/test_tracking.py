"""A server of MLflow gets what the local store gets, and passwords stay out of sight."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.savedmodels import add_model, add_report, evaluate
from training.lifecycle import tracking
from training.lifecycle.tracking import mirror_alias, track_run

pytestmark = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the tracking extra (MLflow)")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tracking._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of MLflow's own, on a free port; it wants no password, and takes any."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    words = ["server", "--backend-store-uri", f"sqlite:///{tmp_path / 's.db'}", "--host", "127.0.0.1", "--workers", "1"]
    words += ["--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "server.log")
        yield f"http://me:geheim@127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 200
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10):  # noqa: S310  an address of our own
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"MLflow's server did not start: {log.read_text()}")
            time.sleep(0.2)


@pytest.mark.long
def test_a_server_gets_the_same_and_no_password_is_printed(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415  part of the tracking extra only

    card = add_model(tmp_path, "v1")
    report = add_report(tmp_path, evaluate(card))
    run_id = track_run(server, "xray", card, evaluate(card), report, tmp_path / "models" / "v1")
    assert mirror_alias(server, "cxr", "champion", "v1") == "1"
    assert "".join(capsys.readouterr()) == ""
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    assert client.get_model_version_by_alias("cxr", "champion").run_id == run_id
    assert [item.path for item in client.list_artifacts(run_id)] == ["model", "report.html", "report.json", "report.md"]
    assert list((tmp_path / "artifacts").rglob("report.html"))
