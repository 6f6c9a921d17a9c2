"""Asks for known vulnerabilities of what is locked: ``python -m tools.advisories``.

pip-audit asks about Python packages, ``npm audit`` about packages of npm. Many mirrors of a registry serve packages and
no advisories. pip-audit then finds nothing, and says that all is well. So each source is first asked about a control, a
release that has known vulnerabilities: a source that does not know them is not believed. No registry has advisories on
jars: that is said, too.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from tools.components import ROOT, Component, list_components

_EXCEPTIONS = ROOT / "locks" / "advisories.toml"
_ANSWER_TIMEOUT_S = 15
"""For one request: a source that is there answers in less than one second."""

_ASK_TIMEOUT_S = 300
"""For all: pip-audit asks about one package after the other, some 230 of them."""


class SourceError(Exception):
    """A source did not answer, or not so that it can be believed."""


@dataclass(frozen=True)
class Advisory:
    """A known vulnerability of a release.

    Parameters
    ----------
    package, version : str
        Whose.
    names : tuple of str
        Its own, such as ``PYSEC-2021-108``, and those that others have for it.
    fixed_in : str
        Where it is gone, as the source says; empty where that is not known.
    """

    package: str
    version: str
    names: tuple[str, ...]
    fixed_in: str


@dataclass(frozen=True)
class ListedException:
    """A vulnerability that may stay for a while.

    Parameters
    ----------
    advisory, package : str
        Any of its names; whose.
    until : date
        From then on it counts no more.
    reason : str
        Why it does no harm here.
    """

    advisory: str
    package: str
    until: date
    reason: str

    def covers(self, found: Advisory, today: date) -> bool:
        """Whether it is of this vulnerability, and still counts."""
        return found.package == self.package and self.advisory in found.names and today < self.until


@dataclass(frozen=True)
class Answer:
    """What a source said.

    Parameters
    ----------
    advisories : tuple of Advisory
        What it knows of what it was asked about.
    unknown : tuple of str
        Packages that it has never heard of.
    """

    advisories: tuple[Advisory, ...]
    unknown: tuple[str, ...] = ()


Ask = Callable[[Sequence[Component]], Answer]


@dataclass(frozen=True)
class Source:
    """Who can be asked.

    Parameters
    ----------
    name : str
        In what is printed.
    kind : str
        Of components, as ``Component.kind``.
    control : Component
        A release with known vulnerabilities.
    ask : callable
        Gives the answer about components, or raises `SourceError`.
    """

    name: str
    kind: str
    control: Component
    ask: Ask

    def answer(self, components: Sequence[Component]) -> Answer:
        """Ask about components, if the source can be believed.

        Raises
        ------
        SourceError
            It did not answer, or knows no vulnerability of the control.
        """
        control = self.ask([self.control])
        if not control.advisories:
            said = "does not know it" if control.unknown else "knows none of them"
            msg = f"{self.control.name} {self.control.version} has known vulnerabilities, and {self.name} {said}"
            raise SourceError(msg)
        return self.ask(components)


def ask_pip_audit(service: str, components: Sequence[Component]) -> Answer:
    """Ask about Python packages.

    Parameters
    ----------
    service : str
        Whom pip-audit asks: ``pypi`` or ``osv``.
    components : sequence of Component
        Python packages.

    Raises
    ------
    SourceError
        It could not ask.
    """
    return join_answers(_run_pip_audit(service, one) for one in split_versions(components))


def split_versions(components: Iterable[Component]) -> list[list[Component]]:
    """Split so that no package is in one list in two versions, which pip-audit takes for a mistake."""
    rounds: list[dict[str, Component]] = []
    for one in components:
        place = next((names for names in rounds if one.name not in names), None)
        if place is None:
            rounds.append(place := {})
        place[one.name] = one
    return [list(names.values()) for names in rounds]


def _run_pip_audit(service: str, components: Sequence[Component]) -> Answer:
    with TemporaryDirectory(prefix="xray-advisories-") as folder:
        asked = Path(folder) / "requirements.txt"
        asked.write_text("".join(f"{one.name}=={one.version}\n" for one in components), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--requirement", str(asked)]
        command += ["--no-deps", "--disable-pip", "--format", "json", "--aliases", "on", "--desc", "off"]
        command += ["--progress-spinner", "off", "--cache-dir", folder, "--timeout", str(_ANSWER_TIMEOUT_S)]
        return read_pip_audit(_run(command, Path(folder)))


def read_pip_audit(said: Mapping[str, Any]) -> Answer:
    """Read what pip-audit writes as JSON."""
    known = [one for one in said["dependencies"] if "skip_reason" not in one]
    advisories = tuple(
        Advisory(one["name"], one["version"], (hole["id"], *hole["aliases"]), ", ".join(hole["fix_versions"]))
        for one in known
        for hole in one["vulns"]
    )
    return Answer(advisories, tuple(one["name"] for one in said["dependencies"] if "skip_reason" in one))


def ask_npm(components: Sequence[Component]) -> Answer:
    """Ask about packages of npm.

    Raises
    ------
    SourceError
        npm is not there, or could not ask.
    """
    npm = shutil.which("npm")
    if npm is None:
        msg = "npm is not installed"
        raise SourceError(msg)
    wanted = {one.name: one.version for one in components}
    root = {"name": "asked", "version": "0.0.0", "dependencies": wanted}
    packages = {"": root} | {f"node_modules/{name}": {"version": version} for name, version in wanted.items()}
    with TemporaryDirectory(prefix="xray-advisories-") as folder:
        (Path(folder) / "package.json").write_text(json.dumps(root), encoding="utf-8")
        lock = {**root, "lockfileVersion": 3, "requires": True, "packages": packages}
        (Path(folder) / "package-lock.json").write_text(json.dumps(lock), encoding="utf-8")
        timeout_ms = str(_ANSWER_TIMEOUT_S * 1000)
        command = [npm, "audit", "--package-lock-only", "--json", "--fetch-retries=0", f"--fetch-timeout={timeout_ms}"]
        return read_npm(_run(command, Path(folder)), wanted)


def read_npm(said: Mapping[str, Any], versions: Mapping[str, str]) -> Answer:
    """Read what ``npm audit`` writes as JSON.

    Parameters
    ----------
    said : mapping
        Its report, of version 2, or its error.
    versions : mapping of str to str
        What was asked about: versions by names.

    Raises
    ------
    SourceError
        It is an error.
    """
    if "vulnerabilities" not in said:
        raise SourceError(str(said.get("message") or said.get("error") or "npm audit gave no report"))
    return Answer(
        tuple(
            # A word instead is a package that it has it from; that one has an entry of its own.
            Advisory(name, versions[name], (hole["url"].rpartition("/")[2], hole["title"]), f"not {hole['range']}")
            for name, found in said["vulnerabilities"].items()
            for hole in found["via"]
            if isinstance(hole, dict)
        )
    )


def _run(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Give what a command writes as JSON; its exit code only says that it has found something, or failed."""
    try:
        done = subprocess.run(  # noqa: S603 - nothing comes from outside
            command, cwd=folder, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        msg = f"no answer within {_ASK_TIMEOUT_S} s"
        raise SourceError(msg) from exc
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as exc:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        msg = f"exit code {done.returncode}: {lines[-1][:300]}"
        raise SourceError(msg) from exc
    return said


def join_answers(answers: Iterable[Answer]) -> Answer:
    """Join what was said of several lists."""
    found = list(answers)
    return Answer(
        tuple(chain.from_iterable(one.advisories for one in found)),
        tuple(chain.from_iterable(one.unknown for one in found)),
    )


_PYTHON_CONTROL = Component("pypi", "urllib3", "1.26.0", "control", False)
_NPM_CONTROL = Component("npm", "lodash", "4.17.4", "control", False)
SOURCES = (
    Source("pip-audit (pypi)", "pypi", _PYTHON_CONTROL, partial(ask_pip_audit, "pypi")),
    Source("pip-audit (osv)", "pypi", _PYTHON_CONTROL, partial(ask_pip_audit, "osv")),
    Source("npm audit", "npm", _NPM_CONTROL, ask_npm),
)
"""Those of one kind are asked in turn, until one can be believed."""


def read_exceptions(path: Path = _EXCEPTIONS) -> list[ListedException]:
    """Read which vulnerabilities may stay.

    Raises
    ------
    ValueError
        One has no reason, or no end.
    """
    listed = []
    for one in tomllib.loads(path.read_text(encoding="utf-8")).get("exception", []):
        if set(one) != {"id", "package", "until", "reason"} or not one["reason"] or not isinstance(one["until"], date):
            msg = f"{path.name}: {one} is not an exception; wanted id, package, until (a date) and reason"
            raise ValueError(msg)
        listed.append(ListedException(one["id"], one["package"], one["until"], one["reason"]))
    return listed


def report(
    components: Sequence[Component], sources: Iterable[Source], exceptions: Sequence[ListedException], today: date
) -> tuple[list[str], bool]:
    """Ask all sources, and say what came of it.

    Parameters
    ----------
    components : sequence of Component
        What is locked.
    sources : iterable of Source
        Who is asked; of a kind, the first that can be believed.
    exceptions : sequence of ListedException
        What may stay.
    today : date
        Exceptions count until it.

    Returns
    -------
    lines : list of str
        For people.
    is_open : bool
        A vulnerability is known that no exception covers.
    """
    lines: list[str] = []
    found: list[Advisory] = []
    sources_by_kind: dict[str, list[Source]] = {}
    for source in sources:
        sources_by_kind.setdefault(source.kind, []).append(source)
    for kind, able in sources_by_kind.items():
        wanted = [one for one in components if one.kind == kind]
        said, advisories = _ask_in_turn(able, wanted)
        lines += [f"{kind}: {line}" for line in said]
        found += advisories
    for kind in sorted({one.kind for one in components} - sources_by_kind.keys()):
        count = sum(one.kind == kind for one in components)
        lines.append(f"{kind}: no registry has advisories on these {count}; give a scanner what make sbom writes")
    still_open = [one for one in found if not any(listed.covers(one, today) for listed in exceptions)]
    lines += [_describe(one) for one in still_open]
    lines += [
        f"{listed.package}: {listed.advisory} is excepted until {listed.until}: {listed.reason}"
        for listed in exceptions
        if any(listed.covers(one, today) for one in found)
    ]
    return lines, bool(still_open)


def _ask_in_turn(sources: Iterable[Source], wanted: Sequence[Component]) -> tuple[list[str], tuple[Advisory, ...]]:
    lines = []
    for source in sources:
        try:
            answer = source.answer(wanted)
        except SourceError as exc:
            lines.append(f"could not ask {source.name}: {exc}")
            continue
        count = len(wanted) - len(answer.unknown)
        lines.append(f"{source.name} knows {len(answer.advisories)} vulnerabilities of {count} packages")
        if answer.unknown:
            lines.append(f"{source.name} has never heard of {', '.join(answer.unknown)}")
        return lines, answer.advisories
    return [
        *lines,
        f"could ask nobody about {len(wanted)} packages, so whether they have vulnerabilities is not known",
    ], ()


def _describe(one: Advisory) -> str:
    fixed = f"gone in {one.fixed_in}" if one.fixed_in else "no release mends it yet"
    return f"VULNERABLE {one.package} {one.version}: {', '.join(one.names)}; {fixed}"


def main() -> None:
    """Say what is known; exit with 1 where a vulnerability is known that is not excepted."""
    lines, is_open = report(list_components(), SOURCES, read_exceptions(), datetime.now(UTC).date())
    typer.echo("\n".join(lines))
    sys.exit(1 if is_open else 0)


if __name__ == "__main__":
    main()
