"""A broker that asks who is there: TLS, passwords, certificates, the rights of docs/security.md; what leaks."""

import io
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from confluent_kafka import Producer
from deltalake import DeltaTable
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, HTJ2KLossless, ImplicitVRLittleEndian
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from benchmarks.ports import find_ports
from schemas import envelope
from schemas.documents import load_tables
from schemas.errors import BrokerError, ModelLoadError, Reason, SettingsError, XrayError
from schemas.modelcard import hash_model_folder, read_card, write_card
from schemas.modelstages import check_stages
from streaming.account.archived import find_archived
from streaming.account.audit import audit_stream
from streaming.alerts.rules import Rules
from streaming.alerts.service import run_alerts
from streaming.alerts.sinks import open_sinks
from streaming.archive.service import run_archive
from streaming.archive.tables import describe_tables
from streaming.deadletters.read import Selection, list_dead_letters, show_dead_letter
from streaming.deadletters.redrive import plan_redrive, redrive
from streaming.devices.crosswalk import Crosswalk
from streaming.devices.publish import ImagePublisher, publish_files
from streaming.gateway.publisher import Publisher
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.kafka.rights import find_lacking
from streaming.kafka.topicchecks import check_topics, find_topic_faults
from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
from streaming.page.knows.feed import Feed
from streaming.page.knows.findings import Findings
from streaming.page.knows.moves import Operator
from streaming.page.knows.trail import Trail
from streaming.reports.export import export_reports
from streaming.reports.service import run_reports
from streaming.results.confirmations import open_confirmations
from streaming.results.watch import watch_predictions
from streaming.run.service import run_stream
from streaming.settings import KafkaSettings, StreamSettings, load_settings
from tests import reportparts
from tests.alertrecords import dead_letter, prediction, publish
from tests.conftest import Trained
from tests.imageoutcomes import outgoing
from tests.integration.securebroker import SUPER_USER, SecureBroker
from tests.integration.streams import find_archives, running, wait_for_count, wait_for_rows
from tests.stored import add_champion, score_images
from tests.testimages import dicom_dataset, encapsulated_dicom, gray_pixels, jpeg, write_dicom
from tests.unit.docs.test_docs import names_in, rows_of, section
from xray.commands.app import app
from xray.commands.label import BatchReport, follow_labels
from xray.modelmoves import PageMoves

pytestmark = [pytest.mark.kafka]

ROLES = (
    "device",
    "stream",
    "archive",
    "consumer",
    "operator",
    "gateway",
    "alerts",
    "reports",
    "page",
    "reporter",
    "labeller",
    "admin",
)
_NEWCOMER = "newcomer"
"""Has no right until a test gives it one."""
_ANSWER_S = 20.0


@pytest.fixture(scope="module")
def rights() -> list[tuple[str, str, str, bool, list[str]]]:
    """The table of docs/security.md: role, kind of resource, its name, whether that is a prefix, operations."""
    found = []
    for role, resource, operations in rows_of(section("security", "Who may do what"), "role"):
        [name] = names_in(resource)
        found.append((role, resource.split()[0], name, "prefix" in resource, operations.split(", ")))
    return found


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, jars: Path, rights: list[tuple[str, str, str, bool, list[str]]]
) -> Iterator[SecureBroker]:
    """A running broker where each role has the rights of the docs and no other; the admin has created the topics."""
    folder = tmp_path_factory.mktemp("secure-broker")
    passwords = {name: secrets.token_hex(16) for name in (SUPER_USER, *ROLES, _NEWCOMER)}
    broker = SecureBroker(folder, jars, find_ports(), find_ports(), passwords)
    try:
        broker.start()
        assert {role for role, *_ in rights} == set(ROLES)
        for role, kind, name, prefix, operations in rights:
            broker.allow(role, kind, name, operations, prefix=prefix)
        broker.await_rights(sum(len(operations) for *_, operations in rights))
        admin = broker.by_password("admin", partitions=2)
        topics = wanted_topics(admin) | label_topics(admin) | receipt_topics(admin)
        assert create_topics(admin, topics) == sorted(topics)
        for topic in topics:
            broker.await_leaders(topic)
        yield broker
    finally:
        broker.stop()


# --- who is there -----------------------------------------------------------------------------------------------------

LogIn = Callable[[SecureBroker], KafkaSettings]

_WAYS_IN: dict[str, LogIn] = {
    "scram": lambda broker: broker.by_password(SUPER_USER),
    "plain": lambda broker: broker.by_password(SUPER_USER, "PLAIN"),
    "certificate": lambda broker: broker.by_certificate(SUPER_USER),
}


