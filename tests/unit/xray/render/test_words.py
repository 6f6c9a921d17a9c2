"""One file in words."""

from collections.abc import Sequence

import pytest

from sparkdl.image.limits import DICOM, JPEG, PNG
from sparkdl.image.steps import Step
from xray.render.plan import RenderPlan
from xray.render.rendering import Picture, Rendering
from xray.render.words import name_format, tell_count, tell_grays, tell_rendering, tell_size, tell_stretch

NOTHING = Rendering("a.png", "a.png-0", "a.png-0", RenderPlan())


def seen(file: tuple[int, int], network: tuple[int, int]) -> Rendering:
    picture = Picture("a-network.png", *network, 1, 0, 255, 100.0, 0.0, 0.0)
    return Rendering("a", "a", "a", RenderPlan(network), PNG, *file, network=picture)


@pytest.mark.parametrize(
    ("file", "network", "told"),
    [
        ((2500, 2000), (224, 224), "25% wider"),
        ((2000, 2500), (224, 224), "25% taller"),
        ((2000, 2000), (224, 224), ""),
        ((2001, 2000), (224, 224), ""),
        ((1000, 2000), (100, 200), ""),
        ((1000, 1000), (100, 200), "100% wider"),
        ((1, 3), (224, 224), "200% taller"),
    ],
)
def test_how_a_picture_is_stretched(file: tuple[int, int], network: tuple[int, int], told: str) -> None:
    rendering = seen(file, network)
    assert tell_stretch(rendering) == told
    assert (told or "in the proportions of the file") in tell_rendering(rendering)


def test_without_a_picture_nothing_is_stretched() -> None:
    assert tell_stretch(NOTHING) == ""


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([], "as stored"),
        ([Step("decode", "48x80"), Step("resize", "48x80 to 224x224")], "as stored"),
        (
            [Step("modality", "value x 2"), Step("voi", "window 40 wide 400", {"WindowCenter": "40"})],
            "window 40 wide 400",
        ),
        (
            [Step("range", "no window: 3 to 90; 1% beyond"), Step("invert", "large is dark")],
            "no window: 3 to 90; large is dark",
        ),
    ],
)
def test_what_decided_the_grays_in_a_few_words(steps: Sequence[Step], told: str) -> None:
    assert tell_grays(steps) == told


def test_small_words() -> None:
    assert [name_format(kind) for kind in (PNG, JPEG, DICOM, None)] == ["PNG", "JPEG", "DICOM", "unknown"]
    assert (tell_size(3, 4), tell_size(None, None)) == ("3x4", "")
    assert (tell_count([NOTHING]), tell_count([NOTHING] * 1200)) == ("1 file, 0 refused", "1,200 files, 0 refused")


def test_a_text_fits_a_page_and_leaves_long_words_whole() -> None:
    step = Step("voi", "word " * 100 + "x" * 150, {f"Keyword{i}": "value" * 5 for i in range(20)})
    rendering = Rendering("a.png", "a.png-0", "a.png-0", RenderPlan(), steps=(step,))
    lines = tell_rendering(rendering).splitlines()
    assert "x" * 150 in " ".join(lines)
    assert all(len(line) <= 100 or "x" * 150 in line for line in lines)
    assert all(f"Keyword{i}=" in "\n".join(lines) for i in range(20))


def test_the_text_says_whether_the_files_name_is_in_it() -> None:
    hidden = Rendering("0" * 32, "0" * 32, "0" * 32, RenderPlan(hide_names=True))
    assert "No text from inside the file is here. Its name is." in " ".join(tell_rendering(NOTHING).split())
    assert "Its name is" not in " ".join(tell_rendering(hidden).split())
