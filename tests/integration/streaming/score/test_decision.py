"""A model that does not decide on everything, served by the real stream."""

import io
import json
import shutil
from dataclasses import astuple, dataclass, replace
from datetime import date
from pathlib import Path

import jsonschema
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import SparkSession
from pyspark.sql.types import BooleanType, DoubleType, StructField, StructType

from schemas.deltatable import append_rows, arrow_schema, create_table
from schemas.documents import load_schema, load_tables
from schemas.errors import ModelLoadError
from schemas.modelcard import NOVELTY_FILE, AbstainBand, Flag, ModelCard, Novelty, hash_model_folder, write_card
from sparkdl.engine.cache import start_engine
from sparkdl.image.decode import decode_image
from sparkdl.image.row import IMAGE_DDL, array_from_row
from sparkdl.transformers.featurizer import NOVEL_COLUMN
from streaming.account.audit import audit_stream
from streaming.run.models import check_card, load_model
from streaming.run.service import run_stream
from streaming.score.decision import add_decision
from streaming.score.query import featurizer_of
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import Record
from tests.integration.streams import drain, outcomes, publish, read_samples, running, wait_for_count
from tests.paths import CONTRACTS
from training.figures.bootstrap import gather_outcomes
from training.model.classifier import Head
from training.model.decision import fit_decision, store_decision
from xray.phantom import FINDINGS, generate_radiograph

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]

_TABLES = CONTRACTS / "tables_v1.json"
_N_PATIENTS = 24


@dataclass(frozen=True)
class Images:
    """Encoded images by what is to be said of them, and the model that says it."""

    trained: Trained
    clear: dict[str, bytes]
    near: bytes
    photo: bytes

    @property
    def all(self) -> dict[str, bytes]:
        return {**self.clear, "near": self.near, "photo": self.photo}


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def draw_radiograph(seed: int, finding: str) -> bytes:
    return encode(generate_radiograph(seed, finding=finding, height=320, width=288).pixels)


def draw_photo(seed: int) -> bytes:
    """Sky, meadow and a few coloured things."""
    rng = np.random.default_rng(seed)
    height, width = 240, 320
    y, x = np.mgrid[:height, :width] / height
    horizon = rng.uniform(0.3, 0.7)
    sky = np.stack([90 + 120 * y, 140 + 90 * y, 230 - 20 * y], axis=2)
    meadow = np.stack([60 + 40 * x, 130 + 60 * y, 40 + 20 * x], axis=2)
    pixels = np.where((y > horizon)[..., None], meadow, sky) + rng.normal(0, 8, (height, width, 1))
    for _ in range(6):
        centre, radius = rng.uniform(0.1, 1.2, 2), rng.uniform(0.05, 0.2)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        pixels[inside] = rng.uniform(0, 255, 3)
    return encode(np.clip(pixels, 0, 255).astype(np.uint8))


class Judge:
    """The saved model, applied in this process without Spark."""

    def __init__(self, folder: Path) -> None:
        model = PipelineModel.load(str(folder))
        self.engine = start_engine(featurizer_of(model).network)
        self.head = Head.of(model.stages[-1])

    def features(self, payloads: list[bytes]) -> npt.NDArray[np.float32]:
        size = self.engine.network.input_size
        images = [decode_image(payload, origin="test", size=size).image for payload in payloads]
        return np.stack([self.engine.infer(array_from_row(image)) for image in images])

    def scores(self, payloads: list[bytes]) -> npt.NDArray[np.float64]:
        return self.head.predict(self.features(payloads))[:, 1]


