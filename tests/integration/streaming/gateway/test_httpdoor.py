"""The HTTP door before a real broker: foreign clients, every refusal, TLS, and clients that are slow or broken."""

import hashlib
import http.client
import io
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trustme
from confluent_kafka import Consumer, TopicPartition
from dicomweb_client.api import DICOMwebClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from schemas import envelope
from schemas.errors import SettingsError
from streaming.gateway.http import reception, stowroutes
from streaming.gateway.http.httpdoor import HttpDoor
from streaming.gateway.http.httpserver import MAX_HEAD_BYTES
from streaming.gateway.offer import Outgoing, Taken
from streaming.gateway.receipts.waiters import Answer
from streaming.gateway.refusals import Cause, Refusal
from streaming.kafka.producer import Delivery
from streaming.settings import StreamSettings
from tests import testimages
from tests.gatewayparts import Parts

pytestmark = pytest.mark.kafka

_TOKEN = "a-token-of-the-ward"  # noqa: S105
_OTHER = "a-token-of-another-ward"
_STUDY = "1.2.826.0.1.3680043.8.498.77"
_PNG = testimages.png()
_HOST = "127.0.0.1"


@dataclass
class Gate:
    """A running door."""

    parts: Parts
    door: HttpDoor
    port: int = 0
    token: str | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        token: str | None = None,
    ) -> "Reply":
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=30)
        own = dict(headers or {})
        if token or self.token:
            own.setdefault("Authorization", f"Bearer {token or self.token}")
        try:
            connection.request(method, path, body, own, encode_chunked=hasattr(body, "__next__"))
            return Reply.of(connection.getresponse())
        finally:
            connection.close()

    def post(self, payload: bytes, kind: str = "image/png", path: str = "/images", **headers: str) -> "Reply":
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, payload, {"Content-Type": kind, **own})

    def stow(self, *objects: bytes, path: str = "/studies", kind: str = "application/dicom", **headers: str) -> "Reply":
        body = b"".join(b"--b\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + one + b"\r\n" for one in objects)
        return self.post(
            body + b"--b--\r\n", 'multipart/related; type="application/dicom"; boundary=b', path, **headers
        )


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, answer: http.client.HTTPResponse) -> "Reply":
        return cls(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def reasons(self) -> list[int]:
        return [item["00081197"]["Value"][0] for item in self.json.get("00081198", {}).get("Value", [])]

    def stored(self) -> list[str]:
        return [item["00081155"]["Value"][0] for item in self.json.get("00081199", {}).get("Value", [])]


@contextmanager
def opened(settings: StreamSettings, tmp_path: Path, **parts: Any) -> Iterator[Gate]:
    own = Parts(settings, **parts)
    own.publisher.start()
    door = HttpDoor(settings.gateway, own.intake, own.devices, own.metrics, own.book, folder=tmp_path / "bodies")  # type: ignore[arg-type]
    gate = Gate(own, door)
    gate.port = door.start()
    try:
        yield gate
    finally:
        door.stop()
        own.publisher.stop()


def with_gateway(settings: StreamSettings, **changes: Any) -> StreamSettings:
    gateway = settings.gateway.model_copy(update={"http_port": 0, "answer_s": 10.0, **changes})
    return settings.model_copy(update={"gateway": gateway})


@pytest.fixture
def gate(settings: StreamSettings, tmp_path: Path) -> Iterator[Gate]:
    with opened(with_gateway(settings), tmp_path) as gate:
        yield gate


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    file = tmp_path / "devices.toml"
    write_devices(file, _TOKEN, _OTHER)
    return file


def write_devices(file: Path, *tokens: str, addresses: str = "") -> None:
    def digest(token: str) -> str:
        return "sha256:" + hashlib.sha256(token.encode()).hexdigest()

    rows = [
        f'[[device]]\nsource = "/ward-{i}"\ntokens = ["{digest(token)}"]\n{addresses}\n'
        for i, token in enumerate(tokens)
    ]
    file.write_text("\n".join(rows))


def read_images(settings: StreamSettings, count: int) -> list[Any]:
    """Read the images topic from its begin until so many records are there, or nothing comes any more."""
    consumer = Consumer(settings.kafka.to_librdkafka() | {"group.id": "test", "enable.auto.commit": False})
    topic = settings.kafka.images_topic
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(settings.kafka.partitions)])
    found = []
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(message)
    consumer.close()
    return found


def dicom(uid: str = "1.2.3.4", study: str = _STUDY) -> bytes:
    pixels = testimages.twelve_bit_pixels()
    return testimages.dicom(pixels, SOPInstanceUID=uid, StudyInstanceUID=study)


