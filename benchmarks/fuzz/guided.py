"""Fuzzing by what code is reached, with atheris, of what is parsed in Python; the C libraries are not watched.

Files are damaged as elsewhere. Those that reach a new line are kept and damaged further, and at the end each of them
goes to the jail; so does what stopped atheris.
"""

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.fuzz.hunt import Hunt
from benchmarks.fuzz.jail import ROOT
from benchmarks.fuzz.kinds import Kind
from benchmarks.fuzz.report import Tally
from schemas.errors import DependencyError

GUIDED: Final = ("png", "jpeg", "dicom", "rle")
"""Kinds of which more than a header is parsed in Python."""

_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")


def hunt_guided(hunt: Hunt, kind: Kind, seconds: float) -> Tally:
    """Hunt with atheris for so many seconds by the clock.

    Parameters
    ----------
    hunt : Hunt
        Judges what is found.
    kind : Kind
        One of `GUIDED`.
    seconds : float
        Of atheris; the jail comes on top.

    Returns
    -------
    Tally
        Inputs are those of atheris, images and reasons those of the files that it has kept.

    Raises
    ------
    DependencyError
        atheris is not installed.
    """
    if find_spec("atheris") is None:
        msg = "atheris is missing: pip install atheris"
        raise DependencyError(msg)
    tally, started, executed = Tally(), time.monotonic(), 0
    with TemporaryDirectory(prefix="xray-fuzz-") as folder:
        corpus, stopped = Path(folder, "corpus"), Path(folder, "stopped")
        corpus.mkdir()
        stopped.mkdir()
        for number, payload in enumerate(kind.seeds()):
            (corpus / str(number)).write_bytes(payload)
        while (left := int(started + seconds - time.monotonic())) > 0:
            executed += _run_atheris(kind, hunt.seed + executed, left, corpus, stopped)
            for path in stopped.iterdir():
                hunt.try_file(path.read_bytes(), kind, tally)
                path.unlink()
        tally.seconds = time.monotonic() - started
        for path in sorted(corpus.iterdir()):
            hunt.try_file(path.read_bytes(), kind, tally)
    tally.inputs = executed
    return tally


def _run_atheris(kind: Kind, seed: int, seconds: int, corpus: Path, stopped: Path) -> int:
    """Run it until its time is up or something stops it; give how many files it has tried."""
    options = [f"-max_total_time={seconds}", f"-seed={seed % (1 << 31) + 1}", "-timeout=10", "-print_final_stats=1"]
    options += [f"-max_len={1 << 20}", f"-artifact_prefix={stopped}/"]
    command = [sys.executable, "-m", "benchmarks.fuzz.guidedchild", str(corpus), *options, kind.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    found = _EXECUTED.search(done.stderr)
    if found is None:
        msg = f"atheris did not run: {done.stderr[-500:]}"
        raise DependencyError(msg)
    return int(found.group(1))
