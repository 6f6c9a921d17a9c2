"""Writes the software bill of materials: ``python -m tools.sbom``.

CycloneDX 1.6 as JSON, for scanners and for whoever must know what runs: all that the locks name, with hashes and
licences, and the jars that pyspark brings. It is made of the locks, not of a machine: what a lock names for other
systems is in it too, and what an operating system or a container brings is not.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated
from uuid import NAMESPACE_URL, uuid5
from zipfile import ZipFile

import typer
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component as BomComponent
from cyclonedx.model.component import ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools.components import ROOT, Component
from tools.licences import OUT as LICENCES
from tools.licences import list_licensed, read_policy

OUT = ROOT / "build" / "sbom.cdx.json"
"""The bill of this checkout."""

_JAR = re.compile(r"(?P<name>.+?)-(?P<version>\d.*)")
_POM = re.compile(r"META-INF/maven/([^/]+)/([^/]+)/pom\.properties")


def list_bundled_jars(folder: Path) -> list[Component]:
    """List the jars that pyspark brings.

    Parameters
    ----------
    folder : Path
        Holds them.

    Returns
    -------
    list of Component
        In the order of their files' names. The organisation is empty where a jar does not say whose it is.
    """
    found = []
    for jar in sorted(folder.glob("*.jar")):
        organisation, name, version = _identify_jar(jar)
        files = ((jar.name, hashlib.sha256(jar.read_bytes()).hexdigest()),)
        found.append(Component("maven", name, version, "pyspark", True, organisation, files=files))
    return found


def _identify_jar(jar: Path) -> tuple[str, str, str]:
    """Give organisation, name and version by what the jar says of itself, or else by the name of its file."""
    with ZipFile(jar) as archive:
        said = [match.groups() for entry in archive.namelist() if (match := _POM.fullmatch(entry))]
    # It may hold others; and a name may have a number in it, so the longest that fits is its own.
    own = [(organisation, name) for organisation, name in said if jar.stem.startswith(f"{name}-")]
    if own:
        organisation, name = max(own, key=lambda one: len(one[1]))
        return organisation, name, jar.stem.removeprefix(f"{name}-")
    match = _JAR.fullmatch(jar.stem)
    return ("", match["name"], match["version"]) if match else ("", jar.stem, "")


def build_bill(components: Iterable[Component], bundled: Iterable[Component], version: str) -> Bom:
    """Put the bill together.

    Parameters
    ----------
    components : iterable of Component
        Each with one licence, an SPDX expression.
    bundled : iterable of Component
        What pyspark brings.
    version : str
        Of this project.

    Returns
    -------
    Bom
        Its root depends on all components: which of them needs which is not in the locks. pyspark depends on its jars.
    """
    root = BomComponent(
        type=ComponentType.APPLICATION,
        name="xray-stream",
        version=version,
        bom_ref="xray-stream",
        licenses=[LicenseExpression("Apache-2.0")],
        purl=PackageURL("pypi", None, "xray-stream", version),
    )
    listed = [_describe(one) for one in components]
    brought = [_describe(one) for one in bundled]
    bill = Bom(components=[*listed, *brought])
    bill.metadata.component = root
    bill.register_dependency(root, listed)
    bill.register_dependency(next(one for one in listed if one.name == "pyspark"), brought)
    # The same things have the same number, so that a copy can be told from another bill.
    bill.serial_number = uuid5(NAMESPACE_URL, "\n".join(sorted(_fingerprint(one) for one in bill.components)))
    return bill


def _fingerprint(component: BomComponent) -> str:
    digests = sorted(one.content for found in component.external_references for one in found.hashes)
    return " ".join([str(component.bom_ref), *digests, *sorted(one.content for one in component.hashes)])


def _describe(one: Component) -> BomComponent:
    # A jar that does not say whose it is has no name on Maven Central: scanners know it by its hash.
    purl = PackageURL(one.kind if one.group or one.kind != "maven" else "generic", one.group, one.name, one.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for _, digest in one.files]
    is_one_file = one.kind == "maven"
    return BomComponent(
        type=ComponentType.LIBRARY,
        group=one.group or None,
        name=one.name,
        version=one.version,
        bom_ref=f"{one.used_in}/{purl}",
        purl=purl,
        scope=ComponentScope.REQUIRED if one.is_shipped else ComponentScope.EXCLUDED,
        licenses=[LicenseExpression(licence) for licence in one.licences],
        hashes=hashes if is_one_file else (),
        external_references=() if is_one_file or not hashes else [_describe_files(one, purl, hashes)],
        properties=[Property(name="xray:lock", value=one.used_in)],
    )


def _describe_files(one: Component, purl: PackageURL, hashes: Iterable[HashType]) -> ExternalReference:
    names = ", ".join(name for name, _ in one.files if name)
    return ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(purl)),
        comment=f"files: {names}" if names else "any one of the files that the lock allows",
        hashes=hashes,
    )


def main(out: Annotated[Path, typer.Option(help="The file that is written.")] = OUT) -> None:
    """Write the bill of materials."""
    licensed = list_licensed(read_policy(), LICENCES.read_text(encoding="utf-8"))
    bundled = list_bundled_jars(Path(str(distribution("pyspark").locate_file("pyspark/jars"))))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    bill = build_bill(licensed, bundled, version)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(JsonV1Dot6(bill).output_as_string(indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{len(bill.components)} components in {out}")


if __name__ == "__main__":
    typer.run(main)
