"""Java programs of one file, which a JDK runs and a JRE does not."""

import subprocess
from pathlib import Path

import pytest

from sparkdl.spark.java import find_java


def run_java_file(file: Path, class_path: str) -> list[str]:
    """Give the command that runs a source file, up to its own arguments; skips the test where Java has no compiler."""
    java = str(find_java())
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True).stdout
    if "jdk.compiler" not in modules:
        pytest.skip(f"{file.name} needs a JDK, and this Java has no compiler: install openjdk-17-jdk-headless")
    return [java, "-cp", class_path, str(file)]