@pytest.mark.spark
@pytest.mark.parametrize("way", _WAYS_IN)
def test_python_and_spark_clients_log_in(secure: SecureBroker, spark: SparkSession, tmp_path: Path, way: str) -> None:
    kafka = _WAYS_IN[way](secure).model_copy(update={"images_topic": f"way.{way}", "partitions": 1})
    create_topics(kafka)
    check_topics(kafka)
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg())
    assert publish_files([file], kafka).failed == {}
    [row] = (
        spark.read.format("kafka").options(**kafka.to_spark(), subscribe=kafka.images_topic).load().select("value")
    ).collect()
    assert bytes(row["value"]) == jpeg()


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"admin"}))
def test_the_broker_tells_each_user_that_it_may_be_its_role(secure: SecureBroker, role: str) -> None:
    assert find_lacking(secure.by_password(role))[role] == []


def test_the_broker_tells_what_a_user_lacks_for_another_role(secure: SecureBroker) -> None:
    lacking = find_lacking(secure.by_password("device"))
    assert "Read, DescribeConfigs on topic xray.images" in lacking["stream"]
    assert "Read on group xray-watch" in lacking["consumer"]
    assert "Read on group names beginning with xray-canary-" in lacking["stream"]
    assert all(lacking[role] for role in lacking if role != "device")
    assert not any(find_lacking(secure.by_password(SUPER_USER)).values())


def test_topics_that_a_user_may_not_see_are_not_called_missing(secure: SecureBroker) -> None:
    kafka = secure.by_password("device")
    faults = {one.topic: one for one in find_topic_faults(kafka)}
    assert set(faults) == set(wanted_topics(kafka))
    assert all(one.is_hidden for one in faults.values())
    assert not any(one.is_hidden for one in find_topic_faults(secure.by_password("stream")))


def _with_another_authority(broker: SecureBroker) -> KafkaSettings:
    path = broker.folder / "another-ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return broker.by_password("stream", ssl_ca_location=path)


_REFUSED: dict[str, tuple[LogIn, list[str]]] = {
    "wrong password": (
        lambda broker: broker.by_password("stream", sasl_password=f"not-{broker.passwords['stream']}"),
        ["XRAY_KAFKA__SASL_USERNAME", "XRAY_KAFKA__SASL_PASSWORD"],
    ),
    "wrong password, PLAIN": (
        lambda broker: broker.by_password("stream", "PLAIN", sasl_password=f"not-{broker.passwords['stream']}"),
        ["XRAY_KAFKA__SASL_USERNAME", "XRAY_KAFKA__SASL_PASSWORD"],
    ),
    "another mechanism": (
        lambda broker: broker.by_password("stream", "SCRAM-SHA-256"),
        ["XRAY_KAFKA__SASL_MECHANISM", "SCRAM-SHA-512"],
    ),
    "another authority": (_with_another_authority, ["XRAY_KAFKA__SSL_CA_LOCATION"]),
    "the system's authorities": (
        lambda broker: broker.by_password("stream", ssl_ca_location=None),
        ["XRAY_KAFKA__SSL_CA_LOCATION"],
    ),
    "another host": (
        lambda broker: broker.by_password("stream", bootstrap_servers=f"localhost:{broker.port}"),
        ["XRAY_KAFKA__BOOTSTRAP_SERVERS", "host"],
    ),
    "no certificate": (
        lambda broker: KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{broker.tls_port}", security_protocol="SSL", ssl_ca_location=broker.ca_file
        ),
        ["XRAY_KAFKA__SSL_CERTIFICATE_LOCATION", "XRAY_KAFKA__SSL_KEY_LOCATION"],
    ),
    "no TLS": (
        lambda broker: KafkaSettings(bootstrap_servers=broker.bootstrap_servers),
        ["XRAY_KAFKA__SECURITY_PROTOCOL, which is PLAINTEXT"],
    ),
    "no such file": (
        lambda broker: broker.by_password("stream", ssl_ca_location=broker.folder / "none.pem"),
        ["XRAY_KAFKA__SSL_CA_LOCATION"],
    ),
}


def _check_refusal(refused: XrayError, seconds: float, said: list[str], secure: SecureBroker) -> None:
    text = str(refused)
    assert isinstance(refused, BrokerError | SettingsError)
    assert "\n" not in text
    assert [words for words in said if words not in text] == []
    assert "xray up" not in text
    assert [name for name, password in secure.passwords.items() if password in text] == []
    assert seconds < _ANSWER_S


@pytest.mark.parametrize("case", _REFUSED)
def test_a_refusal_says_in_one_line_what_to_look_at(secure: SecureBroker, case: str) -> None:
    log_in, said = _REFUSED[case]
    started = time.monotonic()
    with pytest.raises(XrayError) as caught:
        describe_cluster(log_in(secure))
    _check_refusal(caught.value, time.monotonic() - started, said, secure)


