"""Finds the Java that Spark and Kafka run on."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from schemas.errors import DependencyError

MIN_JAVA = 17
"""Spark 4 is compiled for Java 17."""

_HOW = (
    "Install one (Debian and Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17) "
    "or set JAVA_HOME to it."
)


@cache
def find_java() -> Path:
    """Find a Java that is new enough.

    Returns
    -------
    Path
        The ``java`` program: of ``JAVA_HOME`` where that is set, else of the search path.

    Raises
    ------
    DependencyError
        There is none, or it is older than `MIN_JAVA`; one line that says what to install.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not found or not Path(found).is_file():
        msg = f"Java {MIN_JAVA} or newer is needed and none was found. {_HOW}"
        raise DependencyError(msg)
    version = _major_version(found)
    if version < MIN_JAVA:
        msg = f"Java {MIN_JAVA} or newer is needed; {found} is Java {version}. {_HOW}"
        raise DependencyError(msg)
    return Path(found)


def describe_java() -> str:
    """Give what the Java of `find_java` says of itself.

    Raises
    ------
    DependencyError
        See `find_java`.
    """
    return _ask_version(str(find_java()))


def _major_version(java: str) -> int:
    match = re.search(r'version "(\d+)(?:\.(\d+))?', _ask_version(java))
    if not match:
        msg = f"{java} does not say its version. {_HOW}"
        raise DependencyError(msg)
    # Java 8 calls itself 1.8.
    return int(match[2]) if match[1] == "1" and match[2] else int(match[1])


@cache
def _ask_version(java: str) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
