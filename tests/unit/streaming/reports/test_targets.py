"""Each target with a real peer: what is acknowledged, what is refused, and what is tried again later."""

import os
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, CTImageStorage

from schemas.errors import SettingsError
from streaming.reports.dicomstore import DicomStore
from streaming.reports.fhirserver import FhirServer
from streaming.reports.mllp import MllpPeer
from streaming.reports.reportfolder import Format, ReportFolder
from streaming.reports.target import Address, AwayError, Kind, RefusedError, read_address
from streaming.reports.targets import open_target
from streaming.settings import ReportsSettings
from tests.drips import ENDLESS, PDU, TLS_RECORD, hanging_names, run_dripping_proxy, run_drips
from tests.receiver import receive, say
from tests.reportparts import CORRECTION, report
from tests.reportpeers import FhirStore, MllpReceiver, run_fhir, run_mllp

__all__ = ["hanging_names"]  # a fixture

SETTINGS = ReportsSettings(answer_s=5)
QUICK = ReportsSettings(answer_s=0.3)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fhir:https://h/fhir/", Address(Kind.FHIR, "https://h/fhir")),
        ("fhir:http://127.0.0.1:8080", Address(Kind.FHIR, "http://127.0.0.1:8080")),
        ("stow:https://h:1/dicom-web", Address(Kind.STOW, "https://h:1/dicom-web")),
        ("dicom:PACS@host:104", Address(Kind.DICOM, "host", 104, "PACS")),
        ("dicom:MY PACS@[::1]:104", Address(Kind.DICOM, "::1", 104, "MY PACS")),
        ("mllp:host:2575", Address(Kind.MLLP, "host", 2575)),
        ("mllps:host:2575", Address(Kind.MLLPS, "host", 2575)),
        ("dicoms:PACS@[::1]:2762", Address(Kind.DICOMS, "::1", 2762, "PACS")),
        ("mllp:[fe80::1]:2575", Address(Kind.MLLP, "fe80::1", 2575)),
        ("files:/tmp/a b", Address(Kind.FILES, "/tmp/a b")),  # noqa: S108
    ],
)
def test_addresses(text: str, wanted: Address) -> None:
    assert read_address(text) == wanted
    assert read_address(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fhir",
        "fhir:",
        "fhir:host",
        "fhir:ftp://h",
        "fhir:https://user:pw@h/",
        "fhir:https://h/?a=b",
        "stow:h:1",
        "dicom:host:104",
        "dicom:@host:104",
        "dicom:PACS@host",
        "dicom:PACS@host:0",
        "dicom:PACS@host:65536",
        "dicom:TITLE-OF-17-CHARS@host:1",
        "dicom:A\\B@host:1",
        "mllp:host",
        "mllp:host:x",
        "mllp:::1:2575",
        "mllp:a..b:2575",
        "mllps:.host:2575",
        "mllps:host",
        "dicoms:host:104",
        f"dicoms:PACS@{'h' * 64}.hospital:104",
        "files:",
        "smtp:a@b",
        "FHIR:https://h",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SettingsError, match="wanted fhir:"):
        read_address(text)


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("kind", ["fhir", "stow", "dicom", "mllp"])
def test_nobody_there_is_away(kind: str) -> None:
    port = closed_port()
    place = {"dicom": f"PACS@127.0.0.1:{port}", "mllp": f"127.0.0.1:{port}"}.get(kind, f"http://127.0.0.1:{port}")
    target = open_target(read_address(f"{kind}:{place}"), SETTINGS)
    with pytest.raises(AwayError):
        target.send(report())
    target.close()


@pytest.mark.parametrize("kind", ["fhir", "stow", "dicom", "mllp"])
def test_a_host_that_cannot_be_resolved_is_away(kind: str) -> None:
    host = "no-such-host.invalid"
    place = {"dicom": f"PACS@{host}:104", "mllp": f"{host}:2575"}.get(kind, f"http://{host}")
    target = open_target(read_address(f"{kind}:{place}"), SETTINGS)
    with pytest.raises(AwayError):
        target.send(report())
    target.close()


