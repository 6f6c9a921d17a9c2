"""A user at the command line, with a state folder and a broker's port of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import find_ports


@dataclass(frozen=True)
class Shell:
    """Runs the command with one user's environment."""

    environ: Mapping[str, str]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "xray", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(self.environ)
        )

    def run(self, *arguments: str, timeout_s: float = 200) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def shell(tmp_path: Path, jars: Path) -> Iterator[Shell]:
    """A user with an empty state folder and a free port; what the user started is ended."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
    environ |= {
        "XRAY_HOME": str(tmp_path / "home"),
        "XRAY_JARS": str(jars),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{find_ports()}",
        "XRAY_KAFKA__PARTITIONS": "2",
        "XRAY_METRICS__PORT": "0",
        "XRAY_ARCHIVE__METRICS_PORT": "0",
        "XRAY_ARCHIVE__TRIGGER_S": "1",
    }
    shell = Shell(environ)
    yield shell
    shell.run("down")
