"""A folder of models with their reports, as training leaves it: small files in place of networks, figures made up."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from schemas.modelcard import ModelCard, hash_model_folder, read_card, write_card
from sparkdl.image.limits import RENDERING_VERSION
from training.evidence.evaluation import DataSummary, Evaluation, Provenance, SetFigures, Side
from training.evidence.probes import Probe, Verdict
from training.figures.bootstrap import Estimate
from training.figures.compare import Comparison

LABELS = ("normal", "ill")


def add_model(
    home: Path,
    version: str,
    *,
    labels: tuple[str, ...] = LABELS,
    created_at: str = "2026-01-31T12:00:00+00:00",
    rendering: int = RENDERING_VERSION,
) -> ModelCard:
    """Put a model into XRAY_HOME."""
    return add_model_to(home / "models", version, labels=labels, created_at=created_at, rendering=rendering)


def add_model_to(
    models: Path,
    version: str,
    *,
    labels: tuple[str, ...] = LABELS,
    created_at: str = "2026-01-31T12:00:00+00:00",
    rendering: int = RENDERING_VERSION,
) -> ModelCard:
    """Put a model into a folder of models."""
    folder = models / version
    folder.mkdir(parents=True)
    (folder / "weights").write_text(version, encoding="utf-8")
    card = ModelCard(
        name="cxr",
        version=version,
        labels=labels,
        positive_label=labels[-1],
        threshold=0.5,
        operating_point="not tuned",
        network="EfficientNetLite0",
        precision="fp32",
        rendering_version=rendering,
        sha256=hash_model_folder(folder),
        created_at=created_at,
        metrics={"accuracy": 0.5},
    )
    write_card(folder, card)
    return card


def copy_model(models: Path, folder: Path, version: str) -> Path:
    """Copy a model into a folder of models under another version and with a hash of its own."""
    copy = Path(shutil.copytree(folder, models / version))
    (copy / "note").write_text(version, encoding="utf-8")
    write_card(copy, replace(read_card(folder), version=version, sha256=hash_model_folder(copy)))
    return copy


def evaluate(
    card: ModelCard,
    *,
    served: str = "",
    difference: tuple[float, float, float] = (0.0, -0.02, 0.02),
    confounded: bool = False,
) -> Evaluation:
    """Make up what training found out; ``served`` names the model that it was compared with."""
    reasons = ("a thumbnail of 8x8 pixels tells the label [too] well",) if confounded else ()
    counts = dict.fromkeys(card.labels, 24)
    figures = {
        "accuracy": Estimate(0.9, 0.85, 0.95),
        "auroc": Estimate(0.97, 0.94, 0.99),
        "auprc": Estimate(math.nan, math.nan, math.nan, "no image of a class"),
    }
    compared = Comparison(0.97 - difference[0], 0.97, Estimate(*difference), 0.5)
    unlike = Comparison(0.9, 0.9, Estimate(0.0, -0.1, 0.1), 1.0)  # so that nobody can decide by the other figure
    by = "auroc" if len(card.labels) == 2 else "accuracy"
    return Evaluation(
        verdict=Verdict("confounded" if confounded else "ok", reasons),
        provenance=Provenance(
            name=card.name,
            version=card.version,
            sha256=card.sha256,
            network=card.network,
            weights="imagenet",
            weights_sha256="51c0" * 16,
            precision=card.precision,
            rendering_version=RENDERING_VERSION,
            classifier="LogisticRegression(maxIter=10)",
            procedure="paper",
            seed=3,
            code_version="0.1.0",
            data_sha256="07ab" * 16,
            created_at=card.created_at,
            seconds=60.0,
        ),
        data=DataSummary(
            labels=card.labels,
            n_images=160,
            n_patients=80,
            sources=("",),
            label_by_source=((80, 80),),
            patient_ids_known=True,
            failed=(),
            exact_copies=0,
            near_copies=0,
            copies=(),
            copies_across=0,
            split="drawn by patient",
            train=Side(112, 56, counts),
            test=Side(48, 24, counts),
            positive_known_by=f"{card.labels[0]!r} is the negative class",
        ),
        metrics={"accuracy": 0.9, "f1": 0.9, "weightedPrecision": 0.9, "weightedRecall": 0.9},
        internal=SetFigures("held-out patients", "internal", 48, 24, counts, figures),
        confusion=np.array([[20, 4], [1, 23]]),
        roc=None,
        precision_recall=None,
        predictive_values=(),
        others=(SetFigures("/data/elsewhere (2)", "external", 30, 30, counts, {"auroc": Estimate(0.61, 0.5, 0.7)}),),
        by_source=(),
        probes=(Probe("thumbnail", "label", Estimate(0.65, 0.6, 0.7), 64),),
        variants=(),
        in_service={"auroc": unlike, "accuracy": unlike, by: compared} if served else None,
        in_service_name=served,
    )


def add_report(home: Path, evaluation: Evaluation) -> Path:
    """Write a model's report into XRAY_HOME, without drawing it."""
    folder = home / "reports" / evaluation.provenance.version
    folder.mkdir(parents=True)
    for name in ("report.html", "report.md"):
        (folder / name).write_text(evaluation.provenance.version, encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(evaluation.to_dict(), allow_nan=False), encoding="utf-8")
    (folder / "training_images.txt").write_text("digests\n", encoding="utf-8")
    return folder


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Give the report as it is read back."""
    found: dict[str, Any] = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    return found
