"""Runs the installed command with an environment of its own."""

import subprocess
import sys
from collections.abc import Mapping


def command_line(*arguments: str) -> list[str]:
    """Give the command as this interpreter runs it."""
    return [sys.executable, "-m", "xray", *arguments]


def run_command(environ: Mapping[str, str], *arguments: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run ``xray`` to its end.

    Raises
    ------
    subprocess.TimeoutExpired
        It did not end in time; it is killed.
    """
    return subprocess.run(  # noqa: S603 - the benchmark's own arguments
        command_line(*arguments), env=dict(environ), capture_output=True, text=True, timeout=timeout_s, check=False
    )
