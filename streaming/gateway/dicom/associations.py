"""An association, as pynetdicom runs it, with three parts of our own: its socket, its messages, and its waiting.

- pynetdicom's socket asks with ``select``, which fails for descriptors above 1,023, reads in pieces of 4 kB, waits for
  ever for the rest of a PDU, and takes one of 4 GB.
- Its messages are collected in memory; here the data set of a C-STORE goes to disk while it arrives.
- Its two threads look a thousand times a second whether there is anything to do, which is a quarter of a processor for
  25 associations that are idle; here they are woken.
"""

import logging
import queue
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AddressInformation, AssociationSocket

from sparkdl.image.dicomfile import PYDICOM_ERRORS
from streaming.gateway.dicom.arrival import Arrival
from streaming.gateway.dicom.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, STORAGE_CLASSES

log = logging.getLogger(__name__)

_LOOK_MS = 100
"""How long at most a thread waits to be woken: timers are looked at in between."""
_MAX_COMMAND_BYTES = 64 * 1024
_MAX_OTHER_BYTES = 8 * 1024 * 1024
"""Data set of a message that is no C-STORE: a request for Storage Commitment, which has a lower limit of its own."""
MAX_UID = 64
_NO_UID = UID("0")
"""In place of what a request has instead of the UID of an object."""
_MOST_WAITING = 4
"""Messages of one association that wait to be answered. No device may send a second one before it has the answer to the
first, unless that was agreed, which it never is."""
_PDU_SLACK_BYTES = 4096
"""Some devices count the headers to a PDU's length and some do not."""
_LARGEST_PDU_BYTES = 64 * 1024 * 1024
"""Without a limit of the setting's."""
_INVALID_PARAMETER = 6
_CLOSING = "Sta13"
"""State of an association that has been aborted or rejected: PS3.8 9.2.1."""
_DISCARDED, _DISCARDED_BYTES = 16, 64 * 1024


class UnfitMessageError(ValueError):
    """A device sends what no message may be."""


class RingingQueue(queue.Queue[Any]):
    """A queue that wakes a thread which waits for other things too."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put and wake."""
        super().put(item, block, timeout)
        self._ring()


