"""TLS of a door: its certificate, and the authority of the devices', read again when the files change."""

import logging
import ssl
import threading
from pathlib import Path

from schemas.errors import SettingsError
from streaming.settings import GatewaySettings

log = logging.getLogger(__name__)

_PREFIX = "XRAY_GATEWAY__"


class Certificates:
    """Gives the TLS context of new connections.

    Parameters
    ----------
    settings : GatewaySettings
        ``tls_certificate``, ``tls_key``, ``tls_client_ca``.

    Raises
    ------
    SettingsError
        A file cannot be read, or is not what it should be; names the setting. Once they were read, a wrong change is
        left out, and logged.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stamps = self._stamp()
        self._context = load_context(settings)

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
            self._context = load_context(self._settings)
        except SettingsError as exc:
            log.error("the certificates stay as they were: %s", exc)
        else:
            log.warning("the certificates were read again")

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        files = (self._settings.tls_certificate, self._settings.tls_key, self._settings.tls_client_ca)
        return [_stamp_file(file) for file in files if file is not None]


def load_context(settings: GatewaySettings) -> ssl.SSLContext | None:
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
    for name, file in (("TLS_CERTIFICATE", certificate), ("TLS_KEY", key), ("TLS_CLIENT_CA", authority)):
        if file is not None:
            _check_readable(name, file)
    try:
        # Without an answer to the question for a pass phrase OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as exc:
        msg = (
            f"{_PREFIX}TLS_CERTIFICATE, {_PREFIX}TLS_KEY: {certificate} and {key} are not a certificate and its "
            "private key, in PEM and without a pass phrase"
        )
        raise SettingsError(msg) from exc
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError as exc:
            msg = f"{_PREFIX}TLS_CLIENT_CA: {authority} has no certificate in PEM"
            raise SettingsError(msg) from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(name: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as exc:
        msg = f"{_PREFIX}{name}: {file} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc


def _stamp_file(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
