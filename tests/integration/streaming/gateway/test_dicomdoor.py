"""The DICOM door with real peers and a real broker."""

import io
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trustme
from prometheus_client import CollectorRegistry
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from benchmarks.ports import find_ports
from schemas.errors import SettingsError
from sparkdl.image.decode import decode_image
from streaming.devices.deidentify import Deidentifier
from streaming.devices.pseudonyms import Pseudonyms
from streaming.gateway.devicelist import DeviceList
from streaming.gateway.dicom.commitment import Commitment
from streaming.gateway.dicom.contexts import TRANSFER_SYNTAXES
from streaming.gateway.dicom.dicomdoor import DicomDoor
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import Keeping
from streaming.gateway.keeping.originals import Originals
from streaming.gateway.publisher import Publisher
from streaming.gateway.refusals import MAX_COMMENT, Cause, Refusal
from streaming.settings import StreamSettings
from tests.dicomwire import (
    ABORTED,
    ACCEPTED,
    RELEASE_RQ,
    RELEASED,
    associate_request,
    data_pdu,
    peer,
    store_request,
)
from tests.integration.consumers import Record, read_topic
from tests.integration.streaming.gateway.doors import RunningDoor, examine, run_door
from tests.orthanc import call, run_orthanc
from tests.testimages import (
    PATIENT_ID,
    PATIENT_NAME,
    big_endian_dicom,
    dicom,
    encapsulated_dicom,
    gdcm_dicom,
    jpeg2000_dicom,
    jpeg_baseline_dicom,
    rle_dicom,
    twelve_bit_jpeg,
    twelve_bit_pixels,
)

pytestmark = pytest.mark.kafka

DX = DigitalXRayImageStorageForPresentation
_UID = b"1.2.826.0.1.3680043.8.498.1\0"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def number(payload: bytes, count: int) -> bytes:
    """Give a file a UID of its own, of the same length."""
    assert payload.count(_UID) >= 2
    return payload.replace(_UID, b"1.2.826.0.1.3680043.8.498.%02d" % (10 + count))


def syntax_files() -> dict[str, bytes]:
    """Give a file in each of thirteen transfer syntaxes, each of a UID of its own."""
    pixels = twelve_bit_pixels()
    builders: dict[str, Callable[[], bytes]] = {
        "explicit": dicom,
        "implicit": lambda: dicom(syntax=ImplicitVRLittleEndian),
        "big_endian": big_endian_dicom,
        "rle": rle_dicom,
        "baseline": jpeg_baseline_dicom,
        "extended": lambda: encapsulated_dicom(twelve_bit_jpeg(), JPEGExtended12Bit, pixels),
        "lossless": lambda: gdcm_dicom(JPEGLosslessSV1),
        "lossless_p14": lambda: encapsulated_dicom(twelve_bit_jpeg(lossless=True), JPEGLossless, pixels),
        "jpeg_ls": lambda: gdcm_dicom(JPEGLSLossless),
        "jpeg2000": jpeg2000_dicom,
        "jpeg2000_gdcm": lambda: gdcm_dicom(JPEG2000Lossless),
    }
    return {name: number(build(), count) for count, (name, build) in enumerate(builders.items())}


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name, payload in files.items():
        paths.append(folder / f"{name}.dcm")
        paths[-1].write_bytes(payload)
    return paths


def pixels_of(payload: bytes) -> Any:
    image = decode_image(payload, origin="x").image
    return np.frombuffer(image.data, np.uint8)


def assert_same_images(records: list[Record], files: dict[str, bytes]) -> None:
    """Compare what was published with what was sent, pixel by pixel."""
    sent = {str(dcmread(io.BytesIO(one), stop_before_pixels=True).SOPInstanceUID): one for one in files.values()}
    assert sorted(record.text("ce_id") for record in records) == sorted(sent)
    for record in records:
        assert record.value is not None
        assert np.array_equal(pixels_of(record.value), pixels_of(sent[record.text("ce_id")]))
        assert record.text("content-type") == "application/dicom"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(one) for one in command], capture_output=True, text=True, timeout=120, check=False)


def wait_for(holds: Callable[[], bool], what: str, most_s: float = 30) -> None:
    until = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@pytest.fixture
def door(settings: StreamSettings, tmp_path: Path) -> Iterator[RunningDoor]:
    with run_door(settings, folder=tmp_path / "in") as running:
        yield running


@contextmanager
def associated(
    port: int, *contexts: tuple[str, list[str]], called: str = "XRAY", calling: str = "DX1"
) -> Iterator[Any]:
    """Associate as a modality would, with pynetdicom."""
    entity = AE(calling)
    for abstract, syntaxes in contexts or ((DX, [ExplicitVRLittleEndian]), (Verification, [ImplicitVRLittleEndian])):
        entity.add_requested_context(abstract, syntaxes)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(port: int, payload: bytes, **options: str) -> Any:
    """Send one file; give the answer."""
    dataset = dcmread(io.BytesIO(payload))
    syntax = dataset.file_meta.TransferSyntaxUID
    with associated(port, (dataset.SOPClassUID, [syntax]), **options) as association:
        assert association.is_established
        return association.send_c_store(dataset)


# --- peers ------------------------------------------------------------------------------------------------------------


