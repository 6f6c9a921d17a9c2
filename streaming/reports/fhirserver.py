"""A FHIR server as a target: each report is one transaction of conditional updates."""

import json
import re
from typing import Any

from streaming.reports.fhir import to_bundle, to_json
from streaming.reports.httpsession import check_status, describe_failure, open_session
from streaming.reports.report import Report
from streaming.reports.target import AwayError, RefusedError
from streaming.settings import ReportsSettings

_ERRORS = ("error", "fatal")
_TYPE = "application/fhir+json; charset=utf-8"


class FhirServer:
    """Posts transactions to a FHIR server.

    Parameters
    ----------
    url : str
        Its base.
    settings : ReportsSettings
        Time limit, token and systems of identifiers.
    """

    def __init__(self, url: str, settings: ReportsSettings) -> None:
        self._url = url
        self._settings = settings
        self._session = open_session(settings)

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        bundle = to_bundle(
            report,
            patient_system=self._settings.patient_system,
            accession_system=self._settings.accession_system,
        )
        headers = {"Content-Type": _TYPE, "Accept": "application/fhir+json"}
        try:
            answer = self._session.post(
                self._url, data=to_json(bundle), headers=headers, timeout=self._settings.answer_s, allow_redirects=False
            )
        except OSError as exc:  # all of requests' errors are, and that of a file of TLS that is gone
            raise AwayError(describe_failure(exc, self._url, self._settings)) from exc
        check_status(answer.status_code)
        check_answer(answer.content)

    def close(self) -> None:
        """See `Target.close`."""
        self._session.close()


def check_answer(content: bytes) -> None:
    """Read what a server says beside HTTP's success: some take a transaction apart, or tell of an error with 200.

    Nothing but codes is read of it. What is no JSON of FHIR says nothing: an empty answer is one of success.

    Raises
    ------
    RefusedError
        An entry of the transaction has failed, or the answer is of an error.
    """
    try:
        said = json.loads(content or b"null")
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    for entry in _parts(said, "entry"):
        response = entry.get("response")
        status = str(response.get("status", "")) if isinstance(response, dict) else ""
        if re.match(r"[3-5]\d\d\b", status):
            msg = f"HTTP 200, an entry {status[:3]}"
            raise RefusedError(msg)
    if said.get("resourceType") == "OperationOutcome":
        for issue in _parts(said, "issue"):
            if issue.get("severity") in _ERRORS:
                msg = "HTTP 200, with an error"
                raise RefusedError(msg)


def _parts(said: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = said.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
