"""The list of Java's classes can be made anew, and the one in the repository is about what is found."""

import gzip
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.classlist import OUT


@pytest.mark.long
@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.train
@pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra")
@pytest.mark.timeout(1200)  # a busy machine takes its time
def test_the_list_can_be_made_anew(jars: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
    command = [sys.executable, "-m", "tools.classlist", "--out", str(tmp_path / "classes.lst.gz")]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | {"XRAY_JARS": str(jars)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found, kept = (set(gzip.decompress(path.read_bytes()).split(b"\n")) for path in (tmp_path / "classes.lst.gz", OUT))
    # Another Java has other classes of its own, and no two starts are quite the same.
    assert len(found & kept) > 0.8 * len(kept)
