"""Tables in an object store: two writers never overwrite each other, and what fails says what to look at."""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from schemas import deltatable
from schemas.deltatable import append_rows, arrow_schema, create_table, failing_as, open_files, open_table
from schemas.documents import Table
from schemas.errors import TableError, TableMovedError
from schemas.objectstore import store_options
from tests.objectstore import BUCKET, KEY_ID, SECRET, ObjectStore, commits

_TABLE = Table("notes", {"id": "string"}, {"id": "key"}, (), "Notes.")


def rows(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids)}, arrow_schema(_TABLE))


@pytest.fixture
def place(store: ObjectStore) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/notes"


def stored(place: str) -> list[str]:
    table = open_table(place)
    assert table is not None
    return sorted(table.to_pyarrow_table()["id"].to_pylist())


def append(place: str, name: str) -> None:
    table = open_table(place)
    assert table is not None
    append_rows(table, rows(name), {name: 1})


def claim(place: str, name: str) -> None:
    table = open_table(place)
    assert table is not None
    with failing_as("the claim"):
        table.alter.set_table_properties({"own.writer": name}, raise_if_not_exists=False)


@pytest.mark.parametrize(
    ("changes", "lands"),
    [
        ((append, append), [["a"], ["b"]]),
        pytest.param((append, append, append), [["a"], ["b"], ["c"]], marks=pytest.mark.slow),
        pytest.param((append, claim), [[], ["a"]], marks=pytest.mark.slow),
    ],
    ids=["two", "three", "append and claim"],
)
@pytest.mark.slow
def test_of_appends_to_one_version_at_one_moment_one_lands(
    store: ObjectStore, place: str, changes: tuple[Callable[[str, str], None], ...], lands: list[list[str]]
) -> None:
    create_table(place, _TABLE, {})
    store.spoil("hold", count=len(changes), **commits(1))
    ends: list[BaseException | None] = []

    def run(change: Callable[[str, str], None], name: str) -> None:
        try:
            change(place, name)
        except TableMovedError as exc:
            ends.append(exc)
        else:
            ends.append(None)

    conditions: list[str | None] = []

    def count_held() -> int:
        conditions.extend(one.headers.get("if-none-match") for one in store.seen() if one.befallen == "hold")
        return len(conditions)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(changes, "abc", strict=False)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        # A claim keeps Python's lock until the store answers: whoever comes before it has to be on its way by then.
        deadline = time.monotonic() + 20
        while number < len(threads) and count_held() < number:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    for thread in threads:
        thread.join(60)
    assert count_held() == len(changes)
    assert conditions == ["*"] * len(changes)
    assert stored(place) in lands
    # A claim that came second goes in behind the append, as it may.
    assert ends.count(None) == (1 if claim not in changes or stored(place) == [] else 2)


@pytest.mark.slow
def test_an_append_whose_answer_is_lost_is_in_the_table_once(store: ObjectStore, place: str) -> None:
    table = create_table(place, _TABLE, {})
    store.spoil("lose answers", times=1, **commits())
    with pytest.raises(TableMovedError):  # by its own commit, as the place in it tells
        append_rows(table, rows("a"), {"p": 1})
    again = open_table(place)
    assert again is not None
    assert (again.version(), again.transaction_version("p"), stored(place)) == (1, 1, ["a"])


def test_files_are_found_wherever_the_table_is(place: str, tmp_path: Any) -> None:
    for where in (place, str(tmp_path / "t"), f"file://{tmp_path}/u"):
        append_rows(create_table(where, _TABLE, {}), rows("a"), {})
        table = open_table(where)
        assert table is not None
        with open_files(table).open_input_file(pa.table(table.get_add_actions())["path"][0].as_py()) as file:
            assert file.read(4) == b"PAR1"
    assert [store_options(where) is None for where in (place, str(tmp_path), f"file://{tmp_path}")] == [
        False,
        True,
        True,
    ]


def refuse(code: str, status: int = 403) -> dict[str, Any]:
    body = f"<Error><Code>{code}</Code><Message>{KEY_ID}</Message><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>"
    return {"kind": "answer", "status": status, "body": body}


@pytest.mark.parametrize(
    ("environment", "fault", "told"),
    [
        (
            {},
            refuse("InvalidAccessKeyId"),
            "403 Forbidden, InvalidAccessKeyId.*AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        ),
        ({}, refuse("SignatureDoesNotMatch"), "SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY"),
        ({}, refuse("ExpiredToken", 400), "400 Bad Request, ExpiredToken.*AWS_SESSION_TOKEN"),
        ({}, refuse("AccessDenied"), "AccessDenied.*may do in this bucket"),
        ({}, refuse("RequestTimeTooSkewed"), "clock"),
        ({}, refuse("AuthorizationHeaderMalformed", 400), "AWS_REGION"),
        *[  # what is tried again for a while first
            pytest.param(environment, fault, told, marks=pytest.mark.slow)
            for environment, fault, told in (
                ({}, refuse("SlowDown", 503), "503 Service Unavailable, SlowDown$"),
                ({}, refuse("InternalError", 500), "500 Internal Server Error, InternalError$"),
                ({}, refuse("NotImplemented", 501), "If-None-Match"),
                ({}, {"kind": "lose"}, "does not answer.*AWS_ENDPOINT_URL"),
                ({"AWS_ENDPOINT_URL": "http://nowhere.invalid:9000"}, None, "does not answer.*AWS_ENDPOINT_URL"),
            )
        ],
        ({"AWS_ALLOW_HTTP": "false"}, None, "without TLS.*AWS_ALLOW_HTTP=true"),
        ({"AWS_CONDITIONAL_PUT": "disabled"}, None, "AWS_CONDITIONAL_PUT"),
    ],
)
@pytest.mark.slow
def test_a_failure_says_what_to_look_at_and_no_key(
    store: ObjectStore,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    fault: dict[str, Any] | None,
    told: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store.spoil(**(fault or {"kind": "none"}))
    with pytest.raises(TableError, match=f"^the table {place} cannot be made: the object store: .*{told}") as caught:
        create_table(place, _TABLE, {})
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert KEY_ID not in message
    assert SECRET not in message


@pytest.mark.parametrize("what", [open_table, lambda place: create_table(place, _TABLE, {})])
def test_a_bucket_that_is_not_there_is_told(store: ObjectStore, what: Callable[[str], Any]) -> None:
    with pytest.raises(
        TableError, match=r"404 Not Found, NoSuchBucket. Here there is no such bucket: .*ARCHIVE__FOLDER"
    ):
        what("s3://other-bucket/notes")


@pytest.mark.slow
def test_a_store_that_takes_connections_and_says_nothing_is_given_up(
    store: ObjectStore, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(place, _TABLE, {})
    monkeypatch.setattr(deltatable, "store_options", lambda place: (store_options(place) or {}) | {"timeout": "1s"})
    monkeypatch.setattr("schemas.objectstore._RETRY_S", 2)

    store.spoil("hold")
    started = time.monotonic()
    with pytest.raises(TableError, match=r"operation timed out\. Here it does not answer"):
        open_table(place)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("No space left\non device", "what: No space left"),
        ("Kernel error -> File not found: part-0.parquet", "what: Kernel error -> File not found: part-0.parquet"),
        ("", "what: OSError"),
        ("conditional put is disabled not yet implemented by AmazonS3(b)", "AWS_CONDITIONAL_PUT"),
        (
            "Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error",
            "there are no credentials",
        ),
    ],
)
def test_what_else_fails_is_its_first_line(text: str, told: str) -> None:
    with pytest.raises(TableError, match=told) as caught, failing_as("what"):
        raise OSError(text)
    assert "\n" not in str(caught.value)
