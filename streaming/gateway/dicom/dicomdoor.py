"""The DICOM door: devices associate, send objects by C-STORE, and are answered once `Intake.take` has each of them.

References
----------
DICOM PS3.4 annex B (Storage Service Class), PS3.7 9.1.1 (C-STORE), PS3.8 9.3.4 (A-ASSOCIATE-RJ).
"""

import logging
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association

from sparkdl.image.limits import DICOM
from streaming.folders import make_own_folder
from streaming.gateway.certificates import Certificates
from streaming.gateway.devicelist import Device, DeviceList
from streaming.gateway.dicom.arrival import Arrival
from streaming.gateway.dicom.associations import (
    MAX_UID,
    DoorAssociation,
    DoorMessages,
)
from streaming.gateway.dicom.commitment import Commitment
from streaming.gateway.dicom.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, choose_contexts
from streaming.gateway.dicom.lobby import BACKLOG, CROWDED, REASONS, Lobby
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.intake import Intake
from streaming.gateway.listeners import open_listener
from streaming.gateway.offer import Offer
from streaming.gateway.refusals import MAX_COMMENT, Cause, Refusal
from streaming.settings import GatewaySettings

log = logging.getLogger(__name__)

DOOR = "dicom"
CALLED_TITLE, CALLING_TITLE, LIMIT = "called_title", "calling_title", "limit"
REJECTIONS = (CALLED_TITLE, CALLING_TITLE, LIMIT, *REASONS)
"""Why an association is not accepted; label values of metrics."""

_SUCCESS = 0x0000
# (result, source, reason) of PS3.8 table 9-21.
_UNKNOWN_CALLED, _UNKNOWN_CALLING, _LIMIT_EXCEEDED = (1, 1, 7), (1, 1, 3), (2, 3, 2)
_ASK_S = 10.0
"""How long a connection may take to ask for an association."""
_REJECTING = 32
"""Associations beyond the limit that are being told so; further connections are closed without a word."""
_ABORTING_S = 2.0
_LOOK_S = 0.02

# It logs titles, UIDs and elements of what it receives. What a device is told, and why, is in our own words.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
_config.LOG_HANDLER_LEVEL = "none"


