"""The AsyncAPI document against AsyncAPI's own JSON Schema, which npm has."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.documents import load_asyncapi

_PACKAGE = "@asyncapi/specs@6.11.1"


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> jsonschema.Draft7Validator:
    """What AsyncAPI 3.0.0 asks of a document; where npm cannot fetch it, the tests are skipped and say why."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder: Path = tmp_path_factory.mktemp("asyncapi")
    install = [
        "npm",
        "install",
        "--prefix",
        str(folder),
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
    ]
    done = subprocess.run(
        [*install, "--fetch-retries=0", _PACKAGE], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"npm install: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}")
    schema = json.loads((folder / "node_modules/@asyncapi/specs/schemas/3.0.0.json").read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(schema)


def test_the_document_is_asyncapi(validator: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in validator.iter_errors(load_asyncapi())] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("operations", "send_receipts", "action"), "tell"),
        (("channels", "images", "messages"), ["image"]),
        (("components", "messages", "prediction", "headers"), "outcome_headers"),
        (("channels", "receipts", "bindings", "kafka", "topicConfiguration"), "compact"),
    ],
)
def test_a_document_that_is_not_is_told(
    validator: jsonschema.Draft7Validator, path: tuple[str, ...], wrong: Any
) -> None:
    document = load_asyncapi()
    node = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = wrong
    assert not validator.is_valid(document)
