"""Reports from topics to peers, with a real broker: each once, refused ones again, and a dead target alone."""

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.request import urlopen

import pytest
import trustme
from confluent_kafka import Consumer, Producer, TopicPartition
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.ports import find_ports
from schemas import envelope
from schemas.errors import SettingsError
from streaming.devices.crosswalk import Crosswalk
from streaming.kafka.cluster import connect_admin
from streaming.kafka.topics import create_topics, label_topics
from streaming.reports import service
from streaming.reports.courier import name_group
from streaming.reports.export import NDJSON_FILE, export_reports
from streaming.reports.service import ReportsState, run_reports
from streaming.reports.target import read_address
from streaming.settings import StreamSettings
from tests.reportcertificates import Files, serve_as
from tests.reportparts import RECEIVED, SCORED, event, identity, report
from tests.reportpeers import FhirStore, MllpReceiver, run_fhir, run_mllp
from xray.broker import LocalBroker

pytestmark = pytest.mark.kafka

WAIT_S = 60


@pytest.fixture
def settings(
    broker: LocalBroker, base_settings: StreamSettings, tmp_path: Path, request: pytest.FixtureRequest
) -> StreamSettings:
    """Topics, crosswalk and ledgers of this test alone."""
    name = re.sub(r"[^\w-]", "", request.node.name)
    kafka = base_settings.kafka.model_copy(
        update={
            "predictions_topic": f"{name}.predictions",
            "labels_topic": f"{name}.labels",
            "labels_deadletters_topic": f"{name}.labels.deadletters",
            "partitions": 2,
        }
    )
    create_topics(kafka, {kafka.predictions_topic: {}} | label_topics(kafka))
    made = base_settings.model_copy(
        update={
            "home": tmp_path,
            "kafka": kafka,
            "gateway": base_settings.gateway.model_copy(update={"crosswalk": tmp_path / "crosswalk"}),
            "reports": base_settings.reports.model_copy(
                update={"metrics_port": 0, "answer_s": 5.0, "refusal_wait_s": 0.1}
            ),
        }
    )
    keep(made, range(200))
    return made


def keep(settings: StreamSettings, numbers: Sequence[int], **own: str) -> None:
    """Have the crosswalk know images."""
    assert settings.gateway.crosswalk is not None
    crosswalk = Crosswalk(settings.gateway.crosswalk, settings.crosswalk_key)
    for number in numbers:
        crosswalk.note(identity(number, **own))
    crosswalk.close()


def publish(settings: StreamSettings, numbers: Sequence[int], **changed: Any) -> None:
    producer = Producer(settings.kafka.to_librdkafka())
    headers = {
        envelope.CE_TYPE: envelope.PREDICTION_TYPE,
        envelope.CE_TIME: SCORED.isoformat(),
        envelope.INPUT_TIMESTAMP: RECEIVED.isoformat(),
    }
    for number in numbers:
        producer.produce(
            settings.kafka.predictions_topic,
            json.dumps(event(number, **changed)).encode(),
            key=str(number),
            headers=list(headers.items()),
        )
    assert producer.flush(20) == 0


