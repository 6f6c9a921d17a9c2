"""Who is let in, from where, and to do what."""

import asyncio
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from schemas.errors import SettingsError
from streaming.accessfile import hash_token
from streaming.page.guard import COOKIE, Guard, Refused, Sessions, want
from streaming.page.people import People, Role

OWN = "http://127.0.0.1:8050"
FILE = """
[[person]]
name = "ward-3"
role = "look"
tokens = ["{look}"]

[[person]]
name = "dr-a"
role = "label"
tokens = ["{label}"]

[[person]]
name = "ops"
role = "operate"
tokens = ["{operate}"]
"""


async def show(request: Request) -> Response:
    return PlainTextResponse(f"{request.state.person.name} {request.state.csrf}")


async def label(request: Request) -> Response:
    return PlainTextResponse(want(request, Role.LABEL).name)


async def operate(request: Request) -> Response:
    return PlainTextResponse(want(request, Role.OPERATE).name)


async def hidden(request: Request) -> Response:
    return PlainTextResponse("nothing of an image")


async def say_refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refused)
    return PlainTextResponse(exc.why, status_code=exc.status)


def make_client(people: People, *, base_url: str = OWN) -> TestClient:
    site = Starlette(
        routes=[
            Route("/", show),
            Route("/label", label, methods=["POST"]),
            Route("/operate", operate, methods=["POST"]),
            Route("/assets/page.css", hidden),
        ],
        exception_handlers={Refused: say_refused},
    )
    guard = Guard(
        site,
        Sessions(people),
        hosts=lambda: frozenset({"127.0.0.1:8050", "localhost:8050"}),
        refuse=lambda _, refused: PlainTextResponse(refused.why, status_code=refused.status),
        secure=False,
    )
    return TestClient(guard, base_url=base_url, follow_redirects=False)


def make_people(tmp_path: Path, *, allow_operate: bool = True) -> People:
    file = tmp_path / "people.toml"
    file.write_text(FILE.format(**{role: hash_token(f"token-of-{role}") for role in ("look", "label", "operate")}))
    return People(file, user="me", allow_operate=allow_operate)


def log_in(client: TestClient, token: str) -> str:
    """Open the page with a token, as its printed address does; give the session's CSRF token."""
    answer = client.get(f"/?token={token}&q=a")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?q=a"
    return str(client.get("/").text.split()[1])


def test_without_a_token_nothing_is_shown() -> None:
    client = make_client(People(None, user="me", allow_operate=False))
    assert client.get("/").status_code == 401
    assert client.get("/?token=guessed").status_code == 401
    assert client.post("/label", headers={"origin": OWN}).status_code == 401
    assert client.get("/assets/page.css").status_code == 200


def test_the_token_leaves_the_address_and_the_cookie_is_for_this_site_alone() -> None:
    people = People(None, user="me", allow_operate=False)
    client = make_client(people)
    answer = client.get(f"/images?token={people.token}")
    assert answer.headers["location"] == "/images"
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in (COOKIE, "httponly", "samesite=strict", "path=/"))
    assert str(people.token) not in answer.headers["set-cookie"]


def test_two_pages_of_one_machine_do_not_log_each_other_out() -> None:
    """A browser sends the cookies of a host to all of its ports."""
    people = People(None, user="me", allow_operate=False)
    client = make_client(people)
    client.get(f"/images?token={people.token}")
    [name] = client.cookies.keys()
    assert name == f"{COOKIE}_8050"
    client.cookies.set(f"{COOKIE}_9000", "of the other page", domain="127.0.0.1")
    assert client.get("/").status_code == 200


def test_an_address_cannot_send_the_browser_to_another_site() -> None:
    people = People(None, user="me", allow_operate=False)
    answer = make_client(people).get(f"{OWN}//evil.example/a?token={people.token}")
    assert answer.headers["location"] == "/evil.example/a"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1", "127.0.0.1:80", ""])
