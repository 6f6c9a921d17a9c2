"""Writes the bundle: every part within a deadline, in one file for its owner alone."""

import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from schemas.errors import SettingsError, XrayError
from streaming.settings import StreamSettings
from xray.bounded import Bounded
from xray.support.masking import Masking
from xray.support.parts import (
    ask_doctor,
    ask_status,
    find_secrets,
    list_settings,
    list_versions,
    read_histories,
    read_logs,
    read_metrics,
    read_topics,
    to_text,
)

WITHIN_S = 60.0
"""For all parts, which are made at the same time."""
_DOCTOR_S = 30.0
_EPOCH = (1980, 1, 1, 0, 0, 0)
_README = """What is in this file, for a report of a fault.

versions.json   of this, Python, Java, the system and every package
settings.json   every setting, where it is from; secrets are asterisks
doctor.json     what 'xray doctor' found
status.json     what 'xray status' shows: topics with numbers of messages, the champion, the spool
metrics.json    metrics and health of every part; what people named is a pseudonym
topics.json     configuration of the topics
tables.json     when the tables were changed by what; no row
logs/           last lines of the logs

In logs the words of the programs themselves are kept, and numbers that say of what they are. All else, such as ids,
names and paths, is a pseudonym: ~ and eight digits, the same for the same text in this file alone. Nobody can find out
from it what it stands for. There is no image, no result and no row in here. Look through it before you send it all the
same.
"""


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Parameters
    ----------
    path : Path
        The file.
    parts : tuple of str
        Names of the files in it.
    missing : Mapping of str to str
        Parts that could not be had, and why, as a line of a log is shown.
    """

    path: Path
    parts: tuple[str, ...]
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {"file": str(self.path), "parts": list(self.parts), "missing": dict(self.missing)}


def write_bundle(settings: StreamSettings, path: Path, *, within_s: float = WITHIN_S) -> Bundle:
    """Gather every part and write the bundle; nothing else is changed.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    path : Path
        A file that is not there yet; only its owner can read it.
    within_s : float
        Seconds for all parts; one that takes longer is left out, and said to be.

    Raises
    ------
    SettingsError
        The file is there already, or cannot be written.
    """
    masking = Masking(find_secrets(settings))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as exc:
        msg = f"{path} is there already; name another file"
        raise SettingsError(msg) from exc
    except OSError as exc:
        msg = f"{path} cannot be written: {exc.strerror}. Name another file."
        raise SettingsError(msg) from exc
    texts, missing = _gather(settings, masking, within_s)
    texts |= {"README.txt": _README, "missing.json": to_text(missing)}
    try:
        with os.fdopen(descriptor, "wb") as stream:
            # Once more over all of it: no part may have a secret in it, whatever said it.
            _write(stream, {name: masking.mask_secrets(text) for name, text in texts.items()})
    except OSError as exc:
        path.unlink(missing_ok=True)  # half of a bundle helps nobody
        msg = f"{path} cannot be written: {exc.strerror}. Make room there, or name another file."
        raise SettingsError(msg) from exc
    return Bundle(path, tuple(sorted(texts)), missing)


def _write(stream: BinaryIO, texts: Mapping[str, str]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in sorted(texts.items()):
            bundle.writestr(_entry(name), text)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
    return entry


def _gather(settings: StreamSettings, masking: Masking, within_s: float) -> tuple[dict[str, str], dict[str, str]]:
    until = time.monotonic() + within_s
    work: dict[str, Callable[[], Any]] = {
        "versions.json": list_versions,
        "settings.json": partial(list_settings, settings, masking),
        "doctor.json": partial(ask_doctor, settings, masking, min(_DOCTOR_S, within_s)),
        "status.json": partial(ask_status, settings, masking),
        "metrics.json": partial(read_metrics, settings, masking),
        "topics.json": partial(read_topics, settings, masking),
        "tables.json": partial(read_histories, settings, masking),
        "logs": partial(_read_logs, settings, masking),
    }
    running = {name: Bounded(f"support-{name}", one) for name, one in work.items()}
    texts: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name, one in running.items():
        try:
            value = one.await_end(until)
        except TimeoutError:
            missing[name] = f"not there within {within_s:g} s"
        except XrayError as exc:
            missing[name] = masking.mask_line(f"{type(exc).__name__}: {exc}")
        except (
            Exception
        ) as exc:  # a part that fails is what the bundle may be about: the others are wanted all the more
            missing[name] = type(exc).__name__  # and not its words, which may quote what it read
        else:
            texts |= value if name == "logs" else {name: to_text(value)}
    return texts, missing


def _read_logs(settings: StreamSettings, masking: Masking) -> dict[str, str]:
    return {f"logs/{name}": text for name, text in read_logs(settings, masking)}
