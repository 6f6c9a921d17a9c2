"""Labels in, a challenger out: through the command line, on tables as a stream leaves them, with Spark's own model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from schemas.modelcard import AbstainBand, hash_model_folder, read_card
from schemas.registry import read_aliases
from streaming.run.models import load_model
from tests.savedmodels import evaluate
from tests.stored import add_champion, score_images
from training.data.labelfile import Confirmation
from training.data.labelstable import record_labels
from training.features.stored import read_stored
from training.figures.bootstrap import Estimate
from training.figures.curves import OperatingPoint
from training.lifecycle.retrain import retrain_model
from training.model.abstain import Abstention
from training.model.classifier import ClassifierSettings, Head
from training.model.decision import Decision
from training.model.novelty import fit_detector
from training.model.regression import fit_regression
from training.report import write_report

pytestmark = [pytest.mark.spark, pytest.mark.delta, pytest.mark.train]

_N_IMAGES = 400


def xray(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"XRAY_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home), "COLUMNS": "160"}
    command = [sys.executable, "-m", "xray", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("n_classes", "settings"),
    [
        (2, ClassifierSettings()),
        (2, ClassifierSettings(reg_param=0.01, max_iter=50)),
        (3, ClassifierSettings()),
        (2, ClassifierSettings(class_weights=True)),
        (3, ClassifierSettings(class_weights=True)),
    ],
)
def test_the_fit_is_sparks(spark: SparkSession, n_classes: int, settings: ClassifierSettings) -> None:
    rng = np.random.default_rng(n_classes)
    labels = np.minimum(rng.integers(0, n_classes + 1, 300), n_classes - 1)  # not as many of each
    features = rng.gamma(1.0, 1.0, (300, 40)).astype(np.float32)
    features[:, :8] += 0.6 * labels[:, None]
    features[:, 0] = 3.0  # one that never changes
    wanted = _fit_in_spark(spark, features, labels, settings)

    found = fit_regression(features, np.arange(300), labels, settings, n_classes)

    assert np.abs(found.coefficients - wanted.coefficients).max() < 1e-9
    assert np.abs(found.intercepts - wanted.intercepts).max() < 1e-9
    assert 0 < (wanted.coefficients != 0).sum() < wanted.coefficients.size


def _fit_in_spark(spark: SparkSession, features: np.ndarray, labels: np.ndarray, settings: ClassifierSettings) -> Head:
    counts = np.bincount(labels)
    weights = len(labels) / (counts.size * counts)
    rows = [
        (float(label), float(weights[label]), Vectors.dense(row.tolist()))
        for label, row in zip(labels, features, strict=True)
    ]
    frame = spark.createDataFrame(rows, ["label", "weight", "features"]).coalesce(1)
    regression = LogisticRegression(
        maxIter=settings.max_iter, regParam=settings.reg_param, elasticNetParam=settings.elastic_net_param
    )
    return Head.of((regression.setWeightCol("weight") if settings.class_weights else regression).fit(frame))


def test_labels_make_a_challenger_that_serves(spark: SparkSession, tmp_path: Path) -> None:
    card = add_champion(tmp_path)
    scored = score_images(tmp_path, card, _N_IMAGES, days=20)
    file = scored.write_csv(tmp_path / "labels.csv")
    assert answer(xray(tmp_path, "label", str(file), "--json"))["added"] == _N_IMAGES
    assert answer(xray(tmp_path, "label", str(file), "--json"))["unchanged"] == _N_IMAGES

    first = answer(xray(tmp_path, "retrain", "--json"))

    assert read_aliases(tmp_path / "models") == {"champion": card.version, "challenger": first["version"]}
    figures = first["comparison"]["all"]["auroc"]
    assert figures["new"] > 0.85
    assert figures["difference"] == pytest.approx(figures["new"] - figures["in_service"])
    assert sorted(first["comparison"]["by_source"]) == ["ward 1", "ward 2"]
    counts = sum(first["n_train"].values()), sum(first["n_held_out"].values())
    assert sum(counts) == _N_IMAGES
    reports = tmp_path / "reports" / first["version"]
    written = {path.name for path in reports.iterdir()}
    assert written == {
        *("report.html", "report.md", "report.json", "training_images.txt", "training_vectors.npz"),
        *("reference.npz", "drift.json", "drift.md", "comparison.json"),
    }
    assert len((reports / "training_images.txt").read_text().split()) == counts[0]

    # The new model is the old featurizer and what was fitted, and the stream can load it.
    folder = tmp_path / "models" / first["version"]
    assert read_card(folder).sha256 == hash_model_folder(folder)
    model = load_model(folder)
    assert len(model.stages) == 2
    old = PipelineModel.load(f"file://{tmp_path / 'models' / card.version}")
    assert model.stages[0].network.sha256 == old.stages[0].network.sha256

    # Promoted, it is compared with the next one on patients that it has not learned from. Same rows, same model.
    answer(xray(tmp_path, "models", "promote", first["version"], "--json"))
    second = answer(xray(tmp_path, "retrain", "--json"))
    again = PipelineModel.load(f"file://{tmp_path / 'models' / second['version']}")
    held_out = sum(second["n_held_out"].values())
    remark = f"(trained on none of these {held_out} images; patients were not compared)"
    assert second["in_service"] == f"{first['version']} {remark}"
    assert second["comparison"]["all"]["auroc"]["difference"] == 0
    assert Head.of(again.stages[1]).coefficients.tobytes() == Head.of(model.stages[1]).coefficients.tobytes()
    assert second["n_held_out"] == first["n_held_out"]


def test_the_new_model_decides_as_the_old_one_does(spark: SparkSession, tmp_path: Path) -> None:
    some = np.random.default_rng(5).standard_normal((60, 3)).astype(np.float32)
    detector = fit_detector(some, [f"p{number}" for number in range(60)], quantile=0.9)
    card = add_champion(tmp_path, decision=Decision(AbstainBand(0.4, 0.6), detector))
    reports = tmp_path / "reports"
    evaluation = evaluate(card)
    nothing = evaluation.internal.figures["accuracy"]
    evaluation = replace(
        evaluation,
        provenance=replace(evaluation.provenance, procedure="calibrated, operating point at sensitivity 0.9"),
        operating_point=OperatingPoint(0.3, 0.9, nothing, nothing),
        abstention=Abstention(Estimate(0.1, 0.05, 0.15), evaluation.internal.figures, evaluation.internal.figures),
    )
    (reports / card.version).mkdir(parents=True)
    write_report(evaluation, reports / card.version)
    scored = score_images(tmp_path, card, _N_IMAGES)
    labels = {
        digest: Confirmation(2, (), label, patient)
        for digest, label, patient in zip(scored.digests, scored.labels, scored.patients, strict=True)
    }
    record_labels(str(tmp_path / "tables"), labels)
    stored = read_stored(str(tmp_path / "tables"), tmp_path / "models", card.version)
    champion = tmp_path / "models" / card.version

    found = retrain_model(stored, champion, card, reports_folder=reports)

    assert read_card(found.folder) == found.card
    assert [one.name for one in found.evaluation.variants] == ["as fitted", "calibrated", "at sensitivity 0.9"]
    assert found.evaluation.provenance.procedure.endswith("calibrated, operating point at sensitivity 0.9")
    assert found.card.threshold != 0.5
    assert found.card.abstain is not None
    assert found.card.abstain.low < found.card.threshold < found.card.abstain.high
    assert found.card.novelty is not None
    assert found.card.novelty.quantile == 0.9
    assert found.evaluation.abstention is not None
    assert found.evaluation.abstention.share.value == pytest.approx(0.1, abs=0.08)
    assert found.evaluation.novelty is not None
    band = found.card.abstain
    for one in found.evaluation.mistakes:
        score = one.probability if one.predicted == "ill" else 1 - one.probability
        assert one.flags in ((), ("uncertain",), ("unlike_training",))
        assert ("uncertain" in one.flags) <= (band.low <= score < band.high)
        assert (one.said == "undecided") == bool(one.flags)
    assert any(one.flags for one in found.evaluation.mistakes)
    # The coefficients that are saved are the calibrated ones.
    saved = Head.of(load_model(found.folder).stages[1]).predict(scored.features)
    assert saved[:, 1].mean() == pytest.approx(np.mean([label == "ill" for label in scored.labels]), abs=0.1)


def test_a_worse_challenger_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    card = add_champion(tmp_path)
    scored = score_images(tmp_path, card, _N_IMAGES)
    answer(xray(tmp_path, "label", str(scored.write_csv(tmp_path / "labels.csv")), "--json"))
    good = answer(xray(tmp_path, "retrain", "--promote", "--json"))
    assert good["promoted"]
    # Of the patients to learn from, every other label is wrong now; of the held-out ones all are as they were.
    trained = set((tmp_path / "reports" / good["version"] / "training_images.txt").read_text().split())
    flipped = {"normal": "ill", "ill": "normal"}
    labels = [
        flipped[one] if digest in trained else one for digest, one in zip(scored.digests, scored.labels, strict=True)
    ]
    wrong = scored.write_csv(tmp_path / "wrong.csv", label=labels)
    assert answer(xray(tmp_path, "label", str(wrong), "--json"))["changed"] == len(trained)

    refused = xray(tmp_path, "retrain", "--promote")

    assert refused.returncode == 1
    assert "refused: worse than the model in service by more than 0.01: AUROC" in " ".join(refused.stderr.split())
    assert read_aliases(tmp_path / "models") == {"champion": good["version"]}
    forced = answer(xray(tmp_path, "retrain", "--promote", "--force", "--json"))
    assert forced["promoted"]
    assert not forced["allowed"]
    assert read_aliases(tmp_path / "models") == {"champion": forced["version"]}
