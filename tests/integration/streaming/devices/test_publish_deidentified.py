"""``xray publish --deidentify``: what a consumer reads names nobody, neither in the image nor beside it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas import envelope
from streaming.devices.deidentify import Deidentifier
from streaming.devices.pseudonyms import Pseudonyms
from streaming.devices.publish import PublishReport, publish_files
from streaming.settings import StreamSettings
from tests import testimages
from tests.integration.consumers import Record, read_topic
from xray.commands.app import app

pytestmark = pytest.mark.kafka

SOP_UID = "1.2.826.0.1.3680043.8.498.1"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files whose names and contents name a patient."""
    folder = tmp_path / "ward"
    folder.mkdir()
    contents = {
        "Doe^Jane.dcm": testimages.dicom(BurnedInAnnotation="YES", PatientComments="Doe^Jane"),
        "Doe^Jane.png": testimages.png(),
        "Doe^Jane.jpg": testimages.jpeg(comment=b"Doe^Jane"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def content_of(record: Record) -> bytes:
    return b"\n".join([record.key or b"", record.value or b"", *(value for _, value in record.headers)])


def check_records(records: list[Record], pseudonyms: Pseudonyms) -> None:
    assert len(records) == 3
    by_type = {record.text("content-type"): record for record in records}
    for record in records:
        for text in (
            b"Doe",
            b"Jane",
            testimages.PATIENT_NAME.encode(),
            testimages.PATIENT_ID.encode(),
            SOP_UID.encode(),
        ):
            assert text not in content_of(record)
        assert envelope.CE_TIME not in {name for name, _ in record.headers}
    dicom = by_type["application/dicom"]
    assert dicom.text(envelope.CE_ID) == pseudonyms.uid(SOP_UID)
    assert dicom.text(envelope.IMAGE_FLAGS) == envelope.BURNED_IN
    assert envelope.IMAGE_FLAGS not in {name for name, _ in by_type["image/png"].headers}


def test_nothing_names_a_patient(settings: StreamSettings, files: list[Path]) -> None:
    pseudonyms = Pseudonyms(settings.pseudonyms_key)
    report = publish_files(files, settings.kafka, deidentifier=Deidentifier(pseudonyms))
    assert (report.failed, set(report.delivered)) == ({}, set(files))
    check_records(read_topic(settings.kafka, settings.kafka.images_topic), pseudonyms)


def test_what_cannot_be_deidentified_is_not_published(settings: StreamSettings, files: list[Path]) -> None:
    wrong = {"report.dcm": testimages.structured_report(), "text.png": b"text", "colour.dcm": testimages.colour_dicom()}
    for name, content in wrong.items():
        (files[0].parent / name).write_bytes(content)
    deidentifier = Deidentifier(Pseudonyms(settings.pseudonyms_key))
    report: PublishReport = publish_files(sorted(files[0].parent.iterdir()), settings.kafka, deidentifier=deidentifier)
    assert set(report.delivered) == set(files)
    assert {path.name for path in report.failed} == set(wrong)
    assert all(why.startswith("cannot be de-identified: ") for why in report.failed.values())
    assert len(read_topic(settings.kafka, settings.kafka.images_topic)) == 3


def test_the_command_uses_the_gateways_key(
    settings: StreamSettings, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XRAY_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
    monkeypatch.setenv("XRAY_KAFKA__IMAGES_TOPIC", settings.kafka.images_topic)
    arguments = ["publish", "--deidentify", "--json", *map(str, files)]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, json.loads(done.stdout)["delivered"]) == (0, 3)
    key = tmp_path / "home" / "gateway" / "pseudonyms.key"
    check_records(read_topic(settings.kafka, settings.kafka.images_topic), Pseudonyms(key))
    key.unlink()  # another one is made, and is refused
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert "XRAY_GATEWAY__DEIDENTIFY_KEY" in f"{done.exception}{done.output}"
    assert len(read_topic(settings.kafka, settings.kafka.images_topic)) == 3
