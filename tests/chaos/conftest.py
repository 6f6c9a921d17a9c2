"""Fixtures of the kill matrix: one broker and two trained models for all of it."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.chaos.scene import Site, open_site

SEED = int(os.environ.get("CHAOS_SEED", "7"))


@pytest.fixture(scope="session")
def seed() -> int:
    """Of traffic and faults; shown where a test fails."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    return SEED


@pytest.fixture(scope="session")
def site(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running broker and two models."""
    if find_spec("keras") is None:  # found, not imported: importing it alone would choose another backend
        pytest.skip("training needs the train extra: make install")
    if not Path("/proc/self/stat").is_file():
        pytest.skip("processes are found through /proc, which this system does not have")
    with open_site(tmp_path_factory.mktemp("chaos"), jars) as site:
        yield site
