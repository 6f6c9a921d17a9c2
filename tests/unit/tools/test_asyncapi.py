"""The AsyncAPI document: made of the schemas, complete, and true in each reference and example."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from schemas.documents import SCHEMA_NAMES, load_asyncapi, load_schema
from schemas.envelope import DISCLAIMER
from schemas.goldenevents import EVENT_NAMES
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.settings import KafkaSettings
from tools.asyncapi import OUT, build_document, render_document

_DOCUMENT = load_asyncapi()
_MESSAGES: dict[str, dict[str, Any]] = _DOCUMENT["components"]["messages"]
_EXAMPLES = [(name, example["name"]) for name, message in _MESSAGES.items() for example in message["examples"]]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def resolve(reference: str) -> Any:
    start, *path = reference.split("/")
    assert start == "#", f"{reference} is outside of the document"
    node: Any = _DOCUMENT
    for step in path:
        node = node[step]
    return node


def check(instance: Any, schema: Any) -> None:
    """Validate as a reader of AsyncAPI does: by draft 7."""
    schema = resolve(schema["$ref"]) if "$ref" in schema else schema
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(instance, schema, cls=jsonschema.Draft7Validator)


def test_the_file_is_what_the_schemas_make() -> None:
    made = render_document(build_document(KafkaSettings()))
    assert OUT.read_text(encoding="utf-8") == made, "run: python -m tools.asyncapi"


def test_every_reference_resolves() -> None:
    found = [*references(_DOCUMENT)]
    assert len(found) > len(_DOCUMENT["channels"])
    for reference in found:
        assert resolve(reference), reference


def test_every_topic_is_a_channel_with_its_properties() -> None:
    kafka = KafkaSettings()
    topics = wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka)
    channels = {channel["address"]: channel for channel in _DOCUMENT["channels"].values()}
    assert set(channels) == set(topics)
    for name, channel in channels.items():
        configuration = channel["bindings"]["kafka"]["topicConfiguration"]
        assert ",".join(configuration.pop("cleanup.policy")) == topics[name]["cleanup.policy"]
        assert {key: str(value) for key, value in configuration.items()}.items() <= topics[name].items()


def test_every_channel_has_one_operation() -> None:
    operations = _DOCUMENT["operations"].values()
    assert sorted(each["channel"]["$ref"] for each in operations) == sorted(
        f"#/channels/{n}" for n in _DOCUMENT["channels"]
    )
    received = {resolve(each["channel"]["$ref"])["address"] for each in operations if each["action"] == "receive"}
    kafka = KafkaSettings()
    assert received == {kafka.images_topic, kafka.labels_topic, kafka.canary_topic}


def without_titles(node: Any) -> Any:
    """A schema without its titles; a property may have that name all the same."""
    if isinstance(node, list):
        return [without_titles(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {key: without_titles(child) for key, child in node.items() if key != "title" or isinstance(child, dict)}


def test_every_schema_is_used_and_says_what_its_file_says() -> None:
    used = {each.rpartition("/")[2] for each in references(_MESSAGES)}
    assert used == set(SCHEMA_NAMES)
    for name in SCHEMA_NAMES:
        ours, bundled = load_schema(name), dict(_DOCUMENT["components"]["schemas"][name])
        if "dependencies" in bundled:
            bundled["dependentRequired"] = bundled.pop("dependencies")
        ours["description"] = f"{ours['title']}. {ours['description']}"
        wanted = {key: value for key, value in ours.items() if key not in {"$schema", "$id"}}
        assert without_titles(bundled) == without_titles(wanted)


def test_what_generators_make_classes_of_has_names() -> None:
    schemas = _DOCUMENT["components"]["schemas"]
    prediction = schemas["prediction"]["properties"]
    names = {schemas[name]["title"] for name in SCHEMA_NAMES}
    assert {"Prediction", "OutcomeHeaders", "Receipt"} < names
    assert len(names) == len(SCHEMA_NAMES)
    assert (prediction["image"]["title"], prediction["flags"]["items"]["title"]) == (
        "PredictionImage",
        "PredictionFlags",
    )


def test_every_golden_event_is_an_example() -> None:
    assert sorted(example for _, example in _EXAMPLES) == sorted(EVENT_NAMES)


@pytest.mark.parametrize(("message", "example"), _EXAMPLES)
def test_every_example_is_valid(message: str, example: str) -> None:
    described = _MESSAGES[message]
    [found] = [each for each in described["examples"] if each["name"] == example]
    check(found["headers"], described["headers"])
    if described["contentType"] == "application/json":
        check(found["payload"], described["payload"])


@pytest.mark.parametrize(
    ("message", "part", "change"),
    [
        ("prediction", "payload", {"event_id": "short"}),
        ("prediction", "headers", {"ce_type": "another.v1"}),
        ("image", "headers", {"ce_source": None}),
        ("receipt", "payload", {"state": "lost"}),
        ("label_dead_letter", "headers", {"xray_reason": "because"}),
    ],
)
def test_what_is_wrong_is_refused_by_it_too(message: str, part: str, change: dict[str, Any]) -> None:
    described = _MESSAGES[message]
    wrong = {name: value for name, value in (described["examples"][0][part] | change).items() if value is not None}
    with pytest.raises(jsonschema.ValidationError):
        check(wrong, described[part])


def test_it_says_what_it_is_for() -> None:
    assert DISCLAIMER in _DOCUMENT["info"]["description"]
