"""The folders that the stream writes to, looked over before anything starts."""

import shutil
import tempfile
from pathlib import Path

from schemas.errors import SettingsError
from streaming.settings import StreamSettings


def check_folders(settings: StreamSettings) -> None:
    """Write a file in each folder that SCORE writes to, and remove it again.

    The tables' folder is the archive's business: where it cannot be written, predictions go on.

    Raises
    ------
    SettingsError
        One line with the folder, what the system said, and the setting.
    """
    check_folder(settings.checkpoints_folder, "XRAY_HOME")
    check_folder(settings.logs_folder, "XRAY_HOME")


def check_folder(folder: Path, setting: str) -> None:
    """Write a file in a folder, which is made where it is missing, and remove it again.

    Parameters
    ----------
    folder : Path
        Where something will be written later.
    setting : str
        What to change where that is not possible.

    Raises
    ------
    SettingsError
        One line with the folder, what the system said, and the setting.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as exc:
        msg = f"cannot write to {folder}: {exc.strerror}. Give this user leave to write there, or change {setting}."
        raise SettingsError(msg) from exc


def empty_scratch(folder: Path) -> None:
    """Make a folder for its owner alone, and remove what is in it: a stream that was killed has left it there.

    Parameters
    ----------
    folder : Path
        Of nobody else. It may be a link to another disk.

    Raises
    ------
    SettingsError
        It cannot be made or emptied.
    """
    try:
        make_scratch(folder)
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
    except OSError as exc:
        msg = f"cannot empty {folder}: {exc.strerror}. It is the stream's own: remove what is in it."
        raise SettingsError(msg) from exc


def make_own_folder(folder: Path, setting: str) -> None:
    """Make a folder for its owner alone, where objects are that may name patients.

    Parameters
    ----------
    folder : Path
        It may be there.
    setting : str
        What to change where that is not possible.

    Raises
    ------
    SettingsError
        It cannot be made.
    """
    try:
        make_scratch(folder)
    except OSError as exc:
        msg = f"{setting}: {folder} cannot be made: {exc.strerror}"
        raise SettingsError(msg) from exc


def make_scratch(folder: Path) -> Path:
    """Make a folder for its owner alone; rows that wait on disk in it may hold patients' images.

    Returns
    -------
    Path
        The same.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
