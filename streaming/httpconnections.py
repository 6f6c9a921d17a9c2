"""urllib3's connections, each request of which has a deadline for the whole of it."""

import socket
from collections.abc import Callable
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from streaming.deadline import Deadline

FindDeadline = Callable[[], Deadline]


class TimedConnection(HTTPConnection):
    """Connects, asks and reads until the deadline that ``find_deadline`` gives, and no longer."""

    find_deadline: FindDeadline

    def _new_conn(self) -> socket.socket:  # before TLS begins, in which a peer can drip as well
        return self.find_deadline().connect(self._dns_host, int(self.port), within_s=_seconds(self.timeout))

    def request(self, *args: Any, **options: Any) -> None:
        """Ask; see urllib3."""
        if self.sock is not None:  # of a request before this one, with another deadline
            self.find_deadline().watch(self.sock)
        super().request(*args, **options)


class TimedTlsConnection(TimedConnection, HTTPSConnection):
    """The same, over TLS."""


def make_pools(find: FindDeadline) -> dict[str, type[HTTPConnectionPool]]:
    """Make what urllib3's `PoolManager` wants to know for its connections to be such ones."""

    class Plain(TimedConnection):
        find_deadline = staticmethod(find)

    class Tls(TimedTlsConnection):
        find_deadline = staticmethod(find)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def _seconds(timeout: Any) -> float | None:
    return timeout if isinstance(timeout, int | float) else None
