"""Commands without the extra that they need: one line before anything is read. The missing package is simulated."""

from pathlib import Path

import pytest

from schemas import extras
from schemas.extras import install_line
from xray import __main__ as program


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "--data", "/is/not/there"], "train"),
        (["demo"], "train"),
        (["retrain"], "train"),
        (["featurize", "/is/not/there", "--out", "/is/not/there"], "train"),
        (["devices", "--images", "1"], "gateway"),
    ],
)
def test_the_line_to_run_comes_first(
    arguments: list[str],
    extra: extras.Extra,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["xray", *arguments])
    assert program.run() == program.EXIT_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert install_line(extra) in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", [["train", "--data", "x"], ["featurize", "x", "--out", "y"]])
def test_int8_needs_an_extra_of_its_own(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "nncf" else there("json"))
    monkeypatch.setattr("sys.argv", ["xray", *command, "--precision", "int8"])
    assert program.run() == program.EXIT_ERROR
    assert install_line("int8") in capsys.readouterr().err
