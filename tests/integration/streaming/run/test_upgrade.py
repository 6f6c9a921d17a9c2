"""A model of the release before: it serves as it did, and a new one takes its place in the running stream.

`EXPECTED` are the scores that the release before gave. It had one rendering version, and printed them with this file
put there::

    python -c "from tests.integration.streaming.run import test_upgrade as t; t.print_scores()"
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from PIL import Image
from pydicom.uid import JPEGLosslessSV1
from pyspark.sql import SparkSession

from schemas.modelcard import ModelCard, read_card, write_card
from schemas.registry import promote, rollback
from sparkdl.engine.cache import start_engine
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.image.row import array_from_row
from streaming.account.audit import audit_stream
from streaming.run.service import run_stream
from streaming.settings import StreamSettings
from tests.integration.streams import outcomes, publish, running, wait_for_count, wait_for_sample
from tests.paths import FIRST_RELEASE, FIXTURES
from tests.savedmodels import copy_model
from tests.stored import add_champion
from tests.testimages import (
    dicom,
    encode,
    gdcm_dicom,
    gray_pixels,
    jpeg,
    lookup_table,
    palette_png,
    png,
    rgb_pixels,
    rotated_jpeg,
    twelve_bit_pixels,
)
from training.evidence.served import load_served

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]

EXPECTED = FIXTURES / "scores-version1.json"


def _padded() -> np.ndarray:
    pixels = twelve_bit_pixels()
    pixels[:12] = 0
    return pixels


def _hot() -> np.ndarray:
    pixels = twelve_bit_pixels()
    pixels[0, 0] = 65535
    return pixels


def _turned_png() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return encode(Image.fromarray(gray_pixels()), "PNG", exif=exif)


def files() -> dict[str, bytes]:
    """Images that two versions may render in different ways, and some that they may not."""
    lut = lookup_table([round(4 * value**0.5) for value in range(4096)], first=0, bits=8)
    return {
        "gray.png": png(),
        "gray12.png": png(twelve_bit_pixels()),
        "hot.png": png(_hot()),
        "turned.png": _turned_png(),
        "palette.png": palette_png(),
        "colour.jpg": jpeg(rgb_pixels(400, 300)),
        "turned.jpg": rotated_jpeg(6),
        "range.dcm": dicom(),
        "window.dcm": dicom(WindowCenter=2048, WindowWidth=1500),
        "lut.dcm": dicom(VOILUTSequence=lut),
        "padded.dcm": dicom(_padded(), photometric="MONOCHROME1", PixelPaddingValue=0),
        "lossless.dcm": gdcm_dicom(JPEGLosslessSV1),
    }


def scores(**options: int) -> dict[str, float]:
    """What the first release's model says of each file, without Spark."""
    featurizer, head = load_served(FIRST_RELEASE)
    engine = start_engine(featurizer.network)
    size = featurizer.network.input_size
    found = {}
    for name, payload in files().items():
        pixels = array_from_row(decode_image(payload, origin=name, size=size, **options).image)
        found[name] = float(head.predict(np.asarray(engine.infer(pixels), np.float32)[None])[0, 1])
    return found


def print_scores() -> None:
    print(json.dumps(scores(), indent=1))  # noqa: T201


def name_images(prefix: str, **payloads: bytes) -> dict[str, tuple[bytes, list[tuple[str, bytes]]]]:
    """Messages with ids of their own."""
    names = {f"{prefix}{name}": payload for name, payload in payloads.items()}
    return {name: (payload, [("ce_id", name.encode()), ("ce_source", b"/t")]) for name, payload in names.items()}


@contextmanager
def publishing(settings: StreamSettings) -> Iterator[list[str]]:
    """Publish one image after the other while the body runs; gives their ids."""
    ended, names, failed = threading.Event(), [], []

    def run() -> None:
        try:
            while not ended.wait(0.05):
                [(name, message)] = name_images(f"during-{len(names)}-", png=png()).items()
                publish(settings, {name: message})
                names.append(name)
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield names
    finally:
        ended.set()
        thread.join(60)
    assert not failed, failed


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in told if "old rendering" in text]


