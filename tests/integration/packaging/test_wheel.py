"""The wheel is complete: it works in an environment of its own, in a folder that is not the checkout.

Its dependencies are those of the environment that runs the tests; the project there, which is editable, is not seen.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.paths import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PACKAGES = ("schemas", "sparkdl", "streaming", "training", "xray")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and an empty folder to work in."""

    wheel: Path
    bin: Path
    folder: Path

    def run(self, command: str, *arguments: str) -> str:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("XRAY_", "PYTHON"))}
        environ["XRAY_HOME"] = str(self.folder / "home")
        done = subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=self.folder, env=environ, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made of: a build leaves nothing in the checkout, and finds nothing old there."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    target = sysconfig.get_path("purelib", vars=paths)
    # A path file's folders are added, their own path files are not read: an editable project stays unseen.
    (Path(target) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, cwd=folder)
    empty = folder / "empty"
    empty.mkdir()
    return Installed(wheel, python.parent, empty)


def test_every_file_of_the_packages_is_in_the_wheel(source: Path, installed: Installed) -> None:
    wanted = {
        str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()
    }
    with zipfile.ZipFile(installed.wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == wanted


def test_the_wheel_alone_is_imported(installed: Installed) -> None:
    program = f"import importlib; print(*(importlib.import_module(n).__file__ for n in {PACKAGES!r}), sep='\\n')"
    places = installed.run("python", "-c", program).splitlines()
    assert len(places) == len(PACKAGES)
    assert all(Path(place).is_relative_to(installed.bin.parent) for place in places), places


def test_the_command_says_its_version(installed: Installed) -> None:
    assert PROJECT["version"] in installed.run("xray", "--version")


def test_the_command_reads_its_settings(installed: Installed) -> None:
    found = json.loads(installed.run("xray", "settings", "--json"))
    assert found["XRAY_HOME"] == str(installed.folder / "home")


def test_phantoms_are_drawn(installed: Installed) -> None:
    installed.run("xray", "phantom", "phantoms", "--count", "4")
    assert len([*(installed.folder / "phantoms").rglob("*.*")]) >= 4


def test_the_library_is_imported(installed: Installed) -> None:
    program = "from sparkdl import DeepImageFeaturizer; print(DeepImageFeaturizer.__name__)"
    assert installed.run("python", "-c", program) == "DeepImageFeaturizer\n"


def test_package_data_is_read_from_the_wheel(installed: Installed) -> None:
    program = """
from importlib.resources import files
names = {"sparkdl.spark": "log4j2.properties", "streaming.run": "ivysettings.xml", "xray": "server.properties"}
for package, name in names.items():
    assert (files(package) / name).read_text(), name
assert any(each.name.endswith(".json") for each in files("sparkdl.network").iterdir())
assert any(each.name.endswith(".json") for each in files("schemas").iterdir())
assert any((files("training.report") / "templates").iterdir())
"""
    installed.run("python", "-c", program)


def closure(requirements: list[str]) -> set[str]:
    """Names of all that these requirements bring, by the metadata of what is installed here."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return found


SERVING = """
import sys
from importlib.metadata import packages_distributions

base = set(sys.argv[1:])
owners = packages_distributions()
foreign = {top for top, names in owners.items() if not base & {name.lower().replace("_", "-") for name in names}}

class OnlyBase:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign:
            raise ModuleNotFoundError(f"{name} is of an extra", name=name)

sys.meta_path.insert(0, OnlyBase())
import openvino
import sparkdl.engine.openvino, sparkdl.image.decode, sparkdl.image.version1, sparkdl.transformers.featurizer
import streaming.account.audit, streaming.devices.publish, streaming.results, streaming.run.service
import streaming.archive.service, xray.commands.archive, xray.__main__
"""


def test_base_dependencies_suffice_to_serve(installed: Installed) -> None:
    """What scores is imported where nothing but the base dependencies can be."""
    base = closure(PROJECT["dependencies"])
    assert "keras" not in base
    installed.run("python", "-c", SERVING, "xray-stream", *sorted(base))
