"""A FHIR server as a target: each report is one transaction of conditional updates."""

import requests

from streaming.reports.fhir import to_bundle, to_json
from streaming.reports.httpsession import check_status, open_session
from streaming.reports.report import Report
from streaming.reports.target import AwayError
from streaming.settings import ReportsSettings

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
        except requests.RequestException as exc:
            raise AwayError(type(exc).__name__) from exc
        check_status(answer.status_code)

    def close(self) -> None:
        """See `Target.close`."""
        self._session.close()
