"""Reports in archives: Orthanc holds the originals and finds the reports by study, dcmtk reads them; and STOW-RS."""

import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from confluent_kafka import Producer
from pydicom import Dataset, dcmread

from benchmarks.ports import find_ports
from schemas import envelope
from streaming.gateway.service import GatewayState, run_gateway
from streaming.kafka.places import header_text, read_headers
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.kafka.topics import create_topics, label_topics, receipt_topics
from streaming.reports.service import run_reports
from streaming.reports.target import AwayError, RefusedError, read_address
from streaming.reports.targets import open_target
from streaming.settings import ReportsSettings, StreamSettings
from tests.reportparts import DX, RECEIVED, SCORED, event, report
from tests.testimages import dicom
from xray.broker import LocalBroker

STUDY = "1.2.826.0.1.3680043.8.498.7"
N_STUDIES = 100
WAIT_S = 120


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def call(url: str, body: bytes | None = None, kind: str = "application/dicom") -> Any:
    with urlopen(Request(url, data=body, headers={"Content-Type": kind}), timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def answers(url: str) -> bool:
    try:
        return bool(call(url))
    except URLError:
        return False


# --- Orthanc ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(broker: LocalBroker, base_settings: StreamSettings, tmp_path: Path) -> StreamSettings:
    names = ("images", "predictions", "features", "deadletters", "labels", "receipts")
    kafka = base_settings.kafka.model_copy(update={f"{name}_topic": f"archives.{name}" for name in names})
    kafka = kafka.model_copy(update={"labels_deadletters_topic": "archives.labels.deadletters", "partitions": 1})
    outcomes = (kafka.images_topic, kafka.predictions_topic, kafka.deadletters_topic)
    create_topics(kafka, {name: {} for name in outcomes} | label_topics(kafka) | receipt_topics(kafka))
    gateway = {"dicom_port": "off", "http_port": 0, "metrics_port": 0, "crosswalk": tmp_path / "crosswalk"}
    return base_settings.model_copy(
        update={
            "home": tmp_path,
            "kafka": kafka,
            "gateway": base_settings.gateway.model_copy(update=gateway),
            "reports": base_settings.reports.model_copy(update={"metrics_port": 0}),
        }
    )


@contextmanager
def in_thread(work: Callable[[threading.Event, Callable[[Any], None]], None]) -> Iterator[Any]:
    """Run a service; gives its state once it is ready."""
    ended, ready, states = threading.Event(), threading.Event(), list[Any]()

    def note(state: Any) -> None:
        states.append(state)
        ready.set()

    thread = threading.Thread(target=work, args=(ended, note))
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        yield states[0]
    finally:
        ended.set()
        thread.join(WAIT_S)


@contextmanager
def run_orthanc(folder: Path) -> Iterator[tuple[str, int]]:
    """Give the address of its REST interface, and its DICOM port."""
    http = find_ports(2)
    configuration = {
        "Name": "ARCHIVE",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": http,
        "DicomPort": http + 1,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log, subprocess.Popen(["Orthanc", file], stdout=log, stderr=log) as own:
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{http}/system"), "Orthanc did not start")
            yield f"http://127.0.0.1:{http}", http + 1
        finally:
            own.terminate()


def originals() -> list[bytes]:
    return [
        dicom(
            SOPClassUID=DX,
            PatientID=f"P{number}",
            PatientName=f"Smith^{number}",
            AccessionNumber=f"A{number}",
            StudyInstanceUID=f"{STUDY}.{number}",
            SeriesInstanceUID=f"{STUDY}.{number}.1",
            SOPInstanceUID=f"{STUDY}.{number}.1.1",
            Modality="DX",
        )
        for number in range(N_STUDIES)
    ]


def predict(settings: StreamSettings) -> None:
    """Publish a prediction of each image that the gateway has published, as SCORE does."""
    kafka = settings.kafka
    with open_reader(kafka) as reader:
        spans = read_spans(reader, kafka.images_topic)
    producer = Producer(kafka.to_librdkafka())
    for number, message in enumerate(scan_offsets(kafka, kafka.images_topic, spans)):
        headers = read_headers(message)
        image = event(number)["image"] | {
            "id": header_text(headers, envelope.CE_ID),
            "source": header_text(headers, envelope.CE_SOURCE),
        }
        given = {
            envelope.CE_TYPE: envelope.PREDICTION_TYPE,
            envelope.CE_TIME: SCORED.isoformat(),
            envelope.INPUT_TIMESTAMP: RECEIVED.isoformat(),
        }
        said = json.dumps(event(number, image=image)).encode()
        producer.produce(kafka.predictions_topic, said, headers=list(given.items()))
    assert producer.flush(20) == 0


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Orthanc", path="/usr/sbin:/usr/bin") is None, reason="needs Orthanc")
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dcmtk: dsrdump")
def test_orthanc_finds_reports_by_the_study_of_the_original(
    settings: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin")
    with run_orthanc(tmp_path) as (orthanc, port):
        for original in originals():
            call(f"{orthanc}/instances", original)
        with in_thread(lambda ended, note: run_gateway(settings, ended=ended, on_ready=note)) as gateway:
            assert isinstance(gateway, GatewayState)
            for original in originals():
                call(f"http://127.0.0.1:{gateway.http_port}/images", original)
        predict(settings)
        target = f"dicom:ORTHANC@127.0.0.1:{port}"

        def deliver(ended: threading.Event, note: Callable[[Any], None]) -> None:
            run_reports(settings, [target], from_beginning=True, ended=ended, on_ready=note)

        with in_thread(deliver):
            wait_for(lambda: count_reports(orthanc) == N_STUDIES, "not all reports came")
        assert call(f"{orthanc}/statistics")["CountStudies"] == N_STUDIES
        for number in range(N_STUDIES):
            found = find_report(orthanc, f"{STUDY}.{number}", tmp_path / f"{number}.dcm")
            assert (found.PatientID, found.AccessionNumber) == (f"P{number}", f"A{number}")
            shown = subprocess.run(["dsrdump", tmp_path / f"{number}.dcm"], capture_output=True, text=True, check=True)
            assert "Comprehensive 3D SR Document" in shown.stdout
            assert '(opacities,99XRAY,"opacities")' in shown.stdout


def count_reports(orthanc: str) -> int:
    query = {"Level": "Series", "Query": {"Modality": "SR"}}
    return len(call(f"{orthanc}/tools/find", json.dumps(query).encode()))


def find_report(orthanc: str, study: str, file: Path) -> Dataset:
    """Find the one report of a study, and save it."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SR"}}
    (instance,) = call(f"{orthanc}/tools/find", json.dumps(query).encode())
    with urlopen(f"{orthanc}/instances/{instance}/file", timeout=30) as answer:  # noqa: S310
        file.write_bytes(answer.read())
    return dcmread(file)


# --- STOW-RS ----------------------------------------------------------------------------------------------------------


class StowArchive:
    """A DICOMweb server that answers as it is told, and keeps what it has taken."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.fails = False
        self.reason = 0xA900
        self.media_type = "application/dicom+json"
        self.says: bytes | None = None
        self.objects: list[Dataset] = []
        self.headers: list[dict[str, str]] = []
        self.address = ""


@pytest.fixture
def archive() -> Iterator[StowArchive]:
    archive = StowArchive()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            archive.headers.append(dict(self.headers))
            status = archive.statuses.pop(0) if archive.statuses else 200
            boundary = self.headers.get_param("boundary") or self.headers["Content-Type"].split("boundary=")[1].strip(
                '"'
            )
            (part,) = body.split(f"--{boundary}".encode())[1:-1]
            found = dcmread(io.BytesIO(part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")))
            named: dict[str, Any] = {
                "00081150": {"vr": "UI", "Value": [found.SOPClassUID]},
                "00081155": {"vr": "UI", "Value": [found.SOPInstanceUID]},
            }
            if status == 200 and not archive.fails:
                archive.objects.append(found)
                answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": [named]}}
            else:
                failed = named | {"00081197": {"vr": "US", "Value": [archive.reason]}}
                answer = {"00081198": {"vr": "SQ", "Value": [failed]}}
            text = json.dumps(answer).encode() if archive.says is None else archive.says
            self.send_response(status)
            if archive.media_type:
                self.send_header("Content-Type", archive.media_type)
            self.send_header("Content-Length", str(len(text)))
            if 300 <= status < 400:
                self.send_header("Location", f"{archive.address}/elsewhere")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    archive.address = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield archive
    server.shutdown()
    server.server_close()
    thread.join()


def stow(archive: StowArchive) -> Any:
    return open_target(read_address(f"stow:{archive.address}"), ReportsSettings(answer_s=5))


def test_an_object_is_stored_by_stow(archive: StowArchive) -> None:
    target = stow(archive)
    target.send(report())
    target.send(report())
    target.close()
    assert len({one.SOPInstanceUID for one in archive.objects}) == 1
    assert archive.objects[0].StudyInstanceUID == report().identity.study_uid.own


@pytest.mark.parametrize("status", [400, 409, 422])
def test_stow_refuses_one(archive: StowArchive, status: int) -> None:
    archive.statuses = [status]
    target = stow(archive)
    with pytest.raises(RefusedError):
        target.send(report())
    target.send(report())
    target.close()
    assert len(archive.objects) == 1


@pytest.mark.parametrize("status", [202, 200])
def test_an_instance_among_the_failed_ones_is_refused(archive: StowArchive, status: int) -> None:
    archive.statuses, archive.fails = [status], True
    target = stow(archive)
    with pytest.raises(RefusedError, match="A900"):
        target.send(report())
    target.close()


@pytest.mark.parametrize("media_type", ["application/dicom+json; charset=utf-8", "Application/DICOM+JSON;a=b"])
def test_a_failure_is_seen_however_its_media_type_is_written(archive: StowArchive, media_type: str) -> None:
    archive.fails, archive.media_type = True, media_type
    target = stow(archive)
    with pytest.raises(RefusedError, match="A900"):
        target.send(report())
    target.close()


@pytest.mark.parametrize("status", [200, 202, 409])
def test_an_instance_that_the_archive_has_already_is_delivered(archive: StowArchive, status: int) -> None:
    archive.statuses, archive.fails, archive.reason = [status], True, 0x0111
    target = stow(archive)
    target.send(report())
    target.close()


@pytest.mark.parametrize(
    ("media_type", "says"),
    [
        ("application/dicom+json", b"{SMITH"),
        ("application/dicom+json", b'{"00081198": {"vr": "SQ", "Value": 3}}'),
        ("application/dicom+xml", b"<SMITH"),
    ],
)
def test_an_answer_that_cannot_be_read_refuses_one(archive: StowArchive, media_type: str, says: bytes) -> None:
    archive.media_type, archive.says = media_type, says
    target = stow(archive)
    with pytest.raises(RefusedError) as caught:
        target.send(report())
    assert "SMITH" not in str(caught.value)
    target.close()


@pytest.mark.parametrize(("media_type", "says"), [("", b""), ("", b"ok"), ("text/plain", b"ok"), ("text/html", b"<p>")])
def test_an_answer_that_says_nothing_is_one_of_success(archive: StowArchive, media_type: str, says: bytes) -> None:
    archive.media_type, archive.says = media_type, says
    target = stow(archive)
    target.send(report())
    target.close()
    assert len(archive.objects) == 1


@pytest.mark.parametrize("status", [302, 401, 403, 429, 500, 503])
def test_stow_takes_none_now(archive: StowArchive, status: int) -> None:
    archive.statuses = [status]
    target = stow(archive)
    with pytest.raises(AwayError):
        target.send(report())
    target.close()
    assert len(archive.headers) == 1
