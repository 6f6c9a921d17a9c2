"""Sending by DICOM: association, C-ECHO, C-STORE, as the device's habits are, and what is done wrong on purpose."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification

from xray.simulator.answers import NO_ANSWER, NO_CONTEXT, REJECTED, REJECTED_NOW, Answer, read_status
from xray.simulator.association import Association, NoAnswerError, RejectedError
from xray.simulator.damage import Damage, spoil
from xray.simulator.habits import CR, DX, Habits
from xray.simulator.objects import Shot, write_dataset_bytes
from xray.simulator.pictures import Pictures

CT = str(CTImageStorage)
"""What nobody takes here."""


class AbortedOnPurposeError(Exception):
    """The sender has ended the connection in the middle of an object, as it was told to."""


@dataclass(frozen=True)
class DicomTarget:
    """Where devices send by DICOM.

    Parameters
    ----------
    host : str
        Name or address.
    port : int
        Of the gateway's DICOM door.
    called : str
        AE title.
    timeout_s : float
        For each answer.
    """

    host: str
    port: int
    called: str
    timeout_s: float = 60.0


class DicomSender:
    """A device's DICOM side.

    Parameters
    ----------
    habits : Habits
        Of the device.
    target : DicomTarget
        Where to.
    pictures : Pictures
        What its images show.
    pause : callable
        Waits so many seconds, of a slow sender.
    """

    def __init__(self, habits: Habits, target: DicomTarget, pictures: Pictures, pause: Callable[[float], None]) -> None:
        self._habits = habits
        self._target = target
        self._pictures = pictures
        self._pause = pause
        self._stack = ExitStack()
        self._open: Association | None = None

    def send(self, shot: Shot, damage: Damage | None) -> Answer:
        """Send an image once.

        Parameters
        ----------
        shot : Shot
            The image.
        damage : Damage or None
            What is done wrong with it.

        Raises
        ------
        AbortedOnPurposeError
            There is no answer, and none was wanted.
        """
        if self._habits.connection_each:
            self.close()
        announced, contexts = self._announce(shot, damage)
        try:
            return self._store(self._connect(contexts), announced, shot, damage)
        except RejectedError as exc:
            return REJECTED if exc.is_permanent else REJECTED_NOW
        except NoAnswerError:
            self._drop()
            return NO_ANSWER
        except AbortedOnPurposeError:
            self._drop()
            raise

    def close(self) -> None:
        """End the study: release its association."""
        self._stack.close()
        self._open = None

    def _drop(self) -> None:
        if self._open is not None:
            self._open.abort()
        self._stack.pop_all()
        self._open = None

    def _announce(self, shot: Shot, damage: Damage | None) -> tuple[str, tuple[str, ...]]:
        """Give the SOP class that the object is announced as, and those that are proposed for it."""
        own = self._habits.sop_class
        if damage is not Damage.WRONG_CLASS:
            return own, (own,)
        # Two ways to be wrong: a class that nobody takes, and one that is taken and not the object's.
        wrong = CT if shot.number % 2 == 0 else CR if own == DX else DX
        self.close()
        return wrong, (own, wrong)

    def _connect(self, classes: tuple[str, ...]) -> Association:
        if self._open is None:
            habits = self._habits
            contexts: list[tuple[str, tuple[str, ...]]] = [(str(Verification), habits.syntaxes[-1:])]
            for sop_class in classes:
                split = [(one,) for one in habits.syntaxes] if habits.context_each else [habits.syntaxes]
                contexts += [(sop_class, syntaxes) for syntaxes in split]
            self._open = Association(
                (self._target.host, self._target.port),
                calling=habits.aet,
                called=self._target.called,
                contexts=contexts,
                timeout_s=self._target.timeout_s,
                max_pdu_bytes=habits.max_pdu_bytes,
            )
            self._stack.callback(self._open.release)
            if habits.echoes and Verification in self._open.contexts:
                self._open.echo()
        return self._open

    def _store(self, association: Association, announced: str, shot: Shot, damage: Damage | None) -> Answer:
        accepted = association.contexts.get(announced, {})
        syntax = next((one for one in self._habits.syntaxes if one in accepted), None)
        if syntax is None:
            return NO_CONTEXT
        if announced == CT:
            shot = replace(shot, habits=replace(shot.habits, sop_class=CT))
        dataset = write_dataset_bytes(shot, self._pictures, syntax, pixels=damage is not Damage.NO_PIXELS)
        dataset = spoil(dataset, damage, shot.number)
        between: Any = None
        if damage is Damage.ABORTED:
            between = _abort_in_the_middle
        elif damage is Damage.SLOW:
            parts = len(dataset) // association.max_pdu_bytes + 2

            def between(_: float) -> None:
                self._pause(SLOW_S / parts)

        return read_status(association.store(announced, shot.sop_uid, syntax, dataset, between=between))


SLOW_S = 5.0
"""How long a slow sender takes for one object."""
_MIDDLE = 0.5


def _abort_in_the_middle(sent: float) -> None:
    if sent >= _MIDDLE:
        raise AbortedOnPurposeError
