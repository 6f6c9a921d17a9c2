"""Draws up the account again and again while the stream runs, and shows it as metrics."""

import logging
import time
from datetime import UTC, datetime, timedelta

from schemas.errors import NoCheckpointError
from streaming.account.audit import Account, Scope, audit_stream
from streaming.metrics import StreamMetrics
from streaming.periodic import PeriodicTask
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)


class Auditor:
    """Audits the images of the last hour or so, in a thread of its own.

    Parameters
    ----------
    settings : StreamSettings
        All settings; ``audit`` says how often and of how long.
    metrics : StreamMetrics
        Where the account shows.
    """

    def __init__(self, settings: StreamSettings, metrics: StreamMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        # The broker may be away: the stream's own business. That no account was drawn up shows in its time.
        self._task = PeriodicTask(
            "auditor",
            self._audit,
            settings.audit.interval_s,
            failure="no account could be drawn up",
        )

    def start(self) -> None:
        """Start the thread; the first account is drawn up one interval later."""
        self._task.start()

    def stop(self) -> None:
        """Tell the thread to end; an account that is being drawn up is not waited for."""
        self._task.stop()

    def _audit(self) -> None:
        since = datetime.now(UTC) - timedelta(seconds=self._settings.audit.window_s)
        try:
            account = audit_stream(self._settings, Scope(since=since))
        except NoCheckpointError:  # not one image came yet: that is an account, too
            account = Account([], {}, {})
        self._record(account)

    def _record(self, account: Account) -> None:
        self._metrics.unaccounted.set(account.unaccounted)
        self._metrics.table_faults.set(sum(t.missing + t.duplicates for t in account.tables.values()))
        self._metrics.last_audit.set(time.time())
        if not account.balanced:
            log.error("the account does not balance: %s; 'xray audit' tells more", _summarize(account))


def _summarize(account: Account) -> str:
    places = [f"{p.partition}@{offset}" for p in account.partitions for offset in p.missing_offsets]
    faults = {name: t.missing + t.duplicates for name, t in account.tables.items()}
    return f"{account.unaccounted} images without exactly one outcome {places[:5]}, rows missing or twice {faults}"
