"""Where the doors listen."""

import socket

from schemas.errors import SettingsError


def open_listener(host: str, port: int, setting: str, *, backlog: int) -> socket.socket:
    """Listen at an address.

    Parameters
    ----------
    host : str
        Address or name; of a name the first address. Where ``::`` stands for all addresses, those of IPv4 are among
        them.
    port : int
        0 takes a free one.
    setting : str
        The variable that names the port.
    backlog : int
        Connections that may wait to be accepted.

    Raises
    ------
    SettingsError
        That cannot be; names the settings.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Of a socket that does not name TCP, asyncio leaves Nagle's algorithm on: 40 ms for each answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(backlog)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "that is no name of a host"
        msg = (
            f"{setting.rpartition('__')[0]}__HOST, {setting}: cannot listen at {host or 'no host'}, port {port}: {why}"
        )
        raise SettingsError(msg) from exc
    return listener
