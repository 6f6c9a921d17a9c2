"""Who may see the page, and what each may do there: one TOML file, or one token of this process.

::

    [[person]]
    name = "ward-3"                       # what labels and the trail say of who did it: a pseudonym
    role = "label"                        # look, label or operate
    tokens = ["sha256:..."]               # SHA-256 of the tokens that let this person in
"""

import hashlib
import hmac
import logging
import secrets
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import SettingsError

log = logging.getLogger(__name__)

_SETTING = "XRAY_PAGE__PEOPLE"
_LOOK_S = 1.0
"""The file is looked at that often, so that a person who leaves is out without a restart."""


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
    tokens: tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = Field(min_length=1, repr=False)


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
        self._file = file
        self._most = Role.OPERATE if allow_operate else Role.LABEL
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._stamp = _stamp(file)
        self.token: str | None = None
        """The single token; None where there is a file."""
        if file is None:
            self.token = secrets.token_urlsafe(24)
            self._known = {hash_token(self.token): Person(user, self._most)}
        else:
            self._known = self._limit(read_people(file))

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
        if self._file is None:
            return self._known
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= _LOOK_S:
                self._looked_at = now
                stamp = _stamp(self._file)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._read_again(self._file)
            return self._known

    def _read_again(self, file: Path) -> None:
        try:
            self._known = self._limit(read_people(file))
        except SettingsError as exc:
            log.error("who may see the page stays as it was: %s", exc)
        else:
            log.warning("%s was read again", file)

    def _limit(self, known: dict[str, Person]) -> dict[str, Person]:
        return {token: Person(one.name, min(one.role, self._most)) for token, one in known.items()}


def hash_token(token: str) -> str:
    """Give what the file has instead of a token."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def read_people(file: Path) -> dict[str, Person]:
    """Read the file of people: who, by the hash of each token.

    Raises
    ------
    SettingsError
        It cannot be read, or says something wrong; names the file and the place.
    """
    try:
        with file.open("rb") as stream:
            entries = _File.model_validate(tomllib.load(stream)).person
    except OSError as exc:
        msg = f"{_SETTING}: {file} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"{_SETTING}: {file} is not TOML: {exc}"
        raise SettingsError(msg) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        msg = f"{_SETTING}: {file}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise SettingsError(msg) from exc
    known: dict[str, Person] = {}
    for entry in entries:
        for token in entry.tokens:
            if token in known:
                msg = f"{_SETTING}: {file}: {entry.name} has a token of {known[token].name}; each needs one of its own"
                raise SettingsError(msg)
            known[token] = Person(entry.name, Role[entry.role.upper()])
    return known


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
