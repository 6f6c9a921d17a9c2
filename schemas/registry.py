"""Which trained models there are, which of them the stream serves, and how that came about.

A folder of models: ``<version>/`` is a saved ``PipelineModel`` with its card, whose hash guards it; ``champion`` and
``challenger`` are text files that hold one version each; ``history.jsonl`` has a line for every move of an alias. Only
cards are read here; no Spark is needed.

Every change holds a lock on the history, writes it down first and then renames one file: a reader sees the old version
or the new one, and what a crash left between the two steps is told from a move that was made by the next line, which
names the version it started from.
"""

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, BinaryIO, Literal

from schemas.errors import ChampionChangedError, ModelLoadError
from schemas.folders import sync_folder
from schemas.modelcard import ModelCard, read_card

CHAMPION_FILE = "champion"
CHALLENGER_FILE = "challenger"
HISTORY_FILE = "history.jsonl"

Action = Literal["promote", "rollback", "challenge", "clear"]

_log = logging.getLogger(__name__)

_MAX_NAME_BYTES = 255
"""Of a folder's name: of a longer one, which a record may have, the system says an error and not that there is none."""


@dataclass(frozen=True)
class Move:
    """One line of the history: an alias was moved.

    Parameters
    ----------
    moved_at : str
        ISO 8601, UTC.
    action : str
        ``"promote"``, ``"rollback"``, ``"challenge"`` or ``"clear"``.
    alias : str
        ``"champion"`` or ``"challenger"``.
    before, after : str or None
        Versions; None where the alias was not there, or was removed.
    why : str
        In words; empty where nobody said.
    forced : bool
        Whether it was done although a comparison spoke against it.
    command : str
        What moved it, e.g. ``"xray models promote"``.
    """

    moved_at: str
    action: Action
    alias: str
    before: str | None
    after: str | None
    why: str = ""
    forced: bool = False
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Render as the history has it."""
        return {
            "when": self.moved_at,
            "action": self.action,
            "alias": self.alias,
            "from": self.before,
            "to": self.after,
            "why": self.why,
            "forced": self.forced,
            "command": self.command,
        }


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Parameters
    ----------
    card : ModelCard
        Of the version that serves now.
    before : str
        The version that served until then.
    skipped : tuple of (str, str)
        Earlier champions that could not be gone back to, and why.
    """

    card: ModelCard
    before: str
    skipped: tuple[tuple[str, str], ...]


def promote(
    models_folder: Path,
    version: str,
    *,
    expected: str | EllipsisType | None = ...,
    why: str = "",
    forced: bool = False,
    command: str = "xray models promote",
) -> ModelCard:
    """Make a version the one to serve. A challenger that is promoted is a challenger no more.

    The change is atomic: a reader sees the old version or the new one. Promoting the champion changes nothing.

    Parameters
    ----------
    models_folder : Path
        Where the models are.
    version : str
        Name of a folder in it.
    expected : str, optional
        The champion that this one was decided against, None where there was none. By default nobody decided, and
        whichever there is is replaced.
    why : str
        For the history.
    forced : bool
        For the history: it is done although a comparison spoke against it.
    command : str
        For the history: what asked for it.

    Returns
    -------
    ModelCard
        The version's card.

    Raises
    ------
    ModelLoadError
        There is no such version, it is damaged, or the folder cannot be written; the alias stays as it was.
    ChampionChangedError
        Another one than the expected is the champion; the alias stays as it is.
    """
    card = read_card(_folder_of(models_folder, version))
    with _locked_history(models_folder) as history:
        before = _present(models_folder, CHAMPION_FILE)
        if expected is not ... and before not in (expected, version):
            msg = (
                f"{version} was decided on while {expected or 'no model'} was in service, and now {before or 'none'} "
                "is: nothing was changed. Train again to compare with that one, or take it all the same: "
                f"xray models promote {version}"
            )
            raise ChampionChangedError(msg)
        if before != version:
            move = Move(_now(), "promote", CHAMPION_FILE, before, version, why, forced, command)
            _move(models_folder, history, move)
        if _present(models_folder, CHALLENGER_FILE) == version:
            move = Move(_now(), "clear", CHALLENGER_FILE, version, None, "it was promoted", command=command)
            _move(models_folder, history, move)
    _log.info("promoted model %s", version)
    return card