def confirm(settings: StreamSettings, number: int, label: str = "normal", at: str = "2026-02-01T08:00:00Z") -> None:
    producer = Producer(settings.kafka.to_librdkafka())
    said = {"label": label, "event_id": event(number)["event_id"], "confirmed_at": at}
    producer.produce(settings.kafka.labels_topic, json.dumps(said).encode())
    assert producer.flush(20) == 0


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass
class Running:
    url: str = ""
    failures: list[BaseException] = field(default_factory=list)

    def health(self) -> dict[str, Any]:
        try:
            with urlopen(self.url.replace("metrics", "health"), timeout=5) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
        except OSError as exc:
            found = json.load(exc)  # type: ignore[arg-type]  # an HTTPError is the answer
        return found

    def value(self, name: str, **labels: str) -> float:
        with urlopen(self.url, timeout=5) as answer:  # noqa: S310
            families = text_string_to_metric_families(answer.read().decode())
        samples = [one for family in families for one in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    def has_delivered(self, target: str, count: int) -> bool:
        return self.value("xray_reports_total", target=target, result="delivered") == count

    def has_left_out(self, reason: str) -> bool:
        return self.value("xray_reports_left_out_total", reason=reason) == 1


@contextmanager
def running(settings: StreamSettings, *to: str, **options: bool) -> Iterator[Running]:
    ended, ready, run = threading.Event(), threading.Event(), Running()

    def note(state: ReportsState) -> None:
        run.url = state.metrics_url
        ready.set()

    def work() -> None:
        try:
            run_reports(settings, to, ended=ended, on_ready=note, **options)
        except BaseException as exc:
            run.failures.append(exc)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        assert not run.failures
        yield run
    finally:
        ended.set()
        thread.join(WAIT_S)
    assert not run.failures


def committed(settings: StreamSettings, target: str) -> int:
    topic = settings.kafka.predictions_topic
    consumer = Consumer(settings.kafka.to_librdkafka() | {"group.id": name_group(read_address(target))})
    try:
        places = [TopicPartition(topic, partition) for partition in range(2)]
        return sum(max(place.offset, 0) for place in consumer.committed(places, timeout=20))
    finally:
        consumer.close()


def test_a_hundred_are_acknowledged_and_a_refused_one_is_asked_again(settings: StreamSettings) -> None:
    refused = report(42).key
    receiver = MllpReceiver(lambda control_id, times: "AR" if control_id == refused and times < 3 else "AA")
    with run_mllp(receiver):
        target = f"mllp:127.0.0.1:{receiver.port}"
        with running(settings, target) as run:
            publish(settings, range(100))
            wait_for(lambda: len(receiver.accepted) >= 100, "not all were acknowledged")
            wait_for(lambda: run.value("xray_reports_total", result="delivered") == 100, "not all were counted")
            assert run.value("xray_reports_total", result="refused") == 2
            assert run.health()["ok"]
        assert sorted(receiver.accepted) == sorted(report(number).key for number in range(100))
        assert receiver.times(refused) == 3
        assert committed(settings, target) == 100
        with running(settings, target):
            publish(settings, [*range(100), 100])
            wait_for(lambda: report(100).key in receiver.accepted, "the next one did not come")
    assert len(receiver.accepted) == 101


@pytest.mark.parametrize("kind", ["mllp", "fhir", "files"])
def test_two_homes_do_not_deliver_to_one_target(
    settings: StreamSettings, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_GONE_WITHIN_S", 1.0)
    target = {"mllp": "mllp:127.0.0.1:1", "fhir": "fhir:http://127.0.0.1:1", "files": f"files:{tmp_path / 'out'}"}[kind]
    reports = settings.reports.model_copy(update={"folder": tmp_path / "elsewhere"})
    elsewhere = settings.model_copy(update={"reports": reports})
    with running(settings, target) as run:
        with pytest.raises(SettingsError, match=f"another 'xray results run' delivers to {kind}, from another"):
            run_reports(elsewhere, [target])
        assert run.health()["targets"][kind]["alone"]
    with running(elsewhere, target):  # once the first has ended
        pass


def test_what_waits_for_a_target_that_is_taken_out_is_told(
    settings: StreamSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone, other = "mllp:127.0.0.1:1", f"files:{tmp_path / 'out'}"
    with running(settings, gone, other) as run:
        publish(settings, range(3))
        wait_for(lambda: run.value("xray_reports_open", target="mllp") == 3, "they do not wait")
        assert run.value("xray_reports_without_target") == 0
    with running(settings, other) as run:
        assert run.value("xray_reports_without_target") == 3
        assert run.health()["ok"]
    assert f"3 reports wait for {gone}, which is not among --to; nobody sends them" in caplog.messages


def test_what_is_refused_for_good_is_given_up_and_sent_when_asked(settings: StreamSettings) -> None:
    receiver = MllpReceiver(lambda control_id, _: "AE" if control_id == report(1).key else "AA")
    with run_mllp(receiver):
        target = f"mllp:127.0.0.1:{receiver.port}"
        with running(settings, target) as run:
            publish(settings, range(3))
            wait_for(lambda: run.value("xray_reports_given_up") == 1, "it was not given up")
            wait_for(lambda: len(receiver.accepted) == 2, "the others did not come")
            assert receiver.times(report(1).key) == settings.reports.refusal_tries
        assert committed(settings, target) == 3
        receiver.answer = lambda _id, _times: "AA"
        with running(settings, target, again=True):
            wait_for(lambda: report(1).key in receiver.accepted, "it was not sent again")


def test_a_dead_target_stops_no_other_and_has_everything_once_it_is_back(settings: StreamSettings) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with run_fhir(FhirStore()) as store:
        targets = (f"mllp:127.0.0.1:{port}", f"fhir:{store.address}")
        with running(settings, *targets) as run:
            publish(settings, range(20))
            wait_for(lambda: run.value("xray_reports_total", target="fhir", result="delivered") == 20, "fhir waits")
            wait_for(lambda: not run.health()["targets"]["mllp"]["ok"], "nobody says that mllp is away")
            assert run.health()["targets"]["fhir"]["ok"]
            assert run.value("xray_report_target_up", target="mllp") == 0
            assert run.value("xray_reports_open", target="mllp") == 20
        assert committed(settings, targets[0]) == 0
        assert committed(settings, targets[1]) == 20
        with run_mllp(MllpReceiver(port=port)) as receiver, running(settings, *targets):
            wait_for(lambda: len(receiver.accepted) == 20, "mllp has not everything")
        assert len(set(receiver.accepted)) == 20


def test_a_lost_ledger_loses_nothing_that_waits(settings: StreamSettings) -> None:
    receiver = MllpReceiver(lambda _id, _times: "hang up")
    with run_mllp(receiver):
        target = f"mllp:127.0.0.1:{receiver.port}"
        with running(settings, target) as run:
            publish(settings, range(10))
            wait_for(lambda: run.value("xray_reports_open") == 10, "they were not written down")
        shutil.rmtree(settings.reporting_folder)
        receiver.answer = lambda _id, _times: "AA"
        with running(settings, target):
            wait_for(lambda: len(receiver.accepted) == 10, "what waited is lost")


def test_a_confirmed_finding_amends_under_the_same_identifiers(settings: StreamSettings) -> None:
    with run_fhir(FhirStore()) as store, running(settings, f"fhir:{store.address}") as run:
        confirm(settings, 1)
        publish(settings, range(3))
        wait_for(lambda: run.value("xray_reports_total", result="delivered") == 4, "early finding")
        confirm(settings, 2)
        wait_for(lambda: run.value("xray_reports_total", result="delivered") == 5, "late finding")
        confirm(settings, 2)
        confirm(settings, 0, label="unicorn")
        wait_for(lambda: run.value("xray_reports_left_out_total", reason="unknown_label") == 1, "unknown label")
        documents = [one for one in store.resources.values() if one["resourceType"] == "DiagnosticReport"]
    found = {one["identifier"][0]["value"]: one["status"] for one in documents}
    assert found == {
        event(0)["event_id"]: "preliminary",
        event(1)["event_id"]: "amended",
        event(2)["event_id"]: "amended",
    }


def test_what_has_no_report_is_left_out_with_its_reason(settings: StreamSettings) -> None:
    keep(settings, [300], patient_id="")
    keep(settings, [301], study_uid="")
    receiver = MllpReceiver()
    with run_mllp(receiver), running(settings, f"mllp:127.0.0.1:{receiver.port}") as run:
        publish(settings, [300, 301, 302])
        publish(settings, [3], model=event()["model"] | {"name": "demo"})
        producer = Producer(settings.kafka.to_librdkafka())
        producer.produce(settings.kafka.predictions_topic, b"{}")
        producer.flush(20)
        publish(settings, [4])
        for reason in ("no_patient", "no_study", "not_from_the_gateway", "demonstration", "not_a_prediction"):
            wait_for(partial(run.has_left_out, reason), reason)
        wait_for(lambda: len(receiver.accepted) == 1, "the good one did not come")
    assert receiver.accepted == [report(4).key]


def test_an_image_that_the_gateway_notes_later_is_found(settings: StreamSettings) -> None:
    receiver = MllpReceiver()
    with run_mllp(receiver), running(settings, f"mllp:127.0.0.1:{receiver.port}"):
        keep(settings, [500])
        publish(settings, [500])
        wait_for(lambda: len(receiver.accepted) == 1, "it did not come")


@pytest.mark.parametrize("from_beginning", [True, False])
def test_a_new_target_begins_where_it_is_told(settings: StreamSettings, *, from_beginning: bool) -> None:
    publish(settings, range(5))
    receiver = MllpReceiver()
    with run_mllp(receiver):
        target = f"mllp:127.0.0.1:{receiver.port}"
        with running(settings, target, from_beginning=from_beginning):
            pass
        publish(settings, [5])  # while it is down: it has begun, and loses nothing from then on
        with running(settings, target):
            wait_for(lambda: report(5).key in receiver.accepted, "the new one did not come")
            publish(settings, [6])
            wait_for(lambda: report(6).key in receiver.accepted, "the next one did not come")
    assert len(receiver.accepted) == (7 if from_beginning else 2)


def test_a_group_that_the_broker_has_forgotten_loses_nothing(settings: StreamSettings) -> None:
    with run_mllp(MllpReceiver()) as receiver:
        target = f"mllp:127.0.0.1:{receiver.port}"
        with running(settings, target):
            publish(settings, [1])
            wait_for(lambda: report(1).key in receiver.accepted, "it did not come")
        admin = connect_admin(settings.kafka)  # it must outlive the future
        (gone,) = admin.delete_consumer_groups([name_group(read_address(target))]).values()
        gone.result(20)
        publish(settings, [2])
        with running(settings, target):
            wait_for(lambda: report(2).key in receiver.accepted, "what came meanwhile is lost")
    assert len(receiver.accepted) == 2


def test_without_a_crosswalk_none_is_sent_and_it_says_why(settings: StreamSettings, tmp_path: Path) -> None:
    without = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"crosswalk": None})})
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__CROSSWALK is not set"):
        run_reports(without, ["mllp:127.0.0.1:1"])
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__CROSSWALK is not set"):
        export_reports(without, tmp_path / "out")
    missing = settings.gateway.model_copy(update={"crosswalk": tmp_path / "missing"})
    with pytest.raises(SettingsError, match="cannot be read"):
        export_reports(settings.model_copy(update={"gateway": missing}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- TLS --------------------------------------------------------------------------------------------------------------


@contextmanager
def run_hl7_server(context: ssl.SSLContext) -> Iterator[tuple[int, list[str]]]:
    """python-hl7's own MLLP server; gives its port, and the control ids that it has acknowledged."""
    accepted: list[str] = []
    ports: Queue[int] = Queue()
    loop = asyncio.new_event_loop()

    async def answer(reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        try:
            while True:
                message = await reader.readmessage()
                accepted.append(str(message.segment("MSH")[10]))
                writer.writemessage(message.create_ack())
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    async def serve() -> None:
        server = await start_hl7_server(answer, "127.0.0.1", 0, ssl=context, encoding="utf-8")
        ports.put(server.sockets[0].getsockname()[1])

    def work() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ports.get(timeout=WAIT_S), accepted
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def run_storescp(folder: Path, *tls: str | Path) -> Iterator[int]:
    """dcmtk's receiver; gives its port."""
    folder.mkdir()
    port = find_ports()
    process = subprocess.Popen(
        ["storescp", *tls, "+xa", "+B", "--promiscuous", "-od", folder, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens, "storescp does not listen")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("storescp") is None, reason="dcmtk is not installed (apt-get install dcmtk)")
def test_foreign_peers_take_reports_by_mutual_tls(settings: StreamSettings, tmp_path: Path) -> None:
    files = Files(tmp_path, trustme.CA())
    tls = {"tls_ca": files.ca, **files.write_own()}
    own = settings.model_copy(update={"reports": settings.reports.model_copy(update=tls)})
    theirs = files.authority.issue_cert("127.0.0.1")
    theirs.private_key_pem.write_to_path(tmp_path / "pacs-key.pem")
    theirs.cert_chain_pems[0].write_to_path(tmp_path / "pacs.pem")
    options = ("+tls", tmp_path / "pacs-key.pem", tmp_path / "pacs.pem", "+cf", files.ca, "-rc")
    with (
        run_hl7_server(serve_as(theirs, wanting=files.authority)) as (hl7_port, accepted),
        run_storescp(tmp_path / "taken", *options) as dicom_port,
        running(own, f"mllps:127.0.0.1:{hl7_port}", f"dicoms:PACS@127.0.0.1:{dicom_port}") as run,
    ):
        publish(own, range(20))
        for target in ("mllps", "dicoms"):
            wait_for(partial(run.has_delivered, target, 20), f"{target} waits")
        assert run.health()["ok"]
    assert sorted(accepted) == sorted(report(number).key for number in range(20))
    assert len(list((tmp_path / "taken").iterdir())) == 20


@pytest.mark.parametrize("fault", ["expired", "another authority", "wants a certificate"])
def test_while_tls_fails_reports_wait_and_none_is_lost(settings: StreamSettings, tmp_path: Path, fault: str) -> None:
    files = Files(tmp_path, trustme.CA())
    own = settings.model_copy(update={"reports": settings.reports.model_copy(update={"tls_ca": files.ca})})
    good = serve_as(files.authority.issue_cert("127.0.0.1"))
    bad = {
        "expired": lambda: serve_as(files.authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC))),
        "another authority": lambda: serve_as(trustme.CA().issue_cert("127.0.0.1")),
        "wants a certificate": lambda: serve_as(files.authority.issue_cert("127.0.0.1"), wanting=files.authority),
    }[fault]()
    receiver = MllpReceiver(tls=bad)
    with run_mllp(receiver):
        target = f"mllps:127.0.0.1:{receiver.port}"
        with running(own, target) as run:
            publish(own, range(20))
            wait_for(lambda: run.value("xray_reports_open") == 20, "they were not written down")
            wait_for(lambda: not run.health()["ok"], "nobody says that it fails")
            assert receiver.messages == []
            receiver.tls = good
            wait_for(lambda: len(receiver.accepted) == 20, "not all came")
            wait_for(lambda: run.health()["ok"], "nobody says that it goes well")
        assert committed(own, target) == 20
    assert sorted(receiver.accepted) == sorted(report(number).key for number in range(20))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "files", "written"), [("fhir", 5, 5), ("ndjson", 1, 5), ("sr", 6, 6), ("hl7", 6, 6)])
