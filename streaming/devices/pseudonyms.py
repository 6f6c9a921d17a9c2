"""Pseudonyms: what takes the place of a patient's id or a UID, always the same with the same key.

A hash without a key would not do: who has a list of the patient ids of a hospital finds each one's hash in a second.

References
----------
DICOM PS3.5 B.2 (UIDs under 2.25), PS3.15 E.3.6 (dates).
"""

import hashlib
import hmac
import os
from pathlib import Path

from schemas.errors import SettingsError
from schemas.folders import sync_folder
from streaming.devices.keyfiles import read_key

KEY_SETTING = "XRAY_GATEWAY__DEIDENTIFY_KEY"
FINGERPRINT_FILE = "pseudonyms.fingerprint"

_UID_BYTES = 16  # as of a UUID
_IDENTIFIER_CHARS = 16  # of VR SH, which an accession number has
_MOST_DAYS = 3650
"""Ten years: enough that the year tells nothing, few enough that nobody's images are from before X-rays."""


class Pseudonyms:
    """Makes pseudonyms with one key.

    Parameters
    ----------
    file : Path
        32 random bytes; made where it is missing. Whoever has it can tell whose pseudonym is whose.

    Raises
    ------
    SettingsError
        The key cannot be read, others may read it, or it is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._key = read_key(file, KEY_SETTING)

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart, and says nothing of either: 16 hexadecimal characters."""
        return self._hash("fingerprint", "").hex()[:16]

    def uid(self, text: str) -> str:
        """Give the pseudonym of a UID: one under 2.25, of at most 44 characters."""
        return f"2.25.{int.from_bytes(self._hash('uid', text)[:_UID_BYTES], 'big')}"

    def identifier(self, text: str) -> str:
        """Give the pseudonym of a patient's id, an accession number or the like: 16 hexadecimal characters."""
        return self._hash("identifier", text).hex()[:_IDENTIFIER_CHARS]

    def days(self, patient: str) -> int:
        """Give by how many days the dates of a patient move, -1 to -3650: never forward, so into no future."""
        return -1 - int.from_bytes(self._hash("days", patient)[:8], "big") % _MOST_DAYS

    def check_fingerprint(self, folder: Path) -> None:
        """Refuse another key than the one that was used first: every event id would change.

        Parameters
        ----------
        folder : Path
            Where the first key's fingerprint is kept; it is written there where it is missing.

        Raises
        ------
        SettingsError
            The key is another one, or the fingerprint cannot be read or written.
        """
        file = folder / FINGERPRINT_FILE
        try:
            known = self._keep_fingerprint(file)
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is no text"
            msg = f"{file} cannot be used: {why}. It holds the fingerprint of the key that {KEY_SETTING} names."
            raise SettingsError(msg) from exc
        if known != self.fingerprint:
            msg = (
                f"{KEY_SETTING}: {self._file} is another key than the one that was used before, by which images and "
                f"patients are known. Put that key back. If it is lost, remove {file}: from then on every image that "
                "is sent again counts as a new one, and every patient as another"
            )
            raise SettingsError(msg)

    def _keep_fingerprint(self, file: Path) -> str:
        """Give the one that is kept; keep this key's where there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}-{os.getpid()}")
        if not file.exists():
            with aside.open("w", encoding="ascii") as stream:
                stream.write(f"{self.fingerprint}\n")
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(aside, file)  # leaves what another process has kept meanwhile
            except FileExistsError:
                pass
            finally:
                aside.unlink()
            sync_folder(file.parent)
        return file.read_text(encoding="ascii").strip()

    def _hash(self, purpose: str, text: str) -> bytes:
        """Hash a text for one purpose: as another thing's name the same text has an unrelated pseudonym."""
        return hmac.digest(self._key, f"xray {purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256)


def open_pseudonyms(file: Path, folder: Path) -> Pseudonyms:
    """Open the key that was used first; make one where none was used yet.

    Parameters
    ----------
    file : Path
        The key's.
    folder : Path
        Where the first key's fingerprint is kept.

    Raises
    ------
    SettingsError
        The key is lost, cannot be used, or is another one.
    """
    if not file.exists() and (folder / FINGERPRINT_FILE).exists():
        msg = (
            f"{file} is gone, and images have been published under its pseudonyms. Bring it back from a backup, or "
            f"name it with {KEY_SETTING}. To begin anew, with other event ids for all images, remove "
            f"{folder / FINGERPRINT_FILE}."
        )
        raise SettingsError(msg)
    pseudonyms = Pseudonyms(file)
    pseudonyms.check_fingerprint(folder)
    return pseudonyms
