"""Storage Commitment with real peers: pynetdicom as a device, and Orthanc."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, generate_uid
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.sop_class import StorageCommitmentPushModel as PUSH
from pynetdicom.sop_class import StorageCommitmentPushModelInstance as INSTANCE

from benchmarks.ports import find_ports
from streaming.gateway.dicom.commitment import (
    INVALID_ARGUMENT,
    MAX_OBJECTS,
    NO_SUCH_ACTION,
    NO_SUCH_INSTANCE,
    RESOURCE_LIMITATION,
    SUCCESS,
    Commitment,
)
from streaming.gateway.keeping.originals import Originals

CR, DX = str(ComputedRadiographyImageStorage), str(DigitalXRayImageStorageForPresentation)
AET = "XRAY"
DEVICE = "DX1"


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@dataclass
class Peers:
    """Where devices listen, as the gateway's list would say."""

    known: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass
class Gateway:
    """A door with nothing but Storage Commitment."""

    folder: Path
    port: int
    peers: Peers
    originals: Originals
    commitment: Commitment

    def keep(self, count: int, sop_class: str = CR) -> list[tuple[str, str]]:
        kept = [(sop_class, str(generate_uid())) for _ in range(count)]
        for one in kept:
            self.originals.keep(*one, b"object " + one[1].encode())
        return kept


@contextmanager
def gateway(folder: Path, peers: Peers, **times: float) -> Iterator[Gateway]:
    originals = Originals(folder)
    times = {"grace_s": 0.2, "first_wait_s": 0.05, **times}
    commitment = Commitment(originals, aet=AET, find_peer=peers.known.get, **times)
    entity = AE(ae_title=AET)
    for context in commitment.contexts():
        entity.add_supported_context(context.abstract_syntax, context.transfer_syntax)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=commitment.handlers())
    commitment.start()
    try:
        yield Gateway(folder, server.socket.getsockname()[1], peers, originals, commitment)
    finally:
        server.shutdown()
        commitment.stop()
        originals.close()


class Device:
    """Asks for commitment, and takes reports on any association."""

    def __init__(self, status: int = SUCCESS) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.status = status
        self.asked = 0

    def take(self, event: evt.Event) -> tuple[int, None]:
        self.asked += 1
        if self.status == SUCCESS:
            self.reports.append((event.event_type, event.event_information))
        return self.status, None

    @property
    def handlers(self) -> list:
        return [(evt.EVT_N_EVENT_REPORT, self.take)]

    @contextmanager
    def association(self, port: int):
        entity = AE(ae_title=DEVICE)
        entity.add_requested_context(PUSH)
        association = entity.associate("127.0.0.1", port, ae_title=AET, evt_handlers=self.handlers)
        assert association.is_established
        yield association
        if association.is_established:
            association.release()

    @contextmanager
    def listening(self, peers: Peers, port: int = 0):
        entity = AE(ae_title=DEVICE)
        entity.add_supported_context(PUSH, scu_role=False, scp_role=True)
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=self.handlers)
        peers.known[DEVICE] = ("127.0.0.1", server.socket.getsockname()[1])
        yield
        server.shutdown()

    def ask(self, port: int, objects: list[tuple[str, str]]) -> tuple[int, str]:
        content = request(objects)
        with self.association(port) as association:
            answer, _ = association.send_n_action(content, 1, PUSH, INSTANCE)
        return answer.Status, content.TransactionUID


def request(objects: list[tuple[str, str]]) -> Dataset:
    content = Dataset()
    content.TransactionUID = generate_uid()
    content.ReferencedSOPSequence = []
    for sop_class, uid in objects:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = uid
        content.ReferencedSOPSequence.append(item)
    return content


def pairs(sequence) -> list[tuple[str, str]]:
    return [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in sequence]


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture
def door(tmp_path: Path, peers: Peers) -> Iterator[Gateway]:
    with gateway(tmp_path / "kept", peers) as door:
        yield door


def test_report_comes_to_the_devices_address(door: Gateway, peers: Peers) -> None:
    device = Device()
    objects = door.keep(3)
    with device.listening(peers):
        status, uid = device.ask(door.port, objects)
        assert status == SUCCESS
        wait_until(lambda: door.commitment.count == 0)
    ((kind, report),) = device.reports
    assert (kind, report.TransactionUID) == (1, uid)
    assert pairs(report.ReferencedSOPSequence) == objects
    assert "FailedSOPSequence" not in report
    assert list((door.folder / "transactions").iterdir()) == []


