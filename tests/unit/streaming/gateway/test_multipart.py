"""multipart/related while it streams: whatever the chunks, the same parts; and bodies that are none."""

import email
import email.policy
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.gateway.http.multipart import (
    Event,
    MultipartError,
    PartBegin,
    PartData,
    PartEnd,
    PartReader,
    read_media_type,
)

_BOUNDARY = "b-1"
_HEAD = b"Content-Type: application/dicom\r\n\r\n"


def read(body: bytes, cuts: list[int] | None = None, boundary: str = _BOUNDARY) -> list[tuple[str, bytes]]:
    """Read a body that arrives in chunks; gives media type and bytes of each part."""
    reader = PartReader(boundary)
    events: list[Event] = []
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})
    for start, end in itertools.pairwise(edges):
        events += reader.feed(body[start:end])
    reader.finish()
    return collect(events)


def collect(events: list[Event]) -> list[tuple[str, bytes]]:
    parts: list[tuple[str, bytes]] = []
    is_open = False
    for event in events:
        match event:
            case PartBegin(media_type):
                assert not is_open
                parts.append((media_type.name, b""))
                is_open = True
            case PartData(data):
                assert is_open
                parts[-1] = (parts[-1][0], parts[-1][1] + data)
            case PartEnd():
                assert is_open
                is_open = False
    assert not is_open
    return parts


def compose(parts: list[bytes], boundary: str = _BOUNDARY, preamble: bytes = b"", epilogue: bytes = b"") -> bytes:
    delimiter = b"--" + boundary.encode()
    body = preamble + b"\r\n" if preamble else b""
    for part in parts:
        body += delimiter + b"\r\n" + _HEAD + part + b"\r\n"
    return body + delimiter + b"--" + epilogue


# Made of what a parser stumbles over: ends of lines, hyphens, and beginnings of the boundary.
_pieces = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"b", b"b-", b"\r\n--b-", b"\r\n--", b"x", b"\x00", b""])
_hostile = st.lists(_pieces, max_size=30).map(b"".join).filter(lambda data: b"\r\n--b-1" not in b"\r\n" + data)


@given(
    st.lists(st.one_of(_hostile, st.binary(max_size=200)), min_size=1, max_size=5),
    st.lists(st.integers(0, 3000), max_size=40),
    _hostile,
    _hostile,
)
@example([b"\r\n--b-", b"--b", b"\r"], list(range(400)), b"This is a message of MIME.", b"\r\nand more")
@example([b"\r\n\r\n--b\r\n--b-", b""], list(range(400)), b"", b"")
def test_any_split_gives_the_same_parts(parts: list[bytes], cuts: list[int], preamble: bytes, epilogue: bytes) -> None:
    body = compose(parts, preamble=preamble, epilogue=epilogue)
    assert read(body, cuts) == [("application/dicom", part) for part in parts]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_any_bytes_end_in_parts_or_in_a_named_fault(body: bytes, cuts: list[int]) -> None:
    def outcome(cuts: list[int]) -> object:
        try:
            return read(body, cuts)
        except MultipartError:
            return None

    assert outcome(cuts) == outcome([])


@given(st.lists(st.binary(max_size=100).map(bytes.hex).map(str.encode), min_size=1, max_size=4))
def test_the_parts_are_those_that_pythons_own_mail_parser_finds(parts: list[bytes]) -> None:
    body = compose(parts, preamble=b"preamble", epilogue=b"\r\nepilogue")
    head = f'Content-Type: multipart/related; boundary="{_BOUNDARY}"\r\n\r\n'.encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    found = [part.get_payload(decode=True) for part in message.iter_parts()]  # type: ignore[attr-defined]
    assert [data for _, data in read(body)] == found


@pytest.mark.parametrize(
    "boundary", ["a", "0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1", "'()+_,-./:=?", "a b", "x" * 70, "-", "--", "=_?:"]
)
def test_boundaries_that_the_standard_allows(boundary: str) -> None:
    body = compose([b"one", b"\r\n--", b""], boundary)
    for cuts in ([], list(range(len(body)))):
        assert [data for _, data in read(body, cuts, boundary)] == [b"one", b"\r\n--", b""]


