"""A state folder as a stream leaves it: a promoted model with a network of three features, and tables of its work."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import promote
from sparkdl.image.limits import RENDERING_VERSION
from tests.paths import FIRST_RELEASE
from training.model.decision import Decision, store_decision

LABELS = ("normal", "ill")
FIRST_DAY = date(2026, 1, 5)

_MODEL = FIRST_RELEASE
NO_CARD = ModelCard(
    name="cxr",
    version="",
    labels=LABELS,
    positive_label=LABELS[-1],
    threshold=0.5,
    operating_point="probability of ill at least 0.5, not tuned",
    network="EfficientNetLite0",
    precision="fp32",
    rendering_version=RENDERING_VERSION,
    sha256="",
    created_at="2026-01-01T00:00:00+00:00",
    metrics={"accuracy": 0.5},
)


@dataclass(frozen=True, eq=False)
class Scored:
    """Images that were scored, and what was really on them."""

    digests: tuple[str, ...]
    labels: tuple[str, ...]
    patients: tuple[str, ...]
    features: np.ndarray

    def write_csv(self, path: Path, **columns: Sequence[str]) -> Path:
        """Write the labels as a file for `xray label`."""
        table = {"sha256": self.digests, "label": self.labels, "patient_id": self.patients, **columns}
        lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def add_champion(
    home: Path,
    version: str = "20260101T000000Z",
    *,
    decision: Decision | None = None,
    rendering: int = RENDERING_VERSION,
) -> ModelCard:
    """Put the fixture's model into XRAY_HOME and promote it."""
    folder = home / "models" / version
    shutil.copytree(_MODEL, folder)
    decision = decision or Decision()
    store_decision(folder, decision)
    card = replace(
        NO_CARD,
        version=version,
        rendering_version=rendering,
        sha256=hash_model_folder(folder),
        abstain=decision.abstain,
        novelty=decision.novelty,
    )
    write_card(folder, card)
    promote(home / "models", version)
    return card


def score_images(
    home: Path,
    card: ModelCard,
    n_images: int,
    *,
    seed: int = 0,
    n_features: int = 3,
    shift: float = 0.0,
    days: int = 1,
    first_day: date = FIRST_DAY,
    sources: Sequence[str | None] = ("ward 1", "ward 2"),
    images_per_patient: int = 2,
) -> Scored:
    """Write features and predictions of made-up images; the second feature tells what is on them."""
    rng = np.random.default_rng(seed)
    ill = rng.integers(0, 2, (n_images + 1) // images_per_patient + 1).repeat(images_per_patient)[:n_images]
    features = rng.standard_normal((n_images, n_features)).astype(np.float32) + np.float32(shift)
    features[:, 1] += 2 * ill
    digests = [hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(n_images)]
    dates = [first_day + timedelta(days=number * days // n_images) for number in range(n_images)]
    offsets = pa.array(np.arange(n_images + 1, dtype=np.int32) * n_features)
    score = 1 / (1 + np.exp(1 - features[:, 1].astype(np.float64)))
    common = {
        "event_id": [digest[:32] for digest in digests],
        "source": pa.array([sources[number % len(sources)] for number in range(n_images)], pa.string()),
        "id": [f"image {seed} {number}" for number in range(n_images)],
        "sha256": digests,
        "model_sha256": [card.sha256] * n_images,
        "rendering_version": pa.array([card.rendering_version] * n_images, pa.int32()),
        "date": dates,
    }
    stored = {
        **common,
        "network": [card.network] * n_images,
        "precision": [card.precision] * n_images,
        "features": pa.ListArray.from_arrays(offsets, pa.array(features.ravel())),
    }
    received = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in dates]
    predictions = {**common, "score": score, "received_at": received}
    for name, columns in (("features", stored), ("predictions", predictions)):
        write_deltalake(str(home / "tables" / name), pa.table(columns), mode="append", partition_by=["date"])
    return Scored(
        tuple(digests),
        tuple(LABELS[value] for value in ill),
        tuple(f"patient {seed} {number // images_per_patient}" for number in range(n_images)),
        features,
    )
