"""Java, jars, extras and limits, as a machine might have them."""

import resource
from pathlib import Path
from typing import NoReturn

import pytest

from schemas.errors import DependencyError
from streaming.run.jars import SPARK_JARS
from streaming.settings import StreamSettings
from xray.doctor import machine as module
from xray.doctor.finding import Verdict
from xray.doctor.machine import check_extras, check_jars, check_java, check_limits

SETTINGS = StreamSettings()


def test_a_java_that_is_new_enough_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "describe_java", lambda: 'openjdk version "17.0.1"\nmore')
    [finding] = check_java(SETTINGS)
    assert (finding.verdict, finding.found) == (Verdict.OK, 'openjdk version "17.0.1"')


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (DependencyError("Java 17 or newer is needed and none was found. Install one."), "none was found", "Install"),
        (PermissionError(13, "Permission denied"), "does not start", "JAVA_HOME"),
    ],
)
def test_a_java_that_is_missing_or_does_not_start_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception, found: str, advice: str
) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(module, "describe_java", fail)
    [finding] = check_java(SETTINGS)
    assert finding.verdict is Verdict.FAULT
    assert found in finding.found
    assert advice in finding.advice


def test_jars_are_there_to_be_fetched_or_broken(tmp_path: Path) -> None:
    settings = StreamSettings(jars=tmp_path)
    assert [one.verdict for one in check_jars(settings)] == [Verdict.WARNING]
    (tmp_path / SPARK_JARS.name).mkdir()
    assert [one.verdict for one in check_jars(settings)] == [Verdict.FAULT]
    (tmp_path / SPARK_JARS.name / "a.jar").touch()
    assert [one.verdict for one in check_jars(settings)] == [Verdict.OK]


def test_an_extra_that_is_missing_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(extra: str, what: str) -> None:
        if extra == "page":
            msg = f"{what} needs jinja2, which the extra page brings: pip install 'x[page]'"
            raise DependencyError(msg)

    monkeypatch.setattr(module, "check_extra", check)
    found = list(check_extras(SETTINGS))
    assert {one.verdict for one in found} == {Verdict.OK}
    [page] = [one for one in found if "not installed" in one.found]
    assert page.advice.endswith("pip install 'x[page]'")


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        ((256, 4096), Verdict.FAULT),
        ((1024, 1024), Verdict.WARNING),
        ((4096, 4096), Verdict.OK),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), Verdict.OK),
    ],
)
def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], verdict: Verdict) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    [finding] = check_limits(SETTINGS)
    assert finding.verdict is verdict