def test_an_object_is_in_kafka_when_success_is_answered(door: RunningDoor, settings: StreamSettings) -> None:
    payload = dicom()
    answer = send(door.port, payload)
    assert answer.Status == 0
    (record,) = read_topic(settings.kafka, settings.kafka.images_topic)
    assert record.value is not None
    assert record.value.endswith(payload[payload.index(b"DX") :]), "the data set is as it was sent"
    assert record.text("ce_source") == "/dicom/DX1"
    assert record.text("ce_id") == "1.2.826.0.1.3680043.8.498.1"
    assert door.objects("published") == 1
    assert list(door.folder.iterdir()) == []


def test_the_same_object_is_the_same_bytes_each_time(door: RunningDoor, settings: StreamSettings) -> None:
    payload = dicom()
    assert [send(door.port, payload).Status for _ in range(2)] == [0, 0]
    first, second = read_topic(settings.kafka, settings.kafka.images_topic)
    assert first.value == second.value
    assert len({one.event_id for one in door.book.accepted}) == 1


def test_pynetdicom_sends_each_class_in_each_syntax(door: RunningDoor, settings: StreamSettings) -> None:
    files = syntax_files()
    for name, payload in files.items():
        assert send(door.port, payload).Status == 0, name
    assert_same_images(read_topic(settings.kafka, settings.kafka.images_topic), files)
    for count, sop_class in enumerate((ComputedRadiographyImageStorage, SecondaryCaptureImageStorage)):
        assert send(door.port, number(dicom(SOPClassUID=sop_class), 50 + count)).Status == 0


def test_each_syntax_comes_through_de_identification(settings: StreamSettings, tmp_path: Path) -> None:
    deidentifier = Deidentifier(Pseudonyms(tmp_path / "key"), dates="cut", limits=settings.score.to_limits())
    files = syntax_files()
    with run_door(settings, folder=tmp_path / "in", deidentify=deidentifier.deidentify) as door:
        for name, payload in files.items():
            assert send(door.port, payload).Status == 0, name
        status = store_damaged(door.port, sop_instance="1.2.3.4")
        assert status == Cause.WRONG_CLASS.value.status
    records = read_topic(settings.kafka, settings.kafka.images_topic)
    assert len(records) == len(files)
    for secret in (PATIENT_NAME, PATIENT_ID, "1.2.826.0.1.3680043.8.498."):
        assert not any(secret.encode() in bytes(part) for one in records for part in (one.value or b"", one.key or b""))
    sent = sorted(pixels_of(one).tobytes() for one in files.values())
    assert sorted(pixels_of(one.value or b"").tobytes() for one in records) == sent


def test_high_throughput_jpeg_2000_is_taken_as_it_is(door: RunningDoor, settings: StreamSettings) -> None:
    payload = encapsulated_dicom(b"\xff\x4f\xff\x51" + b"\0" * 60, HTJ2KLossless, twelve_bit_pixels())
    assert send(door.port, payload).Status == 0
    (record,) = read_topic(settings.kafka, settings.kafka.images_topic)
    assert record.value is not None
    assert dcmread(io.BytesIO(record.value)).file_meta.TransferSyntaxUID == HTJ2KLossless


def test_verification(door: RunningDoor) -> None:
    with associated(door.port) as association:
        assert association.send_c_echo().Status == 0


@needs("echoscu")
def test_echoscu(door: RunningDoor) -> None:
    assert run("echoscu", "-aec", "XRAY", "127.0.0.1", str(door.port)).returncode == 0


@needs("dcmsend")
def test_dcmsend_in_ten_syntaxes(door: RunningDoor, settings: StreamSettings, tmp_path: Path) -> None:
    files = syntax_files()
    assert len(files) >= 10
    paths = write_files(tmp_path / "out", files)
    result = run("dcmsend", "-v", "-dn", "-aec", "XRAY", "127.0.0.1", str(door.port), *paths)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_images(read_topic(settings.kafka, settings.kafka.images_topic), files)


PROPOSALS = {
    "explicit": "-x=",
    "implicit": "-xi",
    "big_endian": "-xb",
    "rle": "-xr",
    "baseline": "-xy",
    "extended": "-xx",
    "lossless": "-xs",
    "jpeg_ls": "-xt",
    "jpeg2000": "-xv",
}


@needs("storescu")
def test_storescu_in_each_syntax_that_it_proposes(door: RunningDoor, settings: StreamSettings, tmp_path: Path) -> None:
    files = {name: payload for name, payload in syntax_files().items() if name in PROPOSALS}
    for path in write_files(tmp_path / "out", files):
        result = run("storescu", PROPOSALS[path.stem], "-aec", "XRAY", "127.0.0.1", str(door.port), path)
        assert result.returncode == 0, (path.stem, result.stderr)
    assert_same_images(read_topic(settings.kafka, settings.kafka.images_topic), files)


@pytest.mark.parametrize(
    ("program", "options"), [("dcmcjpeg", ["+e1"]), ("dcmcjpeg", ["+el"]), ("dcmcrle", []), ("dcmcjpls", [])]
)
def test_files_that_dcmtk_compressed(
    door: RunningDoor, settings: StreamSettings, tmp_path: Path, program: str, options: list[str]
) -> None:
    if shutil.which(program) is None or shutil.which("dcmsend") is None:
        pytest.skip(f"{program} or dcmsend is not installed")
    source, target = tmp_path / "source.dcm", tmp_path / "target.dcm"
    source.write_bytes(dicom())
    assert run(program, *options, source, target).returncode == 0
    result = run("dcmsend", "-dn", "-aec", "XRAY", "127.0.0.1", str(door.port), target)
    assert result.returncode == 0, result.stderr
    (record,) = read_topic(settings.kafka, settings.kafka.images_topic)
    assert record.value is not None
    assert np.array_equal(pixels_of(record.value), pixels_of(source.read_bytes()))


