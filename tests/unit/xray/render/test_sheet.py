"""Contact sheets: how many, how large, and that each file is on one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sparkdl.image.limits import MAX_PAYLOAD_BYTES
from tests.testimages import deflated_dicom, gray_pixels, png
from xray.render.files import render_files
from xray.render.folder import OutFolder
from xray.render.plan import RenderPlan
from xray.render.rendering import NOTE, Rendering
from xray.render.sheet import COLUMNS, ROWS, write_sheets


@pytest.fixture
def out(tmp_path: Path) -> OutFolder:
    return OutFolder(tmp_path / "out")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Every text on the sheets, with its place."""
    texts: list[tuple[int, int, str]] = []
    text = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, xy: tuple[float, float], text_: str, *more: object) -> None:
        texts.append((int(xy[0]), int(xy[1]), text_))
        text(self, xy, text_, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts


PLAN = RenderPlan((224, 224), "--size")


def render(payloads: dict[str, bytes], out: OutFolder, plan: RenderPlan = PLAN) -> list[Rendering]:
    for name, payload in payloads.items():
        (out.path.parent / name).write_bytes(payload)
    return render_files([out.path.parent / name for name in payloads], plan, out)


def sheet(out: OutFolder, name: str = "contact-sheet.png") -> np.ndarray:
    return np.asarray(Image.open(out.path / name))


def contains(page: np.ndarray, tile: np.ndarray) -> bool:
    """Whether a picture is somewhere on a page, pixel for pixel."""
    tile = np.stack([tile] * 3, axis=-1) if tile.ndim == 2 else tile
    height, width = tile.shape[:2]
    rows, columns = np.nonzero((page[: 1 - height, : 1 - width] == tile[0, 0]).all(axis=-1))
    return any(np.array_equal(page[y : y + height, x : x + width], tile) for y, x in zip(rows, columns, strict=True))


def test_pictures_are_shown_pixel_for_pixel(out: OutFolder) -> None:
    payloads = {"a.png": png(gray_pixels(300, 200)), "b.png": png(gray_pixels()[::-1]), "c.png": png(gray_pixels().T)}
    renderings = render(payloads, out)
    assert write_sheets(renderings, out) == ["contact-sheet.png"]
    page = sheet(out)
    for rendering in renderings:
        assert rendering.network is not None
        assert contains(page, np.asarray(Image.open(out.path / rendering.network.file)))


@pytest.mark.parametrize("size", [(4, 6), (299, 299), (448, 224), (10, 900)])
def test_a_picture_of_any_size_keeps_its_proportions(size: tuple[int, int], out: OutFolder) -> None:
    pixels = np.full((64, 64, 3), (250, 0, 0), np.uint8)
    pixels[:, :32] = (0, 0, 250)
    write_sheets(render({"a.png": png(pixels)}, out, RenderPlan(size, "--size")), out)
    page = sheet(out)
    found = np.argwhere((page == (250, 0, 0)).all(axis=-1) | (page == (0, 0, 250)).all(axis=-1))
    height, width = found.max(axis=0) - found.min(axis=0) + 1
    assert max(height, width) == pytest.approx(224, abs=2)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05, abs=0.01)


@pytest.mark.parametrize(
    ("count", "sheets"), [(1, 1), (COLUMNS * ROWS, 1), (COLUMNS * ROWS + 1, 2), (3 * COLUMNS * ROWS, 3)]
)
def test_many_files_take_several_sheets(
    count: int, sheets: int, out: OutFolder, written: list[tuple[int, int, str]]
) -> None:
    one = render({"a.png": png()}, out)
    names = write_sheets(one * count, out)
    assert len(names) == len(set(names)) == sheets
    assert sorted(path.name for path in out.path.glob("contact-sheet*")) == sorted(names)
    numbers = [text.strip() for _, _, text in written if text.strip().isdigit()]
    assert numbers == [str(number) for number in range(1, count + 1)]


def test_fewer_files_leave_no_sheet_of_the_run_before(out: OutFolder) -> None:
    one = render({"a.png": png()}, out)
    write_sheets(one * (COLUMNS * ROWS + 1), out)
    write_sheets(one, out)
    assert [path.name for path in out.path.glob("contact-sheet*")] == ["contact-sheet.png"]


def test_names_and_reasons_are_written_and_the_warning(out: OutFolder, written: list[tuple[int, int, str]]) -> None:
    payloads = {"Müller 中.png": png(), "b.dcm": deflated_dicom(), "c.png": b""}
    renderings = render(payloads, out)
    write_sheets(renderings, out)
    texts = [text for _, _, text in written]
    assert "What the network sees: 3 files, 2 refused" in texts
    assert NOTE in texts
    assert any("224x224" in text and "proportions are not kept" in text for text in texts)
    for text in ("Muller ?.png", "b.dcm", "c.png", "empty_payload", "67% taller than in the file"):
        assert text in texts
    assert "dicom_unsupported_transfer_syntax" in "".join(texts)
    assert all(rendering.sha256[:8] in " ".join(texts) for rendering in renderings)


@pytest.mark.parametrize("name", ["W" * 200 + ".png", "a" * 30 + "-AP.png", "[b] \u202e\n" * 20 + ".png"])
def test_nothing_is_written_outside_of_its_box(name: str, out: OutFolder, written: list[tuple[int, int, str]]) -> None:
    write_sheets(render({name: png(), "b.png": b"GIF8", "c.png": png()[:-40]}, out), out)
    texts = [text for _, _, text in written]
    assert any(text.endswith(".png") and "..." in text for text in texts)
    page = sheet(out)
    paper = page[0, 0]
    for left in (32 + 224 + 2, 32 + 2 * 224 + 24 + 2):  # between two boxes
        assert (page[116:, left : left + 20] == paper).all()


def test_a_refused_file_that_is_shown_has_its_reason_on_the_picture(
    out: OutFolder, written: list[tuple[int, int, str]]
) -> None:
    renderings = render({"a.png": png(gray_pixels(300, 300)) + bytes(MAX_PAYLOAD_BYTES)}, out)
    write_sheets(renderings, out)
    [reason] = [(y, text) for _, y, text in written if text == "record_too_large"]
    assert reason[0] > 116 + 180
    assert renderings[0].network is not None
    picture = np.asarray(Image.open(out.path / renderings[0].network.file))
    assert contains(sheet(out), picture[:180])
    assert not contains(sheet(out), picture)
