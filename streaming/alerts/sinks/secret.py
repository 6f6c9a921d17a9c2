"""A secret of a sink: in a file or an environment variable, never in the rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator

_MAX_BYTES = 64 * 1024


class SecretError(Exception):
    """The secret cannot be read; says where it was looked for, never what was there."""


class Secret(BaseModel):
    """Where a secret is: ``{env: NAME}`` or ``{file: PATH}``. Validated with the environment as context.

    Parameters
    ----------
    env : str or None
        Name of an environment variable.
    file : Path or None
        A file; white space around its text is not a part of it. It is read at each use, so a secret that is changed
        there needs no restart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env: str | None = Field(default=None, min_length=1)
    file: Path | None = None
    _environment: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_place(self, info: ValidationInfo) -> Self:
        if (self.env is None) == (self.file is None):
            msg = "expected either env (a variable's name) or file (a path)"
            raise ValueError(msg)
        self._environment = info.context or {}
        try:
            self.read()
        except SecretError as exc:
            raise ValueError(str(exc)) from exc
        return self

    @property
    def place(self) -> str:
        """Where it is, for errors."""
        return f"the file {self.file}" if self.file is not None else f"the environment variable {self.env}"

    def read(self) -> str:
        """Read it.

        Raises
        ------
        SecretError
            It is not there, or is not one line of printable ASCII: what headers and mail servers take.
        """
        text = self._environment.get(str(self.env), "") if self.file is None else self._read_file(self.file)
        secret = text.strip()
        if not secret:
            msg = f"{self.place} is empty or not there"
            raise SecretError(msg)
        if not (secret.isascii() and secret.isprintable()):
            msg = f"{self.place} holds no secret: expected one line of printable ASCII"
            raise SecretError(msg)
        return secret

    def _read_file(self, file: Path) -> str:
        try:
            with file.open("rb") as stream:
                return stream.read(_MAX_BYTES).decode("latin-1")
        except OSError as exc:
            msg = f"{self.place} cannot be read: {exc.strerror}"
            raise SecretError(msg) from exc
