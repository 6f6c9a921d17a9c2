"""How right a model was in service: what it said of images whose findings people have confirmed, from the tables."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from schemas.deltatable import failing_as, open_table
from schemas.labels import LABELS_TABLE
from streaming.account.archived import PREDICTIONS

DAYS = 90
MOST_LABELS = 100_000
"""The newest ones; as many rows as are read in about a second."""
_Z = 1.959964
"""Of a 95 % interval."""
_WANTED = ("sha256", "label", "positive_label", "flags", "received_at")


@dataclass(frozen=True)
class Share:
    """How many of some images, with Wilson's 95 % interval.

    Parameters
    ----------
    hits, count : int
        So many of so many.
    value, low, high : float or None
        None of no images.
    """

    hits: int
    count: int
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ServiceFigures:
    """What a model said of images with a confirmed finding.

    Parameters
    ----------
    version : str
        The model.
    labelled : int
        Images that it scored and that have a finding.
    undecided : int
        Of these, flagged ones, on which it did not decide; they are in no other figure.
    agreement, sensitivity, specificity : Share
        Of the decided ones: all; those with the finding; those without.
    days : int
        Images that Kafka received in so many days are looked at.
    """

    version: str
    labelled: int
    undecided: int
    agreement: Share
    sensitivity: Share
    specificity: Share
    days: int = DAYS


class LabelledService:
    """Computes figures from the tables, once for each state of them; safe between threads.

    Parameters
    ----------
    tables_folder : str
        Path or URI.
    """

    def __init__(self, tables_folder: str) -> None:
        self._folder = tables_folder
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], ServiceFigures]] = {}

    def measure(self, version: str) -> ServiceFigures | None:
        """Measure a model; of large tables that takes seconds.

        Returns
        -------
        ServiceFigures or None
            None where there are no confirmed findings or no predictions at all.

        Raises
        ------
        TableError
            A table cannot be read.
        """
        with self._lock:  # of two who ask, one computes
            labels, predictions = (open_table(f"{self._folder}/{name}") for name in (LABELS_TABLE.name, PREDICTIONS))
            if labels is None or predictions is None:
                return None
            state = labels.version(), predictions.version()
            known = self._known.get(version)
            if known is not None and known[0] == state:
                return known[1]
            with failing_as(f"the tables in {self._folder} cannot be read"):
                found = _measure(version, _read_findings(labels), predictions)
            self._known[version] = state, found
            return found


def _read_findings(labels: DeltaTable) -> dict[str, str]:
    rows = labels.to_pyarrow_dataset().to_table(columns=["sha256", "label", "confirmed_at"])
    if len(rows) > MOST_LABELS:
        rows = rows.take(pc.sort_indices(rows, [("confirmed_at", "descending")])[:MOST_LABELS])
    return dict(zip(rows["sha256"].to_pylist(), rows["label"].to_pylist(), strict=True))


def _measure(version: str, findings: Mapping[str, str], predictions: DeltaTable) -> ServiceFigures:
    since = (datetime.now(UTC) - timedelta(days=DAYS)).date()
    # Files that deltalake's own update and delete write have another kind of text, which a bare isin stumbles over.
    is_labelled = pc.field("sha256").cast(pa.string()).isin(pa.array(list(findings), pa.string()))
    wanted = (pc.field("date") >= since) & (pc.field("model_version") == version) & is_labelled
    rows = _select(predictions.to_pyarrow_dataset(), wanted)
    newest: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda one: one["received_at"]):
        newest[row["sha256"]] = row  # an image that was sent again counts once
    decided = {sha256: row for sha256, row in newest.items() if not row["flags"]}
    pairs = [(row["label"], findings[sha256], row["positive_label"]) for sha256, row in decided.items()]
    ill = [said == truth for said, truth, positive in pairs if truth == positive]
    well = [said != positive for said, truth, positive in pairs if truth != positive]
    return ServiceFigures(
        version,
        len(newest),
        len(newest) - len(decided),
        share([said == truth for said, truth, _ in pairs]),
        share(ill),
        share(well),
    )


def _select(dataset: ds.Dataset, wanted: ds.Expression) -> list[dict[str, Any]]:
    return list(dataset.to_table(columns=list(_WANTED), filter=wanted).to_pylist())


def share(hits: Sequence[bool]) -> Share:
    """Count, and give Wilson's interval.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    count, hit = len(hits), sum(hits)
    if not count:
        return Share(0, 0)
    value, square = hit / count, _Z * _Z
    middle = (value + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * math.sqrt(value * (1 - value) / count + square / (4 * count * count))
    return Share(hit, count, value, max(0.0, middle - half), min(1.0, middle + half))
