"""An end, after so many seconds, to what is done over sockets: to find an address, to connect, TLS, request and answer.

A socket's own time-out begins anew with every byte, and a look-up of a name has none at all. So one peer that drips, or
one name server that hangs, would hold whoever waits for it.
"""

import ipaddress
import os
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

_Entry = tuple[Any, ...]
"""As `socket.getaddrinfo` gives them."""

_under_way: dict[tuple[str, int], Future[list[_Entry]]] = {}
_lock = threading.Lock()


class Deadline:
    """The end of one exchange: at it, the sockets that it watches are shut down, whoever reads them.

    A context manager; outside of it nothing is shut down any more.

    Parameters
    ----------
    within_s : float
        Seconds from now.
    """

    def __init__(self, within_s: float) -> None:
        self._at = time.monotonic() + within_s
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer: threading.Timer | None = None

    @property
    def left_s(self) -> float:
        """Seconds until then; a socket's time-out of 0 would mean something else, so it is never quite 0."""
        return max(self._at - time.monotonic(), 0.001)

    @property
    def is_over(self) -> bool:
        """Whether it has passed: what looks like the end of an answer may be that of the time."""
        return time.monotonic() >= self._at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            for one in self._watched:
                one.close()
            self._watched.clear()

    def watch(self, sock: socket.socket) -> None:
        """Shut a socket down at the deadline; it may be wrapped by TLS meanwhile, or be closed.

        Raises
        ------
        TimeoutError
            The deadline has passed; the socket is shut down.
        """
        # A descriptor of its own: TLS takes the socket's away, and a number that was closed may be another file's.
        held = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            self._watched.append(held)
            if self.is_over:
                _shut_down(held)
                raise TimeoutError
            if self._timer is None:
                self._timer = threading.Timer(self.left_s, self._shut_down)
                self._timer.daemon = True
                self._timer.start()

    def connect(self, host: str, port: int, *, within_s: float | None = None) -> socket.socket:
        """Connect to a host, by one of its addresses after the other; the socket is watched.

        Parameters
        ----------
        host : str
            Name or address.
        port : int
            Of TCP.
        within_s : float, optional
            Where that is sooner than the deadline.

        Raises
        ------
        OSError
            It has no address, or none answers in time.
        """
        until = self._at if within_s is None else min(self._at, time.monotonic() + within_s)
        entries = resolve(host, port, within_s=until - time.monotonic())
        failure: OSError = TimeoutError()
        for position, (family, kind, protocol, _, address) in enumerate(entries):
            # An address that does not answer leaves time for those behind it.
            left_s = (until - time.monotonic()) / (len(entries) - position)
            if left_s <= 0:
                raise TimeoutError
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(left_s)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.watch(sock)
            except OSError as exc:
                sock.close()
                failure = exc
            else:
                sock.settimeout(self.left_s)
                return sock
        raise failure

    def _shut_down(self) -> None:
        with self._lock:
            for one in self._watched:
                _shut_down(one)


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # the peer has closed it just now
        sock.shutdown(socket.SHUT_RDWR)


def resolve(host: str, port: int, *, within_s: float) -> list[_Entry]:
    """Ask for a host's addresses, and wait for no longer than this.

    A question that nobody answers goes on by itself, since nothing ends it; who asks the same meanwhile waits for that
    one. So there is no more than one thread for each name.

    Parameters
    ----------
    host : str
        Name or address.
    port : int
        For the system, which wants it.
    within_s : float
        Seconds.

    Returns
    -------
    list of tuple
        As `socket.getaddrinfo` has them, for TCP; at least one.

    Raises
    ------
    socket.gaierror
        There is none, it is no name, or there was no answer in time.
    """
    if _is_address(host):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    key = (host, port)
    with _lock:
        answer = _under_way.get(key)
        if answer is None:
            answer = _under_way[key] = Future()
            threading.Thread(target=_ask, args=(key, answer), name="resolve", daemon=True).start()
    try:
        return answer.result(max(within_s, 0.0))
    except TimeoutError as exc:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from exc


def _ask(key: tuple[str, int], answer: Future[list[_Entry]]) -> None:
    try:
        found = socket.getaddrinfo(*key, type=socket.SOCK_STREAM)
    except OSError as exc:
        answer.set_exception(exc)
    except ValueError:  # as Python has it for what can be no name
        answer.set_exception(socket.gaierror(socket.EAI_NONAME, "it is no name of a host"))
    else:
        answer.set_result(found)
    finally:
        with _lock:
            del _under_way[key]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
