"""What this project is made of and made with, as its locks have it: Python packages, jars and scripts.

Licences, the SBOM and the question for known holes all begin here, so that they speak of the same things.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from streaming.run.jars import read_jar_lock

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path("streaming/page/assets/vendor")
"""Where the page's scripts of others are."""

_LOCKS = ("train", "build", "dev", "tensorflow")
"""Each package is of the first lock that it is in; the larger ones hold the smaller ones."""

_SHIPPED = "train"
_EXAMPLE = Path("examples/consumers/package-lock.json")
_PIN = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;\\]+)(?P<more>(?:.*\\\n)*.*)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Component:
    """A thing of others that is used.

    Parameters
    ----------
    kind : str
        ``pypi``, ``maven`` or ``npm``.
    name, version : str
        As its registry has them.
    used_in : str
        Name of the lock, of the set of jars, or of the folder.
    is_shipped : bool
        A user gets it; otherwise tests, development or examples use it.
    group : str
        Of a jar: its organisation.
    licences : tuple of str
        As the lock names them, any of them may be chosen; empty where the lock names none.
    files : tuple of (str, str)
        Names of its files and their SHA-256 in hexadecimal. Locks of Python packages have no names of files.
    """

    kind: str
    name: str
    version: str
    used_in: str
    is_shipped: bool
    group: str = ""
    licences: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


def list_components(root: Path = ROOT) -> list[Component]:
    """List everything that a checkout's locks name.

    Parameters
    ----------
    root : Path
        The checkout.

    Returns
    -------
    list of Component
        Python packages, jars, then scripts; each kind in the order of names.

    Raises
    ------
    ValueError
        A package has no hash.
    """
    packages: dict[tuple[str, str], Component] = {}
    for lock in _LOCKS:
        for one in read_lock(root / "locks" / f"{lock}.lock", is_shipped=lock == _SHIPPED):
            packages.setdefault((one.name, one.version), one)
    return [*(packages[key] for key in sorted(packages)), *_list_jars(), *_list_scripts(root), *_list_examples(root)]


def read_lock(path: Path, *, is_shipped: bool) -> list[Component]:
    """Read a lock of Python packages.

    Parameters
    ----------
    path : Path
        As ``make lock`` writes it.
    is_shipped : bool
        What is in it reaches users.

    Returns
    -------
    list of Component
        In the lock's order; a package may be there in several versions, for several versions of Python.

    Raises
    ------
    ValueError
        A package has no hash.
    """
    found = []
    for pin in _PIN.finditer(path.read_text(encoding="utf-8")):
        hashes = tuple(("", digest) for digest in _HASH.findall(pin["more"]))
        if not hashes:
            msg = f"{path.name}: {pin['name']} {pin['version']} has no hash; make lock writes them"
            raise ValueError(msg)
        found.append(Component("pypi", pin["name"], pin["version"], path.stem, is_shipped, files=hashes))
    return found


def _list_jars() -> list[Component]:
    return [
        Component(
            "maven", jar.name, jar.version, used_in, True, jar.organisation, jar.licences, ((jar.file, jar.sha256),)
        )
        for used_in, jars in read_jar_lock().items()
        for jar in jars
    ]


def _list_scripts(root: Path) -> list[Component]:
    listed = json.loads((root / "locks" / "scripts.json").read_text(encoding="utf-8"))
    return [
        Component(
            "npm",
            one["name"],
            one["version"],
            "page",
            True,
            licences=(one["licence"],),
            files=tuple(one["files"].items()),
        )
        for one in listed
    ]


def _list_examples(root: Path) -> list[Component]:
    """Without hashes: the lock of npm has SHA-512 of archives, which npm itself holds them against."""
    packages = json.loads((root / _EXAMPLE).read_text(encoding="utf-8"))["packages"]
    return [
        Component(
            "npm", path.rpartition("node_modules/")[2], one["version"], "examples", False, licences=(one["license"],)
        )
        for path, one in sorted(packages.items())
        if path
    ]
