"""The contracts: messages of the first version stay valid, and nothing that a consumer reads goes away."""

import json
from typing import Any

import jsonschema
import pytest

from schemas import envelope
from schemas.documents import RULES_SCHEMA, SCHEMA_NAMES, load_schema, load_tables
from schemas.envelope import derive_event_id
from schemas.errors import Reason
from schemas.labels import LABELS_TABLE
from schemas.modelcard import Flag, Remark
from tests.paths import CONTRACTS

_CONTRACTS = CONTRACTS
_MESSAGES: dict[str, dict[str, Any]] = json.loads((_CONTRACTS / "messages_v1.json").read_text())
_TABLES: dict[str, dict[str, str]] = json.loads((_CONTRACTS / "tables_v1.json").read_text())


@pytest.mark.parametrize("name", [*SCHEMA_NAMES, RULES_SCHEMA])
def test_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema(name))


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_messages_of_the_first_version_stay_valid(name: str) -> None:
    jsonschema.validate(_MESSAGES[name], load_schema(name))


@pytest.mark.parametrize(
    "name", [name for name in SCHEMA_NAMES if name not in ("image_headers", "label", "label_headers")]
)
def test_what_consumers_read_stays_promised(name: str) -> None:
    promised = set(load_schema(name)["required"])
    always_there = set(_MESSAGES[name]) - {"threshold"}
    assert always_there <= promised


def test_publishers_are_asked_for_nothing_new() -> None:
    assert "required" not in load_schema("image_headers")
    jsonschema.validate({}, load_schema("image_headers"))
    assert envelope.IMAGE_FLAGS in load_schema("image_headers")["properties"]
    assert load_schema("label")["required"] == ["label"]
    for name in ({"sha256": "a" * 64}, {"event_id": "B" * 32}, {"source": "/dx-1", "id": "a", "sha256": None}):
        jsonschema.validate({"label": "any", **name}, load_schema("label"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prediction", {"event_id": "short"}),
        ("prediction", {"probabilities": {"normal": 1.5, "opacities": 0}}),
        ("prediction", {"disclaimer": "fine to use"}),
        ("features", {"features": []}),
        ("image_headers", {"ce_specversion": "0.3"}),
        ("outcome_headers", {"xray_input_offset": "-1"}),
        ("dead_letter_headers", {"xray_reason": "because"}),
        ("label", {"sha256": "a" * 64}),
        ("label", {"id": None}),
        ("label", {"patient_id": 17}),
        ("label", {"confirmed_at": "yesterday"}),
        ("receipt", {"state": "lost"}),
        ("receipt", {"at": "2026-01-31T14:03:59Z"}),
        ("receipt", {"place": "somewhere"}),
        ("receipt", {"reason": "truncated_image"}),
        ("receipt", {"state": "dead_lettered", "outcome_event_id": "0" * 32}),
        ("receipt", {"state": "predicted", "model": "v"}),
        ("receipt", {"state": "predicted", "model": "v", "outcome_event_id": "0" * 32, "label": "normal"}),
    ],
)
def test_schema_refuses_what_breaks_it(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_MESSAGES[name] | change, load_schema(name))


def test_reasons_of_the_schema_are_the_codes() -> None:
    assert load_schema("dead_letter_headers")["properties"]["xray_reason"]["enum"] == [r.value for r in Reason]


def test_the_schema_of_a_label_has_the_tables_columns() -> None:
    names = {"sha256", "event_id", "source", "id"}
    assert set(load_schema("label")["properties"]) == names | set(LABELS_TABLE.columns) - {"recorded_at"}


def test_tables_keep_their_columns() -> None:
    for name, columns in _TABLES.items():
        now = load_tables()[name].columns
        assert {column: now.get(column) for column in columns} == columns


def test_event_id_depends_on_every_part_and_on_where_parts_end() -> None:
    assert derive_event_id("a", "bc") == derive_event_id("a", "bc")
    assert len({derive_event_id(*parts) for parts in (("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("abc",))}) == 4


def test_words_of_flags_and_remarks_are_the_codes() -> None:
    properties = load_schema("prediction")["properties"]
    assert properties["flags"]["items"]["enum"] == [flag.value for flag in Flag]
    assert properties["remarks"]["items"]["enum"] == [remark.value for remark in Remark]


@pytest.mark.parametrize("remarks", [[], ["uncertain"], ["old_rendering", "old_rendering"], "old_rendering", None])
def test_remarks_are_known_words_or_absent(remarks: Any) -> None:
    jsonschema.validate(_MESSAGES["prediction"] | {"remarks": ["old_rendering"]}, load_schema("prediction"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_MESSAGES["prediction"] | {"remarks": remarks}, load_schema("prediction"))
