"""A DICOM door with a real publisher, and doubles that say so for what is tested elsewhere."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from pydicom import dcmread

from sparkdl.image.decode import sniff_media_type
from sparkdl.image.dicomfile import read_dicom
from streaming.gateway.devicelist import DeviceList
from streaming.gateway.dicom.commitment import Commitment
from streaming.gateway.dicom.dicomdoor import DicomDoor
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import Intake, Keeping
from streaming.gateway.publisher import Publisher
from streaming.settings import StreamSettings


def examine(payload: bytes, *, origin: str) -> Any:
    """Double of de-identification: leaves an object as it is, and reads whose it is."""
    read_dicom(payload, origin=origin)
    dataset = dcmread(io.BytesIO(payload), stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    named = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
    return SimpleNamespace(
        payload=payload, media_type=sniff_media_type(payload), image_id=named[1], flags=(), named=named, identity=None
    )


@dataclass
class BookDouble:
    """Double of the receipts: remembers what was accepted."""

    accepted: list[Any] = field(default_factory=list)

    def other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        return False

    def note_accepted(self, outgoing: Any, place: str | None, *, sha256: str) -> None:
        self.accepted.append(outgoing)


@dataclass
class RunningDoor:
    """A door that listens."""

    port: int
    door: DicomDoor
    metrics: GatewayMetrics
    book: BookDouble
    folder: Path

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def rejected(self, why: str) -> float:
        return self.count("xray_gateway_rejected_associations_total", why=why)

    def objects(self, result: str) -> float:
        return self.count("xray_gateway_objects_total", door="dicom", result=result)


@contextmanager
def run_door(
    settings: StreamSettings,
    *,
    folder: Path,
    deidentify: Any = examine,
    keeping: Keeping | None = None,
    publisher: Any = None,
    commitment: Commitment | None = None,
    **changes: Any,
) -> Iterator[RunningDoor]:
    """Run a DICOM door in this process, on a free port; ``changes`` are settings of the gateway."""
    gateway = settings.gateway.model_copy(update={"dicom_port": 0} | changes)
    settings = settings.model_copy(update={"gateway": gateway})
    metrics, book = GatewayMetrics(CollectorRegistry()), BookDouble()
    own = publisher or Publisher(settings.kafka, timeout_s=gateway.answer_s / 2)
    own.start()
    intake = Intake(
        settings,
        deidentify=deidentify,
        name=str,
        publisher=own,
        book=book,  # type: ignore[arg-type]
        metrics=metrics,
        keeping=keeping or Keeping(),
    )
    door = DicomDoor(gateway, intake, DeviceList(gateway), metrics, folder=folder, commitment=commitment)
    try:
        yield RunningDoor(door.start(), door, metrics, book, folder)
    finally:
        door.stop()
        own.stop()
