"""A DICOM association of a sender, written to the socket by hand with pynetdicom's own messages.

pynetdicom's `Association` keeps two threads of a process awake for each one, and keeps to the standard: what fifty
devices at once cost, and what some of them do wrong, are what is simulated here. What is sent is encoded once and goes
out in one piece, so a sender is never what limits a measurement.

References
----------
DICOM PS3.8 section 9.3 (PDUs), PS3.7 section 9.3 (C-STORE, C-ECHO).
"""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from types import TracebackType
from typing import Any, Self

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, build_context
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import Verification

_ACCEPT, _REJECT, _DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
_HEADER = struct.Struct(">BxL")
_VALUE = struct.Struct(">LBB")
_RELEASE = _HEADER.pack(_RELEASE_RQ, 4) + b"\0" * 4
_ABORTED = _HEADER.pack(_ABORT, 4) + b"\0" * 4
_PERMANENT = 1
_DATASET, _LAST_DATASET = 0, 2
_MAX_ANSWER_BYTES = 1_000_000
"""Of a PDU that comes back; a peer that announces more is none."""
_UNLIMITED_BYTES = 1_048_576
"""What is sent in a PDU where the peer sets no limit."""


class NoAnswerError(Exception):
    """The peer said nothing that is an answer: no connection, a silence, an abort, or no DICOM."""


class RejectedError(Exception):
    """The association was not accepted.

    Parameters
    ----------
    is_permanent : bool
        Whether to ask again is useless.
    """

    def __init__(self, *, is_permanent: bool) -> None:
        super().__init__("permanent" if is_permanent else "transient")
        self.is_permanent = is_permanent


