"""A DICOMweb server as a target: each report is stored by STOW-RS."""

from typing import Any
from xml.etree.ElementTree import ParseError

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from streaming.reports.httpsession import check_status, describe_failure, open_session
from streaming.reports.report import Report
from streaming.reports.structuredreport import to_dataset
from streaming.reports.target import AwayError, RefusedError
from streaming.settings import ReportsSettings

_KNOWN = 0x0111
"""Duplicate SOP Instance: the UID follows from the report, so it was taken before, unacknowledged."""
_UNREADABLE = (ParseError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading an answer can raise that is none of DICOMweb."""


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
        self._url = url
        self._settings = settings
        self._session = open_session(settings)
        self._session.hooks["response"].append(_bare_type)
        self._client = DICOMwebClient(url, session=self._session, timeout=settings.answer_s)
        self._client.set_http_retry_params(retry=False)  # it is tried again here, with everything else

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        dataset = to_dataset(report)
        try:
            answer = self._client.store_instances([dataset], study_instance_uid=None)
            reason = _find_failure(answer)
        except requests.HTTPError as exc:
            if exc.response is not None and _has_it(exc.response):
                return
            check_status(0 if exc.response is None else exc.response.status_code)
            raise AwayError(type(exc).__name__) from exc
        except requests.JSONDecodeError as exc:
            raise _unreadable() from exc
        except OSError as exc:  # all of requests' errors are
            raise AwayError(describe_failure(exc, self._url, self._settings)) from exc
        except _UNREADABLE as exc:
            raise _unreadable() from exc
        if reason not in (None, _KNOWN):
            msg = f"failure reason {reason:04X}"
            raise RefusedError(msg)

    def close(self) -> None:
        """See `Target.close`."""
        self._session.close()


def _bare_type(response: requests.Response, **_: Any) -> requests.Response:
    """Leave a media type without its parameters: the client knows it by nothing else, and would overlook a failure."""
    response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response


def _find_failure(answer: Dataset) -> int | None:
    """Give why the instance was not stored; None where it was."""
    failed = answer.get("FailedSOPSequence")
    return int(failed[0].get("FailureReason", 0) or 0) if failed else None


def _has_it(response: requests.Response) -> bool:
    """Tell whether a refusal is of an instance that the server has: 409 says no more than that none was stored."""
    try:
        return _find_failure(Dataset.from_json(response.json())) == _KNOWN
    except _UNREADABLE:
        return False


def _unreadable() -> RefusedError:
    return RefusedError("an answer that is none of DICOMweb")
