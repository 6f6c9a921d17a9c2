"""Makes the list of licences, and holds it against the policy: ``python -m tools.licences``.

Licences of Python packages are read from what is installed: what a package declares, or else the text that it brings.
What only a person can tell, and what may be there at all, is in ``locks/licences.toml``. The list is
``docs/licences.md``; a package that is not installed here keeps the licence that it has there.
"""

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from tools.components import ROOT, Component, list_components

OUT = ROOT / "docs" / "licences.md"
"""The list of this checkout."""

_POLICY = ROOT / "locks" / "licences.toml"
_TEXTS = (
    ("MIT", ("Permission is hereby granted, free of charge", "The above copyright notice and this permission notice")),
    ("Apache-2.0", ("Apache License", "Version 2.0, January 2004")),
    ("Apache-2.0", ("Licensed under the Apache License, Version 2.0",)),
    ("BSD-3-Clause", ("Redistributions in binary form", "to endorse or promote products")),
    ("BSD-2-Clause", ("Redistributions in binary form", "THIS SOFTWARE IS PROVIDED")),
)
"""Licences and phrases that tell them, the first that fits: three clauses are two and another one."""

_SAY_NOTHING = {"DFSG approved", "OSI Approved"}
_ROW = re.compile(
    r"^\| `(?P<name>[^`]+)` \| (?P<version>\S+) \| (?P<licence>[^|]+) \| (?P<used_in>[^|]+) \|$", re.MULTILINE
)
_TITLES = {
    ("pypi", True): "Python packages of the commands",
    ("maven", True): "Jars",
    ("npm", True): "Scripts of the page",
    ("pypi", False): "Python packages of tests, development and benchmarks",
    ("npm", False): "Packages of the examples",
}
_HEAD = """# Licences

What this project is made of and made with, and under which licences: each package of the locks, each jar and each
script of others. `python -m tools.licences` writes this page; a test holds it against the locks, against what is
installed, and against the policy in `locks/licences.toml`. More in [security.md](security.md#supply-chain).

This project itself is under Apache-2.0. Where licences are joined by OR, any of them may be chosen. pyspark brings jars
of its own: the file `LICENSE` in it names their licences.
"""


class UnknownLicenceError(ValueError):
    """Nobody has said which licence this is."""


@dataclass(frozen=True)
class Policy:
    """What may be there.

    Parameters
    ----------
    shipped, tools : frozenset of str
        SPDX identifiers that may reach users; those that may be used besides to build and to test.
    spellings : mapping of str to str
        SPDX expressions by what authors write.
    reviewed : mapping of str to str
        SPDX expressions by the names of packages, found by a person.
    exceptions : mapping of str to str
        Reasons by the names of packages that are not held against the policy.
    """

    shipped: frozenset[str]
    tools: frozenset[str]
    spellings: Mapping[str, str]
    reviewed: Mapping[str, str]
    exceptions: Mapping[str, str]

    def allows(self, component: Component) -> bool:
        """Whether the policy has room for a component, whose one licence is an SPDX expression."""
        allowed = self.shipped if component.is_shipped else self.shipped | self.tools
        (expression,) = component.licences
        return component.name in self.exceptions or is_allowed(expression, allowed)


