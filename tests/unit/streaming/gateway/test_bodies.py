"""An object while it is received: in memory, then in a file that nobody finds."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streaming.gateway.http.bodies import IN_MEMORY_BYTES, Body
from streaming.gateway.refusals import Cause, Refusal


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def fill(body: Body, *chunks: bytes) -> None:
    async def run() -> None:
        for chunk in chunks:
            body.add(chunk)
            await body.settle()

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 5 * IN_MEMORY_BYTES + 7])
def test_what_came_is_given_back(tmp_path: Path, executor: ThreadPoolExecutor, size: int) -> None:
    content = os.urandom(size)
    body = Body(tmp_path, size + 1, executor)
    fill(body, *(content[start : start + 70_001] for start in range(0, size, 70_001)))
    assert (body.read(), body.size) == (content, size)
    assert body.read_head(10) == content[:10]
    assert body.read() == content
    assert not list(tmp_path.iterdir())  # the file has no name
    body.close()


def test_small_ones_need_no_disk(executor: ThreadPoolExecutor) -> None:
    body = Body(Path("/nowhere"), IN_MEMORY_BYTES, executor)
    fill(body, bytes(IN_MEMORY_BYTES))
    assert body.size == IN_MEMORY_BYTES


@pytest.mark.parametrize("chunks", [[9], [4, 5], [1] * 9, [IN_MEMORY_BYTES * 2]])
def test_one_that_is_too_large_is_refused_and_its_begin_kept(
    tmp_path: Path, executor: ThreadPoolExecutor, chunks: list[int]
) -> None:
    body = Body(tmp_path, 8, executor)
    with pytest.raises(Refusal) as refused:
        fill(body, *(b"DICOM..."[:1] * size for size in chunks))
    assert refused.value.cause is Cause.TOO_LARGE
    assert body.read_head(4) == b"DDDD"


def test_a_disk_that_fails_is_a_reason_to_send_again(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    body = Body(tmp_path / "gone", 10 * IN_MEMORY_BYTES, executor)
    with pytest.raises(Refusal) as refused:
        fill(body, bytes(IN_MEMORY_BYTES + 1))
    assert refused.value.cause is Cause.BUSY
    assert str(tmp_path) not in refused.value.detail


def test_a_full_disk_is_a_reason_too(executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "streaming.gateway.http.bodies.tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("wb", 0)
    )
    body = Body(Path("/nowhere"), 10 * IN_MEMORY_BYTES, executor)
    with pytest.raises(Refusal, match="No space left"):
        fill(body, bytes(IN_MEMORY_BYTES + 1))
    body.close()
