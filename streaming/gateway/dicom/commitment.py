"""Storage Commitment, Push Model: tells a device which of its objects are kept, so that it may delete its copies.

An N-ACTION is answered once its transaction is on the disk, beside the originals. The report follows as an
N-EVENT-REPORT: to the address that the list of devices has for it, on an association of its own; without an address on
the association of the N-ACTION, while that is open. A report that does not arrive is tried again for a day, after a
restart too. An object counts as kept where it was read from the disk, whole, for this very report.

References
----------
DICOM PS3.4 annex J; PS3.7 10.1.1, 10.1.4 and annex C.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from schemas.folders import sync_folder
from sparkdl.image.dicomfile import PYDICOM_ERRORS
from streaming.gateway.dicom.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from streaming.gateway.keeping.originals import Found, Originals
from streaming.gateway.keeping.ownfolder import discard, make_folder

log = logging.getLogger(__name__)

SUCCESS = 0x0000
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213
"""Statuses of an N-ACTION."""

ALL_KEPT, SOME_FAILED = 1, 2
"""Event types of a report."""
FAILURES = {Found.MISSING: 0x0112, Found.OTHER_CLASS: 0x0119, Found.DAMAGED: 0x0110}
"""Failure Reason (0008,1197)."""

MAX_OBJECTS = 10_000
"""Of one transaction: a day of a busy device."""
_MAX_BYTES = 4 * 1024 * 1024
"""Of its data set: 10,000 items with the longest UIDs are 2 MB."""
_MAX_PENDING = 1_000
_FOLDER = "transactions"
_UID = re.compile(r"[0-9.]{1,64}")
_GRACE_S = 1.0
"""Before a report: the device has its answer by then, and has ended its association where it is about to."""
_FIRST_WAIT_S, _MAX_WAIT_S = 5.0, 300.0
_GIVE_UP_S = 86_400.0
_CONNECT_S = 10.0
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Transaction:
    """What a device has asked for.

    Parameters
    ----------
    aet : str
        Who asked.
    uid : str
        Transaction UID.
    objects : tuple of (str, str)
        SOP Class UID and SOP Instance UID of each.
    accepted_at : float
        Seconds since 1970.
    """

    aet: str
    uid: str
    objects: tuple[tuple[str, str], ...]
    accepted_at: float = field(compare=False)

    @property
    def name(self) -> str:
        """Of its file."""
        return hashlib.sha256(f"{self.aet}\n{self.uid}".encode()).hexdigest() + ".json"


@dataclass
class _Pending:
    transaction: Transaction
    association: Association | None
    due: float
    tries: int = 0
    report: tuple[int, Dataset] | None = None


class _WrongRequestError(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Commitment:
    """Answers for the originals.

    Parameters
    ----------
    originals : Originals
        What is kept.
    aet : str
        The gateway's own title, for the associations by which it reports.
    find_peer : callable
        Gives host and port where a device listens, by its title; None where nobody knows.
    grace_s, first_wait_s, give_up_s : float
        How long to wait before a report, before it is tried again, and until it is given up.
    """

    def __init__(
        self,
        originals: Originals,
        *,
        aet: str,
        find_peer: Callable[[str], tuple[str, int] | None],
        grace_s: float = _GRACE_S,
        first_wait_s: float = _FIRST_WAIT_S,
        give_up_s: float = _GIVE_UP_S,
    ) -> None:
        self._originals = originals
        self._find_peer = find_peer
        self._grace_s = grace_s
        self._first_wait_s = first_wait_s
        self._give_up_s = give_up_s
        self._folder = originals.folder.path / _FOLDER
        self._entity = _make_entity(aet)
        self._changed = threading.Condition()
        self._is_ended = False
        self._pending = {one.name: _Pending(one, None, 0.0) for one in _read_transactions(self._folder)}
        self._thread = threading.Thread(target=self._run, name="storage-commitment", daemon=True)

    def start(self) -> None:
        """Begin to report, what a former gateway has left first."""
        self._thread.start()

    def stop(self) -> None:
        """End once the report that is under way has its answer; the others are sent after the next start."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def count(self) -> int:
        """Transactions without their report."""
        return len(self._pending)

    def handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], Any]]]:
        """Give what an application entity that offers Storage Commitment has to call."""
        return [(evt.EVT_N_ACTION, self._handle_action)]

    def contexts(self) -> list[PresentationContext]:
        """Give what it has to accept."""
        return [build_context(StorageCommitmentPushModel)]

    def _handle_action(self, event: evt.Event) -> tuple[int, None]:
        aet = str(event.assoc.requestor.ae_title)
        try:
            transaction = _read_request(event, aet)
            self._accept(transaction, event.assoc)
        except _WrongRequestError as exc:
            log.warning("a request for Storage Commitment is refused with %04XH: %s", exc.status, exc)
            return exc.status, None
        return SUCCESS, None

    def _accept(self, transaction: Transaction, association: Association) -> None:
        with self._changed:
            known = self._pending.get(transaction.name)
            if known is not None and known.transaction != transaction:
                raise _WrongRequestError(INVALID_ARGUMENT, "its Transaction UID has another request, not reported yet")
            if known is None:
                self._add(transaction)
            self._pending[transaction.name] = _Pending(transaction, association, time.monotonic() + self._grace_s)
            self._changed.notify_all()

    def _add(self, transaction: Transaction) -> None:
        if len(self._pending) >= _MAX_PENDING:
            raise _WrongRequestError(RESOURCE_LIMITATION, f"{_MAX_PENDING} wait for their report already")
        path = self._folder / transaction.name
        try:
            make_folder(self._folder)
            written = self._originals.folder.write([json.dumps(asdict(transaction)).encode()])
            try:
                os.rename(written, path)
                sync_folder(self._folder)
            except OSError:
                discard(written)
                discard(path)
                raise
        except OSError as exc:
            raise _WrongRequestError(RESOURCE_LIMITATION, f"it cannot be written: {exc.strerror}") from exc

    def _run(self) -> None:
        while (due := self._await_due()) is not None:
            try:
                self._report_to(due)
            except Exception:  # whatever it is, the next turn may succeed, and a thread that ended would go unseen
                log.exception("Storage Commitment could not be reported, for an unexpected reason")
                self._put_off(due)

    def _await_due(self) -> list[_Pending] | None:
        """Wait for a report that is due; give it and all others of its device, or None at the end."""
        with self._changed:
            while not self._is_ended:
                now = time.monotonic()
                first = min(self._pending.values(), key=lambda one: one.due, default=None)
                if first is None:
                    self._changed.wait()
                elif first.due > now:
                    self._changed.wait(first.due - now)
                else:
                    aet = first.transaction.aet
                    return [one for one in self._pending.values() if one.transaction.aet == aet and one.due <= now]
        return None

    def _report_to(self, due: list[_Pending]) -> None:
        for one in due:
            one.report = one.report or self._draw_up(one.transaction)
        peer = self._find_peer(due[0].transaction.aet)
        with ExitStack() as stack:
            association = None
            if peer is not None:
                association = self._associate(peer, due[0].transaction.aet)
                stack.callback(_end, association)
            is_own = association is not None and association.is_established
            left = [one for one in due if not _send(association if is_own else one.association, one)]
        for one in due:
            if one not in left:
                self._forget(one)
        self._put_off(left)

    def _draw_up(self, transaction: Transaction) -> tuple[int, Dataset]:
        kept: list[Dataset] = []
        failed: list[Dataset] = []
        for sop_class_uid, sop_instance_uid in transaction.objects:
            item = Dataset()
            item.ReferencedSOPClassUID = sop_class_uid
            item.ReferencedSOPInstanceUID = sop_instance_uid
            found = self._originals.look_up(sop_class_uid, sop_instance_uid)
            if found is Found.WHOLE:
                kept.append(item)
            else:
                item.FailureReason = FAILURES[found]
                failed.append(item)
        report = Dataset()
        report.TransactionUID = transaction.uid
        if kept:
            report.ReferencedSOPSequence = kept
        if failed:
            report.FailedSOPSequence = failed
        log.info("Storage Commitment: %d objects are kept, %d are not", len(kept), len(failed))
        return SOME_FAILED if failed else ALL_KEPT, report

    def _associate(self, peer: tuple[str, int], aet: str) -> Association:
        # The gateway asks, and serves all the same: without this role a device need not listen to it.
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        return self._entity.associate(*peer, contexts=self.contexts(), ae_title=aet, ext_neg=[role])

    def _forget(self, pending: _Pending) -> None:
        with self._changed:
            if self._pending.get(pending.transaction.name) is not pending:
                return  # asked for again meanwhile
            del self._pending[pending.transaction.name]
            try:
                (self._folder / pending.transaction.name).unlink(missing_ok=True)
            except OSError as exc:
                log.warning("a report of Storage Commitment will be sent again: %s", exc.strerror)

    def _put_off(self, left: list[_Pending]) -> None:
        for one in left:
            if time.time() - one.transaction.accepted_at > self._give_up_s:
                log.error("a report of Storage Commitment to %s is given up", one.transaction.aet)
                self._forget(one)
                continue
            wait_s = min(self._first_wait_s * 2**one.tries, _MAX_WAIT_S)
            if not one.tries:
                log.warning("Storage Commitment could not be reported to %s; it is tried again", one.transaction.aet)
            with self._changed:
                one.tries += 1
                one.due = time.monotonic() + wait_s


