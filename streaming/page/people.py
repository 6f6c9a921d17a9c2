"""Who may see the page, and what each may do there: one TOML file, or one token of this process.

::

    [[person]]
    name = "ward-3"                       # what labels and the trail say of who did it: a pseudonym
    role = "label"                        # look, label or operate
    tokens = ["sha256:..."]               # SHA-256 of the tokens that let this person in
"""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import SettingsError
from streaming.accessfile import TokenHash, WatchedFile, hash_token, read_access

_SETTING = "XRAY_PAGE__PEOPLE"


class Role(IntEnum):
    """What a person may do; each may do what is below as well."""

    LOOK = 1
    LABEL = 2
    OPERATE = 3


@dataclass(frozen=True)
class Person:
    """Whoever has a token.

    Parameters
    ----------
    name : str
        As labels and the trail say it.
    role : Role
        What this person may do.
    """

    name: str
    role: Role


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[\w.@-][\w.@ -]{0,63}$")
    role: Literal["look", "label", "operate"]
    tokens: tuple[TokenHash, ...] = Field(min_length=1, repr=False)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    person: tuple[_Entry, ...] = Field(min_length=1)


class People:
    """Who may come in.

    Parameters
    ----------
    file : Path, optional
        See the module. Without one there is a single token, made here, and whoever started the page has it.
    user : str
        Name of that person.
    allow_operate : bool
        Whether anybody may operate; otherwise those who could may label.
    clock : callable
        Seconds; for tests.

    Raises
    ------
    SettingsError
        The file cannot be read, or says something wrong. Once it was read, a wrong change is left out, and logged.
    """

    def __init__(
        self, file: Path | None, *, user: str, allow_operate: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = Role.OPERATE if allow_operate else Role.LABEL
        self.token: str | None = None
        """The single token; None where there is a file."""
        self._file: WatchedFile[dict[str, Person]] | None = None
        self._alone: dict[str, Person] = {}
        if file is None:
            self.token = secrets.token_urlsafe(24)
            self._alone = {hash_token(self.token): Person(user, self._most)}
        else:
            self._file = WatchedFile(
                file,
                lambda path: self._limit(read_people(path)),
                kept="who may see the page stays as it was",
                clock=clock,
            )

    def find(self, digest: str) -> Person | None:
        """Give who has a token of this hash now; None where nobody has.

        Parameters
        ----------
        digest : str
            As `hash_token` gives it. A session keeps this, so that it ends when its token is taken away.
        """
        found = None
        for known, person in self._current().items():  # each is compared: time says nothing about the others
            if hmac.compare_digest(known, digest):
                found = person
        return found

    def _current(self) -> dict[str, Person]:
        return self._alone if self._file is None else self._file.current()

    def _limit(self, known: dict[str, Person]) -> dict[str, Person]:
        return {token: Person(one.name, min(one.role, self._most)) for token, one in known.items()}


def read_people(file: Path) -> dict[str, Person]:
    """Read the file of people: who, by the hash of each token.

    Raises
    ------
    SettingsError
        It cannot be read, or says something wrong; names the file and the place.
    """
    known: dict[str, Person] = {}
    for entry in read_access(file, _File, _SETTING).person:
        for token in entry.tokens:
            if token in known:
                msg = f"{_SETTING}: {file}: {entry.name} has a token of {known[token].name}; each needs one of its own"
                raise SettingsError(msg)
            known[token] = Person(entry.name, Role[entry.role.upper()])
    return known
