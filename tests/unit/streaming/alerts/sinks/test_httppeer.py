"""Posts to a real server that fails in every way that a server can."""

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from streaming.alerts.sinks.httppeer import MAX_ANSWER_BYTES, MAX_RETRY_AFTER_S, HttpPeer, PostError, parse_retry_after
from tests.receiver import Answer, Receiver, drip, receive, say, say_nothing, say_raw

NOW = datetime(2026, 11, 30, 8, 0, 0, tzinfo=UTC)
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def serve_as(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("86401", MAX_RETRY_AFTER_S),
        ("9" * 5000, MAX_RETRY_AFTER_S),
        ("Mon, 30 Nov 2026 08:02:00 GMT", 120.0),
        ("Monday, 30-Nov-26 08:02:00 GMT", 120.0),
        ("Mon, 30 Nov 2026 08:02:00 -0000", 120.0),
        ("Mon, 30 Nov 2026 07:00:00 GMT", 0.0),
        ("Wed, 30 Nov 2036 08:00:00 GMT", MAX_RETRY_AFTER_S),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Mon, 99 Foo 2026 08:02:00 GMT", None),
        ("Mon, 30 Nov 2026 08:02:00 +9999999999", None),
    ],
)
def test_retry_after_has_two_forms(value: str | None, wanted: float | None) -> None:
    assert parse_retry_after(value, NOW) == wanted


def test_a_connection_is_kept(receiver: Receiver) -> None:
    peer = HttpPeer(receiver.url, timeout_s=10)
    receiver.answers = [say(200, b"x" * MAX_ANSWER_BYTES), say(204), say(500, b"no"), say(200)]
    assert [peer.post(b"{}", {"A": "1"}).status for _ in range(4)] == [200, 204, 500, 200]
    assert len({got.connection for got in receiver.got}) == 1
    assert receiver.got[0].path == "/hook?key=1"
    assert receiver.got[0].headers["host"] == f"127.0.0.1:{receiver.port}"
    assert receiver.got[0].headers["a"] == "1"
    peer.close()


@pytest.mark.parametrize(
    "closing",
    [
        say(200, b"", Connection="close"),
        say_raw(HEAD + b"Content-Length: 0\r\n\r\n"),
        say(200, b"x" * (MAX_ANSWER_BYTES + 1)),
        say_raw(b"HTTP/1.0 200 OK\r\n\r\nuntil the end"),
    ],
    ids=["says so", "does not say so", "answer too long", "HTTP/1.0"],
)
def test_a_connection_that_was_closed_is_made_anew(receiver: Receiver, closing: Answer) -> None:
    peer = HttpPeer(receiver.url, timeout_s=10)
    receiver.answers = [closing]
    assert [peer.post(b"{}", {}).status for _ in range(3)] == [200, 200, 200]
    assert len({got.connection for got in receiver.got}) == 2