@needs("Orthanc")
def test_orthanc_sends(settings: StreamSettings, tmp_path: Path) -> None:
    files = {name: one for name, one in syntax_files().items() if name in ("explicit", "rle", "lossless", "jpeg2000")}
    files = {name: with_study(one) for name, one in files.items()}
    with run_door(settings, folder=tmp_path / "in") as door, run_orthanc(tmp_path, door.port) as address:
        ids = [call(f"{address}/instances", one)["ID"] for one in files.values()]
        result = call(f"{address}/modalities/xray/store", json.dumps(ids).encode())
        assert (result["InstancesCount"], result["FailedInstancesCount"]) == (len(files), 0)
    assert_same_images(read_topic(settings.kafka, settings.kafka.images_topic), files)


def with_study(payload: bytes) -> bytes:
    """Add what an archive wants."""
    dataset, buffer = dcmread(io.BytesIO(payload)), io.BytesIO()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.3"
    dataset.save_as(buffer)
    return buffer.getvalue()


# --- each status ------------------------------------------------------------------------------------------------------


def refuse(cause: Cause) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise Refusal(cause)

    return raise_it


class SpoolDouble:
    """Double of a spool that is full."""

    holds_anything, has_room = True, False
    put = staticmethod(refuse(Cause.SPOOL_FULL))


class OriginalsDouble:
    """Double of a folder that takes nothing."""

    keep = staticmethod(refuse(Cause.KEEP_FAILED))


def fail(payload: bytes, *, origin: str) -> Any:
    """Double of a fault that nobody foresaw, whose words quote a patient."""
    raise ZeroDivisionError(PATIENT_NAME)


def store_damaged(port: int, *, data: bytes | None = None, **options: str) -> int:
    """Send a data set as it is; give the status."""
    payload = dicom()
    start = 132 + 12 + int.from_bytes(payload[140:144], "little")
    with peer(port) as one:
        one.associate()
        one.send(*store_request(payload[start:] if data is None else data, **options))  # type: ignore[arg-type]
        return one.status()


def large() -> bytes:
    return dicom(np.zeros((1024, 1024), np.uint16) + np.arange(1024, dtype=np.uint16))


def assert_refused(answer: Any, cause: Cause) -> None:
    assert answer.Status == cause.value.status
    assert answer.ErrorComment == cause.value.comment
    assert len(answer.ErrorComment) <= MAX_COMMENT


def test_broker_away(settings: StreamSettings, tmp_path: Path) -> None:
    away = settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
    elsewhere = settings.model_copy(update={"kafka": away})
    with run_door(elsewhere, folder=tmp_path / "in", answer_s=4.0) as door:
        began = time.monotonic()
        assert_refused(send(door.port, dicom()), Cause.BROKER_AWAY)
        assert time.monotonic() - began < 4
        assert door.objects("broker_away") == 1


def test_broker_that_goes_while_an_object_is_published(settings: StreamSettings, tmp_path: Path) -> None:
    away = settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})

    class Publishes(Publisher):
        """A publisher that does not know yet that its broker is away."""

        is_up = True  # type: ignore[assignment]

    own = Publishes(away, timeout_s=2.0)
    with run_door(settings, folder=tmp_path / "in", publisher=own, answer_s=6.0) as door:
        began = time.monotonic()
        assert_refused(send(door.port, dicom()), Cause.BROKER_AWAY)
        assert 1 < time.monotonic() - began < 6


def test_spool_full(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", keeping=Keeping(spool=SpoolDouble())) as door:  # type: ignore[arg-type]
        assert_refused(send(door.port, dicom()), Cause.SPOOL_FULL)


def test_keep_failed(settings: StreamSettings, tmp_path: Path) -> None:
    keeping = Keeping(originals=OriginalsDouble())  # type: ignore[arg-type]
    with run_door(settings, folder=tmp_path / "in", keeping=keeping) as door:
        assert_refused(send(door.port, dicom()), Cause.KEEP_FAILED)


def test_busy_where_memory_is_taken(settings: StreamSettings, tmp_path: Path) -> None:
    enough = threading.Event()

    def wait(payload: bytes, *, origin: str) -> Any:
        enough.wait(60)
        return examine(payload, origin=origin)

    options = {"max_pending_bytes": 7_000_000, "answer_s": 4.0}
    with run_door(settings, folder=tmp_path / "in", deidentify=wait, **options) as door:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(send(door.port, large())))
        thread.start()
        wait_for(lambda: door.count("xray_gateway_pending_bytes") > 0, "the first object takes no memory")
        assert_refused(send(door.port, number(large(), 1)), Cause.BUSY)
        enough.set()
        thread.join(60)
        assert first[0].Status == 0


def test_busy_where_the_disk_takes_nothing(door: RunningDoor) -> None:
    door.folder.rmdir()
    assert_refused(send(door.port, dicom()), Cause.BUSY)
    door.folder.mkdir()
    assert send(door.port, dicom()).Status == 0