def dataset(uid: str = "1.2.3.4") -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(dicom(uid)))


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "kind"),
    [(_PNG, "image/png"), (testimages.jpeg(), "image/jpeg"), (dicom(), "application/dicom")],
    ids=["png", "jpeg", "dicom"],
)
def test_an_image_is_in_kafka_when_it_is_answered(gate: Gate, payload: bytes, kind: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = gate.post(payload, kind, Idempotency_Key="exam-1", traceparent=trace)
    assert reply.status == 201
    assert reply.headers["location"] == f"/images/{reply.json['event_id']}"
    assert reply.headers["cache-control"] == "no-store"
    (record,) = read_images(gate.parts.settings, 1)
    headers = dict(record.headers())
    place = f"{record.topic()}-{record.partition()}@{record.offset()}"
    assert reply.json == {"event_id": reply.json["event_id"], "state": "accepted", "place": place, "flags": []}
    assert record.value() == payload
    assert headers["traceparent"].decode() == trace
    sha256 = hashlib.sha256(payload).hexdigest()
    image_id = headers[envelope.CE_ID].decode()
    assert reply.json["event_id"] == envelope.derive_image_event_id("/http", image_id, sha256)
    assert gate.parts.count("published") == 1


@pytest.mark.parametrize("size", [100, 300_000, 3_000_000])
def test_a_body_in_chunks_is_the_same_image(gate: Gate, size: int) -> None:
    payload = _PNG + bytes(size)  # what follows a PNG is nobody's business here
    pieces = (payload[start : start + 65_000] for start in range(0, len(payload), 65_000))
    first = gate.ask("POST", "/images", pieces, {"Content-Type": "image/png", "Transfer-Encoding": "chunked"})
    again = gate.post(payload)
    assert (first.status, again.status) == (201, 201)
    assert first.json["event_id"] == again.json["event_id"]
    assert {record.value() for record in read_images(gate.parts.settings, 2)} == {payload}
    assert not list((gate.door._reception._folder).iterdir())


def test_a_key_names_an_image_quoted_or_not(gate: Gate) -> None:
    names = ["exam-7", '"exam-7"', "exam-8"]
    ids = [gate.post(_PNG, Idempotency_Key=name).json["event_id"] for name in names]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "\xe4", '"a'])
def test_a_key_that_is_none_is_refused(gate: Gate, key: str) -> None:
    reply = gate.post(_PNG, Idempotency_Key=key)
    if key == '"a':
        assert reply.status == 201  # a name like any other
    else:
        assert reply.status == 400
        assert key not in reply.json["detail"] or not key


@pytest.mark.parametrize("trace", ["", "00-abc", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "\xff" * 40])
def test_a_trace_that_is_none_is_begun_anew(gate: Gate, trace: str) -> None:
    assert gate.post(_PNG, traceparent=trace).status == 201
    (record,) = read_images(gate.parts.settings, 1)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", dict(record.headers())["traceparent"].decode())


@pytest.mark.parametrize(
    ("payload", "kind", "status", "cause"),
    [
        (_PNG, "image/jpeg", 415, "unsupported"),
        (_PNG, "text/plain", 415, "unsupported"),
        (_PNG, "", 415, "unsupported"),
        (_PNG, "multipart/form-data; boundary=x", 415, "unsupported"),
        (b"GIF89a and more", "image/png", 415, "unsupported"),
        (dicom()[:400], "application/dicom", 400, "unreadable"),
        (b"", "image/png", 400, None),
    ],
)
def test_what_is_no_image_is_refused(gate: Gate, payload: bytes, kind: str, status: int, cause: str | None) -> None:
    reply = gate.post(payload, kind)
    assert reply.status == reply.json["status"] == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.json["cause"], reply.json["retry"]) == (cause, False)
    assert "retry-after" not in reply.headers
    assert cause is None or gate.parts.count(cause) == 1
    assert testimages.PATIENT_NAME.encode() not in reply.body


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.label)
def test_every_cause_has_its_answer(gate: Gate, cause: Cause, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Taken:
        raise Refusal(cause, "what was found", retry_after_s=2.5 if cause is Cause.RATE else None)

    monkeypatch.setattr(gate.parts.intake, "take", refuse)
    image, study = gate.post(_PNG), gate.stow(dicom())
    assert image.status == cause.value.http
    assert image.json["type"] == f"urn:xray:gateway:{cause.label}"
    assert (image.json["cause"], image.json["retry"]) == (cause.label, cause.value.is_transient)
    assert image.json["detail"] == "what was found"
    assert study.status == (cause.value.http if cause.value.is_transient else 409)
    assert study.reasons() == [cause.value.status]
    for reply in (image, study):
        wanted = {True: "3" if cause is Cause.RATE else "5", False: None}[cause.value.is_transient]
        assert reply.headers.get("retry-after") == wanted


class Faulty(Exception):
    """What a library raises that quotes what it reads."""


def test_a_fault_of_ours_is_one_requests_and_quotes_nothing(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Taken:
        raise Faulty(testimages.PATIENT_NAME)

    monkeypatch.setattr(gate.parts.intake, "take", fail)
    reply = gate.post(_PNG)
    assert (reply.status, reply.json["cause"]) == (500, "failed")
    assert "Faulty" in caplog.text
    assert "test_httpdoor" in caplog.text  # where it was
    assert testimages.PATIENT_NAME not in caplog.text + reply.body.decode()
    assert gate.ask("GET", "/healthz").status == 200


def test_the_rate_of_a_device_is_bounded(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, rate_per_s=0.1), tmp_path) as gate:
        assert [gate.post(_PNG).status for _ in range(2)] == [201, 429]
        assert gate.stow(dicom()).status == 429
        assert int(gate.post(_PNG).headers["retry-after"]) > 1
        assert gate.parts.count("rate") == 3


def test_what_is_too_large_is_refused_before_it_is_read(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, max_object_bytes=100_000), tmp_path) as gate:
        with socket.create_connection((_HOST, gate.port), timeout=10) as raw:
            raw.sendall(
                b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100001\r\n\r\n"
            )
            answer = http.client.HTTPResponse(raw)
            answer.begin()
            assert answer.status == 413
            assert answer.getheader("connection") == "close"
        pieces = (b"x" * 60_000 for _ in range(2))
        chunked = gate.ask("POST", "/images", pieces, {"Content-Type": "image/png", "Transfer-Encoding": "chunked"})
        assert (chunked.status, chunked.json["cause"]) == (413, "too_large")
        whole = gate.post(bytes(5_000_000))  # more than the sockets hold: the client reads only when all is sent
        assert whole.status == 413
        assert gate.parts.count("too_large") == 3
        assert gate.post(_PNG + bytes(100_000 - len(_PNG))).status == 201