def read_policy(path: Path = _POLICY) -> Policy:
    """Read the policy."""
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    allowed = read["policy"]
    return Policy(
        frozenset(allowed["shipped"]),
        frozenset(allowed["tools"]),
        read["spellings"],
        read["reviewed"],
        read["exceptions"],
    )


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Hold an SPDX expression against allowed identifiers.

    Parameters
    ----------
    expression : str
        Of identifiers, AND and OR, without brackets; AND binds closer. An identifier with an exception
        (``A WITH B``) is one of its own.
    allowed : frozenset of str
        Identifiers.

    Raises
    ------
    ValueError
        There are brackets in it: a person must say what it comes to.
    """
    if "(" in expression:
        msg = f"licence {expression}: brackets are not read; write it without them under [reviewed] of {_POLICY.name}"
        raise ValueError(msg)
    return any(set(choice.split(" AND ")) <= allowed for choice in expression.split(" OR "))


def find_licence(component: Component, policy: Policy, former: Mapping[str, str]) -> str:
    """Find the licence of a component.

    Parameters
    ----------
    component : Component
        Whose.
    policy : Policy
        Has what people have found, and spellings.
    former : mapping of str to str
        Licences of Python packages in the former list, for those that are not installed here.

    Returns
    -------
    str
        An SPDX expression.

    Raises
    ------
    UnknownLicenceError
        It is neither declared, nor in a text that is known, nor reviewed.
    """
    if component.name in policy.reviewed:
        return policy.reviewed[component.name]
    if component.licences:
        return " OR ".join(dict.fromkeys(_spell(licence, policy.spellings) for licence in component.licences))
    try:
        return read_declared(distribution(component.name), policy.spellings)
    except PackageNotFoundError:
        if component.name in former:
            return former[component.name]
        msg = f"the licence of {component.name} {component.version} is not known, for it is not installed here"
    except UnknownLicenceError as exc:
        msg = f"the licence of {component.name} {component.version} is not known: {exc}"
    msg += f"; read it where it comes from, and write it down under [reviewed] of {_POLICY.relative_to(ROOT)}"
    raise UnknownLicenceError(msg)


def read_declared(package: Distribution, spellings: Mapping[str, str]) -> str:
    """Read what an installed package declares of its licence, or else the text that it brings.

    Raises
    ------
    UnknownLicenceError
        It says nothing that is known, or several things.
    """
    headers = package.metadata
    classifiers = [one.split(" :: ")[-1] for one in headers.get_all("Classifier") or () if one.startswith("License ::")]
    named = set(classifiers) - _SAY_NOTHING
    # From the one that is most exact to the one that is least so. Old packages have a whole text as "License".
    field = "".join(headers.get_all("License") or ())
    for said in ("".join(headers.get_all("License-Expression") or ()), field, *(named if len(named) == 1 else ())):
        try:
            return _spell(said, spellings)
        except UnknownLicenceError:
            continue
    for text in _read_texts(package):
        for licence, phrases in _TEXTS:
            if all(phrase in text for phrase in phrases):
                return licence
    msg = f"it declares {field[:60] or 'nothing'!r} and {classifiers}, and brings no text that is known"
    raise UnknownLicenceError(msg)


def _spell(said: str, spellings: Mapping[str, str]) -> str:
    try:
        return str(canonicalize_license_expression(spellings.get(said, said)))
    except InvalidLicenseExpression as exc:
        msg = f"{said[:60]!r} is none of SPDX's words, nor under [spellings]"
        raise UnknownLicenceError(msg) from exc


def _read_texts(package: Distribution) -> Iterable[str]:
    for file in package.files or ():
        if ".dist-info" in file.parts[0] and re.search("licen[cs]e|copying", file.name, re.IGNORECASE):
            yield " ".join(Path(str(file.locate())).read_text(encoding="utf-8", errors="replace").split())


def list_licensed(policy: Policy, former: str) -> list[Component]:
    """List all components, each with one SPDX expression.

    Parameters
    ----------
    policy : Policy
        What people have found.
    former : str
        The former list's text.

    Raises
    ------
    UnknownLicenceError
        One has no known licence.
    """
    known = {row["name"]: row["licence"] for row in _ROW.finditer(former)}
    return [replace(one, licences=(find_licence(one, policy, known),)) for one in list_components()]


def render_list(licensed: Iterable[Component]) -> str:
    """Render as the page has it."""
    tables = defaultdict(list)
    for one in licensed:
        name = f"{one.group}:{one.name}" if one.group else one.name
        tables[one.kind, one.is_shipped].append(f"| `{name}` | {one.version} | {one.licences[0]} | {one.used_in} |")
    head = "| name | version | licence | lock |\n|---|---|---|---|\n"
    return "\n".join(
        [_HEAD, *(f"## {title}\n{head}" + "\n".join(tables[key]) + "\n" for key, title in _TITLES.items())]
    )


def main(out: Annotated[Path, typer.Option(help="The file that is written.")] = OUT) -> None:
    """Write the list; exit with 1, and name them, where the policy has no room for some."""
    policy = read_policy()
    try:
        licensed = list_licensed(policy, out.read_text(encoding="utf-8") if out.exists() else "")
    except UnknownLicenceError as exc:
        sys.exit(f"not written: {exc}")
    out.write_text(render_list(licensed), encoding="utf-8")
    refused = [f"{one.name} {one.version}: {one.licences[0]}" for one in licensed if not policy.allows(one)]
    if refused:
        sys.exit("\n".join([f"not allowed by {_POLICY.relative_to(ROOT)}:", *refused]))


if __name__ == "__main__":
    typer.run(main)
