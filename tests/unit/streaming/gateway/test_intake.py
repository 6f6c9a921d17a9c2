"""The one way in, with the real de-identifier, spool, originals and crosswalk; Kafka and the receipts are doubles."""

import errno
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from schemas import envelope
from schemas.envelope import derive_image_event_id
from streaming.devices.crosswalk import Crosswalk, read_crosswalk
from streaming.devices.deidentify import Deidentifier
from streaming.devices.pseudonyms import Pseudonyms
from streaming.gateway.devicelist import Device
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import Intake, Keeping
from streaming.gateway.keeping.originals import Found, Originals
from streaming.gateway.keeping.spool import Spool
from streaming.gateway.offer import Offer, Outgoing, Taken
from streaming.gateway.refusals import Cause, Refusal
from streaming.kafka.producer import Delivery
from streaming.settings import StreamSettings
from tests.testimages import dicom, good_files, png

_DEVICE = Device(source="/ward/dx-1", aet="DX1")
_PLACE = "xray.images-0@7"
_NOTHING = Keeping()


@dataclass
class Kafka:
    """Stands for the publisher: answers as it is told."""

    is_up: bool = True
    deliveries: list[Delivery] = field(default_factory=list)
    published: list[Outgoing] = field(default_factory=list)

    def publish(self, outgoing: Outgoing) -> Delivery:
        self.published.append(outgoing)
        return self.deliveries.pop(0) if self.deliveries else Delivery(None, _PLACE)


@dataclass
class Book:
    """Stands for the receipts."""

    accepted: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    others: bool = False

    def other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        return self.others

    def note_accepted(self, outgoing: Outgoing, place: str | None, *, sha256: str | None = None) -> None:
        self.accepted.append((outgoing.event_id, place, sha256))


class Desk:
    """An intake and what is around it."""

    def __init__(self, folder: Path, keeping: Keeping, **settings: Any) -> None:
        self.settings = StreamSettings(home=folder, gateway=settings)
        self.pseudonyms = Pseudonyms(folder / "key")
        self.kafka, self.book = Kafka(), Book()
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.keeping = keeping
        self.intake = Intake(
            self.settings,
            deidentify=Deidentifier(self.pseudonyms).deidentify,
            name=self.pseudonyms.identifier,
            publisher=self.kafka,  # type: ignore[arg-type]
            book=self.book,  # type: ignore[arg-type]
            metrics=self.metrics,
            keeping=keeping,
        )

    def take(self, payload: bytes, **offer: Any) -> Taken:
        return self.intake.take("http", _DEVICE, len(payload), lambda: Offer(payload, _DEVICE.source, **offer))

    def refuse(self, payload: bytes, **offer: Any) -> Refusal:
        with pytest.raises(Refusal) as refused:
            self.take(payload, **offer)
        return refused.value

    def count(self, result: str) -> float:
        labels = {"door": "http", "result": result}
        return self.metrics.registry.get_sample_value("xray_gateway_objects_total", labels) or 0.0


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Desk]:
    return lambda keeping=_NOTHING, **settings: Desk(tmp_path, keeping, **settings)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", max_bytes=10_000_000, min_free_bytes=0)


def test_a_dicom_object_becomes_a_record_with_pseudonyms(make: Callable[..., Desk]) -> None:
    desk = make()
    taken = desk.take(dicom(PatientName="Doe^Jane", SOPInstanceUID="1.2.3.4"))
    (record,) = desk.kafka.published
    assert taken == Taken(record.event_id, _PLACE)
    assert record.header(envelope.CE_ID) == desk.pseudonyms.uid("1.2.3.4")
    assert record.header(envelope.CE_SOURCE) == "/ward/dx-1"
    assert record.header(envelope.CONTENT_TYPE) == "application/dicom"
    assert record.key == record.header(envelope.CE_ID).encode()
    assert b"Doe" not in record.value
    digest = hashlib.sha256(record.value).hexdigest()
    assert record.event_id == derive_image_event_id("/ward/dx-1", record.header(envelope.CE_ID), digest)
    assert desk.book.accepted == [(record.event_id, _PLACE, digest)]
    assert desk.count("published") == 1
    assert record.header(envelope.CE_TIME) == ""  # nobody knows when the device made it


@pytest.mark.parametrize("name", ["gray.png", "explicit.dcm", "jpeg_baseline.dcm", "rgb.jpg"])
def test_the_same_object_again_has_the_same_event(make: Callable[..., Desk], name: str) -> None:
    desk = make()
    payload = good_files().get(name) or png()
    assert desk.take(payload).event_id == desk.take(payload).event_id
    first, second = desk.kafka.published
    assert first.value == second.value


