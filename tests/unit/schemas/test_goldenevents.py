"""The golden events: each keeps its schemas, is what the rules of identity make of it, and is listed."""

import hashlib
import json
from datetime import datetime
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from schemas.documents import load_schema
from schemas.envelope import DISCLAIMER, derive_event_id, derive_image_event_id
from schemas.errors import Reason
from schemas.goldenevents import EVENT_NAMES, GoldenEvent, load_event
from schemas.labels import LabelReason
from schemas.modelcard import Flag, Remark
from sparkdl.image.decode import decode_image
from streaming.gateway.receipts.receipt import State, read_receipt
from streaming.results.labelevents import Event, Rejection, add_error_headers
from streaming.settings import KafkaSettings

_TOPICS = {topic for name, topic in KafkaSettings() if name.endswith("_topic") and "canary" not in name}


def headers_of(event: GoldenEvent) -> dict[str, str]:
    return {name: text.decode() for name, text in event.headers}


def value_of(event: GoldenEvent) -> dict[str, Any]:
    assert event.value is not None
    value: dict[str, Any] = json.loads(event.value)
    return value


def predictions() -> list[str]:
    return [name for name in EVENT_NAMES if name.startswith("prediction")]


def test_every_file_is_listed() -> None:
    found = {path.name for path in (files("schemas") / "examples").iterdir()}
    assert found == {f"{name}.json" for name in EVENT_NAMES}


def test_every_topic_has_an_event() -> None:
    assert {load_event(name).topic for name in EVENT_NAMES} == _TOPICS


@pytest.mark.parametrize("name", EVENT_NAMES)
def test_event_keeps_its_schemas(name: str) -> None:
    event = load_event(name)
    jsonschema.validate(headers_of(event), load_schema(event.headers_schema))
    if event.value_schema is not None:
        jsonschema.validate(value_of(event), load_schema(event.value_schema))


@pytest.mark.parametrize("name", EVENT_NAMES)
def test_event_says_what_it_is_in_the_schemas_own_words(name: str) -> None:
    """Headers and fields that no schema names would be promised by an example alone."""
    event = load_event(name)
    known = set(load_schema(event.headers_schema)["properties"])
    if "dead_letter" in name:  # the original's headers come first
        known |= set(load_schema("label_headers" if "label" in name else "image_headers")["properties"])
    assert set(headers_of(event)) <= known
    if event.value_schema is not None:
        assert set(value_of(event)) <= set(load_schema(event.value_schema)["properties"])


@pytest.mark.parametrize("name", predictions())
def test_a_predictions_id_follows_from_image_and_model(name: str) -> None:
    event = load_event(name)
    value, headers = value_of(event), headers_of(event)
    image = value["image"]
    assert value["event_id"] == derive_event_id(image["source"], image["id"], image["sha256"], value["model"]["sha256"])
    assert (headers["ce_id"], headers["ce_subject"]) == (value["event_id"], image["id"])
    assert sum(value["probabilities"].values()) == pytest.approx(1)
    assert value["disclaimer"] == DISCLAIMER


def test_predictions_say_each_thing_that_one_can_say() -> None:
    values = [value_of(load_event(name)) for name in predictions()]
    assert {flag for value in values for flag in value.get("flags", [])} == {flag.value for flag in Flag}
    assert {remark for value in values for remark in value.get("remarks", [])} == {remark.value for remark in Remark}
    plain = [value for value in values if not value.get("flags")]
    assert {value["label"] == value["positive_label"] for value in plain} == {True, False}
    assert any("flags" not in value for value in values)


def test_the_image_is_the_one_that_its_prediction_features_and_receipts_are_of() -> None:
    image, prediction = load_event("image"), value_of(load_event("prediction"))
    assert image.value is not None
    sha256 = hashlib.sha256(image.value).hexdigest()
    decoded = decode_image(image.value, origin="golden")
    headers = headers_of(image)
    assert prediction["image"] == {
        "source": headers["ce_source"],
        "id": headers["ce_id"],
        "sha256": sha256,
        "media_type": headers["content-type"],
        "height": decoded.original_height,
        "width": decoded.original_width,
        "payload_bytes": len(image.value),
    }
    features = value_of(load_event("features"))
    assert features["event_id"] == prediction["event_id"]
    assert features["image"].items() <= prediction["image"].items()
    assert value_of(load_event("label"))["event_id"] == prediction["event_id"]
    for name in ("receipt_accepted", "receipt_predicted"):
        receipt = value_of(load_event(name))
        assert receipt["event_id"] == derive_image_event_id(headers["ce_source"], headers["ce_id"], sha256)
    assert value_of(load_event("receipt_predicted"))["outcome_event_id"] == prediction["event_id"]


def test_receipts_are_what_the_gateway_reads_and_writes() -> None:
    states = set()
    for name in (name for name in EVENT_NAMES if name.startswith("receipt")):
        event = load_event(name)
        assert event.value is not None
        receipt = read_receipt(event.value)
        assert receipt is not None
        assert (receipt.to_json(), receipt.to_headers()) == (event.value, event.headers)
        assert event.key == receipt.event_id.encode()
        states.add(receipt.state)
    assert states == set(State)


def test_dead_letters_have_the_ids_and_reasons_of_what_they_are_of() -> None:
    cut, nothing = load_event("dead_letter"), load_event("dead_letter_tombstone")
    assert cut.value is not None
    assert nothing.value is None
    headers = headers_of(cut)
    sha256 = hashlib.sha256(cut.value).hexdigest()
    identity = (headers["ce_source"], headers["ce_id"])
    assert headers["xray_event_id"] == derive_event_id(*identity, sha256, "dead-letter")
    assert headers["xray_reason"] == Reason.TRUNCATED_IMAGE
    headers = headers_of(nothing)
    place = tuple(headers[f"xray_input_{name}"] for name in ("topic", "partition", "offset"))
    assert headers["xray_event_id"] == derive_event_id(*place, hashlib.sha256(b"").hexdigest(), "dead-letter")
    assert headers["xray_reason"] == Reason.TOMBSTONE


def test_a_labels_dead_letter_is_what_xray_label_writes() -> None:
    label, letter = load_event("label"), load_event("label_dead_letter")
    headers = headers_of(letter)
    added = {name: text for name, text in headers.items() if name not in headers_of(label)}
    event = Event(
        partition=int(added["xray_input_partition"]),
        offset=int(added["xray_input_offset"]),
        received_at=datetime.fromisoformat(added["xray_input_timestamp"]),
        key=letter.key,
        value=letter.value,
        headers=list(label.headers),
    )
    detail = added["__connect.errors.exception.message"]
    rejection = Rejection(event, LabelReason(added["xray_reason"]), detail)
    assert add_error_headers(rejection, "xray.labels") == letter.headers


def test_reasons_of_labels_are_the_codes() -> None:
    reasons = load_schema("label_dead_letter_headers")["properties"]["xray_reason"]["enum"]
    assert reasons == [reason.value for reason in LabelReason]
