"""Ports that a server can be given before it starts."""

import socket
from pathlib import Path

import pytest

from benchmarks import ports
from benchmarks.ports import find_ports

_LOW, _HIGH = (int(text) for text in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())


@pytest.mark.skipif(_HIGH - _LOW > 60_000, reason="outgoing connections may take nearly every port of this machine")
def test_no_outgoing_connection_is_given_one() -> None:
    found = {find_ports() for _ in range(200)}
    assert not [port for port in found if _LOW <= port <= _HIGH or _LOW <= port + 1 <= _HIGH]
    assert len(found) > 190  # two processes that ask at once are given different ones


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_ports(4)
    monkeypatch.setattr(ports, "_outside", lambda low, high: range(first, first + 5))
    with socket.socket() as server:
        server.bind(("127.0.0.1", first + 1))
        assert find_ports(2) == first + 2


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (32_768, 60_999, range(10_000, 32_768)),
        (10_100, 40_000, range(40_001, 65_536)),
        (1_024, 65_535, range(10_000, 65_536)),
    ],
)
def test_the_larger_part_outside_is_used(low: int, high: int, found: range) -> None:
    assert ports._outside(low, high) == found
