"""What Spark observed of a micro-batch becomes counts and histograms, once, by the model that scored it."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from schemas.modelcard import Flag
from streaming.metrics import StreamMetrics
from streaming.score.query import read_totals
from tests.metricspage import CARD

_OF_THE_IMAGE = ("payload_bytes", "reason", "decode_seconds", "predict_seconds", "waited_seconds")


def image(**changed: Any) -> dict[str, Any]:
    """One image as Spark tells it."""
    usual = {
        "payload_bytes": 100,
        "reason": None,
        "label": "normal",
        "flags": [],
        "decode_seconds": 0.01,
        "predict_seconds": 0.02,
        "waited_seconds": 0.4,
        "score": 0.25,
    }
    told = usual | changed
    return {"image": {name: told.pop(name) for name in _OF_THE_IMAGE}, **told}


def read_page(registry: CollectorRegistry) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        sample.name + "".join(f"|{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def count(*images: dict[str, Any]) -> dict[str, float]:
    """The page after one micro-batch."""
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, CARD)
    metrics.record_totals(read_totals({"images": list(images)}), CARD.name)
    return read_page(registry)


def test_images_are_counted_by_what_became_of_them() -> None:
    page = count(
        image(),
        image(label=CARD.labels[1], flags=[Flag.UNCERTAIN.value], payload_bytes=5_000_000_000),
        image(label=CARD.labels[1], flags=None),
        image(reason="corrupt_image", label=None, flags=None, predict_seconds=None, score=None),
        image(reason="corrupt_image", label=None, flags=None, predict_seconds=None, score=None),
        image(reason="empty_payload", label=None, flags=None, predict_seconds=None, score=None, payload_bytes=0),
    )
    assert page["xray_images_consumed_total"] == 6
    assert page["xray_input_bytes_total"] == 5_000_000_400
    assert page[f"xray_predictions_total|label={CARD.labels[1]}|model={CARD.name}"] == 2
    assert page[f"xray_flagged_predictions_total|flag=uncertain|model={CARD.name}"] == 1
    assert page[f"xray_flagged_predictions_total|flag=unlike_training|model={CARD.name}"] == 0
    assert page["xray_dead_letters_total|reason=corrupt_image|stage=decode"] == 2
    assert page["xray_dead_letters_total|reason=empty_payload|stage=decode"] == 1
    assert page["xray_dead_letters_total|reason=unexpected|stage=decode"] == 0


def test_times_and_scores_are_of_the_images_that_have_them() -> None:
    dead = image(reason="corrupt_image", predict_seconds=None, score=None, waited_seconds=9.0, decode_seconds=0.3)
    page = count(image(score=0.1, decode_seconds=0.002), image(score=0.95, waited_seconds=2.5), dead)
    assert page["xray_decode_seconds_count"] == 3
    assert page["xray_decode_seconds_bucket|le=0.002"] == 1  # a bound is part of its bucket
    assert page["xray_decode_seconds_bucket|le=0.2"] == 2
    assert page["xray_end_to_end_seconds_count"] == 2
    assert page["xray_end_to_end_seconds_sum"] == 2.9
    assert page[f"xray_predict_seconds_count|model={CARD.name}"] == 2
    assert page[f"xray_score_bucket|le=0.1|model={CARD.name}"] == 1
    assert page[f"xray_score_bucket|le=0.9|model={CARD.name}"] == 1
    assert page[f"xray_score_bucket|le=+Inf|model={CARD.name}"] == 2


def test_a_micro_batch_of_canaries_counts_nothing() -> None:
    assert count() == count()
    page = count()
    assert page["xray_images_consumed_total"] == 0
    assert page["xray_decode_seconds_count"] == 0
    assert page[f"xray_score_count|model={CARD.name}"] == 0  # there from the start: a rate sees the first event