def rollback(
    models_folder: Path,
    *,
    why: str = "",
    command: str = "xray models rollback",
    find_fault: Callable[[ModelCard], str] = lambda _: "",
) -> Rollback:
    """Serve the champion before the last promotion again; done twice, the one before that.

    Parameters
    ----------
    models_folder : Path
        Where the models are.
    why, command : str
        For the history.
    find_fault : callable
        Says why a version cannot be served; empty where it can.

    Returns
    -------
    Rollback
        What serves now. Earlier champions that are gone, damaged or cannot be served were skipped.

    Raises
    ------
    ModelLoadError
        There is no champion, none before it that can be served, or the folder cannot be written; the alias stays as it
        was.
    """
    if CHAMPION_FILE not in read_aliases(models_folder):
        msg = f"no model was promoted in {models_folder}: there is nothing to go back from"
        raise ModelLoadError(msg)
    with _locked_history(models_folder) as history:
        champion = read_aliases(models_folder)[CHAMPION_FILE]
        skipped: list[tuple[str, str]] = []
        for version in _earlier_champions(read_history(models_folder), champion):
            try:
                card = read_card(_folder_of(models_folder, version))
            except ModelLoadError as exc:
                skipped.append((version, str(exc)))
                continue
            if fault := find_fault(card):
                skipped.append((version, fault))
                continue
            _move(
                models_folder,
                history,
                Move(_now(), "rollback", CHAMPION_FILE, champion, version, why, command=command),
            )
            _log.info("rolled back from model %s to %s", champion, version)
            return Rollback(card, champion, tuple(skipped))
    told = "".join(f"; not {version}: {reason}" for version, reason in skipped)
    msg = f"no champion before {champion} can be served{told}. 'xray models promote VERSION' takes another model."
    raise ModelLoadError(msg)


def set_challenger(
    models_folder: Path, version: str, *, why: str = "", command: str = "xray models challenge"
) -> ModelCard:
    """Make a version the challenger: the one that may be the next champion.

    Parameters
    ----------
    models_folder : Path
        Where the models are.
    version : str
        Name of a folder in it.
    why, command : str
        For the history.

    Returns
    -------
    ModelCard
        The version's card.

    Raises
    ------
    ModelLoadError
        There is no such version, it is damaged, it is the champion, or the folder cannot be written.
    """
    card = read_card(_folder_of(models_folder, version))
    with _locked_history(models_folder) as history:
        if _present(models_folder, CHAMPION_FILE) == version:
            msg = f"{version} is the champion, so it cannot be the challenger; name another version"
            raise ModelLoadError(msg)
        before = _present(models_folder, CHALLENGER_FILE)
        if before != version:
            move = Move(_now(), "challenge", CHALLENGER_FILE, before, version, why, command=command)
            _move(models_folder, history, move)
    return card


def clear_challenger(
    models_folder: Path, *, why: str = "", command: str = "xray models challenge --none"
) -> str | None:
    """Have no challenger any more.

    Returns
    -------
    str or None
        The version that was it; None where there was none.

    Raises
    ------
    ModelLoadError
        The folder cannot be written.
    """
    if not (models_folder / CHALLENGER_FILE).exists():
        return None
    with _locked_history(models_folder) as history:
        before = _present(models_folder, CHALLENGER_FILE)
        move = Move(_now(), "clear", CHALLENGER_FILE, before, None, why, command=command)
        _move(models_folder, history, move)
    return before


def champion_folder(models_folder: Path) -> Path:
    """Give the folder of the version to serve.

    Raises
    ------
    ModelLoadError
        None was promoted yet, or the promoted one is gone.
    """
    version = _read_alias(models_folder, CHAMPION_FILE)
    if version is None:
        msg = f"no model was promoted in {models_folder}. Train one with 'xray train --data FOLDER'."
        raise ModelLoadError(msg)
    folder = _folder_of(models_folder, version)
    if not folder.is_dir():
        msg = (
            f"the promoted model {version} is not in {models_folder}. Promote another one; 'xray models list' "
            "lists them."
        )
        raise ModelLoadError(msg)
    return folder


def challenger_folder(models_folder: Path) -> Path | None:
    """Give the folder of the challenger.

    Returns
    -------
    Path or None
        None where there is no challenger, which is nothing unusual.

    Raises
    ------
    ModelLoadError
        There is one, and its folder is gone.
    """
    version = _read_alias(models_folder, CHALLENGER_FILE)
    if version is None:
        return None
    folder = _folder_of(models_folder, version)
    if not folder.is_dir():
        msg = f"the challenger {version} is not in {models_folder}. 'xray models challenge --none' forgets it."
        raise ModelLoadError(msg)
    return folder


def read_aliases(models_folder: Path) -> dict[str, str]:
    """Read which version each alias names, whether or not that is there; an alias that is not set is left out."""
    found = {alias: _present(models_folder, alias) for alias in (CHAMPION_FILE, CHALLENGER_FILE)}
    return {alias: version for alias, version in found.items() if version is not None}


def list_models(models_folder: Path) -> list[ModelCard]:
    """Read the cards of all models, oldest first; a damaged model is left out and logged.

    Returns
    -------
    list of ModelCard
        Empty where there is no such folder.
    """
    folders = [path for path in models_folder.glob("[!.]*") if path.is_dir()]
    cards = [card for card in map(_read_or_log, folders) if card is not None]
    return sorted(cards, key=lambda card: (card.created_at, card.version))


