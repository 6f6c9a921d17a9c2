"""Mail: plain text, one alarm a message or several, over TLS unless told otherwise."""

import binascii
import logging
import smtplib
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streaming.alerts.alarm import Alarm, Delivered, Outcome, Refused, Retry, State
from streaming.alerts.sinks.failures import describe_failure
from streaming.alerts.sinks.httppeer import AuthorityFile
from streaming.alerts.sinks.secret import Secret, SecretError
from streaming.alerts.sinks.wording import message_id, to_subject, to_text
from streaming.deadline import Deadline

log = logging.getLogger(__name__)

RETRIES_S = (10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, *(7200.0,) * 24)
"""Waits after an attempt: soon at first, for a person waits; then as mail servers do, for two days."""

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_PERMANENT = 500
_MOST_REMEMBERED = 1000


MailAddress = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$", max_length=254)
]
"""As HTML's own pattern has it: no name, no quotes, ASCII."""


class SmtpSettings(BaseModel):
    """A mail server, and who gets mail.

    Parameters
    ----------
    host, port : str, int or None
        The server; port 587 with ``starttls``, 465 with ``tls``, 25 with ``none``, when left out.
    security : str
        ``starttls``: TLS must be offered and is used; ``tls``: from the first byte; ``none``: readable by everybody on
        the way, so without a password.
    ca : Path or None
        PEM file of the authority that signs the server's certificate; those that the system trusts, when left out.
    username, password : str, Secret
        Both or none.
    sender : str
        Address.
    recipients : tuple of str
        Addresses.
    alarms_per_message : int
        1: a message for each alarm. More: one message tells of up to so many that wait at the time.
    timeout_s : float
        For one delivery: the server's address, and the whole conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["smtp"]
    host: str = Field(min_length=1, pattern=r"^\S+$")
    port: int | None = Field(default=None, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    ca: AuthorityFile | None = None
    username: str | None = Field(default=None, min_length=1)
    password: Secret | None = None
    sender: MailAddress
    recipients: Annotated[tuple[MailAddress, ...], Field(min_length=1)]
    alarms_per_message: int = Field(default=1, ge=1, le=1000)
    timeout_s: float = Field(default=30.0, gt=0, le=30)

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if (self.username is None) != (self.password is None):
            msg = "username and password belong together, found one of them"
            raise ValueError(msg)
        if self.security == "none" and self.password is not None:
            msg = "security is none, which sends a password for all to read; expected starttls or tls"
            raise ValueError(msg)
        return self


class SmtpSink:
    """Sends mail; each delivery is a conversation of its own with the server.

    A recipient that has a message gets no second one because another recipient had to wait, as long as this process
    runs; after that a repetition has the same ``Message-ID``.

    Parameters
    ----------
    name : str
        As routes call it.
    settings : SmtpSettings
        See there.
    """

    resend_s = None
    resolved_for_s = 0.0

    def __init__(self, name: str, settings: SmtpSettings) -> None:
        self.name = name
        self.at_once = settings.alarms_per_message
        self._settings = settings
        self._place = f"{settings.host}:{settings.port or _PORTS[settings.security]}"
        self._context = ssl.create_default_context(cafile=settings.ca)
        self._taken: dict[str, set[str]] = {}

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        """Send them in one message; see `streaming.alerts.alarm.Sink`."""
        message = self._write(alarms)
        try:
            with self._converse() as server:
                outcome = self._send(server, message)
        except SecretError as exc:
            outcome = Retry(None, str(exc))
        except (smtplib.SMTPException, binascii.Error) as exc:
            # It is the conversation that failed, not the message: a wrong password will be mended.
            outcome = Retry(None, f"{self._place}: {_describe(exc)}")
        except OSError as exc:
            outcome = Retry(None, f"{self._place}: {describe_failure(exc)}")
        if not isinstance(outcome, Retry):
            self._taken.pop(str(message["Message-ID"]), None)
        return outcome

    def next_try_s(self, attempt: int) -> float | None:
        """Give the wait after an attempt; see `streaming.alerts.alarm.Sink`."""
        return RETRIES_S[attempt] if attempt < len(RETRIES_S) else None

    def _write(self, alarms: Sequence[Alarm]) -> EmailMessage:
        message = EmailMessage()
        domain = self._settings.sender.rpartition("@")[2]
        first = alarms[0]
        came = first.starts_at if first.state is State.OPEN else first.ends_at or first.starts_at
        message["From"] = self._settings.sender
        message["To"] = ", ".join(self._settings.recipients)
        message["Subject"] = to_subject(alarms)
        message["Date"] = format_datetime(came)
        message["Message-ID"] = f"<{_identify(alarms)}@{domain}>"
        if len(alarms) == 1 and first.state is State.RESOLVED:
            message["In-Reply-To"] = message["References"] = f"<{first.id}@{domain}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        message.set_content(to_text(alarms))
        return message

    @contextmanager
    def _converse(self) -> Iterator[smtplib.SMTP]:
        settings = self._settings
        port = settings.port or _PORTS[settings.security]
        tls = self._context if settings.security == "tls" else None
        with Deadline(settings.timeout_s) as deadline:
            server = _Timed(settings.host, port, deadline, tls)
            try:
                server.name_itself()
                if settings.security == "starttls":
                    server.starttls(context=self._context)
                if settings.username is not None and settings.password is not None:
                    server.login(settings.username, settings.password.read())
                yield server
                _say_goodbye(server)
            finally:
                server.close()

    def _send(self, server: smtplib.SMTP, message: EmailMessage) -> Outcome:
        taken = self._remember(str(message["Message-ID"]))
        waiting = [address for address in self._settings.recipients if address not in taken]
        try:
            refused = server.send_message(message, to_addrs=waiting)
        except smtplib.SMTPRecipientsRefused as exc:
            refused = exc.recipients
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as exc:
            refused = dict.fromkeys(waiting, (exc.smtp_code, b""))
        taken.update(set(waiting) - set(refused))
        return self._judge([code for code, _ in refused.values()], any_taken=bool(taken))

    def _judge(self, codes: Sequence[int], *, any_taken: bool) -> Outcome:
        if not codes:
            return Delivered()
        shown = ", ".join(str(code) for code in sorted(set(codes)))
        why = f"{self._place}: {len(codes)} of {len(self._settings.recipients)} recipients: SMTP status {shown}"
        if min(codes) < _PERMANENT:
            return Retry(None, why)
        if not any_taken:
            return Refused(why)
        log.warning("sink %s: a message went to some and not to others: %s", self.name, why)
        return Delivered()

    def _remember(self, ident: str) -> set[str]:
        while len(self._taken) >= _MOST_REMEMBERED and ident not in self._taken:
            del self._taken[next(iter(self._taken))]
        return self._taken.setdefault(ident, set())


class _Timed(smtplib.SMTP):
    """A conversation that ends by a deadline, whatever hangs or drips: the name server, TLS, or a reply."""

    def __init__(self, host: str, port: int, deadline: Deadline, tls: ssl.SSLContext | None) -> None:
        self._deadline = deadline
        self._tls = tls
        # The own name is given: smtplib would ask a name server for it, and wait.
        super().__init__(host, port, local_hostname=socket.gethostname(), timeout=deadline.left_s)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = self._deadline.connect(host, port)
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_hostname=host)
        except OSError:
            sock.close()
            raise

    def name_itself(self) -> None:
        """Use the own address where the own name is none of the network's (RFC 5321, 4.1.4)."""
        if "." not in self.local_hostname and self.sock is not None:
            own = str(self.sock.getsockname()[0])
            self.local_hostname = f"[IPv6:{own}]" if ":" in own else f"[{own}]"


def _say_goodbye(server: smtplib.SMTP) -> None:
    """End in order; a server that has the message and says no goodbye has the message all the same."""
    with suppress(smtplib.SMTPException, OSError):
        server.quit()


def _identify(alarms: Sequence[Alarm]) -> str:
    idents = [message_id(alarm) for alarm in alarms]
    return idents[0] if len(idents) == 1 else sha256(" ".join(sorted(idents)).encode()).hexdigest()[:32]


def _describe(exc: smtplib.SMTPException | binascii.Error) -> str:
    match exc:
        case binascii.Error():
            return "it asks for the password in no known way"
        case smtplib.SMTPResponseException():
            return f"SMTP status {exc.smtp_code} ({type(exc).__name__})"
        case smtplib.SMTPNotSupportedError():
            return "it does not offer STARTTLS or to log in, as the settings want it"
        case smtplib.SMTPServerDisconnected():
            return "the connection was closed, or took too long"
    return type(exc).__name__