def test_report_comes_on_the_same_association_where_no_address_is_known(door: Gateway) -> None:
    device = Device()
    objects = door.keep(2)
    content = request(objects)
    with device.association(door.port) as association:
        answer, _ = association.send_n_action(content, 1, PUSH, INSTANCE)
        assert answer.Status == SUCCESS
        wait_until(lambda: door.commitment.count == 0)
        assert association.is_established
    ((kind, report),) = device.reports
    assert (kind, report.TransactionUID, pairs(report.ReferencedSOPSequence)) == (1, content.TransactionUID, objects)


def test_what_is_not_kept_is_told_with_its_reason(door: Gateway, peers: Peers) -> None:
    device = Device()
    kept, (damaged,) = door.keep(2), door.keep(1)
    missing, other_class = (CR, str(generate_uid())), (DX, kept[0][1])
    path = next(path for path in door.folder.rglob("*.dcm") if path.read_bytes().endswith(damaged[1].encode()))
    path.write_bytes(path.read_bytes()[:-1])
    with device.listening(peers):
        device.ask(door.port, [*kept, missing, other_class, damaged])
        wait_until(lambda: door.commitment.count == 0)
        device.ask(door.port, [missing])
        wait_until(lambda: len(device.reports) == 2)
    (kind, report), (second, none) = device.reports
    assert (kind, second) == (2, 2)
    assert pairs(report.ReferencedSOPSequence) == kept
    reasons = dict(
        zip(pairs(report.FailedSOPSequence), (one.FailureReason for one in report.FailedSOPSequence), strict=True)
    )
    assert reasons == {missing: 0x0112, other_class: 0x0119, damaged: 0x0110}
    assert "ReferencedSOPSequence" not in none


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda one: one.__delattr__("TransactionUID"), INVALID_ARGUMENT),
        (lambda one: setattr(one, "TransactionUID", ""), INVALID_ARGUMENT),
        (lambda one: one.__delattr__("ReferencedSOPSequence"), INVALID_ARGUMENT),
        (lambda one: setattr(one, "ReferencedSOPSequence", []), INVALID_ARGUMENT),
        (lambda one: one.ReferencedSOPSequence[0].__delattr__("ReferencedSOPClassUID"), INVALID_ARGUMENT),
        (lambda one: one.ReferencedSOPSequence[0].__delattr__("ReferencedSOPInstanceUID"), INVALID_ARGUMENT),
        (
            lambda one: one.ReferencedSOPSequence.extend(request([(CR, "1.2")] * MAX_OBJECTS).ReferencedSOPSequence),
            RESOURCE_LIMITATION,
        ),
    ],
)
def test_request_that_is_none_is_refused(door: Gateway, change: Callable[[Dataset], None], status: int) -> None:
    content = request(door.keep(1))
    change(content)
    with Device().association(door.port) as association:
        answer, _ = association.send_n_action(content, 1, PUSH, INSTANCE)
        assert answer.Status == status
    assert door.commitment.count == 0


def test_other_actions_and_instances_are_refused(door: Gateway) -> None:
    content = request(door.keep(1))
    with Device().association(door.port) as association:
        assert association.send_n_action(content, 2, PUSH, INSTANCE)[0].Status == NO_SUCH_ACTION
        assert association.send_n_action(content, 1, PUSH, "1.2.3")[0].Status == NO_SUCH_INSTANCE
        assert association.send_n_action(None, 1, PUSH, INSTANCE)[0].Status == INVALID_ARGUMENT


@pytest.mark.filterwarnings("ignore:End of file")
@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x08\x00\x99\x11\xff\xff\xff\xff" + b"\0" * 7, bytes(5 * 1024 * 1024)])
def test_bytes_that_are_no_data_set_are_refused(door: Gateway, raw: bytes) -> None:
    with Device().association(door.port) as association:
        message = N_ACTION()
        message.MessageID = 1
        message.RequestedSOPClassUID = PUSH
        message.RequestedSOPInstanceUID = INSTANCE
        message.ActionTypeID = 1
        message.ActionInformation = BytesIO(raw)
        association._reactor_checkpoint.clear()
        wait_until(lambda: association._is_paused)
        association.dimse.send_msg(message, 1)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer.Status == (RESOURCE_LIMITATION if len(raw) > 100 else INVALID_ARGUMENT)
    assert door.commitment.count == 0


def test_same_request_twice_has_a_report_and_another_of_its_uid_none(tmp_path: Path, peers: Peers) -> None:
    device = Device()
    with gateway(tmp_path, peers, grace_s=3600) as door, device.association(door.port) as association:
        content = request(door.keep(2))
        for _ in range(2):
            assert association.send_n_action(content, 1, PUSH, INSTANCE)[0].Status == SUCCESS
        assert door.commitment.count == 1
        del content.ReferencedSOPSequence[0]
        assert association.send_n_action(content, 1, PUSH, INSTANCE)[0].Status == INVALID_ARGUMENT


