"""Patients' markers in every place of what devices send: none is behind the gateway, and the search would find it."""

import json
import os
import shutil
import socket
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from streaming.gateway.keeping.spool import read_spool
from tests import testimages
from tests.conftest import Trained
from tests.dicomwire import data_pdu, peer, store_request
from tests.gatewayprocess import Gateway, frozen, last_receipts, wait_until
from tests.integration.consumers import read_topic
from tests.integration.streaming.gateway.traces import search_bytes, search_folder, search_topics
from tests.integration.streaming.gateway.ward import Ward, run_ward
from tests.unit.streaming.devices import markers
from tests.unit.streaming.devices.markers import marker
from xray.simulator.habits import CR, DX, SC, draw_habits
from xray.simulator.objects import Shot, write_dataset_bytes, write_file_bytes, write_jpeg, write_png
from xray.simulator.pictures import Pictures

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of pydicom, where the test writes what it should not
]

_SETTINGS = {"answer_s": "4", "spool_min_free_bytes": "0"}
_SEED = 23
_TAKEN = {0x0000, 200, 201, 202}


@pytest.fixture
def ward(jars: Path, tmp_path: Path) -> Iterator[Ward]:
    home = tmp_path / "home"
    home.mkdir()
    with run_ward(home, jars) as ward:
        yield ward


