"""The program itself: its version, and errors of the machine as one line with the next step."""

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from schemas.errors import DependencyError
from xray import __main__ as program


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XRAY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["xray", *arguments])
        code = program.run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_version(call) -> None:  # type: ignore[no-untyped-def]
    code, told, _ = call("--version")
    assert code == 0
    assert len(told.splitlines()) == 1
    for part in ("xray-stream ", f"Python {platform.python_version()}", f"pyspark {version('pyspark')}"):
        assert part in told
    assert ", Java " in told


def test_no_java_is_told_not_an_error(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def find() -> Path:
        message = "Java is missing"
        raise DependencyError(message)

    monkeypatch.setattr("sparkdl.spark.java.find_java", find)
    code, told, _ = call("--version")
    assert (code, told.rstrip().endswith("no Java that is new enough")) == (0, True)
