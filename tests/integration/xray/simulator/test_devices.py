"""Simulated devices against dcmtk's ``storescp``, a DICOM receiver, and a small HTTP server that is a double."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pydicom
import pytest

pynetdicom = pytest.importorskip("pynetdicom", reason="DICOM needs the gateway extra")
from pynetdicom import AE, evt  # noqa: E402
from pynetdicom.sop_class import ComputedRadiographyImageStorage, Verification  # noqa: E402

from benchmarks.ports import find_ports  # noqa: E402
from tests.paths import ROOT  # noqa: E402
from xray import __main__ as program  # noqa: E402
from xray.simulator.account import Account  # noqa: E402
from xray.simulator.answers import NO_CONTEXT  # noqa: E402
from xray.simulator.association import Association, RejectedError  # noqa: E402
from xray.simulator.damage import Damage  # noqa: E402
from xray.simulator.fleet import Plan, run_devices  # noqa: E402
from xray.simulator.habits import CR, DX, NATIVE, Way, draw_habits  # noqa: E402
from xray.simulator.objects import Shot  # noqa: E402
from xray.simulator.patient import MARKER  # noqa: E402
from xray.simulator.pictures import Pictures  # noqa: E402
from xray.simulator.posting import HttpTarget  # noqa: E402
from xray.simulator.storing import DicomSender, DicomTarget  # noqa: E402

needs_dcmtk = pytest.mark.skipif(which("storescp") is None, reason="dcmtk is not installed (apt-get install dcmtk)")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(4, count=2, shape=(200, 170))


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    port = find_ports(1)
    command = ["storescp", "+xa", "+B", "--promiscuous", "-aet", "XRAY", "-od", str(folder), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.kill()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            continue
        return
    pytest.fail("storescp has ended")


class Double(BaseHTTPRequestHandler):
    """No gateway: it takes every body, and answers as it is told."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            self.close_connection = True
            self.server.cut.append(self.path)
            return
        status, answer = self.server.decide(self, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    decide: Callable[[Double, bytes], tuple[int, bytes]]
    cut: list[str]


@contextmanager
def http_double(decide: Callable[[Double, bytes], tuple[int, bytes]]) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Double)
    server.decide, server.cut = decide, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dicom_server(
    answer: Callable[[evt.Event], int], classes: tuple[str, ...] = (ComputedRadiographyImageStorage,), **limits: Any
) -> Iterator[tuple[int, list[evt.Event]]]:
    """pynetdicom as a receiver, of CR alone unless told otherwise."""
    seen: list[evt.Event] = []

    def store(event: evt.Event) -> int:
        seen.append(event)
        return answer(event)

    entity = AE(ae_title="XRAY")
    entity.add_supported_context(Verification)
    for sop_class in classes:
        entity.add_supported_context(sop_class, list(NATIVE))
    for name, value in limits.items():
        setattr(entity, name, value)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()


def run(plan: Plan, pictures: Pictures, file: Path | None = None) -> dict[str, Any]:
    with Account(file) as account:
        run_devices(plan, account, pictures, threading.Event())
        return account.figures()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- DICOM ------------------------------------------------------------------------------------------------------------


@needs_dcmtk
def test_what_storescp_writes_is_what_the_account_says(tmp_path: Path, pictures: Pictures) -> None:
    received = tmp_path / "received"
    received.mkdir()
    with storescp(received) as port:
        plan = Plan(30, 5, seed=4, images=80, dicom=DicomTarget("127.0.0.1", port, "XRAY"))
        figures = run(plan, pictures, tmp_path / "account.jsonl")
    assert (figures["sent"], figures["accepted"], figures["failed"]) == (80, 80, 0)
    files = [pydicom.dcmread(path) for path in received.iterdir()]
    assert {str(one.SOPInstanceUID) for one in files} == {line["uid"] for line in lines(tmp_path / "account.jsonl")}
    assert len(files) == 80
    assert len({str(one.file_meta.TransferSyntaxUID) for one in files}) >= 6
    assert all(str(one.PatientName).startswith(MARKER) for one in files)
    assert len({line["device"] for line in lines(tmp_path / "account.jsonl")}) >= 20