@pytest.mark.parametrize("kind", ["fhir", "stow", "dicom", "mllp"])
def test_who_does_not_answer_is_away(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        place = {"dicom": f"PACS@127.0.0.1:{port}", "mllp": f"127.0.0.1:{port}"}.get(kind, f"http://127.0.0.1:{port}")
        target = open_target(read_address(f"{kind}:{place}"), QUICK)
        with pytest.raises(AwayError):
            target.send(report())
        target.close()


# --- HL7 over MLLP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[MllpReceiver]:
    with run_mllp(MllpReceiver()) as running:
        yield running


def mllp(receiver: MllpReceiver, settings: ReportsSettings = SETTINGS) -> MllpPeer:
    return MllpPeer(Address(Kind.MLLP, "127.0.0.1", receiver.port), settings)


def test_messages_are_acknowledged_over_one_connection(receiver: MllpReceiver) -> None:
    peer = mllp(receiver)
    for number in range(5):
        peer.send(report(number))
    peer.close()
    assert receiver.accepted == [report(number).key for number in range(5)]
    assert receiver.n_connections == 1


@pytest.mark.parametrize("code", ["AE", "AR"])
def test_a_refusal_is_of_one_message(receiver: MllpReceiver, code: str) -> None:
    receiver.answer = lambda control_id, _: code if control_id == report(2).key else "AA"
    peer = mllp(receiver)
    peer.send(report(1))
    with pytest.raises(RefusedError, match=code):
        peer.send(report(2))
    peer.send(report(3))
    peer.close()
    assert receiver.accepted == [report(1).key, report(3).key]


@pytest.mark.parametrize("fault", ["hang up", "silence", "another", "nonsense", "AX"])
def test_without_its_acknowledgement_a_message_is_not_delivered(receiver: MllpReceiver, fault: str) -> None:
    receiver.answer = lambda _id, times: fault if times == 1 else "AA"
    peer = mllp(receiver, ReportsSettings(answer_s=0.5))
    with pytest.raises(AwayError) as caught:
        peer.send(report())
    assert "SMITH" not in str(caught.value)
    assert receiver.accepted == []
    peer.send(report())
    peer.close()
    assert receiver.accepted == [report().key]
    assert receiver.n_connections == 2


@pytest.mark.parametrize(("n_named", "is_taken"), [(20, True), (32, True), (19, False), (1, False), (0, False)])
def test_a_receiver_may_know_twenty_characters_of_an_id(
    receiver: MllpReceiver, n_named: int, *, is_taken: bool
) -> None:
    receiver.answer, receiver.n_named = lambda _id, _times: "cut", n_named
    peer = mllp(receiver)
    if is_taken:
        peer.send(report())
    else:
        with pytest.raises(AwayError):
            peer.send(report())
    peer.close()


def test_an_answer_that_never_ends_is_waited_for_no_longer_than_another(receiver: MllpReceiver) -> None:
    receiver.answer = lambda _id, times: "drip" if times == 1 else "AA"
    peer = mllp(receiver, ReportsSettings(answer_s=0.5))
    began = time.monotonic()
    with pytest.raises(AwayError):
        peer.send(report())
    assert time.monotonic() - began < 5
    peer.send(report())
    peer.close()


# --- FHIR -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[FhirStore]:
    with run_fhir(FhirStore()) as running:
        yield running


def test_a_repetition_and_a_correction_put_the_same_resources(store: FhirStore) -> None:
    server = FhirServer(store.address, SETTINGS)
    server.send(report())
    first = dict(store.resources)
    server.send(report())
    assert store.resources == first
    server.send(report(correction=CORRECTION))
    server.close()
    assert store.resources.keys() == first.keys()
    assert {one.get("status") for one in store.resources.values()} == {"amended", "active"}


@pytest.mark.parametrize("status", [400, 409, 412, 422])
def test_a_client_error_refuses_one_report(store: FhirStore, status: int) -> None:
    store.statuses = [status]
    server = FhirServer(store.address, SETTINGS)
    with pytest.raises(RefusedError, match=f"^HTTP {status}$"):
        server.send(report())
    server.send(report())
    server.close()
    assert len(store.resources) == 3


@pytest.mark.parametrize("status", [302, 307, 401, 403, 404, 429, 500, 502, 503])
def test_a_server_error_or_a_missing_right_is_of_all_reports(store: FhirStore, status: int) -> None:
    store.statuses = [status]
    server = FhirServer(store.address, SETTINGS)
    with pytest.raises(AwayError, match=f"^(HTTP {status}|TooManyRedirects)$"):
        server.send(report())
    server.close()
    assert len(store.requests) == 1


def bundle(*statuses: str) -> dict[str, Any]:
    return {"resourceType": "Bundle", "entry": [{"response": {"status": status}} for status in statuses]}


def outcome(severity: str) -> dict[str, Any]:
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "diagnostics": "patient SMITH"}]}