class RungEvent(threading.Event):
    """Stands for pynetdicom's event that an association's thread asks each millisecond; waits until there is work."""

    def __init__(self) -> None:
        super().__init__()
        self._bell = threading.Event()

    def ring(self) -> None:
        """Tell that there is something to do."""
        self._bell.set()

    def set(self) -> None:
        """Let the thread go on."""
        super().set()
        self._bell.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for work, then as the event that it stands for."""
        self._bell.wait(_LOOK_MS / 1000)
        self._bell.clear()
        return super().wait(timeout)


class DoorSocket(AssociationSocket):  # type: ignore[misc]  # pynetdicom is not followed by mypy
    """The connection of an association that a device has asked for.

    Parameters
    ----------
    association : Association
        Whose it is.
    connection : socket
        Its first PDU has been read.
    first : bytes
        That PDU.
    max_pdu_bytes : int
        As agreed; 0 is without limit.
    stall_s : float
        A PDU that is not there as a whole so long after its beginning ends the association.
    """

    def __init__(
        self, association: Association, connection: socket.socket, first: bytes, *, max_pdu_bytes: int, stall_s: float
    ) -> None:
        super().__init__(association, client_socket=connection)
        connection.settimeout(stall_s)
        self._connection = connection
        self._first = memoryview(first)
        self._largest = max_pdu_bytes + _PDU_SLACK_BYTES if max_pdu_bytes else _LARGEST_PDU_BYTES
        self._stall_s = stall_s
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def ring(self) -> None:
        """Wake the thread that waits for a PDU: there is one to send."""
        try:
            self._ringer.send(b"\0")
        except (BlockingIOError, ValueError):
            return  # it is rung already
        except OSError:
            return  # the association has ended

    @property
    def ready(self) -> bool:
        """Wait a little for bytes; tell whether there are any."""
        if self.socket is None:
            return False
        if self.assoc.dul.state_machine.current_state == _CLOSING:
            self._discard()
            return False
        if self._first or getattr(self.socket, "pending", int)():
            return True
        self._acknowledge()
        rung = self._bell.fileno()
        found = [descriptor for descriptor, _ in self._poll.poll(_LOOK_MS)]
        if rung in found:
            self._bell.recv(4096)
        return any(descriptor != rung for descriptor in found)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the connection ends.

        Raises
        ------
        OSError
            They are more than a PDU may have, or take too long.
        """
        if nr_bytes > self._largest:
            self._send_abort()
            msg = "a PDU is longer than was agreed"
            raise OSError(msg)
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        count = min(nr_bytes, len(self._first))
        view[:count] = self._first[:count]
        self._first = self._first[count:]
        until = time.monotonic() + self._stall_s
        while count < nr_bytes:
            if time.monotonic() > until:
                raise TimeoutError
            more = self._connection.recv_into(view[count:])
            if not more:
                return buffer[:count]
            count += more
        return buffer

    def end(self) -> None:
        """Close everything, whatever state the association is in."""
        self.close()
        self._connection.close()
        self._bell.close()
        self._ringer.close()

    def cut(self) -> None:
        """Wake a thread that waits for the rest of a PDU, with the end of the connection."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError as exc:
            log.debug("it has ended by itself: %s", exc.strerror)

    def _acknowledge(self) -> None:
        """Acknowledge at once what has come.

        Most senders leave Nagle's algorithm on: what follows a short PDU waits for the acknowledgement of it, which
        the system would put off by 40 ms, for each object. It forgets the option again, so it is set before each wait.
        """
        if hasattr(socket, "TCP_QUICKACK"):  # Linux
            with suppress(OSError):
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _discard(self) -> None:
        """Read what the peer still sends after the last word to it: a close before would take that word from it."""
        self._connection.settimeout(_LOOK_MS / 1000)
        with suppress(OSError):
            for _ in range(_DISCARDED):
                if not self._connection.recv(_DISCARDED_BYTES):
                    return

    def _send_abort(self) -> None:
        pdu = A_ABORT_RQ()
        pdu.source, pdu.reason_diagnostic = 2, _INVALID_PARAMETER
        self.send(pdu.encode())


class DoorMessages(DIMSEServiceProvider):  # type: ignore[misc]
    """Collects the messages of an association; objects go to disk.

    Parameters
    ----------
    association : Association
        Whose they are.
    folder : Path
        Where objects are while they are received.
    max_bytes : int
        Of an object that is kept.
    is_ending : callable
        Whether the gateway is about to end.
    """

    def __init__(
        self, association: Association, folder: Path, *, max_bytes: int, is_ending: Callable[[], bool]
    ) -> None:
        super().__init__(association)
        self._folder = folder
        self._max_bytes = max_bytes
        self._is_ending = is_ending
        self._unanswered: set[int | None] = set()

    @property
    def is_answered(self) -> bool:
        """Whether each object that has begun has its answer."""
        return not self._unanswered

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in what a PDU brought; end the association where that is no part of a message."""
        try:
            for context_id, piece in primitive.presentation_data_value_list:
                self._receive(context_id, piece)
        except PYDICOM_ERRORS as exc:
            what = str(exc) if isinstance(exc, UnfitMessageError) else type(exc).__name__
            log.warning(
                "an association with %s ends: its message cannot be read: %s", self.assoc.requestor.address, what
            )
            self.drop()
            self.dul.event_queue.put("Evt19")

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send an answer."""
        super().send_msg(primitive, context_id)
        if isinstance(primitive, C_STORE):
            self._unanswered.discard(primitive.MessageIDBeingRespondedTo)

    def drop(self) -> None:
        """Give back the room of what nobody will answer."""
        if self.message is not None and isinstance(self.message.data_set, Arrival):
            self.message.data_set.close()
        with suppress(queue.Empty):
            while True:
                _, waiting = self.msg_queue.get(block=False)
                arrival = getattr(waiting, "DataSet", None)
                if isinstance(arrival, Arrival):
                    arrival.close()

    def _receive(self, context_id: int, piece: bytes) -> None:
        if self.msg_queue.qsize() >= _MOST_WAITING:
            msg = "more messages than one are sent before the answer"
            raise UnfitMessageError(msg)
        part = P_DATA()
        part.presentation_data_value_list.append((context_id, piece))
        super().receive_primitive(part)
        message = self.message
        if message is None:
            return
        if isinstance(message, C_STORE_RQ) and not isinstance(message.data_set, Arrival):
            message.data_set = self._begin(message)
        elif message.encoded_command_set.tell() > _MAX_COMMAND_BYTES or _measure(message.data_set) > _MAX_OTHER_BYTES:
            msg = "a message has no end"
            raise UnfitMessageError(msg)

    def _begin(self, message: C_STORE_RQ) -> Arrival:
        """Make the file for an object whose request is complete."""
        agreed = {one.context_id: one for one in self.assoc.accepted_contexts}
        if message.context_id not in agreed:
            msg = "an object is sent in a context that was not accepted"
            raise UnfitMessageError(msg)
        context, request = agreed[message.context_id], message.command_set
        announced = (str(request.get("AffectedSOPClassUID") or ""), str(request.get("AffectedSOPInstanceUID") or ""))
        # With other classes than it has services for, and with what is no UID, pynetdicom would end the association,
        # and no object behind this one would ever come: so this one alone is refused, or named by its content.
        if announced[0] != context.abstract_syntax:
            request.AffectedSOPClassUID = STORAGE_CLASSES[0]
        if not 0 < len(announced[1]) <= MAX_UID:
            request.AffectedSOPInstanceUID = _NO_UID
        meta = create_file_meta(
            sop_class_uid=UID(request.AffectedSOPClassUID),
            sop_instance_uid=UID(request.AffectedSOPInstanceUID),
            transfer_syntax=context.transfer_syntax[0],
            implementation_uid=IMPLEMENTATION_UID,
            implementation_version=IMPLEMENTATION_VERSION,
        )
        head = BytesIO()
        head.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(head, meta)
        self._unanswered.add(request.MessageID)
        return Arrival(
            self._folder, head.getvalue(), max_bytes=self._max_bytes, announced=announced, is_late=self._is_ending()
        )


class DoorAssociation(Association):  # type: ignore[misc]
    """An association that a device has asked for.

    Parameters
    ----------
    ae : AE
        The gateway's application entity, with its time-outs.
    connection, address, first
        Of the device: its socket, where it is, and the A-ASSOCIATE-RQ that it sent.
    local : tuple
        Address and port of the door.
    messages : callable
        Makes its `DoorMessages`.
    handlers : list of (event, callable)
        pynetdicom's.
    """

    def __init__(
        self,
        ae: AE,
        connection: socket.socket,
        address: tuple[str, int],
        first: bytes,
        *,
        local: tuple[str, int],
        messages: Callable[[Association], DoorMessages],
        handlers: list[tuple[Any, Callable[..., Any]]],
    ) -> None:
        super().__init__(ae, "acceptor")
        self.name = "gateway-dicom-association"
        self.dul.name = "gateway-dicom-network"
        self._door_socket = DoorSocket(
            self, connection, first, max_pdu_bytes=ae.maximum_pdu_size, stall_s=float(ae.network_timeout or 0)
        )
        self.set_socket(self._door_socket)
        self.door_messages = self.dimse = messages(self)
        rung = RungEvent()
        rung.set()
        self._reactor_checkpoint = rung
        self.dul.to_provider_queue = RingingQueue(self._door_socket.ring)
        self.dul.to_user_queue = RingingQueue(rung.ring)
        self.dimse.msg_queue = RingingQueue(rung.ring)
        self.acceptor.maximum_length = ae.maximum_pdu_size
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.acceptor.address_info = AddressInformation.from_tuple(local)
        self.requestor.address_info = AddressInformation.from_tuple(address)
        for event, handler in handlers:
            self.bind(event, handler)

    @property
    def is_busy(self) -> bool:
        """Whether an object has begun that has no answer yet, or the answer is not sent yet."""
        return self.is_alive() and not (self.door_messages.is_answered and self.dul.to_provider_queue.empty())

    def run_reactor(self) -> None:
        """Serve the device until it goes."""
        try:
            super().run_reactor()
        except Exception as exc:
            # The boundary of an association: the others go on. Words of libraries may quote what they read.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            log.error("an association with %s met %s:\n%s", self.requestor.address, type(exc).__name__, stack)
        finally:
            self._door_socket.cut()
            self.dul.kill_dul()
            self.dul.join()
            self.door_messages.drop()
            self._door_socket.end()

    def cut(self) -> None:
        """End it without a word."""
        self._door_socket.cut()


def _measure(data_set: BytesIO | None) -> int:
    return 0 if data_set is None or isinstance(data_set, Arrival) else data_set.tell()
