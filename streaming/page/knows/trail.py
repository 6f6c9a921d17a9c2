"""The audit trail: who asked for what, when, and what came of it; one line of JSON each, on the disk before it is done.

Lines are only ever appended, by any number of processes. An action is written down before it is begun and once more
when it has ended: one without an answer was begun, and nobody knows what came of it.
"""

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import XrayError
from schemas.folders import make_folder, sync_folder

log = logging.getLogger(__name__)

_TAIL_BYTES = 1024 * 1024


class TrailError(XrayError):
    """The trail cannot be written or read; what was to be written down is not to be done."""


@dataclass(frozen=True)
class Entry:
    """One action.

    Parameters
    ----------
    asked_at : str
        ISO 8601, UTC.
    who : str
        Who asked for it, as the page knows them.
    action : str
        ``"promote"``, ``"roll_back"`` or ``"redrive"``.
    arguments : Mapping of str to str
        What it was asked for with.
    answer : str
        What came of it; empty where nothing is known.
    done : bool or None
        Whether it was done; None where nothing is known.
    action_id : str
        Joins the two lines of one action.
    """

    asked_at: str
    who: str
    action: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    done: bool | None = None
    action_id: str = ""


class Trail:
    """The file of the trail.

    Parameters
    ----------
    path : Path
        Outside of the page's own store; it is made where it is missing, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, who: str, action: str, arguments: Mapping[str, str]) -> str:
        """Write down that something is asked for, before it is begun.

        Returns
        -------
        str
            The action's id, for `answer`.

        Raises
        ------
        TrailError
            It is not on the disk: do not do it.
        """
        action_id = uuid.uuid4().hex
        self._append(
            {"at": _now(), "id": action_id, "who": who, "action": action, "arguments": dict(arguments), "answer": None}
        )
        return action_id

    def answer(self, action_id: str, *, done: bool, text: str) -> None:
        """Write down what came of an action.

        Raises
        ------
        TrailError
            It is not on the disk.
        """
        self._append({"at": _now(), "id": action_id, "done": done, "answer": text})

    def list_newest(self, limit: int = 50) -> list[Entry]:
        """List the newest actions, newest first, of the last megabyte of the file; a damaged line is left out.

        Raises
        ------
        TrailError
            The file cannot be read.
        """
        asked: dict[str, Entry] = {}
        for line in self._read_tail():
            try:
                said = json.loads(line)
                if "action" in said:
                    arguments = {str(name): str(value) for name, value in said["arguments"].items()}
                    entry = Entry(said["at"], said["who"], said["action"], arguments, action_id=said["id"])
                    asked[entry.action_id] = entry
                elif (begun := asked.get(said["id"])) is not None:
                    asked[begun.action_id] = Entry(
                        begun.asked_at,
                        begun.who,
                        begun.action,
                        begun.arguments,
                        str(said["answer"]),
                        bool(said["done"]),
                        begun.action_id,
                    )
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                log.warning("a line of %s is damaged and left out: %s", self.path, type(exc).__name__)
        return list(reversed(asked.values()))[:limit]

    def _read_tail(self) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                begin = max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0)
                file.seek(begin)
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        except OSError as exc:
            msg = f"the audit trail {self.path} cannot be read: {exc.strerror}"
            raise TrailError(msg) from exc
        return [line for line in (lines[1:] if begin else lines) if line.strip()]

    def _append(self, said: Mapping[str, Any]) -> None:
        line = json.dumps(said, ensure_ascii=False).encode() + b"\n"
        try:
            is_new = not self.path.exists()
            if is_new:
                make_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a line that a crash cut off must not swallow this one
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as exc:
            msg = f"the audit trail {self.path} cannot be written: {exc.strerror}. Nothing is done without it"
            raise TrailError(msg) from exc


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
