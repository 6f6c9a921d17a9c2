"""The audit trail, and what an operator does, which is in it before it is done."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.errors import ModelLoadError
from schemas.registry import promote
from streaming.kafka.places import Place
from streaming.page.knows.moves import MoveAnswer, Operator
from streaming.page.knows.trail import Trail, TrailError
from streaming.settings import KafkaSettings, StreamSettings
from tests.savedmodels import add_model


class Moves:
    """A fake: moves nothing, and notes what it was asked for and what the trail said then."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.asked: list[str] = []
        self.in_trail: list[int] = []

    def promote(self, version: str, *, why: str) -> MoveAnswer:
        self.asked.append(f"promote {version}, {why}")
        self.in_trail.append(len(self.trail.list_newest()))
        if version == "v9":
            msg = "there is no model v9"
            raise ModelLoadError(msg)
        return MoveAnswer(True, f"Promoted {version}.")

    def roll_back(self, *, why: str) -> MoveAnswer:
        self.asked.append(f"roll back, {why}")
        return MoveAnswer(True, "Back to v0.")


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "audit" / "page.jsonl")


@pytest.fixture
def moves(trail: Trail) -> Moves:
    return Moves(trail)


@pytest.fixture
def operator(tmp_path: Path, trail: Trail, moves: Moves) -> Operator:
    settings = StreamSettings(home=tmp_path, kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    return Operator(settings, moves, trail)


def test_an_action_is_written_down_before_it_is_done_and_with_its_answer_after(
    operator: Operator, trail: Trail, moves: Moves
) -> None:
    assert operator.promote("v2", typed="v2", who="op-1") == MoveAnswer(True, "Promoted v2.")
    assert moves.asked == ["promote v2, asked for on the page by op-1"]
    assert moves.in_trail == [1]
    [entry] = trail.list_newest()
    assert (entry.who, entry.action, entry.answer, entry.done) == ("op-1", "promote", "Promoted v2.", True)
    assert entry.arguments == {"version": "v2", "typed": "v2"}


def test_a_name_that_is_not_typed_right_changes_nothing_and_is_written_down(
    operator: Operator, trail: Trail, moves: Moves
) -> None:
    answer = operator.promote("v2", typed="v3", who="op-1")
    assert not answer.done
    assert "'v3' was typed, wanted 'v2'" in answer.text
    assert moves.asked == []
    assert trail.list_newest()[0].done is False


def test_going_back_wants_the_champions_name(operator: Operator, moves: Moves, tmp_path: Path) -> None:
    assert "nothing to go back from" in operator.roll_back(typed="v1", who="op-1").text
    add_model(tmp_path, "v1")
    promote(tmp_path / "models", "v1")
    assert not operator.roll_back(typed="v2", who="op-1").done
    assert operator.roll_back(typed="v1", who="op-1").done
    assert moves.asked == ["roll back, asked for on the page by op-1"]


def test_of_two_who_go_back_at_the_same_moment_one_does(tmp_path: Path, trail: Trail) -> None:
    class Slow(Moves):
        """A fake that goes back to v0 once both have asked."""

        def roll_back(self, *, why: str) -> MoveAnswer:
            until = time.monotonic() + 10
            while len(self.trail.list_newest()) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            promote(tmp_path / "models", "v0")
            return super().roll_back(why=why)

    add_model(tmp_path, "v0")
    add_model(tmp_path, "v1")
    promote(tmp_path / "models", "v1")
    moves = Slow(trail)
    operator = Operator(StreamSettings(home=tmp_path), moves, trail)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda who: operator.roll_back(typed="v1", who=who), ("op-1", "op-2")))
    assert sorted(one.done for one in answers) == [False, True]
    assert any("'v1' was typed, wanted 'v0'" in one.text for one in answers)
    assert len(moves.asked) == 1


@pytest.mark.slow  # what cannot be reached is waited for
def test_a_refusal_is_an_answer(operator: Operator, trail: Trail) -> None:
    assert operator.promote("v9", typed="v9", who="op-1") == MoveAnswer(False, "there is no model v9")
    assert trail.list_newest()[0].answer == "there is no model v9"
    answer = operator.redrive(Place(0, 3), who="op-1")
    assert not answer.done
    assert "cannot reach Kafka" in answer.text
    assert [one.action for one in trail.list_newest()] == ["redrive", "promote"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs a file that takes nothing")
def test_another_dead_letter_at_the_same_place_is_not_sent(
    operator: Operator, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(letter=SimpleNamespace(event_id="cd" * 16))
    monkeypatch.setattr("streaming.page.knows.moves.show_dead_letter", lambda kafka, place: other)
    answer = operator.redrive(Place(0, 3), who="op-1", event_id="ab" * 16)
    assert (answer.done, "another dead letter now" in answer.text) == (False, True)
    assert trail.list_newest()[0].answer == answer.text


def test_without_the_trail_nothing_is_done(operator: Operator, trail: Trail, moves: Moves) -> None:
    trail.path.parent.mkdir()
    trail.path.symlink_to("/dev/full")
    with pytest.raises(TrailError, match="Nothing is done without it"):
        operator.promote("v2", typed="v2", who="op-1")
    assert moves.asked == []


def test_an_action_without_an_answer_is_shown_as_such(trail: Trail) -> None:
    trail.ask("op-1", "promote", {"version": "v2"})
    [entry] = trail.list_newest()
    assert (entry.done, entry.answer) == (None, "")


def test_a_line_that_a_crash_cut_off_swallows_none(trail: Trail) -> None:
    trail.ask("op-1", "promote", {"version": "v2"})
    with trail.path.open("ab") as file:
        file.write(b'{"at": "2026-01-31T14')
    action_id = trail.ask("op-2", "redrive", {"dead_letter": "0@3"})
    trail.answer(action_id, done=True, text="sent")
    assert [(one.who, one.done) for one in trail.list_newest()] == [("op-2", True), ("op-1", None)]


def test_lines_of_several_processes_are_whole(trail: Trail) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom streaming.page.knows.trail import Trail\n"
        "for n in range(50): Trail(Path(sys.argv[1])).ask(sys.argv[2], 'promote', {'version': 'v' * 5000})"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(trail.path), f"op-{n}"]) for n in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    lines = [json.loads(line) for line in trail.path.read_bytes().splitlines()]
    assert len(lines) == 150
    assert trail.path.stat().st_mode & 0o777 == 0o600
    assert len(trail.list_newest(limit=1000)) == 150
