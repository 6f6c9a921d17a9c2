"""Fuzzing of the decoders: damaged files, each decoded in a child process with limits.

Each file must end in an image or in a named reason. A crash, more than 2 s of a processor, more memory than the pixels
account for, an exception that escapes or is dropped, an error that quotes the file, two images of the same bytes: all
these are finds. The file of a find is made small and kept in a folder, and the exit code is 1.

Run it: ``python -m benchmarks.fuzz`` (``--help``). A find again: ``python -m benchmarks.fuzz build/fuzz/png/NAME``.
Linux alone: memory is read from /proc.
"""

import random
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.fuzz.guided import GUIDED, hunt_guided
from benchmarks.fuzz.hunt import Hunt
from benchmarks.fuzz.jail import Jail
from benchmarks.fuzz.kinds import KINDS, Kind
from benchmarks.fuzz.report import Tally, draw_table
from xray.console import err, new_progress, print_json

_FOLDER = Path("build/fuzz")


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Only these files, each from a folder named for its decoder.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For all decoders together.")] = 3600,
    decoder: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; several comma-separated, or all.")] = "all",
    seed: Annotated[int | None, typer.Option(help="Of the draw; drawn, and printed, when absent.")] = None,
    bombs: Annotated[bool, typer.Option(help="Try what would cost a careless reader minutes or gigabytes.")] = True,
    guided: Annotated[
        bool, typer.Option(help=f"Draw by what code is reached, with atheris; {', '.join(GUIDED)} alone.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for finds.")] = _FOLDER,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Damage files and decode them; exit code 1 if one ends neither in an image nor in a named reason."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    kinds = choose_kinds(decoder, list(GUIDED) if guided else list(KINDS))
    err.print(f"seed {seed}")
    with Jail() as jail:
        hunt = Hunt(jail, seed, out, lambda text: err.print(text, markup=False, soft_wrap=True))
        if files:
            tallies = try_files(hunt, files)
        elif guided:
            tallies = {kind.name: hunt_guided(hunt, kind, seconds / len(kinds)) for kind in kinds}
        else:
            tallies = run(hunt, kinds, seconds, bombs=bombs)
    show(tallies)
    if json_:
        print_json({"seed": seed, "decoders": {name: tally.to_dict() for name, tally in tallies.items()}})
    if any(tally.finds for tally in tallies.values()):
        raise typer.Exit(1)


def choose_kinds(names: str, known: list[str]) -> list[Kind]:
    """Give the kinds of these names."""
    wanted = known if names == "all" else names.split(",")
    if unknown := sorted(set(wanted) - set(known)):
        msg = f"{', '.join(unknown)}; there are {', '.join(known)}"
        raise typer.BadParameter(msg, param_hint="--decoder")
    return [KINDS[name] for name in wanted]


def try_files(hunt: Hunt, files: list[Path]) -> dict[str, Tally]:
    """Decode files of the folders of their kinds."""
    tallies: dict[str, Tally] = {}
    for path in files:
        (kind,) = choose_kinds(path.resolve().parent.name, list(KINDS))
        hunt.try_file(path.read_bytes(), kind, tallies.setdefault(kind.name, Tally()))
    return tallies


def run(hunt: Hunt, kinds: list[Kind], seconds: float, *, bombs: bool) -> dict[str, Tally]:
    """Hunt, and show how far it is."""
    started, files = time.monotonic(), 0
    with new_progress() as progress:
        task = progress.add_task("", total=round(seconds))

        def tick(name: str) -> None:
            nonlocal files
            files += 1
            passed = time.monotonic() - started
            progress.update(task, completed=min(round(seconds), int(passed)), description=f"{name}, {files} files")

        return hunt.run(kinds, seconds, bombs=bombs, progress=tick)


def show(tallies: dict[str, Tally]) -> None:
    """Print the table, the reasons and the finds."""
    err.print(draw_table(tallies))
    for name, tally in tallies.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.most_common())
        err.print(f"{name}: {reasons or 'nothing was refused'}", markup=False, soft_wrap=True)
    for name, tally in tallies.items():
        for signature, find in tally.finds.items():
            err.print(f"FIND {name}, {find.times} times: {signature}: {find.path}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
