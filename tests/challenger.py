"""A challenger beside `tests.stored`'s champion: the same network, other numbers on top; and what the champion said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import set_challenger
from training.model.decision import Decision, store_decision

AS_SCORED = (0.0, 1.0, 0.0)
"""With the intercept -1 these coefficients give the scores that `tests.stored.score_images` makes up."""


def add_challenger(
    home: Path,
    champion: ModelCard,
    version: str = "20260201T000000Z",
    *,
    coefficients: tuple[float, ...] = AS_SCORED,
    intercept: float = -1.0,
    threshold: float = 0.5,
    decision: Decision | None = None,
    pooling: str | None = None,
) -> ModelCard:
    """Put a model into XRAY_HOME and make it the challenger; with another pooling its featurizer is another one."""
    folder = home / "models" / version
    shutil.copytree(home / "models" / champion.version, folder)
    decision = decision or Decision()
    store_decision(folder, decision)
    _write_numbers(folder, coefficients, intercept)
    if pooling is not None:
        [path] = folder.glob("stages/0_*/network/network.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "pooling": pooling}), encoding="utf-8")
    card = replace(
        champion,
        version=version,
        sha256=hash_model_folder(folder),
        threshold=threshold,
        abstain=decision.abstain,
        novelty=decision.novelty,
    )
    write_card(folder, card)
    set_challenger(home / "models", version)
    return card


def _write_numbers(folder: Path, coefficients: tuple[float, ...], intercept: float) -> None:
    """Write them as Spark does."""
    [path] = folder.glob("stages/1_*/data/*.parquet")
    old = pq.read_table(path)
    [row] = old.to_pylist()
    row["coefficientMatrix"]["values"], row["interceptVector"]["values"] = list(coefficients), [intercept]
    pq.write_table(pa.Table.from_pylist([row], old.schema), path)


def add_labels_said(home: Path, *, threshold: float = 0.5, unlike: frozenset[str] = frozenset()) -> None:
    """Add to the predictions what the champion said; of some images, by digest, that they are unlike the others."""
    place = str(home / "tables" / "predictions")
    rows = DeltaTable(place).to_pyarrow_table()
    said = np.where(rows["score"].to_numpy() >= threshold, "ill", "normal")
    said = np.where([digest in unlike for digest in rows["sha256"].to_pylist()], "unlike_training", said)
    rows = rows.append_column("label", pa.array(said.tolist()))
    write_deltalake(place, rows, mode="overwrite", schema_mode="overwrite", partition_by=["date"])
