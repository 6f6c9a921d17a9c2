"""The page as a program: what it knows and shows, served until told to end."""

import getpass
import ipaddress
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from schemas.errors import SettingsError
from streaming.gateway.certificates import Certificates
from streaming.gateway.http.httpserver import HttpServer
from streaming.page.desk import Desk
from streaming.page.guard import Sessions
from streaming.page.knows.feed import Feed
from streaming.page.knows.findings import Findings
from streaming.page.knows.modelsview import ModelsView
from streaming.page.knows.moves import ModelMoves, Operator
from streaming.page.knows.servicefigures import LabelledService
from streaming.page.knows.trace import Tracer
from streaming.page.knows.trail import Trail
from streaming.page.knows.vitals import Vitals
from streaming.page.people import People
from streaming.page.pictures.gallery import Gallery
from streaming.page.site import Site
from streaming.page.views import Views
from streaming.scraping import ALERTS, ARCHIVE, GATEWAY, REPORTS, STREAM, find_addresses
from streaming.settings import PageSettings, StreamSettings

_SETTING = "XRAY_PAGE__"
_IDLE_S = 60.0
_STOP_S = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_NOT_IN_NAMES = re.compile(r"[^\w.@-]")


@dataclass(frozen=True)
class PageState:
    """What the caller may show once the page answers.

    Parameters
    ----------
    url : str
        Address to open; has the token, where the page has one of its own.
    address : str
        The same without a token.
    """

    url: str = field(repr=False)
    address: str


def run_page(
    settings: StreamSettings,
    *,
    moves: ModelMoves,
    ended: threading.Event | None = None,
    on_ready: Callable[[PageState], None] = lambda state: None,
) -> None:
    """Serve the page until told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings; see `PageSettings`.
    moves : ModelMoves
        What decides on models.
    ended : threading.Event, optional
        Set it to end.
    on_ready : callable
        Called once it answers.

    Raises
    ------
    SettingsError
        Something in the settings cannot be, or the port is taken; Kafka may be away.
    """
    ended = ended or threading.Event()
    with serve_page(settings, moves) as state:
        on_ready(state)
        ended.wait()


@contextmanager
def serve_page(settings: StreamSettings, moves: ModelMoves) -> Iterator[PageState]:
    """Serve the page while the body runs; see `run_page`."""
    page = settings.page
    check_address(page)
    people = People(page.people, user=_find_user(), allow_operate=page.allow_operate)
    sessions = Sessions(people)
    certificates = Certificates(page, _SETTING)
    with ExitStack() as stack:
        findings = stack.enter_context(Findings(settings, settings.page_folder))
        gallery = Gallery(settings, thumbnails=page.thumbnails, max_thumbnail_bytes=page.thumbnails_max_bytes)
        stack.callback(gallery.close)
        gallery.prepare()
        feed = stack.enter_context(Feed(settings))
        vitals = stack.enter_context(
            Vitals(
                find_addresses(settings) | list_addresses(page),
                images_topic=settings.kafka.images_topic,
                optional={GATEWAY, ALERTS, REPORTS} - set(list_addresses(page)),
            )
        )
        names: set[str] = set()
        is_tls = certificates.current() is not None
        desk = Desk(
            settings,
            feed,
            gallery,
            findings,
            vitals,
            Tracer(settings, feed, findings),
            ModelsView(settings),
            LabelledService(settings.tables_folder),
            Operator(settings, moves, Trail(settings.page_trail)),
            Views(),
        )
        site = Site(desk, sessions, hosts=lambda: frozenset(names), secure=is_tls)
        server = HttpServer(site.guard, idle_s=_IDLE_S, certificates=certificates)
        port = server.start(page.host, page.port, f"{_SETTING}PORT")
        names |= list_hosts(page, port)
        stack.callback(server.stop, _STOP_S, site.streams.end)
        host = f"[{page.host}]" if ":" in page.host else page.host
        address = f"{'https' if is_tls else 'http'}://{_LOOPBACK[0] if _is_any(page.host) else host}:{port}/"
        yield PageState(f"{address}?token={people.token}" if people.token else address, address)


def check_address(page: PageSettings) -> None:
    """Refuse to show images to a network in clear, or to whoever is on it.

    Raises
    ------
    SettingsError
        The page is for other machines too, without what that wants.
    """
    if _is_loopback(page.host):
        return
    if page.tls_certificate is None and not page.plain_http:
        msg = (
            f"XRAY_PAGE__HOST is {page.host}: at other addresses than this machine's own the page wants "
            "XRAY_PAGE__TLS_CERTIFICATE and XRAY_PAGE__TLS_KEY, or, behind a proxy with TLS, XRAY_PAGE__PLAIN_HTTP=true"
        )
        raise SettingsError(msg)
    if page.people is None and not page.plain_http:
        msg = (
            f"XRAY_PAGE__HOST is {page.host}: at other addresses than this machine's own the page wants "
            "XRAY_PAGE__PEOPLE, a file of who may see it: docs/page.md"
        )
        raise SettingsError(msg)


def list_addresses(page: PageSettings) -> dict[str, str]:
    """List where the parts' metrics are, of those that are not where this machine's settings say."""
    given = {
        STREAM: page.stream_url,
        ARCHIVE: page.archive_url,
        GATEWAY: page.gateway_url,
        ALERTS: page.alerts_url,
        REPORTS: page.reports_url,
    }
    return {name: address for name, address in given.items() if address is not None}


def list_hosts(page: PageSettings, port: int) -> set[str]:
    """List the values of the Host header that are ours."""
    own = set(_LOOPBACK) if _is_loopback(page.host) or _is_any(page.host) else set()
    if not _is_any(page.host):
        own.add(f"[{page.host}]" if ":" in page.host else page.host)
    given = {one for one in (page.hosts or "").split(",") if one}
    return {f"{name}:{port}".lower() for name in own | given} | {name.lower() for name in given}


def _is_any(host: str) -> bool:
    return host in {"0.0.0.0", "::", ""}  # noqa: S104 - compared


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _find_user() -> str:
    """Give the name of whoever starts the page, as labels may have it."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user has no name
        name = ""
    return _NOT_IN_NAMES.sub("-", name)[:64] or "page"