def test_a_kept_connection_that_fails_is_no_failure_of_the_receiver(receiver: Receiver) -> None:
    peer = HttpPeer(receiver.url, timeout_s=10)
    receiver.answers = [say(200), say_raw(b"")]
    assert peer.post(b"{}", {}).status == 200
    assert peer.post(b"{}", {}).status == 200
    assert len(receiver.got) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (say_raw(b""), "closed without an answer"),
        (say_raw(HEAD + b"Content-Length: 100\r\n\r\nhalf"), "broke off"),
        (say_raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\nhalf"), "broke off"),
        (say_raw(b"SSH-2.0-server secret words\r\n"), "was not HTTP"),
        (say_raw(HEAD + b"X: 1\r\n" * 200 + b"\r\n"), "was not HTTP"),
        (say_raw(b"x" * 100_000), "was not HTTP"),
    ],
    ids=["nothing", "half a body", "half a chunk", "other words", "many headers", "long line"],
)
def test_what_is_no_whole_answer_is_a_failure(receiver: Receiver, answer: Answer, words: str) -> None:
    receiver.answers = [answer] * 2
    peer = HttpPeer(receiver.url, timeout_s=10)
    with pytest.raises(PostError, match=words) as caught:
        peer.post(b"{}", {})
    assert "secret words" not in str(caught.value)
    assert f"127.0.0.1:{receiver.port}" in str(caught.value)
    assert "key" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        say_nothing,
        drip(b"", b"H"),
        drip(HEAD, b"X: y\r\n"),
        drip(HEAD + b"Content-Length: 60000\r\n\r\n", b"x"),
        drip(HEAD + b"Connection: close\r\n\r\n", b"x"),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["nothing", "status line", "headers", "body", "body to the end", "chunks"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.slow
def test_a_slow_answer_is_cut_off(answer: Answer, scheme: str, authority: trustme.CA, authority_file: Path) -> None:
    context = serve_as(authority, "127.0.0.1") if scheme == "https" else None
    with receive(context) as receiver:
        receiver.answers = [answer]
        peer = HttpPeer(receiver.url, timeout_s=0.5, ca=authority_file)
        started = time.monotonic()
        with pytest.raises(PostError, match=r"no whole answer within 0.5 s"):
            peer.post(b"{}", {})
        assert 0.4 < time.monotonic() - started < 5
        assert HttpPeer(receiver.url, timeout_s=10, ca=authority_file).post(b"{}", {}).status == 200


def test_a_kept_connection_that_becomes_slow_is_cut_off(receiver: Receiver) -> None:
    receiver.answers = [say(200), drip(HEAD, b"X: y\r\n"), say(200)]
    peer = HttpPeer(receiver.url, timeout_s=1)
    assert peer.post(b"{}", {}).status == 200
    with pytest.raises(PostError, match="no whole answer"):
        peer.post(b"{}", {})
    assert len({got.connection for got in receiver.got}) == 1
    assert peer.post(b"{}", {}).status == 200, "the next post has a connection of its own"
    assert len({got.connection for got in receiver.got}) == 2


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with receive() as other:
        for status in (301, 302, 303, 307, 308):
            receiver.answers = [say(status, Location=other.url)]
            answer = HttpPeer(receiver.url, timeout_s=10).post(b"{}", {})
            assert (answer.status, answer.is_success) == (status, False)
        assert other.got == []


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receive() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert HttpPeer(receiver.url, timeout_s=10).post(b"{}", {}).status == 200
        assert proxy.got == []


def test_nobody_there_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PostError, match="Connection refused"):
            HttpPeer(f"http://127.0.0.1:{taken.getsockname()[1]}", timeout_s=10).post(b"{}", {})
    with pytest.raises(PostError, match="name cannot be resolved"):
        HttpPeer("http://nobody.invalid", timeout_s=10).post(b"{}", {})


def test_a_name_is_asked_once_and_the_connection_goes_there(
    authority: trustme.CA, authority_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = socket.getaddrinfo

    def resolve(host: str, *args: object, **options: object) -> object:
        if host != "receiver.example":
            return really(host, *args, **options)  # type: ignore[arg-type]
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "192.0.2.1"  # another one, were it asked again
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with receive(serve_as(authority, "receiver.example")) as receiver:
        peer = HttpPeer(f"https://receiver.example:{receiver.port}/", timeout_s=10, ca=authority_file)
        assert peer.post(b"{}", {}).status == 200
        assert peer.post(b"{}", {}).status == 200
        assert asked == ["receiver.example"]
        assert receiver.got[0].headers["host"] == f"receiver.example:{receiver.port}"


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.9", "127.0.0.1")]
    really = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: entries if host == "two.example" else really(host, *a, **o)
    )
    assert HttpPeer(f"http://two.example:{receiver.port}/", timeout_s=10).post(b"{}", {}).status == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "127.1"])
def test_private_addresses_are_refused_before_a_connection(receiver: Receiver, address: str) -> None:
    peer = HttpPeer(f"http://{address}:{receiver.port}/", timeout_s=10, allow_private=False)
    with pytest.raises(PostError, match="not allowed"):
        peer.post(b"{}", {})
    assert receiver.got == []


def test_tls_is_verified(authority: trustme.CA, authority_file: Path) -> None:
    with receive(serve_as(authority, "127.0.0.1")) as receiver:
        assert HttpPeer(receiver.url, timeout_s=10, ca=authority_file).post(b"{}", {}).status == 200
        with pytest.raises(PostError, match=r"certificate is not accepted: .*issuer"):
            HttpPeer(receiver.url, timeout_s=10).post(b"{}", {})
    with receive(serve_as(authority, "other.example")) as receiver:
        with pytest.raises(PostError, match=r"certificate is not accepted: .*IP address mismatch"):
            HttpPeer(receiver.url, timeout_s=10, ca=authority_file).post(b"{}", {})
        with pytest.raises(PostError, match=r"certificate is not accepted: .*ostname mismatch"):
            HttpPeer(receiver.url.replace("127.0.0.1", "localhost"), timeout_s=10, ca=authority_file).post(b"{}", {})
    with receive() as plain, pytest.raises(PostError, match="TLS failed"):
        HttpPeer(plain.url.replace("http:", "https:"), timeout_s=10, ca=authority_file).post(b"{}", {})


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_and_no_netrc_of_the_environment_is_used(
    receiver: Receiver, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with receive() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert HttpPeer(receiver.url, timeout_s=10).post(b"{}", {}).status == 200
        assert proxy.got == []
    assert "authorization" not in receiver.got[0].headers