@pytest.mark.parametrize("boundary", ["", "x" * 71, "a\r\nb", "a ", "ü", '"', "a;b", "\x00"])
def test_boundaries_that_it_does_not(boundary: str) -> None:
    with pytest.raises(MultipartError, match="boundary"):
        PartReader(boundary)


def test_blanks_behind_a_boundary_are_nothing() -> None:
    body = b"--b-1 \t\r\n" + _HEAD + b"one\r\n--b-1  \r\n" + _HEAD + b"two\r\n--b-1--  \r\n"
    for cuts in ([], list(range(len(body)))):
        assert [data for _, data in read(body, cuts)] == [b"one", b"two"]


def test_a_nested_multipart_is_a_part_like_any_other() -> None:
    inner = compose([b"inside"], "inner")
    body = b"--b-1\r\nContent-Type: multipart/related; boundary=inner\r\n\r\n" + inner + b"\r\n--b-1--\r\n"
    assert read(body) == [("multipart/related", inner)]


def test_a_body_without_parts_has_none() -> None:
    assert read(b"--b-1--") == []
    assert read(b"preamble\r\n--b-1--\r\nepilogue") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"--b-1",
        b"--b-1\r\n",
        b"--b-1\r\n" + _HEAD + b"one",
        b"--b-1\r\n" + _HEAD + b"one\r\n--b-1",
        b"--b-1\r\n" + _HEAD + b"one\r\n--b-1\r\n",
        b"--b-1\r\n" + _HEAD + b"one\r\n--b-1-",
        b"--b-2--\r\n",
    ],
)
def test_a_body_that_ends_before_its_last_boundary_is_refused(body: bytes) -> None:
    for cuts in ([], list(range(len(body)))):
        with pytest.raises(MultipartError, match="ends before its last boundary"):
            read(body, cuts)


@pytest.mark.parametrize(
    "headers",
    [
        b"A: b\r\n" * 10_000,
        b"A: " + b"b" * 1_000_000 + b"\r\n",
        b"A" * 1_000_000 + b": b\r\n",
        b"no colon\r\n",
        b": nameless\r\n",
        b"A: b\rC: d\r\n",
        b"\x00: b\r\n",
    ],
    ids=["many", "long value", "long name", "no colon", "no name", "bare CR", "NUL"],
)
def test_hostile_headers_are_refused_without_a_word_of_them(headers: bytes) -> None:
    body = b"--b-1\r\n" + headers + b"\r\ndata\r\n--b-1--"
    for cuts in ([], list(range(0, min(len(body), 20_000), 7))):
        with pytest.raises(MultipartError) as refused:
            read(body, cuts)
        assert "nameless" not in str(refused.value)


def test_a_preamble_has_an_end() -> None:
    reader = PartReader(_BOUNDARY)
    with pytest.raises(MultipartError, match="no boundary in the first"):
        for _ in range(100):
            reader.feed(b"x" * 1000)


def test_what_the_parser_logs_is_not_seen(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MultipartError):
        read(b"--b-1\r\nExample^Synthetic\r\n\r\n--b-1--")
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("image/png", "image/png", {}),
        ("IMAGE/PNG ; q=1", "image/png", {"q": "1"}),
        (
            'multipart/related; type="application/dicom"; Boundary="a;b=c"',
            "multipart/related",
            {"type": "application/dicom", "boundary": "a;b=c"},
        ),
        ("multipart/related;boundary=abc;type=application/dicom", "multipart/related", None),
        ("", "", {}),
        (";;;", "", None),
    ],
)
def test_media_types(text: str, name: str, parameters: dict[str, str] | None) -> None:
    found = read_media_type(text)
    assert found.name == name
    assert parameters is None or found.parameters == parameters