def test_rate(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", rate_per_s=0.1) as door:
        assert send(door.port, dicom()).Status == 0
        assert_refused(send(door.port, dicom()), Cause.RATE)
        assert send(door.port, dicom(), calling="DX2").Status == 0, "each device has a rate of its own"


def test_ending(settings: StreamSettings, tmp_path: Path) -> None:
    enough = threading.Event()

    def wait(payload: bytes, *, origin: str) -> Any:
        enough.wait(60)
        return examine(payload, origin=origin)

    with run_door(settings, folder=tmp_path / "in", deidentify=wait) as door, peer(door.port) as busy:
        busy.associate()
        busy.send(*store_request(dataset_of(dicom())))
        wait_for(lambda: door.count("xray_gateway_pending_bytes") > 0, "the first object is not under way")
        with associated(door.port) as association:
            stopping = threading.Thread(target=door.door.stop)
            stopping.start()
            wait_for(lambda: not listens(door.port), "it still accepts connections")
            wait_for(lambda: door.door._is_ending, "it does not end")
            assert_refused(association.send_c_store(dcmread(io.BytesIO(dicom()))), Cause.ENDING)
        enough.set()
        assert busy.status() == 0, "what had begun is answered"
        stopping.join(30)
        assert not stopping.is_alive()
        assert busy.receive()[0] == ABORTED


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def dataset_of(payload: bytes) -> bytes:
    return payload[132 + 12 + int.from_bytes(payload[140:144], "little") :]


def rename(data: bytes, sop_instance: bytes) -> bytes:
    """Put a text in place of the SOP Instance UID of a data set in explicit VR."""
    start = data.index(b"\x08\0\x18\0UI")
    end = start + 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    value = sop_instance + bytes(len(sop_instance) % 2)
    return data[: start + 6] + len(value).to_bytes(2, "little") + value + data[end:]


@pytest.mark.parametrize("what", ["instance", "class"])
def test_wrong_class(door: RunningDoor, what: str) -> None:
    payload = dicom() if what == "instance" else dicom(SOPClassUID=ComputedRadiographyImageStorage)
    data = dataset_of(payload)
    status = store_damaged(
        door.port, data=data, sop_instance="1.2.3.4" if what == "instance" else "1.2.826.0.1.3680043.8.498.1"
    )
    assert status == Cause.WRONG_CLASS.value.status


@pytest.mark.parametrize("sop_instance", ["", "1." * 33 + "1", "1.2." + "9" * 200])
def test_what_is_no_uid_costs_that_object_alone(door: RunningDoor, sop_instance: str) -> None:
    with peer(door.port) as one:
        one.associate()
        one.send(*store_request(dataset_of(dicom()), sop_instance=sop_instance))
        assert one.status() == Cause.WRONG_CLASS.value.status
        one.send(*store_request(dataset_of(dicom()), message_id=2, sop_class="1.2." + "9" * 200))
        assert one.status() == Cause.SOP_CLASS.value.status
        one.send(*store_request(dataset_of(dicom()), message_id=3))
        assert one.status() == 0, "the association goes on"


@pytest.mark.parametrize("sop_instance", ["", "1." * 33 + "1", "no UID"])
def test_an_object_that_has_no_uid_itself_is_taken(settings: StreamSettings, tmp_path: Path, sop_instance: str) -> None:
    pseudonyms = Pseudonyms(tmp_path / "key")
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    data, other = (rename(dataset_of(payload), sop_instance.encode()) for payload in (dicom(), dicom(pixels)))
    with run_door(settings, folder=tmp_path / "in", deidentify=Deidentifier(pseudonyms).deidentify) as door:
        assert store_damaged(door.port, data=data, sop_instance=sop_instance) == 0
        assert store_damaged(door.port, data=data, sop_instance=sop_instance) == 0
        assert store_damaged(door.port, data=other, sop_instance=sop_instance) == 0
        first, again, second = (one.event_id for one in door.book.accepted)
        assert first == again != second


@pytest.mark.parametrize("data", [b"\0", b"\x08\0\x05\0CS\xff\xff" + b"x" * 100, dataset_of(dicom())[:150]])
def test_unreadable(door: RunningDoor, data: bytes) -> None:
    assert store_damaged(door.port, data=data) == Cause.UNREADABLE.value.status


def test_unreadable_without_a_data_set(door: RunningDoor) -> None:
    with peer(door.port) as one:
        one.associate()
        one.send(*store_request(None))
        assert one.status() == Cause.UNREADABLE.value.status
        one.send(*store_request(dataset_of(dicom()), message_id=2))
        assert one.status() == 0, "the association goes on"


def test_too_large(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", max_object_bytes=1_000_000) as door:
        assert_refused(send(door.port, large()), Cause.TOO_LARGE)
        assert send(door.port, dicom()).Status == 0
        assert list(door.folder.iterdir()) == []


def test_unsupported(door: RunningDoor) -> None:
    dataset = dcmread(io.BytesIO(dicom()))
    del dataset.PixelData
    with associated(door.port) as association:
        assert_refused(association.send_c_store(dataset), Cause.UNSUPPORTED)


DEVICES = """[[device]]
source = "/ward/1"
aet = "DX1"
addresses = ["127.0.0.0/8"]
[[device]]
source = "/ward/2"
aet = "DX2"
addresses = ["10.0.0.0/8"]
"""


def test_not_allowed_once_the_device_is_taken_from_the_file(settings: StreamSettings, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    with run_door(settings, folder=tmp_path / "in", devices=file) as door, associated(door.port) as association:
        dataset = dcmread(io.BytesIO(dicom()))
        assert association.send_c_store(dataset).Status == 0
        assert door.book.accepted[0].header("ce_source") == "/ward/1"
        file.write_text(DEVICES.replace("DX1", "DX3"))
        wait_for(lambda: association.send_c_store(dataset).Status != 0, "it may still send")
        assert_refused(association.send_c_store(dataset), Cause.NOT_ALLOWED)
        file.write_text(DEVICES)
        wait_for(lambda: association.send_c_store(dataset).Status == 0, "it may not send again")


@pytest.mark.parametrize("sop_class", [CTImageStorage, ComputedRadiographyImageStorage, "1.2.3.4.5"])
def test_sop_class(door: RunningDoor, sop_class: str) -> None:
    assert store_damaged(door.port, sop_class=sop_class) == Cause.SOP_CLASS.value.status
    assert door.objects("sop_class") == 1


def test_failed(settings: StreamSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with run_door(settings, folder=tmp_path / "in", deidentify=fail) as door:
        assert_refused(send(door.port, dicom()), Cause.FAILED)
        assert "ZeroDivisionError" in caplog.text
        assert PATIENT_NAME not in caplog.text


@pytest.mark.parametrize("where", ["admit", "find_by_title"])
def test_failed_in_the_door_itself(
    settings: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with run_door(settings, folder=tmp_path / "in") as door, associated(door.port) as association:
        monkeypatch.setattr(DeviceList, where, lambda *_: 1 / 0)
        assert_refused(association.send_c_store(dcmread(io.BytesIO(dicom()))), Cause.FAILED)
        monkeypatch.undo()
        assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0, "the association goes on"


# --- who may associate ------------------------------------------------------------------------------------------------


def reason(association: Any) -> tuple[int, int, int]:
    answer = association.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


def test_another_called_title_is_rejected_for_good(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in") as door:
        for called in ("OTHER", "xray", "XRAY2"):
            with associated(door.port, called=called) as association:
                assert association.is_rejected
                assert reason(association) == (1, 1, 7)
        assert door.rejected("called_title") == 3
    with run_door(settings, folder=tmp_path / "in", check_called_aet=False) as door:
        with associated(door.port, called="OTHER") as association:
            assert association.is_established


@pytest.mark.parametrize("calling", ["DX2", "STRANGER", "dx1"])
def test_a_device_that_may_not_send_is_rejected_for_good(
    settings: StreamSettings, tmp_path: Path, calling: str
) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    with run_door(settings, folder=tmp_path / "in", devices=file) as door:
        with associated(door.port, calling=calling) as association:
            assert association.is_rejected
            assert reason(association) == (1, 1, 3)
        assert door.rejected("calling_title") == 1
        assert send(door.port, dicom()).Status == 0


def test_associations_beyond_the_limit_are_rejected_for_now(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", max_associations=2) as door:
        with associated(door.port) as first, associated(door.port) as second, associated(door.port) as third:
            assert (first.is_established, second.is_established) == (True, True)
            assert reason(third) == (2, 3, 2)
            assert door.rejected("limit") == 1
            assert door.count("xray_gateway_connections", door="dicom") == 2
        wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 0, "they have not ended")
        assert send(door.port, dicom()).Status == 0


def test_other_contexts_are_refused_and_not_the_association(door: RunningDoor) -> None:
    contexts = ((CTImageStorage, [ExplicitVRLittleEndian]), (DX, ["1.2.840.10008.1.2.4.100"]), (DX, [RLELossless]))
    with associated(door.port, *contexts) as association:
        assert [one.result for one in association.rejected_contexts] == [3, 4]
        assert [one.transfer_syntax for one in association.accepted_contexts] == [[RLELossless]]


def test_all_syntaxes_in_one_association(door: RunningDoor) -> None:
    with associated(door.port, *((DX, [one]) for one in TRANSFER_SYNTAXES)) as association:
        assert len(association.accepted_contexts) == len(TRANSFER_SYNTAXES)


# --- Storage Commitment -----------------------------------------------------------------------------------------------


def test_storage_commitment_is_refused_unless_it_is_offered(door: RunningDoor) -> None:
    contexts = ((StorageCommitmentPushModel, [ImplicitVRLittleEndian]), (DX, [ExplicitVRLittleEndian]))
    with associated(door.port, *contexts) as association:
        assert [one.abstract_syntax for one in association.rejected_contexts] == [StorageCommitmentPushModel]
        assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0


def test_what_is_kept_is_committed_on_the_association_of_the_request(settings: StreamSettings, tmp_path: Path) -> None:
    reports: list[Any] = []
    originals = Originals(tmp_path / "originals")
    commitment = Commitment(originals, aet="XRAY", find_peer=lambda aet: None, grace_s=0.1)
    commitment.start()
    options = {"keeping": Keeping(originals=originals), "commitment": commitment}
    try:
        with run_door(settings, folder=tmp_path / "in", **options) as door:
            entity = AE("DX1")
            entity.add_requested_context(DX, [ExplicitVRLittleEndian])
            entity.add_requested_context(StorageCommitmentPushModel, [ImplicitVRLittleEndian])

            def take(event: evt.Event) -> tuple[int, None]:
                reports.append((event.event_type, event.event_information))
                return 0, None

            association = entity.associate(
                "127.0.0.1", door.port, ae_title="XRAY", evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]
            )
            assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0
            request, one, other = Dataset(), Dataset(), Dataset()
            one.ReferencedSOPClassUID = other.ReferencedSOPClassUID = DX
            one.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
            other.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.8.498.99"
            request.TransactionUID, request.ReferencedSOPSequence = "1.2.3.4", [one, other]
            status, _ = association.send_n_action(
                request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            assert status.Status == 0
            wait_for(lambda: bool(reports), "no report came")
            assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0, "the association goes on"
            association.release()
    finally:
        commitment.stop()
        originals.close()
    ((kind, report),) = reports
    assert kind == 2
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [one.ReferencedSOPInstanceUID]
    assert [item.ReferencedSOPInstanceUID for item in report.FailedSOPSequence] == [other.ReferencedSOPInstanceUID]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    own = trustme.CA()
    own.cert_pem.write_to_path(tmp_path / "authority.pem")
    return own


def write_identity(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


def tls_associate(port: int, context: ssl.SSLContext) -> Any:
    entity = AE("DX1")
    entity.add_requested_context(DX, [ExplicitVRLittleEndian])
    return entity.associate("127.0.0.1", port, ae_title="XRAY", tls_args=(context, "127.0.0.1"))


def test_mutual_tls(settings: StreamSettings, tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = write_identity(authority, tmp_path, "door")
    mine, mine_key = write_identity(authority, tmp_path, "device")
    foreign, foreign_key = write_identity(trustme.CA(), tmp_path, "foreign")
    options = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": tmp_path / "authority.pem"}
    with run_door(settings, folder=tmp_path / "in", **options) as door:
        trusting = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        with_own = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        with_own.load_cert_chain(mine, mine_key)
        with_foreign = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        with_foreign.load_cert_chain(foreign, foreign_key)
        for context in (trusting, with_foreign):
            assert not tls_associate(door.port, context).is_established
        wait_for(lambda: door.rejected("tls") == 2, "they are not counted")
        association = tls_associate(door.port, with_own)
        assert association.is_established
        assert association.send_c_store(dcmread(io.BytesIO(large()))).Status == 0
        association.release()
        with peer(door.port) as plain:
            plain.send(associate_request())
            assert plain.receive()[0] != ACCEPTED
        wait_for(lambda: door.rejected("tls") == 3, "plain text is not counted")
        # Silent peers in the middle of a handshake stop nobody.
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(peer(door.port)).send(b"\x16\x03\x01")
            association = tls_associate(door.port, with_own)
            assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0
            association.release()


@needs("storescu")
def test_storescu_with_tls(settings: StreamSettings, tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = write_identity(authority, tmp_path, "door")
    mine, mine_key = write_identity(authority, tmp_path, "device")
    (file,) = write_files(tmp_path / "out", {"explicit": dicom()})
    options = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": tmp_path / "authority.pem"}
    with run_door(settings, folder=tmp_path / "in", **options) as door:
        tls = ["+tls", mine_key, mine, "+cf", tmp_path / "authority.pem"]
        result = run("storescu", *tls, "-aec", "XRAY", "127.0.0.1", str(door.port), file)
        assert result.returncode == 0, result.stderr
        assert door.objects("published") == 1


def test_certificates_that_change_are_used_for_new_associations(
    settings: StreamSettings, tmp_path: Path, authority: trustme.CA
) -> None:
    certificate, key = write_identity(authority, tmp_path, "door")
    with run_door(settings, folder=tmp_path / "in", tls_certificate=certificate, tls_key=key) as door:
        first = tls_associate(door.port, ssl.create_default_context(cafile=tmp_path / "authority.pem"))
        assert first.is_established
        renewed = trustme.CA()
        renewed.cert_pem.write_to_path(tmp_path / "renewed.pem")
        for old, new in zip((certificate, key), write_identity(renewed, tmp_path, "next"), strict=True):
            os.replace(new, old)
        second = tls_associate(door.port, ssl.create_default_context(cafile=tmp_path / "renewed.pem"))
        assert second.is_established
        assert first.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0
        for one in (first, second):
            one.release()


def test_bad_pem_files_stop_the_start(settings: StreamSettings, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    options = {"tls_certificate": tmp_path / "bad.pem", "tls_key": tmp_path / "bad.pem"}
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__TLS_CERTIFICATE"):
        with run_door(settings, folder=tmp_path / "in", **options):
            pass


def test_a_port_that_is_taken_stops_the_start(door: RunningDoor, settings: StreamSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__DICOM_PORT"):
        with run_door(settings, folder=tmp_path / "in", dicom_port=door.port):
            pass


# --- peers that do not behave -----------------------------------------------------------------------------------------

BROKEN_FIRST = {
    "nothing known": b"\xff" * 64,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00" + b"\0" * 64,
    "data before an association": data_pdu(b"x", control=0),
    "a release before an association": RELEASE_RQ,
    "a request of 4 GB": b"\x01\x00\xff\xff\xff\xff" + b"\0" * 64,
    "a request without content": b"\x01\x00\x00\x00\x00\x00",
    "a request of zeros": b"\x01\x00\x00\x00\x00\x44" + b"\0" * 68,
    "a request of letters": b"\x01\x00\x00\x00\x01\x00" + b"z" * 256,
}


@pytest.mark.parametrize("what", BROKEN_FIRST)
def test_who_does_not_ask_for_an_association_is_sent_away(door: RunningDoor, what: str) -> None:
    with peer(door.port) as one:
        one.send(BROKEN_FIRST[what])
        assert one.receive()[0] in (0, ABORTED)
    wait_for(lambda: door.rejected("not_dicom") == 1, "it is not counted")
    assert send(door.port, dicom()).Status == 0


STORE = store_request(dataset_of(dicom()))
COMMAND_FIELD = b"\0\0\0\1\2\0\0\0\1\0"
BROKEN_LATER = {
    "an unknown PDU": [b"\x09\0\0\0\0\x04\0\0\0\0"],
    "a PDU above the limit": [b"\x04\0\x7f\xff\xff\xff" + b"\0" * 1000],
    "a second request": [associate_request()],
    "a piece without content": [b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x03"],
    "an empty piece": [b"\x04\0\0\0\0\x05\0\0\0\x01\x01"],
    "lengths that contradict": [b"\x04\0\0\0\0\x08\xff\xff\xff\xff\x01\x03\0\0"],
    "a command that is none": [data_pdu(b"\xff" * 300, control=3)],
    "a command set of an unknown command": [
        data_pdu(STORE[0][12:].replace(COMMAND_FIELD, COMMAND_FIELD[:-2] + b"\x77\x77"), control=3)
    ],
    "a command set without end": [data_pdu(b"\0" * 16000, control=1)] * 6,
    "a data set without a command": [data_pdu(b"\0" * 100_000, control=0)] * 90,
    "a context that was not agreed": [data_pdu(STORE[0][12:], control=3, context_id=5)],
    "objects without waiting for answers": STORE * 40,
}


@pytest.mark.parametrize("what", BROKEN_LATER)
def test_a_broken_association_is_aborted_and_leaves_nothing(
    settings: StreamSettings, tmp_path: Path, what: str
) -> None:
    hold = threading.Event()

    def wait(payload: bytes, *, origin: str) -> Any:
        hold.wait(20 if "waiting" in what else 0)
        return examine(payload, origin=origin)

    with run_door(settings, folder=tmp_path / "in", deidentify=wait) as door, peer(door.port) as one:
        one.associate()
        with suppress(ConnectionError):
            one.send(*BROKEN_LATER[what])
        assert one.receive()[0] in (0, ABORTED)
        hold.set()
        wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 0, "it has not ended")
        assert open_files(door.folder) == []
        assert send(door.port, dicom()).Status == 0


def open_files(folder: Path) -> list[str]:
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if str(folder) in link]


@pytest.mark.parametrize("how", ["closed", "aborted", "reset"])
def test_an_association_that_ends_inside_an_object_leaves_nothing(door: RunningDoor, how: str) -> None:
    for _ in range(3):
        with peer(door.port) as one:
            one.associate()
            one.send(STORE[0], data_pdu(b"x" * 10_000, control=0))
            wait_for(lambda: open_files(door.folder) != [], "the object did not begin")
            assert list(door.folder.iterdir()) == [], "a kill would leave a readable file"
            if how == "aborted":
                one.send(bytes((7, 0, 0, 0, 0, 4, 0, 0, 0, 0)))
            elif how == "reset":
                one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_for(lambda: open_files(door.folder) == [], "the object is still there")
    wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 0, "associations are left")


@pytest.mark.long
def test_damaged_messages_end_their_own_association_alone(door: RunningDoor) -> None:
    chance, seen = random.Random(15), set()
    for _ in range(150):
        damaged = bytearray(b"".join(STORE))
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(400)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        with peer(door.port) as one, suppress(OSError):
            one.associate()
            one.send(bytes(damaged))
            one.socket.shutdown(socket.SHUT_WR)
            seen.add(one.receive()[0])
    assert ABORTED in seen, "no damage was seen"
    wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 0, "associations are left")
    assert open_files(door.folder) == []
    assert send(door.port, dicom()).Status == 0


def test_an_object_without_end_is_not_read_to_it(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", max_object_bytes=100_000) as door, peer(door.port) as one:
        one.associate()
        one.send(STORE[0])
        with suppress(ConnectionError):
            for _ in range(1000):
                one.send(data_pdu(b"x" * 16_000, control=0))
        assert one.receive()[0] in (0, ABORTED)
        assert open_files(door.folder) == []


def test_half_a_pdu_ends_after_a_time(settings: StreamSettings, tmp_path: Path) -> None:
    with run_door(settings, folder=tmp_path / "in", idle_s=1.0) as door, peer(door.port) as silent:
        silent.associate()
        with peer(door.port) as halfway:
            halfway.associate()
            halfway.send(STORE[0], STORE[1][:100])
            assert halfway.receive()[0] in (0, ABORTED)
        assert silent.receive()[0] in (0, ABORTED), "one that says nothing ends, too"
        assert send(door.port, dicom()).Status == 0
        assert open_files(door.folder) == []


def test_a_slow_sender_is_served_and_holds_up_nobody(settings: StreamSettings, tmp_path: Path) -> None:
    wire = b"".join(STORE)
    with run_door(settings, folder=tmp_path / "in", idle_s=20.0) as door, peer(door.port) as slow:
        slow.associate()
        pieces = [wire[at : at + 997] for at in range(0, len(wire), 997)]
        for count, piece in enumerate(pieces):
            slow.send(piece)
            assert send(door.port, number(dicom(), count)).Status == 0
        assert slow.status() == 0
        slow.send(RELEASE_RQ)
        assert slow.receive()[0] == RELEASED


def test_small_objects_do_not_wait_for_delayed_acknowledgements(door: RunningDoor) -> None:
    took = []
    with peer(door.port) as one:  # with Nagle's algorithm on, as most senders
        one.associate()
        for _ in range(40):
            began = time.monotonic()
            for pdu in STORE:
                one.send(pdu[:12], pdu[12:])  # as dcmtk writes
            assert one.status() == 0
            took.append(time.monotonic() - began)
    # The system puts nothing off in the beginning of a connection.
    assert min(took[20:]) < 0.04, "each object waits for the acknowledgement of its request"


def test_a_thousand_connections_that_say_nothing(settings: StreamSettings, tmp_path: Path) -> None:
    before = threading.active_count()
    with run_door(settings, folder=tmp_path / "in") as door, ExitStack() as stack:
        for count in range(1000):
            one = stack.enter_context(peer(door.port))
            if count % 3 == 1:
                one.send(b"\x01")
            elif count % 3 == 2:
                one.send(associate_request()[:50])
        assert threading.active_count() - before < 20
        assert store_damaged(door.port) == 0
        wait_for(lambda: door.rejected("crowded") >= 1000 - 256, "no connection gave way")


def test_descriptors_above_1023_are_served(door: RunningDoor) -> None:
    with ExitStack() as stack:
        try:
            for _ in range(1100):
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pytest.skip("the limit of open files is below 1,100")
        assert store_damaged(door.port) == 0


def test_a_thousand_requests_at_once_start_few_threads(settings: StreamSettings, tmp_path: Path) -> None:
    most = [0]
    with run_door(settings, folder=tmp_path / "in", max_associations=5) as door, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(peer(door.port)).send(associate_request())
            most[0] = max(most[0], threading.active_count())
        assert most[0] < 2 * (5 + 32) + 40
        wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 5, "not all who may are accepted")


def test_associations_come_and_go_without_a_leak(door: RunningDoor) -> None:
    def once() -> None:
        with associated(door.port) as association:
            assert association.send_c_store(dcmread(io.BytesIO(dicom()))).Status == 0

    once()
    wait_for(lambda: door.count("xray_gateway_connections", door="dicom") == 0, "it has not ended")
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        once()
    wait_for(lambda: threading.active_count() <= threads, "threads are left")
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2, "descriptors are left")


def test_stop_ends_in_time_whatever_peers_do(settings: StreamSettings, tmp_path: Path) -> None:
    threads = threading.active_count()
    with run_door(settings, folder=tmp_path / "in", answer_s=2.0) as door, ExitStack() as stack:
        peers = [stack.enter_context(peer(door.port)) for _ in range(6)]
        for one in peers[:4]:
            one.associate()
        peers[1].send(STORE[0])
        peers[2].send(STORE[0], STORE[1][:100])
        peers[3].send(b"\x04")
        began = time.monotonic()
        door.door.stop()
        assert time.monotonic() - began < 2 + 2 * 2 + 1
        assert open_files(door.folder) == []
        assert all(one.receive()[0] in (0, ABORTED) for one in peers)
    wait_for(lambda: threading.active_count() <= threads, "threads are left")


def test_logs_and_warnings_name_no_patient_and_no_uid(
    settings: StreamSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    secrets = (PATIENT_NAME, PATIENT_ID, "1.2.826.0.1.3680043.8.498.1")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with run_door(settings, folder=tmp_path / "in") as door:
            for data in (dataset_of(dicom()), b"\0", dataset_of(dicom())[:150]):
                send_raw(door.port, data)
            for damaged in (
                data_pdu(PATIENT_NAME.encode() * 3, control=3),
                data_pdu(STORE[0][12:].replace(_UID, PATIENT_NAME.ljust(28).encode()), control=3),
                data_pdu(STORE[0][12:].replace(DX.encode(), PATIENT_NAME.ljust(len(DX)).encode()), control=3),
            ):
                with peer(door.port) as one:
                    one.associate()
                    one.send(damaged)
                    wait_for(lambda: door.count("xray_gateway_connections", door="dicom") > 0, "it is not there")
            with peer(door.port) as one:
                one.send(associate_request().replace(DX.encode(), PATIENT_NAME.ljust(len(DX), "x").encode()))
                one.receive()
    assert "is not taken: unreadable" in caplog.text
    said = caplog.text + "".join(str(one.message) for one in warned) + "".join(capfd.readouterr())
    for secret in secrets:
        assert secret not in said


def send_raw(port: int, data: bytes) -> int:
    with peer(port) as one:
        one.associate()
        one.send(*store_request(data))
        status = one.status()
        one.send(RELEASE_RQ)
        assert one.receive()[0] == RELEASED
    return status


def test_the_folder_is_for_its_owner_alone(door: RunningDoor) -> None:
    assert door.folder.stat().st_mode & 0o777 == 0o700


def test_a_door_that_was_never_started_stops(settings: StreamSettings, tmp_path: Path) -> None:
    metrics = GatewayMetrics(CollectorRegistry())
    intake = SimpleNamespace(max_bytes=1)
    DicomDoor(
        settings.gateway,
        intake,  # type: ignore[arg-type]
        DeviceList(settings.gateway),
        metrics,
        folder=tmp_path,
    ).stop()
