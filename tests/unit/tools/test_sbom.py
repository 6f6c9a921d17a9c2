"""The bill of materials is CycloneDX, and has all that the locks name."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.components import Component, list_components
from tools.licences import OUT, list_licensed, read_policy
from tools.sbom import build_bill, list_bundled_jars, main

COMPONENTS = list_licensed(read_policy(), OUT.read_text(encoding="utf-8"))
BUNDLED = Component(
    "maven", "spark-core_2.13", "4.2.0", "pyspark", True, "org.apache.spark", files=(("x.jar", "1" * 64),)
)


def rendered(components: list[Component], version: str = "1.0") -> str:
    return str(JsonV1Dot6(build_bill(components, [BUNDLED], version)).output_as_string())


TEXT = rendered(COMPONENTS)


@pytest.fixture
def bill() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(TEXT)
    return read


def test_it_is_what_the_standards_schema_wants() -> None:
    some = [one for one in COMPONENTS if one.name in {"pyspark", "numpy", "HdrHistogram", "uplot", "kafkajs"}]
    assert {one.kind for one in some} == {"pypi", "maven", "npm"}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(rendered(some)) is None


@pytest.mark.slow
def test_the_whole_bill_is_written_with_the_jars_of_pyspark(tmp_path: Path) -> None:
    main(tmp_path / "new" / "sbom.cdx.json")
    text = (tmp_path / "new" / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    brought = [one for one in json.loads(text)["components"] if one["properties"][0]["value"] == "pyspark"]
    assert "pkg:maven/org.apache.spark/spark-core_2.13@4.2.0" in {one["purl"] for one in brought}
    assert len(brought) > 200
    assert all(one["version"][0].isdigit() and one["hashes"] for one in brought)


def test_the_schema_refuses_what_is_none(bill: dict[str, Any]) -> None:
    wrong = json.dumps({**bill, "components": [{**bill["components"][0], "type": "thing"}], "dependencies": []})
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(wrong) is not None


def test_everything_that_is_locked_is_in_it_once_with_hash_and_licence(bill: dict[str, Any]) -> None:
    found = {
        (one["properties"][0]["value"], one.get("group", ""), one["name"], one["version"]): one
        for one in bill["components"]
        if one["properties"][0]["value"] != "pyspark"
    }
    assert found.keys() == {(one.used_in, one.group, one.name, one.version) for one in list_components()}
    assert len(bill["components"]) == len(found) + 1
    for one in COMPONENTS:
        described = found[one.used_in, one.group, one.name, one.version]
        places = [described, *described.get("externalReferences", ())]
        digests = {digest["content"] for place in places for digest in place.get("hashes", ())}
        assert digests == {digest for _, digest in one.files}
        assert described["licenses"] == [{"expression": one.licences[0]}]
        assert described["scope"] == ("required" if one.is_shipped else "excluded")


def test_a_scanner_finds_them_by_their_registrys_names(bill: dict[str, Any]) -> None:
    found = {one["purl"].partition("@")[0] for one in bill["components"]}
    assert {"pkg:pypi/pyspark", "pkg:maven/org.apache.kafka/kafka-clients", "pkg:npm/htmx.org"} <= found


def test_pyspark_depends_on_its_jars_and_this_project_on_everything_else(bill: dict[str, Any]) -> None:
    needs = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    assert len(needs["xray-stream"]) == len(COMPONENTS)
    (pyspark,) = [one["bom-ref"] for one in bill["components"] if one["name"] == "pyspark"]
    assert needs[pyspark] == ["pyspark/pkg:maven/org.apache.spark/spark-core_2.13@4.2.0"]


def test_the_same_things_have_the_same_number_and_other_hashes_another() -> None:
    def number(components: list[Component]) -> str:
        return str(json.loads(rendered(components))["serialNumber"])

    some = [one for one in COMPONENTS if one.name in {"pyspark", "rich", "uplot"}]
    changed = [replace(one, files=(("", "2" * 64),)) if one.name == "rich" else one for one in some]
    assert number(some) == number(some[::-1])
    assert number(some) != number(changed)


def test_jars_that_pyspark_brings_are_read_as_they_say_whose_they_are(tmp_path: Path) -> None:
    for name, said in {
        "guava-33.1-jre.jar": ["com.other/shaded", "com.google.guava/guava"],
        "log4j-1.2-api-2.25.4.jar": ["log4j/log4j", "org.apache.logging.log4j/log4j-1.2-api"],
        "zstd-jni-1.5.7-17.jar": [],
    }.items():
        with ZipFile(tmp_path / name, "w") as jar:
            for place in said:
                jar.writestr(f"META-INF/maven/{place}/pom.properties", "")
    found = list_bundled_jars(tmp_path)
    assert [(one.group, one.name, one.version) for one in found] == [
        ("com.google.guava", "guava", "33.1-jre"),
        ("org.apache.logging.log4j", "log4j-1.2-api", "2.25.4"),
        ("", "zstd-jni", "1.5.7-17"),
    ]
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert dict(file for one in found for file in one.files) == wanted
