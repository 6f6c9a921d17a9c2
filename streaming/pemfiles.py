"""PEM files of TLS: an own certificate with its key, and authorities; a wrong one is told with its setting."""

import ssl
from pathlib import Path

from schemas.errors import SettingsError


def load_own(context: ssl.SSLContext, certificate: Path, key: Path, *, settings: tuple[str, str]) -> None:
    """Have connections show a certificate.

    Parameters
    ----------
    context : ssl.SSLContext
        Is changed.
    certificate : Path
        PEM file, with the authorities between where there are any.
    key : Path
        PEM file of its private key.
    settings : tuple of str
        Names of the two settings, for the error.

    Raises
    ------
    SettingsError
        A file cannot be read, or the two are not a certificate and its key.
    """
    for setting, file in zip(settings, (certificate, key), strict=True):
        _check_readable(setting, file)
    try:
        # Without an answer to the question for a pass phrase OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as exc:
        msg = (
            f"{settings[0]}, {settings[1]}: {certificate} and {key} are not a certificate and its private key, in PEM "
            "and without a pass phrase"
        )
        raise SettingsError(msg) from exc


def load_authority(context: ssl.SSLContext, authority: Path, *, setting: str) -> None:
    """Have connections trust those that an authority has signed.

    Parameters
    ----------
    context : ssl.SSLContext
        Is changed.
    authority : Path
        PEM file with one certificate or several.
    setting : str
        Name of the setting, for the error.

    Raises
    ------
    SettingsError
        The file cannot be read, or has no certificate.
    """
    _check_readable(setting, authority)
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as exc:
        msg = f"{setting}: {authority} has no certificate in PEM"
        raise SettingsError(msg) from exc


def _check_readable(setting: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as exc:
        msg = f"{setting}: {file} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc
