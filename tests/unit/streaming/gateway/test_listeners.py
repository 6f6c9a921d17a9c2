"""Where the doors listen: addresses and names, and what is said where that cannot be."""

import socket

import pytest

from schemas.errors import SettingsError
from streaming.gateway.listeners import open_listener

_SETTING = "XRAY_GATEWAY__DICOM_PORT"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),  # noqa: S104
        ("::1", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
    ],
)
def test_it_is_reached_at_its_addresses(host: str, reached_at: list[str]) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with open_listener(host, 0, _SETTING, backlog=5) as listener:
        for address in reached_at:
            socket.create_connection((address, listener.getsockname()[1]), timeout=5).close()
            listener.accept()[0].close()


@pytest.mark.parametrize("host", ["", "a" * 80 + ".example", "a..example", "host.invalid", "203.0.113.7"])
def test_a_host_that_is_none_of_this_machine_is_told(host: str) -> None:
    with pytest.raises(SettingsError, match=rf"XRAY_GATEWAY__HOST, {_SETTING}: cannot listen at {host or 'no host'}, "):
        open_listener(host, 0, _SETTING, backlog=5)


def test_a_port_that_is_taken_is_told() -> None:
    with open_listener("127.0.0.1", 0, _SETTING, backlog=5) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"{_SETTING}: cannot listen at 127\.0\.0\.1, port {port}: Address"):
            open_listener("127.0.0.1", port, _SETTING, backlog=5)
