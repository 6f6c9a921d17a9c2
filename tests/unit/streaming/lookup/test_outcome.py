"""Outcomes as the page reads them from records that SCORE's own code writes."""

import pytest

from schemas import envelope
from schemas.modelcard import AbstainBand
from streaming.kafka.places import Place
from streaming.lookup.outcome import Kind, read_dead_letter, read_prediction
from streaming.settings import KafkaSettings
from tests.imageoutcomes import broken, outgoing, score

KAFKA = KafkaSettings()


def find_band(version: str, sha256: str) -> AbstainBand | None:
    return AbstainBand(0.2, 0.3) if version == "banded" and sha256 == "e" * 64 else None


def test_a_prediction_is_read_with_its_image_model_and_times() -> None:
    image = outgoing(source="/ward/dx-2", name="1.2.77")
    record = score(image, KAFKA, place="3@41", model="banded", threshold=0.4).with_headers(
        **{envelope.CAPTURED_AT: b"2026-01-31T14:03:59Z"}
    )
    found = read_prediction(record, find_band)
    assert found is not None
    assert (found.kind, found.place, found.topic, found.record) == (
        Kind.PREDICTION,
        Place(3, 41),
        KAFKA.images_topic,
        Place(0, 0),
    )
    assert (found.source, found.image_id, found.image_key) == ("/ward/dx-2", "1.2.77", image.event_id)
    assert found.received_at == 1_769_868_239.0
    assert found.latency_s == pytest.approx(0.123)
    assert found.captured_at == "2026-01-31T14:03:59Z"
    assert found.model is not None
    assert (found.model.labels, found.model.threshold) == (("normal", "opacities"), 0.4)
    assert found.model.abstain == AbstainBand(0.2, 0.3)
    assert (found.score, found.label, found.shown_label) == (0.25, "normal", "normal")
    assert found.topic_id == "abcdefghijklmnopqrstuv"
    assert found.payload_bytes == len(image.value)


def test_a_flagged_prediction_is_not_shown_as_an_answer() -> None:
    found = read_prediction(score(outgoing(), KAFKA, flags=["uncertain"]), find_band)
    assert found is not None
    assert (found.label, found.shown_label, found.flags) == ("normal", "undecided", ("uncertain",))


def test_outcomes_of_one_model_share_what_is_said_of_it() -> None:
    first, second = (read_prediction(score(outgoing(), KAFKA), find_band) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.model is second.model
    assert first.source is second.source


def test_a_dead_letter_is_read_without_its_image() -> None:
    image = broken()
    found = read_dead_letter(score(image, KAFKA, place="1@9"))
    assert found is not None
    assert (found.kind, found.reason, found.place) == (Kind.DEAD_LETTER, "truncated_image", Place(1, 9))
    assert found.image_key == image.event_id
    assert found.payload_bytes == len(image.value)
    assert found.error is not None
    assert "PNG" in found.error
    assert (found.error_class, found.score, found.shown_label) == ("CorruptImageError", None, None)


@pytest.mark.parametrize("field", ["image", "probabilities", "event_id", "model"])
def test_a_record_that_lacks_a_field_is_nobodys(field: str) -> None:
    assert read_prediction(score(outgoing(), KAFKA).with_value(**{field: None}), find_band) is None


def test_an_outcome_without_a_place_is_nobodys() -> None:
    nowhere = score(outgoing(), KAFKA).with_headers(**{envelope.INPUT_OFFSET: None})
    assert read_prediction(nowhere, find_band) is None
    assert read_dead_letter(score(broken(), KAFKA).with_headers(**{envelope.REASON: None})) is None