def test_a_client_that_asks_first_is_told_before_it_sends(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, max_object_bytes=100_000), tmp_path) as gate:
        for size, first in ((100_001, b"HTTP/1.1 413 "), (len(_PNG), b"HTTP/1.1 100 Continue\r\n\r\n")):
            with socket.create_connection((_HOST, gate.port), timeout=10) as raw:
                head = f"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n"
                raw.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
                assert raw.recv(len(first), socket.MSG_WAITALL) == first
                if size == len(_PNG):
                    raw.sendall(_PNG)
                    assert raw.recv(100).startswith(b"HTTP/1.1 201 ")
                else:
                    started = time.monotonic()
                    while raw.recv(1000):
                        pass
                    assert time.monotonic() - started < 1.5  # nothing is waited for that will not come


def test_a_coding_of_the_body_is_refused(gate: Gate) -> None:
    for coding, status in (("gzip", 415), ("br", 415), ("identity", 201)):
        assert gate.post(_PNG, Content_Encoding=coding).status == status


# --- waiting --------------------------------------------------------------------------------------------------------


def test_a_prediction_that_comes_in_time_is_told(gate: Gate) -> None:
    """It is there the moment that the image is safe: whoever began to wait only then would miss it."""
    gate.parts.book.told = Answer(prediction={"label": "NORMAL", "probabilities": {"NORMAL": 0.9}})
    reply = gate.post(_PNG, path="/images?wait=20")
    assert reply.status == 201
    assert reply.json["state"] == "predicted"
    assert reply.json["prediction"]["label"] == "NORMAL"
    assert reply.json["place"]
    gate.parts.book.told = Answer(reason="png_corrupt")
    reply = gate.post(_PNG, path="/images?wait=20")
    assert (reply.status, reply.json["state"], reply.json["reason"]) == (201, "dead_lettered", "png_corrupt")


def test_one_that_does_not_is_asked_for(gate: Gate) -> None:
    reply = gate.post(_PNG, path="/images?wait=0.2")
    assert (reply.status, reply.json["state"]) == (202, "accepted")
    asked = gate.ask("GET", reply.headers["location"])
    assert (asked.status, asked.json["event_id"]) == (200, reply.json["event_id"])
    assert asked.headers["cache-control"] == "no-store"
    assert not gate.parts.book.waited_for


@pytest.mark.parametrize("wait", ["-1", "31", "soon", "nan", "inf", "1e9", ""])
def test_a_wait_that_is_none_is_refused(gate: Gate, wait: str) -> None:
    reply = gate.post(_PNG, path=f"/images?wait={wait}")
    assert (reply.status, reply.json["cause"]) == (400, None)


def test_no_more_wait_than_may(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, max_waiters=1), tmp_path) as gate, ExitStack() as stack:
        first: list[Reply] = []
        thread = threading.Thread(target=lambda: first.append(gate.post(_PNG, path="/images?wait=30")))
        thread.start()
        stack.callback(thread.join)
        assert gate.parts.book.began.wait(10)
        second = gate.post(_PNG + b"x", path="/images?wait=30")
        assert (second.status, second.json["state"]) == (202, "accepted")
        (event_id,) = gate.parts.book.waited_for
        gate.parts.book.waiters.answer(event_id, Answer(prediction={"label": "NORMAL"}))
        thread.join(10)
        assert first[0].status == 201
        gate.parts.book.told = Answer(prediction={"label": "NORMAL"})
        assert gate.post(_PNG, path="/images?wait=5").status == 201  # the place is free again


def test_who_waits_and_goes_gives_its_place_back(gate: Gate) -> None:
    with socket.create_connection((_HOST, gate.port)) as raw:
        head = f"POST /images?wait=30 HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(_PNG)}"
        raw.sendall(head.encode() + b"\r\n\r\n" + _PNG)
        assert gate.parts.book.began.wait(10)
    until(lambda: not gate.parts.book.waited_for)


