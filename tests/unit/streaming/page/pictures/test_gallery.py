"""The gallery on a real model and real processes; a fake stands in for Kafka."""

import hashlib
import io
import math
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import SettingsError
from schemas.modelcard import hash_model_folder, read_card
from sparkdl.engine.neighbours import choose_vectors, write_vectors
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.row import array_from_row
from sparkdl.image.viewer import View
from sparkdl.transformers.savedstages import read_head, read_network
from streaming.kafka.places import Place
from streaming.page.pictures import gallery as module
from streaming.page.pictures.gallery import Gallery
from streaming.page.pictures.imagereader import ImageRecord
from streaming.page.pictures.picture import PictureError, PictureGone, PictureUnreadable
from streaming.page.pictures.worker import Turn
from streaming.settings import StreamSettings, load_settings
from tests.convmodel import HEIGHT, MAP, WIDTH, add_conv_model
from tests.testimages import dicom, gray_pixels, png, twelve_bit_pixels
from training.model.decision import Decision
from training.model.novelty import fit_detector

IMAGES = [png(gray_pixels(300, 400)), dicom(twelve_bit_pixels(), WindowCenter=2000, WindowWidth=1800), png()[:-20]]
GOOD, DEEP, BROKEN, GONE = (Place(0, offset) for offset in range(4))


class FakeReader:
    """In place of Kafka: the records of a list, and how often each was read."""

    def __init__(self, *_: object) -> None:
        self.reads: list[Place] = []
        self.burned_in = False

    def read(self, place: Place, *, sha256: str = "") -> ImageRecord:
        self.reads.append(place)
        if place.offset >= len(IMAGES):
            msg = "its retention has passed"
            raise PictureGone(msg)
        payload = IMAGES[place.offset]
        return ImageRecord(payload, hashlib.sha256(payload).hexdigest(), self.burned_in)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Scored:
    model: str
    probability: float | None


def sha(place: Place) -> str:
    return hashlib.sha256(IMAGES[place.offset]).hexdigest()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> StreamSettings:
    home = tmp_path_factory.mktemp("home")
    features = np.random.default_rng(0).random((40, 24)).astype(np.float32)
    detector = fit_detector(features, [f"p{n}" for n in range(40)])
    add_conv_model(home, "flat", ending="flat")
    add_conv_model(home, "three", n_classes=3)
    add_conv_model(home, "novel", decision=Decision(detector=detector))
    add_conv_model(home, "plain")
    return load_settings({}, home=home)


@pytest.fixture(scope="module")
def processes(settings: StreamSettings) -> Iterator[Gallery]:
    """One gallery for all tests: starting its processes takes seconds."""
    gallery = Gallery(settings)
    yield gallery
    gallery.close()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> FakeReader:
    fake = FakeReader()
    monkeypatch.setattr(module, "ImageReader", lambda kafka: fake)
    return fake


@pytest.fixture
def gallery(settings: StreamSettings, processes: Gallery, reader: FakeReader) -> Gallery:
    """A gallery that has shown nothing yet."""
    fresh = Gallery(settings)
    fresh._maker, fresh._explainer = processes._maker, processes._explainer
    return fresh


def features_of(settings: StreamSettings, version: str, place: Place) -> np.ndarray:
    """What the stream computes."""
    network = read_network(settings.models_folder / version)
    row = decode_image(IMAGES[place.offset], origin="x", size=(HEIGHT, WIDTH)).image
    return OpenVinoEngine(network).infer(array_from_row(row))


def published(settings: StreamSettings, version: str, place: Place) -> float:
    """The probability that the stream publishes."""
    weights, intercept = read_head(settings.models_folder / version).logit_of(1)
    return 1 / (1 + math.exp(-(features_of(settings, version, place).astype(float) @ weights + intercept)))


def test_a_thumbnail_is_made_once(gallery: Gallery, reader: FakeReader) -> None:
    first = gallery.thumbnail(GOOD)
    assert (first.height, first.width, first.media_type) == (192, 256, "image/webp")
    assert gallery.thumbnail(GOOD, sha256=sha(GOOD)) == first
    assert reader.reads == [GOOD]
    assert len(first.content) < 6000


def test_a_full_view_keeps_the_bits(gallery: Gallery, reader: FakeReader) -> None:
    view = gallery.full(DEEP)
    assert (view.bits, view.media_type) == (16, "image/png")
    smallest = int(twelve_bit_pixels().min())  # counted from there
    assert (view.low, view.high) == pytest.approx((1100 - smallest, 2899 - smallest), abs=1)
    assert gallery.full(DEEP, sha256=sha(DEEP)) == view
    assert reader.reads == [DEEP]


def test_what_cannot_be_shown_says_why_in_words(gallery: Gallery) -> None:
    for ask in (gallery.thumbnail, gallery.full, gallery.steps):
        with pytest.raises(PictureUnreadable, match=r"truncated_image|corrupt_image"):
            ask(BROKEN)
        with pytest.raises(PictureGone, match="retention"):
            ask(GONE)
    assert gallery.thumbnail(GOOD).width == 256  # and the next one is made


def test_an_image_that_ends_its_process_ends_only_one(gallery: Gallery) -> None:
    asked = []

    def crash(payload: bytes, limits: DecodeLimits) -> View:
        """In place of a decoder that a file crashes."""
        asked.append(payload)
        raise PictureUnreadable("it ended the process that decoded it")

    turn = Turn(threading.Lock(), lambda function, *args: function(*args))
    record = ImageRecord(IMAGES[0], sha(GOOD), burned_in=False)
    for _ in range(3):
        with pytest.raises(PictureUnreadable, match="ended the process"):
            gallery._make(turn, crash, record)
    assert len(asked) == 1


