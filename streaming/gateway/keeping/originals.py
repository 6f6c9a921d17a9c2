"""Whole objects as they came, for Storage Commitment: a device deletes its copy because one is here.

An object's path follows from what it is, so there is no index that could say otherwise::

    <first 3 digits of A>/<A>-<B>-<SOP class UID>.dcm      A: SHA-256 of the SOP Instance UID, B: of the file's bytes

Other bytes under the same UID lie beside it; the same ones are kept once. Nothing here is ever removed by a gateway.
"""

import hashlib
import os
import re
from enum import Enum
from pathlib import Path

from schemas.folders import sync_folder
from streaming.gateway.keeping.ownfolder import OwnFolder, discard, make_folder
from streaming.gateway.refusals import Cause, Refusal

SETTING = "XRAY_GATEWAY__KEEP_ORIGINALS"
_UID = re.compile(r"[0-9.]{1,64}")
_SHARD = 3
"""Digits: 4,096 folders, so that a million objects are some 250 names in each."""
_CHUNK = 1024 * 1024


class Found(Enum):
    """What is known of an object."""

    WHOLE = "whole"
    MISSING = "missing"
    OTHER_CLASS = "other_class"
    DAMAGED = "damaged"


class Originals:
    """Keeps objects, several at once, and says which are there and whole.

    Parameters
    ----------
    folder : Path
        Of this gateway alone; it is made where it is missing. The files in it name patients.

    Raises
    ------
    SettingsError
        The folder cannot be used, or another gateway has it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = OwnFolder(folder, SETTING)

    def close(self) -> None:
        """Let another gateway have the folder."""
        self._folder.close()

    @property
    def folder(self) -> OwnFolder:
        """Where they are."""
        return self._folder

    def keep(self, sop_class_uid: str, sop_instance_uid: str, payload: bytes) -> None:
        """Keep an object; it is on the disk when this returns.

        Parameters
        ----------
        sop_class_uid, sop_instance_uid : str
            What it is.
        payload : bytes
            The file as it came.

        Raises
        ------
        Refusal
            ``KEEP_FAILED``: the disk did not take it. ``UNREADABLE``: these are no UIDs.
        """
        if not _UID.fullmatch(sop_class_uid) or not _UID.fullmatch(sop_instance_uid):
            raise Refusal(Cause.UNREADABLE, "its SOP Class or Instance UID is none")
        digest = hashlib.sha256(payload).hexdigest()
        instance = _name(sop_instance_uid)
        path = self._shard(instance) / f"{instance}-{digest}-{sop_class_uid}.dcm"
        try:
            if not _is_whole(path):
                self._write(path, payload)
            sync_folder(path.parent)  # where another thread has just written it, that may not be done yet
        except OSError as exc:
            raise Refusal(Cause.KEEP_FAILED, f"the original cannot be kept: {exc.strerror}") from exc

    def look_up(self, sop_class_uid: str, sop_instance_uid: str) -> Found:
        """Read an object and say whether it is there and whole; of several under its UID, whether all are.

        Returns
        -------
        Found
            ``OTHER_CLASS`` where the UID is there with another SOP class only; ``DAMAGED`` where a file has other bytes
            than were kept, or cannot be read.
        """
        instance = _name(sop_instance_uid)
        paths = list(self._shard(instance).glob(f"{instance}-*.dcm"))
        own = [path for path in paths if path.name.split("-")[2] == f"{sop_class_uid}.dcm"]
        if not own:
            return Found.OTHER_CLASS if paths else Found.MISSING
        return Found.WHOLE if all(map(_is_whole, own)) else Found.DAMAGED

    def _shard(self, instance: str) -> Path:
        return self._folder.path / instance[:_SHARD]

    def _write(self, path: Path, payload: bytes) -> None:
        make_folder(path.parent)
        written = self._folder.write([payload])
        try:
            os.rename(written, path)
        except OSError:
            discard(written)
            raise


def _name(sop_instance_uid: str) -> str:
    return hashlib.sha256(sop_instance_uid.encode()).hexdigest()


def _is_whole(path: Path) -> bool:
    """Tell whether a file can be read and has the bytes that its name says."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return False
    return found.hexdigest() == path.name.split("-")[1]
