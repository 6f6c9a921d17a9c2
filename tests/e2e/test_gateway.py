"""Real senders at a real gateway: each object is predicted, and each receipt says so."""

import hashlib
import io
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian

from schemas.envelope import derive_image_event_id
from streaming.settings import load_settings
from tests import orthanc
from tests.conftest import Trained
from tests.e2e.conftest import Shell
from tests.gatewayprocess import Gateway, last_receipts, predicted_event_ids, wait_until
from tests.integration.consumers import Record, read_topic
from xray.simulator.habits import BASELINE, CR, DX, EXTENDED, LOSSLESS, NATIVE, SC, draw_habits
from xray.simulator.objects import Shot, write_file_bytes, write_jpeg, write_png
from xray.simulator.pictures import Pictures

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.spark]

ALL = (*NATIVE, *LOSSLESS, BASELINE, EXTENDED)
DCMTK = {
    syntax: option
    for syntax, option in zip(
        ALL, ("-xi", "-xe", "-xb", "-xr", "", "-xs", "-xt", "-xv", "", "", "-xy", "-xx"), strict=True
    )
    if option
}
"""How ``storescu`` proposes each; the others it does not know."""
OF_DCMSEND = tuple(syntax for syntax in ALL if not UID(syntax).name.startswith("High-Throughput"))
"""dcmtk 3.6.7 is older than High-Throughput JPEG 2000."""
SENDERS = ("DCMSEND", "STORESCU", "ORTHANC", "WEB")


def token(sender: str) -> str:
    return f"the token of {sender}"


def bearer(sender: str) -> str:
    return f"Bearer {token(sender)}"


@dataclass
class Ward:
    """Devices in front of a gateway, and what was sent by each.

    Parameters
    ----------
    gateway : Gateway
        Where to.
    folder : Path
        For their files.
    """

    gateway: Gateway
    folder: Path
    pictures: Pictures = field(default_factory=lambda: Pictures(5, count=6, shape=(400, 344)))
    syntaxes: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    told: set[str] = field(default_factory=set)
    """Event ids that were answered by HTTP."""
    _number: int = 0

    def take(self, sender: str, syntax: str) -> bytes:
        """Take a radiograph, as a DICOM file."""
        self.syntaxes[syntax] += 1
        return write_file_bytes(self.shoot(sender, syntax), self.pictures, syntax)

    def shoot(self, sender: str, syntax: str) -> Shot:
        self.sent[sender] += 1
        self._number += 1
        habits = draw_habits(1 + self._number % 20, seed=7, http=False)
        bits = {BASELINE: 8, EXTENDED: 12}.get(syntax, habits.bits)
        sop_class = (CR, DX, SC)[self._number % 3]
        return Shot(replace(habits, bits=bits, sop_class=sop_class), self._number, self._number - self._number % 2)

    def write_files(self, sender: str, syntax: str, count: int) -> list[Path]:
        folder = self.folder / sender
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{syntax}-{number}.dcm" for number in range(count)]
        for path in paths:
            path.write_bytes(self.take(sender, syntax))
        return paths

    # --- the senders ------------------------------------------------------------------------------------------------

    def ask_whether_it_is_there(self) -> None:
        self.run("echoscu", "-aet", "STORESCU", "-aec", "XRAY", "127.0.0.1", self.gateway.dicom_port)

    def dcmsend(self, syntaxes: tuple[str, ...], count: int) -> None:
        paths = [path for syntax in syntaxes for path in self.write_files("DCMSEND", syntax, count)]
        self.run("dcmsend", "-dn", "-aet", "DCMSEND", "-aec", "XRAY", "127.0.0.1", self.gateway.dicom_port, *paths)

    def storescu(self, syntaxes: tuple[str, ...], count: int) -> None:
        for syntax in syntaxes:
            paths = self.write_files("STORESCU", syntax, count)
            at = ("127.0.0.1", self.gateway.dicom_port)
            self.run("storescu", DCMTK[syntax], "-aet", "STORESCU", "-aec", "XRAY", *at, *paths)

    def orthanc(self, syntaxes: tuple[str, ...], count: int) -> None:
        with orthanc.run_orthanc(self.folder, self.gateway.dicom_port) as address:
            files = [self.take("ORTHANC", syntax) for syntax in syntaxes for _ in range(count)]
            ids = [orthanc.call(f"{address}/instances", one)["ID"] for one in files]
            told = orthanc.call(f"{address}/modalities/xray/store", json.dumps(ids).encode())
        assert (told["InstancesCount"], told["FailedInstancesCount"]) == (len(files), 0)

    def store_by_web(self, syntaxes: tuple[str, ...], count: int) -> None:
        session = create_session()
        session.headers["Authorization"] = bearer("WEB")
        client = DICOMwebClient(f"http://127.0.0.1:{self.gateway.http_port}", session=session)
        for syntax in syntaxes:
            files = [dcmread(io.BytesIO(self.take("WEB", syntax))) for _ in range(count)]
            answer = client.store_instances(files)
            assert len(answer.ReferencedSOPSequence) == count
            assert "FailedSOPSequence" not in answer

    def post(self, count: int) -> None:
        for number in range(count):
            shot = self.shoot("WEB", ExplicitVRLittleEndian)
            kind, payload = (
                ("image/png", write_png(shot, self.pictures)),
                ("image/jpeg", write_jpeg(shot, self.pictures)),
                ("application/dicom", write_file_bytes(shot, self.pictures, ExplicitVRLittleEndian)),
            )[number % 3]
            headers = {"authorization": bearer("WEB"), "idempotency-key": f"image-{number}"}
            answer = self.gateway.post(payload, kind, **headers)
            assert answer is not None
            assert answer[0] == 201, answer
            self.told.add(json.loads(answer[1])["event_id"])

    @staticmethod
    def run(program: str, *arguments: object) -> None:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def ward(shell: Shell, tmp_path: Path) -> Iterator[Ward]:
    """A broker, and a gateway that knows four devices and nobody else."""
    devices = tmp_path / "devices.toml"
    devices.write_text(
        "\n".join(
            f'[[device]]\nsource = "/ward/{name.lower()}"\naet = "{name}"\n'
            f'tokens = ["sha256:{hashlib.sha256(token(name).encode()).hexdigest()}"]'
            for name in SENDERS
        )
    )
    shell.json("up")
    environ = {**shell.environ, "XRAY_GATEWAY__DEVICES": str(devices)}
    with Gateway(environ, tmp_path / "gateway.log", ("--crosswalk", str(tmp_path / "crosswalk"))) as gateway:
        yield Ward(gateway, tmp_path)
        gateway.stop()


