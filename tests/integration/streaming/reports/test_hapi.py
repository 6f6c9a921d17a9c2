"""A hundred reports of every kind pass HAPI's validator of FHIR R4, which knows nothing of this program."""

import subprocess
from pathlib import Path

import pytest

from schemas.errors import DependencyError
from streaming.reports.fhir import to_bundle, to_json
from streaming.run.jars import JarSet, resolve_jars
from tests.javasource import run_java_file
from tests.reportparts import CORRECTION, identity, report

HAPI = JarSet(
    name="hapi-fhir-8.8.1",
    coordinates=tuple(
        f"ca.uhn.hapi.fhir:hapi-fhir-{name}:8.8.1"
        for name in ("validation", "validation-resources-r4", "structures-r4", "caching-caffeine")
    ),
)
VALIDATOR = Path(__file__).parent / "Validate.java"


def bundles() -> list[bytes]:
    """Findings and negatives, flagged ones, amended ones, some without an order or of a hospital without systems."""
    made = []
    for number in range(100):
        said = report(
            number,
            probability=(number % 10) / 10,
            flags=["uncertain"] if number % 7 == 0 else ["unlike_training"] if number % 11 == 0 else [],
            remarks=["old_rendering"] if number % 3 == 0 else [],
            correction=CORRECTION if number % 5 == 0 else None,
            whose=identity(number, accession_number="" if number % 4 == 0 else f"A{number}"),
        )
        system = None if number % 6 == 0 else "urn:oid:2.999.1"
        made.append(to_json(to_bundle(said, patient_system=system, accession_system=system)))
    return made


@pytest.fixture(scope="module")
def class_path(jars: Path) -> str:
    try:
        return ":".join(map(str, resolve_jars(HAPI, jars)))
    except DependencyError as exc:
        pytest.skip(f"needs HAPI's validator: {exc}")


def validate(class_path: str, file: Path) -> list[str]:
    command = [*run_java_file(VALIDATOR, class_path), str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout.splitlines()


@pytest.mark.long
def test_all_pass(class_path: str, tmp_path: Path) -> None:
    file = tmp_path / "reports.ndjson"
    file.write_bytes(b"\n".join(bundles()) + b"\n")
    said = validate(class_path, file)
    assert [line for line in said if line.startswith(("ERROR", "FATAL"))] == []
    assert said[-1] == "valid 100"


@pytest.mark.long
def test_it_finds_what_is_wrong(class_path: str, tmp_path: Path) -> None:
    good = bundles()[1]
    wrong = [
        good.replace(b'"preliminary"', b'"nearly"'),
        good.replace(b'"subject"', b'"subjekt"'),
        good.replace(b'"issued":"2026', b'"issued":"20-26'),
    ]
    assert all(one != good for one in wrong)
    file = tmp_path / "wrong.ndjson"
    file.write_bytes(b"\n".join([good, *wrong]) + b"\n")
    assert validate(class_path, file)[-1] == "valid 1"
