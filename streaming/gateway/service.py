"""The gateway as a service: two doors, one way in, and what is kept; with metrics and health, until told to end."""

import fcntl
import ipaddress
import logging
import os
import resource
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from schemas.errors import BrokerError, SettingsError
from streaming.devices.crosswalk import Crosswalk
from streaming.devices.deidentify import Deidentified, Deidentifier, examine
from streaming.devices.pseudonyms import open_pseudonyms
from streaming.folders import check_folder, make_scratch
from streaming.gateway.devicelist import DeviceList
from streaming.gateway.dicom.commitment import Commitment
from streaming.gateway.dicom.dicomdoor import DicomDoor
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.http.httpdoor import HttpDoor
from streaming.gateway.intake import Intake, Keeping
from streaming.gateway.keeping.originals import Originals
from streaming.gateway.keeping.spool import Spool, SpoolDrain
from streaming.gateway.offer import Outgoing
from streaming.gateway.publisher import GRACE_S, Publisher
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.kafka.producer import Delivery
from streaming.kafka.topics import create_topics, receipt_topics, wanted_topics
from streaming.metrics import serve_metrics
from streaming.periodic import PeriodicTask
from streaming.settings import GatewaySettings, StreamSettings

log = logging.getLogger(__name__)

_TOPICS_S = 5.0
_INCOMING = "incoming"
_SHORTEST_S = 0.5
_KAFKA_SHARE = 0.7
"""Of the time for an answer: until the Kafka client has told what became of a record. The rest is for waiting for
memory, and for the way back."""
_KAFKA_SHARE_SPOOLED = 0.35
"""The same where there is a spool, which wants time as well."""


@dataclass(frozen=True)
class GatewayState:
    """What the caller may show once the gateway takes images.

    Parameters
    ----------
    dicom_port, http_port : int or None
        None where that door is closed.
    metrics_url : str
        Address of its Prometheus page.
    """

    dicom_port: int | None
    http_port: int | None
    metrics_url: str


def run_gateway(
    settings: StreamSettings,
    *,
    ended: threading.Event | None = None,
    on_ready: Callable[[GatewayState], None] = lambda state: None,
) -> None:
    """Take images from devices until told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    ended : threading.Event, optional
        Set it to end the gateway: what is under way is answered, what waits in the spool stays there.
    on_ready : callable
        Called once both doors are open.

    Raises
    ------
    SettingsError
        A setting is wrong, a port is taken, or a folder cannot be used.
    BrokerError
        Kafka cannot be reached, and there is no spool.
    """
    ended = ended or threading.Event()
    warnings.simplefilter("ignore")  # those of pydicom quote what they read, and so a patient's name
    raise_file_limit()
    refuse_closed_doors(settings.gateway)
    with ExitStack() as stack:
        state = _open(settings, stack)
        on_ready(state)
        ended.wait()


def raise_file_limit() -> None:
    """Have as many open files as the system lets this user have: each connection is one, each object as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def refuse_closed_doors(gateway: GatewaySettings) -> None:
    """Refuse settings with which no device could send.

    Raises
    ------
    SettingsError
        Both doors are closed, or it listens for other machines and none of them may send.
    """
    if gateway.dicom_port == "off" and gateway.http_port == "off":
        msg = "XRAY_GATEWAY__DICOM_PORT and XRAY_GATEWAY__HTTP_PORT are both off: no device could send"
        raise SettingsError(msg)
    if not (_is_this_machine(gateway.host) or gateway.devices or gateway.anyone):
        msg = (
            f"XRAY_GATEWAY__HOST is {gateway.host}, where other machines reach it, and none of them may send: name "
            "the devices in a file (XRAY_GATEWAY__DEVICES, see docs/devices.md), or set XRAY_GATEWAY__ANYONE=true"
        )
        raise SettingsError(msg)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _open(settings: StreamSettings, stack: ExitStack) -> GatewayState:
    """Start everything, what the doors need before them; the stack ends it in the other order."""
    gateway = settings.gateway
    folder = _own_folder(settings, stack)
    metrics = GatewayMetrics(CollectorRegistry())
    devices = DeviceList(gateway)
    keeping = _open_keeping(settings, stack)
    _make_topics(settings, stack, may_wait=keeping.spool is not None)
    publisher = _open_publisher(settings, metrics, has_spool=keeping.spool is not None)
    book = ReceiptBook(settings, metrics)
    intake = _open_intake(settings, publisher, book, metrics, keeping)
    metrics_url, end_metrics = serve_metrics(
        metrics.registry,
        settings.metrics.host,
        gateway.metrics_port,
        setting="XRAY_GATEWAY__METRICS_PORT",
        health=lambda: {"ok": intake.is_ready, "kafka": publisher.is_up, "spool": _describe_spool(keeping.spool)},
    )
    stack.callback(end_metrics)
    book.start()
    stack.callback(book.stop)
    publisher.start()
    stack.callback(publisher.stop)
    if keeping.spool is not None:
        metrics.watch_spool(keeping.spool)
        drain = SpoolDrain(keeping.spool, partial(_publish_spooled, publisher, book))
        drain.start()
        stack.callback(drain.stop)
    dicom_port = _open_dicom(settings, stack, intake, devices, metrics, keeping)
    http_port = None
    if gateway.http_port != "off":
        door = HttpDoor(gateway, intake, devices, metrics, book, folder=folder / _INCOMING)
        http_port = door.start()
        stack.callback(door.stop)
    return GatewayState(dicom_port, http_port, metrics_url)


def _own_folder(settings: StreamSettings, stack: ExitStack) -> Path:
    """Have the gateway's folder for this process alone: its receipts and keys are not for two."""
    folder = settings.gateway_folder
    check_folder(folder, "XRAY_HOME")
    make_scratch(folder)
    lock = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        msg = f"another gateway uses {folder}: end it first, or give this one an XRAY_HOME of its own"
        raise SettingsError(msg) from exc
    except OSError as exc:
        log.info("%s is on a file system without locks (%s)", folder, exc.strerror)
    return folder


