"""The file of JSON lines."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Delivered, Retry, Sink, State
from streaming.alerts.sinks import open_sinks
from streaming.alerts.sinks.wording import to_json
from tests.receiver import make_alarm


def open_file(path: Path, **changes: Any) -> Sink:
    return open_sinks({"log": {"type": "file", "path": str(path), **changes}})["log"]


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["data"]["id"] for line in path.read_text().splitlines()]


def test_each_alarm_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file)
    assert sink.deliver([make_alarm("1"), make_alarm("2", annotations={"summary": "two\nlines"})], 0) == Delivered()
    assert sink.deliver([make_alarm("1", State.RESOLVED)], 0) == Delivered()
    assert ids_in(file) == ["1", "2", "1"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["data"]["state"] for line in lines] == ["open", "open", "resolved"]
    assert {line["data"]["notice"] for line in lines} == {DISCLAIMER}
    assert file.stat().st_mode & 0o007 == 0


def test_files_are_renamed_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file, max_bytes=1, keep=2)
    for ident in "12345":
        sink.deliver([make_alarm(ident)], 0)
    assert {path.name: ids_in(path) for path in tmp_path.iterdir()} == {
        "alarms.jsonl": ["5"],
        "alarms.jsonl.1": ["4"],
        "alarms.jsonl.2": ["3"],
    }


def test_a_file_that_still_has_room_is_not_renamed(tmp_path: Path) -> None:
    file = tmp_path / "alarms.jsonl"
    one = len(to_json(make_alarm("1"))) + 1
    sink = open_file(file, max_bytes=2 * one)
    for ident in "123":
        sink.deliver([make_alarm(ident)], 0)
    assert (ids_in(tmp_path / "alarms.jsonl.1"), ids_in(file)) == (["1", "2"], ["3"])


def test_another_program_may_move_the_file_away(tmp_path: Path) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file)
    sink.deliver([make_alarm("1")], 0)
    file.rename(tmp_path / "moved")
    sink.deliver([make_alarm("2")], 0)
    assert ids_in(file) == ["2"]


@pytest.mark.parametrize("left", [b'{"half', b"\x00\x00", b"x"])
def test_half_a_line_of_a_kill_spoils_no_other(tmp_path: Path, left: bytes) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file)
    sink.deliver([make_alarm("1")], 0)
    with file.open("ab") as stream:
        stream.write(left)
    sink.deliver([make_alarm("2")], 0)
    lines = file.read_bytes().splitlines()
    assert lines[1] == left
    assert [json.loads(line)["data"]["id"] for line in (lines[0], lines[2])] == ["1", "2"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fails_leaves_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: int
) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file)
    sink.deliver([make_alarm("1")], 0)
    really = os.write
    written: list[int] = []

    def write_some(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(fault, os.strerror(fault))
        written.append(really(descriptor, bytes(data)[:10]))
        return written[0]

    def sync(descriptor: int) -> None:
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, write_some if call == "write" else sync)
        outcome = sink.deliver([make_alarm("2"), make_alarm("3")], 0)
    assert isinstance(outcome, Retry)
    assert os.strerror(fault) in outcome.why
    assert ids_in(file) == ["1"]
    assert sink.deliver([make_alarm("2"), make_alarm("3")], 1) == Delivered()
    assert ids_in(file) == ["1", "2", "3"]


def test_a_line_is_on_the_disk_before_it_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alarms.jsonl"
    sink = open_file(file)
    synced: list[int] = []
    really = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    sink.deliver([make_alarm("1")], 0)
    assert synced == [file.stat().st_ino, tmp_path.stat().st_ino]


def test_a_folder_that_is_gone_is_tried_again_without_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sink = open_file(folder / "alarms.jsonl")
    (folder / "alarms.jsonl").unlink()
    folder.rmdir()
    outcome = sink.deliver([make_alarm("1")], 0)
    assert isinstance(outcome, Retry)
    assert "No such file" in outcome.why
    waits = [sink.next_try_s(attempt) for attempt in (0, 1, 5, 6, 10_000)]
    assert waits == [1, 2, 32, 60, 60]