def test_names_of_senders_are_pseudonyms_too(make: Callable[..., Desk]) -> None:
    desk = make()
    first = desk.take(png(), name="Doe-Jane-17")
    assert "Doe" not in str(desk.kafka.published)
    assert desk.take(png(), name="Doe-Jane-17") == first
    assert desk.take(png(), name="Doe-Jane-18").event_id != first.event_id
    assert desk.take(png()).event_id not in {first.event_id}


def test_a_trace_goes_on_or_begins(make: Callable[..., Desk]) -> None:
    desk = make()
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    desk.take(png(), traceparent=given)
    desk.take(png())
    desk.take(png())
    traces = [record.header("traceparent") for record in desk.kafka.published]
    assert traces[0] == given
    assert len(set(traces)) == 3
    assert [len(trace) for trace in traces] == [55] * 3


def test_flags_travel_with_the_image(make: Callable[..., Desk]) -> None:
    desk = make()
    desk.book.others = True
    taken = desk.take(dicom(BurnedInAnnotation="YES"))
    assert taken.flags == (envelope.BURNED_IN, envelope.OTHER_BYTES)
    assert desk.kafka.published[0].flags == taken.flags
    for flag in taken.flags:
        assert desk.metrics.registry.get_sample_value("xray_gateway_flagged_objects_total", {"flag": flag}) == 1


@pytest.mark.parametrize(
    ("payload", "offer", "cause"),
    [
        (b"", {}, Cause.UNSUPPORTED),
        (b"GIF89a rest", {}, Cause.UNSUPPORTED),
        (bytes(128) + b"DICM", {}, Cause.UNREADABLE),
        (png()[:60], {}, Cause.UNREADABLE),
        (png(), {"content_type": "image/jpeg"}, Cause.UNSUPPORTED),
        (dicom(), {"content_type": "image/png"}, Cause.UNSUPPORTED),
        (dicom(SOPInstanceUID="1.2"), {"announced": ("1.2.840.10008.5.1.4.1.1.1.1", "1.3")}, Cause.WRONG_CLASS),
        (dicom(SOPInstanceUID="1.2"), {"announced": ("1.2.840.10008.5.1.4.1.1.7", "1.2")}, Cause.WRONG_CLASS),
        (png(), {"announced": ("1.2", "1.2")}, Cause.WRONG_CLASS),
        (bytes(3000), {}, Cause.TOO_LARGE),
    ],
)
def test_what_is_not_taken_is_told_why_and_nothing_is_published(
    make: Callable[..., Desk], payload: bytes, offer: dict[str, Any], cause: Cause
) -> None:
    desk = make(max_object_bytes=2900 if cause is Cause.TOO_LARGE else 1_000_000)
    assert desk.refuse(payload, **offer).cause is cause
    assert desk.kafka.published == []
    assert desk.book.accepted == []
    assert desk.count(cause.label) == 1


def test_what_scoring_finds_too_large_is_refused_as_that(tmp_path: Path) -> None:
    desk = Desk(tmp_path, _NOTHING)
    limits = desk.settings.score.model_copy(update={"max_payload_bytes": 1024}).to_limits()
    desk.intake._deidentify = Deidentifier(desk.pseudonyms, limits=limits).deidentify
    assert desk.refuse(dicom()).cause is Cause.TOO_LARGE


def test_what_was_announced_is_taken(make: Callable[..., Desk]) -> None:
    make().take(dicom(SOPInstanceUID="1.2"), announced=("1.2.840.10008.5.1.4.1.1.1.1", "1.2"))


@pytest.mark.parametrize(
    ("delivery", "cause"),
    [
        (Delivery("timed out"), Cause.BROKER_AWAY),
        (Delivery("not enough replicas"), Cause.BROKER_AWAY),
        (Delivery("fenced", is_fatal=True), Cause.BROKER_AWAY),
        (Delivery("too large", is_too_large=True), Cause.TOO_LARGE),
    ],
)
def test_without_a_spool_what_kafka_has_not_is_refused(
    make: Callable[..., Desk], delivery: Delivery, cause: Cause
) -> None:
    desk = make()
    desk.kafka.deliveries.append(delivery)
    assert desk.refuse(png()).cause is cause
    assert desk.book.accepted == []


def test_a_broker_that_is_known_to_be_away_is_not_waited_for(make: Callable[..., Desk]) -> None:
    desk = make()
    desk.kafka.is_up = False
    assert not desk.intake.is_ready
    assert desk.refuse(png()).cause is Cause.BROKER_AWAY
    assert desk.kafka.published == []