def needs(*programs: str) -> Callable[[Any], Any]:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def check_all_predicted(shell: Shell, ward: Ward, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score what is there; then each object has one prediction, a receipt that says so, and a place in the account."""
    for name, value in shell.environ.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    kafka, count = settings.kafka, ward.sent.total()
    done = shell.run("stream", "--available-now", "--model", str(trained.folder), "--json")
    assert done.returncode == 0, done.stderr

    predictions = read_topic(kafka, kafka.predictions_topic)
    predicted = predicted_event_ids(predictions)
    assert len(set(predicted)) == len(predicted) == count
    assert read_topic(kafka, kafka.deadletters_topic) == []
    sources = Counter(json.loads(one.value or b"")["image"]["source"] for one in predictions)
    assert sources == {f"/ward/{name.lower()}": sent for name, sent in ward.sent.items()}
    assert ward.told <= set(predicted)

    def receipts() -> dict[str, Any]:
        return last_receipts(read_topic(kafka, kafka.receipts_topic))

    wait_until(lambda: {one["state"] for one in receipts().values()} == {"predicted"}, "a receipt of each")
    assert set(receipts()) == set(predicted)
    for record in predictions:
        check_receipt_over_http(ward.gateway, record)

    account = shell.run("audit", "--json")
    assert account.returncode == 0, account.stdout + account.stderr
    found = json.loads(account.stdout.splitlines()[-1])
    assert (found["balanced"], found["predicted"], found["repeated"]) == (True, count, 0)


def check_receipt_over_http(gateway: Gateway, prediction: Record) -> None:
    """Ask for the image's receipt: its own device is told, another one is not."""
    image = json.loads(prediction.value or b"")["image"]
    event_id = derive_image_event_id(image["source"], image["id"], image["sha256"])
    own = image["source"].rpartition("/")[2].upper()
    receipt = gateway.receipt(event_id, authorization=bearer(own))
    assert (receipt["state"], receipt["image"]["sha256"]) == ("predicted", image["sha256"])
    other = next(name for name in SENDERS if name != own)
    answer = gateway.request("GET", f"/images/{event_id}", headers={"authorization": bearer(other)})
    assert answer is not None
    assert answer[0] == 404


@needs("storescu", "dcmsend", "echoscu", "Orthanc")
@pytest.mark.timeout(300)
def test_two_hundred_objects_in_all_syntaxes(
    shell: Shell, ward: Ward, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.ask_whether_it_is_there()
    ward.dcmsend(OF_DCMSEND, 6)
    ward.storescu(tuple(DCMTK), 4)
    ward.orthanc(OF_DCMSEND, 3)
    ward.store_by_web(ALL, 3)
    ward.post(200 - ward.sent.total())
    assert set(ward.sent) == set(SENDERS)
    assert ward.sent["WEB"] >= 40
    assert len(ward.syntaxes) >= 10
    check_all_predicted(shell, ward, trained, monkeypatch)
