"""A DICOM archive as a target: each report is stored by C-STORE, over one association while there are reports."""

import socket
from contextlib import suppress

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association

from streaming.deadline import Deadline, resolve
from streaming.reports.report import Report
from streaming.reports.structuredreport import SOP_CLASS, to_dataset
from streaming.reports.target import Address, AwayError, Kind, RefusedError
from streaming.reports.targettls import TargetTls
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
        Its host, port and title, and whether it is reached by TLS.
    settings : ReportsSettings
        Own title, time limit, and the files of TLS.

    Raises
    ------
    SettingsError
        A file of TLS is not what it should be.
    """

    def __init__(self, address: Address, settings: ReportsSettings) -> None:
        self._address = address
        self._answer_s = settings.answer_s
        self._entity = AE(ae_title=settings.aet)
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = settings.answer_s
        self._entity.connection_timeout = settings.answer_s
        self._entity.add_requested_context(SOP_CLASS, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._association: Association | None = None
        self._tls = TargetTls(address, settings) if address.has_tls else None
        self._failure: OSError | None = None
        self._is_connected = False

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        dataset = to_dataset(report)
        try:
            # pynetdicom waits without an end for the rest of a message that has begun, and so does its own time-out.
            with Deadline(self._answer_s) as deadline:
                answer = self._associate(deadline).send_c_store(dataset)
        except (RuntimeError, OSError) as exc:  # the peer has ended the association meanwhile
            self.close()
            raise AwayError(type(exc).__name__) from exc
        status = answer.get("Status") if answer else None
        if status is None:
            why = self._describe("no answer to C-STORE")
            self.close()
            raise AwayError(why)
        code = f"status {status:04X}"
        if status in _LATER:
            raise AwayError(code)
        if status not in (_SUCCESS, _KNOWN) and status & _KIND != _WARNING:
            raise RefusedError(code)

    def close(self) -> None:
        """See `Target.close`."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            with Deadline(self._answer_s) as deadline, suppress(OSError):  # the peer has ended it meanwhile
                _watch(association, deadline)
                association.release()

    def _associate(self, deadline: Deadline) -> Association:
        if self._association is not None and self._association.is_established:
            _watch(self._association, deadline)
            return self._association
        made = self._request(deadline)
        if not made.is_established:
            raise AwayError("it rejects the association" if made.is_rejected else self._describe("no association"))
        self._association = made
        if not made.accepted_contexts:
            self.close()
            msg = "it takes no Comprehensive 3D SR"
            raise AwayError(msg)
        return made

    def _request(self, deadline: Deadline) -> Association:
        """Ask for an association; how far it came is noted, for pynetdicom raises nothing."""
        self._failure, self._is_connected = None, False
        tls_args = None if self._tls is None else (self._tls.load(self._note_failure), self._address.place)

        def note_connection(event: evt.Event) -> None:
            self._is_connected = True
            _watch(event.assoc, deadline)

        return self._entity.associate(
            self._find_address(deadline),
            self._address.port,
            ae_title=self._address.aet,
            tls_args=tls_args,
            evt_handlers=[(evt.EVT_CONN_OPEN, note_connection)],
        )

    def _find_address(self, deadline: Deadline) -> str:
        """Ask for the host's address in time, which pynetdicom does not; IPv4 first, as it does."""
        entries = resolve(self._address.place, self._address.port, within_s=deadline.left_s)
        entries.sort(key=lambda entry: entry[0] is not socket.AF_INET)
        return str(entries[0][4][0])

    def _note_failure(self, failure: OSError) -> None:
        self._failure = failure

    def _describe(self, what: str) -> str:
        if self._tls is not None and self._failure is not None:
            return f"{what}: {self._tls.wanted.describe(self._failure, is_connected=self._is_connected)}"
        if self._tls is None and self._is_connected:
            return (
                f"{what}: it closed the connection or does not answer, as a peer does that wants TLS ({Kind.DICOMS}:)"
            )
        return what


def _watch(association: Association, deadline: Deadline) -> None:
    wrapper = association.dul.socket
    if wrapper is not None and wrapper.socket is not None:
        deadline.watch(wrapper.socket)
