"""Models and tables: whether they can be opened, and who holds them."""

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.deltatable import open_table
from schemas.documents import load_tables
from schemas.errors import JobError, ModelLoadError
from schemas.modelcard import NOVELTY_FILE, ModelCard, read_card
from schemas.objectstore import local_folder
from schemas.registry import challenger_folder, champion_folder
from sparkdl.engine.novelty import read_detector
from sparkdl.image.limits import RENDERING_VERSIONS, describe_other_rendering
from streaming.archive.archivetable import WRITER_PROPERTY
from streaming.settings import StreamSettings
from xray.doctor.finding import Finding, Verdict

_LOCK_FIELDS = 6


def check_models(settings: StreamSettings) -> Iterator[Finding]:
    """Check the model to serve and the challenger against their hashes and the rendering that is known here."""
    try:
        folder = settings.model or champion_folder(settings.models_folder)
    except ModelLoadError as exc:
        yield _fault("models", exc)
    else:
        yield _check_model(folder, "the model of XRAY_MODEL" if settings.model else "the champion")
    try:
        challenger = challenger_folder(settings.models_folder)
    except ModelLoadError as exc:
        yield _fault("models", exc, Verdict.WARNING)
        return
    if challenger is not None:
        yield _check_model(challenger, "the challenger", worst=Verdict.WARNING)


def _check_model(folder: Path, what: str, worst: Verdict = Verdict.FAULT) -> Finding:
    try:
        card = read_card(folder)
        if card.novelty is not None:
            _check_detector(folder, card)
    except OSError as exc:
        advice = "Give this user leave to read it, or promote another one: 'xray models list'."
        return Finding("models", worst, f"{what} at {folder} cannot be read: {exc.strerror}", advice)
    except JobError as exc:
        advice = "Copy it anew from where it was trained, or go back with 'xray models rollback'."
        return Finding("models", worst, f"{what}: {exc}", advice)
    told = describe_other_rendering(card.rendering_version)
    if told:
        verdict = Verdict.WARNING if card.rendering_version in RENDERING_VERSIONS else worst
        return Finding("models", verdict, f"{what} {card.version} is of another rendering", told)
    return Finding("models", Verdict.OK, f"{what} {card.version}: its files are as its hash says")


def _check_detector(folder: Path, card: ModelCard) -> None:
    stored = read_detector(folder / NOVELTY_FILE).threshold
    if card.novelty is not None and stored != card.novelty.threshold:
        msg = f"{folder / NOVELTY_FILE} has threshold {stored}, the model's card says {card.novelty.threshold}"
        raise ModelLoadError(msg)


def check_tables(settings: StreamSettings) -> Iterator[Finding]:
    """Open each table, and tell who fills it; no lock is taken, which would keep an archive from starting."""
    folder = settings.tables_folder
    for name in load_tables():
        try:
            table = open_table(f"{folder}/{name}")
            claim = None if table is None else table.metadata().configuration.get(WRITER_PROPERTY)
        except JobError as exc:
            yield _fault("tables", exc)
            continue
        if table is None:
            advice = "An archive makes it with the first outcome."
            yield Finding("tables", Verdict.OK, f"{name} is not there yet", advice)
        else:
            by = f"claimed by {claim}" if claim else "claimed by nobody"
            yield Finding("tables", Verdict.OK, f"{name} opens at version {table.version()}, {by}")
    path = local_folder(folder)
    if path is None:
        yield Finding("tables", Verdict.OK, "in an object store there is no lock: the claim says who fills them")
    elif path.is_dir():
        holder = find_holder(path)
        held = f"process {holder} (archive or compaction)" if holder else "nobody"
        yield Finding("tables", Verdict.OK, f"the lock on {path} is held by {held}")


def find_holder(folder: Path, *, locks: Path = Path("/proc/locks")) -> int | None:
    """Find the process that holds the lock on a folder, without taking it; None where nobody does, or none can tell."""
    try:
        lines = locks.read_text(encoding="ascii").splitlines()
        found = folder.stat()
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        fields = line.split()
        if len(fields) >= _LOCK_FIELDS and fields[1] == "FLOCK" and fields[5] == place:
            return int(fields[4])
    return None


def _fault(check: str, exc: JobError, verdict: Verdict = Verdict.FAULT) -> Finding:
    found, _dot, advice = str(exc).partition(". ")
    return Finding(check, verdict, found.rstrip("."), advice or "See deploy/runbook.md.")