@pytest.fixture(scope="module")
def images(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """A copy of the trained model that abstains and has a detector; images chosen by what it should say of them."""
    judge = Judge(trained.folder)
    drawn = [(seed, place) for seed in range(_N_PATIENTS) for place in range(len(FINDINGS))]
    payloads = [draw_radiograph(1000 + seed, FINDINGS[place]) for seed, place in drawn]
    features, patients = judge.features(payloads), [f"p{seed}" for seed, _ in drawn]
    truth = [trained.card.labels.index(FINDINGS[place]) for _, place in drawn]
    threshold = trained.card.threshold
    known = gather_outcomes(truth, judge.head.predict(features), patients, threshold=threshold)
    decision = fit_decision(known, features, patients, threshold=threshold, abstain_share=0.2, novelty_quantile=0.99)
    assert decision.band is not None

    folder = tmp_path_factory.mktemp("decided") / "model"
    shutil.copytree(trained.folder, folder)
    store_decision(folder, decision)
    card = replace(
        trained.card,
        abstain=decision.abstain,
        novelty=decision.novelty,
        operating_point=trained.card.operating_point + decision.describe(),
        sha256=hash_model_folder(folder),
    )
    write_card(folder, card)

    assert decision.detector is not None
    covered, novel = decision.band.covers(known.probabilities[:, 1]), decision.detector.flags(features)
    decided = ~covered & ~novel
    clear = {label: payloads[_first(decided & (known.labels == place))] for place, label in enumerate(card.labels)}
    # The one that a consumer would take for a finding, were it diagnosed.
    photos = [draw_photo(seed) for seed in range(40)]
    photo = photos[int(judge.scores(photos).argmax())]
    near = payloads[_first(covered & ~novel)]
    return Images(Trained(folder, card, trained.manifest), clear, near, photo)


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])


def events_of(records: list[Record]) -> dict[str, dict[str, object]]:
    return {record.key.decode(): json.loads(record.value) for record in records}


def test_only_what_the_model_knows_is_decided(spark: SparkSession, settings: StreamSettings, images: Images) -> None:
    card = images.trained.card
    publish(settings, {name: (payload, []) for name, payload in images.all.items()})
    publish(settings, {"wrong": (b"no image", [])})
    drain(spark, settings, images.trained)

    first, _ = outcomes(settings)
    events = events_of(first)
    assert {name: event["flags"] for name, event in events.items()} == {
        **{name: [] for name in images.clear},
        "near": [Flag.UNCERTAIN],
        "photo": [Flag.UNLIKE_TRAINING],
    }
    for event in events.values():
        jsonschema.validate(event, load_schema("prediction"))
        assert event["label"] in card.answers
    assert events["photo"]["label"] == "unlike_training"
    # Without the detector it would have been a finding.
    assert events["photo"]["probabilities"][card.positive_label] >= card.threshold  # type: ignore[index]
    assert events["near"]["label"] in card.labels
    assert {events[name]["label"] for name in images.clear} <= set(card.labels)

    shutil.rmtree(settings.checkpoints_folder)
    drain(spark, settings, images.trained, from_beginning=True)
    again, _ = outcomes(settings)
    by_id: dict[str, set[bytes | None]] = {}
    for record in again:
        by_id.setdefault(record.text("ce_id"), set()).add(record.value)
    assert len(again) == 2 * len(first)
    assert len(by_id) == len(first)
    assert all(len(values) == 1 for values in by_id.values())

    account = audit_stream(settings)
    assert account.balanced
    rows = DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table().to_pylist()
    stored = {row["event_id"]: (row["label"], row["flags"]) for row in rows}
    assert stored == {event["event_id"]: (event["label"], event["flags"]) for event in events.values()}


def test_flagged_predictions_are_counted(spark: SparkSession, settings: StreamSettings, images: Images) -> None:
    name = images.trained.card.name
    many = {f"{kind}-{i}": (images.all[kind], []) for kind, n in (("photo", 3), ("near", 2)) for i in range(n)}
    with running(spark, settings, images.trained) as state:
        before = read_samples(wait_for_count(state.metrics_url, 0))
        publish(settings, {**many, **{kind: (payload, []) for kind, payload in images.clear.items()}})
        count = len(many) + len(images.clear)
        samples = read_samples(wait_for_count(state.metrics_url, count))
    flagged = "xray_flagged_predictions_total|flag={}|model=" + name
    # The canary, a ramp of gray, is flagged and not counted.
    assert [before[flagged.format(flag)] for flag in Flag] == [0, 0]
    assert samples[flagged.format("unlike_training")] == 3
    assert samples[flagged.format("uncertain")] == 2
    assert samples[f"xray_predictions_total|label=unlike_training|model={name}"] == 3
    said = [samples[f"xray_predictions_total|label={answer}|model={name}"] for answer in images.trained.card.answers]
    assert sum(said) == count


def test_a_model_that_checks_nothing_flags_nothing(
    spark: SparkSession, settings: StreamSettings, trained: Trained, images: Images
) -> None:
    publish(settings, {"photo": (images.photo, [])})
    drain(spark, settings, trained)
    predictions, _ = outcomes(settings)
    [event] = [json.loads(record.value) for record in predictions]
    assert "flags" not in event
    assert event["label"] == event["positive_label"]
    [row] = DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table().to_pylist()
    assert row["flags"] is None