@pytest.mark.parametrize("how", ["is away", "fails", "fails for good"])
def test_with_a_spool_it_waits_there(make: Callable[..., Desk], spool: Spool, how: str) -> None:
    desk = make(Keeping(spool=spool))
    if how == "is away":
        desk.kafka.is_up = False
    else:
        desk.kafka.deliveries.append(Delivery("no", is_fatal=how == "fails for good"))
    taken = desk.take(png())
    assert taken.place is None
    assert desk.intake.is_ready
    ((number, _),) = spool.first(10)
    assert spool.read(number).event_id == taken.event_id
    assert desk.book.accepted[0][:2] == (taken.event_id, None)
    assert desk.count("spooled") == 1


def test_what_comes_later_goes_behind_what_waits(make: Callable[..., Desk], spool: Spool) -> None:
    desk = make(Keeping(spool=spool))
    desk.kafka.is_up = False
    first = desk.take(png(), name="1")
    desk.kafka.is_up = True
    second = desk.take(png(), name="2")
    assert desk.kafka.published == []
    assert [spool.read(number).event_id for number, _ in spool.first(9)] == [first.event_id, second.event_id]


def test_a_record_that_is_too_large_is_not_spooled(make: Callable[..., Desk], spool: Spool) -> None:
    desk = make(Keeping(spool=spool))
    desk.kafka.deliveries.append(Delivery("too large", is_too_large=True))
    assert desk.refuse(png()).cause is Cause.TOO_LARGE
    assert not spool.holds_anything


def test_a_full_spool_refuses_and_is_not_ready(make: Callable[..., Desk], tmp_path: Path) -> None:
    spool = Spool(tmp_path / "small", max_bytes=100, min_free_bytes=1 << 60)
    desk = make(Keeping(spool=spool))
    desk.kafka.is_up = False
    assert desk.refuse(png()).cause is Cause.SPOOL_FULL
    assert not desk.intake.is_ready
    assert desk.book.accepted == []


def test_originals_and_crosswalk_are_kept_before_it_is_published(make: Callable[..., Desk], tmp_path: Path) -> None:
    originals = Originals(tmp_path / "originals")
    crosswalk = Crosswalk(tmp_path / "crosswalk", tmp_path / "crosswalk.key")
    desk = make(Keeping(originals=originals, crosswalk=crosswalk))
    payload = dicom(SOPInstanceUID="1.2.3", PatientID="P-17")
    kept = []

    def publish(outgoing: Outgoing) -> Delivery:
        kept.append(originals.look_up("1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"))
        kept.append(next(iter(read_crosswalk(tmp_path / "crosswalk", tmp_path / "crosswalk.key"))).patient_id.own)
        return Delivery(None, _PLACE)

    desk.kafka.publish = publish  # type: ignore[method-assign]
    desk.take(payload)
    desk.take(png())  # has no name to keep it under
    assert kept[:2] == [Found.WHOLE, "P-17"]


@pytest.mark.parametrize("part", ["originals", "crosswalk"])
def test_where_they_cannot_be_kept_the_object_is_not_taken(
    make: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    keeping = Keeping(
        originals=Originals(tmp_path / "originals"), crosswalk=Crosswalk(tmp_path / "crosswalk", tmp_path / "c.key")
    )
    desk = make(replace(keeping))

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if part == "crosswalk":
        monkeypatch.setattr(keeping.crosswalk, "note", fail)
    else:
        monkeypatch.setattr("streaming.gateway.keeping.ownfolder.os.write", fail)
        monkeypatch.setattr("streaming.gateway.keeping.ownfolder.os.writev", fail)
    assert desk.refuse(dicom()).cause is Cause.KEEP_FAILED
    assert desk.kafka.published == []
    desk.take(png())


@pytest.mark.parametrize("error", [ValueError("Doe^Jane"), MemoryError(), KeyError("Doe^Jane")])
def test_a_fault_of_ours_is_this_objects_answer_and_its_words_stay_here(
    make: Callable[..., Desk], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    desk = make()

    def fail(outgoing: Outgoing) -> Delivery:
        raise error

    desk.kafka.publish, publish = fail, desk.kafka.publish  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG):
        assert desk.refuse(png()).cause is Cause.FAILED
    assert "Doe" not in caplog.text
    assert type(error).__name__ in caplog.text
    desk.kafka.publish = publish  # type: ignore[method-assign]
    desk.take(png())
    assert (desk.count("failed"), desk.count("published")) == (1, 1)


def test_logs_name_the_device_and_the_cause(make: Callable[..., Desk], caplog: pytest.LogCaptureFixture) -> None:
    make().refuse(b"GIF89a Doe^Jane")
    assert "/ward/dx-1" in caplog.text
    assert "unsupported" in caplog.text
    assert "Doe" not in json.dumps(caplog.text)
