"""What a table needs now and then, done by its writer between two appends: nobody has to think of it, and nobody races.

Many small files make every read slow, so they are joined, a date at a time. The log gets a checkpoint and is cleaned up
every hundred commits; once a day files are removed that nothing refers to any more, those of killed writers too.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from deltalake import DeltaTable

from schemas.deltatable import failing_as
from schemas.errors import TableClaimedError, TableError
from streaming.archive.archivetable import open_claimed
from streaming.archive.tables import clean_log, count_small_files, join_files, remove_dead_files
from streaming.settings import ArchiveSettings

log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 100
"""Commits: to open a table reads those since the last checkpoint, 1 to 2 ms each."""
_LOOK_EVERY = 10
_TIDY_S = 3600.0
"""Between two looks at days that are over: what came late left a file or two in each."""
_TIDIED_AT_ONCE = 10
_VACUUM_S = 86_400.0
_AFTER_FAILURE_S = 600.0
_JOINED_AT_ONCE = 10
"""Dates in one turn: appends wait meanwhile."""
_VACUUM = "VACUUM"  # as the log calls it
_LOOKED_BACK = 1000


class Upkeep:
    """The upkeep of one table.

    Parameters
    ----------
    place : str
        Path or URI of the table.
    writer : str
        Who has claimed it.
    archive : ArchiveSettings
        From how many small files on they are joined, and how long replaced files stay.
    note_step : callable
        Called after each step.
    """

    def __init__(
        self, place: str, writer: str, archive: ArchiveSettings, note_step: Callable[[], None] = lambda: None
    ) -> None:
        self._place = place
        self._writer = writer
        self._archive = archive
        self._note_step = note_step
        self._looked_at = self._checkpointed_at = -1
        now = time.monotonic()
        self._tidy_at, self._vacuum_at, self._rests_until = now + _TIDY_S, now + _TIDY_S, 0.0
        self.joined = self.failures = 0

    def turn(self, table: DeltaTable) -> bool:
        """Do what is due.

        Parameters
        ----------
        table : DeltaTable
            As its writer has it.

        Returns
        -------
        bool
            Whether the table has another version now, which its writer has to open. A failure is logged and left to
            a later turn: appends go on without.

        Raises
        ------
        TableClaimedError
            Another writer has claimed it.
        """
        if not self._archive.compact_files or time.monotonic() < self._rests_until:
            return False
        version = int(table.version())
        try:
            return self._do_due(table, version)
        except TableClaimedError:
            raise
        except TableError as exc:
            self.failures += 1
            self._rests_until = time.monotonic() + _AFTER_FAILURE_S
            log.warning("the upkeep of a table failed and is tried again later: %s", exc)
            return True

    def finish(self, table: DeltaTable) -> bool:
        """Do what is due once a day, for a writer that ends before its time comes; see `turn`.

        A run that writes what is there and ends, from a timer, would else leave every replaced file for ever.
        """
        if self._archive.compact_files and _is_day_old(table):
            self._tidy_at = self._vacuum_at = 0.0
        return self.turn(table)

    def _do_due(self, table: DeltaTable, version: int) -> bool:
        if self._checkpointed_at < 0:
            self._checkpointed_at = version // _CHECKPOINT_EVERY
        moved = False
        if version >= self._looked_at + _LOOK_EVERY or self._is_due(self._tidy_at):
            self._looked_at = version
            moved = self._join(table)
        if version // _CHECKPOINT_EVERY > self._checkpointed_at:
            self._checkpointed_at = version // _CHECKPOINT_EVERY
            clean_log(open_claimed(self._place, self._writer))
            self._note_step()
        if self._is_due(self._vacuum_at):
            self._vacuum_at = time.monotonic() + _VACUUM_S
            # What its writer has open may be a week old, where nothing came in: files that others wrote since would
            # count as dead.
            newest = open_claimed(self._place, self._writer)
            dead = remove_dead_files(newest, timedelta(days=self._archive.keep_days))
            log.info("table %s: removed %s files that nothing refers to", self._place, len(dead))
            moved = True
        return moved

    def _join(self, table: DeltaTable) -> bool:
        small = count_small_files(pa.table(table.get_add_actions(flatten=True)))
        chosen = [day for day, count in small.items() if count >= self._archive.compact_files]
        if self._is_due(self._tidy_at):
            self._tidy_at = time.monotonic() + _TIDY_S
            today = datetime.now(UTC).date()
            over = [day for day, count in small.items() if count > 1 and day != today and day not in chosen]
            chosen += over[:_TIDIED_AT_ONCE]
        joined = 0
        for day in chosen[:_JOINED_AT_ONCE]:
            joined += join_files(self._place, "" if day is None else day.isoformat(), writer=self._writer)
            self._note_step()
        self.joined += joined
        return joined > 0

    def _is_due(self, moment: float) -> bool:
        return time.monotonic() >= moment


def _is_day_old(table: DeltaTable) -> bool:
    """Tell whether a table was made, and its dead files were last removed, more than a day ago."""
    with failing_as(f"the table {table.table_uri} cannot be read"):
        made_ms = table.metadata().created_time or 0
        vacuums = [
            entry["timestamp"] for entry in table.history(_LOOKED_BACK) if entry["operation"].startswith(_VACUUM)
        ]
    return bool(time.time() - max([made_ms, *vacuums]) / 1000 > _VACUUM_S)