@dataclass
class Mail:
    """What is sent to a gateway, and what came back."""

    gateway: Gateway
    pictures: Pictures = field(default_factory=lambda: Pictures(_SEED, count=4, shape=(232, 200)))
    answers: list[bytes] = field(default_factory=list)
    """Bodies of HTTP answers but those of STOW, which name the sender's own UIDs."""
    statuses: Counter[int | None] = field(default_factory=Counter)
    uids: set[bytes] = field(default_factory=set)

    def send_file(self, name: str, payload: bytes) -> None:
        """Send a file by each way that takes its kind."""
        if not name.endswith((".png", ".jpg")):
            self.store(payload)
            self.stow(payload)
        kind = {"png": "image/png", "jpg": "image/jpeg"}.get(name[-3:], "application/dicom")
        self.post(payload, kind)

    def store(self, payload: bytes) -> None:
        """Send a DICOM file by C-STORE, announced as what it is where that can be read."""
        length = struct.unpack_from("<I", payload, 140)[0]
        found = dcmread(BytesIO(payload), stop_before_pixels=True, force=True, specific_tags=["SOPClassUID"])
        sop_class = str(found.get("SOPClassUID", DX))
        uid = dcmread(BytesIO(payload), stop_before_pixels=True, force=True).get("SOPInstanceUID", "1.2.3")
        known = sop_class if sop_class in {CR, DX, SC} else DX
        syntax = str(found.file_meta.TransferSyntaxUID)
        status = self.gateway.store(payload[144 + length :], str(uid), syntax=syntax, sop_class=known)
        self.statuses[status] += 1

    def stow(self, payload: bytes) -> None:
        """Send a DICOM file by STOW-RS, with names in all that is around it."""
        boundary = f"b{marker()}"
        head = (
            f"--{boundary}\r\nContent-Type: application/dicom; name={marker()}\r\nContent-Location: {marker()}.dcm\r\n"
        )
        body = head.encode() + f"X-Patient: {marker()}\r\n\r\n".encode() + payload + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        answer = self.gateway.request("POST", "/studies", body, {"content-type": kind, **self.headers()})
        self.statuses[None if answer is None else answer[0]] += 1

    def post(self, payload: bytes, kind: str, path: str = "/images", **more: str) -> None:
        """Send a file by HTTP; what it is called is in its headers."""
        headers = {"content-type": kind, "idempotency-key": f"{marker()}-{len(self.answers)}", **self.headers(), **more}
        answer = self.gateway.request("POST", path, payload, headers)
        self.statuses[None if answer is None else answer[0]] += 1
        self.answers.append(b"" if answer is None else answer[1])

    def ask(self, path: str) -> None:
        answer = self.gateway.request("GET", path, headers=self.headers())
        self.answers.append(b"" if answer is None else answer[1])

    @staticmethod
    def headers() -> dict[str, str]:
        """Give what a client may say beside: nobody asks for it, and anybody may log it."""
        return {
            "content-disposition": f'attachment; filename="{marker()}.dcm"',
            "user-agent": marker(),
            "traceparent": marker(),
            "tracestate": f"patient={marker()}",
            "referer": f"http://console/{marker()}",
            "x-patient-name": marker(),
            "cookie": f"patient={marker()}",
        }

    def send_studies(self, first: int, count: int) -> None:
        """Send what the simulator's devices make, by both doors."""
        for number in range(first, first + count):
            habits = replace(draw_habits(1, seed=_SEED, http=False), bits=12, sop_class=(CR, DX)[number % 2])
            shot = Shot(habits, number, number)
            self.uids |= {one.encode() for one in self.uids_of(shot)}
            for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless)[number % 3 :]:
                dataset = write_dataset_bytes(shot, self.pictures, str(syntax))
                status = self.gateway.store(dataset, shot.sop_uid, syntax=str(syntax), sop_class=habits.sop_class)
                self.statuses[status] += 1
            self.stow(write_file_bytes(shot, self.pictures, ExplicitVRLittleEndian))
            self.post(write_png(shot, self.pictures), "image/png")
            self.post(write_jpeg(shot, self.pictures), "image/jpeg")

    def uids_of(self, shot: Shot) -> set[str]:
        dataset = dcmread(BytesIO(write_file_bytes(shot, self.pictures, ExplicitVRLittleEndian)))
        return {dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID}

    def send_broken(self) -> None:
        """Send what cannot be read: each way to break it ends in other words."""
        whole = testimages.write_dicom(markers.marked_dataset(markers.text_elements()[:80]))
        broken = [
            whole[: len(whole) * 2 // 3],
            whole[:400],
            whole[:200] + marker().encode() + whole[200:],
            whole.replace(b"MONOCHROME2", f"{marker()}  ".encode()),
            b"\0" * 128 + b"DICM" + marker().encode() * 9,
            *(one.payload for one in testimages.wrong_dicom_files().values() if one.payload is not None),
        ]
        for payload in broken:
            named = payload + marker().encode()
            self.stow(named)
            self.post(named, "application/dicom")
            self.send_dataset(named)
        for text in (marker(), f"<xml>{marker()}</xml>", f"Patient: {marker()}\r\n" * 30):
            for kind in (
                "image/png",
                "image/jpeg",
                "application/dicom",
                f"text/{marker()}",
                marker(),
                "multipart/related",
            ):
                self.post(text.encode(), kind)
                self.post(text.encode(), kind, "/studies")
        self.post(testimages.png() + marker().encode(), "image/jpeg")
        self.post(testimages.png()[:-30] + marker().encode(), "image/png")
        self.post(testimages.png(), "image/png", f"/images?wait={marker()}")
        self.post(testimages.png(), "image/png", f"/{marker()}")
        self.post(testimages.png(), "image/png", "/images", **{"content-encoding": marker()})
        self.post(whole, "application/dicom", f"/studies/{marker()}")
        self.post(testimages.png(), "image/png", "/images", **{"idempotency-key": f"\xe4{marker()}"})
        for path in (f"/images/{marker()}", f"/{marker()}", f"/studies/{marker()}/series", f"/metrics?name={marker()}"):
            self.ask(path)
        self.send_nonsense()

    def send_dataset(self, payload: bytes) -> None:
        """Send by C-STORE what is behind a file's meta information, whatever it is, in a syntax that may be another."""
        length = struct.unpack_from("<I", payload, 140)[0] if len(payload) > 144 else 0
        status = self.gateway.store(payload[144 + length :], "1.2.3", syntax=str(ExplicitVRLittleEndian), sop_class=DX)
        self.statuses[status] += 1

    def send_nonsense(self) -> None:
        """Send what is neither HTTP nor DICOM, or only begins as such."""
        text = marker().encode()
        for port in (self.gateway.http_port, self.gateway.dicom_port):
            for raw in (
                text * 20 + b"\r\n\r\n",
                b"GET /" + text + b" HTTP/9.9\r\n\r\n",
                b"POST /images HTTP/1.1\r\n" + text,
            ):
                with socket.create_connection(("127.0.0.1", port), 20) as connection:
                    connection.sendall(raw)
                    hang_up(connection)
        for piece in (
            data_pdu(text * 9, control=3),
            b"".join(store_request(text * 99, sop_instance=marker())),
            b"".join(store_request(text * 99, sop_class=marker())),
            b"".join(store_request(text * 99)[:-1]) + bytes((9, 0)) + text * 4,
        ):
            with peer(self.gateway.dicom_port) as one:
                one.associate()
                one.send(piece)
                hang_up(one.socket)


def hang_up(connection: socket.socket) -> None:
    """Send nothing more, and wait until the other side has ended too."""
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def send_all(ward: Ward, share: int) -> tuple[Mail, Path]:
    """Send it, with an outage in the middle and a kill; gives what came back, and a copy of what the spool held."""
    spool, copy = ward.settings.home / "spool", ward.settings.home.parent / "copy"
    files = [*markers.marked_dicom_files(), *markers.marked_rasters()][::share]
    gateway = replace(ward.gateway("--spool", str(spool), **_SETTINGS), is_talkative=True).start()
    mail = Mail(gateway)
    try:
        for name, payload in files[::2]:
            mail.send_file(name, payload)
        mail.send_studies(0, 3)
        mail.send_broken()
        with frozen(ward.broker.pid()):
            for name, payload in files[1::2]:
                mail.send_file(name, payload)
            mail.send_studies(3, 3)
            mail.send_broken()
            assert read_spool(spool).count > len(files) // 4
            shutil.copytree(spool, copy)
            with half_sent(mail):
                incoming = ward.settings.gateway_folder / "incoming"
                wait_until(lambda: count_open_files(gateway, incoming) == 2, "an object under way by each door")
                assert search_folder(ward.settings.gateway_folder) == {}
                gateway.kill()
        gateway.start()
        mail.send_studies(6, 3)
        wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool", 120)
        for path in ("/metrics", "/healthz", "/readyz", "/openapi.json"):
            mail.ask(path)
    finally:
        gateway.kill()
    return mail, copy


@contextmanager
def half_sent(mail: Mail) -> Iterator[None]:
    """Have half of an object by each door, which stays under way."""
    half = marker().encode() * 60_000
    head = f"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {2 * len(half)}\r\n\r\n"
    with (
        peer(mail.gateway.dicom_port) as device,
        socket.create_connection(("127.0.0.1", mail.gateway.http_port)) as web,
    ):
        device.associate()
        device.send(*store_request(half)[:-1])
        web.sendall(head.encode() + half)
        yield


def count_open_files(gateway: Gateway, folder: Path) -> int:
    """Count the files without a name that it has open there."""
    links = []
    for path in Path(f"/proc/{gateway.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(path))
    return sum(link.startswith(f"{folder}/") for link in links)


def check_no_traces(ward: Ward, mail: Mail, copy: Path, *texts: str) -> None:
    """Search all that is left: topics, tables, logs, receipts, the spool as it was, keys and crosswalk, answers."""
    uids = frozenset(mail.uids)
    assert len(uids) == 3 * 9
    assert " DEBUG " in ward.log.read_text()
    assert search_topics(ward.settings.kafka, uids) == {}
    assert search_folder(ward.settings.home, uids) == {}
    assert search_folder(copy, uids) == {}
    assert [hit for answer in mail.answers for hit in search_bytes(answer, uids)] == []
    assert [hit for text in texts for hit in search_bytes(text.encode(), uids)] == []


@pytest.mark.timeout(200)
def test_no_marker_is_behind_the_gateway(ward: Ward) -> None:
    mail, copy = send_all(ward, share=16)
    told = {**mail.statuses}
    assert sum(count for status, count in told.items() if status in _TAKEN) > 100, told
    assert {0xC000, 0xC002, 400, 415} <= set(told), told
    check_no_traces(ward, mail, copy)


@pytest.mark.long
@pytest.mark.spark
@pytest.mark.timeout(600)
def test_none_of_ten_thousand_markers_is_anywhere(ward: Ward, trained: Trained) -> None:
    before = markers.count_markers()
    mail, copy = send_all(ward, share=1)
    assert markers.count_markers() - before >= 10_000
    taken = sum(count for status, count in mail.statuses.items() if status in _TAKEN)
    assert taken > 500, mail.statuses
    scored = ward.run("stream", "--available-now", "--model", str(trained.folder), "--json")
    assert scored.returncode == 0, scored.stderr
    with replace(ward.gateway(**_SETTINGS), is_talkative=True) as gateway:  # brings the receipts up to date
        wait_until(lambda: "predicted" in states(ward) and "accepted" not in states(ward), "a receipt of each outcome")
        metrics = gateway.request("GET", "/metrics")
        assert metrics is not None
        mail.answers.append(metrics[1])
        gateway.stop()
    said = [ward.run(*words) for words in (("status", "--json"), ("audit", "--json"), ("deadletters", "list"))]
    texts = [text for one in (scored, *said) for text in (one.stdout, one.stderr)]
    assert json.loads(said[1].stdout.splitlines()[-1])["balanced"]
    for kind in (
        "tables/predictions/**/*.parquet",
        "logs/spark.log",
        "gateway/receipts.db",
        "crosswalk",
        "kafka/**/*.log",
    ):
        assert any(ward.settings.home.glob(kind)), kind  # there is something to search
    check_no_traces(ward, mail, copy, *texts)


def states(ward: Ward) -> set[str]:
    receipts = last_receipts(read_topic(ward.settings.kafka, ward.settings.kafka.receipts_topic))
    return {receipt["state"] for receipt in receipts.values()}


def test_without_deidentification_the_search_finds_them(ward: Ward) -> None:
    spool, copy = ward.settings.home / "spool", ward.settings.home.parent / "copy"
    with ward.gateway("--spool", str(spool), **_SETTINGS, deidentify="false") as gateway:
        mail = Mail(gateway)
        mail.send_studies(0, 3)
        with frozen(ward.broker.pid()):
            mail.send_studies(3, 3)
            shutil.copytree(spool, copy)
        wait_until(lambda: read_spool(spool).count == 0, "the drain does not empty the spool")
        gateway.stop()
    uids = frozenset(mail.uids)
    kafka = ward.settings.kafka
    assert kafka.images_topic in search_topics(kafka, uids)
    found = search_folder(ward.settings.home, uids)
    assert any(name.startswith("kafka/") and kafka.images_topic in name for name in found), found.keys()
    assert search_folder(copy, uids)
    hits = {hit for hits in found.values() for hit in hits}
    assert b"ZZMARKER" in hits
    assert hits & uids


@pytest.mark.parametrize("place", ["file", "name", "utf-16", "inflated", "far behind", "table", "database"])
def test_the_search_finds_one_that_is_planted(tmp_path: Path, place: str) -> None:
    text, path = marker(), tmp_path / "some.file"
    assert search_folder(tmp_path) == {}
    if place == "table":
        path = tmp_path / "some.parquet"
        pq.write_table(pa.table({"a": ["x" * 40, "y" + text] * 9}), path, compression="zstd")
    elif place == "database":
        with sqlite3.connect(path) as database:
            database.execute("create table a (b text)")
            database.execute("insert into a values (?)", [text])
    elif place == "name":
        path = tmp_path / text
        path.touch()
    else:
        path.write_bytes(
            {
                "file": text.encode(),
                "utf-16": text.encode("utf-16-be"),
                "inflated": b"\0" * 9 + zlib.compress(text.encode() * 99),
                "far behind": bytes((8 << 20) - 4) + text.encode() + bytes(9 << 20),
            }[place]
        )
    assert list(search_folder(tmp_path)) == [path.name]
