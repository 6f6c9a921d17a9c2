"""Whether a rule is about an event, and if not, why; nothing is read or written here."""

from dataclasses import dataclass
from enum import StrEnum

from schemas.modelcard import is_demonstration
from streaming.alerts.outcomeevents import Event, Kind
from streaming.alerts.rules import (
    NO_FLAG,
    OPERATING_POINT,
    DeadLetterCondition,
    PredictionCondition,
    Rule,
    ScoreRange,
    matches,
)

CANARY_SOURCE = "/xray-stream/canary"


class Why(StrEnum):
    """Why an event makes no alarm by a rule: a closed set, for 'xray alerts check' and a metric."""

    KIND = "another_kind"
    SOURCE = "source"
    MODEL = "model"
    LABEL = "label"
    SCORE = "score"
    FLAGS = "flags"
    REASON = "reason"
    CANARY = "canary"
    DEMONSTRATION = "demonstration_model"
    CHALLENGER = "challenger"
    REDRIVEN = "redriven"
    RESCORED = "rescored"
    REPEATED = "repeated"
    OLD = "older_than_max_age"
    COUNTED = "counted"


NEVER = (Why.CANARY, Why.DEMONSTRATION, Why.CHALLENGER, Why.REDRIVEN, Why.RESCORED, Why.REPEATED)
"""Reasons that hold for every rule."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of the stream that events come from.

    Parameters
    ----------
    images_topic : str or None
        Images of another topic are none of a device's; None takes those of any.
    challenger : str or None
        Version of the model that may be the next champion, where this machine knows one.
    """

    images_topic: str | None = None
    challenger: str | None = None


def find_bar(event: Event, place: Place) -> Why | None:
    """Tell why an event never makes an alarm, whatever the rules say; None where nothing bars it.

    Repetitions and images that were scored before are the ledger's to know.
    """
    foreign = bool(place.images_topic and event.input_topic and event.input_topic != place.images_topic)
    if foreign or event.source == CANARY_SOURCE:
        return Why.CANARY
    if event.kind is Kind.PREDICTION and is_demonstration(event.model["name"]):
        return Why.DEMONSTRATION
    if event.kind is Kind.PREDICTION and place.challenger == event.model["version"]:
        return Why.CHALLENGER
    return Why.REDRIVEN if event.is_redriven else None


def find_mismatch(rule: Rule, event: Event) -> Why | None:
    """Tell what of an image's rule does not hold for an event; None where all does."""
    if rule.prediction is not None:
        return _of_prediction(rule.prediction, event)
    if rule.dead_letter is not None:
        return _of_dead_letter(rule.dead_letter, event)
    return Why.KIND


def find_rate_mismatch(rule: Rule, event: Event) -> Why | None:
    """Tell what of the outcomes that a rate counts does not hold for an event; None where all does."""
    if rule.rate is None:
        return Why.KIND
    if rule.rate.prediction is not None:
        return _of_prediction(rule.rate.prediction, event)
    return Why.KIND if rule.rate.dead_letter is None else _of_dead_letter(rule.rate.dead_letter, event)


def _of_prediction(wanted: PredictionCondition, event: Event) -> Why | None:
    if event.kind is not Kind.PREDICTION:
        return Why.KIND
    names = (event.model["name"], event.model_name or "")
    # In this order, so that the reason told is the coarsest one.
    checks = {
        Why.SOURCE: matches(wanted.source, event.source or ""),
        Why.MODEL: matches(wanted.model, *names),
        Why.FLAGS: all(flag in wanted.flags for flag in event.flags) if event.flags else NO_FLAG in wanted.flags,
        Why.LABEL: matches(wanted.label, event.label or ""),
        Why.SCORE: _has_score(wanted, event),
    }
    return next((why for why, holds in checks.items() if not holds), None)


def _has_score(wanted: PredictionCondition, event: Event) -> bool:
    if wanted.score == OPERATING_POINT:
        return event.is_positive
    if isinstance(wanted.score, ScoreRange):
        score, below = event.score, wanted.score.below
        return score is not None and score >= wanted.score.at_least and (below is None or score < below)
    return True


def _of_dead_letter(wanted: DeadLetterCondition, event: Event) -> Why | None:
    if event.kind is not Kind.DEAD_LETTER:
        return Why.KIND
    if not matches(wanted.source, event.source or ""):
        return Why.SOURCE
    return None if wanted.reason is None or event.reason in wanted.reason else Why.REASON