def _make_entity(aet: str) -> AE:
    entity = AE(ae_title=aet)
    entity.implementation_class_uid = IMPLEMENTATION_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.connection_timeout = _CONNECT_S
    entity.acse_timeout = _CONNECT_S
    entity.dimse_timeout = _ANSWER_S
    entity.network_timeout = _ANSWER_S
    return entity


def _send(association: Association | None, pending: _Pending) -> bool:
    if association is None or not association.is_established or pending.report is None:
        return False
    kind, report = pending.report
    try:
        answer, _ = association.send_n_event_report(
            report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except (RuntimeError, ValueError) as exc:  # it ended just now, or has no context for this
        log.info("an association takes no report: %s", exc)
        return False
    return "Status" in answer and answer.Status == SUCCESS


def _end(association: Association) -> None:
    if association.is_established:
        association.release()


def _read_request(event: evt.Event, aet: str) -> Transaction:
    request = event.request
    if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
        raise _WrongRequestError(NO_SUCH_INSTANCE, "not the well-known instance of Storage Commitment")
    if event.action_type != 1:
        raise _WrongRequestError(NO_SUCH_ACTION, f"action type {event.action_type}, wanted 1")
    size = request.ActionInformation.getbuffer().nbytes if request.ActionInformation is not None else 0
    if size > _MAX_BYTES:
        raise _WrongRequestError(RESOURCE_LIMITATION, f"{size} bytes, at most {_MAX_BYTES} are taken")
    try:
        content = event.action_information
        uid = str(content.TransactionUID)
        objects = tuple(
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in content.ReferencedSOPSequence
        )
    except PYDICOM_ERRORS as exc:
        why = f"no transaction with its objects ({type(exc).__name__})"
        raise _WrongRequestError(INVALID_ARGUMENT, why) from None
    if not objects or not all(_UID.fullmatch(one) for one in (uid, *(one for pair in objects for one in pair))):
        raise _WrongRequestError(INVALID_ARGUMENT, "no objects, or what is no UID")
    if len(objects) > MAX_OBJECTS:
        raise _WrongRequestError(RESOURCE_LIMITATION, f"{len(objects)} objects, at most {MAX_OBJECTS} are taken")
    return Transaction(aet, uid, objects, time.time())


def _read_transactions(folder: Path) -> list[Transaction]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            objects = tuple((str(one), str(other)) for one, other in content["objects"])
            found.append(Transaction(content["aet"], content["uid"], objects, float(content["accepted_at"])))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            log.error("%s cannot be read, so a device gets no report: %s", path, type(exc).__name__)
    return found
