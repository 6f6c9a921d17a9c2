"""Checks that the stream can write where it must, before anything starts."""

import tempfile
from pathlib import Path

from schemas.errors import SettingsError
from streaming.settings import StreamSettings


def check_folders(settings: StreamSettings) -> None:
    """Write a file in each folder that the queries write to, and remove it again.

    Raises
    ------
    SettingsError
        One line with the folder, what the system said, and the setting.
    """
    _check(settings.checkpoints_folder, "XRAY_HOME")
    _check(settings.logs_folder, "XRAY_HOME")
    if "://" not in settings.tables_folder:  # what is elsewhere, only Spark can tell
        tables = Path(settings.tables_folder)
        _check(tables, "XRAY_ARCHIVE__FOLDER")
        for log in tables.glob("*/_delta_log"):
            _check(log, "XRAY_ARCHIVE__FOLDER")


def _check(folder: Path, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as exc:
        msg = f"cannot write to {folder}: {exc.strerror}. Give it to the user of the stream, or change {setting}."
        raise SettingsError(msg) from exc
