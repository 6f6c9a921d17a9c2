"""TLS of a door: its certificate, and the authority of the devices', read again when the files change."""

import logging
import ssl
import threading
from pathlib import Path
from typing import Protocol

from schemas.errors import SettingsError
from streaming.pemfiles import load_authority, load_own

log = logging.getLogger(__name__)

_PREFIX = "XRAY_GATEWAY__"


class TlsFiles(Protocol):
    """The settings that name the files: of the gateway, and of others that speak TLS as it does."""

    @property
    def tls_certificate(self) -> Path | None:
        """PEM file with the certificate; None where TLS is off."""

    @property
    def tls_key(self) -> Path | None:
        """PEM file with its private key."""

    @property
    def tls_client_ca(self) -> Path | None:
        """PEM file of the authority of the clients' certificates; None wants none of them."""


class Certificates:
    """Gives the TLS context of new connections.

    Parameters
    ----------
    settings : TlsFiles
        ``tls_certificate``, ``tls_key``, ``tls_client_ca``.
    prefix : str
        Of these settings' names, for errors.

    Raises
    ------
    SettingsError
        A file cannot be read, or is not what it should be; names the setting. Once they were read, a wrong change is
        left out, and logged.
    """

    def __init__(self, settings: TlsFiles, prefix: str = _PREFIX) -> None:
        self._settings = settings
        self._prefix = prefix
        self._lock = threading.Lock()
        self._stamps = self._stamp()
        self._context = load_context(settings, prefix)

    def current(self) -> ssl.SSLContext | None:
        """Give the context as the files are now; None without TLS."""
        if self._context is None:
            return None
        with self._lock:
            stamps = self._stamp()
            if stamps != self._stamps:
                self._stamps = stamps
                self._read_again()
            return self._context

    def _read_again(self) -> None:
        try:
            self._context = load_context(self._settings, self._prefix)
        except SettingsError as exc:
            log.error("the certificates stay as they were: %s", exc)
        else:
            log.warning("the certificates were read again")

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        files = (self._settings.tls_certificate, self._settings.tls_key, self._settings.tls_client_ca)
        return [_stamp_file(file) for file in files if file is not None]


def load_context(settings: TlsFiles, prefix: str = _PREFIX) -> ssl.SSLContext | None:
    """Read the PEM files; None where TLS is off.

    Raises
    ------
    SettingsError
        Names the setting.
    """
    certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_own(context, certificate, key, settings=(f"{prefix}TLS_CERTIFICATE", f"{prefix}TLS_KEY"))
    if authority is not None:
        load_authority(context, authority, setting=f"{prefix}TLS_CLIENT_CA")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _stamp_file(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