def test_the_end_of_the_door_ends_waiting_and_answers(settings: StreamSettings, tmp_path: Path) -> None:
    replies: list[Reply] = []
    with opened(with_gateway(settings), tmp_path) as gate:
        thread = threading.Thread(target=lambda: replies.append(gate.post(_PNG, path="/images?wait=30")))
        thread.start()
        assert gate.parts.book.began.wait(10)
        started = time.monotonic()
    thread.join(10)
    assert time.monotonic() - started < 10
    assert replies[0].status == 202
    with pytest.raises(ConnectionRefusedError):
        gate.post(_PNG)


def until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


# --- receipts and tokens --------------------------------------------------------------------------------------------


def test_tokens_say_who_sends_and_who_may_ask(settings: StreamSettings, tmp_path: Path, devices: Path) -> None:
    with opened(with_gateway(settings, devices=devices), tmp_path) as gate:
        for reply in (gate.post(_PNG), gate.stow(dicom()), gate.ask("GET", "/images/" + "0" * 32)):
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert gate.post(_PNG, Authorization="Bearer wrong").status == 401
        assert gate.post(_PNG, Authorization="Basic " + _TOKEN).status == 401
        assert gate.parts.count("not_allowed") == 5
        own = gate.post(_PNG, Authorization="bearer " + _TOKEN)
        assert own.status == 201
        where = own.headers["location"]
        assert gate.ask("GET", where, token=_TOKEN).status == 200
        assert gate.ask("GET", where, token=_OTHER).status == 404  # another device's is none
        assert gate.ask("GET", "/images/" + "0" * 32, token=_TOKEN).status == 404
        assert gate.ask("GET", "/images/..%2f..", token=_TOKEN).status == 404
        (record,) = read_images(settings, 1)
        assert dict(record.headers())[envelope.CE_SOURCE] == b"/ward-0"


def test_a_token_elsewhere_is_forbidden_rather_than_unknown(settings: StreamSettings, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    write_devices(file, _TOKEN, addresses='addresses = ["10.0.0.0/8"]')
    with opened(with_gateway(settings, devices=file), tmp_path) as gate:
        reply = gate.post(_PNG, Authorization=f"Bearer {_TOKEN}")
        assert (reply.status, reply.json["cause"]) == (403, "not_allowed")
        assert _TOKEN not in reply.body.decode()


def test_tokens_are_read_again(settings: StreamSettings, tmp_path: Path, devices: Path) -> None:
    with opened(with_gateway(settings, devices=devices), tmp_path) as gate:
        assert gate.post(_PNG, Authorization="Bearer new").status == 401
        write_devices(devices, "new")
        until(lambda: gate.post(_PNG, Authorization="Bearer new").status == 201)
        assert gate.post(_PNG, Authorization=f"Bearer {_TOKEN}").status == 401


# --- STOW-RS --------------------------------------------------------------------------------------------------------


def test_a_foreign_client_stores_a_study(gate: Gate) -> None:
    uids = ["1.2.3.4", "1.2.3.5", "1.2.3.6"]
    client = DICOMwebClient(f"http://{_HOST}:{gate.port}")
    told = client.store_instances([dataset(uid) for uid in uids], study_instance_uid=_STUDY)
    assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == uids
    assert "FailedSOPSequence" not in told
    assert told.RetrieveURL == ""
    records = read_images(gate.parts.settings, 3)
    assert {pydicom.dcmread(io.BytesIO(one.value())).SOPInstanceUID for one in records} == set(uids)
    block = told.ReferencedSOPSequence[0].private_block(0x0009, "XRAY")
    assert gate.ask("GET", f"/images/{block[1].value}").status == 200


def test_the_foreign_client_is_told_which_failed(gate: Gate) -> None:
    report = dataset("1.2.3.9")
    del report.PixelData
    told = DICOMwebClient(f"http://{_HOST}:{gate.port}").store_instances([dataset(), report])
    assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == ["1.2.3.4"]
    (failed,) = told.FailedSOPSequence
    assert failed.ReferencedSOPInstanceUID == "1.2.3.9"
    assert failed.ReferencedSOPClassUID == report.SOPClassUID
    assert failed.FailureReason == Cause.UNSUPPORTED.value.status


def test_all_some_none(gate: Gate) -> None:
    broken = dicom("1.2.9")[:-100_000] if len(dicom()) > 200_000 else dicom("1.2.9")[:400]
    every, some, none = gate.stow(dicom("1.2"), dicom("1.3")), gate.stow(dicom("1.4"), broken), gate.stow(broken)
    assert [reply.status for reply in (every, some, none)] == [200, 202, 409]
    assert every.stored() == ["1.2", "1.3"]
    assert (some.stored(), some.reasons()) == (["1.4"], [Cause.UNREADABLE.value.status])
    assert (none.stored(), none.reasons()) == ([], [Cause.UNREADABLE.value.status])
    (failed,) = none.json["00081198"]["Value"]
    assert failed["00081155"]["Value"] == ["1.2.9"]
    assert testimages.PATIENT_NAME.encode() not in every.body + some.body + none.body


@pytest.mark.parametrize(
    ("path", "status", "reasons"),
    [
        (f"/studies/{_STUDY}", 200, []),
        ("/studies/1.2.3", 409, [Cause.WRONG_CLASS.value.status]),
        ("/studies/" + "1" * 64, 409, [Cause.WRONG_CLASS.value.status]),
    ],
)
def test_the_objects_are_of_the_study_of_the_path(gate: Gate, path: str, status: int, reasons: list[int]) -> None:
    reply = gate.stow(dicom(), path=path)
    assert (reply.status, reply.reasons()) == (status, reasons)


@pytest.mark.parametrize("study", ["abc", "1.2.", "1" * 65, "1%2F2", "%00", "..", "1.2.3%0d%0aX:1"])
def test_a_path_that_names_no_study_is_refused(gate: Gate, study: str) -> None:
    assert gate.stow(dicom(), path=f"/studies/{study}").status in (400, 404)
    assert not gate.parts.count("published")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/dicom+json", "application/dicom+json"),
        ("application/dicom+xml", "application/dicom+xml"),
        ("application/dicom+json;q=0.5, application/dicom+xml", "application/dicom+xml"),
        ("text/html, */*;q=0.1", "application/dicom+json"),
        ("text/html", None),
        ("application/dicom+json;q=0", None),
        ("multipart/related", None),
    ],
)
def test_the_answer_is_what_the_client_reads(gate: Gate, accept: str, kind: str | None) -> None:
    reply = gate.stow(dicom(), Accept=accept)
    if kind is None:
        assert reply.status == 406
        assert not gate.parts.count("published")
    else:
        assert (reply.status, reply.headers["content-type"]) == (200, kind)
        assert b"1.2.3.4" in reply.body