def test_a_foreign_host_is_refused_with_a_valid_session(host: str) -> None:
    people = People(None, user="me", allow_operate=False)
    client = make_client(people)
    log_in(client, str(people.token))
    assert client.get("/", headers={"host": host}).status_code == 421
    assert client.get(f"/?token={people.token}", headers={"host": host}).status_code == 421
    assert client.get("/assets/page.css", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_origin_changes_nothing_even_with_the_csrf_token(headers: dict[str, str]) -> None:
    people = People(None, user="me", allow_operate=True)
    client = make_client(people)
    csrf = log_in(client, str(people.token))
    assert client.post("/label", headers={**headers, "x-csrf-token": csrf}).status_code == 403


def test_what_changes_something_wants_the_csrf_token_of_the_session() -> None:
    people = People(None, user="me", allow_operate=True)
    client, other = make_client(people), make_client(people)
    csrf, foreign = log_in(client, str(people.token)), log_in(other, str(people.token))
    assert client.post("/label", headers={"origin": OWN}).status_code == 403
    assert client.post("/label", headers={"origin": OWN, "x-csrf-token": foreign}).status_code == 403
    assert client.post("/label", headers={"origin": OWN, "x-csrf-token": csrf}).status_code == 200


@pytest.mark.parametrize(
    ("role", "may_label", "may_operate"), [("look", False, False), ("label", True, False), ("operate", True, True)]
)
def test_each_role_does_what_it_may(tmp_path: Path, role: str, may_label: bool, may_operate: bool) -> None:
    client = make_client(make_people(tmp_path))
    headers = {"origin": OWN, "x-csrf-token": log_in(client, f"token-of-{role}")}
    assert client.post("/label", headers=headers).status_code == (200 if may_label else 403)
    assert client.post("/operate", headers=headers).status_code == (200 if may_operate else 403)


def test_nobody_operates_unless_the_page_was_started_so(tmp_path: Path) -> None:
    client = make_client(make_people(tmp_path, allow_operate=False))
    headers = {"origin": OWN, "x-csrf-token": log_in(client, "token-of-operate")}
    answer = client.post("/operate", headers=headers)
    assert answer.status_code == 403
    assert "--allow-operate" in answer.text


def test_a_token_that_is_taken_away_ends_its_sessions(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "people.toml"
    tokens = {role: hash_token(f"token-of-{role}") for role in ("look", "label", "operate")}
    file.write_text(FILE.format(**tokens))
    client = make_client(People(file, user="me", allow_operate=True, clock=lambda: now))
    log_in(client, "token-of-label")
    file.write_text(FILE.format(**tokens | {"label": hash_token("a new one")}))
    now = 5.0
    assert client.get("/").status_code == 401


def test_a_session_ends_by_itself() -> None:
    now = 0.0
    people = People(None, user="me", allow_operate=False)
    sessions = Sessions(people, clock=lambda: now)
    key = sessions.open(str(people.token))
    assert sessions.find(key) is not None
    now = 13 * 3600.0
    assert sessions.find(key) is None


def test_sessions_take_bounded_memory() -> None:
    people = People(None, user="me", allow_operate=False)
    sessions = Sessions(people)
    keys = [sessions.open(str(people.token)) for _ in range(1001)]
    assert sessions.find(keys[0]) is None
    assert sessions.find(keys[-1]) is not None


def test_every_answer_has_the_policy() -> None:
    people = People(None, user="me", allow_operate=False)
    client = make_client(people)
    log_in(client, str(people.token))
    for answer in (client.get("/"), client.get("/nothing"), client.get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "person"),
        ("[[person]]\nname = 'a'\nrole = 'root'\ntokens = ['sha256:" + "0" * 64 + "']", "role"),
        ("[[person]]\nname = 'a'\nrole = 'look'\ntokens = ['secret']", "tokens"),
        ("[[person", "not TOML"),
    ],
)
def test_a_wrong_file_of_people_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "people.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said) as raised:
        People(file, user="me", allow_operate=False)
    assert "secret" not in str(raised.value)


def test_two_people_cannot_share_a_token(tmp_path: Path) -> None:
    file = tmp_path / "people.toml"
    file.write_text(FILE.format(look=hash_token("a"), label=hash_token("a"), operate=hash_token("b")))
    with pytest.raises(SettingsError, match="dr-a has a token of ward-3"):
        People(file, user="me", allow_operate=False)


def test_what_is_no_http_is_left_alone() -> None:
    async def never(*_: object) -> dict[str, object]:
        raise AssertionError

    guard = Guard(
        never,  # type: ignore[arg-type]
        Sessions(People(None, user="me", allow_operate=False)),
        hosts=frozenset,
        refuse=lambda *_: Response(),
        secure=False,
    )
    asyncio.run(guard({"type": "websocket"}, never, never))  # type: ignore[arg-type]
