"""``xray --version``: what a report of a fault begins with."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version

import typer

from schemas.errors import DependencyError
from schemas.extras import PACKAGE
from xray.console import out


def show_version(wanted: bool) -> None:
    """Print one line with the versions of this, Python, Spark and Java, and end; nothing where nobody asked."""
    if not wanted:
        return
    versions = (
        f"{PACKAGE} {_version_of(PACKAGE)}",
        f"Python {platform.python_version()}",
        f"pyspark {_version_of('pyspark')}",
        _describe_java(),
    )
    out.print(", ".join(versions), soft_wrap=True, markup=False)
    raise typer.Exit


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _describe_java() -> str:
    from sparkdl.spark.java import describe_java

    try:
        told = describe_java()
    except DependencyError:
        return "no Java that is new enough"
    found = re.search(r'"([^"]+)"', told)
    return f"Java {found[1] if found else '(unknown)'}"