def test_disk_that_takes_no_transaction_is_told(door: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = door.keep(1)

    def fail(*paths) -> None:
        raise OSError(28, "No space left on device")

    for call in ("mkdir", "rename", "fsync", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            assert Device().ask(door.port, objects)[0] == RESOURCE_LIMITATION
        assert door.commitment.count == 0
    assert list((door.folder / "transactions").iterdir()) == []


def test_no_more_than_so_many_wait(tmp_path: Path, peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.dicom.commitment._MAX_PENDING", 2)
    with gateway(tmp_path, peers, grace_s=3600) as door:
        objects = door.keep(1)
        assert [Device().ask(door.port, objects)[0] for _ in range(3)] == [SUCCESS, SUCCESS, RESOURCE_LIMITATION]


def test_report_outlives_device_and_gateway(tmp_path: Path, peers: Peers) -> None:
    device = Device()
    port = find_ports(1)
    peers.known[DEVICE] = ("127.0.0.1", port)
    with gateway(tmp_path, peers) as door:
        objects = door.keep(2)
        uids = [device.ask(door.port, objects)[1] for _ in range(3)]
        wait_until(lambda: all(one.tries > 1 for one in door.commitment._pending.values()))
        assert len(list((tmp_path / "transactions").iterdir())) == 3
    with gateway(tmp_path, peers) as door:
        assert door.commitment.count == 3
        with device.listening(peers, port):
            wait_until(lambda: door.commitment.count == 0)
    assert sorted(report.TransactionUID for _, report in device.reports) == sorted(uids)
    with gateway(tmp_path, peers) as door:
        assert door.commitment.count == 0


def test_report_that_the_device_refuses_is_sent_again_until_it_is_given_up(tmp_path: Path, peers: Peers) -> None:
    device = Device(status=0x0110)
    with gateway(tmp_path, peers, give_up_s=1.0) as door, device.listening(peers):
        device.ask(door.port, door.keep(1))
        wait_until(lambda: door.commitment.count == 0)
        assert device.asked > 1
    assert list((tmp_path / "transactions").iterdir()) == []


def test_damaged_transaction_stops_nobody(tmp_path: Path, peers: Peers) -> None:
    device = Device()
    with gateway(tmp_path, peers, grace_s=3600) as door:
        device.ask(door.port, door.keep(1))
    for name, content in {"a": b"", "b": b"[]", "c": b'{"aet": 1}', "d": b"\xff"}.items():
        (tmp_path / "transactions" / f"{name}.json").write_bytes(content)
    with device.listening(peers), gateway(tmp_path, peers) as door:
        wait_until(lambda: door.commitment.count == 0)
    assert len(device.reports) == 1


def test_unreachable_device_does_not_keep_the_report_of_another(tmp_path: Path, peers: Peers) -> None:
    device = Device()
    with gateway(tmp_path, peers) as door, device.listening(peers):
        objects = door.keep(1)
        entity = AE(ae_title="GONE")
        entity.add_requested_context(PUSH)
        peers.known["GONE"] = ("127.0.0.1", find_ports(1))
        association = entity.associate("127.0.0.1", door.port, ae_title=AET)
        assert association.send_n_action(request(objects), 1, PUSH, INSTANCE)[0].Status == SUCCESS
        association.release()
        device.ask(door.port, objects)
        wait_until(lambda: len(device.reports) == 1 and door.commitment.count == 1)


def test_orthanc_is_told(door: Gateway, peers: Peers, tmp_path: Path) -> None:
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("needs Orthanc: apt-get install orthanc")
    port = find_ports(2)
    settings = {
        "Name": "device",
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": port + 1,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
        "DicomModalities": {
            "gateway": {"AET": AET, "Host": "127.0.0.1", "Port": door.port, "AllowStorageCommitment": True}
        },
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    peers.known["ORTHANC"] = ("127.0.0.1", port)

    def call(path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}{path}", data, timeout=20) as answer:
            return json.load(answer)

    def answers() -> bool:
        try:
            return bool(call("/system"))
        except OSError:
            return False

    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
        try:
            wait_until(answers)
            kept, missing = door.keep(2), (CR, str(generate_uid()))
            good = call("/modalities/gateway/storage-commitment", {"DicomInstances": kept})
            bad = call("/modalities/gateway/storage-commitment", {"DicomInstances": [*kept, missing]})
            wait_until(lambda: call(good["Path"])["Status"] != "Pending" and call(bad["Path"])["Status"] != "Pending")
            assert call(good["Path"])["Status"] == "Success"
            told = call(bad["Path"])
            assert told["Status"] == "Failure"
            assert [one["SOPInstanceUID"] for one in told["Failures"]] == [missing[1]]
            assert told["Failures"][0]["FailureReason"] == 0x0112
            wait_until(lambda: door.commitment.count == 0)
        finally:
            process.terminate()
            process.wait(30)
