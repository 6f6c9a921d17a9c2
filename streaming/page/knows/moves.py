"""Acts that change what the product does, each with its answer in words, written down in the audit trail."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import JobError
from schemas.registry import CHAMPION_FILE, read_aliases
from streaming.deadletters.read import Selection, show_dead_letter
from streaming.deadletters.redrive import Skip, plan_redrive, redrive
from streaming.kafka.places import Place
from streaming.page.knows.trail import Trail
from streaming.settings import StreamSettings

_WHY_SKIPPED = {
    Skip.TOMBSTONE: "it has no value, and would come back",
    Skip.EMPTY_PAYLOAD: "it is empty, and would come back",
    Skip.TOO_LARGE: "it is larger than the stream takes, and would come back",
    Skip.OVER_BOUND: "it is above a bound that no setting moves, and would come back",
    Skip.OTHER_TOPIC: "it came by another topic than the images topic",
    Skip.REPEATED: "it is a repetition of another dead letter",
    Skip.ALREADY_REDRIVEN: "it was sent again before",
}


@dataclass(frozen=True)
class MoveAnswer:
    """What came of an act.

    Parameters
    ----------
    done : bool
        Whether anything was changed, or is as it was asked for.
    text : str
        Why, in words that a person reads.
    """

    done: bool
    text: str


class ModelMoves(Protocol):
    """What decides on models and moves their aliases: ``xray models promote`` and ``rollback``."""

    def promote(self, version: str, *, why: str) -> MoveAnswer:
        """Let the stream serve a version, where the comparison with the present one permits it."""

    def roll_back(self, *, why: str) -> MoveAnswer:
        """Serve the champion before the last promotion again."""


class Operator:
    """Does what an operator asks for; never without a line in the trail before.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topics, and the folder of models.
    moves : ModelMoves
        Of the program that started the page.
    trail : Trail
        Where it is written down.
    """

    def __init__(self, settings: StreamSettings, moves: ModelMoves, trail: Trail) -> None:
        self._settings = settings
        self._moves = moves
        self._trail = trail
        # Of two who ask at the same moment, the second one is answered by what the first has done.
        self._lock = threading.Lock()

    def promote(self, version: str, *, typed: str, who: str) -> MoveAnswer:
        """Let the stream serve a version.

        Parameters
        ----------
        version : str
            See `schemas.registry`.
        typed : str
            What the operator typed: the same version.
        who : str
            Who asks for it.

        Raises
        ------
        TrailError
            Nothing was done, for it cannot be written down; or it was, and its answer cannot.
        """
        arguments = {"version": version, "typed": typed}
        if typed != version:
            return self._do(who, "promote", arguments, lambda: _mistyped(typed, version))
        return self._do(who, "promote", arguments, lambda: self._moves.promote(version, why=_why(who)))

    def roll_back(self, *, typed: str, who: str) -> MoveAnswer:
        """Serve the champion before the last promotion again.

        Parameters
        ----------
        typed : str
            What the operator typed: the version of the present champion, which is left.
        who : str
            Who asks for it.

        Raises
        ------
        TrailError
            See `promote`.
        """

        def act() -> MoveAnswer:
            # Read in turn: of two who type the same version, the second one must not go back once more.
            present = self._find_champion()
            return self._moves.roll_back(why=_why(who)) if typed == present else _mistyped(typed, present)

        return self._do(who, "roll_back", {"version": self._find_champion(), "typed": typed}, act)

    def redrive(self, place: Place, *, who: str, event_id: str = "") -> MoveAnswer:
        """Send the original of a dead letter to the images topic again, once.

        Parameters
        ----------
        place : Place
            In the dead-letter topic.
        who : str
            Who asks for it.
        event_id : str
            Of the dead letter that is meant: another one, which is there since the topic was made anew, is not sent.

        Raises
        ------
        TrailError
            See `promote`.
        """
        return self._do(who, "redrive", {"dead_letter": str(place)}, lambda: self._redrive(place, event_id))

    def _find_champion(self) -> str:
        return read_aliases(self._settings.models_folder).get(CHAMPION_FILE, "")

    def _redrive(self, place: Place, event_id: str) -> MoveAnswer:
        kafka = self._settings.kafka
        if event_id and show_dead_letter(kafka, place).letter.event_id != event_id:
            text = f"nothing was sent: at {place} is another dead letter now, for the topic was made anew"
            return MoveAnswer(False, text)
        most = self._settings.score.max_payload_bytes
        plan = plan_redrive(kafka, Selection(places=[place]), max_payload_bytes=most)
        if not plan.chosen:
            why = next((_WHY_SKIPPED[skip] for skip in plan.skipped), "this stream did not write it")
            return MoveAnswer(False, f"dead letter {place} is not sent again: {why}")
        report = redrive(kafka, plan)
        if report.failed:
            return MoveAnswer(False, f"dead letter {place} was not sent again: {report.failed[place]}")
        return MoveAnswer(True, f"dead letter {place} was sent to {kafka.images_topic} again")

    def _do(self, who: str, action: str, arguments: dict[str, str], act: Callable[[], MoveAnswer]) -> MoveAnswer:
        action_id = self._trail.ask(who, action, arguments)
        try:
            with self._lock:
                answer = act()
        except JobError as exc:
            answer = MoveAnswer(False, str(exc))
        self._trail.answer(action_id, done=answer.done, text=answer.text)
        return answer


def _why(who: str) -> str:
    return f"asked for on the page by {who}"


def _mistyped(typed: str, wanted: str) -> MoveAnswer:
    if not wanted:
        return MoveAnswer(False, "no model was promoted yet: there is nothing to go back from")
    return MoveAnswer(False, f"nothing was changed: {typed!r} was typed, wanted {wanted!r}")
