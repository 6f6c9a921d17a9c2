"""A DICOMweb server as a target: each report is stored by STOW-RS."""

import requests
from dicomweb_client.api import DICOMwebClient

from streaming.reports.httpsession import check_status, open_session
from streaming.reports.report import Report
from streaming.reports.structuredreport import to_dataset
from streaming.reports.target import AwayError, RefusedError
from streaming.settings import ReportsSettings


class StowServer:
    """Stores reports by STOW-RS.

    Parameters
    ----------
    url : str
        Its base, to which ``/studies`` is added.
    settings : ReportsSettings
        Time limit and token.
    """

    def __init__(self, url: str, settings: ReportsSettings) -> None:
        self._session = open_session(settings)
        self._client = DICOMwebClient(url, session=self._session, timeout=settings.answer_s)
        self._client.set_http_retry_params(retry=False)  # it is tried again here, with everything else

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        dataset = to_dataset(report)
        try:
            answer = self._client.store_instances([dataset], study_instance_uid=None)
        except requests.HTTPError as exc:
            check_status(0 if exc.response is None else exc.response.status_code)
            raise AwayError(type(exc).__name__) from exc
        except (requests.RequestException, OSError) as exc:
            raise AwayError(type(exc).__name__) from exc
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", 0)
            msg = f"failure reason {int(reason or 0):04X}"
            raise RefusedError(msg)

    def close(self) -> None:
        """See `Target.close`."""
        self._session.close()
