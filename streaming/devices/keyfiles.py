"""Files with a secret key: 32 random bytes that only their owner may read."""

import os
import secrets
import stat
import tempfile
from pathlib import Path

from schemas.errors import SettingsError
from schemas.folders import sync_folder

KEY_BYTES = 32

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_key(file: Path, setting: str, *, make: bool = True) -> bytes:
    """Read a key.

    Parameters
    ----------
    file : Path
        Where it is.
    setting : str
        The variable that says so, for errors.
    make : bool
        Whether a key is made where there is none; it is on disk before this returns. Of several processes that make it
        at once all get the same one.

    Returns
    -------
    bytes
        32 of them.

    Raises
    ------
    SettingsError
        It cannot be read or made, others than its owner may read or write it, or it has another length.
    """
    try:
        if make and not file.exists():
            _make_key(file)
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            key = stream.read(KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as exc:
        msg = f"{setting}: the key in {file} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc
    if status.st_mode & _OTHERS:
        msg = f"{setting}: {file} may be used by others than its owner; 'chmod 600 {file}', if nobody else has read it"
        raise SettingsError(msg)
    if len(key) != KEY_BYTES:
        msg = f"{setting}: {file} is no key: expected a file of {KEY_BYTES} bytes. Put the key back from its copy."
        raise SettingsError(msg)
    return key


def _make_key(file: Path) -> None:
    """Write it aside and link it: nobody ever reads half a key, and whoever comes second leaves the first one's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-") as aside:  # for its owner alone
        aside.write(secrets.token_bytes(KEY_BYTES))
        aside.flush()
        os.fsync(aside.fileno())
        try:
            os.link(aside.name, file)
        except FileExistsError:
            return
    sync_folder(file.parent)
