"""The systemd units: what they run exists, what they may do is little, and systemd itself accepts them."""

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer.main

from streaming.settings import GatewaySettings, ReportsSettings, variable_names
from tests.paths import ROOT
from tests.unit.deploy.test_deploy import LONGEST_DELIVERY_S
from xray.commands.app import app

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))


def read(unit: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return parser


def test_every_program_has_one() -> None:
    """The stream starts its archive itself."""
    assert [unit.stem for unit in UNITS] == ["xray-alerts", "xray-gateway", "xray-page", "xray-reports", "xray-stream"]


@each_unit
def test_it_runs_a_command_that_there_is(unit: Path) -> None:
    program, *words = read(unit)["Service"]["ExecStart"].split()
    assert program == "/opt/xray/bin/xray"
    known: Any = typer.main.get_command(app)
    while hasattr(known, "commands"):
        known = known.commands[words.pop(0)]
    targets = re.findall(r'"TARGETS=(.*)"', unit.read_text(encoding="utf-8"))
    options = " ".join(words).replace("$TARGETS", *targets).split() if targets else words
    known.make_context(known.name, options)
    assert not [word for word in options if "$" in word]


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


@pytest.mark.parametrize(
    ("name", "least_s"),
    [
        ("xray-gateway", 2 * GatewaySettings().answer_s),
        ("xray-alerts", LONGEST_DELIVERY_S),
        ("xray-reports", 2 * ReportsSettings().answer_s),
    ],
)
def test_it_has_time_for_an_answer_that_is_waited_for(name: str, least_s: float) -> None:
    (unit,) = (unit for unit in UNITS if unit.stem == name)
    assert float(read(unit)["Service"]["TimeoutStopSec"].removesuffix("s")) > least_s


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
