"""Files to pictures and facts: what the stream would do, and no word about a patient."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.errors import DatasetError, Reason
from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from sparkdl.image.steps import Step
from streaming.score.decoding import DecodePlan, decode_record
from tests.testimages import (
    HEIGHT,
    PATIENT_ID,
    PATIENT_NAME,
    WIDTH,
    dicom,
    good_files,
    gray_pixels,
    png,
    rgb_pixels,
    rotated_jpeg,
    wrong_files,
)
from xray.render import rendering as rendering_module
from xray.render.files import choose_files, render_file, render_files
from xray.render.folder import OutFolder
from xray.render.plan import RenderPlan
from xray.render.rendering import MADE_BY, UNREADABLE, Picture, Rendering
from xray.render.words import tell_outcome

GOOD, WRONG = good_files(), wrong_files()
SIZE = (32, 64)
PLAN = RenderPlan(SIZE, "--size")
ROW = {"topic": "xray.images", "partition": 0, "offset": 1, "headers": None}


@pytest.fixture
def out(tmp_path: Path) -> OutFolder:
    return OutFolder(tmp_path / "out")


def render_bytes(payload: bytes, out: OutFolder, plan: RenderPlan = PLAN, name: str = "scan") -> Rendering:
    path = out.path.parent / name
    path.write_bytes(payload)
    return render_file(path, plan, out)


def facts_of(rendering: Rendering, out: OutFolder) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(out.read(f"{rendering.base}.json"))
    return facts


def text_of(rendering: Rendering, out: OutFolder) -> str:
    """The text, its lines joined."""
    return " ".join(out.read(f"{rendering.base}.txt").decode().split())


def pixels_of(picture: Picture | None, out: OutFolder) -> np.ndarray:
    assert picture is not None
    return np.asarray(Image.open(out.path / picture.file))


def as_the_stream(payload: bytes, plan: RenderPlan) -> Mapping[str, Any]:
    decoding = DecodePlan(
        plan.size,
        plan.limits,
        model_sha256="",
        rendering=plan.rendering_version,
        max_record_bytes=plan.max_message_bytes,
    )
    return decode_record(ROW, payload, decoding)


# --- the same as the stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_network_sees_the_pixels_that_the_stream_gives_it(name: str, out: OutFolder) -> None:
    payload = GOOD[name]
    rendering = render_bytes(payload, out)
    stream = as_the_stream(payload, PLAN)
    assert rendering.refusal is None
    image = stream["image"]
    wanted = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, image.nChannels)
    found = pixels_of(rendering.network, out)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted[..., ::-1])
    assert rendering.media_type == stream["media_type"]
    assert (rendering.height, rendering.width) == (stream["height"], stream["width"])
    assert (rendering.sha256, rendering.payload_bytes) == (stream["sha256"], stream["payload_bytes"])


@pytest.mark.parametrize("name", sorted(n for n, file in WRONG.items() if file.payload is not None))
def test_a_file_is_refused_in_the_words_of_the_streams_dead_letter(name: str, out: OutFolder) -> None:
    payload = WRONG[name].payload
    assert payload is not None
    rendering = render_bytes(payload, out)
    stream = as_the_stream(payload, PLAN)
    facts = facts_of(rendering, out)
    assert {key: facts[key] for key in ("reason", "error_class", "error_message")} == {
        key: stream.get(key) for key in ("reason", "error_class", "error_message")
    }
    assert facts["accepted"] is (stream.get("reason") is None)
    for word in ("reason", "error_message"):
        if stream.get(word):
            assert " ".join(stream[word].split()) in text_of(rendering, out)


def test_an_error_that_nobody_foresaw_says_what_the_stream_says(
    out: OutFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> DecodedImage:
        msg = PATIENT_NAME
        raise ZeroDivisionError(msg)

    for module in ("xray.render.rendering", "streaming.score.decoding"):
        monkeypatch.setattr(f"{module}.decode_image", fail)
    rendering = render_bytes(png(), out)
    stream = as_the_stream(png(), PLAN)
    assert rendering.refusal is not None
    assert rendering.refusal.reason == stream["reason"] == Reason.UNEXPECTED
    assert rendering.refusal.error_class == stream["error_class"]
    assert rendering.refusal.error_message == stream["error_message"]
    assert PATIENT_NAME not in text_of(rendering, out)


@pytest.mark.parametrize("kind", [MemoryError, ImportError])
def test_the_machines_own_faults_are_not_the_files(
    kind: type[Exception], out: OutFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> DecodedImage:
        raise kind

    monkeypatch.setattr(rendering_module, "decode_image", fail)
    with pytest.raises(kind):
        render_bytes(png(), out)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "message_bytes", "reason", "settings"),
    [
        (DecodeLimits(1000), 2000, "payload_too_large", ["XRAY_SCORE__MAX_PAYLOAD_BYTES"]),
        (DecodeLimits(9999, 100), 9999, "too_many_pixels", ["XRAY_SCORE__MAX_PIXELS"]),
        (DecodeLimits(9999), 1000, "record_too_large", ["XRAY_KAFKA__MAX_MESSAGE_BYTES"]),
        (
            DecodeLimits(500, 100),
            1000,
            "record_too_large",
            ["XRAY_KAFKA__MAX_MESSAGE_BYTES", "XRAY_SCORE__MAX_PAYLOAD_BYTES", "XRAY_SCORE__MAX_PIXELS"],
        ),
    ],
)
def test_beyond_a_setting_of_the_stream_it_is_refused_and_shown(
    limits: DecodeLimits, message_bytes: int, reason: str, settings: list[str], out: OutFolder
) -> None:
    plan = replace(PLAN, limits=limits, max_message_bytes=message_bytes)
    payload = png() + bytes(1500 - len(png()))
    rendering = render_bytes(payload, out, plan)
    facts = facts_of(rendering, out)
    assert (facts["accepted"], facts["reason"], facts["with_larger_limits"]) == (False, reason, None)
    assert [limit["setting"] for limit in facts["beyond_settings"]] == settings
    assert all(limit["found"] > limit["most"] for limit in facts["beyond_settings"])
    taken = render_bytes(payload, out, name="taken")
    np.testing.assert_array_equal(pixels_of(rendering.network, out), pixels_of(taken.network, out))
    assert pixels_of(rendering.full, out).shape == (HEIGHT, WIDTH)
    text = text_of(rendering, out)
    assert all(f"{setting} is " in text for setting in settings)
    assert "what the network would see if the stream took it" in text


def test_where_the_file_does_not_tell_how_far_it_goes_the_setting_is_named(out: OutFolder) -> None:
    rendering = render_bytes(WRONG["bomb.png"].payload or b"", out)
    assert facts_of(rendering, out)["beyond_settings"] == []
    assert "XRAY_SCORE__MAX_PIXELS decides that." in text_of(rendering, out)
    assert "decides that" not in text_of(render_bytes(WRONG["cmyk.jpg"].payload or b"", out), out)


@pytest.mark.parametrize("name", ["truncated.png", "cmyk.jpg", "multi_frame.dcm"])
def test_what_larger_limits_would_not_mend_is_told(name: str, out: OutFolder) -> None:
    payload, reason = WRONG[name].payload, WRONG[name].reason
    assert payload is not None
    rendering = render_bytes(payload, out, replace(PLAN, limits=DecodeLimits(max_payload_bytes=10)))
    facts = facts_of(rendering, out)
    assert (facts["reason"], facts["with_larger_limits"]["reason"]) == ("payload_too_large", reason)
    assert (facts["network"], facts["full"]) == (None, None)
    assert f"refuse it all the same, as {reason}" in text_of(rendering, out)


def test_a_file_that_is_too_large_to_be_shown_is_not_read(out: OutFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xray.render.plan.MAX_FILE_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    rendering = render_bytes(png(), out, replace(PLAN, limits=DecodeLimits(max_payload_bytes=50)))
    assert rendering.refusal is not None
    assert rendering.refusal.reason == Reason.PAYLOAD_TOO_LARGE
    assert rendering.refusal.error_message == as_the_stream(png(), rendering.plan)["error_message"]
    assert rendering.sha256 == as_the_stream(png(), PLAN)["sha256"]
    assert (rendering.network, rendering.full) == (None, None)


def test_what_the_stream_takes_is_shown_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xray.render.plan.MAX_FILE_BYTES", 100)
    whatever: dict[str, Any] = {"modalities": None, "for_processing": True}
    limits = DecodeLimits(max_payload_bytes=1000, max_pixels=10**9)
    assert replace(PLAN, limits=limits).showing == replace(limits, **whatever)
    assert replace(PLAN, limits=DecodeLimits(10, 10)).showing == DecodeLimits(max_payload_bytes=100, **whatever)


@pytest.mark.parametrize(
    ("elements", "setting"),
    [
        ({"Modality": "CT"}, "XRAY_SCORE__MODALITIES"),
        ({"Modality": "MG"}, "XRAY_SCORE__MODALITIES"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "XRAY_SCORE__FOR_PROCESSING"),
    ],
)
def test_an_image_that_a_setting_keeps_out_is_shown_with_its_name(
    out: OutFolder, elements: dict[str, str], setting: str
) -> None:
    rendering = render_bytes(dicom(**elements), out)
    assert rendering.refusal is not None
    assert any(setting in said for said in tell_outcome(rendering))
    assert rendering.network is not None


# --- pictures and facts -----------------------------------------------------------------------------------------------


def test_full_size_is_before_the_resize(out: OutFolder) -> None:
    gray = render_bytes(png(), out)
    np.testing.assert_array_equal(pixels_of(gray.full, out), gray_pixels())
    colour = render_bytes(png(rgb_pixels()), out)
    np.testing.assert_array_equal(pixels_of(colour.full, out), rgb_pixels())
    turned = render_bytes(rotated_jpeg(6), out)
    assert pixels_of(turned.full, out).shape == (turned.height, turned.width) == (WIDTH, HEIGHT)


def test_figures_are_those_of_the_picture(out: OutFolder) -> None:
    pixels = np.full((10, 20, 3), 100, np.uint8)
    pixels[:2] = 0
    pixels[2:3] = 255
    pixels[3, :10] = (255, 0, 7)  # neither black nor white
    found = render_bytes(png(pixels), out).full
    assert found is not None
    assert (found.height, found.width, found.channels, found.min, found.max) == (10, 20, 3, 0, 255)
    assert (found.black_share, found.white_share) == (0.2, 0.1)
    assert found.mean == pytest.approx(pixels.mean(), abs=0.01)
    gray = render_bytes(png(pixels[..., 0]), out).full
    assert gray is not None
    assert (gray.channels, gray.black_share, gray.white_share) == (1, 0.2, 0.15)


@pytest.mark.parametrize("name", ["one_gray_16.png", "drawn_in_alpha.png"])
def test_what_is_one_gray_everywhere_has_no_picture(name: str, out: OutFolder) -> None:
    payload = WRONG[name].payload
    assert payload is not None
    rendering = render_bytes(payload, out)
    assert (rendering.network, rendering.full) == (None, None)


def test_what_is_one_gray_to_the_network_alone_is_shown_at_full_size(out: OutFolder) -> None:
    pixels = np.zeros((512, 512), np.uint8)
    pixels[7, 9] = 1
    rendering = render_bytes(png(pixels), out)
    assert rendering.refusal is not None
    assert rendering.refusal.reason == Reason.BLANK_RENDERING
    assert rendering.network is None
    np.testing.assert_array_equal(pixels_of(rendering.full, out), pixels)
    assert (rendering.height, rendering.width) == (512, 512)
    assert "still has more than one gray" in text_of(rendering, out)


def test_steps_and_what_decided_them_are_told(out: OutFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        Step("decode", "48x80, 12 bits", {"BitsStored": "12", "HighBit": "11"}),
        Step("invert", "large values are dark", {"PhotometricInterpretation": "MONOCHROME1"}),
        Step("resize", "48x80 to 32x64"),
    )
    monkeypatch.setattr(
        rendering_module, "decode_image", lambda *args, **more: replace(decode_image(*args, **more), steps=steps)
    )
    rendering = render_bytes(dicom(), out)
    told = facts_of(rendering, out)["steps"]
    assert told[0] == {"name": "decode", "what": "48x80, 12 bits", "decided_by": {"BitsStored": "12", "HighBit": "11"}}
    assert [step["name"] for step in told] == ["decode", "invert", "resize"]
    text = text_of(rendering, out)
    for part in ("1. decode 48x80, 12 bits decided by BitsStored=12, HighBit=11", "2. invert", "3. resize 48x80 to"):
        assert part in text


def test_facts_have_everything_that_a_report_needs(out: OutFolder) -> None:
    rendering = render_bytes(dicom(), out, name="chest.dcm")
    facts = facts_of(rendering, out)
    assert facts["file"] == "chest.dcm"
    assert facts["image_id"] == f"chest.dcm-{rendering.sha256[:16]}"
    assert (facts["media_type"], facts["payload_bytes"]) == ("application/dicom", len(dicom()))
    assert (facts["network_size"], facts["network_size_from"]) == ([32, 64], "--size")
    assert facts["rendering_version"] == RENDERING_VERSION
    assert re.fullmatch("[0-9a-f]{64}", facts["sha256"])
    for part in ("chest.dcm", "application/dicom", f"{len(dicom()):,} bytes", facts["sha256"], "48x80", "32x64"):
        assert part in text_of(rendering, out)
    for picture in (facts["network"], facts["full"]):
        assert (out.path / picture["file"]).is_file()
        assert picture["file"] in text_of(rendering, out)


def test_every_output_has_the_mark(out: OutFolder) -> None:
    for payload in (png(), dicom(), b"nothing"):
        render_bytes(payload, out)
    written = sorted(out.path.iterdir())
    assert len(written) == 2 * 4 + 2
    assert all(MADE_BY.encode() in path.read_bytes()[:1024] for path in written)


# --- patients ---------------------------------------------------------------------------------------------------------


def test_no_text_of_a_dicom_file_gets_out(out: OutFolder) -> None:
    payloads = [payload for name, payload in GOOD.items() if name.endswith(".dcm")]
    payloads += [file.payload for name, file in WRONG.items() if name.endswith(".dcm") and file.payload]
    assert sum(PATIENT_NAME.encode() in payload for payload in payloads) > 20
    for payload in payloads:
        render_bytes(payload, out)
    for path in out.path.iterdir():
        content = path.read_bytes()
        assert PATIENT_NAME.encode() not in content, path
        assert PATIENT_ID.encode() not in content, path


@pytest.mark.parametrize("payload", [png(), b"no image", dicom()], ids=["png", "text", "dicom"])
def test_hidden_names_are_nowhere(payload: bytes, out: OutFolder) -> None:
    rendering = render_bytes(payload, out, replace(PLAN, hide_names=True), name="Doe_Jane.dcm")
    assert rendering.name == rendering.image_id == rendering.base == rendering.sha256[:32]
    for path in out.path.iterdir():
        assert "Doe" not in path.name
        assert b"Doe" not in path.read_bytes()


def test_a_file_that_cannot_be_read_is_told_without_its_folder(out: OutFolder, tmp_path: Path) -> None:
    shown = render_file(tmp_path / "ward" / "gone.png", PLAN, out)
    hidden = render_file(tmp_path / "ward" / "Doe.png", replace(PLAN, hide_names=True), out)
    assert shown.refusal is not None
    assert (shown.refusal.reason, shown.refusal.error_message) == (UNREADABLE, "No such file or directory")
    assert shown.refusal.error_class == "FileNotFoundError"
    facts = facts_of(shown, out)
    assert (facts["file"], facts["sha256"], facts["payload_bytes"]) == ("gone.png", None, None)
    for rendering in (shown, hidden):
        told = out.read(f"{rendering.base}.json") + out.read(f"{rendering.base}.txt")
        assert b"ward" not in told
        assert b"Doe" not in told


# --- many files -------------------------------------------------------------------------------------------------------


def test_one_bad_file_does_not_stop_the_others(out: OutFolder, tmp_path: Path) -> None:
    for name, payload in {"a.png": png(), "b.png": b"", "c.dcm": dicom()}.items():
        (tmp_path / name).write_bytes(payload)
    files = [tmp_path / name for name in ("a.png", "b.png", "gone.png", "c.dcm")]
    done: list[int] = []
    renderings = render_files(files, PLAN, out, done.append)
    reasons = [rendering.refusal and rendering.refusal.reason for rendering in renderings]
    assert reasons == [None, Reason.EMPTY_PAYLOAD, UNREADABLE, None]
    assert done == [1, 2, 3, 4]


def test_files_of_one_name_do_not_meet(out: OutFolder, tmp_path: Path) -> None:
    """The same name in two folders, the same stem with two suffixes, and copies."""
    made = {
        "a/scan.png": png(),
        "b/scan.png": png(rgb_pixels()),
        "a/scan.dcm": dicom(),
        "a/scan.jpg": png(),
        "a/SCAN.png": png(),
        "b/copy/scan.png": png(),
    }
    for name, payload in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(payload)
    renderings = render_files([tmp_path / name for name in made], PLAN, out)
    by_name = dict(zip(made, renderings, strict=True))
    assert by_name["b/copy/scan.png"] == by_name["a/scan.png"]  # a copy of the same name says the same
    bases = [rendering.base.casefold() for name, rendering in by_name.items() if name != "b/copy/scan.png"]
    assert len(set(bases)) == len(bases)
    for rendering in renderings:
        assert facts_of(rendering, out)["file"] == rendering.name
        assert facts_of(rendering, out)["sha256"] == rendering.sha256
        assert pixels_of(rendering.network, out).shape[:2] == SIZE


def test_the_same_file_again_gets_the_same_names(out: OutFolder) -> None:
    first = render_bytes(png(), out)
    assert render_bytes(png(), OutFolder(out.path)) == first
    assert len(list(out.path.iterdir())) == 4
    render_bytes(png(rgb_pixels()), OutFolder(out.path))  # another file under the same name
    assert len(list(out.path.iterdir())) == 8
    assert facts_of(first, out)["sha256"] == first.sha256


@pytest.mark.parametrize(
    "name",
    [
        "two words.png",
        "line\nbreak: 1\x1b[31m.png",
        "[bold]mark[red].png",
        "<script>alert(1)</script>&\"'.png".replace("/", "\u2044"),
        "Müller-中文-\u202eevil.png",
        "..-dots.png",
        "-rf.png",
        "x" * 240 + ".png",
        "é" * 120 + ".png",
        b"not-utf-8-\xff.png".decode("utf-8", "surrogateescape"),
    ],
)
def test_any_name_of_a_file_gives_plain_names_and_one_line(name: str, out: OutFolder) -> None:
    rendering = render_bytes(png(), out, name=name)
    assert rendering.refusal is None
    for path in out.path.iterdir():
        assert re.fullmatch(r"[\w][\w.\-]*", path.name)
        assert len(path.name.encode()) <= 143
    assert rendering.name.isprintable()
    assert len(rendering.name) == len(name)
    text = out.read(f"{rendering.base}.txt").decode()
    assert text.splitlines()[0] == f"What the network sees of {rendering.name}"
    assert facts_of(rendering, out)["file"] == rendering.name


def test_outputs_of_earlier_runs_are_rendered_where_they_are_named_alone(out: OutFolder, tmp_path: Path) -> None:
    rendering = render_bytes(png(), out, name="scan.png")
    mine = out.path / "mine.png"
    mine.write_bytes(png())
    assert len(list(out.path.glob("*.png"))) == 3
    assert choose_files([str(tmp_path)]) == [mine, tmp_path / "scan.png"]
    assert choose_files([f"{out.path}/*.png"]) == [mine]
    assert rendering.network is not None
    own = out.path / rendering.network.file
    assert choose_files([str(own)]) == [own]
    mine.unlink()
    with pytest.raises(DatasetError, match="only outputs of 'xray render'"):
        choose_files([str(out.path)])
