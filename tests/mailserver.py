"""A mail server for tests, after RFC 5321, 3207 and 4954, that answers as a test says and keeps what it took."""

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import cast

HANG_UP = "hang up"
SILENCE = "silence"
DRIP = "drip"


@dataclass(frozen=True)
class Mail:
    """A message that was taken, and for whom."""

    recipients: tuple[str, ...]
    message: EmailMessage
    is_private: bool
    user: str | None


@dataclass
class MailServer:
    """``answers``: by verb, or by recipient's address, what is said instead of yes: a reply, or a way to fail."""

    port: int = 0
    context: ssl.SSLContext | None = None
    offers: tuple[str, ...] = ("STARTTLS", "AUTH PLAIN")
    answers: dict[str, str] = field(default_factory=dict)
    mails: list[Mail] = field(default_factory=list)
    conversations: int = 0
    greeted: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def ids(self) -> list[str]:
        return [str(mail.message["Message-ID"]) for mail in self.mails]


class _HangUp(Exception):
    pass


class _Conversation(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.own: MailServer = self.server.own  # type: ignore[attr-defined]
        self.own.conversations += 1
        self.is_private = False
        self.user: str | None = None
        self.recipients: list[str] = []
        try:
            if self.server.is_tls:  # type: ignore[attr-defined]
                self._secure()
            self._say("GREETING", "220 mail.example ESMTP")
            while line := self.rfile.readline():
                self._answer(line.decode().strip())
        except (_HangUp, OSError):
            return

    def _answer(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        match verb.upper():
            case "EHLO":
                self.own.greeted.append(rest)
                offers = [one for one in self.own.offers if not (self.is_private and one == "STARTTLS")]
                self._write("".join(f"250-{one}\r\n" for one in ("mail.example", *offers)) + "250 HELP")
            case "STARTTLS":
                if self._say("STARTTLS", "220 go on"):
                    self._secure()
            case "AUTH":
                if rest.startswith("CRAM"):
                    self._say("CRAM", "334 x")
                elif self._say("AUTH", "235 welcome"):
                    self.user = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")[1]
            case "MAIL":
                self.recipients = []
                self._say("MAIL", "250 ok")
            case "RCPT":
                address = rest.partition("<")[2].rstrip(">")
                if self._say(address, "250 ok"):
                    self.recipients.append(address)
            case "DATA":
                self._take()
            case "QUIT":
                self._say("QUIT", "221 bye")
                raise _HangUp
            case _:
                self._write("250 ok")

    def _take(self) -> None:
        self._write("354 go on")
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        if self._say("DATA", "250 taken"):
            message = cast(EmailMessage, message_from_bytes(b"".join(lines), policy=default))
            self.own.mails.append(Mail(tuple(self.recipients), message, self.is_private, self.user))

    def _say(self, what: str, usual: str) -> bool:
        """Say what the test wants; tell whether it was yes."""
        reply = self.own.answers.get(what, usual)
        if reply == HANG_UP:
            raise _HangUp
        if reply == SILENCE:
            self.own.ended.wait(30)
            raise _HangUp
        if reply == DRIP:
            while not self.own.ended.wait(0.05):
                self.wfile.write(b"2")
            raise _HangUp
        self._write(reply)
        return reply[0] == "2"

    def _write(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def _secure(self) -> None:
        assert self.own.context is not None
        sock = self.own.context.wrap_socket(self.connection, server_side=True)
        self.connection, self.rfile, self.wfile = sock, sock.makefile("rb"), sock.makefile("wb", 0)  # type: ignore
        self.is_private = True

    def finish(self) -> None:
        self.connection.close()


@contextmanager
def serve_mail(context: ssl.SSLContext | None = None, *, is_tls: bool = False) -> Iterator[MailServer]:
    """Run one on a free port of 127.0.0.1."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Conversation)
    server.daemon_threads = True
    server.block_on_close = False
    own = MailServer(port=server.server_address[1], context=context)
    server.own, server.is_tls = own, is_tls  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield own
    finally:
        own.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