@pytest.mark.long
def test_tables_of_the_first_version_get_the_new_column(
    spark: SparkSession, settings: StreamSettings, images: Images
) -> None:
    columns = json.loads(_TABLES.read_text())["predictions"]
    first = replace(load_tables()["predictions"], columns=columns)
    table = create_table(f"{settings.tables_folder}/predictions", first, {})
    old = {"event_id": "old", "label": "normal", "date": date(2026, 1, 31)}
    append_rows(table, pa.Table.from_pylist([old], schema=arrow_schema(first)), {})

    for number in range(2):
        publish(settings, {f"photo-{number}": (images.photo, [("ce_id", b"%d" % number), ("ce_source", b"/t")])})
        drain(spark, settings, images.trained)

    opened = DeltaTable(f"{settings.tables_folder}/predictions")
    assert {field.name for field in opened.schema().fields} == set(load_tables()["predictions"].columns)
    rows = opened.to_pyarrow_table().to_pylist()
    assert {row["event_id"]: row["flags"] for row in rows if row["event_id"] == "old"} == {"old": None}
    assert [row["flags"] for row in rows if row["event_id"] != "old"] == [["unlike_training"]] * 2


def test_a_detector_that_does_not_fit_is_refused(
    spark: SparkSession, settings: StreamSettings, images: Images, tmp_path: Path
) -> None:
    card = images.trained.card
    assert card.novelty is not None
    shutil.copytree(images.trained.folder, tmp_path / "other")
    write_card(tmp_path / "other", replace(card, novelty=replace(card.novelty, threshold=2.0)))
    with pytest.raises(ModelLoadError, match=r"has threshold .* the model's card says 2"):
        run_stream(settings, model_folder=tmp_path / "other", spark=spark, available_now=True)

    np.savez(
        tmp_path / "other" / NOVELTY_FILE,
        references=np.ones((3, 4), np.float32),
        threshold=card.novelty.threshold,
        quantile=0.9,
    )
    sealed: ModelCard = replace(card, sha256=hash_model_folder(tmp_path / "other"))
    write_card(tmp_path / "other", sealed)
    check_card(tmp_path / "other")
    with pytest.raises(ModelLoadError, match="the detector is for 4 features, the network has 1280"):
        load_model(tmp_path / "other")


def test_the_band_is_closed_below_and_open_above_and_novelty_comes_first(spark: SparkSession, trained: Trained) -> None:
    negative, positive = trained.card.labels
    card = replace(trained.card, threshold=0.5, abstain=AbstainBand(0.4, 0.6), novelty=Novelty(0.3, 0.99))
    wanted = {
        (0.39, False): (negative, []),
        (0.4, False): (negative, ["uncertain"]),
        (0.5, False): (positive, ["uncertain"]),
        (0.6, False): (positive, []),
        (0.5, True): ("unlike_training", ["unlike_training"]),
        (0.9, True): ("unlike_training", ["unlike_training"]),
    }
    rows = [(Vectors.dense(1 - score, score), score, novel) for score, novel in wanted]
    schema = StructType(
        [
            StructField("probability", VectorUDT()),
            StructField("given", DoubleType()),
            StructField(NOVEL_COLUMN, BooleanType()),
        ]
    )
    found = add_decision(spark.createDataFrame(rows, schema), card).collect()
    assert {(row["given"], row["novel"]): (row["label_name"], row["flags"]) for row in found} == wanted


def test_a_detector_leaves_the_features_as_they_are(spark: SparkSession, images: Images, trained: Trained) -> None:
    rows = [(name, astuple(decode_image(payload, origin=name).image)) for name, payload in images.all.items()]
    frame = spark.createDataFrame(rows, f"name string, image struct<{IMAGE_DDL}>")
    gated, plain = featurizer_of(load_model(images.trained.folder)), featurizer_of(load_model(trained.folder))
    column = plain.getOutputCol()
    found = {row["name"]: row for row in gated.transform(frame).collect()}
    assert {row["name"]: row[column] for row in plain.transform(frame).collect()} == {
        name: row[column] for name, row in found.items()
    }
    assert {name for name, row in found.items() if row["novel"]} == {"photo"}
    assert "novel" not in plain.transform(frame).columns
