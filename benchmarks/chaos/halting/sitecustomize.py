"""On the path of an archive's or a gateway's process, it halts it at a point of its work, to be killed or frozen there.

The product has no hook for this: functions are wrapped as their modules are imported. A point is asked for with a file
of its name in the folder that ``CHAOS_HALTS`` names; once the process stands there, the file is named ``POINT.halted``.
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("CHAOS_HALTS")
_LONGEST_S = 300.0

# Point: module, function in it, and whether it halts before the function or behind it.
OF_ARCHIVE = {
    "read": ("streaming.archive.archivetable", "ArchiveTable.append", "before"),
    "ids-checked": ("streaming.archive.archivetable", "append_rows", "before"),
    "appended": ("streaming.archive.archivetable", "append_rows", "behind"),
    "group-untold": ("streaming.archive.outcomereader", "OutcomeReader.tell_group", "before"),
    "join-planned": ("streaming.archive.upkeep", "join_files", "before"),
    "joined": ("streaming.archive.upkeep", "join_files", "behind"),
    "log-full": ("streaming.archive.upkeep", "clean_log", "before"),
    "log-checkpointed": ("deltalake.table", "DeltaTable.cleanup_metadata", "before"),
    "log-cleaned": ("streaming.archive.upkeep", "clean_log", "behind"),
    "dead-files-found": ("streaming.archive.upkeep", "remove_dead_files", "before"),
    "dead-files-removed": ("streaming.archive.upkeep", "remove_dead_files", "behind"),
    "claim-begun": ("streaming.archive.archivetable", "ArchiveTable.claim", "before"),
    "table-made": ("streaming.archive.archivetable", "create_table", "behind"),
    "claimed": ("streaming.archive.archivetable", "ArchiveTable._read_places", "before"),
    "places-taken-over": ("streaming.archive.archivetable", "ArchiveTable._commit", "before"),
    "claim-done": ("streaming.archive.archivetable", "ArchiveTable.claim", "behind"),
}

# In the order in which an object comes by them; the last four are of the spool's drain.
OF_GATEWAY = {
    "object-received": ("streaming.gateway.intake", "Intake._prepare", "before"),
    "original-unkept": ("streaming.gateway.keeping.originals", "Originals.keep", "before"),
    "original-kept": ("streaming.gateway.keeping.originals", "Originals.keep", "behind"),
    "crosswalk-noted": ("streaming.devices.crosswalk", "Crosswalk.note", "behind"),
    "unpublished": ("streaming.gateway.publisher", "Publisher.publish", "before"),
    "confirmed": ("streaming.gateway.publisher", "Publisher.publish", "behind"),
    "receipt-noted": ("streaming.gateway.receipts.receiptbook", "ReceiptBook.note_accepted", "behind"),
    "unspooled": ("streaming.gateway.keeping.spool", "Spool.put", "before"),
    "spool-written": ("streaming.gateway.keeping.ownfolder", "OwnFolder.write", "behind"),
    "spool-unsynced": ("streaming.gateway.keeping.ownfolder", "OwnFolder.sync", "before"),
    "spooled": ("streaming.gateway.keeping.spool", "Spool.put", "behind"),
    "drain-began": ("streaming.gateway.keeping.spool", "SpoolDrain._turn", "before"),
    "drain-read": ("streaming.gateway.keeping.spool", "SpoolDrain._read_window", "behind"),
    "drain-confirmed": ("streaming.gateway.keeping.spool", "Spool.remove", "before"),
    "drain-removed": ("streaming.gateway.keeping.spool", "Spool.remove", "behind"),
}

# Upkeep that is due every hour or hundred commits is due at once.
BRISK = {
    "streaming.archive.upkeep": {"_LOOK_EVERY": 1, "_CHECKPOINT_EVERY": 4, "_TIDY_S": 1.0, "_VACUUM_S": 1.0},
}


_HOMES = {*BRISK, *(home for home, _, _ in (*OF_ARCHIVE.values(), *OF_GATEWAY.values()))}


def halt(point: str) -> None:
    """Stand still where somebody has asked for it."""
    asked = Path(FOLDER or "", point)
    try:
        asked.rename(asked.with_suffix(".halted"))
    except FileNotFoundError:
        return
    end = time.monotonic() + _LONGEST_S
    while time.monotonic() < end and not asked.with_suffix(".go-on").exists():
        time.sleep(0.01)


def _wrap(function: Callable[..., Any], point: str, when: str) -> Callable[..., Any]:
    @wraps(function)
    def halting(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            halt(point)
        found = function(*arguments, **options)
        if when == "behind":
            halt(point)
        return found

    return halting


def _prepare(module: ModuleType) -> None:
    for name, value in BRISK.get(module.__name__, {}).items():
        setattr(module, name, value)
    for point, (home, path, when) in {**OF_ARCHIVE, **OF_GATEWAY}.items():
        if home == module.__name__:
            *owners, name = path.split(".")
            owner: Any = module
            for one in owners:
                owner = getattr(owner, one)
            setattr(owner, name, _wrap(getattr(owner, name), point, when))


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _HOMES:
            return None
        found = PathFinder.find_spec(name, path)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found


class _Loader(Loader):
    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _prepare(module)


if FOLDER and ("streaming.archive" in sys.orig_argv or sys.orig_argv[2:4] == ["xray", "gateway"]):
    if "CHAOS_UNLOCKED" in os.environ:
        fcntl.flock = lambda *_: None  # as on an object store
    sys.meta_path.insert(0, _Finder())
