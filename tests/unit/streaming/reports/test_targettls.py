"""TLS towards real peers: whom is trusted, who is shown a certificate, and what is said where it fails."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage

from schemas.errors import SettingsError
from streaming.reports.target import AwayError, Target, read_address
from streaming.reports.targets import open_target
from streaming.settings import ReportsSettings
from tests.reportcertificates import HOST, WRONG, Files, serve_as
from tests.reportparts import report
from tests.reportpeers import MllpReceiver, run_mllp

pytestmark = pytest.mark.slow

KINDS = ["mllps", "dicoms"]
MANY = ["mllps", pytest.param("dicoms", marks=pytest.mark.slow)]
"""For tests of many cases: an archive takes half a second each time."""
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, trustme.CA())


@dataclass
class Peer:
    """What has come to a peer, by key."""

    port: int
    taken: Callable[[], list[str]]


@contextmanager
def run_peer(kind: str, tls: ssl.SSLContext | None) -> Iterator[Peer]:
    """A receiver of HL7 or an archive."""
    if kind.startswith("mllp"):
        with run_mllp(MllpReceiver(tls=tls)) as receiver:
            yield Peer(receiver.port, lambda: receiver.accepted)
        return
    taken: list[str] = []
    entity = AE(ae_title="PACS")
    entity.add_supported_context(Comprehensive3DSRStorage)

    def store(event: Any) -> int:
        taken.append(str(event.dataset.SOPInstanceUID))
        return 0

    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=tls)
    try:
        yield Peer(server.server_address[1], lambda: taken)
    finally:
        server.shutdown()


def aim(kind: str, port: int, settings: ReportsSettings, host: str = HOST) -> Target:
    title = "PACS@" if kind.startswith("dicom") else ""
    return open_target(read_address(f"{kind}:{title}{host}:{port}"), settings)


def fail(kind: str, port: int, settings: ReportsSettings, host: str = HOST) -> str:
    """Send a report that does not arrive; give what is said of it."""
    target = aim(kind, port, settings, host)
    try:
        with pytest.raises(AwayError) as caught:
            target.send(report())
    finally:
        target.close()
    assert "PAT" not in str(caught.value)
    return str(caught.value)


def make_settings(ca: Path | None = None, own: dict[str, Path] | None = None, answer_s: float = 5) -> ReportsSettings:
    return ReportsSettings(answer_s=answer_s, tls_ca=ca, **(own or {}))


# --- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_mutual", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_reports_arrive_over_one_connection(
    files: Files, kind: str, version: ssl.TLSVersion, *, is_mutual: bool
) -> None:
    context = serve_as(files.authority.issue_cert(HOST), wanting=files.authority if is_mutual else None)
    context.minimum_version = context.maximum_version = version
    settings = make_settings(files.ca, files.write_own() if is_mutual else None)
    with run_peer(kind, context) as peer:
        target = aim(kind, peer.port, settings)
        for number in range(3):
            target.send(report(number))
        target.close()
        assert len(set(peer.taken())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_is_known_by_its_name(files: Files, kind: str) -> None:
    with run_peer(kind, serve_as(files.authority.issue_cert("localhost"))) as peer:
        target = aim(kind, peer.port, make_settings(files.ca), "localhost")
        target.send(report())
        target.close()
        assert len(peer.taken()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_renewed_files_count_from_the_next_connection_on(files: Files, kind: str) -> None:
    renewed = trustme.CA()
    settings = make_settings(files.ca, files.write_own())
    target = None
    for authority in (files.authority, renewed):
        with run_peer(kind, serve_as(authority.issue_cert(HOST), wanting=authority)) as peer:
            if target is None:
                target = aim(kind, peer.port, settings)
                target.send(report())
                target.close()
                continue
            target = aim(kind, peer.port, settings)
            with pytest.raises(AwayError, match="authority that is not known"):
                target.send(report())
            renewed.cert_pem.write_to_path(files.folder / "ca.pem")
            files.write_own(renewed)
            target.send(report())
            target.close()
            assert len(peer.taken()) == 1


# --- the peer's certificate -------------------------------------------------------------------------------------------


def issue(files: Files, what: str) -> trustme.LeafCert:
    """A certificate that is wrong in some way."""
    return {
        "expired yesterday": lambda: files.authority.issue_cert(HOST, not_after=NOW - DAY),
        "expired a minute ago": lambda: files.authority.issue_cert(HOST, not_after=NOW - timedelta(minutes=1)),
        "expired years ago": lambda: files.authority.issue_cert(HOST, not_after=NOW - 2000 * DAY),
        "from tomorrow": lambda: files.authority.issue_cert(HOST, not_before=NOW + DAY),
        "from an hour on": lambda: files.authority.issue_cert(HOST, not_before=NOW + timedelta(hours=1)),
        "from next year": lambda: files.authority.issue_cert(HOST, not_before=NOW + 365 * DAY),
        "a name": lambda: files.authority.issue_cert("ris.hospital"),
        "another address": lambda: files.authority.issue_cert("127.0.0.2"),
        "the common name alone": lambda: files.authority.issue_cert("ris.hospital", common_name=HOST),
        "another authority": lambda: trustme.CA().issue_cert(HOST),
        "one below another": lambda: trustme.CA().create_child_ca().issue_cert(HOST),
    }[what]()


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("expired yesterday", "its certificate has expired; wanted one that is valid now"),
        ("expired a minute ago", "its certificate has expired; wanted one that is valid now"),
        ("expired years ago", "its certificate has expired; wanted one that is valid now"),
        ("from tomorrow", "not valid yet; wanted one that is valid now"),
        ("from an hour on", "not valid yet; wanted one that is valid now"),
        ("from next year", "not valid yet; wanted one that is valid now"),
        ("a name", "of another host; wanted one for 127.0.0.1"),
        ("another address", "of another host; wanted one for 127.0.0.1"),
        ("the common name alone", "of another host; wanted one for 127.0.0.1"),
        ("another authority", "an authority that is not known; wanted one of XRAY_REPORTS__TLS_CA, "),
        ("one below another", "an authority that is not known; wanted one of XRAY_REPORTS__TLS_CA, "),
    ],
)
@pytest.mark.slow
def test_a_wrong_certificate_is_told_and_nothing_is_sent(files: Files, kind: str, what: str, words: str) -> None:
    with run_peer(kind, serve_as(issue(files, what))) as peer:
        assert words in fail(kind, peer.port, make_settings(files.ca))
        assert peer.taken() == []


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_authority_of_its_own_a_hospital_is_not_known(files: Files, kind: str) -> None:
    with run_peer(kind, serve_as(files.authority.issue_cert(HOST))) as peer:
        said = fail(kind, peer.port, make_settings())
    assert "wanted one of the usual ones, for XRAY_REPORTS__TLS_CA is not set" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_not_the_certificates_is_told(files: Files, kind: str) -> None:
    with run_peer(kind, serve_as(files.authority.issue_cert(HOST))) as peer:
        assert "wanted one for localhost" in fail(kind, peer.port, make_settings(files.ca), "localhost")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_tls_is_refused(files: Files, kind: str, version: str) -> None:
    context = serve_as(files.authority.issue_cert(HOST))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with run_peer(kind, context) as peer:
        assert "wanted 1.2 or newer" in fail(kind, peer.port, make_settings(files.ca))


# --- our certificate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("none", r"it (wants|may want) a certificate, and none is set \(XRAY_REPORTS__TLS_CERTIFICATE\)"),
        ("another authority", r"does not accept the certificate that it is shown \(XRAY_REPORTS__TLS_CERTIFICATE\)"),
        ("expired", r"does not accept the certificate that it is shown \(XRAY_REPORTS__TLS_CERTIFICATE\)"),
        ("not yet valid", r"does not accept the certificate that it is shown \(XRAY_REPORTS__TLS_CERTIFICATE\)"),
    ],
)
@pytest.mark.slow
def test_what_a_peer_says_of_our_certificate_is_told(
    files: Files, kind: str, version: ssl.TLSVersion, what: str, words: str
) -> None:
    own = {
        "none": dict,
        "another authority": lambda: files.write_own(trustme.CA()),
        "expired": lambda: files.write_own(not_after=NOW - DAY),
        "not yet valid": lambda: files.write_own(not_before=NOW + DAY),
    }[what]()
    context = serve_as(files.authority.issue_cert(HOST), wanting=files.authority)
    context.minimum_version = context.maximum_version = version
    with run_peer(kind, context) as peer:
        target = aim(kind, peer.port, make_settings(files.ca, own))
        for _ in range(5):  # it may be seen while it is sent or while the answer is read
            with pytest.raises(AwayError, match=words):
                target.send(report())
        target.close()
        assert peer.taken() == []


# --- TLS on one side only ---------------------------------------------------------------------------------------------


@contextmanager
def run_socket(answer: bytes | None, *, reads: bool = True) -> Iterator[int]:
    """A peer that answers anything with these bytes and closes; with None it says nothing, and stays."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            if reads:
                connection.recv(65_536)
            if answer is None:
                ended.wait(20)
            else:
                connection.sendall(answer)
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65_536)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x0bMSH|^~\\&|RIS\rMSA|AR|PAT\r\x1c\r", "it answers without TLS; wanted TLS, or a target {plain}: where"),
        (b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x02", "it answers without TLS; wanted TLS, or a target {plain}: where"),
        (b"HTTP/1.1 400 Bad PAT\r\n\r\n", "it answers without TLS; wanted TLS, or a target {plain}: where"),
        (b"", "closed the connection without an answer, as a peer without TLS does ({plain}:)"),
        (None, "no answer in time, as of a peer without TLS ({plain}:)"),
    ],
    ids=["HL7", "DICOM", "HTTP", "closes", "silent"],
)
def test_a_peer_without_tls_is_told(files: Files, kind: str, answer: bytes | None, words: str) -> None:
    with run_socket(answer) as port:
        said = fail(kind, port, make_settings(files.ca, answer_s=1))
    assert words.format(plain=kind.removesuffix("s")) in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_peer_without_tls_is_told(files: Files, kind: str) -> None:
    with run_peer(kind, None) as peer:
        assert "without TLS" in fail(kind, peer.port, make_settings(files.ca, answer_s=1))
        assert peer.taken() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["TLS 1.2", "TLS 1.3", "mutual"])
