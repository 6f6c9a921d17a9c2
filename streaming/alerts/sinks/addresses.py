"""Which addresses a webhook may lead to: whoever may write a URL must not reach this network's own machines by it."""

import ipaddress

from streaming.deadline import resolve

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_IPV4_BITS = 0xFFFF_FFFF


class ForbiddenAddressError(OSError):
    """The name leads only to addresses that are not allowed."""


def resolve_host(host: str, port: int, *, allow_private: bool, within_s: float) -> list[str]:
    """Ask once for a host's addresses, and give those that may be used; whoever connects uses these, not the name.

    A name that is asked for a second time, for the connection itself, may have another address by then.

    Parameters
    ----------
    host : str
        A name, or an address in any writing that the system understands (``127.1``, ``0x7f000001``).
    port : int
        For the system, which wants it.
    allow_private : bool
        See `is_allowed`.
    within_s : float
        Seconds, for the answer.

    Returns
    -------
    list of str
        At least one, in the system's order.

    Raises
    ------
    ForbiddenAddressError
        It has addresses, and none is allowed.
    OSError
        The name has no address, or nobody could be asked or answered in time (`socket.gaierror`).
    """
    found = [str(entry[4][0]) for entry in resolve(host, port, within_s=within_s)]
    allowed = [address for address in dict.fromkeys(found) if is_allowed(address, allow_private=allow_private)]
    if not allowed:
        msg = "leads only to addresses that are not allowed (allow_private)"
        raise ForbiddenAddressError(msg)
    return allowed


def is_allowed(address: str, *, allow_private: bool) -> bool:
    """Tell whether a connection may be made to an address.

    Parameters
    ----------
    address : str
        IPv4 or IPv6, with or without a zone. An IPv6 address that holds an IPv4 one leads to that one, so both count.
    allow_private : bool
        Whether private, loopback and link-local addresses are among the allowed ones. Unspecified (``0.0.0.0``, which
        is this machine too), multicast and reserved ones never are.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    held = _held_ipv4(parsed)
    if held is not None:
        return is_allowed(str(held), allow_private=allow_private)
    if parsed.is_unspecified or parsed.is_multicast or (parsed.is_reserved and not parsed.is_loopback):
        return False
    return parsed.is_global or allow_private


def _held_ipv4(address: _Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address) or address.is_unspecified or address.is_loopback:
        return None
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & _IPV4_BITS)
    return address.ipv4_mapped or address.sixtofour