@needs_dcmtk
def test_broken_ones_harm_no_other(tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xray.simulator.storing.SLOW_S", 0.2)
    received = tmp_path / "received"
    received.mkdir()
    with storescp(received) as port:
        plan = Plan(30, 5, seed=9, broken=0.4, images=90, dicom=DicomTarget("127.0.0.1", port, "XRAY", 10))
        figures = run(plan, pictures, tmp_path / "account.jsonl")
    assert figures["failed"] == 0
    assert set(figures["broken"]) == {"aborted", "garbage", "no pixels", "slow", "truncated", "wrong class"}
    assert figures["aborted_on_purpose"] > 0
    told = lines(tmp_path / "account.jsonl")
    cut = {line["uid"] for line in told if line["broken"] == "aborted"}
    assert cut == {line["uid"] for line in told if line["uid"] in cut and line["outcome"] == "accepted"}, "sent again"


@pytest.mark.parametrize(
    ("first", "failed", "retried"), [(0xA700, 0, 1), (0xA705, 0, 1), (0xC000, 1, 0), (0x0124, 1, 0)]
)
def test_what_cannot_be_taken_now_is_sent_again_under_its_uid(
    pictures: Pictures, first: int, failed: int, retried: int
) -> None:
    asked: list[str] = []

    def answer(event: evt.Event) -> int:
        asked.append(event.request.AffectedSOPInstanceUID)
        return first if len(asked) == 1 else 0

    with dicom_server(answer) as (port, _):
        seed = next(seed for seed in range(100) if _sends_cr(seed))
        plan = Plan(1, 50, seed=seed, images=2, dicom=DicomTarget("127.0.0.1", port, "XRAY"))
        figures = run(plan, pictures)
    assert (figures["sent"], figures["retried"], figures["failed"]) == (2, retried, failed)
    assert len(set(asked)) == 2
    assert asked.count(asked[0]) == 1 + retried


def _sends_cr(seed: int) -> bool:
    plan = Plan(1, 1, seed=seed, dicom=DicomTarget("", 1, ""))
    habits = plan.draw_devices()[0]
    return habits.sop_class == ComputedRadiographyImageStorage and habits.syntaxes[0] in NATIVE


def test_a_gateway_that_is_away_gets_its_images_later(pictures: Pictures, tmp_path: Path) -> None:
    port = find_ports(1)
    plan = Plan(1, 50, seed=next(filter(_sends_cr, range(100))), images=1, dicom=DicomTarget("127.0.0.1", port, "XRAY"))
    with Account(tmp_path / "account.jsonl") as account:
        thread = threading.Thread(target=run_devices, args=(plan, account, pictures, threading.Event()))
        thread.start()
        while account.no_answer == 0:
            thread.join(0.05)
        entity = AE(ae_title="XRAY")
        entity.add_supported_context(Verification)
        entity.add_supported_context(ComputedRadiographyImageStorage, list(NATIVE))
        server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)]
        )
        try:
            thread.join(60)
        finally:
            server.shutdown()
        assert not thread.is_alive()
        assert (account.accepted, account.failed) == (1, 0)


def test_a_class_that_nobody_takes_is_refused_for_good(pictures: Pictures) -> None:
    with dicom_server(lambda event: 0) as (port, seen):
        plan = Plan(12, 50, seed=2, images=24, dicom=DicomTarget("127.0.0.1", port, "XRAY"))
        figures = run(plan, pictures)
    assert figures["refused"] == {"no context": 24 - len(seen)}
    assert {event.assoc.requestor.ae_title for event in seen} <= {f"SIM-{number:03d}" for number in range(1, 13)}
    assert figures["accepted"] == len(seen) > 0


@pytest.mark.parametrize("own", [CR, DX])
@pytest.mark.parametrize("number", [6, 7])
def test_a_wrong_class_is_one_that_nobody_takes_or_not_the_objects(pictures: Pictures, own: str, number: int) -> None:
    habits = replace(draw_habits(1, seed=1, http=False), sop_class=own, bits=12, syntaxes=NATIVE[:1], echoes=False)
    with dicom_server(lambda event: 0, (CR, DX)) as (port, seen):
        sender = DicomSender(habits, DicomTarget("127.0.0.1", port, "XRAY"), pictures, lambda seconds: None)
        answer = sender.send(Shot(habits, number, number), Damage.WRONG_CLASS)
        sender.close()
    if number % 2 == 0:
        assert (answer, seen) == (NO_CONTEXT, [])
    else:
        (event,) = seen
        assert event.request.AffectedSOPClassUID != event.dataset.SOPClassUID == own


