"""A DICOM archive as a target: each report is stored by C-STORE, over one association while there are reports."""

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from streaming.reports.report import Report
from streaming.reports.structuredreport import SOP_CLASS, to_dataset
from streaming.reports.target import Address, AwayError, RefusedError
from streaming.settings import ReportsSettings

_SUCCESS = 0x0000
_WARNING = 0xB000
_KNOWN = 0x0111
"""Duplicate SOP Instance (PS3.7 C.5.11): the UID follows from the report, so it was taken before, unacknowledged."""
_LATER = range(0xA700, 0xA800)
"""Out of resources (PS3.4 B.2.3): the peer says to come again."""
_KIND = 0xF000


class DicomStore:
    """Stores reports in an archive.

    Parameters
    ----------
    address : Address
        Its host, port and title.
    settings : ReportsSettings
        Own title and time limit.
    """

    def __init__(self, address: Address, settings: ReportsSettings) -> None:
        self._address = address
        self._entity = AE(ae_title=settings.aet)
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = settings.answer_s
        self._entity.connection_timeout = settings.answer_s
        self._entity.add_requested_context(SOP_CLASS, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._association: Association | None = None

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        dataset = to_dataset(report)
        association = self._associate()
        try:
            answer = association.send_c_store(dataset)
        except (RuntimeError, OSError) as exc:  # the peer has ended the association meanwhile
            self.close()
            raise AwayError(type(exc).__name__) from exc
        status = answer.get("Status") if answer else None
        if status is None:
            self.close()
            msg = "no answer to C-STORE"
            raise AwayError(msg)
        code = f"status {status:04X}"
        if status in _LATER:
            raise AwayError(code)
        if status not in (_SUCCESS, _KNOWN) and status & _KIND != _WARNING:
            raise RefusedError(code)

    def close(self) -> None:
        """See `Target.close`."""
        if self._association is not None:
            if self._association.is_established:
                self._association.release()
            self._association = None

    def _associate(self) -> Association:
        if self._association is None or not self._association.is_established:
            made = self._entity.associate(self._address.place, self._address.port, ae_title=self._address.aet)
            if not made.is_established:
                why = "it rejects the association" if made.is_rejected else "no association"
                raise AwayError(why)
            if not made.accepted_contexts:
                made.release()
                msg = "it takes no Comprehensive 3D SR"
                raise AwayError(msg)
            self._association = made
        return self._association
