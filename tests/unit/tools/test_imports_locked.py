"""What the code and its tests import is in the lock that a checkout installs."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCKED = {name.lower() for name in re.findall(r"^([\w.-]+)==", (ROOT / "locks/dev.lock").read_text(), re.MULTILINE)}
OPTIONAL = {"atheris", "onnx", "onnxruntime", "tensorflow", "tf2onnx"}
"""Installed by hand; what needs them is skipped without."""


def imports_of(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    parts = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain | parts}


@pytest.mark.parametrize(
    "folder", ["tests", "streaming", "training", "sparkdl", "schemas", "xray", "benchmarks", "tools"]
)
@pytest.mark.slow
def test_what_is_imported_is_locked(folder: str) -> None:
    own = {one.name for one in ROOT.iterdir()} | set(sys.stdlib_module_names)
    known = packages_distributions()
    found = {
        name: str(file.relative_to(ROOT))
        for file in sorted((ROOT / folder).rglob("*.py"))
        if "fixtures" not in file.parts
        for name in imports_of(file) - own - OPTIONAL
    }
    missing = {
        name: file
        for name, file in found.items()
        if not {re.sub(r"[-_.]+", "-", one).lower() for one in known.get(name, [name])} & LOCKED
    }
    assert missing == {}
