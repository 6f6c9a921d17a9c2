"""A deadline for sockets: it ends what drips or hangs, and nothing else."""

import socket
import ssl
import threading
import time

import pytest

from streaming.deadline import Deadline, resolve
from tests.drips import TLS_RECORD, hanging_names, run_drips

__all__ = ["hanging_names"]  # a fixture


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_what_drips_ends_at_the_deadline(host: str) -> None:
    with run_drips(b"x") as port, Deadline(0.3) as deadline:
        began = time.monotonic()
        sock = deadline.connect(host, port)
        sock.sendall(b"?")
        while sock.recv(100):
            pass
        assert deadline.is_over
        assert time.monotonic() - began < 5
        sock.close()


def test_tls_that_drips_ends_at_the_deadline() -> None:
    with run_drips(TLS_RECORD) as port, Deadline(0.3) as deadline:
        sock = deadline.connect("127.0.0.1", port)
        began = time.monotonic()
        with pytest.raises(OSError):  # an end of TLS, or of the connection
            ssl.create_default_context().wrap_socket(sock, server_hostname="x.example")
        assert time.monotonic() - began < 5


def test_behind_its_end_nothing_is_shut_down() -> None:
    with run_drips(b"x") as port:
        with Deadline(0.2) as deadline:
            sock = deadline.connect("127.0.0.1", port)
        while not deadline.is_over:
            threading.Event().wait(0.05)
        sock.settimeout(5)
        sock.sendall(b"?")
        assert sock.recv(1) == b"x"
        with pytest.raises(TimeoutError), Deadline(0.0) as late:
            late.watch(sock)
        sock.close()


@pytest.mark.parametrize("within_s", [0.0, 0.1, 0.3])
def test_a_name_server_that_hangs_is_waited_for_no_longer(hanging_names: list[str], within_s: float) -> None:
    began = time.monotonic()
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(socket.gaierror, match="in time"):
            resolve(f"host-{within_s}.hangs", 1, within_s=within_s)
    assert time.monotonic() - began < 5 * within_s + 5
    assert hanging_names == [f"host-{within_s}.hangs"]
    assert threading.active_count() <= before + 1
    with pytest.raises(socket.gaierror), Deadline(0.1) as deadline:
        deadline.connect("other.hangs", 1)


@pytest.mark.parametrize("host", ["nobody.invalid", "x" * 64 + ".example", "a..b", ""])
def test_what_is_no_name_is_told_as_one_that_nobody_has(host: str) -> None:
    with pytest.raises(OSError), Deadline(10) as deadline:  # the system's words
        deadline.connect(host, 1)