@pytest.mark.parametrize(
    "kind",
    [
        "application/dicom",
        'multipart/related; type="application/dicom+json"; boundary=b',
        'multipart/related; type="application/dicom+xml"; boundary=b',
        "multipart/form-data; boundary=b",
        "",
    ],
)
def test_other_ways_of_stow_are_refused(gate: Gate, kind: str) -> None:
    reply = gate.post(b"--b--", kind, "/studies")
    assert (reply.status, reply.json["cause"]) == (415, "unsupported")


@pytest.mark.parametrize(
    "body", [b"", b"--b--", b"nothing", b"--b\r\n\r\nabc", b"--b\r\n" + b"A: b\r\n" * 10_000, b"--b\r\nbroken\r\n\r\n"]
)
def test_a_body_that_is_not_understood_is_refused(gate: Gate, body: bytes) -> None:
    reply = gate.post(body, "multipart/related; type=application/dicom; boundary=b", "/studies")
    assert reply.status == 400
    assert gate.post(body, "multipart/related; type=application/dicom", "/studies").status == 400


def test_what_was_taken_before_the_body_broke_is_told(gate: Gate) -> None:
    whole = b"--b\r\n\r\n" + dicom("1.2") + b"\r\n--b\r\n\r\n" + dicom("1.3")[:-10]
    reply = gate.post(whole, "multipart/related; type=application/dicom; boundary=b", "/studies")
    assert reply.status == 202
    assert (reply.stored(), reply.reasons()) == (["1.2"], [Cause.UNREADABLE.value.status])
    assert len(read_images(gate.parts.settings, 1)) == 1


def test_a_part_that_is_no_dicom_is_refused_alone(gate: Gate) -> None:
    parts = [(b"image/png", _PNG), (b"application/dicom", dicom("1.2")), (b"multipart/mixed; boundary=c", b"--c--")]
    body = b"".join(b"--b\r\nContent-Type: " + kind + b"\r\n\r\n" + one + b"\r\n" for kind, one in parts) + b"--b--"
    reply = gate.post(body, "multipart/related; type=application/dicom; boundary=b", "/studies")
    assert reply.status == 202
    assert (reply.stored(), reply.reasons()) == (["1.2"], [Cause.UNSUPPORTED.value.status] * 2)


def test_a_part_that_is_too_large_is_read_over(settings: StreamSettings, tmp_path: Path) -> None:
    large = dicom("1.9") + bytes(2_000_000)
    with opened(with_gateway(settings, max_object_bytes=100_000), tmp_path) as gate:
        reply = gate.stow(dicom("1.2"), large, dicom("1.3"))
        assert (reply.status, reply.stored()) == (202, ["1.2", "1.3"])
        (failed,) = reply.json["00081198"]["Value"]
        assert failed["00081155"]["Value"] == ["1.9"]
        assert reply.reasons() == [Cause.TOO_LARGE.value.status]
        assert gate.post(bytes(20_000_000), "multipart/related; boundary=b", "/studies").status == 413


def test_no_request_has_too_many_objects(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stowroutes, "MAX_PARTS", 2)
    reply = gate.stow(dicom("1.2"), dicom("1.3"), dicom("1.4"), dicom("1.5"))
    assert (reply.status, reply.stored()) == (202, ["1.2", "1.3"])
    assert reply.reasons() == [Cause.TOO_LARGE.value.status]


