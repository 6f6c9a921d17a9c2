"""Another archive at work on the same tables, where no lock tells of it: in an object store, on NFS.

Who claims tables ends the archive that filled them before. For one that was started by mistake that would be the wrong
way round. So whoever starts looks on for a while first: an archive that works commits at each trigger while outcomes
come. One that has nothing to write is not to be told from one that ended, and is taken over from; it ends at its next
write, and the other one has that outcome too.
"""

import logging
import threading
import time
from collections.abc import Callable

from deltalake import DeltaTable

from schemas.deltatable import failing_as, open_table
from schemas.documents import load_tables
from schemas.errors import TableClaimedError, TableError
from streaming.archive.archivetable import APPENDED_BY, WRITER_PROPERTY
from streaming.retry import Backoff
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_TRIGGERS = 2
_MORE_S = 2.0
"""What a write itself takes, and the reading before it."""
_POLL_S = 1.0


def refuse_rival(settings: StreamSettings, ended: threading.Event, note_step: Callable[[], None]) -> None:
    """Look on for two triggers, and refuse to start where another archive writes meanwhile.

    It returns at once where no archive has ever claimed a table. While the store is away it waits, as the archive does.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    ended : threading.Event
        Ends it early.
    note_step : callable
        Called at each look.

    Raises
    ------
    TableClaimedError
        It names the other one.
    TableError
        The tables could not be read for longer than ``XRAY_RETRY__GIVE_UP_S``.
    """
    backoff = Backoff(settings.retry, healthy_s=0.0)
    while not ended.is_set():
        try:
            _look_on(settings, ended, note_step)
        except TableClaimedError:
            raise
        except TableError as exc:
            wait_s = backoff.note_failure()
            if wait_s is None:
                raise
            log.warning("%s; trying again in %.0f s", exc, wait_s)
            note_step()
            ended.wait(wait_s)
        else:
            return


def _look_on(settings: StreamSettings, ended: threading.Event, note_step: Callable[[], None]) -> None:
    opened = [open_table(f"{settings.tables_folder}/{name}") for name in load_tables()]
    claimed = [(table, writer) for table in opened if table is not None and (writer := _read_writer(table)) is not None]
    until = time.monotonic() + _TRIGGERS * settings.archive.trigger_s + _MORE_S
    if claimed:
        log.info("looking for another archive at work on %s", settings.tables_folder)
    while claimed and time.monotonic() < until and not ended.wait(_POLL_S):
        for table, writer in claimed:
            _refuse_news(table, writer)
            note_step()


def _refuse_news(table: DeltaTable, writer: str) -> None:
    before = table.version()
    with failing_as(f"the table {table.table_uri} cannot be read"):
        table.update_incremental()
        news = table.history(table.version() - before) if table.version() > before else []
    now = _read_writer(table)
    if now != writer or any(APPENDED_BY in commit for commit in news):
        msg = (
            f"the table {table.table_uri} is being filled by another archive ({now}). One at a time: end that one, or "
            "leave the tables to it. A former one of this stream may still be about to end; then start again."
        )
        raise TableClaimedError(msg)


def _read_writer(table: DeltaTable) -> str | None:
    name: str | None = table.metadata().configuration.get(WRITER_PROPERTY)
    return name