def test_what_is_there_is_exported(
    settings: StreamSettings, tmp_path: Path, form: Any, files: int, written: int
) -> None:
    publish(settings, [*range(5), 900, 0])
    confirm(settings, 2)
    out = tmp_path / "out"
    for _ in range(2):
        summary = export_reports(settings, out, form=form)
        assert (summary.written, summary.amended) == (written, 1)
        assert summary.to_dict()["left_out"] == {"not_from_the_gateway": 1}
    assert len(list(out.iterdir())) == files
    assert {one.stat().st_mode & 0o077 for one in (out, *out.iterdir())} == {0}
    if form == "ndjson":
        assert len((out / NDJSON_FILE).read_bytes().splitlines()) == 5
    if form == "sr" and shutil.which("dsrdump"):
        subprocess.run(["dsrdump", *sorted(out.iterdir())], check=True, capture_output=True)


def test_only_what_came_since_a_time_is_exported(settings: StreamSettings, tmp_path: Path) -> None:
    publish(settings, range(3))
    middle = time.time() + 0.01
    wait_for(lambda: time.time() > middle + 0.01, "no time passes")
    publish(settings, range(3, 5))
    summary = export_reports(settings, tmp_path / "out", since=datetime.fromtimestamp(middle, UTC))
    assert summary.written == 2
