"""The systemd units: what they run exists, what they may do is little, and systemd itself accepts them."""

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import typer.main

from streaming.settings import GatewaySettings, variable_names
from tests.paths import ROOT
from xray.commands.app import app

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))


def read(unit: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return parser


def test_gateway_and_stream_have_one() -> None:
    assert [unit.name for unit in UNITS] == ["xray-gateway.service", "xray-stream.service"]


@each_unit
def test_it_runs_a_command_that_there_is(unit: Path) -> None:
    program, command, *options = read(unit)["Service"]["ExecStart"].split()
    assert program == "/opt/xray/bin/xray"
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    assert set(options) <= {name for parameter in known.params for name in parameter.opts}


@each_unit
def test_it_sets_real_settings(unit: Path) -> None:
    named = set(re.findall(r"\bXRAY_\w+", unit.read_text(encoding="utf-8")))
    assert named <= {*variable_names(), "XRAY_HOME"}


@each_unit
def test_it_may_do_little(unit: Path) -> None:
    service = read(unit)["Service"]
    assert service["User"] == "xray"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["CapabilityBoundingSet"]) == (
        "yes",
        "strict",
        "",
    )
    assert service["StateDirectory"] == "xray", "the one folder that it may write to, and XRAY_HOME"
    assert "XRAY_HOME=/var/lib/xray" in unit.read_text(encoding="utf-8")
    assert service["Restart"] == "on-failure"


def test_gateway_has_time_to_answer_those_who_wait() -> None:
    service = read(UNITS[0])["Service"]
    assert float(service["TimeoutStopSec"].removesuffix("s")) > 2 * GatewaySettings().answer_s


@each_unit
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_it(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "xray"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/xray/bin/xray", str(program)))
    answer = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    own = [line for line in answer.stderr.splitlines() if unit.name in line]
    assert (answer.returncode, own) == (0, []), answer.stderr


@each_unit
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_calls_its_exposure_low(unit: Path) -> None:
    """From 0, safe, to 10; above 5 is what systemd calls more than medium."""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(unit)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr
