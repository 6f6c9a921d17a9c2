"""TLS towards DICOM and MLLP peers: whom is trusted, what is shown to them, and what a connection failed of.

References
----------
IHE ITI TF-2: 3.19 Authenticate Node (ATNA): both sides show a certificate. BCP 195: TLS 1.2 or newer.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from streaming.pemfiles import load_authority, load_own
from streaming.reports.target import Address, AwayError
from streaming.settings import ReportsSettings

_PREFIX = "XRAY_REPORTS__"
_OWN = f"{_PREFIX}TLS_CERTIFICATE"
_CA = f"{_PREFIX}TLS_CA"
_LAST_WORD_S = 1.0

# Of X509_V_ERR_... (OpenSSL, x509_vfy.h), which Python has no names of.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_OTHER_HOST = (62, 64)

_WITHOUT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
"""Reasons of OpenSSL, which reads as a TLS record what is none; which one depends on its version and on the bytes."""
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION")
_WANTS_CERTIFICATE = ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_CERTIFICATE_REQUIRED")
_NO_AGREEMENT = "SSLV3_ALERT_HANDSHAKE_FAILURE"
"""With TLS 1.2 a peer that wants a certificate and is shown none says this, and one that knows none of our ciphers."""
_OWN_REFUSED = (
    "TLSV1_ALERT_UNKNOWN_CA",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV1_ALERT_ACCESS_DENIED",
    "TLSV1_ALERT_DECRYPT_ERROR",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a TLS connection to a target has to be, for the words of its failures.

    Parameters
    ----------
    host : str
        Whom the target's certificate has to be for.
    plain : str
        How the same target is named without TLS: ``mllp:``.
    authority : Path or None
        Who may have signed the certificate; None: those that are usual.
    setting : str
        Which setting names the authority.
    shows_own : bool
        Whether a certificate of ours is shown.
    """

    host: str
    plain: str
    authority: Path | None
    setting: str
    shows_own: bool

    def describe(self, exc: OSError, *, is_connected: bool) -> str:
        """Say what a connection failed of: what was found and what is wanted, and nothing that the peer wrote.

        Parameters
        ----------
        exc : OSError
            What a socket has raised.
        is_connected : bool
            Whether both sides had agreed on TLS before.
        """
        match exc:
            case ssl.SSLCertVerificationError():
                return self._describe_certificate(exc)
            case ssl.SSLEOFError() | ConnectionResetError() | BrokenPipeError():
                like = "" if is_connected else f", as a peer without TLS does ({self.plain})"
                hint = "" if self.shows_own else f"; it may want a certificate ({_OWN})"
                return f"it closed the connection without an answer{like}{hint}"
            case ssl.SSLError():
                return self._describe_tls(exc.reason or type(exc).__name__)
            case TimeoutError():
                return "no answer in time" + ("" if is_connected else f", as of a peer without TLS ({self.plain})")
        return type(exc).__name__

    def _describe_certificate(self, exc: ssl.SSLCertVerificationError) -> str:
        if exc.verify_code == _EXPIRED:
            return "its certificate has expired; wanted one that is valid now"
        if exc.verify_code == _NOT_YET_VALID:
            return "its certificate is not valid yet; wanted one that is valid now, and clocks that agree"
        if exc.verify_code in _OTHER_HOST:
            return f"its certificate is of another host; wanted one for {self.host}"
        if exc.verify_code in _UNKNOWN_AUTHORITY:
            usual = f"the usual ones, for {self.setting} is not set"
            known = usual if self.authority is None else f"{self.setting}, {self.authority}"
            return f"its certificate is of an authority that is not known; wanted one of {known}"
        return f"its certificate is not accepted: {exc.verify_message}"

    def _describe_tls(self, reason: str) -> str:
        if reason in _WITHOUT_TLS:
            return f"it answers without TLS; wanted TLS, or a target {self.plain} where it has none"
        if reason in _OLD_TLS:
            return "it speaks an older TLS; wanted 1.2 or newer"
        said = reason.removeprefix("TLSV13_ALERT_").removeprefix("TLSV1_ALERT_").removeprefix("SSLV3_ALERT_")
        if not self.shows_own and reason in (*_WANTS_CERTIFICATE, _NO_AGREEMENT):
            verb = "may want" if reason == _NO_AGREEMENT else "wants"
            return f"it {verb} a certificate, and none is set ({_OWN}): {said}"
        if reason in _OWN_REFUSED:
            return f"it does not accept the certificate that it is shown ({_OWN}): {said}"
        return f"TLS failed: {said}"


class TargetTls:
    """TLS of one target; its files are read again for each connection, so that renewed ones count.

    Parameters
    ----------
    address : Address
        Of the target; its certificate has to be for this host.
    settings : ReportsSettings
        ``tls_ca``, ``tls_certificate``, ``tls_key``.

    Raises
    ------
    SettingsError
        A file is not what it should be; names the setting.
    """

    def __init__(self, address: Address, settings: ReportsSettings) -> None:
        self._settings = settings
        plain = f"{address.kind.removesuffix('s')}:"
        self.wanted = Wanted(address.place, plain, settings.tls_ca, _CA, settings.tls_certificate is not None)
        load_context(settings)

    def load(self, note: Callable[[OSError], Any] = lambda exc: None) -> ssl.SSLContext:
        """Give the context of a new connection.

        Parameters
        ----------
        note : callable
            Called with each failure of a connection, for a library that keeps it for itself.

        Raises
        ------
        AwayError
            A file is no longer what it should be: it may be half renewed.
        """
        try:
            context = load_context(self._settings)
        except SettingsError as exc:
            raise AwayError(str(exc)) from exc
        context.sslsocket_class = _make_socket_class(note)
        return context


def load_context(settings: ReportsSettings) -> ssl.SSLContext:
    """Read the PEM files: TLS 1.2 or newer, the peer's certificate and its host name are checked.

    Raises
    ------
    SettingsError
        Names the setting.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_ca is None:
        context.load_default_certs()
    else:
        load_authority(context, settings.tls_ca, setting=_CA)
    if settings.tls_certificate is not None and settings.tls_key is not None:
        names = (_OWN, f"{_PREFIX}TLS_KEY")
        load_own(context, settings.tls_certificate, settings.tls_key, settings=names)
    return context


def _make_socket_class(note: Callable[[OSError], Any]) -> type[ssl.SSLSocket]:
    class Socket(ssl.SSLSocket):
        """Tells why a peer closed the connection, and not only that it did, where the peer said so."""

        def connect(self, addr: Any) -> None:
            try:
                super().connect(addr)
            except OSError as exc:
                note(exc)
                raise

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            try:
                return super().recv(buflen, flags)
            except OSError as exc:
                note(exc)
                raise

        def send(self, data: Any, flags: int = 0) -> int:
            try:
                return super().send(data, flags)
            except (ConnectionError, ssl.SSLEOFError) as exc:
                note(exc)
                # With TLS 1.3 a peer judges our certificate when we have begun to send. What it said before it closed
                # the connection waits to be read.
                self.settimeout(_LAST_WORD_S)
                with suppress(TimeoutError):
                    self.recv(1)
                raise

    return Socket