def events_of(settings: StreamSettings, prefix: str) -> dict[str, dict[str, Any]]:
    """Predictions of images whose ids begin so, by the rest of the id."""
    predictions, _ = outcomes(settings)
    events = [json.loads(record.value or b"") for record in predictions]
    found = [(event["image"]["id"], event) for event in events if event["image"]["id"].startswith(prefix)]
    assert len(found) == len(dict(found)), "an image has two predictions"
    return {name.removeprefix(prefix): event for name, event in found}


def scores_of(events: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {name: event["probabilities"][event["positive_label"]] for name, event in events.items()}


def add_models(settings: StreamSettings) -> tuple[ModelCard, ModelCard]:
    """The first release's model as that release left it, promoted; and the same network as a model of this release."""
    old = add_champion(settings.home, "20260101T000000Z", rendering=1)
    folder = copy_model(settings.models_folder, settings.models_folder / old.version, "20260201T000000Z")
    new = replace(read_card(folder), rendering_version=RENDERING_VERSION)
    write_card(folder, new)
    return old, new


def test_a_model_of_the_release_before_serves_as_it_did_and_a_new_one_takes_its_place(
    spark: SparkSession, settings: StreamSettings, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = add_models(settings)
    images = files()
    publish(settings, name_images("old-", **images))  # they have waited while the release was installed
    with running(spark, settings, None) as state:
        wait_for_count(state.metrics_url, len(images))
        assert len(warnings_of(caplog)) == 1

        with publishing(settings) as during:
            wait_for_count(state.metrics_url, len(images) + 3)
            promote(settings.models_folder, new.version)
            wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 2)
            behind = len(during)
            wait_for_count(state.metrics_url, len(images) + behind + 3)
        assert len(warnings_of(caplog)) == 1

        publish(settings, name_images("new-", **images))
        wait_for_count(state.metrics_url, 2 * len(images) + len(during))
        rollback(settings.models_folder)
        wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 3)
        publish(settings, name_images("back-", **images))
        wait_for_count(state.metrics_url, 3 * len(images) + len(during))
        assert len(warnings_of(caplog)) == 2
        assert all("xray train" in text for text in warnings_of(caplog))

    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    for prefix in ("old-", "back-"):
        events = events_of(settings, prefix)
        assert scores_of(events) == pytest.approx(expected, abs=1e-6)
        for event in events.values():
            assert (event["model"]["version"], event["model"]["rendering_version"]) == (old.version, 1)
            assert event["remarks"] == ["old_rendering"]
            assert "flags" not in event
    after = events_of(settings, "new-")
    assert scores_of(after) == pytest.approx(scores(rendering=RENDERING_VERSION), abs=1e-6)
    for event in after.values():
        assert (event["model"]["version"], event["model"]["rendering_version"]) == (new.version, RENDERING_VERSION)
        assert "remarks" not in event
    between = events_of(settings, "")
    assert {name for name in between if name.startswith("during-")} == set(during)
    served = {between[name]["model"]["version"]: between[name].get("remarks") for name in during}
    assert served == {old.version: ["old_rendering"], new.version: None}

    assert outcomes(settings)[1] == []
    run_stream(settings, spark=spark, available_now=True)  # what the tables still lack
    account = audit_stream(settings)
    assert account.balanced
    assert (account.total("predicted"), account.total("repeated")) == (3 * len(images) + len(during), 0)
    for table in ("predictions", "features"):
        rows = DeltaTable(f"{settings.tables_folder}/{table}").to_pyarrow_table().to_pylist()
        assert len(rows) == account.total("predicted")
        assert {(row["model_sha256"], row["rendering_version"]) for row in rows} == {
            (old.sha256, 1),
            (new.sha256, RENDERING_VERSION),
        }


def test_what_is_served_is_known_without_spark() -> None:
    """Tells at once whether pixels or numbers have moved where the stream's scores have."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    assert scores(rendering=1) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected.values())) > len(expected) / 2