def _open_keeping(settings: StreamSettings, stack: ExitStack) -> Keeping:
    gateway = settings.gateway
    spool = originals = crosswalk = None
    if gateway.spool is not None:
        spool = Spool(gateway.spool, max_bytes=gateway.spool_max_bytes, min_free_bytes=gateway.spool_min_free_bytes)
        stack.callback(spool.close)
        if not spool.has_room:
            log.warning(
                "XRAY_GATEWAY__SPOOL: there is no room in %s: while Kafka is away, no image is taken. Give it room, or "
                "change XRAY_GATEWAY__SPOOL_MAX_BYTES or XRAY_GATEWAY__SPOOL_MIN_FREE_BYTES",
                gateway.spool,
            )
    if gateway.keep_originals is not None:
        originals = Originals(gateway.keep_originals)
        stack.callback(originals.close)
    if gateway.crosswalk is not None:
        crosswalk = Crosswalk(gateway.crosswalk, settings.crosswalk_key)
        stack.callback(crosswalk.close)
    return Keeping(spool, originals, crosswalk)


def _make_topics(settings: StreamSettings, stack: ExitStack, *, may_wait: bool) -> None:
    """Create the topics that are missing; where there is a spool, once Kafka is there."""
    images = settings.kafka.images_topic
    wanted = {images: wanted_topics(settings.kafka)[images], **receipt_topics(settings.kafka)}
    try:
        create_topics(settings.kafka, wanted)
    except BrokerError as exc:
        if not may_wait:
            raise
        log.warning("%s Images wait in the spool.", exc)
        done = threading.Event()

        def create() -> None:
            if not done.is_set():
                create_topics(settings.kafka, wanted)
                done.set()

        task = PeriodicTask(
            "gateway-topics", create, _TOPICS_S, failure="the topics cannot be created yet", level=logging.INFO
        )
        task.start()
        stack.callback(task.stop)


def _open_publisher(settings: StreamSettings, metrics: GatewayMetrics, *, has_spool: bool) -> Publisher:
    share = _KAFKA_SHARE_SPOOLED if has_spool else _KAFKA_SHARE
    return Publisher(
        settings.kafka,
        timeout_s=max(_SHORTEST_S, settings.gateway.answer_s * share - GRACE_S),
        queue_bytes=settings.gateway.max_pending_bytes,
        on_change=lambda is_up: metrics.kafka_up.set(int(is_up)),
    )


def _open_intake(
    settings: StreamSettings, publisher: Publisher, book: ReceiptBook, metrics: GatewayMetrics, keeping: Keeping
) -> Intake:
    limits = settings.score.to_limits()
    deidentify: Callable[..., Deidentified] = partial(examine, limits=limits)
    name: Callable[[str], str] = str
    if settings.gateway.deidentify:
        pseudonyms = open_pseudonyms(settings.pseudonyms_key, settings.gateway_folder)
        deidentify = Deidentifier(pseudonyms, dates=settings.gateway.dates, limits=limits).deidentify
        name = pseudonyms.identifier
    return Intake(
        settings, deidentify=deidentify, name=name, publisher=publisher, book=book, metrics=metrics, keeping=keeping
    )


def _publish_spooled(publisher: Publisher, book: ReceiptBook, outgoing: Outgoing) -> Delivery:
    delivery = publisher.publish(outgoing)
    if delivery.error is None:
        book.note_accepted(outgoing, delivery.place)
    return delivery


def _open_dicom(
    settings: StreamSettings,
    stack: ExitStack,
    intake: Intake,
    devices: DeviceList,
    metrics: GatewayMetrics,
    keeping: Keeping,
) -> int | None:
    gateway, commitment = settings.gateway, None
    if gateway.dicom_port == "off":
        return None
    if gateway.storage_commitment and keeping.originals is not None:
        commitment = Commitment(keeping.originals, aet=gateway.aet, find_peer=devices.find_peer)
        commitment.start()
        stack.callback(commitment.stop)
    door = DicomDoor(
        gateway, intake, devices, metrics, folder=settings.gateway_folder / _INCOMING, commitment=commitment
    )
    port = door.start()
    stack.callback(door.stop)
    return port


def _describe_spool(spool: Spool | None) -> dict[str, Any] | None:
    return None if spool is None else asdict(spool.state)