@pytest.mark.parametrize(
    "answer", [bundle("201", "422 Unprocessable", "200"), bundle("500"), outcome("error"), outcome("fatal")]
)
def test_a_failure_inside_a_success_is_a_refusal(store: FhirStore, answer: Any) -> None:
    store.answer = answer
    server = FhirServer(store.address, SETTINGS)
    with pytest.raises(RefusedError) as caught:
        server.send(report())
    assert "SMITH" not in str(caught.value)
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        bundle("201 Created", "200", "200 OK"),
        outcome("warning"),
        {"resourceType": "Bundle", "entry": [None, {"response": 3}, {"response": {"status": 200}}]},
        {"resourceType": "Bundle", "entry": "x"},
        [],
        b"",
        b"ok",
        b"\xff",
    ],
)
def test_what_else_a_server_says_with_success_is_success(store: FhirStore, answer: Any) -> None:
    store.answer = answer
    server = FhirServer(store.address, SETTINGS)
    server.send(report())
    server.close()
    assert len(store.resources) == 3


def test_the_token_is_shown(store: FhirStore) -> None:
    server = FhirServer(store.address, ReportsSettings(http_token=SecretStr("s3cret")))
    server.send(report())
    server.close()
    assert store.requests[0]["Authorization"] == "Bearer s3cret"


# --- DICOM ------------------------------------------------------------------------------------------------------------


