"""An HL7 v2 receiver as a target: messages over MLLP, each sent after the one before was acknowledged.

References
----------
HL7 Version 2 Transport Specification: MLLP, release 1.
"""

import socket

from streaming.deadline import Deadline
from streaming.reports.hl7v2 import Answer, Parties, read_answer, to_message
from streaming.reports.report import Report
from streaming.reports.target import Address, AwayError, Kind, RefusedError
from streaming.reports.targettls import TargetTls
from streaming.settings import ReportsSettings

_BEGIN = b"\x0b"
_END = b"\x1c\r"
_MOST_BYTES = 1024 * 1024
"""Of an answer: it has two or three segments."""
_TLS_ALERT = b"\x15\x03"
"""How a TLS peer begins its answer to what is none (RFC 8446, 5.1)."""
_CODES = {Answer.FAILED: "AE", Answer.REJECTED: "AR"}


class MllpPeer:
    """Sends ORU^R01 messages over one connection while there are reports.

    Parameters
    ----------
    address : Address
        Its host and port, and whether it is reached by TLS.
    settings : ReportsSettings
        Names of sender and receiver, the time limit of an answer, and the files of TLS.

    Raises
    ------
    SettingsError
        A file of TLS is not what it should be.
    """

    def __init__(self, address: Address, settings: ReportsSettings) -> None:
        self._address = address
        self._answer_s = settings.answer_s
        self._parties = make_parties(settings)
        self._tls = TargetTls(address, settings) if address.has_tls else None
        self._connection: socket.socket | None = None
        self._left = b""

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        message = to_message(report, self._parties)
        deadline = Deadline(self._answer_s)
        try:
            with deadline:
                connection = self._connect(deadline)
                connection.settimeout(deadline.left_s)
                connection.sendall(_BEGIN + message + _END)
                answer = read_answer(self._receive(connection, deadline), report.key)
        except OSError as exc:
            # At the deadline the connection is shut down, which looks as if the peer had closed it.
            why = self._describe(TimeoutError() if deadline.is_over else exc)
            self.close()
            raise AwayError(why) from exc
        if answer is None:
            # It may be that of a message before: only a new connection begins without doubt.
            self.close()
            msg = "what it answers is no acknowledgement of the message"
            raise AwayError(msg)
        if answer is not Answer.ACCEPTED:
            raise RefusedError(_CODES[answer])

    def close(self) -> None:
        """See `Target.close`."""
        self._left = b""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, deadline: Deadline) -> socket.socket:
        if self._connection is None:
            context = None if self._tls is None else self._tls.load()
            made = deadline.connect(self._address.place, self._address.port)
            if context is not None:
                made = context.wrap_socket(made, server_hostname=self._address.place)
            self._connection = made  # not before both sides have agreed on TLS: nothing goes out in the clear
        return self._connection

    def _describe(self, exc: OSError) -> str:
        if self._tls is not None:
            return self._tls.wanted.describe(exc, is_connected=self._connection is not None)
        if self._left.startswith(_TLS_ALERT):
            return f"it answers in TLS; wanted a target {Kind.MLLPS}:, or a peer without TLS"
        if isinstance(exc, ConnectionResetError | BrokenPipeError):
            return f"it closed the connection without an answer, as a peer does that wants TLS ({Kind.MLLPS}:)"
        return type(exc).__name__

    def _receive(self, connection: socket.socket, deadline: Deadline) -> bytes:
        """Read one framed answer; however slowly it comes, it has to be whole in time."""
        while (end := self._left.find(_END)) < 0:
            connection.settimeout(deadline.left_s)
            piece = connection.recv(65_536)
            if not piece and not self._left:
                raise ConnectionResetError
            if not piece or len(self._left) > _MOST_BYTES:
                msg = "the answer has no end"
                raise ConnectionError(msg)
            self._left += piece
        frame, self._left = self._left[:end], self._left[end + len(_END) :]
        return frame.partition(_BEGIN)[2]


def make_parties(settings: ReportsSettings) -> Parties:
    """Give what messages say of sender and receiver."""
    return Parties(
        sending_facility=settings.sending_facility or "",
        receiving_application=settings.receiving_application or "",
        receiving_facility=settings.receiving_facility or "",
        patient_authority=settings.patient_authority or "",
        processing=settings.processing,
    )