@pytest.mark.parametrize("case", ["wrong password", "another authority"])
def test_commands_and_stream_are_refused_alike(
    secure: SecureBroker, base_settings: StreamSettings, trained: Trained, tmp_path: Path, case: str
) -> None:
    log_in, said = _REFUSED[case]
    kafka = log_in(secure)
    settings = base_settings.model_copy(update={"home": tmp_path, "kafka": kafka})
    doors: dict[str, Callable[[], object]] = {
        "publish": lambda: publish_files([trained.manifest], kafka),
        "up": lambda: create_topics(kafka),
        "stream": lambda: run_stream(settings, model_folder=trained.folder, available_now=True),
    }
    for door in doors.values():
        started = time.monotonic()
        with pytest.raises(XrayError) as caught:
            door()
        _check_refusal(caught.value, time.monotonic() - started, said, secure)


# --- one day of the roles ---------------------------------------------------------------------------------------------

MARKERS = ("MUSTERMANN", "ERIKA-4711", "19570423", "KLINIKUM-WALDBAD", "FERNARZT", "LUNGE-VERDACHT", "PRIVATNOTIZ")
"""What stands for a patient in every file below, and must be in nothing that the stream makes of it."""


def _marked(**elements: Any) -> Dataset:
    """A data set about a patient, in standard and private elements."""
    name, identity, born, institution, referring, study, private = MARKERS
    dataset = dicom_dataset(
        PatientName=f"{name}^Erika",
        PatientID=identity,
        PatientBirthDate=born,
        InstitutionName=institution,
        ReferringPhysicianName=referring,
        StudyDescription=study,
        **elements,
    )
    block = dataset.private_block(0x0011, f"{private} CREATOR", create=True)
    block.add_new(1, "LO", private)
    return dataset


def _raw(tag: bytes, vr: bytes, value: bytes, payload: bytes) -> bytes:
    """Replace an element of an Explicit VR file by another form of itself, as a broken device would write it."""
    start = payload.index(tag)
    length = int.from_bytes(payload[start + 6 : start + 8], "little")
    element = tag + vr + len(value).to_bytes(2, "little") + value
    return payload[:start] + element + payload[start + 8 + length :]


def _marked_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", MARKERS[0])
    info.add_itxt("Comment", MARKERS[5], zip=True)
    stream = io.BytesIO()
    Image.fromarray(gray_pixels()).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def _marked_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = MARKERS[0], MARKERS[4]
    return jpeg(exif=exif, comment=MARKERS[5].encode())


def good_marked_files() -> dict[str, bytes]:
    return {
        "explicit.dcm": write_dicom(_marked(), ExplicitVRLittleEndian),
        "implicit.dcm": write_dicom(_marked(), ImplicitVRLittleEndian),
        "with_text.png": _marked_png(),
        "with_exif.jpg": _marked_jpeg(),
    }


def wrong_marked_files() -> dict[str, bytes]:
    """Files that fail, of which a parser's own message would quote something."""
    whole = write_dicom(_marked(WindowCenter=2000, WindowWidth=400))
    marker = MARKERS[0].encode()  # ten bytes: DICOM values have even lengths
    syntax = dict.fromkeys(("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"))
    other = encapsulated_dicom(b"\xff\x4f", HTJ2KLossless, gray_pixels(), bits_stored=8)
    return {
        "truncated.dcm": whole[:-1000],
        "cut_in_the_name.dcm": whole[: whole.index(marker) + 4],
        "report.dcm": write_dicom(_marked(**syntax)),
        "syntax.dcm": other.replace(b"Example^Synthetic", b"MUSTERMANN^Erika-4"),
        "no_syntax.dcm": whole.replace(b"1.2.840.10008.1.2.1\0", b"MUSTERMANN.ERIKA.471"),
        "window.dcm": _raw(b"\x28\x00\x50\x10", b"DS", marker, whole),
        "frames.dcm": _raw(b"\x28\x00\x02\x00", b"IS", marker, whole),
        "rows.dcm": _raw(b"\x28\x00\x10\x00", b"LO", marker, whole),
        "columns.dcm": _raw(b"\x28\x00\x11\x00", b"US", marker[:5] + b"\0", whole),
        "interpretation.dcm": _raw(b"\x28\x00\x04\x00", b"CS", marker, whole),
        "unknown_vr.dcm": _raw(b"\x28\x00\x11\x00", b"ZZ", marker, whole),
        "sequence.dcm": _raw(b"\x10\x00\x10\x00", b"SQ", marker, whole),
        "character_set.dcm": _raw(b"\x08\x00\x05\x00", b"CS", marker, whole[:-1000]),
        "text.txt": b"Patient: " + marker,
        "letter.json": b'{"patient": "' + marker + b'"}',
        "truncated.png": _marked_png()[:-60],
        "truncated.jpg": _marked_jpeg()[:-200],
    }