class Archive:
    """An archive that answers as it is told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.objects: list[Dataset] = []
        self.n_associations = 0
        self.n_aborts = 0
        self.port = 0

    def store(self, event: Any) -> int:
        status = self.statuses.pop(0) if self.statuses else 0
        if self.n_aborts:
            self.n_aborts -= 1
            event.assoc.abort()
            return status
        if status in (0, 0xB000):
            self.objects.append(event.dataset)
        return status

    def count(self, _event: Any) -> None:
        self.n_associations += 1


@contextmanager
def run_archive(archive: Archive, *contexts: str) -> Iterator[Archive]:
    entity = AE(ae_title="PACS")
    for context in contexts or (Comprehensive3DSRStorage,):
        entity.add_supported_context(context)
    handlers = [(evt.EVT_C_STORE, archive.store), (evt.EVT_ACCEPTED, archive.count)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()


def dicom(archive: Archive) -> DicomStore:
    return DicomStore(Address(Kind.DICOM, "127.0.0.1", archive.port, "PACS"), SETTINGS)


def test_objects_are_stored_over_one_association() -> None:
    with run_archive(Archive()) as archive:
        target = dicom(archive)
        for number in range(3):
            target.send(report(number))
        target.close()
    assert len({one.SOPInstanceUID for one in archive.objects}) == 3
    assert archive.n_associations == 1


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        (0xB000, None),
        (0xB007, None),
        (0x0111, None),
        (0xA700, AwayError),
        (0xA7FF, AwayError),
        (0xA900, RefusedError),
        (0xC000, RefusedError),
        (0x0110, RefusedError),
        (0x0124, RefusedError),
    ],
)
@pytest.mark.slow
def test_statuses(status: int, wanted: type[Exception] | None) -> None:
    with run_archive(Archive()) as archive:
        archive.statuses = [status]
        target = dicom(archive)
        if wanted is None:
            target.send(report())
        else:
            with pytest.raises(wanted, match=f"status {status:04X}"):
                target.send(report())
        target.send(report(2))
        target.close()
    assert archive.objects[-1].SOPInstanceUID


def test_an_association_that_the_archive_ends_is_made_anew() -> None:
    with run_archive(Archive()) as archive:
        target = dicom(archive)
        target.send(report(1))
        archive.n_aborts = 1
        with pytest.raises(AwayError):
            target.send(report(2))
        target.send(report(2))
        target.close()
    assert archive.n_associations == 2
    assert len(archive.objects) == 2


def test_an_archive_without_this_sop_class_takes_none() -> None:
    with run_archive(Archive(), CTImageStorage) as archive:
        target = dicom(archive)
        with pytest.raises(AwayError):
            target.send(report())
        target.close()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "suffix"), [("fhir", "json"), ("sr", "dcm"), ("hl7", "hl7")])
def test_files_are_for_their_owner_alone(tmp_path: Path, form: Format, suffix: str) -> None:
    before = os.umask(0)
    try:
        ReportFolder(tmp_path / "deep" / "out", SETTINGS, form).send(report())
    finally:
        os.umask(before)
    file = tmp_path / "deep" / "out" / f"{report().key}.{suffix}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [one.name for one in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(("form", "count"), [("fhir", 1), ("sr", 2), ("hl7", 2)])
def test_an_amended_report_takes_the_place_of_fhirs_and_follows_the_others(
    tmp_path: Path, form: Format, count: int
) -> None:
    folder = ReportFolder(tmp_path, SETTINGS, form)
    for said in (report(), report(correction=CORRECTION)):
        folder.send(said)
        folder.send(said)
    assert len(list(tmp_path.iterdir())) == count


def test_a_folder_that_cannot_be_made_is_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AwayError):
        ReportFolder(tmp_path / "file", SETTINGS, "fhir").send(report())


def test_a_dicom_file_is_one(tmp_path: Path) -> None:
    ReportFolder(tmp_path, SETTINGS, "sr").send(report())
    assert dcmread(tmp_path / f"{report().key}.dcm").SOPClassUID == Comprehensive3DSRStorage


# --- answers without an end -------------------------------------------------------------------------------------------

FHIR_GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STOW_GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 2\r\n\r\n{}"


def send_in_time(target: Any, number: int = 0) -> None:
    """Send to a peer that drips: it is away, and soon known to be."""
    began = time.monotonic()
    with pytest.raises(AwayError):
        target.send(report(number))
    target.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("where", ENDLESS)
@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.slow
def test_an_http_answer_that_drips_is_waited_for_no_longer(kind: str, where: str) -> None:
    with run_drips(ENDLESS[where]) as port:
        send_in_time(open_target(read_address(f"{kind}:http://127.0.0.1:{port}"), QUICK))


@pytest.mark.parametrize(("kind", "good"), [("fhir", FHIR_GOOD), ("stow", STOW_GOOD)])
def test_over_a_connection_that_is_kept_neither(kind: str, good: bytes) -> None:
    with run_drips(ENDLESS["body"], ends_well=1, good=good) as port:
        target = open_target(read_address(f"{kind}:http://127.0.0.1:{port}"), QUICK)
        target.send(report())
        send_in_time(target, 1)


@pytest.mark.parametrize("kind", ["fhir", "stow"])
def test_nor_is_tls_that_drips(kind: str) -> None:
    with run_drips(TLS_RECORD) as port:
        send_in_time(open_target(read_address(f"{kind}:https://127.0.0.1:{port}"), QUICK))


def test_an_association_that_drips_is_waited_for_no_longer() -> None:
    with run_drips(PDU) as port:
        send_in_time(open_target(read_address(f"dicom:PACS@127.0.0.1:{port}"), QUICK))


@pytest.mark.parametrize("n_stored", [0, 1, 2])
@pytest.mark.slow
def test_nor_is_a_store_that_drips(n_stored: int) -> None:
    with run_archive(Archive()) as archive, run_dripping_proxy(archive.port, 1 + n_stored) as port:
        target = open_target(read_address(f"dicom:PACS@127.0.0.1:{port}"), ReportsSettings(answer_s=1))
        for number in range(n_stored):
            target.send(report(number))
        send_in_time(target, n_stored)


def test_nor_is_a_release_that_drips() -> None:
    with run_archive(Archive()) as archive, run_dripping_proxy(archive.port, 2) as port:
        target = open_target(read_address(f"dicom:PACS@127.0.0.1:{port}"), ReportsSettings(answer_s=1))
        target.send(report())
        began = time.monotonic()
        target.close()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["fhir", "stow", "dicom", "mllp"])
def test_a_name_server_that_hangs_is_waited_for_no_longer_than_a_target(kind: str, hanging_names: list[str]) -> None:
    host = f"{kind}.hangs"  # of each test its own: what a thread of the one before still asks is no part of this one
    place = {"dicom": f"PACS@{host}:104", "mllp": f"{host}:2575"}.get(kind, f"http://{host}")
    send_in_time(open_target(read_address(f"{kind}:{place}"), QUICK))
    assert set(hanging_names) == {host}


# --- what the environment says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_no_proxy_of_the_environment_gets_a_report(
    kind: str, variable: str, store: FhirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, store.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    target = open_target(read_address(f"{kind}:http://127.0.0.1:{closed_port()}"), SETTINGS)
    with pytest.raises(AwayError):
        target.send(report())
    target.close()
    assert store.requests == []


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("token", ["s3cret", None])
def test_no_netrc_takes_the_tokens_place(
    kind: str, token: str | None, store: FhirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    settings = ReportsSettings(http_token=None if token is None else SecretStr(token))
    target = open_target(read_address(f"{kind}:{store.address}"), settings)
    with suppress(RefusedError, AwayError):  # to the store STOW-RS means nothing
        target.send(report())
    target.close()
    assert store.requests[0].get("Authorization") == (None if token is None else "Bearer s3cret")


@pytest.mark.parametrize("kind", ["fhir", "stow"])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_no_authority_of_the_environment_takes_the_settings_place(
    kind: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    monkeypatch.setenv(variable, str(tmp_path / "theirs"))
    with receive(context) as receiver:
        receiver.answers = [say(200, b"{}", Content_Type="application/dicom+json")]
        address = read_address(f"{kind}:https://127.0.0.1:{receiver.port}")
        target = open_target(address, ReportsSettings(http_ca=tmp_path / "ours"))
        target.send(report())
        target.close()
