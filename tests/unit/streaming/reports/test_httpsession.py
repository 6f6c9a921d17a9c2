"""HTTPS to real servers: whom is trusted, who is shown a certificate and a token."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from schemas.errors import SettingsError
from streaming.reports.target import AwayError, read_address
from streaming.reports.targets import open_target
from streaming.settings import ReportsSettings
from tests.reportcertificates import HOST, WRONG, Files, serve_as
from tests.reportparts import report


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, trustme.CA())


@contextmanager
def run_https(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[tuple[Any, Any]]]]:
    """A server that takes all, and notes the headers and the certificate that it was shown."""
    shown: list[tuple[Any, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append((self.headers, self.connection.getpeercert()))  # type: ignore[attr-defined]  # an SSLSocket
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port, shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("kind", ["fhir", "stow"])
def test_https_is_shown_our_certificate(files: Files, kind: str) -> None:
    own = files.write_own()
    with run_https(serve_as(files.authority.issue_cert(HOST), wanting=files.authority)) as (port, shown):
        address = read_address(f"{kind}:https://{HOST}:{port}/in")
        without, showing = (open_target(address, ReportsSettings(http_ca=files.ca, **kept)) for kept in ({}, own))
        with pytest.raises(AwayError):
            without.send(report())
        showing.send(report())
        without.close()
        showing.close()
    assert len(shown) == 1
    assert ("DNS", "xray.hospital") in shown[0][1]["subjectAltName"]


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_authority_of_https_stops_the_start_and_later_waits(files: Files, kind: str, wrong: str) -> None:
    content = WRONG[wrong]
    ca = files.ca
    with run_https(serve_as(files.authority.issue_cert(HOST))) as (port, shown):
        address = read_address(f"{kind}:https://{HOST}:{port}/in")
        target = open_target(address, ReportsSettings(http_ca=ca))
        ca.unlink() if content is None else ca.write_bytes(content)
        with pytest.raises(AwayError):
            target.send(report())
        with pytest.raises(SettingsError, match="XRAY_REPORTS__HTTP_CA"):
            open_target(address, ReportsSettings(http_ca=ca))
        files.authority.cert_pem.write_to_path(ca)
        target.send(report())
        target.close()
    assert len(shown) == 1


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("said", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTPS_PROXY", "NETRC"])
def test_what_the_environment_says_to_other_programs_counts_for_nothing(
    files: Files, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = files.folder / "other"
    if said == "NETRC":
        other.write_text(f"machine {HOST} login PAT password words")
    else:
        trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv(said, "http://127.0.0.1:1" if said == "HTTPS_PROXY" else str(other))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with run_https(serve_as(files.authority.issue_cert(HOST))) as (port, shown):
        settings = ReportsSettings(http_ca=files.ca, http_token=SecretStr("s3cret"))
        target = open_target(read_address(f"{kind}:https://{HOST}:{port}/in"), settings)
        target.send(report())
        target.close()
    assert [headers["Authorization"] for headers, _ in shown] == ["Bearer s3cret"]


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("wrong", ["pass phrase", *WRONG])
def test_a_bad_certificate_of_ours_stops_the_start(files: Files, kind: str, wrong: str) -> None:
    own = files.write_own(pass_phrase=b"secret" if wrong == "pass phrase" else None)
    if wrong in WRONG:
        content = WRONG[wrong]
        own["tls_key"].unlink() if content is None else own["tls_key"].write_bytes(content)
    with pytest.raises(SettingsError, match="XRAY_REPORTS__TLS_KEY"):
        open_target(read_address(f"{kind}:https://fhir.hospital"), ReportsSettings(**own))


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("expired", "its certificate has expired; wanted one that is valid now"),
        ("another host", "of another host; wanted one for 127.0.0.1"),
        ("another authority", "an authority that is not known; wanted one of XRAY_REPORTS__HTTP_CA, "),
        ("no authority", "wanted one of the usual ones, for XRAY_REPORTS__HTTP_CA is not set"),
        ("mutual", "(XRAY_REPORTS__TLS_CERTIFICATE)"),
        ("no TLS", "it answers without TLS; wanted TLS, or a target http: where it has none"),
    ],
)
def test_what_https_fails_of_is_told(files: Files, kind: str, what: str, words: str) -> None:
    own = files.authority
    issued = {
        "expired": lambda: own.issue_cert(HOST, not_after=datetime.now(UTC)),
        "another host": lambda: own.issue_cert("fhir.hospital"),
        "another authority": lambda: trustme.CA().issue_cert(HOST),
    }.get(what, lambda: own.issue_cert(HOST))()
    context = None if what == "no TLS" else serve_as(issued, wanting=own if what == "mutual" else None)
    with run_https(context) as (port, shown):
        settings = ReportsSettings(http_ca=None if what == "no authority" else files.ca)
        target = open_target(read_address(f"{kind}:https://{HOST}:{port}/in"), settings)
        with pytest.raises(AwayError) as caught:
            target.send(report())
        target.close()
    assert words in str(caught.value)
    assert shown == []
