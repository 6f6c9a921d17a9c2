"""The kill matrix of the stream, in its long form: real broker, Spark and Delta, and the account after each fault.

Run it: ``python -m benchmarks.chaos`` (``--help``). Each round has topics and a state folder of its own. The short form
is ``pytest tests/chaos``. Nothing else should run on the machine where seconds are of interest.
"""

import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.chaos.faults import Fault, run_fault
from benchmarks.chaos.load import drain_backlog, soak
from benchmarks.chaos.matrix import SOAK_EXCLUDED, make_faults
from benchmarks.chaos.report import Report, draw_table, write_report
from benchmarks.chaos.scene import Scene, Site, open_site
from schemas.errors import JobError
from streaming.settings import load_settings
from xray.console import err, new_progress, print_json

_RATE = 15.0


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that each fault is inflicted.")] = 3,
    records: Annotated[
        int, typer.Option(min=60, help="Records of the whole matrix, at least 20 for each fault.")
    ] = 10_000,
    seed: Annotated[int | None, typer.Option(help="Of traffic and faults; drawn, and printed, when absent.")] = None,
    faults: Annotated[str | None, typer.Option(help="Only these, comma-separated; by default all.")] = None,
    soak_minutes: Annotated[float, typer.Option(min=0, help="Instead of the matrix: one fault a minute.")] = 0,
    backlog: Annotated[int, typer.Option(min=0, help="Instead of the matrix: drain so many images of all sizes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for chaos.md and chaos.json.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Hurt a running stream in every way of the matrix and draw up the account; exit code 1 if it does not balance."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    chosen = choose_faults(faults)
    err.print(f"seed {seed}")
    started = time.monotonic()
    with TemporaryDirectory(prefix="xray-chaos-") as folder, open_site(Path(folder), _jars(), _say) as site:
        if backlog:
            report = _run_backlog(site, backlog, seed)
        elif soak_minutes:
            report = _run_soak(site, chosen, seed, soak_minutes)
        else:
            report = run_matrix(site, chosen, rounds, records, seed, out)
    report.seed, report.seconds = seed, time.monotonic() - started
    options = {"seed": seed, "rounds": rounds, "records": report.records, "faults": ",".join(f.name for f in chosen)}
    options |= {"soak minutes": soak_minutes, "backlog": backlog}
    show(report)
    if out is not None:
        write_report(report, out, options)
        err.print(f"Report in {out}.")
    if json_:
        print_json(report.to_dict())
    if not report.balanced:
        raise typer.Exit(1)


def choose_faults(names: str | None) -> list[Fault]:
    """Give the faults of these names, in the matrix's order."""
    every = make_faults()
    if names is None:
        return every
    wanted = names.split(",")
    if unknown := sorted(set(wanted) - {fault.name for fault in every}):
        msg = f"{', '.join(unknown)}; there are {', '.join(fault.name for fault in every)}"
        raise typer.BadParameter(msg, param_hint="--faults")
    return [fault for fault in every if fault.name in wanted]


def run_matrix(
    site: Site, faults: list[Fault], rounds: int, records: int, seed: int, out: Path | None = None
) -> Report:
    """Inflict every fault in each of the rounds.

    Parameters
    ----------
    site : Site
        Each round gets a scene of its own there.
    faults : list of Fault
        In their order.
    rounds, records : int
        Records are of the whole matrix.
    seed : int
        Of traffic and faults.
    out : Path, optional
        Keeps oracles, checkpoints, tables and logs of a round whose account does not balance.
    """
    report = Report(seed)
    share = max(20, records // (len(faults) * rounds))
    with new_progress() as progress:
        task = progress.add_task("matrix", total=rounds * len(faults))
        for turn in range(rounds):
            # Four batches or more for each fault, so that a strike leaves a backlog.
            scene = Scene(site, f"round-{turn}", seed=seed + turn, images_per_batch=min(40, share // 4))
            try:
                for fault in faults:
                    progress.update(task, description=f"round {turn + 1}: {fault.name}")
                    rng = random.Random(f"{seed} {turn} {fault.name}")
                    report.rounds.append(run_fault(scene, fault, rng, share))
                    err.print(f"round {turn + 1} {fault.name}: {'; '.join(report.rounds[-1].notes)}", markup=False)
                    progress.advance(task)
                report.whole.append(scene.check(scene.everything.records))
            except JobError as exc:
                report.failures.append(f"{scene.home.name}: {exc}")
            finally:
                if out is not None and not report.balanced:
                    scene.stop()
                    scene.keep_evidence(out / scene.home.name)
                scene.close()
                scene.remove()
    return report


def _run_soak(site: Site, faults: list[Fault], seed: int, minutes: float) -> Report:
    scene = Scene(site, "soak", seed=seed)
    try:
        drawn = [fault for fault in faults if fault.name not in SOAK_EXCLUDED]
        return soak(scene, drawn, random.Random(seed), minutes, _RATE, _say)
    finally:
        scene.close()


def _run_backlog(site: Site, count: int, seed: int) -> Report:
    scene = Scene(site, "backlog", seed=seed, images_per_batch=600)
    try:
        return drain_backlog(scene, count, seed, _say)
    finally:
        scene.close()


def show(report: Report) -> None:
    """Print the findings."""
    if report.rounds:
        err.print(draw_table(report.rounds))
    for verdict in report.whole:
        for name, found in verdict.examples.items():
            err.print(f"  {name}: {', '.join(found)}", markup=False)
    if report.growth is not None:
        g = report.growth
        flat = "flat" if g.flat else "not flat"
        err.print(f"memory, second half of the longest life: {g.first_mb:.0f} to {g.last_mb:.0f} MB, {flat}")
    for failure in report.failures:
        err.print(f"not played to its end: {failure}", markup=False)
    for name, value in report.figures.items():
        err.print(f"{name}: {value:.1f}")
    err.print(report.bound())
    err.print("The account balances." if report.balanced else "The account does not balance.")


def _jars() -> Path:
    return load_settings().jars_folder


def _say(text: str) -> None:
    err.print(f"{text} ...", markup=False)


if __name__ == "__main__":
    typer.run(main)
