"""The one step of SCORE in Python: each Kafka row becomes the records of its outcome, by a network that is a fake."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from schemas import envelope
from schemas.documents import load_schema
from schemas.errors import CorruptImageError, Reason
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from sparkdl.image.row import array_from_row
from streaming.score.decoding import DecodePlan, decode_rows
from streaming.score.outcomes import OutcomePlan, Topics, write_prediction
from streaming.score.published import Published
from streaming.score.scoring import ScoringPlan, score_batches
from tests.metricspage import CARD
from tests.testimages import good_files, png
from tests.unit.streaming.score.records import STAMP, batch_of, headers_of

_SIZE = (20, 30)
_TOPIC_ID = "abcdefghijklmnopqrstuv"
_TOPICS = Topics("canary", "canary.results", "predictions", "features", "deadletters")
_PLAN = ScoringPlan(
    DecodePlan(_SIZE, DecodeLimits(), model_sha256="m" * 64, rendering=RENDERING_VERSION),
    OutcomePlan(_TOPICS, CARD, topic_id=_TOPIC_ID),
)
_NAMED = headers_of(("ce_id", b"1"), ("ce_source", b"/device"), ("ce_time", b"2026-01-01T00:00:00Z"))


@dataclass
class _Network:
    input_size: tuple[int, int] = _SIZE
    n_features: int = 4


class _Engine:
    """No network: four numbers that tell images apart, or those that it is made to give."""

    network: Any = _Network()

    def __init__(self, answer: npt.NDArray[np.float32] | None = None) -> None:
        self.answer = answer

    def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        told = [values.mean(), values.std(), -0.0, 1e-20] if self.answer is None else self.answer
        return np.array(told, np.float32)


def score(*rows: dict[str, Any], plan: ScoringPlan = _PLAN, **options: Any) -> list[dict[str, Any]]:
    options = {"engine": _Engine()} | options
    [found] = score_batches(iter([batch_of(*rows)]), plan, **options)
    scored: list[dict[str, Any]] = found.to_pylist()
    return scored


def named(row: dict[str, Any]) -> dict[str, Any]:
    return {header["key"]: header["value"] for header in row["headers"]}


def test_an_image_gives_a_prediction_and_its_features() -> None:
    prediction, features = score({"headers": _NAMED, "partition": 3, "offset": 7})
    assert (prediction["topic"], features["topic"]) == ("predictions", "features")
    assert prediction["value"] is None
    answer = '"label":"normal","probabilities":{"normal":1.0,"opacities":0.0},"positive_label":"opacities",'
    whole = json.loads(f'{prediction["head"]},{answer}"operating_point":"","disclaimer":"d"}}')
    assert whole["image"]["id"] == "1"
    assert whole["event_id"] == json.loads(features["value"])["event_id"] == named(prediction)["ce_id"].decode()
    jsonschema.validate(json.loads(features["value"]), load_schema("features"))
    for row in (prediction, features):
        headers = named(row)
        jsonschema.validate({name: value.decode() for name, value in headers.items()}, load_schema("outcome_headers"))
        assert headers[envelope.INPUT_TOPIC_ID] == _TOPIC_ID.encode()
        assert headers[envelope.INPUT_TIMESTAMP] == b"2026-01-02T03:04:05.678Z"
        assert (headers[envelope.INPUT_PARTITION], headers[envelope.INPUT_OFFSET]) == (b"3", b"7")
        assert row["key"] == b"k"
    # Metrics count the image once.
    assert [row["image"] is None for row in (prediction, features)] == [False, True]


@pytest.mark.parametrize("name", [envelope.REDRIVEN_FROM, "Xray_Redriven_From", *envelope.TRACE_HEADERS])
def test_what_traces_an_image_and_says_that_it_was_sent_again_travels_along(name: str) -> None:
    for outcome in score({"headers": [*_NAMED, *headers_of((name, b"xray.images-3@1024"), ("other", b"1"))]}):
        assert named(outcome)[name] == b"xray.images-3@1024"
        assert "other" not in named(outcome)


@pytest.mark.parametrize("seconds", [0.0, 1.25e-5, 0.5, 61.0])
def test_times_are_told_as_the_contract_has_them(seconds: float) -> None:
    decoded = {**decode_rows(batch_of({}), _PLAN.decoding)[0], "decode_seconds": seconds, "predict_seconds": seconds}
    told = dict(write_prediction(decoded, _PLAN.outcomes, 0).headers)
    for name in (envelope.DECODE_SECONDS, envelope.PREDICT_SECONDS):
        assert float(told[name] or b"") == pytest.approx(seconds, abs=1e-6)
    jsonschema.validate(
        {name: value.decode() for name, value in told.items() if value is not None}, load_schema("outcome_headers")
    )


def test_features_are_those_of_the_decoded_image_to_the_last_bit() -> None:
    payload = good_files()["gray.jpg"]
    prediction, features = score({"value": payload})
    pixels = array_from_row(decode_image(payload, origin="t", size=_SIZE).image)
    wanted = _Engine().infer(pixels)
    assert np.array(prediction["features"], np.float32).tobytes() == wanted.tobytes()
    numbers = features["value"].partition(b'"features":')[2].removesuffix(b"}")
    read = json.loads(numbers, parse_int=lambda text: pytest.fail(f"{text} is an integer"))
    assert np.array(read, np.float32).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_read_back_as_they_were(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 4_000, dtype=np.uint64).astype(np.uint32)
    drawn = bits.view(np.float32)
    answer = np.concatenate([drawn[np.isfinite(drawn)], [0, -0.0, 1, 16777216, 3.4028235e38, 1e-45]]).astype(np.float32)
    engine = _Engine(answer)
    engine.network = _Network(n_features=len(answer))
    _, features = score({}, engine=engine)
    read = np.array(json.loads(features["value"])["features"]).astype(np.float32)
    assert read.tobytes() == answer.tobytes()


def test_a_canary_gives_its_answer_alone() -> None:
    good, bad = {"topic": "canary"}, {"topic": "canary", "value": b"no image"}
    [answer] = score(good, bad)
    assert answer["topic"] == "canary.results"
    assert answer["image"] is None
    assert envelope.INPUT_TOPIC_ID not in named(answer)


@pytest.mark.parametrize(
    ("value", "reason"), [(b"no image", "unsupported_format"), (None, "tombstone"), (b"", "empty_payload")]
)
def test_a_row_that_fails_is_a_dead_letter_with_all_that_came(value: bytes | None, reason: str) -> None:
    came = headers_of(("x-site", b"\xff"), ("none", None), ("__connect.errors.topic", b"elsewhere"))
    [dead] = score({"headers": came, "value": value})
    assert (dead["topic"], dead["key"], dead["value"], dead["head"]) == ("deadletters", b"k", value, None)
    assert dead["headers"][:3] == came
    added = {header["key"]: header["value"].decode() for header in dead["headers"][3:]}
    assert added[envelope.REASON] == reason
    # What failed elsewhere before is told as it was.
    assert "__connect.errors.topic" not in added
    jsonschema.validate({**added, "__connect.errors.topic": "t"}, load_schema("dead_letter_headers"))
    assert dead["image"]["reason"] == reason
    assert dead["features"] == [0.0] * 4


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_image_without_finite_features_is_a_dead_letter(number: float) -> None:
    engine = _Engine(np.array([1, number, 2, 3], np.float32))
    dead, again = score({"headers": _NAMED}, {"headers": _NAMED, "offset": 9}, engine=engine)
    for row in (dead, again):
        assert row["topic"] == "deadletters"
        assert row["value"] == png()
        assert named(row)[envelope.REASON] == b"no_features"
        assert named(row)[envelope.ERROR_CLASS] == b"streaming.score.apply_model"
    # By its source and id, as a prediction would be, wherever it was read.
    assert named(dead)[envelope.EVENT_ID] == named(again)[envelope.EVENT_ID]
    assert score({"topic": "canary"}, engine=engine) == []


def test_pixels_that_the_network_cannot_take_are_a_dead_letter() -> None:
    class Refusing(_Engine):
        def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            raise CorruptImageError(Reason.CORRUPT_IMAGE, "t", "no pixels")

    [dead] = score({}, engine=Refusing())
    assert (dead["topic"], dead["image"]["reason"]) == ("deadletters", "no_features")


def test_what_is_on_the_topics_already_is_marked() -> None:
    published = Published({("t", 0): frozenset({0, 2})}, {("t", 0): frozenset({1}), ("t", 1): frozenset({0})})
    plan = replace(_PLAN, outcomes=replace(_PLAN.outcomes, published=published))
    found = score({}, {}, {"value": b"no image"}, {"value": b"no image"}, plan=plan)
    assert [(row["topic"], row["is_published"]) for row in found] == [
        ("predictions", True), ("features", False), ("predictions", False), ("features", True),
        ("deadletters", True), ("deadletters", False),
    ]  # fmt: skip


def test_refusals_travel_where_the_plan_wants_them() -> None:
    prediction, features = score({"headers": _NAMED}, plan=replace(_PLAN, refusals=True))
    refusal = prediction["refusal"]
    assert refusal["value"] == png()
    assert named(refusal)[envelope.REASON] == b"no_features"
    assert features["refusal"] is None
    assert score({})[0]["refusal"] is None


def test_novelty_is_told_of_each_image_that_was_scored() -> None:
    asked = []

    def tell(features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        asked.append(len(features))
        return features[:, 0] > 10

    rows = [{"value": b"no image"}, {}, {"topic": "canary", "value": good_files()["gray.jpg"]}]
    found = score(*rows, tell_novel=tell)
    assert asked == [2]
    wanted = [_Engine().infer(array_from_row(decode_image(r["value"], origin="t", size=_SIZE).image))[0] > 10
              for r in (batch_of({}).to_pylist()[0], rows[2])]  # fmt: skip
    assert [row["novel"] for row in found] == [None, wanted[0], wanted[0], wanted[1]]


@pytest.mark.parametrize("value", [png(), b"no image"])
def test_a_batch_without_rows_or_of_one_kind_has_all_columns(value: bytes) -> None:
    columns = {"topic", "key", "value", "headers", "head", "features", "novel", "is_published", "image", "refusal"}

    def batches() -> Iterator[pa.RecordBatch]:
        yield batch_of()
        yield batch_of({"value": value})

    empty, one = score_batches(batches(), _PLAN, _Engine())
    assert set(empty.schema.names) == columns
    assert empty.schema == one.schema
    assert empty.num_rows == 0


def test_waiting_is_measured_from_the_brokers_time_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: int((STAMP.timestamp() + 2.5) * 1e9))
    found = score({"value": b"no image"}, {})
    assert [row["image"]["waited_seconds"] for row in found[:2]] == [pytest.approx(2.5, abs=0.002)] * 2
    assert named(found[1])[envelope.CE_TIME] == b"2026-01-02T03:04:08.178Z"