@dataclass(frozen=True)
class Day:
    """What one run left behind.

    Parameters
    ----------
    settings : StreamSettings
        The stream's own.
    published : dict of str to bytes
        Good and wrong files.
    records : dict of str to list
        By topic: key, value and headers of every record.
    written : dict of str to str
        Everything else that the run wrote, as text.
    """

    settings: StreamSettings
    published: dict[str, bytes]
    records: dict[str, list[tuple[bytes | None, bytes | None, dict[str, bytes]]]]
    written: dict[str, str]


class _Lines(logging.Handler):
    """Keeps what is logged, traces included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def day(
    secure: SecureBroker,
    spark: SparkSession,
    base_settings: StreamSettings,
    trained: Trained,
    tmp_path_factory: pytest.TempPathFactory,
) -> Day:
    """A device publishes, the stream serves and then archives what is left, each with its own user and rights."""
    home = tmp_path_factory.mktemp("secure-home")
    settings = base_settings.model_copy(
        update={"home": home, "jars": base_settings.jars_folder, "kafka": secure.by_password("stream")}
    )
    files = good_marked_files() | wrong_marked_files()
    folder = home / f"folder-of-{MARKERS[0]}"
    folder.mkdir()
    for name, payload in files.items():
        (folder / name).write_bytes(payload)
    logged = _Lines()
    logging.getLogger().addHandler(logged)
    archive_log = tmp_path_factory.mktemp("archive") / "stderr"
    try:
        with _errors_into(archive_log), running(spark, settings, trained) as state:
            report = publish_files([folder / name for name in files], secure.by_password("device"), source="/ward-3")
            assert report.failed == {}
            _publish_by_hand(secure.by_password("device"))
            page = wait_for_count(state.metrics_url, len(files) + 1)
            # By the stream's user, who has no right on the archive's group: that is for lag tools alone.
            wait_for_rows(settings, predictions=1, features=1, dead_letters=1)
            [archive] = find_archives()
            seen = {
                name: Path(f"/proc/{archive}/{name}").read_text(errors="replace") for name in ("cmdline", "environ")
            }
        run_stream(settings, model_folder=trained.folder, spark=spark, available_now=True)
    finally:
        logging.getLogger().removeHandler(logged)
    logs = {path.name: path.read_text(errors="replace") for path in base_settings.logs_folder.glob("*.log")}
    logs |= {f"archive {name}": text for name, text in seen.items()} | {"archive log": archive_log.read_text()}
    assert "spark.log" in logs
    state_files = {path.name: path.read_text(errors="replace") for path in (home / "checkpoints").rglob("*.*")}
    return Day(
        settings,
        files,
        {topic: _read(secure.by_password(SUPER_USER), topic) for topic in wanted_topics(settings.kafka)},
        {"metrics": page, "logging": "\n".join(logged.lines), **logs, **state_files},
    )


@contextmanager
def _errors_into(path: Path) -> Iterator[None]:
    """Have what this process and those that it starts write to standard error in a file."""
    before = os.dup(2)
    with path.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _publish_by_hand(kafka: KafkaSettings) -> None:
    """Send a good image whose content type is a patient's name."""
    answers: list[str | None] = []
    publisher = ImagePublisher(kafka, lambda token, error: answers.append(error))
    publisher.publish(jpeg(), [("content-type", f"image/{MARKERS[0]}".encode())], key=b"by_hand", token=None)
    publisher.flush()
    assert answers == [None]


