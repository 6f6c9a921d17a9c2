"""Tests that are one story: each begins where the one before ended. Such a module is marked ``story``."""

from collections.abc import Generator

import pytest

_FIRST_FAILURE = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which test of a story failed first."""
    report = yield
    if report.failed and item.parent is not None and item.get_closest_marker("story"):
        item.parent.stash.setdefault(_FIRST_FAILURE, item.name)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the rest of a story: each of its tests would wait for minutes for what can no longer come."""
    failed = item.parent.stash.get(_FIRST_FAILURE, None) if item.parent is not None else None
    if failed is not None and item.get_closest_marker("story"):
        pytest.skip(f"{failed} has failed, and this test begins where all is well again")
