"""Makes the list of the jars that may be fetched: ``python -m tools.jarlist``.

``streaming/run/jars.json`` has each jar's SHA-256, without which it is not used, and its licence. The jars are those in
the jars folder, fetched now where they are not there yet. Make the list anew with each version of Spark or Kafka, and
read what has changed in it before you commit it: from then on it is what is trusted.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer

from streaming.run.jars import KAFKA_JARS, SPARK_JARS, JarSet, LockedJar, resolve_jars
from streaming.settings import load_settings

OUT = Path(__file__).resolve().parent.parent / "streaming" / "run" / "jars.json"
"""The list of this checkout."""


def list_jars(jars: JarSet, folder: Path) -> list[LockedJar]:
    """List the jars of a set as they are in a folder, and what Ivy has read of them.

    Parameters
    ----------
    jars : JarSet
        What is wanted.
    folder : Path
        Where all sets are kept, with Ivy's cache.

    Returns
    -------
    list of LockedJar
        In the order of their files' names.

    Raises
    ------
    ValueError
        Ivy's cache does not know a jar, or no licence of it.
    """
    known = _read_ivy_cache(folder / "ivy-cache" / jars.name)
    # What is listed is what is fetched, so the former list does not count here.
    found = resolve_jars(replace(jars, is_locked=False), folder)
    strange = [jar.name for jar in found if not known.get(jar.name, LockedJar("", "", "", "", "", ())).licences]
    if strange:
        msg = f"Ivy's cache beside {folder / jars.name} has no licence of {', '.join(strange)}: remove both, try again"
        raise ValueError(msg)
    return [replace(known[jar.name], sha256=hashlib.sha256(jar.read_bytes()).hexdigest()) for jar in found]


def _read_ivy_cache(cache: Path) -> dict[str, LockedJar]:
    """Jars by the names of their files, without hashes."""
    known = {}
    for described in sorted(cache.glob("*/*/ivy-*.xml")):
        info = ElementTree.parse(described).getroot().find("info")  # noqa: S314 - written by our own Ivy
        if info is None:
            continue
        organisation, name, version = (info.attrib[key] for key in ("organisation", "module", "revision"))
        licences = tuple(one.attrib["name"] for one in info.findall("license"))
        file = f"{name}-{version}.jar"
        known[file] = LockedJar(organisation, name, version, file, "", licences)
    return known


def render_list(listed: dict[str, list[LockedJar]]) -> str:
    """Render as the file has it."""
    return json.dumps({name: [asdict(jar) for jar in jars] for name, jars in listed.items()}, indent=1) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="The file that is written.")] = OUT,
    jars: Annotated[
        Path | None, typer.Option(help="Where jars are kept; by default where the commands keep them.")
    ] = None,
) -> None:
    """List the jars of Spark's connector and of the local broker."""
    folder = jars or load_settings().jars_folder
    out.write_text(
        render_list({one.name: list_jars(one, folder) for one in (SPARK_JARS, KAFKA_JARS)}), encoding="utf-8"
    )


if __name__ == "__main__":
    typer.run(main)