def test_each_object_is_taken_before_the_next_is_read(gate: Gate) -> None:
    """A client that sends the second object only once the first is in Kafka would wait for ever otherwise."""
    with socket.create_connection((_HOST, gate.port), timeout=20) as raw:
        head = b"POST /studies HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        raw.sendall(head + b"Content-Type: multipart/related; type=application/dicom; boundary=b\r\n\r\n")
        send_chunk(raw, b"--b\r\n\r\n" + dicom("1.2") + b"\r\n--b\r\n")
        until(lambda: gate.parts.count("published") == 1)
        send_chunk(raw, b"\r\n" + dicom("1.3") + b"\r\n--b--")
        send_chunk(raw, b"")
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        assert answer.status == 200


def send_chunk(raw: socket.socket, data: bytes) -> None:
    raw.sendall(b"%x\r\n%s\r\n" % (len(data), data))


# --- Kafka away, the spool ------------------------------------------------------------------------------------------


@dataclass
class Away:
    """Stands for a publisher whose broker is away."""

    is_up: bool = False

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def publish(self, outgoing: Outgoing) -> Delivery:
        return Delivery("the broker is away")


@dataclass
class Shelf:
    """Stands for a spool."""

    held: list[Outgoing] = field(default_factory=list)
    has_room: bool = True
    holds_anything: bool = False

    def put(self, outgoing: Outgoing) -> None:
        if not self.has_room:
            raise Refusal(Cause.SPOOL_FULL)
        self.held.append(outgoing)


def test_while_kafka_is_away_nothing_is_taken(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings), tmp_path, publisher=Away()) as gate:
        for reply in (gate.post(_PNG), gate.stow(dicom("1.2"), dicom("1.3"))):
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) > 0
        assert gate.stow(dicom("1.2")).reasons() == [Cause.BROKER_AWAY.value.status]
        (failed,) = gate.stow(dicom("1.2")).json["00081198"]["Value"]
        assert failed["00081155"]["Value"] == ["1.2"]  # named, though it was not read
        assert gate.ask("GET", "/readyz").status == 503
        assert gate.ask("GET", "/healthz").status == 200


def test_what_waits_in_the_spool_is_accepted(settings: StreamSettings, tmp_path: Path) -> None:
    shelf = Shelf()
    with opened(with_gateway(settings), tmp_path, publisher=Away(), spool=shelf) as gate:
        for path in ("/images", "/images?wait=30"):  # nobody waits for a prediction that does not come
            reply = gate.post(_PNG, path=path)
            assert (reply.status, reply.json["place"], reply.json["state"]) == (202, None, "accepted")
        assert gate.stow(dicom("1.2")).status == 200
        assert len(shelf.held) == 3
        assert gate.ask("GET", "/readyz").status == 200
        shelf.has_room = False
        assert (gate.post(_PNG).status, gate.post(_PNG).json["cause"]) == (503, "spool_full")
        assert gate.ask("GET", "/readyz").status == 503


def test_some_of_a_study_is_safe_when_the_spool_is_full(settings: StreamSettings, tmp_path: Path) -> None:
    class OneMore(Shelf):
        def put(self, outgoing: Outgoing) -> None:
            super().put(outgoing)
            self.has_room = False

    with opened(with_gateway(settings), tmp_path, publisher=Away(), spool=OneMore()) as gate:
        reply = gate.stow(dicom("1.2"), dicom("1.3"))
        assert (reply.status, reply.stored(), reply.reasons()) == (202, ["1.2"], [Cause.SPOOL_FULL.value.status])


def test_a_disk_that_does_not_take_bodies_is_told(gate: Gate, tmp_path: Path) -> None:
    folder = tmp_path / "bodies"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    large = _PNG + bytes(1_000_000)
    assert (gate.post(large).status, gate.post(large).json["cause"]) == (503, "busy")
    reply = gate.stow(dicom("1.2"), dicom("1.3") + bytes(1_000_000))
    assert (reply.status, reply.stored(), reply.reasons()) == (202, ["1.2"], [Cause.BUSY.value.status])
    assert gate.post(_PNG).status == 201  # small ones need no disk


