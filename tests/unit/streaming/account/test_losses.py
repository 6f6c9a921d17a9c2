"""The checkpoint of SCORE against what its topics hold."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streaming.account import losses
from streaming.account.losses import Loss, find_losses
from streaming.settings import load_settings


def commit(checkpoint: Path, offsets: dict[str, dict[str, int]]) -> None:
    for folder, text in (("offsets", f"v1\n{{}}\n{json.dumps(offsets)}"), ("commits", "v1\n{}")):
        (checkpoint / folder).mkdir(parents=True)
        (checkpoint / folder / "0").write_text(text)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often a reader was opened."""
    opened: list[None] = []
    spans = {"images": {0: range(5, 9), 1: range(3)}, "results": {0: range(4)}}

    @contextmanager
    def open_reader(_kafka: object) -> Iterator[None]:
        opened.append(None)
        yield None

    monkeypatch.setattr(losses, "open_reader", open_reader)
    monkeypatch.setattr(losses, "read_spans", lambda _reader, topic: spans[topic])
    return opened


def test_without_a_checkpoint_nobody_is_asked(tmp_path: Path, opened: list[None]) -> None:
    assert find_losses(load_settings(environ={}, home=tmp_path)) == []
    assert opened == []


def test_gaps_and_ends_are_found_in_every_topic_of_the_checkpoint(tmp_path: Path, opened: list[None]) -> None:
    settings = load_settings(environ={}, home=tmp_path)
    commit(settings.checkpoints_folder / "score", {"images": {"0": 2, "1": 3, "2": 1}, "results": {"0": 6}})
    assert find_losses(settings) == [
        Loss("images", 0, range(2, 5), renewed=False),
        Loss("images", 2, range(1), renewed=True),
        Loss("results", 0, range(4, 6), renewed=True),
    ]
    assert len(opened) == 1


@pytest.mark.parametrize(
    "left",
    [
        {"images": {"0": 2, "1": 9}},  # as if it had lost something
        {"images": {"0": 5, "1": 3}},
        {"gone": {"0": 1}},  # a topic that nobody has any more
    ],
)
def test_the_checkpoint_of_a_former_archive_is_nobodys_loss(
    tmp_path: Path, opened: list[None], left: dict[str, dict[str, int]]
) -> None:
    """Releases that archived with Spark left one. The archive looks at its own places, and SCORE never waits for it."""
    settings = load_settings(environ={}, home=tmp_path)
    commit(settings.checkpoints_folder / "archive", left)
    assert find_losses(settings) == []
    assert opened == []
