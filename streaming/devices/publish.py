"""Publishes image files to the images topic and accounts for each of them."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cloudevents.core.bindings.kafka import to_binary_event
from cloudevents.core.v1.event import CloudEvent

from schemas import envelope
from schemas.errors import DatasetError, RecordError
from sparkdl.image.decode import sniff_media_type
from streaming.devices.deidentify import Deidentified, Deidentifier
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.producer import RecordProducer
from streaming.settings import KafkaSettings

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
"""What a folder is searched for; a file that is named is published whatever its name."""


@dataclass
class PublishReport:
    """What became of the files.

    Parameters
    ----------
    delivered : list of Path
        Confirmed by the broker.
    failed : dict of Path to str
        Not confirmed, with the reason.
    event_ids : dict of Path to str
        The images' own event ids, of all that were handed to the client; receipts have them.
    no_images : list of Path
        Published as they are, though they are neither PNG, JPEG nor DICOM: each will be a dead letter.
    seconds : float
        From the first file to the last confirmation.
    """

    delivered: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    event_ids: dict[Path, str] = field(default_factory=dict)
    no_images: list[Path] = field(default_factory=list)
    seconds: float = 0.0


def find_files(paths: Iterable[str]) -> list[Path]:
    """Expand files, folders and globs.

    Parameters
    ----------
    paths : iterable of str
        A folder gives every image file below it, by its suffix.

    Returns
    -------
    list of Path
        Sorted within each argument, each file once.

    Raises
    ------
    DatasetError
        An argument matches nothing; names it.
    """
    found: dict[Path, None] = {}
    for text in paths:
        matches = _expand(text)
        if not matches:
            msg = f"{text}: no such file, and no image ({', '.join(SUFFIXES)}) in a folder of that name"
            raise DatasetError(msg)
        found |= dict.fromkeys(matches)
    return list(found)


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    base, pattern = (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (Path(), text)
    return sorted(file for file in base.glob(pattern) if file.is_file()) if any(c in text for c in "*?[") else []


def name_image(path: Path, digest: str, *, hide_names: bool) -> str:
    """Give the id that a file's image is published under.

    Parameters
    ----------
    path : Path
        The file; only its name counts.
    digest : str
        SHA-256 of its bytes, 64 hexadecimal characters.
    hide_names : bool
        By the content alone: a file's name may be a patient's.
    """
    return digest[:32] if hide_names else f"{path.name}-{digest[:16]}"


def image_message(
    payload: bytes, *, image_id: str, source: str, captured_at: datetime | None = None
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Wrap an image's bytes as a CloudEvent, Kafka binding, binary mode.

    Parameters
    ----------
    payload : bytes
        The file as it is.
    image_id : str
        The publisher's id of the image; with ``source`` it names the image everywhere downstream.
    source : str
        Who publishes, as a URI reference.
    captured_at : datetime, optional
        When the device made the image.

    Returns
    -------
    tuple of bytes and list
        The Kafka value and its headers. The content type is what the bytes are; of unknown bytes it is left to the
        stream to say what they are.
    """
    attributes: dict[str, object] = {
        "specversion": envelope.SPECVERSION,
        "id": image_id,
        "source": source,
        "type": envelope.IMAGE_TYPE,
        "datacontenttype": sniff_media_type(payload) or "application/octet-stream",
    }
    if captured_at is not None:
        attributes["time"] = captured_at
    message = to_binary_event(CloudEvent(attributes=attributes, data=payload))
    return payload, [(name, bytes(value)) for name, value in message.headers.items()]


