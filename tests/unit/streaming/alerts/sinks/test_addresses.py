"""Addresses that a webhook may lead to."""

import socket

import pytest

from streaming.alerts.sinks.addresses import ForbiddenAddressError, is_allowed, resolve_host

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1",
    "2002:a00:1::",
]
NEVER = [
    "0.0.0.0",  # noqa: S104
    "::",
    "::ffff:0.0.0.0",
    "255.255.255.255",
    "240.0.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "64:ff9b::",
    "4000::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, allow_private=False)
    assert is_allowed(address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_allowed_where_the_settings_say_so(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert is_allowed(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_addresses_that_are_nobodys_are_never_allowed(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert not is_allowed(address, allow_private=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "::1"])
def test_every_writing_of_this_machine_is_known(host: str) -> None:
    with pytest.raises(ForbiddenAddressError, match="allow_private"):
        resolve_host(host, 80, allow_private=False, within_s=10)
    assert resolve_host(host, 80, allow_private=True, within_s=10)


def test_addresses_that_are_not_allowed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["10.0.0.1", "93.184.216.34", "::ffff:127.0.0.1", "93.184.216.34"]
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    assert resolve_host("both.example", 80, allow_private=False, within_s=10) == ["93.184.216.34"]
    assert resolve_host("both.example", 80, allow_private=True, within_s=10) == [
        "10.0.0.1",
        "93.184.216.34",
        "::ffff:127.0.0.1",
    ]