def test_without_tls_a_peer_that_wants_it_is_told(files: Files, kind: str, what: str) -> None:
    context = serve_as(files.authority.issue_cert(HOST), wanting=files.authority if what == "mutual" else None)
    if what != "mutual":
        context.minimum_version = context.maximum_version = ssl.TLSVersion["TLSv1_" + what[-1]]
    with run_peer(kind, context) as peer:
        assert f"({kind}:)" in fail(kind.removesuffix("s"), peer.port, make_settings(answer_s=1))
        assert peer.taken() == []


@pytest.mark.parametrize("alert", [b"\x02\x46", b"\x02\x0a", b"\x02\x16"])
def test_an_answer_in_tls_is_known(alert: bytes) -> None:
    with run_socket(b"\x15\x03\x01\x00\x02" + alert) as port:
        assert "it answers in TLS; wanted a target mllps:" in fail("mllp", port, make_settings())


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("setting", ["tls_ca", "tls_certificate", "tls_key"])
@pytest.mark.slow
def test_a_bad_file_stops_the_start_and_later_waits(files: Files, kind: str, setting: str, wrong: str) -> None:
    paths = {"tls_ca": files.ca, **files.write_own()}
    good = {name: path.read_bytes() for name, path in paths.items()}

    def spoil() -> None:
        content = WRONG[wrong]
        paths[setting].unlink() if content is None else paths[setting].write_bytes(content)

    with run_peer(kind, serve_as(files.authority.issue_cert(HOST), wanting=files.authority)) as peer:
        spoil()
        with pytest.raises(SettingsError, match=f"XRAY_REPORTS__{setting.upper()}"):
            aim(kind, peer.port, ReportsSettings(**paths))
        paths[setting].write_bytes(good[setting])
        target = aim(kind, peer.port, ReportsSettings(**paths))
        spoil()
        with pytest.raises(AwayError, match=f"XRAY_REPORTS__{setting.upper()}"):
            target.send(report())
        paths[setting].write_bytes(good[setting])
        target.send(report())
        target.close()
        assert len(peer.taken()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_with_a_pass_phrase_is_told_and_nobody_is_asked_for_it(files: Files, kind: str) -> None:
    own = files.write_own(pass_phrase=b"secret")
    with pytest.raises(SettingsError, match="without a pass phrase"):
        aim(kind, 1, make_settings(None, own))


@pytest.mark.parametrize("setting", ["tls_certificate", "tls_key"])
def test_a_certificate_without_its_key_is_none(setting: str) -> None:
    with pytest.raises(ValidationError, match="wanted both or neither"):
        ReportsSettings(**{setting: Path("a.pem")})
