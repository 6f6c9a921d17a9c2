"""Checks that the stream can write where it must, before anything starts."""

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