def test_no_more_bodies_at_once_than_there_is_room_for(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "_MOST_BODIES", 1)
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.sendall(b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\n")
        until(lambda: gate.post(_PNG).status == 503)
        assert gate.post(_PNG).json["cause"] == "busy"
        assert gate.ask("GET", "/healthz").status == 200
    until(lambda: gate.post(_PNG).status == 201)


# --- clients that are slow or broken ----------------------------------------------------------------------------------


def answer_of(raw: socket.socket) -> tuple[int, bool]:
    """Give the status of the answer, and whether the connection ended after it."""
    raw.settimeout(15)
    data = b""
    while chunk := raw.recv(65_536):
        data += chunk
    status = int(data.split()[1]) if data else 0
    return status, True


_SLOW = [
    b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc",
    b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; boundary=b\r\n"
    b"Content-Length: 1000\r\n\r\n--b\r\n\r\nDI",
    b"POST /images HTTP/1.1\r\nHost: x\r\nContent-",
    b"P",
]


@pytest.mark.parametrize("sent", _SLOW, ids=["body", "chunked", "stow", "head", "first byte"])
def test_what_does_not_come_in_time_is_given_up(settings: StreamSettings, tmp_path: Path, sent: bytes) -> None:
    with opened(with_gateway(settings, idle_s=1.0), tmp_path) as gate:
        with socket.create_connection((_HOST, gate.port)) as raw:
            raw.sendall(sent)
            assert answer_of(raw) == (408, True)
        assert gate.post(_PNG).status == 201


def test_who_drips_is_given_up_too(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, idle_s=1.0), tmp_path) as gate:
        for head in (_SLOW[0], _SLOW[3]):
            with socket.create_connection((_HOST, gate.port)) as raw:
                raw.sendall(head)
                raw.settimeout(0.2)
                started, answer = time.monotonic(), b""
                while not answer and time.monotonic() - started < 10:
                    raw.sendall(b"x")
                    try:
                        answer = raw.recv(100)
                    except TimeoutError:
                        continue
                assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_ended(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings, idle_s=1.0), tmp_path) as gate:
        with socket.create_connection((_HOST, gate.port)) as raw:
            assert answer_of(raw) == (0, True)
        with socket.create_connection((_HOST, gate.port)) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer_of(raw) == (200, True)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"POST /images HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\n3\r\nabcdef",
        b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc",
        b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
        b"POST /im\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00XRAY",
        b"hello\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(gate: Gate, sent: bytes) -> None:
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.sendall(sent)
        assert answer_of(raw) == (400, True)
    assert gate.post(_PNG).status == 201


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"y" * (2 * MAX_HEAD_BYTES) + b"\r\n\r\n",
        b"X: y\r\n" * 20_000 + b"\r\n",
        b"y" * (2 * MAX_HEAD_BYTES) + b": x\r\n\r\n",
        b"X: " + b"y" * 1_000_000,  # in more than one piece
    ],
    ids=["long value", "many", "long name", "without end"],
)
def test_a_large_head_is_refused(gate: Gate, head: bytes) -> None:
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + head)
        raw.settimeout(15)
        assert raw.recv(12) == b"HTTP/1.1 431"
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.sendall(b"GET /" + b"y" * (2 * MAX_HEAD_BYTES) + b" HTTP/1.1\r\n\r\n")
        raw.settimeout(15)
        assert raw.recv(12) == b"HTTP/1.1 431"
    assert gate.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("sent", _SLOW, ids=["body", "chunked", "stow", "head", "first byte"])
def test_who_ends_in_the_middle_has_sent_nothing(gate: Gate, sent: bytes) -> None:
    for _ in range(3):
        with socket.create_connection((_HOST, gate.port)) as raw:
            raw.sendall(sent)
    assert gate.post(_PNG).status == 201
    assert gate.parts.count("published") == 1
    until(lambda: gate.parts.metrics.registry.get_sample_value("xray_gateway_connections", {"door": "http"}) == 0)


def test_a_thousand_connections_that_say_nothing_hold_up_nobody(gate: Gate) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection((_HOST, gate.port), timeout=10))
        started = time.monotonic()
        assert gate.post(_PNG).status == 201
        assert gate.stow(dicom()).status == 200
        assert time.monotonic() - started < 5


def test_above_the_most_connections_idle_ones_give_way(gate: Gate) -> None:
    gate.door._server._config.max_connections = 20
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((_HOST, gate.port), timeout=10)) for _ in range(60)]
        for _ in range(5):
            assert gate.post(_PNG).status == 201
        ended = 0
        for one in idle:
            one.settimeout(0.05)
            try:
                ended += not one.recv(1)
            except ConnectionResetError:
                ended += 1
            except TimeoutError:
                continue
        assert ended >= 40


def test_requests_of_one_connection_are_answered_in_order(gate: Gate) -> None:
    one = f"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(_PNG)}\r\n\r\n".encode()
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.sendall((one + _PNG) * 3 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        raw.settimeout(15)
        data = b""
        while chunk := raw.recv(65_536):
            data += chunk
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"201", b"201", b"201", b"200"]


_OFFERS = {
    "as Java's client": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "WebSocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "several": b"connection: keep-alive, upgrade\r\nupgrade: a/1\r\nUpgrade: b/2\r\n",
}


