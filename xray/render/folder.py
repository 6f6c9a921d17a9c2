"""The folder that outputs go into: names that never meet, and no file of somebody else's that is written over."""

import unicodedata
from pathlib import Path

from schemas.errors import JobError, SettingsError
from streaming.folders import check_folder
from xray.render.rendering import MADE_BY

PAGE_FILE = "index.html"
SHEET_STEM = "contact-sheet"

_HEAD_BYTES = 1024
_MOST_NAME_BYTES = 100
"""Of a file's name in an output's name: with what is added, far below the 255 that file systems take."""


class OutFolder:
    """Where outputs go.

    Parameters
    ----------
    path : Path
        It is made where it is missing.

    Raises
    ------
    SettingsError
        Nothing can be written there, or it has a page or contact sheet that this program did not make.
    """

    def __init__(self, path: Path) -> None:
        check_folder(path, "--out")
        self.path = path
        self._taken: dict[str, object] = {}
        for name in (PAGE_FILE, sheet_name(1)):
            if _is_foreign(path / name):
                msg = f"{path} has a file {name} that 'xray render' did not make; name another folder with --out"
                raise SettingsError(msg)

    def take_base(self, image_id: str, owner: object) -> str:
        """Give what the names of one file's outputs begin with.

        Parameters
        ----------
        image_id : str
            Names the file by its content too, so that the same file gets the same names each time.
        owner : object
            Tells the file from all others of this run; the same one gets the same names again.

        Returns
        -------
        str
            Letters, digits, ``.``, ``_`` and ``-`` alone. File systems may take upper for lower case, so no two names
            differ in that alone.
        """
        wanted = _make_safe(image_id)
        base, number = wanted, 1
        while self._taken.setdefault(_fold(base), owner) != owner:
            number += 1
            base = f"{wanted}-{number}"
        return base

    def write(self, name: str, content: bytes) -> None:
        """Write one output; an earlier one of that name is replaced.

        Raises
        ------
        JobError
            It cannot be written, or a file of that name is somebody else's.
        """
        path = self.path / name
        if _is_foreign(path):
            msg = f"{path} is there, and 'xray render' did not make it; name another folder with --out"
            raise JobError(msg)
        try:
            path.write_bytes(content)
        except OSError as exc:
            msg = f"cannot write {path}: {exc.strerror}"
            raise JobError(msg) from exc

    def read(self, name: str) -> bytes:
        """Read an output back."""
        return (self.path / name).read_bytes()

    def remove_sheets(self) -> None:
        """Remove the contact sheets of an earlier run, which may have had more files."""
        for path in self.path.glob(f"{SHEET_STEM}*.png"):
            if not _is_foreign(path):
                path.unlink()


def is_output(path: Path) -> bool:
    """Tell whether a file has the mark of this program's outputs; one that cannot be read has not."""
    try:
        with path.open("rb") as stream:
            return MADE_BY.encode() in stream.read(_HEAD_BYTES)
    except OSError:
        return False


def _is_foreign(path: Path) -> bool:
    """Tell whether there is something of that name that is no output."""
    return path.exists() and not is_output(path)


def sheet_name(number: int) -> str:
    """Name a contact sheet, from 1 on."""
    return f"{SHEET_STEM}.png" if number == 1 else f"{SHEET_STEM}-{number}.png"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _make_safe(text: str) -> str:
    """Keep what any file system, shell and address takes; the end, which has the content's hash, is kept whole."""
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in text).lstrip(".-") or "_"
    head, hyphen, tail = kept.rpartition("-")
    return head.encode()[:_MOST_NAME_BYTES].decode(errors="ignore") + hyphen + tail
