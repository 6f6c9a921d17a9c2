"""Where connections wait until they have asked for an association: one thread for all, bounded in number and time.

pynetdicom starts two threads for each connection, before it has said anything. So connections come here first: the TLS
handshake and the first PDU are read without waiting for any of them, and only who has sent a whole A-ASSOCIATE-RQ goes
on. Who is silent, slow or speaks something else costs a socket for a few seconds.

References
----------
DICOM PS3.8 9.3.2 (A-ASSOCIATE-RQ), 9.1.4 (ARTIM timer).
"""

import logging
import selectors
import socket
import ssl
import struct
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from pynetdicom.pdu import A_ASSOCIATE_RQ

from sparkdl.image.dicomfile import PYDICOM_ERRORS

log = logging.getLogger(__name__)

TLS, NOT_DICOM, SILENT, CROWDED = "tls", "not_dicom", "silent", "crowded"
REASONS = (TLS, NOT_DICOM, SILENT, CROWDED)
"""Why a connection did not get as far as an association."""
_WORDS = {
    TLS: "its TLS handshake fails: it speaks no TLS, or one side does not accept the other's certificate",
    NOT_DICOM: "it asks for no association: it speaks TLS where none is wanted, or no DICOM",
    SILENT: "it says nothing",
    CROWDED: "too many wait",
}

_MOST = 256
"""Connections that wait at once; the oldest gives way to a new one, which is the likelier to speak."""
_HEADER = struct.Struct(">BxL")
_REQUEST = 1
_MAX_REQUEST_BYTES = 512 * 1024
"""128 contexts of 64 transfer syntaxes, all UIDs of full length, have less."""
_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))
"""A-ABORT by the service provider, no reason given."""
_TURN_S = 0.2
BACKLOG = 512

HandOver = Callable[[socket.socket, tuple[str, int], bytes], None]


@dataclass(eq=False)
class _Guest:
    connection: socket.socket
    address: tuple[str, int]
    until: float
    is_shaking_hands: bool
    received: bytearray = field(default_factory=bytearray)

    @property
    def wanted(self) -> int:
        """Bytes that are missing of the header, or of the PDU that it announces."""
        if len(self.received) < _HEADER.size:
            return _HEADER.size - len(self.received)
        return _HEADER.size + self.announced[1] - len(self.received)

    @property
    def announced(self) -> tuple[int, int]:
        kind, length = _HEADER.unpack_from(self.received)
        return kind, length


class Lobby:
    """Accepts connections, and hands on those that ask for an association.

    Parameters
    ----------
    listener : socket
        It listens; it is closed by `stop`.
    tls : callable
        Gives the TLS context for a new connection, or None.
    hand_over : callable
        Gets connection, address and the bytes of the A-ASSOCIATE-RQ. It must not wait.
    turn_away : callable
        Told one of ``REASONS`` for each other connection that said or did something.
    wait_s : float
        How long a connection may take to ask.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        tls: Callable[[], ssl.SSLContext | None],
        hand_over: HandOver,
        turn_away: Callable[[str], None],
        wait_s: float,
    ) -> None:
        self._listener = listener
        self._tls = tls
        self._hand_over = hand_over
        self._turn_away = turn_away
        self._wait_s = wait_s
        self._selector = selectors.DefaultSelector()
        self._guests: dict[_Guest, None] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-dicom-lobby", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Accept nothing more, and close what has not asked yet."""
        self._ended.set()
        self._thread.join()
        self._selector.close()
        self._listener.close()
        for guest in list(self._guests):
            guest.connection.close()

    @property
    def waiting(self) -> int:
        """Connections now."""
        return len(self._guests)

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(_TURN_S):
                if key.data is None:
                    self._accept()
                elif key.data in self._guests:
                    self._serve(key.data)
            self._see_off()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as exc:
            # The peer is gone again, or there is no descriptor left: then the oldest gives its own.
            log.warning("a connection cannot be accepted: %s", exc.strerror)
            self._end_oldest()
            return
        if len(self._guests) >= _MOST:
            self._end_oldest()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            context = self._tls()
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:
            connection.close()
            return
        guest = _Guest(connection, address[:2], time.monotonic() + self._wait_s, context is not None)
        self._guests[guest] = None
        self._selector.register(connection, selectors.EVENT_READ, guest)

    def _serve(self, guest: _Guest) -> None:
        try:
            self._read(guest)
        except (ssl.SSLWantReadError, BlockingIOError):
            self._selector.modify(guest.connection, selectors.EVENT_READ, guest)
        except ssl.SSLWantWriteError:
            self._selector.modify(guest.connection, selectors.EVENT_WRITE, guest)
        except ssl.SSLError as exc:
            # Who goes without a word may be a load balancer that looks whether the port is open, every few seconds.
            self._end(guest, TLS, is_told=not isinstance(exc, ssl.SSLEOFError))
        except OSError:
            self._end(guest, TLS if guest.is_shaking_hands else None)
        except Exception as exc:
            # A connection's boundary: this thread serves all of them.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            log.error("a connection from %s met %s:\n%s", guest.address[0], type(exc).__name__, stack)
            self._end(guest, NOT_DICOM)

    def _read(self, guest: _Guest) -> None:
        if guest.is_shaking_hands:
            assert isinstance(guest.connection, ssl.SSLSocket)  # noqa: S101
            guest.connection.do_handshake()
            guest.is_shaking_hands = False
        while guest.wanted > 0:
            piece = guest.connection.recv(guest.wanted)
            if not piece:
                self._end(guest, None)
                return
            guest.received += piece
            if len(guest.received) == _HEADER.size and not self._asks(guest):
                self._end(guest, NOT_DICOM, is_told=True)
                return
        request = bytes(guest.received)
        if not _is_readable(request):
            self._end(guest, NOT_DICOM, is_told=True)
            return
        self._forget(guest)
        self._hand_over(guest.connection, guest.address, request)

    def _asks(self, guest: _Guest) -> bool:
        kind, length = guest.announced
        return kind == _REQUEST and length <= _MAX_REQUEST_BYTES

    def _see_off(self) -> None:
        now = time.monotonic()
        # All wait equally long, so they leave in the order in which they came.
        for guest in list(self._guests):
            if guest.until > now:
                return
            self._end(guest, SILENT)

    def _end_oldest(self) -> None:
        oldest = next(iter(self._guests), None)
        if oldest is not None:
            self._end(oldest, CROWDED)

    def _end(self, guest: _Guest, reason: str | None, *, is_told: bool = False) -> None:
        """End a connection; the operator is told where somebody has set up a device wrongly."""
        self._forget(guest)
        if reason is not None:
            level = logging.WARNING if is_told else logging.INFO
            log.log(level, "a connection from %s ends without an association: %s", guest.address[0], _WORDS[reason])
            self._turn_away(reason)
        if reason == NOT_DICOM:
            try:
                guest.connection.send(_ABORT)
            except OSError as exc:
                log.debug("it is gone: %s", exc.strerror)
        guest.connection.close()

    def _forget(self, guest: _Guest) -> None:
        if guest in self._guests:  # one that was handed over in vain is forgotten already
            del self._guests[guest]
            self._selector.unregister(guest.connection)


def _is_readable(request: bytes) -> bool:
    """Tell whether pynetdicom reads an A-ASSOCIATE-RQ: one that it does not would end its thread without an answer."""
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        pdu.to_primitive()
    except (*PYDICOM_ERRORS, AssertionError):
        return False
    return True
