"""Fixtures of the archive's tests: its process, and what SCORE leaves for it."""

from collections.abc import Iterator

import pytest

from streaming.settings import StreamSettings
from tests.integration.streaming.archive.beside import Beside
from tests.integration.streaming.archive.scored import Scored


@pytest.fixture
def beside(settings: StreamSettings) -> Iterator[Beside]:
    """The archive's process, not started yet; it is ended at the end."""
    beside = Beside(settings)
    yield beside
    beside.process.stop()


@pytest.fixture
def scored(settings: StreamSettings) -> Scored:
    """Topics with what SCORE leaves."""
    return Scored(settings)
