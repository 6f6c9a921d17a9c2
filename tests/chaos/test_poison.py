"""Records that cannot be scored: each is one dead letter with its own reason, and the stream does not mind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.oracle import DEAD_LETTER, PREDICTION
from benchmarks.chaos.scene import Scene, Site
from benchmarks.chaos.traffic import formats, message_of, poison, tiny_poison

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.kafka,
    pytest.mark.spark,
    pytest.mark.delta,
    pytest.mark.train,
    pytest.mark.timeout(600),
]

FLOOD = 10_000
LOG_BYTES = 1_000_000

NAMED = {
    "empty": "empty_payload",
    "tombstone": "tombstone",
    "truncated.jpg": "truncated_image",
    "bomb.png": "too_many_pixels",
    "mismatch": "content_type_mismatch",
    "cmyk.jpg": "unsupported_color",
    "animated.png": "multi_frame",
    "report.dcm": "dicom_no_pixel_data",
    "multi_frame.dcm": "multi_frame",
    "deflated.dcm": "dicom_unsupported_transfer_syntax",
    "film.dcm": "dicom_unsupported_transfer_syntax",
    "tomogram.dcm": "dicom_foreign_modality",
    "raw.dcm": "dicom_for_processing",
    "unclear_lut.dcm": "dicom_unsupported_lut",
    "window_elsewhere.dcm": "blank_rendering",
    "drawn_in_alpha.png": "blank_rendering",
    "twelve_bits.jpg": "unsupported_bit_depth",
    "too_large.png": "payload_too_large",
    "header_not_utf8": "invalid_header",
    "header_of_1_MB": "header_too_large",
    "headers_of_72_kB": "headers_too_large",
    # These are read: docs/publishing.md.
    "gray16.png": None,
    "colour16.png": None,
    "gray_as_colour16.png": None,
    "rgba.png": None,
    "gray_alpha.png": None,
    "palette.png": None,
    "monochrome1.dcm": None,
}
"""What every stream of images meets sooner or later, and what must become of it."""


@pytest.fixture(scope="module")
def scene(site: Site, seed: int) -> Iterator[Scene]:
    """A stream with batches of the usual size."""
    scene = Scene(site, "poison", seed=seed, images_per_batch=600)
    yield scene
    scene.close()


def log_bytes(scene: Scene) -> int:
    logs = [*Path(scene.home / "logs").glob("spark*.log"), scene.stderr]
    return sum(path.stat().st_size for path in logs if path.is_file())


def test_every_poison_is_one_dead_letter_with_its_own_reason(short_scene: Scene) -> None:
    scene = short_scene
    stream = scene.ensure_running()
    scene.begin("poison")
    examples = [*poison(), *formats()]
    assert {s.kind: s.reason for s in examples if s.kind in NAMED} == NAMED

    scene.publish_messages(message_of(example, f"poison-{example.kind}") for example in examples)
    assert scene.drain()

    verdict = scene.check()
    assert verdict.troubles == {}, verdict.examples
    assert (verdict.predicted, verdict.dead_lettered) == (len(formats()), len(poison()))
    assert verdict.duplicates_by_kind == {}
    assert (scene.stream, scene.deaths) == (stream, [])
    assert stream.alive


@pytest.mark.long
def test_a_flood_of_bad_records_neither_ends_the_stream_nor_fills_its_log(scene: Scene) -> None:
    stream = scene.ensure_running()
    jvm = stream.jvm_pid()
    before = log_bytes(scene)
    scene.begin("flood")

    scene.publish_messages(tiny_poison(FLOOD, "flood"))
    behind = [message_of(example, f"behind-{example.kind}") for example in formats()]
    scene.publish_messages(iter(behind))
    assert scene.drain()

    verdict = scene.check()
    assert verdict.troubles == {}, verdict.examples
    assert (verdict.predicted, verdict.dead_lettered) == (len(behind), FLOOD)
    assert verdict.duplicates_by_kind == {}
    assert (scene.stream, scene.deaths, stream.jvm_pid()) == (stream, [], jvm)
    assert log_bytes(scene) - before < LOG_BYTES
    outcomes = {(outcome.kind, outcome.place) for outcome in scene.reader.outcomes}
    assert all((DEAD_LETTER if known.reason else PREDICTION, known.place) in outcomes for known in scene.oracle.records)
