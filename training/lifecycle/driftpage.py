"""Drift as tables and as files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.envelope import DISCLAIMER
from training.lifecycle.drift import PSI_LIMIT, RULE, Drift
from training.report.tables import draw_table

JSON_NAME, MARKDOWN_NAME = "drift.json", "drift.md"


# --- the page ---------------------------------------------------------------------------------------------------------


def list_figures(drift: Drift) -> list[tuple[str, str, str]]:
    """Give rows to show: what, how much, and what to read it by."""
    rows = []
    if (scores := drift.scores) is not None:
        counts = f"{scores.n_recent} images, {scores.n_reference} before"
        rows += [
            ("scores, PSI", f"{scores.psi:.3f}", f"0.1 some, {PSI_LIMIT:g} a major change; {counts}"),
            ("scores, Kolmogorov-Smirnov", f"{scores.ks:.3f}", f"p {scores.p_value:.3g}"),
        ]
    if (vectors := drift.vectors) is not None:
        counts = f"{vectors.n_recent} images, {vectors.n_reference} before"
        rows.append(("vectors, energy", f"{vectors.energy:.4f}", f"p {vectors.p_value:.3f}; {counts}"))
        rows += [
            (f"feature {index}", f"{shift:+.2f}", "mean, in standard deviations") for index, shift in vectors.largest
        ]
    return rows


def write_drift(folder: Path, drift: Drift) -> None:
    """Write ``drift.json`` and ``drift.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.dumps(_finite(drift.to_dict()), indent=2, allow_nan=False)
    (folder / JSON_NAME).write_text(stored + "\n", encoding="utf-8")
    lines = [
        "# Drift",
        f"**{DISCLAIMER}**",
        f"**{drift.verdict[0].upper()}{drift.verdict[1:]}.**",
        *(f"- {reason}" for reason in drift.reasons),
        f"Compared: {drift.recent} with {drift.reference}.",
        draw_table(("what", "how much", "read it by"), list_figures(drift), numbers=(False, True, False)),
        f"The rule: {RULE}.",
    ]
    (folder / MARKDOWN_NAME).write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """Turn what is no number into null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