class DicomDoor:
    """Listens for devices that speak DICOM.

    Parameters
    ----------
    settings : GatewaySettings
        Where it listens, its title, TLS and limits.
    intake : Intake
        Takes the objects.
    devices : DeviceList
        Who may send.
    metrics : GatewayMetrics
        Where associations are counted.
    folder : Path
        Where objects are while they are received: in files without a name, on this folder's disk. It is made.
    commitment : Commitment, optional
        Without it the context of Storage Commitment is refused.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        intake: Intake,
        devices: DeviceList,
        metrics: GatewayMetrics,
        *,
        folder: Path,
        commitment: Commitment | None = None,
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._devices = devices
        self._metrics = metrics
        self._folder = folder
        self._commitment = commitment
        self._is_ending = False
        self._lock = threading.Lock()
        self._begun: list[DoorAssociation] = []
        self._accepted: set[Association] = set()
        self._lobby: Lobby | None = None
        self._local = ("", 0)
        self._ae = _make_entity(settings)
        self._handlers: list[tuple[Any, Callable[..., Any]]] = [
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_C_STORE, self._store),
        ]
        if commitment is not None:
            self._handlers.extend(commitment.handlers())
        for why in REJECTIONS:
            metrics.rejected.labels(why)
        metrics.connections.labels(DOOR).set_function(lambda: len(self._living(self._accepted)))

    def start(self) -> int:
        """Begin to listen.

        Returns
        -------
        int
            The port.

        Raises
        ------
        SettingsError
            The address cannot be listened on, the folder cannot be made, or a PEM file is not one; names the setting.
        """
        # It quotes values of elements that are not what they should be.
        warnings.filterwarnings("ignore", module="pydicom")
        certificates = Certificates(self._settings)
        make_own_folder(self._folder, "XRAY_HOME")
        port = self._settings.dicom_port
        assert port != "off"  # noqa: S101
        listener = open_listener(self._settings.host, port, "XRAY_GATEWAY__DICOM_PORT", backlog=BACKLOG)
        self._local = listener.getsockname()[:2]
        self._lobby = Lobby(
            listener, tls=certificates.current, hand_over=self._begin, turn_away=self._count, wait_s=_ASK_S
        )
        self._lobby.start()
        return self._local[1]

    def stop(self) -> None:
        """Accept no association any more, answer what has begun, then end the associations that there are.

        It takes no longer than an answer may, and a little more.
        """
        if self._lobby is None:
            return
        self._lobby.stop()
        self._is_ending = True
        self._wait_while(lambda one: one.is_busy, self._settings.answer_s)
        for association in self._associations():
            if association.is_established:
                association.abort(block=False)
        self._wait_while(lambda one: one.is_alive(), _ABORTING_S)
        for association in self._associations():
            association.cut()
        self._wait_while(lambda one: one.is_alive(), _ABORTING_S)
        self._lobby = None

    def _wait_while(self, holds: Callable[[DoorAssociation], bool], most_s: float) -> None:
        until = time.monotonic() + most_s
        while time.monotonic() < until and any(map(holds, self._associations())):
            time.sleep(_LOOK_S)

    def _associations(self) -> list[DoorAssociation]:
        with self._lock:
            self._begun = [one for one in self._begun if one.is_alive()]
            return self._begun

    # --- in the lobby's thread ----------------------------------------------------------------------------------------

    def _begin(self, connection: socket.socket, address: tuple[str, int], first: bytes) -> None:
        if len(self._associations()) >= self._settings.max_associations + _REJECTING:
            self._count(CROWDED)
            connection.close()
            return
        association = DoorAssociation(
            self._ae,
            connection,
            address,
            first,
            local=self._local,
            messages=partial(
                DoorMessages,
                folder=self._folder,
                max_bytes=self._intake.max_bytes,
                is_ending=lambda: self._is_ending,
            ),
            handlers=self._handlers,
        )
        with self._lock:
            association.start()
            self._begun.append(association)

    def _count(self, why: str) -> None:
        self._metrics.rejected.labels(why).inc()

    # --- in an association's thread -----------------------------------------------------------------------------------

    def _admit(self, event: evt.Event) -> None:
        """Accept or reject an association; and order the transfer syntaxes."""
        association, request = event.assoc, event.assoc.requestor.primitive
        address, calling = association.requestor.address, str(request.calling_ae_title).strip()
        if self._settings.check_called_aet and str(request.called_ae_title).strip() != self._settings.aet.strip():
            self._reject(association, _UNKNOWN_CALLED, CALLED_TITLE, "it calls another title")
            return
        try:
            device = self._devices.find_by_title(calling, address)
        except Refusal as exc:
            self._reject(association, _UNKNOWN_CALLING, CALLING_TITLE, exc.detail)
            return
        if not self._has_room_for(association):
            self._reject(association, _LIMIT_EXCEEDED, LIMIT, f"there are {self._settings.max_associations} already")
            return
        log.info("an association of %s, from %s", device.source, address)
        association.acceptor.supported_contexts = choose_contexts(
            request.presentation_context_definition_list,
            others=() if self._commitment is None else self._commitment.contexts(),
        )

    def _has_room_for(self, association: Association) -> bool:
        with self._lock:
            self._accepted = self._living(self._accepted)
            if len(self._accepted) >= self._settings.max_associations:
                return False
            self._accepted.add(association)
            return True

    def _reject(self, association: Association, how: tuple[int, int, int], why: str, words: str) -> None:
        title = str(association.requestor.primitive.calling_ae_title)
        log.warning("an association of %r from %s is rejected: %s", title, association.requestor.address, words)
        self._count(why)
        association.acse.send_reject(*how)
        association.kill()  # returns when the answer is sent

    @staticmethod
    def _living(associations: set[Association]) -> set[Association]:
        return {one for one in associations if one.is_alive()}

    def _store(self, event: evt.Event) -> Dataset:
        """Answer a C-STORE."""
        arrival = event.request.DataSet
        try:
            self._take(event, arrival if isinstance(arrival, Arrival) else None)
        except Refusal as exc:
            return _answer(arrival, exc.cause)
        except Exception as exc:
            # The record's boundary, as in Intake: what else goes wrong is this object's answer.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            log.error("the DICOM door met %s:\n%s", type(exc).__name__, stack)
            return _answer(arrival, Cause.FAILED)
        finally:
            arrival.close()
        return _answer(arrival, None)

    def _take(self, event: evt.Event, arrival: Arrival | None) -> None:
        device: Device | None = None
        size = 0 if arrival is None else arrival.size
        try:
            requestor = event.assoc.requestor
            # Again for each object: the file may have changed since the association began.
            device = self._devices.find_by_title(str(requestor.ae_title).strip(), requestor.address)
            found = self._check(event, arrival)
            self._devices.admit(device)
        except Refusal as exc:
            self._intake.note_refusal(DOOR, device, exc, size)
            raise
        source = device.source
        self._intake.take(
            DOOR,
            device,
            size,
            lambda: Offer(found.read_all(), source, content_type=DICOM, announced=found.announced),
        )

    @staticmethod
    def _check(event: evt.Event, arrival: Arrival | None) -> Arrival:
        if arrival is None:
            raise Refusal(Cause.UNREADABLE, "the request has no data set")
        if arrival.is_late:
            raise Refusal(Cause.ENDING)
        if arrival.announced[0] != event.context.abstract_syntax:
            raise Refusal(Cause.SOP_CLASS, "the request names another SOP class than its presentation context")
        if arrival.failure is not None:
            raise Refusal(Cause.BUSY, f"it cannot be kept while it is received: {arrival.failure}")
        return arrival


def _answer(arrival: Any, cause: Cause | None) -> Dataset:
    status = Dataset()
    status.Status = _SUCCESS if cause is None else cause.value.status
    if cause is not None:
        status.ErrorComment = cause.value.comment[:MAX_COMMENT]
    if isinstance(arrival, Arrival) and 0 < len(arrival.announced[0]) <= MAX_UID:
        status.AffectedSOPClassUID = arrival.announced[0]
    return status


def _make_entity(settings: GatewaySettings) -> AE:
    entity = AE(settings.aet)
    entity.implementation_class_uid = IMPLEMENTATION_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.maximum_pdu_size = settings.max_pdu_bytes
    # It would count those that are being rejected too. We count ourselves.
    entity.maximum_associations = settings.max_associations + 2 * _REJECTING
    entity.network_timeout = settings.idle_s
    entity.dimse_timeout = settings.idle_s
    entity.acse_timeout = _ASK_S
    return entity
