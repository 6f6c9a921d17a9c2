"""DICOM as bytes on a socket: for peers that do what no library does."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

RELEASE_RQ = bytes((5, 0, 0, 0, 0, 4, 0, 0, 0, 0))
ACCEPTED, REJECTED, DATA, RELEASED, ABORTED = 2, 3, 4, 6, 7
CONTEXT_ID = 1


def associate_request(
    *,
    calling: str = "DX1",
    called: str = "XRAY",
    sop_class: str = DigitalXRayImageStorageForPresentation,
    syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,),
) -> bytes:
    """Give an A-ASSOCIATE-RQ of one context, with id 1."""
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = calling, called
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = UID("1.2.3.4")
    request.user_information = [length, implementation]
    context = build_context(sop_class, list(syntaxes))
    context.context_id = CONTEXT_ID
    request.presentation_context_definition_list = [context]
    encoded: bytes = A_ASSOCIATE_RQ(request).encode()
    return encoded


def store_request(
    data: bytes | None,
    *,
    sop_class: str = DigitalXRayImageStorageForPresentation,
    sop_instance: str = "1.2.826.0.1.3680043.8.498.1",
    message_id: int = 1,
    pdu_bytes: int = 16382,
) -> list[bytes]:
    """Give the PDUs of a C-STORE-RQ; the first one is its command set."""
    request = C_STORE()
    request.MessageID, request.Priority = message_id, 2
    request.AffectedSOPClassUID = request.AffectedSOPInstanceUID = UID("1")
    if data is not None:
        request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    # Here, since pynetdicom writes no UID that is none; of what is empty the element stays.
    message.command_set.AffectedSOPClassUID, message.command_set.AffectedSOPInstanceUID = sop_class, sop_instance
    message.command_set.CommandGroupLength = len(encode(message.command_set, True, True) or b"") - 12
    return [P_DATA_TF(part).encode() for part in message.encode_msg(CONTEXT_ID, pdu_bytes)]


def data_pdu(piece: bytes, *, control: int, context_id: int = CONTEXT_ID) -> bytes:
    """Give a P-DATA-TF of one piece; control 0 and 2 are a data set, 1 and 3 a command set, 2 and 3 the last of it."""
    item = (len(piece) + 2).to_bytes(4, "big") + bytes((context_id, control)) + piece
    return bytes((4, 0)) + len(item).to_bytes(4, "big") + item


class Peer:
    """A peer that says what it is told to."""

    def __init__(self, port: int, timeout_s: float = 20) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def receive(self) -> tuple[int, bytes]:
        """Give the next PDU, its type and what follows its length; type 0 is the end of the connection."""
        try:
            header = self._exactly(6)
            return header[0], self._exactly(int.from_bytes(header[2:], "big"))
        except (EOFError, ConnectionError):
            return 0, b""

    def associate(self, **options: str) -> None:
        self.send(associate_request(**options))  # type: ignore[arg-type]
        assert self.receive()[0] == ACCEPTED

    def status(self) -> int:
        """Give the status of the next answer."""
        kind, body = self.receive()
        assert kind == DATA, kind
        message = DIMSEMessage()
        pdu = P_DATA_TF()
        pdu.decode(bytes((4, 0)) + len(body).to_bytes(4, "big") + body)
        message.decode_msg(pdu.to_primitive())
        return int(message.command_set.Status)

    def _exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            piece = self.socket.recv(count - len(received))
            if not piece:
                raise EOFError
            received += piece
        return received


@contextmanager
def peer(port: int, timeout_s: float = 20) -> Iterator[Peer]:
    """Connect one for as long as a test wants it."""
    one = Peer(port, timeout_s)
    try:
        yield one
    finally:
        one.socket.close()