@pytest.mark.parametrize(
    ("limits", "is_permanent"), [({"require_called_aet": True}, True), ({"require_calling_aet": ["OTHER"]}, True)]
)
def test_a_rejected_association_says_whether_it_is_for_good(limits: dict[str, Any], is_permanent: bool) -> None:
    with dicom_server(lambda event: 0, **limits) as (port, _), pytest.raises(RejectedError) as rejected:
        Association(("127.0.0.1", port), calling="SIM-001", called="ELSE", contexts=[(str(Verification), NATIVE)])
    assert rejected.value.is_permanent is is_permanent


def test_echo_and_fragments_of_every_size() -> None:
    with dicom_server(lambda event: 0) as (port, seen):
        contexts = [(str(Verification), NATIVE[:1]), (str(ComputedRadiographyImageStorage), NATIVE[1:2])]
        for size in (1024, 16_382, 1_048_576):
            with Association(
                ("127.0.0.1", port), calling="SIM-001", called="XRAY", contexts=contexts, max_pdu_bytes=size
            ) as one:
                assert one.echo() == 0
                dataset = os.urandom(50_000)
                assert one.store(str(ComputedRadiographyImageStorage), "2.25.1", NATIVE[1], dataset) == 0
                assert seen[-1].request.DataSet.getvalue() == dataset


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_http_devices_send_in_every_way(tmp_path: Path, pictures: Pictures) -> None:
    seen: list[tuple[str, str, bytes, dict[str, str]]] = []

    def take(request: Double, body: bytes) -> tuple[int, bytes]:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen.append((request.path, headers["content-type"].partition(";")[0], body, headers))
        return 201, json.dumps({"event_id": f"event-{len(seen)}"}).encode() if request.path == "/images" else b"{}"

    with http_double(take) as server:
        target = HttpTarget("127.0.0.1", server.server_address[1], token="a-token")  # noqa: S106
        figures = run(Plan(20, 10, seed=3, images=60, http=target), pictures, tmp_path / "account.jsonl")
    kinds = Counter(kind for _, kind, _, _ in seen)
    assert set(kinds) == {"image/png", "image/jpeg", "application/dicom", "multipart/related"}
    assert all(headers["authorization"] == "Bearer a-token" for *_, headers in seen)
    assert all(MARKER.encode() in body for *_, body, _ in seen)
    assert {path for path, kind, *_ in seen if kind == "multipart/related"} == {"/studies"}
    # A Store answer without the instance's reference is no word that it is safe.
    assert figures["refused"] == {"201 without reference": kinds["multipart/related"]}
    assert figures["accepted"] == 60 - kinds["multipart/related"]
    keys = [headers["idempotency-key"] for *_, headers in seen if "idempotency-key" in headers]
    assert len(keys) == len(set(keys)) > 0
    told = [line for line in lines(tmp_path / "account.jsonl") if line["way"] != Way.STOW]
    assert {line["event_id"] for line in told} <= {f"event-{number}" for number in range(1, 61)}


@pytest.mark.parametrize(
    ("status", "answer", "verdict"),
    [
        (200, {"00081199": [("00081155", "own"), ("00091001", "an-event")]}, "accepted"),
        (200, {"00081199": [("00081155", "another")]}, "refused"),
        (409, {"00081198": [("00081155", "own"), ("00081197", 0xC000)]}, "refused"),
        (409, {"00081198": [("00081155", "own"), ("00081197", 0xA700)]}, "retry"),
        (503, {}, "retry"),
    ],
)
def test_a_store_answer_is_read_for_its_instance(
    tmp_path: Path, pictures: Pictures, status: int, answer: dict[str, list[tuple[str, Any]]], verdict: str
) -> None:
    asked = 0

    def decide(request: Double, body: bytes) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        own = str(pydicom.dcmread(_first_part(body)).SOPInstanceUID)
        if asked > 1:
            return 200, _store_answer({"00081199": [("00081155", own)]})
        named = {
            tag: [(name, own if value == "own" else value) for name, value in item] for tag, item in answer.items()
        }
        return status, _store_answer(named)

    seed = next(s for s in range(100) if Plan(1, 1, s, http=HttpTarget("", 1)).draw_devices()[0].way is Way.STOW)
    with http_double(decide) as server:
        target = HttpTarget("127.0.0.1", server.server_address[1])
        run(Plan(1, 50, seed=seed, images=1, http=target), pictures, tmp_path / "account.jsonl")
    first = lines(tmp_path / "account.jsonl")[0]
    assert first["outcome"] == verdict
    assert first["event_id"] == ("an-event" if verdict == "accepted" else None)