@pytest.mark.parametrize("offer", _OFFERS.values(), ids=_OFFERS)
@pytest.mark.parametrize("size", [1, 150, 100_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(
    gate: Gate, offer: bytes, size: int, is_chunked: bool
) -> None:
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(_PNG)
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_PNG), _PNG) if is_chunked else _PNG
    first = b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + offer + length + b"\r\n\r\n" + body
    sent = first + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection((_HOST, gate.port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            raw.sendall(sent[start : start + size])
        raw.settimeout(15)
        data = b""
        while chunk := raw.recv(65_536):
            data += chunk
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"201", b"200"]


def test_no_answer_waits_for_the_acknowledgement_of_its_first_half(gate: Gate) -> None:
    """Nagle's algorithm would cost 40 ms: head and body of an answer are two writes."""
    connection = http.client.HTTPConnection(_HOST, gate.port, timeout=10)
    seconds = []
    for _ in range(21):
        started = time.monotonic()
        connection.request("GET", "/openapi.json")
        connection.getresponse().read()
        seconds.append(time.monotonic() - started)
    connection.close()
    assert sorted(seconds)[10] < 0.035


# --- TLS ------------------------------------------------------------------------------------------------------------


@dataclass
class Papers:
    """Files of a certificate authority and of the gateway's certificate."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def issue(self) -> dict[str, Path]:
        own = self.authority.issue_cert(_HOST)
        own.private_key_pem.write_to_path(self.folder / "key.pem")
        own.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        return {"tls_certificate": self.folder / "cert.pem", "tls_key": self.folder / "key.pem"}

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def serial(port: int, context: ssl.SSLContext) -> int:
    with (
        socket.create_connection((_HOST, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=_HOST) as tls,
    ):
        found = tls.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)


def test_a_new_certificate_is_used_without_a_restart(settings: StreamSettings, tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    with opened(with_gateway(settings, **papers.issue()), tmp_path) as gate:
        client = papers.client()
        kept = http.client.HTTPSConnection(_HOST, gate.port, context=client, timeout=20)
        kept.request("GET", "/healthz")
        assert kept.getresponse().read() == b"alive\n"
        first = serial(gate.port, client)
        (tmp_path / "cert.pem").write_text("not a certificate")
        assert serial(gate.port, client) == first  # a wrong change is left out
        papers.issue()
        assert serial(gate.port, client) != first
        kept.request("POST", "/images", _PNG, {"Content-Type": "image/png"})
        assert kept.getresponse().status == 201
        kept.close()


def test_devices_need_a_certificate_where_one_is_wanted(settings: StreamSettings, tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    files = papers.issue()
    papers.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with opened(with_gateway(settings, **files, tls_client_ca=tmp_path / "ca.pem"), tmp_path) as gate:
        stranger, known, foreign = papers.client(), papers.client(), papers.client()
        papers.authority.issue_cert("dx-1").configure_cert(known)
        trustme.CA().issue_cert("dx-1").configure_cert(foreign)
        url = f"https://{_HOST}:{gate.port}/healthz"
        with urllib.request.urlopen(url, context=known, timeout=10) as answer:
            assert answer.status == 200
        for refused in (stranger, foreign):
            with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
                urllib.request.urlopen(url, context=refused, timeout=10)


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key", "tls_client_ca"])
@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_wrong_file_stops_the_start(settings: StreamSettings, tmp_path: Path, name: str, content: str | None) -> None:
    papers = Papers(tmp_path)
    files = papers.issue() | {"tls_client_ca": tmp_path / "ca.pem"}
    papers.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    if content is None:
        files[name].unlink()
    else:
        files[name].write_text(content)
    with (
        pytest.raises(SettingsError, match=f"XRAY_GATEWAY__{name.upper()}"),
        opened(with_gateway(settings, **files), tmp_path),
    ):
        pass


def test_plain_http_at_a_door_with_tls_is_no_harm(settings: StreamSettings, tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    with opened(with_gateway(settings, **papers.issue()), tmp_path) as gate:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            gate.post(_PNG)
        assert serial(gate.port, papers.client())


def test_a_port_that_is_taken_is_told(settings: StreamSettings, tmp_path: Path) -> None:
    with opened(with_gateway(settings), tmp_path) as gate:
        taken = with_gateway(settings, http_port=gate.port)
        with pytest.raises(SettingsError, match="XRAY_GATEWAY__HTTP_PORT"), opened(taken, tmp_path):
            pass


# --- what else it offers ----------------------------------------------------------------------------------------------


def test_the_description_is_of_the_routes(gate: Gate) -> None:
    described = gate.ask("GET", "/openapi.json").json
    OpenAPIV31SpecValidator(described).validate()
    offered = {
        (path, method) for path, methods in described["paths"].items() for method in methods if method != "parameters"
    }
    routes = gate.door.routes()
    assert offered == routes
    for path, method in routes:
        reply = gate.ask(method.upper(), path.format(event_id="0" * 32, study="1.2.3"))
        assert str(reply.status) in described["paths"][path][method]["responses"], (path, method, reply.status)


def test_metrics_count_what_came(gate: Gate) -> None:
    gate.post(_PNG)
    gate.post(b"no image")
    text = gate.ask("GET", "/metrics").body.decode()
    assert 'xray_gateway_objects_total{door="http",result="published"} 1.0' in text
    assert 'xray_gateway_objects_total{door="http",result="unsupported"} 1.0' in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/studies", 405),
        ("GET", "/images", 405),
        ("DELETE", "/images/" + "0" * 32, 405),
        ("GET", "/Example^Synthetic", 404),
        ("POST", "/images/", 404),
        ("GET", "/", 200),
        ("HEAD", "/healthz", 200),
    ],
)
def test_other_paths(gate: Gate, method: str, path: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    reply = gate.ask(method, path)
    assert reply.status == status
    assert b"Example" not in reply.body
    assert not caplog.records  # a path may name a patient
    if status == 405:
        assert reply.headers["allow"]
