"""The scripts under examples/, run as a user runs them, on generated radiographs."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from schemas.envelope import DISCLAIMER
from schemas.errors import DependencyError
from sparkdl.spark.java import find_java
from tests.paths import ROOT
from xray.phantom import FINDINGS, generate_radiograph

pytestmark = [
    pytest.mark.spark,
    pytest.mark.train,
    pytest.mark.e2e,
    pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra"),
]

N_IMAGES = 30
METRICS = ("accuracy", "f1", "weightedPrecision", "weightedRecall")


def run_paper(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        find_java()
    except DependencyError as exc:
        pytest.skip(str(exc))
    command = [sys.executable, str(ROOT / "examples" / "paper.py"), *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)


def write_folders(where: Path) -> list[str]:
    """Two folders, of other patients each; names that a URI would escape."""
    folders = []
    for place, finding in enumerate(FINDINGS):
        folder = where / f"{finding} images"
        folder.mkdir()
        for number in range(N_IMAGES):
            seed = 1000 * place + number
            radiograph = generate_radiograph(seed, finding=finding, height=256, width=224)
            Image.fromarray(radiograph.pixels).save(folder / f"{number:02d}.png")
        folders.append(str(folder))
    return folders


@pytest.mark.long
def test_paper_on_two_folders(tmp_path: Path) -> None:
    normal, covid = write_folders(tmp_path)
    (Path(covid) / "broken.png").write_bytes(b"no image")
    done = run_paper(normal, covid)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert DISCLAIMER in done.stdout
    assert "not by patient" in done.stdout
    assert f"{N_IMAGES} normal, {N_IMAGES} covid, 1 files not read" in done.stdout
    counts = [int(count) for count in re.findall(r"^(?:fit|predict) +(\d+) images", done.stdout, re.MULTILINE)]
    assert sum(counts) == 2 * N_IMAGES
    assert float(re.search(r"([\d.]+) images/s", done.stdout)[1]) > 0
    found = dict(re.findall(r"^(\w+) +(\d\.\d{4})$", done.stdout, re.MULTILINE))
    assert tuple(found) == METRICS
    # 0.5 is chance; these phantoms are told apart easily.
    assert all(float(value) > 0.6 for value in found.values()), found
