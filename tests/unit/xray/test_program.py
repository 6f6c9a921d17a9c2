"""The program itself: its version, and errors of the machine as one line with the next step."""

import json
import platform
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from schemas.errors import DependencyError
from schemas.registry import promote
from sparkdl.image.limits import RENDERING_VERSION
from streaming.gateway.keeping.spool import DAMAGED, Spool
from streaming.gateway.offer import Outgoing
from tests.savedmodels import add_model
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


@pytest.mark.parametrize(
    "arguments", [("up",), ("phantom", "{file}/set"), ("featurize", "{folder}", "--out", "{file}/out"), ("demo",)]
)
def test_a_folder_that_cannot_be_written_is_one_line(  # type: ignore[no-untyped-def]
    call, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a file no folder can be made, whoever asks; permissions would not stop root."""
    (tmp_path / "file").touch()
    (tmp_path / "jars").mkdir()
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("xray.demo.fetch_jars", lambda _: {})
    code, told, said = call(*(part.format(file=tmp_path / "file", folder=tmp_path) for part in arguments))
    assert (code, told) == (program.EXIT_USAGE, "")
    error = said.splitlines()[-1]
    assert error.startswith("error: cannot ")
    assert str(tmp_path / "file") in error
    assert "Not a directory" in error
    assert "Traceback" not in said


def test_training_finds_it_out_before_it_computes(  # type: ignore[no-untyped-def]
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("normal", "covid"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "a.png").touch()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "file" / "home"))
    code, _, said = call("train", "--data", str(tmp_path / "set"))
    assert code == program.EXIT_USAGE
    assert "cannot write to" in said.splitlines()[-1]
    assert "XRAY_HOME" in said.splitlines()[-1]


def test_a_defect_keeps_its_trace(call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("xray.status.describe_status", fail)
    code, _, _ = call("status")
    assert code == program.EXIT_ERROR
    assert caplog.records[-1].exc_info


def test_a_broker_without_port_is_refused_at_once(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XRAY_KAFKA__BOOTSTRAP_SERVERS", "broker")
    code, _, said = call("status")
    assert code == program.EXIT_USAGE
    assert "wanted HOST:PORT" in said
    assert len(said.splitlines()) == 1


def test_in_a_pipe_a_sentence_is_one_line(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "80")
    champion = "many words " * 20 + "end"
    state = {
        "bootstrap_servers": "127.0.0.1:1",
        "home": "h",
        "champion": champion,
        "champion_rendering_version": None,
        "spool": None,
        "kafka": True,
        "topics": {},
    }
    monkeypatch.setattr("xray.status.describe_status", lambda _: state)
    code, told, _ = call("status")
    assert code == 0
    assert f"Champion: {champion}" in told.splitlines()


@pytest.mark.parametrize(("version", "told"), [(1, True), (0, True), (RENDERING_VERSION, False), (None, False)])
def test_status_tells_of_a_champion_of_an_old_rendering(  # type: ignore[no-untyped-def]
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int | None, told: bool
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("xray.status._describe_topics", lambda _: {})
    if version is not None:
        add_model(tmp_path, "v1", rendering=version)
        promote(tmp_path / "models", "v1")
    code, said, _ = call("status")
    assert code == 0
    assert (f"rendering version {version}" in said) is ("xray train --data" in said) is told
    code, said, _ = call("status", "--json")
    state = json.loads(said)
    assert (state["champion"], state["champion_rendering_version"]) == (None if version is None else "v1", version)


def test_status_tells_of_the_spool(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("xray.status._describe_topics", lambda _: {})
    _, said, _ = call("status", "--json")
    assert json.loads(said)["spool"] is None
    folder = tmp_path / "spool"
    monkeypatch.setenv("XRAY_GATEWAY__SPOOL", str(folder))
    _, said, _ = call("status")
    assert f"Spool: {folder}: 0 images wait, 0 bytes\n" in said
    spool = Spool(folder, max_bytes=10**9, min_free_bytes=0)  # owned by a gateway, from here on
    for number in range(3):
        spool.put(Outgoing(f"{number:032}", b"key", (), b"image"))
    spool.set_aside(spool.first(1)[0][0], DAMAGED)
    _, said, _ = call("status", "--json")
    told = json.loads(said)["spool"]
    assert datetime.fromisoformat(told.pop("oldest_at")).timestamp() == pytest.approx(time.time(), abs=60)
    assert told == {
        "folder": str(folder),
        "error": None,
        "images": 2,
        "bytes": spool.state.size,
        "refused": 0,
        "damaged": 1,
    }
    _, said, _ = call("status")
    assert "2 images wait" in said
    assert "set aside: 1 damaged" in said


def test_status_of_a_spool_that_cannot_be_read(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("xray.status._describe_topics", lambda _: {})
    (tmp_path / "spool").write_bytes(b"")
    monkeypatch.setenv("XRAY_GATEWAY__SPOOL", str(tmp_path / "spool"))
    code, said, _ = call("status")
    assert code == 0
    assert "cannot be read: Not a directory" in said


def test_status_of_a_damaged_champion_names_it_all_the_same(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("xray.status._describe_topics", lambda _: {})
    add_model(tmp_path, "v1")
    promote(tmp_path / "models", "v1")
    (tmp_path / "models" / "v1" / "weights").write_text("others", encoding="utf-8")
    _, said, _ = call("status", "--json")
    state = json.loads(said)
    assert (state["champion"], state["champion_rendering_version"]) == ("v1", None)
