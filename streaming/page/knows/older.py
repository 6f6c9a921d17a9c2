"""Outcomes that the page's memory has let go, by their event ids, from the archive's tables.

A link that somebody kept still opens, and a finding can be entered after a break in which thousands of images came.
"""

import logging
import re
import threading
from collections import OrderedDict

import pyarrow.compute as pc

from streaming.account.archived import DEAD_LETTERS, PREDICTIONS
from streaming.lookup.outcome import FindBand, Outcome
from streaming.lookup.rows import find_rows, read_outcome

log = logging.getLogger(__name__)

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
            None where the tables do not have it, or not yet; see `streaming.lookup.rows.read_outcome`.

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
        for name in (PREDICTIONS, DEAD_LETTERS):
            found = find_rows(f"{self._folder}/{name}", pc.field("event_id") == event_id)
            if found is None or not found.rows:
                continue
            try:
                return read_outcome(name, found.rows[0], self._find_band)
            except (KeyError, TypeError, AttributeError) as exc:
                log.info("the row of %s lacks what the page shows: %s", event_id, exc)
                return None
        return None