def _read(kafka: KafkaSettings, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
    with open_reader(kafka) as reader:
        spans = read_spans(reader, topic)
    return [(m.key(), m.value(), dict(m.headers() or [])) for m in scan_offsets(kafka, topic, spans)]


@pytest.mark.spark
@pytest.mark.delta
def test_each_role_does_its_work_with_the_rights_of_the_docs(secure: SecureBroker, day: Day, tmp_path: Path) -> None:
    good, wrong = len(good_marked_files()), len(wrong_marked_files()) + 1
    operator = day.settings.model_copy(update={"kafka": secure.by_password("operator")})
    account = audit_stream(operator)
    assert account.balanced
    assert (account.total("predicted"), account.total("dead_lettered")) == (good, wrong)
    assert account.tables["predictions"].rows == good

    archive = day.settings.model_copy(update={"home": tmp_path, "kafka": secure.by_password("archive")})
    run_archive(archive, available_now=True)
    states = describe_tables(archive.tables_folder)
    assert {name: None if state is None else state.rows for name, state in states.items()} == {
        "predictions": good, "features": good, "dead_letters": wrong,
    }  # fmt: skip

    watched = watch_predictions(secure.by_password("consumer"), from_beginning=True, timeout_s=20)
    seen = [prediction for _, prediction in zip(range(good), (p for p in watched if p), strict=False)]
    assert len(seen) == good

    selection = Selection(reasons=frozenset({Reason.TRUNCATED_IMAGE}))
    plan = plan_redrive(operator.kafka, selection, max_payload_bytes=20_000_000)
    assert len(redrive(operator.kafka, plan).delivered) == 2

    assert create_topics(secure.by_password("admin")) == []


@pytest.mark.delta
def test_an_archive_without_a_right_on_its_group_archives_and_ends_at_once(
    secure: SecureBroker, base_settings: StreamSettings, tmp_path: Path
) -> None:
    producer = Producer(secure.by_password(SUPER_USER).to_librdkafka())
    producer.produce("xray.features", b"of another hand")
    producer.flush()
    settings = base_settings.model_copy(update={"home": tmp_path, "kafka": secure.by_password("stream")})
    started = time.monotonic()
    run_archive(settings, available_now=True)
    took_s = time.monotonic() - started
    assert took_s < _ANSWER_S  # librdkafka's own patience with a group is 45 s
    kafka = settings.kafka
    places = find_archived(settings.tables_folder, kafka, {kafka.features_topic: [0, 1]})[kafka.features_topic]
    assert sum(places.values()) >= 1


@pytest.mark.delta
def test_findings_go_from_reporter_to_labeller_with_the_rights_of_the_docs(
    secure: SecureBroker, base_settings: StreamSettings, tmp_path: Path
) -> None:
    [digest] = score_images(tmp_path, add_champion(tmp_path), 1).digests
    answers: list[str | None] = []
    reporter = secure.by_password("reporter", images_topic="xray.labels")
    publisher = ImagePublisher(reporter, lambda token, error: answers.append(error))
    for value in (json.dumps({"label": "ill", "sha256": digest}).encode(), MARKERS[0].encode()):
        publisher.publish(value, [], key=None, token=None)
    publisher.flush()
    assert answers == [None, None]
    settings = base_settings.model_copy(update={"home": tmp_path, "kafka": secure.by_password("labeller")})
    done: list[BatchReport] = []
    follow_labels(
        settings,
        wait=timedelta(),
        to_end=True,
        ended=threading.Event(),
        on_ready=lambda: None,
        on_batch=done.append,
    )
    assert sum(batch.added for batch in done) == 1
    [(_, value, headers)] = _read(secure.by_password(SUPER_USER), "xray.labels.deadletters")
    assert value == MARKERS[0].encode()
    assert headers["xray_reason"] == b"not_json"


@pytest.mark.spark
def test_receipts_are_written_with_the_rights_of_the_docs(secure: SecureBroker, day: Day, tmp_path: Path) -> None:
    settings = day.settings.model_copy(update={"home": tmp_path, "kafka": secure.by_password("gateway")})
    producer = RecordProducer(settings.kafka, settings.kafka.images_topic)
    places: list[Delivery] = []
    image = outgoing()
    producer.send(image.value, key=image.key, headers=image.headers, on_delivery=places.append)
    producer.flush()
    book = ReceiptBook(settings, SimpleNamespace(note_receipt=lambda state: None, note_receipts_lag=lambda lag: None))
    book.start()
    try:
        book.note_accepted(image, places[0].place)
        wanted = {"accepted": 1, "predicted": len(good_marked_files()), "dead_lettered": len(wrong_marked_files())}
        super_user = secure.by_password(SUPER_USER)
        deadline = time.monotonic() + 60
        states: dict[bytes | None, str] = {}
        while Counter(states.values()) != wanted:
            assert time.monotonic() < deadline
            receipts = _read(super_user, "xray.receipts")
            states = {key: json.loads(value or b"")["state"] for key, value, _ in receipts}
    finally:
        book.stop()
    written = b"".join(b"".join((key or b"", value or b"", *headers.values())) for key, value, headers in receipts)
    assert [marker for marker in MARKERS if marker.encode() in written] == []


def test_a_gateway_that_is_given_its_rights_later_publishes_without_a_restart(secure: SecureBroker) -> None:
    later = secure.by_password(SUPER_USER, images_topic="rights.later", partitions=1)
    create_topics(later, {"rights.later": wanted_topics(later)["rights.later"]})
    secure.allow(_NEWCOMER, "topic", "rights.later", ["Describe"])
    publisher = Publisher(secure.by_password(_NEWCOMER, images_topic="rights.later"), timeout_s=5)
    publisher.start()
    try:
        assert [publisher.publish(outgoing()).error is None for _ in range(3)] == [False] * 3
        secure.allow(_NEWCOMER, "topic", "rights.later", ["Write"])
        deadline = time.monotonic() + _ANSWER_S
        while publisher.publish(outgoing()).error is not None:
            assert time.monotonic() < deadline
        assert publisher.is_up
    finally:
        publisher.stop()


def test_reports_are_delivered_and_exported_with_the_rights_of_the_docs(
    secure: SecureBroker, base_settings: StreamSettings, tmp_path: Path
) -> None:
    crosswalk = tmp_path / "crosswalk"
    settings = base_settings.model_copy(
        update={
            "home": tmp_path,
            "kafka": secure.by_password("reports"),
            "gateway": base_settings.gateway.model_copy(update={"crosswalk": crosswalk}),
            "reports": base_settings.reports.model_copy(update={"metrics_port": 0}),
        }
    )
    kept = Crosswalk(crosswalk, settings.crosswalk_key)
    kept.note(reportparts.identity(7))
    kept.close()
    said = reportparts.event(7)
    headers = [(envelope.CE_TYPE, envelope.PREDICTION_TYPE.encode())]
    publisher = ImagePublisher(
        secure.by_password("stream", images_topic="xray.predictions"), lambda token, error: answers.append(error)
    )
    answers: list[str | None] = []
    publisher.publish(json.dumps(said).encode(), headers, key=None, token=None)
    publisher.flush()
    assert answers == [None]
    ended, file = threading.Event(), tmp_path / "out" / f"{said['event_id']}.json"
    target = f"files:{file.parent}"
    run = threading.Thread(target=lambda: run_reports(settings, [target], from_beginning=True, ended=ended))
    run.start()
    try:
        deadline = time.monotonic() + _ANSWER_S
        while not file.exists():
            assert time.monotonic() < deadline
            assert run.is_alive()
            time.sleep(0.05)
    finally:
        ended.set()
        run.join()
    assert export_reports(settings, tmp_path / "exported").written == 1


def test_the_page_shows_outcomes_and_publishes_findings_with_the_rights_of_the_docs(
    secure: SecureBroker, base_settings: StreamSettings, tmp_path: Path
) -> None:
    stream = secure.by_password("stream")
    said, broken = prediction(stream, 4711), dead_letter(stream, 4712)
    publish(stream, said, broken)
    settings = base_settings.model_copy(update={"home": tmp_path, "kafka": secure.by_password("page")})
    with Feed(settings) as feed, Findings(settings, tmp_path / "page") as findings:
        deadline = time.monotonic() + _ANSWER_S
        while feed.latest.find(said.event_id) is None or feed.latest.find(broken.event_id) is None:
            assert time.monotonic() < deadline, feed.state
            time.sleep(0.05)
        scored, letter = feed.latest.find(said.event_id), feed.latest.find(broken.event_id)
        assert scored is not None
        assert letter is not None
        taken = findings.label(scored, "normal", who="r-3", request="q1")
        while findings.state.waiting:
            assert time.monotonic() < deadline, findings.state
            time.sleep(0.05)
        # A page that is killed reads the topic to know what has arrived.
        assert taken.event_id in {key.decode() for key, _, _ in _read(settings.kafka, "xray.labels") if key}
        operator = Operator(settings, PageMoves(settings), Trail(tmp_path / "audit.jsonl"))
        answer = operator.redrive(letter.record, who="op-1")
    assert (answer.done, "authorization failed" in answer.text) == (False, True)
    with pytest.raises(BrokerError, match=r"xray\.other.*docs/security\.md"):
        create_topics(secure.by_password("page", features_topic="xray.other"))


def test_a_labeller_without_a_right_says_which(secure: SecureBroker) -> None:
    # Two topics that the operator sees, and whose configuration is none of the operator's business.
    seen = {"labels_topic": "xray.images", "labels_deadletters_topic": "xray.deadletters"}
    for kafka, said in (
        (secure.by_password("labeller", labels_topic="xray.other"), r"xray\.other.*docs/security\.md"),
        (secure.by_password("operator", **seen), r"DescribeConfigs.*docs/security\.md"),
    ):
        with pytest.raises(BrokerError, match=said), open_confirmations(kafka, threading.Event()):
            pass


@pytest.mark.parametrize("role", ["reporter", "stream", "operator", "admin"])
def test_reading_findings_is_refused(secure: SecureBroker, role: str) -> None:
    with pytest.raises(BrokerError, match="authorization failed"):
        _read(secure.by_password(role), "xray.labels")


_NEIGHBOURS: dict[str, tuple[str, str]] = {
    "device reads predictions": ("device", "xray.predictions"),
    "device reads images": ("device", "xray.images"),
    "consumer reads images": ("consumer", "xray.images"),
    "consumer reads dead letters": ("consumer", "xray.deadletters"),
    "archive reads images": ("archive", "xray.images"),
    "operator reads features": ("operator", "xray.features"),
    "gateway reads images": ("gateway", "xray.images"),
    "gateway reads features": ("gateway", "xray.features"),
    "page reads features": ("page", "xray.features"),
    "admin reads images": ("admin", "xray.images"),
}


@pytest.mark.parametrize("case", _NEIGHBOURS)
def test_reading_a_neighbours_topic_is_refused(secure: SecureBroker, day: Day, case: str) -> None:
    role, topic = _NEIGHBOURS[case]
    assert day.records[topic]
    with pytest.raises(BrokerError, match="authorization failed") as caught:
        _read(secure.by_password(role), topic)
    assert topic in str(caught.value)


@pytest.mark.parametrize(
    ("role", "topic"),
    [
        ("device", "xray.predictions"),
        ("consumer", "xray.images"),
        ("consumer", "xray.predictions"),
        ("stream", "xray.images"),
        ("archive", "xray.predictions"),
        ("operator", "xray.predictions"),
        ("operator", "xray.deadletters"),
        ("admin", "xray.images"),
        ("labeller", "xray.labels"),
        ("page", "xray.images"),
        ("page", "xray.predictions"),
        ("reporter", "xray.labels.deadletters"),
        ("stream", "xray.labels"),
    ],
)
def test_writing_to_a_neighbours_topic_is_refused(secure: SecureBroker, role: str, topic: str) -> None:
    answers: list[str | None] = []
    kafka = secure.by_password(role, images_topic=topic)
    publisher = ImagePublisher(kafka, lambda token, error: answers.append(error))
    publisher.publish(b"forged", [], key=b"k", token=None)
    try:
        publisher.flush()
    except BrokerError as exc:  # who may write to no topic at all does not even get a producer's id
        answers.append(str(exc))
    assert answers
    assert all(answer is not None and "authorization failed" in answer for answer in answers)
    assert b"forged" not in [value for _, value, _ in _read(secure.by_password(SUPER_USER), topic)]


def test_a_stream_without_a_topic_or_a_right_says_which(secure: SecureBroker) -> None:
    with pytest.raises(BrokerError, match=r"xray\.other.*docs/security\.md"):
        create_topics(secure.by_password("stream", features_topic="xray.other"))
    with pytest.raises(BrokerError, match=r"DescribeConfigs.*docs/security\.md"):
        check_topics(_seeing_all_but_configurations(secure))


def _seeing_all_but_configurations(secure: SecureBroker) -> KafkaSettings:
    kafka = secure.by_password("operator")
    names = {"features_topic": kafka.images_topic, "canary_topic": kafka.images_topic}
    return kafka.model_copy(update=names | {"canary_results_topic": kafka.images_topic})


# --- what leaks -------------------------------------------------------------------------------------------------------


def _found(needles: tuple[str, ...], text: str) -> list[str]:
    return [needle for needle in needles if needle.lower() in text.lower()]


@pytest.mark.spark
@pytest.mark.delta
def test_nothing_of_a_patient_leaves_the_files(secure: SecureBroker, day: Day) -> None:
    kafka = day.settings.kafka
    assert len(day.records[kafka.deadletters_topic]) == len(wrong_marked_files()) + 1
    reasons = {headers["xray_reason"].decode() for _, _, headers in day.records[kafka.deadletters_topic]}
    assert "unexpected" not in reasons
    leaks: dict[str, list[str]] = {}
    for topic in (kafka.predictions_topic, kafka.features_topic, kafka.canary_results_topic):
        leaks |= {f"{topic} {r[0]!r}": _found(MARKERS, str(r)) for r in day.records[topic]}
    for key, value, headers in day.records[kafka.deadletters_topic]:
        assert value in (*day.published.values(), jpeg())
        added = {name: text for name, text in headers.items() if name != "content-type"}  # the sender's own, kept
        leaks[f"dead letter {key!r}"] = _found(MARKERS, str(added))
    for name in load_tables():
        rows = DeltaTable(f"{day.settings.tables_folder}/{name}").to_pyarrow_table().to_pylist()
        assert rows, name
        for i, row in enumerate(rows):
            row.pop("content_type", None)  # again the sender's own
            leaks[f"table {name} {i}"] = _found(MARKERS, str(row))
    leaks |= {name: _found(MARKERS, text) for name, text in day.written.items()}
    operator = secure.by_password("operator")
    listing = list_dead_letters(operator, Selection(), limit=100)
    leaks["xray deadletters list"] = _found(MARKERS, json.dumps(listing.to_dict()))
    for letter in listing.shown:
        shown = json.dumps(show_dead_letter(operator, letter.place).to_dict())
        leaks[f"xray deadletters show {letter.place}"] = _found(MARKERS, shown)
    assert {place: found for place, found in leaks.items() if found} == {}


@pytest.mark.spark
def test_what_publish_sends_is_the_files_name_and_never_its_folder(day: Day) -> None:
    sent = day.records[day.settings.kafka.images_topic]
    by_file = [(key, headers) for key, _, headers in sent if key != b"by_hand"]
    assert {key for key, _ in by_file} == {Path(name).stem.encode() for name in day.published}
    for _, headers in by_file:
        assert set(headers) <= {"content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time"}
        assert MARKERS[0].encode() not in b"".join(headers.values())
        assert b"/" not in headers["ce_id"]


@pytest.mark.spark
def test_no_password_is_written_anywhere(secure: SecureBroker, day: Day) -> None:
    passwords = tuple(secure.passwords.values())
    written = day.written | {"broker": secure.log_file.read_text(errors="replace")}
    written |= {topic: str(records) for topic, records in day.records.items()}
    assert {name: _found(passwords, text) for name, text in written.items() if _found(passwords, text)} == {}
    assert _found(passwords, f"{day.settings!r} {day.settings} {day.settings.model_dump_json()}") == []


def test_settings_command_shows_no_password(secure: SecureBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    password = secure.passwords["stream"]
    for name, value in {
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "PLAIN",
        "SASL_USERNAME": "stream",
        "SASL_PASSWORD": password,
        "SSL_CA_LOCATION": str(secure.ca_file),
    }.items():
        monkeypatch.setenv(f"XRAY_KAFKA__{name}", value)
    assert load_settings().kafka.sasl_password is not None
    for arguments in (["settings"], ["settings", "--json"]):
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 0
        assert "sasl" in answer.output.lower()
        assert password not in re.sub(r"[^0-9a-f]", "", answer.output)  # a narrow table breaks words


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.spark
def test_a_model_that_names_other_code_is_refused_though_its_card_fits(trained: Trained, tmp_path: Path) -> None:
    check_stages(trained.folder)
    folder = Path(shutil.copytree(trained.folder, tmp_path / "model"))
    stage = sorted((folder / "stages").iterdir())[1]
    [metadata] = (stage / "metadata").glob("part-*")
    metadata.write_text(re.sub(r'"class":"[^"]+"', '"class":"os.system"', metadata.read_text()))
    for checksum in stage.rglob(".*.crc"):
        checksum.unlink()
    write_card(folder, replace(trained.card, sha256=hash_model_folder(folder)))
    read_card(folder)  # the hash alone does not tell: whoever changes a model writes its card as well
    with pytest.raises(ModelLoadError, match=rf"stages/{stage.name} is of class 'os\.system'"):
        check_stages(folder)


# Last: it publishes predictions of its own, and those before count theirs.
@pytest.mark.parametrize(
    "way", ["scram", pytest.param("plain", marks=pytest.mark.long), pytest.param("certificate", marks=pytest.mark.long)]
)
def test_alarms_are_read_with_the_rights_of_their_role(
    secure: SecureBroker, base_settings: StreamSettings, tmp_path: Path, way: str
) -> None:
    ways = {
        "scram": lambda: secure.by_password("alerts"),
        "plain": lambda: secure.by_password("alerts", "PLAIN"),
        "certificate": lambda: secure.by_certificate("alerts"),
    }
    alerts = base_settings.alerts.model_copy(update={"metrics_port": 0})
    settings = base_settings.model_copy(update={"home": tmp_path, "kafka": ways[way](), "alerts": alerts})
    path, number = tmp_path / "alarms.jsonl", 7000 + list(ways).index(way)
    value = {"version": 1, "sinks": {"log": {"type": "file", "path": str(path)}}, "defaults": {"routes": ["log"]}}
    rules = Rules.model_validate(value | {"rules": [{"name": "Opacities", "prediction": {"label": "opacities"}}]})
    record = prediction(settings.kafka, number)
    ended = threading.Event()

    def publish_one(_: object) -> None:
        publish(secure.by_password(SUPER_USER), record)

    thread = threading.Thread(
        target=run_alerts,
        args=(settings, rules, open_sinks(rules.sinks)),
        kwargs={"ended": ended, "on_ready": publish_one},
    )
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while record.event_id not in path.read_text(encoding="utf-8"):
            assert thread.is_alive()
            assert time.monotonic() < deadline
            ended.wait(0.05)
    finally:
        ended.set()
        thread.join(60)
