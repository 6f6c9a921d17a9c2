"""Looks for images in what other programs keep on this machine: receipts, findings, reports, alarms."""

from collections.abc import Iterable
from datetime import UTC, datetime

from schemas.errors import JobError
from streaming.alerts.ledger import LEDGER_FILE as ALARMS_FILE
from streaming.alerts.ledger import find_alarms_about
from streaming.gateway.receipts.receipt import Receipt
from streaming.gateway.receipts.receiptstore import STORE_FILE, find_receipts
from streaming.lookup.history import Alarmed, Confirmed, Looked, Reach
from streaming.lookup.outcome import Outcome
from streaming.lookup.query import Query
from streaming.reports.ledger import Reported, find_reports
from streaming.results.findingsledger import LEDGER_FILE as FINDINGS_FILE
from streaming.results.findingsledger import find_findings
from streaming.settings import StreamSettings


def search_receipt_store(
    settings: StreamSettings, query: Query, outcomes: Iterable[Outcome]
) -> tuple[list[Receipt], Looked]:
    """Search the receipts that a gateway of this state folder keeps.

    Parameters
    ----------
    settings : StreamSettings
        Where it is.
    query : Query
        What is asked.
    outcomes : iterable of Outcome
        What is known already.
    """
    path = settings.gateway_folder / STORE_FILE
    if not path.is_file():
        return [], Looked(f"receipts {path}", limits="there is no such file: no gateway runs from this XRAY_HOME")
    keys = query.hex_ids | {one.image_key for one in outcomes}
    try:
        found = find_receipts(path, keys, query.image_ids | query.digests)
    except JobError as exc:
        return [], Looked(f"receipts {path}", limits=str(exc), reach=Reach.FAILED)
    return found, Looked(f"receipts {path}", len(found), "old ones are removed from there")


def search_page_findings(settings: StreamSettings, event_ids: str) -> tuple[list[Confirmed], Looked]:
    """Search the findings that people entered on a page of this state folder.

    Parameters
    ----------
    settings : StreamSettings
        Where they are.
    event_ids : str
        Of outcomes, as a JSON array.
    """
    path = settings.page_folder / FINDINGS_FILE
    if not path.is_file():
        return [], Looked(f"findings {path}", limits="there is no such file: no page runs from this XRAY_HOME")
    try:
        found = find_findings(path, event_ids)
    except JobError as exc:
        return [], Looked(f"findings {path}", limits=str(exc), reach=Reach.FAILED)
    said = [
        Confirmed(
            one.label,
            datetime.fromtimestamp(one.confirmed_ms / 1000, UTC),
            one.who,
            f"the page's findings: {one.progress.value}",
        )
        for one in found
    ]
    return said, Looked(f"findings {path}", len(said))


def search_reports(settings: StreamSettings, event_ids: str) -> tuple[list[Reported], list[Looked]]:
    """Search the ledgers of all targets of reports; see `search_page_findings` for the parameters."""
    folder = settings.reporting_folder
    paths = sorted(folder.glob("*.db"))
    if not paths:
        return [], [Looked(f"reports {folder}", limits="there is no ledger: nobody delivers reports from here")]
    reports: list[Reported] = []
    looked: list[Looked] = []
    for path in paths:
        try:
            found = find_reports(path, event_ids)
        except JobError as exc:
            looked.append(Looked(f"reports {path}", limits=str(exc), reach=Reach.FAILED))
            continue
        reports += found
        looked.append(Looked(f"reports {path}", len(found), "old ones are removed from there"))
    return reports, looked


def search_alarms(settings: StreamSettings, event_ids: str) -> tuple[list[Alarmed], Looked]:
    """Search the ledger of alarms; see `search_page_findings` for the parameters."""
    path = settings.alerts_folder / ALARMS_FILE
    if not path.is_file():
        return [], Looked(f"alarms {path}", limits="there is no such file: 'xray alerts run' never ran from here")
    try:
        found = [Alarmed(entry, tuple(sent)) for entry, sent in find_alarms_about(path, event_ids)]
    except JobError as exc:
        return [], Looked(f"alarms {path}", limits=str(exc), reach=Reach.FAILED)
    return found, Looked(f"alarms {path}", len(found), "alarms older than 35 days are removed from there")