class Association:
    """An open association; a context that is released at its end, or aborted where something failed.

    Parameters
    ----------
    address : tuple of (str, int)
        Host and port.
    calling, called : str
        AE titles.
    contexts : sequence of (str, sequence of str)
        SOP class and transfer syntaxes of each presentation context.
    timeout_s : float
        For the connection, and for each answer.
    max_pdu_bytes : int
        Of what is sent, where the peer allows more.

    Raises
    ------
    NoAnswerError, RejectedError
        There is no association.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        calling: str,
        called: str,
        contexts: Sequence[tuple[str, Sequence[str]]],
        timeout_s: float = 60.0,
        max_pdu_bytes: int = _UNLIMITED_BYTES,
    ) -> None:
        try:
            self._socket = socket.create_connection(address, timeout_s)
        except OSError as exc:
            raise NoAnswerError(str(exc)) from exc
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message = 0
        try:
            self._send(_request(calling, called, contexts))
            accepted = self._accept()
        except (NoAnswerError, RejectedError):
            self._socket.close()
            raise
        self.contexts: Mapping[str, dict[str, int]] = _by_class(contexts, accepted)
        """Numbers of the accepted presentation contexts, by SOP class and transfer syntax."""
        self.max_pdu_bytes = min(max_pdu_bytes, accepted.maximum_length_received or _UNLIMITED_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def echo(self) -> int:
        """Ask whether the peer is there; gives the status. Verification must be one of the contexts."""
        primitive = C_ECHO()
        primitive.MessageID = self._next()
        primitive.AffectedSOPClassUID = Verification
        (number,) = self.contexts[Verification].values()
        self._send(b"".join(_encode_command(C_ECHO_RQ(), primitive, number, self.max_pdu_bytes)))
        return self._status()

    def store(
        self,
        sop_class: str,
        sop_uid: str,
        syntax: str,
        dataset: bytes,
        *,
        between: Callable[[float], None] | None = None,
    ) -> int:
        """Send an object and wait for its status.

        Parameters
        ----------
        sop_class, sop_uid : str
            As which it is announced.
        syntax : str
            Of the data set; one of the accepted ones.
        dataset : bytes
            As it is encoded, without file meta information; nothing looks at it.
        between : callable, optional
            Called before each PDU with the share that is sent; what it raises goes through.

        Raises
        ------
        NoAnswerError
            Whether the peer has the object is not known.
        """
        parts = encode_store(
            sop_class,
            sop_uid,
            dataset,
            context=self.contexts[sop_class][syntax],
            message=self._next(),
            max_pdu_bytes=self.max_pdu_bytes,
        )
        if between is None:
            self._send(b"".join(parts))
        else:
            self._send_slowly(list(parts), between)
        return self._status()

    def send_encoded(self, message: bytes | bytearray) -> int:
        """Send what `encode_store` made before, and wait for its status."""
        self._send(message)
        return self._status()

    def release(self) -> None:
        """End in order; a peer that is gone already has ended as well."""
        try:
            self._send(_RELEASE)
            kind = None
            while kind not in {_RELEASE_RP, _RELEASE_RQ}:
                kind, _ = self._read()
        except NoAnswerError:
            pass
        finally:
            self._socket.close()

    def abort(self) -> None:
        """End at once."""
        try:
            self._send(_ABORTED)
        except NoAnswerError:
            pass
        finally:
            self._socket.close()

    def _next(self) -> int:
        self._message += 1
        return self._message

    def _send_slowly(self, parts: list[bytes], between: Callable[[float], None]) -> None:
        for place, part in enumerate(parts):
            between(place / len(parts))
            self._send(part)

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.sendall(data)
        except OSError as exc:
            raise NoAnswerError(str(exc)) from exc

    def _accept(self) -> Any:
        kind, body = self._read()
        if kind == _REJECT:
            raise RejectedError(is_permanent=body[1] == _PERMANENT)
        if kind != _ACCEPT:
            msg = f"PDU type {kind}, expected an answer to the association's request"
            raise NoAnswerError(msg)
        answer = A_ASSOCIATE_AC()
        answer.decode(_HEADER.pack(kind, len(body)) + body)
        return answer.to_primitive()

    def _status(self) -> int:
        message = DIMSEMessage()
        while True:
            kind, body = self._read()
            if kind != _DATA:
                msg = f"PDU type {kind}, expected the status"
                raise NoAnswerError(msg)
            data = P_DATA_TF()
            data.decode(_HEADER.pack(kind, len(body)) + body)
            if message.decode_msg(data.to_primitive()):
                return int(message.message_to_primitive().Status)

    def _read(self) -> tuple[int, bytes]:
        kind, length = _HEADER.unpack(self._read_exactly(_HEADER.size))
        if length > _MAX_ANSWER_BYTES:
            msg = f"a PDU of {length} bytes"
            raise NoAnswerError(msg)
        return kind, self._read_exactly(length)

    def _read_exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except OSError as exc:
                raise NoAnswerError(str(exc)) from exc
            if not part:
                msg = "the peer has closed the connection"
                raise NoAnswerError(msg)
            parts += part
        return bytes(parts)


def encode_store(
    sop_class: str, sop_uid: str, dataset: bytes, *, context: int, message: int, max_pdu_bytes: int
) -> Iterator[bytes]:
    """Encode a C-STORE request: its command, then the data set, as PDUs.

    Parameters
    ----------
    sop_class, sop_uid : str
        As which the object is announced.
    dataset : bytes
        As it is encoded.
    context, message : int
        Numbers of presentation context and message.
    max_pdu_bytes : int
        Of a PDU without its own header.
    """
    primitive = C_STORE()
    primitive.MessageID = message
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = sop_class, sop_uid
    primitive.Priority = 0
    # The primitive wants some data set, to say that there is one; the real one is cut below without a copy.
    primitive.DataSet = BytesIO(b"\0\0")
    yield from _encode_command(C_STORE_RQ(), primitive, context, max_pdu_bytes)
    room = max_pdu_bytes - _VALUE.size
    view = memoryview(dataset)
    for start in range(0, max(1, len(view)), room):
        fragment = view[start : start + room]
        control = _LAST_DATASET if start + room >= len(view) else _DATASET
        yield b"".join(
            (
                _HEADER.pack(_DATA, _VALUE.size + len(fragment)),
                _VALUE.pack(2 + len(fragment), context, control),
                fragment,
            )
        )


def _encode_command(message: Any, primitive: Any, context: int, max_pdu_bytes: int) -> Iterator[bytes]:
    message.primitive_to_message(primitive)
    message.data_set = None
    for part in message.encode_msg(context, max_pdu_bytes):
        data = P_DATA_TF()
        data.from_primitive(part)
        yield data.encode()


def _request(calling: str, called: str, contexts: Iterable[tuple[str, Sequence[str]]]) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    length, maker = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16_384
    maker.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
    primitive.user_information = [length, maker]
    proposed = []
    for place, (sop_class, syntaxes) in enumerate(contexts):
        context = build_context(sop_class, list(syntaxes))
        context.context_id = 2 * place + 1
        proposed.append(context)
    primitive.presentation_context_definition_list = proposed
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def _by_class(contexts: Sequence[tuple[str, Sequence[str]]], accepted: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for result in accepted.presentation_context_definition_results_list:
        if result.result == 0:
            sop_class = contexts[(result.context_id - 1) // 2][0]
            found.setdefault(sop_class, {})[str(result.transfer_syntax[0])] = result.context_id
    return found
