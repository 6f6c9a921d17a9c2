"""``xray render`` through its own door: what it prints, what it writes, and its exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT
from tests.stored import add_champion
from tests.testimages import cmyk_jpeg, deflated_dicom, dicom, gray_pixels, jpeg, multi_frame_dicom, png
from xray import console
from xray.__main__ import EXIT_ERROR, EXIT_USAGE, run
from xray.phantom import write_folder
from xray.render.rendering import NOTE


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Render = Callable[..., Done]


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Render:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["xray", "render", *map(str, words)])
        code = run()
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three files that are taken, and three that are refused."""
    folder = tmp_path / "images"
    folder.mkdir()
    wrong = {"truncated.png": png()[:-40], "cmyk.jpg": cmyk_jpeg(), "multi_frame.dcm": multi_frame_dicom()}
    for name, payload in {"a.png": png(), "b.jpg": jpeg(), "c.dcm": dicom(), **wrong}.items():
        (folder / name).write_bytes(payload)
    return folder


def rows_of(done: Done) -> dict[str, list[str]]:
    """Cells of each row by the file's name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if line.startswith("│")]
    return {row[1]: row for row in rows}


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_in_a_pipe_each_file_is_one_line(render: Render, images: Path, tmp_path: Path) -> None:
    name = "a very long name " * 8 + ".png"
    (images / name).write_bytes(png())
    done = render(images, "--out", tmp_path / "out")
    rows = rows_of(done)
    assert done.code == EXIT_ERROR
    assert list(rows) == [name, "a.png", "b.jpg", "c.dcm", "cmyk.jpg", "multi_frame.dcm", "truncated.png"]
    assert rows["c.dcm"][2:4] + rows["c.dcm"][5:] == ["DICOM", "48x80", "takes it"]
    assert rows["cmyk.jpg"][2:] == ["JPEG", "", "", "unsupported_color"]
    refused = [line for line in done.err.splitlines() if line.startswith("refused: ")]
    assert [line.split(": ")[1:3] for line in refused] == [
        ["cmyk.jpg", "unsupported_color"],
        ["multi_frame.dcm", "multi_frame"],
        ["truncated.png", "truncated_image"],
    ]
    lines = done.out.splitlines()
    assert str(tmp_path / "out" / "contact-sheet.png") in lines
    assert str(tmp_path / "out" / "index.html") in lines
    assert NOTE in lines


def test_at_80_columns_nothing_is_cut(
    render: Render, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "a-name-of-more-than-forty-letters-from-a-ward.png").write_bytes(png())
    (images / "deflated.dcm").write_bytes(deflated_dicom())
    (images / "large.png").write_bytes(png(gray_pixels(1024, 1250)))
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "width", 80)
    done = render(images, "--out", tmp_path / "out")
    plain = "".join(part.partition("m")[2] if i else part for i, part in enumerate(done.out.split("\x1b[")))
    table = [line for line in plain.splitlines() if line[:1] in "┏┃┡│└"]
    assert table
    assert all(len(line) <= 80 for line in table)
    assert "…" not in plain
    assert "1024x1250" in plain
    cells = ["".join(line.split("│")[column].strip() for line in table if line.startswith("│")) for column in (2, 6)]
    assert "a-name-of-more-than-forty-letters-from-a-ward.png" in cells[0]
    assert "dicom_unsupported_transfer_syntax" in cells[1]


@pytest.mark.parametrize("name", ["[red]mark[link=x].png", "line\nbreak.png", "esc\x1b[31m.png", "%s {0} ${x}.png"])
def test_a_name_is_neither_markup_nor_a_second_line(name: str, render: Render, tmp_path: Path) -> None:
    for payload in (png(), b"no image"):
        (tmp_path / name).write_bytes(payload)
        done = render(tmp_path / name, "--out", tmp_path / "out")
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
        assert list(rows_of(done)) == [shown]
        assert "\x1b" not in done.out + done.err
        assert not done.err or f"refused: {shown}: " in done.err


def test_json_is_one_document_and_the_same_as_the_files(render: Render, images: Path, tmp_path: Path) -> None:
    done = render(images, "--out", tmp_path / "out", "--json")
    assert done.code == EXIT_ERROR
    assert len(done.out.splitlines()) == 1
    assert [facts["file"] for facts in done.json] == sorted(path.name for path in images.iterdir())
    assert [facts["accepted"] for facts in done.json] == [True, True, True, False, False, False]
    written = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out").glob("*.json")]
    assert sorted(written, key=lambda facts: facts["file"]) == done.json


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_real_radiographs_of_three_formats(render: Render, tmp_path: Path) -> None:
    write_folder(tmp_path / "set", 6, seed=2)
    done = render(tmp_path / "set", "--out", tmp_path / "out")
    assert done.code == 0
    assert {row[2] for row in rows_of(done).values()} == {"PNG", "JPEG", "DICOM"}
    for picture in (tmp_path / "out").glob("*-network.png"):
        pixels = np.asarray(Image.open(picture))
        assert pixels.shape == (224, 224)
        assert pixels.std() > 20
    assert len(list((tmp_path / "out").iterdir())) == 6 * 4 + 2


@pytest.mark.parametrize(("words", "overviews"), [(("a.png",), 0), (("a.png", "b.jpg"), 2), ((".",), 2), (("a.*",), 0)])
def test_several_files_or_a_folder_have_a_sheet_and_a_page(
    words: tuple[str, ...], overviews: int, render: Render, images: Path, tmp_path: Path
) -> None:
    render(*[images / word for word in words], "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(names & {"contact-sheet.png", "index.html"}) == overviews


def test_a_folder_rendered_into_itself_twice_shows_its_own_files_alone(render: Render, images: Path) -> None:
    first = render(images, "--out", images, "--json").json
    names = {path.name for path in images.iterdir()}
    assert render(images, "--out", images, "--json").json == first
    assert {path.name for path in images.iterdir()} == names


def test_hidden_names_are_printed_nowhere(render: Render, images: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(images.iterdir())):
        path.rename(images / f"Doe_Jane_{number}{path.suffix}")
    for more in ((), ("--json",)):
        done = render(images, "--out", tmp_path / "out", "--hide-names", *more)
        assert "Doe" not in done.out + done.err
    for path in (tmp_path / "out").iterdir():
        assert "Doe" not in path.name
        assert b"Doe" not in path.read_bytes()


@pytest.mark.parametrize(
    ("words", "size", "size_from"),
    [
        ((), [4, 6], "model cxr 20260101T000000Z"),
        (("--model", "champion"), [4, 6], "model cxr 20260101T000000Z"),
        (("--size", "20x30"), [20, 30], "--size"),
    ],
)
def test_the_size_is_that_of_model_or_option(
    words: tuple[str, ...], size: list[int], size_from: str, render: Render, images: Path, tmp_path: Path
) -> None:
    add_champion(tmp_path / "home")
    [facts] = render(images / "a.png", "--out", tmp_path / "out", "--json", *words).json
    assert (facts["network_size"], facts["network_size_from"]) == (size, size_from)
    assert [facts["network"]["height"], facts["network"]["width"]] == size


def test_settings_are_those_of_the_stream(
    render: Render, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XRAY_SCORE__MAX_PAYLOAD_BYTES", "2000")
    done = render(images / "c.dcm", "--out", tmp_path / "out", "--json")
    [facts] = done.json
    assert (done.code, facts["reason"]) == (EXIT_ERROR, "payload_too_large")
    [limit] = facts["beyond_settings"]
    assert limit["setting"] == "XRAY_SCORE__MAX_PAYLOAD_BYTES"
    assert (limit["most"], limit["found"]) == (2000, len(dicom()))
    assert facts["network"] is not None


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["224", "0x224", "224x0", "9999x9999", "224x224x3", "-1x5", "axb", "224 x 224"])
def test_what_is_no_size_is_wrong_usage(text: str, render: Render, images: Path, tmp_path: Path) -> None:
    done = render(images, "--out", tmp_path / "out", f"--size={text}")
    assert (done.code, done.out) == (EXIT_USAGE, "")
    assert "224x224" in done.err
    assert not (tmp_path / "out").exists()


def test_size_and_model_exclude_each_other(render: Render, images: Path, tmp_path: Path) -> None:
    done = render(images, "--out", tmp_path / "out", "--size", "224x224", "--model", "champion")
    assert done.code == EXIT_USAGE
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["empty", "gone.png", "empty/*.dcm"])
def test_where_there_is_no_image_nothing_is_written(what: str, render: Render, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = render(tmp_path / what, "--out", tmp_path / "out")
    assert (done.code, done.out) == (EXIT_ERROR, "")
    assert done.err.startswith("error: ")
    assert what in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(render: Render, images: Path, tmp_path: Path) -> None:
    """Below a file no folder can be made, whoever asks; permissions would not stop root."""
    (tmp_path / "file").touch()
    done = render(images, "--out", tmp_path / "file" / "out")
    assert (done.code, done.out) == (EXIT_USAGE, "")
    assert done.err.startswith("error: cannot write to ")
    assert len(done.err.splitlines()) == 1
    assert "--out" in done.err


@pytest.mark.parametrize("name", ["index.html", "contact-sheet.png"])
def test_somebody_elses_page_stays(name: str, render: Render, images: Path) -> None:
    (images / name).write_bytes(png())
    done = render(images, "--out", images)
    assert done.code == EXIT_USAGE
    assert name in done.err
    assert (images / name).read_bytes() == png()
    assert not list(images.glob("*-network.png"))


def test_spark_is_not_imported(tmp_path: Path) -> None:
    """In a process of its own: this one has Spark already."""
    (tmp_path / "a.png").write_bytes(png())
    add_champion(tmp_path / "home")
    code = (
        "import os, sys; from xray.__main__ import run; "
        "sys.argv = ['xray', 'render', 'a.png', '--out', 'out', '--model', 'champion']; code = run(); "
        "sys.exit(code or int(any(name in sys.modules for name in ('pyspark', 'openvino', 'pandas'))))"
    )
    environment = {"XRAY_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes it" in done.stdout