class ImagePublisher:
    """Publishes payloads in order, idempotently, and reports each delivery.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker, topic, sizes.
    on_delivery : callable
        Called with the caller's own token and an error text, None where the broker confirmed.
    """

    def __init__(self, kafka: KafkaSettings, on_delivery: Callable[[Any, str | None], None]) -> None:
        self._on_delivery = on_delivery
        self._producer = RecordProducer(kafka, kafka.images_topic)

    def publish(self, payload: bytes | None, headers: Sequence[tuple[str, bytes]], *, key: bytes, token: Any) -> None:
        """Hand one message to the client; its delivery is reported later.

        A payload of None is published as a tombstone.
        """
        self._producer.send(
            payload, key=key, headers=headers, on_delivery=lambda one: self._on_delivery(token, one.error)
        )

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports for so many seconds."""
        self._producer.poll(timeout_s)

    def flush(self) -> None:
        """Wait until every delivery is reported; the client gives up on each after a minute.

        Raises
        ------
        BrokerError
            The broker gives this user no producer: it may write to no topic at all.
        """
        self._producer.flush()


def publish_files(
    files: Sequence[Path],
    kafka: KafkaSettings,
    *,
    source: str = "/xray/publish",
    rate: float | None = None,
    hide_names: bool = False,
    deidentifier: Deidentifier | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PublishReport:
    """Publish files and wait until each is confirmed or has failed.

    Parameters
    ----------
    files : sequence of Path
        What to publish.
    kafka : KafkaSettings
        Where to.
    source : str
        Who publishes, as a URI reference.
    rate : float, optional
        Images per second at most; as fast as it goes when absent.
    hide_names : bool
        Name images by their content alone: a file's name may be a patient's.
    deidentifier : Deidentifier, optional
        What to publish instead of the files as they are. The images are then named by the pseudonym of their SOP
        Instance UID, or else by the content that is published, and no time of a file is told.
    on_progress : callable
        Called with the number of files that were confirmed or have failed so far.

    Returns
    -------
    PublishReport
        Every file is in exactly one of its lists.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    describe_cluster(kafka)  # an absent broker is told at once, not file by file after a minute
    report = PublishReport()

    def note_delivery(path: Path, error: str | None) -> None:
        if error is None:
            report.delivered.append(path)
        else:
            report.failed[path] = error
        on_progress(len(report.delivered) + len(report.failed))

    publisher = ImagePublisher(kafka, note_delivery)
    started = time.monotonic()
    for path in _paced(files, rate, publisher):
        try:
            payload = path.read_bytes()
        except OSError as exc:
            note_delivery(path, f"cannot be read: {exc.strerror}")
            continue
        if deidentifier is not None:
            try:
                deidentified = deidentifier.deidentify(payload, origin=str(path))
            except RecordError as exc:
                note_delivery(path, f"cannot be de-identified: {exc.reason}: {exc.detail}")
                continue
            record = _wrap_deidentified(deidentified, source)
        else:
            record = _wrap_file(path, payload, source, hide_names=hide_names)
        if sniff_media_type(record.value) is None:
            report.no_images.append(path)
        report.event_ids[path] = record.event_id
        publisher.publish(record.value, record.headers, key=record.key, token=path)
    publisher.flush()
    report.seconds = time.monotonic() - started
    return report


class _Record(NamedTuple):
    """One image as it is published; ``event_id`` is the image's own."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    event_id: str


def _wrap_file(path: Path, payload: bytes, source: str, *, hide_names: bool) -> _Record:
    """Wrap a file as it is.

    It is named by its content: publishing a folder again after a failure repeats ids, and adds no row to the table.
    """
    digest = hashlib.sha256(payload).hexdigest()
    image_id = name_image(path, digest, hide_names=hide_names)
    written_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    key = digest[:16] if hide_names else path.stem
    value, headers = image_message(payload, image_id=image_id, source=source, captured_at=written_at)
    return _Record(key.encode(), value, headers, envelope.derive_image_event_id(source, image_id, digest))


def _wrap_deidentified(image: Deidentified, source: str) -> _Record:
    """Wrap a de-identified image; nothing of its file's name or time is in it."""
    digest = hashlib.sha256(image.payload).hexdigest()
    image_id = image.image_id or digest[:32]
    value, headers = image_message(image.payload, image_id=image_id, source=source)
    # The library makes up a time, the present one, where none is given; it would count as that of the exposure.
    headers = [(name, text) for name, text in headers if name != envelope.CE_TIME]
    if image.flags:
        headers.append((envelope.IMAGE_FLAGS, ",".join(image.flags).encode()))
    event_id = envelope.derive_image_event_id(source, image_id, digest)
    return _Record(digest[:16].encode(), value, headers, event_id)


def _paced(files: Sequence[Path], rate: float | None, publisher: ImagePublisher) -> Iterator[Path]:
    """Give the files at their rate; deliveries are served while waiting."""
    started = time.monotonic()
    for i, path in enumerate(files):
        while rate and (early_s := started + i / rate - time.monotonic()) > 0:
            publisher.poll(early_s)
        yield path