def find_model(models_folder: Path, name: str) -> Path:
    """Give the folder of a version, or of the one that an alias names. It is not checked against its hash.

    Raises
    ------
    ModelLoadError
        There is no such version, or the alias is not set.
    """
    if name == CHAMPION_FILE:
        return champion_folder(models_folder)
    if name == CHALLENGER_FILE:
        folder = challenger_folder(models_folder)
        if folder is None:
            msg = "there is no challenger. 'xray models challenge VERSION' sets one."
            raise ModelLoadError(msg)
        return folder
    folder = _folder_of(models_folder, name)
    if not folder.is_dir():
        msg = f"there is no model {name} in {models_folder}; 'xray models list' lists them."
        raise ModelLoadError(msg)
    return folder


def read_history(models_folder: Path) -> tuple[Move, ...]:
    """Read the history, oldest first; a damaged line is left out and logged.

    Returns
    -------
    tuple of Move
        Empty where nothing was written down yet.

    Raises
    ------
    ModelLoadError
        The file is there and cannot be read.
    """
    path = models_folder / HISTORY_FILE
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as exc:
        msg = f"cannot read {path}: {exc}"
        raise ModelLoadError(msg) from exc
    moves = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            moves.append(_parse_move(line))
        except (ValueError, KeyError, TypeError) as exc:
            _log.warning("%s, line %d is damaged and left out: %s: %s", path, number, type(exc).__name__, exc)
    return tuple(moves)


def _parse_move(line: bytes) -> Move:
    values = json.loads(line)
    return Move(
        moved_at=str(values["when"]),
        action=values["action"],
        alias=str(values["alias"]),
        before=_version_or_none(values["from"]),
        after=_version_or_none(values["to"]),
        why=str(values["why"]),
        forced=bool(values["forced"]),
        command=str(values["command"]),
    )


def _version_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        msg = f"a version is {value!r}, wanted a text or null"
        raise TypeError(msg)
    return value


def _earlier_champions(moves: Sequence[Move], champion: str) -> list[str]:
    """Give the champions that promotions of later ones replaced, the nearest first, each once."""
    stack: list[str] = []
    for move in moves:
        if move.alias != CHAMPION_FILE or move.after is None:
            continue
        if move.before is not None:
            _settle(stack, move.before)
        if move.action == "rollback" and move.after in stack:
            while stack[-1] != move.after:
                stack.pop()
        else:
            stack.append(move.after)
    _settle(stack, champion)
    return [version for version in dict.fromkeys(reversed(stack)) if version != champion]


def _settle(stack: list[str], champion: str) -> None:
    """Make the top of the stack the version that is known to have been the champion then."""
    if stack[-1:] == [champion]:
        return
    if stack[-2:-1] == [champion]:
        stack.pop()  # the last move was written down, and a crash kept it from being made
    else:
        stack.append(champion)


@contextmanager
def _locked_history(models_folder: Path) -> Iterator[BinaryIO]:
    """Keep every other process from moving an alias meanwhile."""
    path = models_folder / HISTORY_FILE
    try:
        with path.open("ab+") as history:
            fcntl.flock(history, fcntl.LOCK_EX)
            yield history
    except OSError as exc:
        msg = f"cannot change which model is served: {exc}"
        raise ModelLoadError(msg) from exc


def _move(models_folder: Path, history: BinaryIO, move: Move) -> None:
    """Write a move down, then make it."""
    path = models_folder / move.alias
    if move.after is None:
        _append(history, move)
        path.unlink(missing_ok=True)
        sync_folder(models_folder)
        return
    descriptor, scratch = tempfile.mkstemp(dir=models_folder, prefix=f".{move.alias}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{move.after}\n")
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp lets only its owner read; the stream may run as another user.
        Path(scratch).chmod(0o644)
        _append(history, move)
        Path(scratch).replace(path)
        sync_folder(models_folder)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _append(history: BinaryIO, move: Move) -> None:
    line = json.dumps(move.to_dict()).encode() + b"\n"
    # A line that a crash cut off must not swallow this one.
    size = history.seek(0, os.SEEK_END)
    if size:
        history.seek(size - 1)
        if history.read(1) != b"\n":
            line = b"\n" + line
    history.write(line)
    history.flush()
    os.fsync(history.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _present(models_folder: Path, alias: str) -> str | None:
    """Read an alias that is about to be changed, or shown: one that cannot be read names nothing."""
    try:
        return _read_alias(models_folder, alias)
    except ModelLoadError as exc:
        _log.warning("%s", exc)
        return None


def _read_alias(models_folder: Path, alias: str) -> str | None:
    path = models_folder / alias
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"cannot read {path}: {exc}"
        raise ModelLoadError(msg) from exc


def _read_or_log(folder: Path) -> ModelCard | None:
    try:
        return read_card(folder)
    except ModelLoadError as exc:
        _log.warning("left out of the list: %s", exc)
        return None


def _folder_of(models_folder: Path, version: str) -> Path:
    # A version is a name, never a way out of the folder.
    is_name = version and not version.startswith(".") and Path(version).name == version
    if not is_name or len(version.encode(errors="replace")) > _MAX_NAME_BYTES:
        msg = f"{version[:_MAX_NAME_BYTES]!r} is no version of a model; 'xray models list' lists them."
        raise ModelLoadError(msg)
    return models_folder / version
