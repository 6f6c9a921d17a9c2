"""Pictures that were made once: the last ones in memory, thumbnails on disk too where that is asked for.

What is kept on disk has no name in it: pixels of at most 256, without any element or text of the file, under the
SHA-256 of the published bytes. Images whose sender says that text is burned in are not kept.
"""

import hashlib
import io
import os
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from PIL import Image

from sparkdl.image.viewer import WEBP_TYPE, View
from streaming.page.pictures.picture import Picture

_NAME = re.compile(r"[0-9a-f]{64}\.webp")
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_ETAG_CHARS = 32


def to_picture(view: View) -> Picture:
    """Give a view its etag."""
    etag = hashlib.sha256(view.content).hexdigest()[:_ETAG_CHARS]
    return Picture(view.content, view.media_type, etag, view.width, view.height, view.bits, view.low, view.high)


class PictureCache:
    """The pictures last used, bounded by their bytes; safe to use by several threads.

    Parameters
    ----------
    max_bytes : int
        Of all pictures; the least recently used go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Picture | None:
        """Give a picture that is there."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def put(self, key: str, picture: Picture) -> None:
        """Keep a picture."""
        with self._lock:
            before = self._pictures.pop(key, None)
            self._bytes += len(picture.content) - (len(before.content) if before else 0)
            self._pictures[key] = picture
            while self._bytes > self._max_bytes:
                _, gone = self._pictures.popitem(last=False)
                self._bytes -= len(gone.content)


class ThumbnailFolder:
    """Thumbnails on disk, bounded by their bytes: the oldest go first. Only files of its own naming are touched.

    Parameters
    ----------
    folder : Path
        For its owner alone; made where it is missing.
    max_bytes : int
        Of all thumbnails.

    Raises
    ------
    OSError
        The folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        folder.chmod(_FOLDER_MODE)
        for left in folder.glob("*.webp.new"):
            left.unlink(missing_ok=True)
        found = [(path, path.stat()) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        found.sort(key=lambda one: one[1].st_mtime_ns)
        self._sizes = OrderedDict((path.stem, status.st_size) for path, status in found)
        self._bytes = sum(self._sizes.values())
        self._drop_oldest()

    def get(self, sha256: str) -> Picture | None:
        """Read a thumbnail; None where there is none, or it is damaged."""
        with self._lock:
            if sha256 not in self._sizes:
                return None
        try:
            content = self._path(sha256).read_bytes()
            with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
                return to_picture(View(content, WEBP_TYPE, image.width, image.height))
        except (OSError, SyntaxError, ValueError):
            return None

    def put(self, sha256: str, picture: Picture) -> None:
        """Keep a thumbnail, whole or not at all; one that is there stays as old as it is.

        Raises
        ------
        OSError
            It cannot be written.
        """
        with self._lock:
            if sha256 in self._sizes:
                return
            written = self._path(sha256).with_suffix(".webp.new")
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE), "wb") as file:
                file.write(picture.content)
            written.replace(self._path(sha256))
            self._sizes[sha256] = len(picture.content)
            self._bytes += len(picture.content)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self._bytes > self._max_bytes and self._sizes:
            name, size = self._sizes.popitem(last=False)
            self._bytes -= size
            with suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.webp"
