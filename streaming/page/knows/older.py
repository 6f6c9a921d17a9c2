"""Outcomes that the page's memory has let go, by their event ids, from the archive's tables.

A link that somebody kept still opens, and a finding can be entered after a break in which thousands of images came.
"""

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from schemas import envelope
from schemas.deltatable import failing_as, open_table
from streaming.account.archived import DEAD_LETTERS, PREDICTIONS
from streaming.kafka.places import Origin, Place
from streaming.page.knows.outcome import FindBand, Kind, Outcome, ScoredBy

log = logging.getLogger(__name__)

NO_PLACE = Place(-1, -1)
"""Record of a prediction that was read from its table, which does not note it."""

_ID = re.compile(r"[0-9a-f]{32}")
_KEPT = 256


class OlderOutcomes:
    """Looks outcomes up in the tables; safe between threads, one look-up at a time.

    Parameters
    ----------
    tables_folder : str
        Path or URI.
    find_band : callable
        See `FindBand`.
    """

    def __init__(self, tables_folder: str, find_band: FindBand) -> None:
        self._folder = tables_folder
        self._find_band = find_band
        self._found: OrderedDict[str, Outcome] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, event_id: str) -> Outcome | None:
        """Find an outcome; of a large table that takes a second.

        Returns
        -------
        Outcome or None
            None where the tables do not have it, or not yet. Of a prediction ``record`` is `NO_PLACE`, and
            ``published_at`` is when it was scored.

        Raises
        ------
        TableError
            A table cannot be read.
        """
        if not _ID.fullmatch(event_id):
            return None
        with self._lock:
            if event_id not in self._found:
                if (outcome := self._look_up(event_id)) is None:
                    return None
                self._found[event_id] = outcome
                if len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            return self._found[event_id]

    def _look_up(self, event_id: str) -> Outcome | None:
        try:
            if (row := self._read_row(PREDICTIONS, event_id)) is not None:
                return _to_prediction(row, self._find_band)
            row = self._read_row(DEAD_LETTERS, event_id)
            return None if row is None else _to_dead_letter(row)
        except (KeyError, TypeError, AttributeError) as exc:  # null, or not there, in what an older release wrote
            log.info("the row of %s lacks what the page shows: %s", event_id, exc)
            return None

    def _read_row(self, name: str, event_id: str) -> dict[str, Any] | None:
        place = f"{self._folder}/{name}"
        table = open_table(place)
        if table is None:
            return None
        with failing_as(f"the table {place} cannot be read"):
            dataset = table.to_pyarrow_dataset()
            wanted = pc.field("event_id") == event_id
            # All columns of all days would be read otherwise, of which one row is wanted.
            days = dataset.to_table(columns=["date"], filter=wanted)["date"].to_pylist()
            if not days:
                return None
            row: dict[str, Any] = dataset.to_table(filter=(pc.field("date") == days[0]) & wanted).to_pylist()[0]
            return row


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    origin = Origin(row["input_topic"], Place(row["input_partition"], row["input_offset"]))
    named = row["source"] and row["id"]
    return {
        "event_id": row["event_id"],
        "image_key": envelope.derive_image_event_id(row["source"], row["id"], row["sha256"])
        if named
        else envelope.derive_event_id(str(origin), "image"),
        "topic": origin.topic,
        "topic_id": "",
        "place": origin.place,
        "received_at": _seconds(row["received_at"]),
        "source": row["source"],
        "image_id": row["id"],
        "sha256": row["sha256"],
        "payload_bytes": row["payload_bytes"],
    }


def _to_prediction(row: Mapping[str, Any], find_band: FindBand) -> Outcome:
    probabilities = dict(row["probabilities"])
    captured_at = row["captured_at"]
    model = ScoredBy(
        row["model_name"],
        row["model_version"],
        row["model_sha256"],
        tuple(probabilities),
        row["positive_label"],
        row["threshold"],
        row["operating_point"],
        find_band(row["model_version"], row["model_sha256"]),
    )
    return Outcome(
        Kind.PREDICTION,
        **_common(row),
        record=NO_PLACE,
        scored_at=_seconds(row["scored_at"]),
        published_at=_seconds(row["scored_at"]),
        captured_at=None if captured_at is None else captured_at.isoformat(),
        height=row["height"],
        width=row["width"],
        media_type=row["media_type"],
        decode_s=row["decode_seconds"],
        predict_s=row["predict_seconds"],
        model=model,
        label=row["label"],
        probabilities=tuple(probabilities.values()),
        flags=tuple(row["flags"] or ()),
    )


def _to_dead_letter(row: Mapping[str, Any]) -> Outcome:
    received_at = _seconds(row["received_at"])
    return Outcome(
        Kind.DEAD_LETTER,
        **_common(row),
        record=Place(row["dead_letter_partition"], row["dead_letter_offset"]),
        scored_at=received_at,
        published_at=received_at,
        reason=row["reason"],
        error=row["error_message"],
        error_class=(row["error_class"] or "").rpartition(".")[2],
    )


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