def _first_part(body: bytes) -> io.BytesIO:
    return io.BytesIO(body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])


def _store_answer(found: dict[str, list[tuple[str, Any]]]) -> bytes:
    items = {tag: {"Value": [{name: {"Value": [value]} for name, value in item}]} for tag, item in found.items()}
    return json.dumps(items).encode()


def test_broken_requests_end_in_the_middle_and_come_again(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xray.simulator.posting.SLOW_S", 0.2)

    def take(request: Double, body: bytes) -> tuple[int, bytes]:
        own = str(pydicom.dcmread(_first_part(body), force=True).get("SOPInstanceUID", "")) if (
            request.path == "/studies"
        ) else ""  # fmt: skip
        return 200, _store_answer({"00081199": [("00081155", own)]})

    with http_double(take) as server:
        target = HttpTarget("127.0.0.1", server.server_address[1])
        plan = Plan(20, 10, seed=6, broken=0.5, images=80, http=target)
        figures = run(plan, pictures, tmp_path / "account.jsonl")
        assert figures["failed"] == 0
        assert figures["aborted_on_purpose"] > 0
        until = time.monotonic() + 30
        while len(server.cut) < figures["aborted_on_purpose"] and time.monotonic() < until:
            time.sleep(0.01)  # the server's threads see the end a little after the sender has made it
        assert len(server.cut) == figures["aborted_on_purpose"]
    assert {"aborted", "garbage", "slow", "truncated", "wrong class"} <= set(figures["broken"])


# --- the command ------------------------------------------------------------------------------------------------------


@needs_dcmtk
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_in_order_with_the_account(tmp_path: Path, name: signal.Signals) -> None:
    file = tmp_path / "account.jsonl"
    with storescp(tmp_path) as port:
        arguments = ["--count", "10", "--rate", "3", "--http-share", "0", "--dicom-port", str(port), "--seed", "1"]
        command = [sys.executable, "-m", "xray", "devices", *arguments, "--account", str(file), "--json"]
        environ = {**os.environ, "XRAY_HOME": str(tmp_path / "home")}
        with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE) as process:
            while not (file.exists() and len(file.read_text().splitlines()) > 5):
                assert process.poll() is None
            process.send_signal(name)
            told, _ = process.communicate(timeout=60)
    figures = json.loads(told)
    assert process.returncode == 0
    assert figures["seed"] == 1
    assert figures["accepted"] == sum(line["outcome"] == "accepted" for line in lines(file)) > 5


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("damage", "code"), [(None, 1), (Damage.SLOW, 1), (Damage.GARBAGE, 0), (Damage.TRUNCATED, 0), (Damage.ABORTED, 1)]
)
def test_exit_code_tells_of_good_images_that_nobody_took(
    damage: Damage | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("xray.simulator.posting.SLOW_S", 0.1)
    monkeypatch.setattr("xray.simulator.device.draw_damage", lambda *_: damage)
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    with http_double(lambda request, body: (415, b"{}")) as server:
        port = str(server.server_address[1])
        arguments = ["--count", "4", "--rate", "20", "--images", "4", "--http-share", "1", "--http-port", port]
        monkeypatch.setattr("sys.argv", ["xray", "devices", *arguments, "--json"])
        assert program.run() == code
    figures = json.loads(capsys.readouterr().out)
    assert figures["refused"] == {"415": 4}
    assert figures["failed"] == 4 * code


@pytest.mark.parametrize("option", ["--dicom-port", "--http-port"])
def test_a_door_without_a_port_is_told(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(f"XRAY_GATEWAY__{option[2:].replace('-', '_').upper()}", "off")
    monkeypatch.setattr("sys.argv", ["xray", "devices", "--images", "1"])
    assert program.run() == program.EXIT_USAGE
    assert option in capsys.readouterr().err