def test_steps_tell_what_decided(gallery: Gallery, reader: FakeReader) -> None:
    steps = gallery.steps(DEEP)
    assert gallery.steps(DEEP, sha256=sha(DEEP)) == steps
    assert reader.reads == [DEEP]
    assert [step.name for step in steps] == ["decode", "voi", "resize"]
    assert "WindowCenter 2000" in steps[1].detail
    assert (steps[-1].picture.height, steps[-1].picture.width) == (HEIGHT, WIDTH)


def test_the_map_adds_up_to_the_published_logit(gallery: Gallery, settings: StreamSettings, reader: FakeReader) -> None:
    probability = published(settings, "plain", GOOD)
    found = gallery.explain(GOOD, Scored("plain", probability))
    assert found.why_none == ""
    assert found.map is not None
    assert found.map.shape == MAP
    assert found.map.mean() + found.intercept == pytest.approx(found.logit_from_map, abs=1e-5)
    assert found.logit_published == pytest.approx(math.log(probability / (1 - probability)))
    assert abs(found.difference) < 1e-4
    assert found.precision == "fp32"
    row, column = np.unravel_index(found.map.argmax(), MAP)
    assert found.peak == ((row + 0.5) / MAP[0], (column + 0.5) / MAP[1])
    assert found.picture is not None
    painted = np.asarray(Image.open(io.BytesIO(found.picture.content)))
    assert painted.shape == (MAP[0] * 32, MAP[1] * 32, 4)
    local = found.map + found.intercept
    strongest = np.unravel_index(np.abs(local).argmax(), MAP)
    red, _, blue, alpha = painted[strongest[0] * 32 + 16, strongest[1] * 32 + 16]
    assert alpha > 140
    assert (red > blue) == (local[strongest] > 0)
    gallery.explain(GOOD, Scored("plain", probability), sha256=sha(GOOD))
    assert reader.reads == [GOOD]


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("flat", "not the means of its last map"),
        ("three", "tells 3 classes apart"),
        ("19990101T000000Z", "there is no model 19990101T000000Z"),
    ],
)
def test_other_models_say_why_there_is_no_map(gallery: Gallery, version: str, why: str) -> None:
    found = gallery.explain(GOOD, Scored(version, 0.5))
    assert found.map is None
    assert found.picture is None
    assert why in found.why_none


def test_a_model_that_the_settings_name_may_lie_anywhere(
    settings: StreamSettings, gallery: Gallery, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(settings.models_folder / "plain", tmp_path / "model of the week")
    gallery._settings = settings.model_copy(update={"model": elsewhere})
    assert gallery.explain(GOOD, Scored("plain", 0.5)).why_none == ""
    assert gallery._find_model("") == (elsewhere, "plain")
    assert gallery._find_model("novel") == (settings.models_folder / "novel", "novel")


def test_novelty_is_the_distance_that_the_stream_judges_by(gallery: Gallery, settings: StreamSettings) -> None:
    assert gallery.novelty(GOOD, model="plain") is None
    found = gallery.novelty(GOOD, model="novel")
    assert found is not None
    card = read_card(settings.models_folder / "novel")
    assert card.novelty is not None
    assert found.limit == pytest.approx(card.novelty.threshold)
    assert 0 <= found.distance <= 2


def test_the_nearest_training_images_have_pictures(gallery: Gallery, settings: StreamSettings, tmp_path: Path) -> None:
    before = hash_model_folder(settings.models_folder / "plain")
    own = features_of(settings, "plain", GOOD)
    rng = np.random.default_rng(0)
    features = np.stack([own + rng.normal(0, 0.02 * n, own.shape).astype(np.float32) for n in range(12)])
    files = []
    for n in range(12):
        path = tmp_path / "data" / ("normal" if n % 2 else "ill") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(gray_pixels(100 + n, 50)))
        files.append(str(path))
    labels = ["normal" if n % 2 else "ill" for n in range(12)]
    write_vectors(settings.reports_folder / "plain", choose_vectors(features, files, labels))

    found = gallery.neighbours(GOOD, 4)

    assert (found[0].file, found[0].label) == ("ill/0.png", "ill")
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert len(found) == 4
    assert gallery.training_thumbnail("ill/0.png").height == 100
    (tmp_path / "data" / "ill" / "2.png").unlink()
    with pytest.raises(PictureUnreadable, match="cannot be read any more"):
        gallery.training_thumbnail("ill/2.png")
    for name in ("../../../etc/passwd", "/etc/passwd", "ill/none.png"):
        with pytest.raises(PictureError, match="learned from no image of this name"):
            gallery.training_thumbnail(name)
    assert hash_model_folder(settings.models_folder / "plain") == before


def test_a_model_without_vectors_says_so(gallery: Gallery) -> None:
    with pytest.raises(PictureError, match="no training vectors lie beside the report of model novel"):
        gallery.neighbours(GOOD, model="novel")


def test_thumbnails_are_kept_past_retention_unless_text_is_burned_in(
    settings: StreamSettings, reader: FakeReader, tmp_path: Path
) -> None:
    first = Gallery(settings, thumbnails=tmp_path / "kept")
    shown = first.thumbnail(GOOD)
    reader.burned_in = True
    first.thumbnail(DEEP)
    first.close()
    assert [path.stem for path in (tmp_path / "kept").iterdir()] == [sha(GOOD)]
    second = Gallery(settings, thumbnails=tmp_path / "kept")
    assert second.thumbnail(GONE, sha256=sha(GOOD)) == shown
    second.close()


def test_a_folder_that_cannot_be_used_is_told_at_the_start(settings: StreamSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--thumbnails: cannot use"):
        Gallery(settings, thumbnails=tmp_path / "file")
