"""Where connections wait until they ask for an association."""

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trustme

from streaming.gateway.dicom import lobby as lobby_module
from streaming.gateway.dicom.lobby import CROWDED, NOT_DICOM, SILENT, TLS, Lobby
from tests.dicomwire import ABORTED, Peer, associate_request, peer


@dataclass
class Running:
    lobby: Lobby
    port: int
    handed: list[tuple[socket.socket, tuple[str, int], bytes]] = field(default_factory=list)
    away: list[str] = field(default_factory=list)


@contextmanager
def running(
    wait_s: float = 30, hand_over: Callable[..., None] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Running]:
    listener = socket.create_server(("127.0.0.1", 0))
    found = Running(None, listener.getsockname()[1])  # type: ignore[arg-type]

    def keep(connection: socket.socket, address: tuple[str, int], first: bytes) -> None:
        found.handed.append((connection, address, first))

    found.lobby = Lobby(
        listener, tls=lambda: tls, hand_over=hand_over or keep, turn_away=found.away.append, wait_s=wait_s
    )
    found.lobby.start()
    try:
        yield found
    finally:
        found.lobby.stop()
        for connection, _, _ in found.handed:
            connection.close()


def wait_for(holds: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_who_asks_is_handed_over_however_it_is_cut(piece: int) -> None:
    request = associate_request()
    with running() as found, peer(found.port) as one:
        for at in range(0, len(request), piece):
            one.send(request[at : at + piece])
        wait_for(lambda: found.handed)
        ((_, address, first),) = found.handed
        assert first == request
        assert address == one.socket.getsockname()
        assert found.lobby.waiting == 0


def test_what_follows_the_request_stays_in_the_connection() -> None:
    with running() as found, peer(found.port) as one:
        one.send(associate_request() + b"next")
        wait_for(lambda: found.handed)
        connection = found.handed[0][0]
        connection.settimeout(20)
        assert connection.recv(100) == b"next"


@pytest.mark.parametrize("sent", [b"", b"\x01", associate_request()[:-1]])
def test_who_does_not_ask_in_time_is_sent_away(sent: bytes) -> None:
    with running(wait_s=0.3) as found, peer(found.port) as one:
        one.send(sent)
        assert one.receive()[0] == 0
        wait_for(lambda: found.away == [SILENT])


@pytest.mark.parametrize("sent", [b"\x02\0\0\0\0\0", b"\xff" * 6, b"\x01\0\0\x10\0\0", b"\x01\0\0\0\0\0"])
def test_who_speaks_something_else_is_told_so(sent: bytes) -> None:
    with running() as found, peer(found.port) as one:
        one.send(sent)
        assert one.receive()[0] == ABORTED
        wait_for(lambda: found.away == [NOT_DICOM])


def test_who_goes_again_is_forgotten_and_not_counted() -> None:
    with running() as found:
        with peer(found.port) as one:
            wait_for(lambda: found.lobby.waiting == 1)
            one.send(b"\x01")
        wait_for(lambda: found.lobby.waiting == 0)
        assert found.away == []


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize(
    ("said", "is_encrypted", "reason"),
    [
        (associate_request(), True, TLS),
        (b"GET /images HTTP/1.1\r\n\r\n", True, TLS),
        (TLS_HELLO, False, NOT_DICOM),
        (b"GET /images HTTP/1.1\r\n\r\n", False, NOT_DICOM),
    ],
    ids=["DICOM where TLS is wanted", "HTTP where TLS is wanted", "TLS where none is wanted", "HTTP"],
)
def test_the_log_tells_of_who_speaks_something_else(
    said: bytes, is_encrypted: bool, reason: str, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tls=tls if is_encrypted else None) as found, peer(found.port) as one:
        one.send(said)
        wait_for(lambda: found.away == [reason])
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in told] == ["streaming.gateway.dicom.lobby"]
    assert "127.0.0.1" in told[0].getMessage()
    assert "TLS" in told[0].getMessage()
    assert "images" not in told[0].getMessage()


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_who_looks_whether_the_port_is_open_fills_no_log(
    is_encrypted: bool, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tls=tls if is_encrypted else None) as found:
        for _ in range(5):
            with peer(found.port):
                wait_for(lambda: found.lobby.waiting == 1)
            wait_for(lambda: found.lobby.waiting == 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lobby_module, "_MOST", 5)
    with running() as found, ExitStack() as stack:
        peers: list[Peer] = []
        for count in range(8):
            peers.append(stack.enter_context(peer(found.port)))
            wait_for(lambda count=count: found.lobby.waiting == min(count + 1, 5))  # type: ignore[misc]
        wait_for(lambda: found.away == [CROWDED] * 3)
        assert [one.receive()[0] for one in peers[:3]] == [0, 0, 0]
        peers[3].send(associate_request())
        wait_for(lambda: found.handed)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError("no descriptor"), KeyError("x")])
def test_an_association_that_cannot_begin_ends_its_connection_alone(error: Exception) -> None:
    failing = threading.Event()
    failing.set()
    handed: list[socket.socket] = []

    def hand_over(connection: socket.socket, *_: object) -> None:
        if failing.is_set():
            raise error
        handed.append(connection)

    with running(hand_over=hand_over) as found:
        with peer(found.port) as one:
            one.send(associate_request())
            assert one.receive()[0] in (0, ABORTED)
        failing.clear()
        with peer(found.port) as other:
            other.send(associate_request())
            wait_for(lambda: handed)
            handed[0].close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_requests_never_end_the_thread() -> None:
    chance = random.Random(15)
    request = associate_request()
    with running(wait_s=0.5) as found:
        for _ in range(500):
            damaged = bytearray(request)
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(6, len(damaged))] = chance.choice((0, 1, 0x40, 0xFF, chance.randrange(256)))
            with peer(found.port) as one, suppress(ConnectionError):
                one.send(bytes(damaged))
        with peer(found.port) as good:
            good.send(request)
            wait_for(lambda: found.handed and found.handed[-1][2] == request)
        assert found.away.count(NOT_DICOM) > 50, "no damage was seen"


def test_stop_closes_what_waits() -> None:
    with running() as found:
        one = Peer(found.port)
        wait_for(lambda: found.lobby.waiting == 1)
    assert one.receive()[0] == 0
    one.socket.close()
