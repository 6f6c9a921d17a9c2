"""The state folder and the other folders that settings name: room, rights, and who else may look in."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from schemas.objectstore import local_folder
from streaming.settings import ENV_FILE_NAME, StreamSettings, find_env_file
from xray.doctor.finding import Finding, Verdict

_LITTLE_BYTES = 2_000_000_000
"""A day's outcomes of a busy hospital and the logs fit in it."""
_NO_ROOM_BYTES = 200_000_000
_FEW_NODES = 0.02
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class StateFolder:
    """A folder that a program writes to.

    Parameters
    ----------
    path : Path
        It may be not there yet.
    setting : str
        What to change for another one.
    floor_bytes : int
        Room below which its program writes nothing any more.
    is_private : bool
        Whether patients' data or keys may be in it, so that nobody else may look in.
    """

    path: Path
    setting: str = "XRAY_HOME"
    floor_bytes: int = _NO_ROOM_BYTES
    is_private: bool = False


def list_folders(settings: StreamSettings) -> list[StateFolder]:
    """List the folders on disks that the product writes to."""
    gateway, home = settings.gateway, settings.home
    tables = local_folder(settings.tables_folder)
    found = [
        StateFolder(settings.checkpoints_folder),
        StateFolder(settings.logs_folder),
        StateFolder(settings.models_folder),
        StateFolder(settings.scratch_folder, is_private=True),
        StateFolder(settings.gateway_folder, is_private=True),
        StateFolder(settings.alerts_folder, "XRAY_ALERTS__FOLDER", is_private=True),
        StateFolder(settings.reporting_folder, "XRAY_REPORTS__FOLDER"),
        StateFolder(settings.page_folder),
        StateFolder(settings.jars_folder, "XRAY_JARS"),
        StateFolder(home / "kafka"),
    ]
    if tables is not None:
        found.append(StateFolder(tables, "XRAY_ARCHIVE__FOLDER", settings.archive.min_free_bytes))
    if gateway.spool is not None:
        found.append(StateFolder(gateway.spool, "XRAY_GATEWAY__SPOOL", gateway.spool_min_free_bytes, is_private=True))
    if gateway.keep_originals is not None:
        found.append(StateFolder(gateway.keep_originals, "XRAY_GATEWAY__KEEP_ORIGINALS", is_private=True))
    if settings.page.thumbnails is not None:
        found.append(StateFolder(settings.page.thumbnails, "XRAY_PAGE__THUMBNAILS", is_private=True))
    return found


def check_disks(settings: StreamSettings) -> Iterator[Finding]:
    """Look at the room on the disk of each folder, and whether this user may write there; nothing is written."""
    for folder in list_folders(settings):
        yield from _check_disk(folder)


def _check_disk(folder: StateFolder) -> Iterator[Finding]:
    there = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.exists())
    if not there.is_dir():
        advice = f"Move it away, or change {folder.setting}."
        yield Finding("disks", Verdict.FAULT, f"{there} is a file, wanted a folder", advice)
        return
    if not os.access(there, os.W_OK | os.X_OK):
        advice = f"Give the user that runs the product leave to write there, or change {folder.setting}."
        # Whoever asks may be another user than the one that runs the programs.
        yield Finding("disks", Verdict.FAULT, f"this user may not write to {there}", advice)
        return
    try:
        free, nodes = shutil.disk_usage(there).free, os.statvfs(there)
    except OSError as exc:
        advice = "Look at that disk and its mount."
        yield Finding("disks", Verdict.FAULT, f"{folder.path} cannot be looked at: {exc.strerror}", advice)
        return
    room = f"{folder.path}: {decimal(free)} free"
    verdict = _judge_room(free, folder.floor_bytes)
    if verdict is not Verdict.OK:
        room += f", at {decimal(folder.floor_bytes)} its program stops"
        yield Finding("disks", verdict, room, f"Make room on that disk, or change {folder.setting}.")
    elif nodes.f_files and nodes.f_favail < _FEW_NODES * nodes.f_files:
        advice = "Remove small files there, or make a file system with more inodes."
        yield Finding("disks", Verdict.WARNING, f"{folder.path}: {nodes.f_favail} files more can be made", advice)
    else:
        yield Finding("disks", Verdict.OK, room)


def _judge_room(free: int, floor: int) -> Verdict:
    if free <= floor:
        return Verdict.FAULT
    return Verdict.WARNING if free <= max(2 * floor, _LITTLE_BYTES) else Verdict.OK


def check_modes(settings: StreamSettings) -> Iterator[Finding]:
    """Look at who else may read the state folder and what in it is for its owner alone."""
    private = [folder.path for folder in list_folders(settings) if folder.is_private]
    files = set(_list_private_files(settings))
    faults = [
        finding
        for path in sorted({*private, *files})
        if (finding := _check_private(path, is_file=path in files)) is not None
    ]
    yield from faults
    home = _check_home(settings.home)
    if home is not None:
        yield home
    if not faults and home is None:
        yield Finding("modes", Verdict.OK, "what is for its owner alone is open to nobody else")


def _list_private_files(settings: StreamSettings) -> Iterator[Path]:
    """List the files for their owner alone: settings, keys, and ledgers with pseudonyms or findings."""
    keys = (settings.pseudonyms_key, settings.crosswalk_key, settings.gateway.crosswalk)
    pems = (settings.kafka.ssl_key_location, settings.gateway.tls_key, settings.page.tls_key, settings.reports.tls_key)
    settings_files = (find_env_file(), settings.home / ENV_FILE_NAME)
    yield from (path for path in (*settings_files, *keys, *pems, settings.page_trail) if path is not None)
    for folder in (settings.reporting_folder, settings.page_folder):
        yield from folder.glob("*.db")


def _check_private(path: Path, *, is_file: bool) -> Finding | None:
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or another user's altogether
        return None
    if not mode & _OTHERS:
        return None
    wanted = "600" if is_file else "700"
    found = f"{path} has mode {stat.S_IMODE(mode):03o}, wanted {wanted}: others may use it"
    return Finding("modes", Verdict.FAULT, found, f"chmod {wanted} {path}")


def _check_home(home: Path) -> Finding | None:
    try:
        found = home.stat()
    except FileNotFoundError:
        return Finding(
            "modes", Verdict.WARNING, f"{home} is not there yet", "The first command that needs it makes it."
        )
    except OSError as exc:
        return Finding("modes", Verdict.FAULT, f"{home}: {exc.strerror}", "Change XRAY_HOME, or its parents' rights.")
    if found.st_uid != os.geteuid():
        advice = "Run commands as the user that runs the product, or name another XRAY_HOME."
        return Finding("modes", Verdict.WARNING, f"{home} belongs to user {found.st_uid}, not to this one", advice)
    if found.st_mode & _OTHERS:
        text = f"{home} has mode {stat.S_IMODE(found.st_mode):03o}: others may look into models, tables and logs"
        return Finding("modes", Verdict.WARNING, text, f"chmod 700 {home}, unless they are meant to.")
    return None
