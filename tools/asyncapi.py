"""Makes the AsyncAPI document of all topics: ``python -m tools.asyncapi``.

It is put together from the JSON Schemas, the golden events and the topics' properties, so that it says nothing of its
own but how these belong together. The schemas are inside it: one file is all that another team needs. A test holds the
file against this.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.documents import SCHEMA_NAMES, load_schema
from schemas.envelope import DISCLAIMER
from schemas.goldenevents import EVENT_NAMES, GoldenEvent, load_event
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.settings import KafkaSettings

OUT = Path(__file__).resolve().parent.parent / "schemas" / "asyncapi.json"
"""The document of this checkout."""

_BINDING = "0.5.0"
_JSON = "application/json"
_BYTES = "application/octet-stream"
_FILE = {"type": "string", "format": "binary"}
_ANYTHING = {"type": ["string", "null"], "format": "binary"}
_KEY = "The image's key, as its publisher gave it; any bytes. Records with one key are in one partition, in order."
_DESCRIPTION = f"""Chest X-ray images in; predictions, feature vectors and dead letters out. {DISCLAIMER}

Delivery is at least once: drop event ids that you have seen. Fields, headers, flags, remarks and reasons may be \
added: ignore fields that you do not know, and take a word that you do not know in `flags` for a reason not to \
act. Names of topics are those of the default settings. Actions are those of xray-stream: what it sends you \
receive."""


@dataclass(frozen=True)
class Message:
    """A kind of record.

    Parameters
    ----------
    name : str
        In the document.
    headers : str
        Name of the headers' schema.
    value : str or dict
        Name of the value's schema, or a schema that only says that it is bytes.
    summary, key : str
        What it is; what its key is.
    """

    name: str
    headers: str
    value: str | dict[str, Any]
    summary: str
    key: str = _KEY


@dataclass(frozen=True)
class Channel:
    """A topic, and what is on it.

    Parameters
    ----------
    name : str
        In the document.
    topic : str
        In Kafka.
    message : str
        Name of its message.
    action : str
        What xray-stream does there: ``receive`` or ``send``.
    summary : str
        What it is for.
    internal : bool
        Nothing for other teams.
    """

    name: str
    topic: str
    message: str
    action: str
    summary: str
    internal: bool = False


MESSAGES = (
    Message("image", "image_headers", _FILE, "One image file as it is: PNG, JPEG or single-frame DICOM."),
    Message("prediction", "outcome_headers", "prediction", "What the model says of one image."),
    Message("features", "outcome_headers", "features", "The feature vector of one scored image."),
    Message("dead_letter", "dead_letter_headers", _ANYTHING, "An input that could not be scored, as it came, and why."),
    Message(
        "receipt",
        "receipt_headers",
        "receipt",
        "What became of one image; the last one of a key counts.",
        "The image's own event id, as event_id of the value.",
    ),
    Message(
        "label",
        "label_headers",
        "label",
        "A finding that a person has confirmed.",
        "Not read; one and the same for all events of an image keeps them in order.",
    ),
    Message(
        "label_dead_letter",
        "label_dead_letter_headers",
        _ANYTHING,
        "A finding that could not be recorded, as it came, and why.",
        "The event's key, as it came.",
    ),
)


def list_channels(kafka: KafkaSettings) -> tuple[Channel, ...]:
    """List what is said of each topic."""
    return (
        Channel("images", kafka.images_topic, "image", "receive", "Images to be scored."),
        Channel("predictions", kafka.predictions_topic, "prediction", "send", "Predictions."),
        Channel("features", kafka.features_topic, "features", "send", "Feature vectors, for retraining."),
        Channel("deadletters", kafka.deadletters_topic, "dead_letter", "send", "Inputs without a prediction."),
        Channel("receipts", kafka.receipts_topic, "receipt", "send", "The last state of each image, compacted."),
        Channel("labels", kafka.labels_topic, "label", "receive", "Confirmed findings, for retraining."),
        Channel(
            "labelsDeadletters", kafka.labels_deadletters_topic, "label_dead_letter", "send", "Findings not recorded."
        ),
        Channel(
            "canary", kafka.canary_topic, "image", "receive", "The stream's own test image: not yours.", internal=True
        ),
        Channel(
            "canaryResults",
            kafka.canary_results_topic,
            "prediction",
            "send",
            "Predictions of the stream's own test image: not results.",
            internal=True,
        ),
    )


def build_document(kafka: KafkaSettings) -> dict[str, Any]:
    """Put the document together.

    Parameters
    ----------
    kafka : KafkaSettings
        Names and properties of the topics.

    Returns
    -------
    dict
        AsyncAPI 3.0, all references inside.
    """
    topics = wanted_topics(kafka) | label_topics(kafka) | receipt_topics(kafka)
    channels = list_channels(kafka)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "xray-stream",
            "version": "1.0.0",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "local": {"host": "127.0.0.1:19092", "protocol": "kafka", "description": "the broker of `xray up`"},
            "sandbox": {"host": "127.0.0.1:19292", "protocol": "kafka", "description": "of `xray demo --keep`"},
        },
        "channels": {channel.name: _describe_channel(channel, topics[channel.topic]) for channel in channels},
        "operations": {f"{channel.action}_{channel.name}": _describe_operation(channel) for channel in channels},
        "components": {
            "messages": {message.name: _describe_message(message) for message in MESSAGES},
            "schemas": {name: _bundle(name, load_schema(name)) for name in SCHEMA_NAMES},
        },
    }


def _describe_channel(channel: Channel, properties: dict[str, str]) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "cleanup.policy": properties["cleanup.policy"].split(","),
        "retention.ms": int(properties["retention.ms"]),
        "max.message.bytes": int(properties["max.message.bytes"]),
    }
    described = {
        "address": channel.topic,
        "title": channel.topic,
        "summary": channel.summary,
        "messages": {channel.message: {"$ref": f"#/components/messages/{channel.message}"}},
        "bindings": {"kafka": {"topicConfiguration": configuration, "bindingVersion": _BINDING}},
    }
    return described | ({"tags": [{"name": "internal"}]} if channel.internal else {})


def _describe_operation(channel: Channel) -> dict[str, Any]:
    place = f"#/channels/{channel.name}"
    return {
        "action": channel.action,
        "channel": {"$ref": place},
        "summary": channel.summary,
        "messages": [{"$ref": f"{place}/messages/{channel.message}"}],
    }


def _describe_message(message: Message) -> dict[str, Any]:
    is_json = isinstance(message.value, str)
    return {
        "name": message.name,
        "title": message.summary,
        "contentType": _JSON if is_json else _BYTES,
        "headers": {"$ref": f"#/components/schemas/{message.headers}"},
        "payload": {"$ref": f"#/components/schemas/{message.value}"} if is_json else message.value,
        "bindings": {"kafka": {"key": {"type": "string", "description": message.key}, "bindingVersion": _BINDING}},
        "examples": [
            _describe_example(name, load_event(name))
            for name in EVENT_NAMES
            if name == message.name or name.startswith(f"{message.name}_")
            if load_event(name).headers_schema == message.headers
        ],
    }


def _describe_example(name: str, event: GoldenEvent) -> dict[str, Any]:
    """Bytes are left out: what they are is said by their headers, and the golden event has them."""
    described: dict[str, Any] = {"name": name, "headers": {name: text.decode() for name, text in event.headers}}
    if event.value_schema is not None and event.value is not None:
        described["payload"] = json.loads(event.value)
    return described


def _bundle(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Make a schema a part of the document, in the dialect of AsyncAPI's, which is that of draft 7.

    An identity of its own would be what references inside it are read against. Its title becomes a name, for generators
    make the names of classes of titles; its parts get names too.
    """
    bundled = {key: value for key, value in schema.items() if key not in {"$schema", "$id", "dependentRequired"}}
    if "dependentRequired" in schema:
        bundled["dependencies"] = schema["dependentRequired"]
    bundled["description"] = f"{schema['title']}. {schema['description']}"
    return _name_parts(bundled, _to_class_name(name))


def _name_parts(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a schema a title, and those of its properties and items that are objects or lists of words."""
    named = dict(schema)
    if "properties" in schema or "enum" in schema:
        named = {**schema, "title": name}
    if "properties" in schema:
        parts = schema["properties"]
        named["properties"] = {key: _name_parts(part, name + _to_class_name(key)) for key, part in parts.items()}
    if "items" in schema:
        named["items"] = _name_parts(schema["items"], name)
    return named


def _to_class_name(name: str) -> str:
    """E.g. ``PredictionImage`` of ``prediction_image``."""
    return "".join(word.capitalize() for word in re.split(r"[^A-Za-z0-9]+", name))


def render_document(document: dict[str, Any]) -> str:
    """Render as the file has it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main(out: Annotated[Path, typer.Option(help="The file that is written.")] = OUT) -> None:
    """Write the document."""
    out.write_text(render_document(build_document(KafkaSettings())), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
