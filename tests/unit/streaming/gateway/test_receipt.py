"""Receipts: what they say, which of two counts, and what SCORE's outcomes become."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonschema
import pytest

from schemas import envelope
from schemas.documents import load_schema
from streaming.gateway.receipts.outcome import read_dead_letter, read_prediction
from streaming.gateway.receipts.receipt import Receipt, Score, State, choose_last, read_receipt
from streaming.settings import KafkaSettings
from tests.imageoutcomes import MODEL, Record, broken, outgoing, score

_KAFKA = KafkaSettings()
_NOW = datetime(2026, 1, 31, 14, 3, 59, 123_456, UTC)
_IMAGE = outgoing(name="1.2.3")
_BROKEN = broken(name="1.2.3", flags="burned_in_annotation,other_bytes_under_uid")


def _accepted(**changes: Any) -> Receipt:
    return replace(Receipt.of_accepted(_IMAGE, "xray.images-0@12", _NOW), **changes)


def _predicted(**changes: Any) -> Receipt:
    outcome = read_prediction(score(_IMAGE, _KAFKA), with_score=False)  # type: ignore[arg-type]
    assert outcome is not None
    return replace(outcome.receipt, **changes)


def _dead(**changes: Any) -> Receipt:
    outcome = read_dead_letter(score(_BROKEN, _KAFKA))  # type: ignore[arg-type]
    assert outcome is not None
    return replace(outcome.receipt, **changes)


_EXAMPLES = {
    "accepted": _accepted(),
    "spooled": _accepted(place=None),
    "flagged": _accepted(flags=("burned_in_annotation",)),
    "predicted": _predicted(),
    "scored": _predicted(score=Score("normal", 0.75)),
    "undecided": _predicted(score=Score(undecided=("uncertain",))),
    "dead lettered": _dead(),
}


@pytest.mark.parametrize("name", _EXAMPLES)
def test_a_receipt_keeps_its_schema_and_comes_back_as_it_was(name: str) -> None:
    receipt = _EXAMPLES[name]
    value = json.loads(receipt.to_json())
    jsonschema.validate(value, load_schema("receipt"))
    assert set(value) <= set(load_schema("receipt")["properties"])
    assert read_receipt(receipt.to_json()) == receipt
    headers = dict(receipt.to_headers())
    assert headers["ce_type"] == b"xray.receipt.v1"
    assert headers["ce_source"] == b"/xray-stream/gateway"
    assert headers["ce_time"] == receipt.at.encode()


def test_each_state_says_what_it_is_of() -> None:
    assert _accepted().to_dict() == {
        "event_id": _IMAGE.event_id,
        "state": "accepted",
        "at": "2026-01-31T14:03:59.123Z",
        "image": {"source": "/dx-1", "id": "1.2.3", "sha256": _accepted().sha256},
        "flags": [],
        "place": "xray.images-0@12",
    }
    predicted, dead = _predicted(), _dead()
    assert (predicted.event_id, predicted.state, predicted.model) == (_IMAGE.event_id, "predicted", MODEL)
    assert predicted.outcome_event_id == json.loads(score(_IMAGE, _KAFKA).value() or b"")["event_id"]
    assert (predicted.at, predicted.place, predicted.score) == ("2026-01-31T14:03:59.123Z", "xray.images-0@12", None)
    assert (dead.event_id, dead.state, dead.reason) == (_BROKEN.event_id, "dead_lettered", "truncated_image")
    assert dead.flags == ("burned_in_annotation", "other_bytes_under_uid")


def test_no_two_events_have_one_id() -> None:
    receipts = [*_EXAMPLES.values(), _accepted(at="2026-01-31T14:04:59.123Z")]
    assert len({dict(one.to_headers())["ce_id"] for one in receipts}) == len(receipts)


def test_a_time_is_utc_whatever_zone_it_came_in() -> None:
    east = _NOW.astimezone(timezone(timedelta(hours=9)))
    assert Receipt.of_accepted(_IMAGE, None, east).at == "2026-01-31T14:03:59.123Z"


# --- scores -----------------------------------------------------------------------------------------------------------


def _read_score(**answer: Any) -> dict[str, Any]:
    outcome = read_prediction(score(_IMAGE, _KAFKA, **answer), with_score=True)  # type: ignore[arg-type]
    assert outcome is not None
    jsonschema.validate(outcome.receipt.to_dict(), load_schema("receipt"))
    return outcome.receipt.to_dict()


def test_no_score_unless_a_setting_says_so() -> None:
    assert not {"label", "probability", "undecided", "notice"} & set(_predicted().to_dict())
    shown = _read_score()
    assert (shown["label"], shown["probability"], shown["notice"]) == ("normal", 0.75, envelope.DISCLAIMER)


@pytest.mark.parametrize(
    ("label", "flags"),
    [("opacities", ["uncertain"]), ("unlike_training", ["unlike_training"]), ("normal", ["of a later release"])],
)
def test_a_flagged_prediction_is_shown_without_its_label(label: str, flags: list[str]) -> None:
    shown = _read_score(label=label, flags=flags)
    assert shown["undecided"] == flags
    assert shown["notice"] == envelope.DISCLAIMER
    assert not {"label", "probability"} & set(shown)


# --- the last state ---------------------------------------------------------------------------------------------------

_EARLY, _LATE = "2026-01-31T14:00:00.000Z", "2026-01-31T15:00:00.000Z"
_FAILED: dict[str, Any] = {
    "state": State.DEAD_LETTERED,
    "reason": "unexpected",
    "model": None,
    "outcome_event_id": "0" * 32,
}
_STATES: dict[str, Callable[[str], Receipt]] = {
    "accepted": lambda at: _accepted(at=at),
    "predicted": lambda at: _predicted(at=at, flags=()),
    "dead": lambda at: replace(
        _predicted(at=at, flags=()),
        state=State.DEAD_LETTERED,
        reason="unexpected",
        model=None,
        outcome_event_id="0" * 32,
    ),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(_STATES, _STATES)))
@pytest.mark.parametrize("in_order", [True, False])
def test_of_every_two_states_one_is_the_last(first: str, second: str, in_order: bool) -> None:
    old, new = _STATES[first](_EARLY), _STATES[second](_LATE)
    if not in_order:
        old, new = replace(old, at=_LATE), replace(new, at=_EARLY)
    last = choose_last(old, new)
    if first == "accepted" and second != "accepted":
        assert last == new, "a final state replaces an accepted one, whatever their clocks"
    elif first != "accepted" and second == "accepted":
        assert last == old, "and never the other way"
    elif first == second and first != "accepted":
        assert last == old, "a repetition is no news"
    else:
        assert last == (new if in_order else old), "of equals the later one counts"


def test_the_first_state_counts_at_once() -> None:
    assert choose_last(None, _dead()) == _dead()


def test_another_model_or_reason_is_news() -> None:
    again = _predicted(at=_LATE, model="another", outcome_event_id="1" * 32)
    assert choose_last(_predicted(), again) == again
    other_reason = _dead(at=_LATE, reason="unexpected")
    assert choose_last(_dead(), other_reason) == other_reason


def test_an_image_that_is_in_the_topic_does_not_go_back_into_the_spool() -> None:
    spooled, published = _accepted(at=_LATE, place=None), _accepted(at=_EARLY)
    assert choose_last(published, spooled) == published
    assert choose_last(spooled, published) == published
    assert choose_last(replace(spooled, at=_EARLY), spooled) == spooled


@pytest.mark.parametrize("state", ["accepted", "predicted", "dead"])
def test_flags_are_kept_whichever_comes_first(state: str) -> None:
    flagged, other = _accepted(at=_EARLY, flags=("a", "c")), replace(_STATES[state](_LATE), flags=("b",))
    for old, new in ((flagged, other), (other, flagged)):
        last = choose_last(old, new)
        assert last == replace(other, flags=("a", "b", "c"))


# --- what is no receipt, what has none --------------------------------------------------------------------------------


def _changed(**changes: Any) -> bytes:
    return json.dumps(_accepted().to_dict() | changes).encode()


_NO_RECEIPTS = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no UTF-8": b'"\xff"',
    "an unknown state": _changed(state="lost"),
    "no image": _changed(image=None),
    "another image's id": _changed(event_id="0" * 32),
    "a number as source": _changed(image={"source": 1, "id": "1.2.3", "sha256": "0" * 64}),
    "another form of time": _changed(at="2026-01-31T14:03:59Z"),
    "a time that never was": _changed(at="2026-99-31T14:03:59.000Z"),
    "no time": _changed(at=None),
    "no flags": _changed(flags=None),
    "a lone surrogate": _changed(image={"source": "\ud800", "id": "1.2.3", "sha256": "0" * 64}),
}


@pytest.mark.parametrize("case", _NO_RECEIPTS)
def test_what_no_gateway_wrote_is_no_receipt(case: str) -> None:
    assert read_receipt(_NO_RECEIPTS[case]) is None


def test_a_later_releases_fields_are_ignored() -> None:
    assert read_receipt(_changed(colour="red")) == _accepted()


def _without(record: Record, *names: str) -> Record:
    event = json.loads(record.value() or b"")
    return record.with_value(image={name: one for name, one in event["image"].items() if name not in names})


_PREDICTION, _DEAD_LETTER = score(_IMAGE, _KAFKA), score(_BROKEN, _KAFKA)
_NO_PREDICTIONS = {
    "plain bytes": _without(_PREDICTION, "source", "id"),
    "without a source": _without(_PREDICTION, "source"),
    "with an empty id": _PREDICTION.with_value(image={"source": "/dx-1", "id": "", "sha256": "0" * 64}),
    "without a hash": _without(_PREDICTION, "sha256"),
    "of another type": _PREDICTION.with_headers(ce_type=b"xray.features.v1"),
    "without a place": _PREDICTION.with_headers(xray_input_offset=None),
    "a tombstone": _PREDICTION.changed(value=None),
    "no JSON": _PREDICTION.changed(value=b"{"),
    "a list": _PREDICTION.changed(value=b"[]"),
    "deep": _PREDICTION.changed(value=b"[" * 100_000),
    "without a model": _PREDICTION.with_value(model=None),
}
_NO_DEAD_LETTERS = {
    "plain bytes": _DEAD_LETTER.with_headers(ce_source=None, ce_id=None),
    "without an id": _DEAD_LETTER.with_headers(ce_id=None),
    "with an empty source": _DEAD_LETTER.with_headers(ce_source=b""),
    "an id that is no text": _DEAD_LETTER.with_headers(ce_id=b"\xff"),
    "of nobody's": _DEAD_LETTER.with_headers(xray_reason=None),
    "without a place": _DEAD_LETTER.with_headers(xray_input_topic=None),
}


@pytest.mark.parametrize("case", _NO_PREDICTIONS)
def test_a_prediction_of_a_nameless_image_or_of_anothers_gives_no_receipt(case: str) -> None:
    assert read_prediction(_NO_PREDICTIONS[case], with_score=True) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("case", _NO_DEAD_LETTERS)
def test_a_dead_letter_of_a_nameless_image_or_of_anothers_gives_no_receipt(case: str) -> None:
    assert read_dead_letter(_NO_DEAD_LETTERS[case]) is None  # type: ignore[arg-type]


def test_a_dead_letters_image_is_named_as_score_reads_it() -> None:
    """Names of headers in any case."""
    headers = [(name.upper() if name.startswith("ce_") else name, value) for name, value in _BROKEN.headers]
    outcome = read_dead_letter(score(replace(_BROKEN, headers=headers), _KAFKA))  # type: ignore[arg-type]
    assert outcome is not None
    assert outcome.receipt.event_id == _BROKEN.event_id


@pytest.mark.parametrize("ms", [-1, 0, 10**18])
def test_a_forged_clock_makes_no_year_that_there_is_not(ms: int) -> None:
    outcome = read_prediction(_PREDICTION.changed(ms=ms), with_score=False)  # type: ignore[arg-type]
    assert outcome is not None
    assert "1970" <= outcome.receipt.at <= "2100"
