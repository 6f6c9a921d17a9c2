"""The rules of alarms, as the YAML file has them: each checked before anything starts.

A rule has a name and one condition: ``prediction`` or ``dead_letter`` (an alarm for each image), ``rate``, ``absence``
or ``unanswered`` (an alarm that resolves). The published schema, ``schemas/alert_rules.schema.json``, is made of these
classes.
"""

import re
import string
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from schemas.errors import Reason
from schemas.modelcard import Flag

OPERATING_POINT = "operating_point"
"""In a rule's ``score``: the model's own threshold."""
NO_FLAG = "none"
"""In a rule's ``flags``: predictions without any."""
PLACEHOLDERS = ("source", "label", "score", "model", "reason", "count")
"""What annotations may have in braces."""
OWN_LABELS = frozenset({"alertname", "alarm_id", "severity", "source", "model", "label", "reason", "event_id"})
"""Labels that no rule sets: they say what the alarm is about."""
UNANSWERED_S = 7 * 86_400.0
"""An accepted image that has waited for so long is forgotten."""
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 366 * _UNITS["d"]
"""Longer ones have no date at their end, or none that anybody waits for."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_MINUTES_OF_A_DAY = 24 * 60


def _read_duration(value: object) -> float:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        msg = "wanted a number and its unit, as 90s, 15m, 2h or 1d"
        raise ValueError(msg)
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > _LONGEST_S:
        msg = "wanted 366d at most"
        raise ValueError(msg)
    return seconds


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_PATTERN = {"type": "string", "minLength": 1}
Duration = Annotated[
    float,
    BeforeValidator(_read_duration),
    Field(gt=0),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$"}),
]
Globs = Annotated[
    tuple[Annotated[str, Field(min_length=1, strict=True)], ...],
    BeforeValidator(_as_list),
    Field(min_length=1),
    WithJsonSchema({"oneOf": [_PATTERN, {"type": "array", "items": _PATTERN, "minItems": 1}]}),
]
"""One text or several; ``*`` stands for any characters, ``?`` for one."""
RuleName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$", strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class ScoreRange(_Part):
    """Bounds of the score, which is the probability of the positive label."""

    at_least: float = Field(default=0.0, ge=0, le=1)
    """The score itself counts."""
    below: float | None = Field(default=None, gt=0, le=1)
    """The score itself does not count."""

    @model_validator(mode="after")
    def _has_scores(self) -> "ScoreRange":
        if self.below is not None and self.below <= self.at_least:
            msg = "below is not above at_least, so no score is between them"
            raise ValueError(msg)
        return self


def _read_score(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"at_least": value}
    if value == OPERATING_POINT or isinstance(value, ScoreRange):
        return value
    try:
        return ScoreRange.model_validate(value)
    except ValidationError as exc:
        msg = f"wanted a number from 0 to 1, {OPERATING_POINT}, or such numbers as at_least and below"
        raise ValueError(msg) from exc


Score = Annotated[
    Any,
    BeforeValidator(_read_score),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"const": OPERATING_POINT},
                {
                    "type": "object",
                    "properties": {
                        "at_least": {"type": "number", "minimum": 0, "maximum": 1},
                        "below": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    },
                    "minProperties": 1,
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""`ScoreRange`, or `OPERATING_POINT`."""


class PredictionCondition(_Part):
    """Which predictions; all that is named must hold."""

    label: Globs | None = None
    """What the model says."""
    score: Score | None = None
    """At least this number; or the model's own threshold; or bounds."""
    flags: tuple[Literal["none", "uncertain", "unlike_training"], ...] = Field(default=("none",), min_length=1)
    """Flags that a prediction may have; ``none`` are those without any. By default these alone."""
    source: Globs | None = None
    """``ce_source`` of the image."""
    model: Globs | None = None
    """The model's name, or ``name@version``."""

    @model_validator(mode="after")
    def _score_means_something(self) -> "PredictionCondition":
        if self.score is not None and Flag.UNLIKE_TRAINING in self.flags:
            msg = "score: of a prediction that is unlike_training the score means nothing; make two rules of it"
            raise ValueError(msg)
        return self


class DeadLetterCondition(_Part):
    """Which dead letters; all that is named must hold."""

    reason: Annotated[tuple[Reason, ...], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """Why it could not be scored."""
    source: Globs | None = None
    """``ce_source`` of the image."""


class RateCondition(_Part):
    """So many outcomes of a kind within a window."""

    prediction: PredictionCondition | None = None
    """Counts these predictions; or:"""
    dead_letter: DeadLetterCondition | None = None
    """Counts these dead letters."""
    at_least: int = Field(ge=1)
    """As many."""
    share: float | None = Field(default=None, gt=0, le=1)
    """And at least this share of all outcomes of the same sources."""
    within: Duration
    """The window."""
    by_source: bool = False
    """Whether each source is counted by itself, and has an alarm of its own."""

    @model_validator(mode="after")
    def _counts_one_thing(self) -> "RateCondition":
        if (self.prediction is None) == (self.dead_letter is None):
            msg = "wanted one of prediction and dead_letter"
            raise ValueError(msg)
        return self

    @property
    def source(self) -> Globs | None:
        """Sources whose outcomes count."""
        counted = self.prediction or self.dead_letter
        return None if counted is None else counted.source


class AbsenceCondition(_Part):
    """No image of a source for so long, in working time."""

    source: Globs
    """Each of these is watched by itself; one with ``*`` stands for any of its sources."""
    duration: Duration = Field(alias="for")
    """Counted from the last image, or from the begin of working time, whichever is later."""
    days: tuple[Day, ...] = Field(default=DAYS, min_length=1)
    """Days of working time."""
    hours: str = "00:00-24:00"
    """Hours of working time on each of these days, by the clock of the time zone."""
    time_zone: str = "UTC"
    """IANA's name, as Europe/Zurich."""

    @field_validator("hours")
    @classmethod
    def _hours_are_a_span(cls, hours: str) -> str:
        found = _HOURS.fullmatch(hours)
        begin, end = _minutes(found) if found else (0, 0)
        if not begin < end <= _MINUTES_OF_A_DAY:
            msg = "wanted HH:MM-HH:MM, the first before the second, 24:00 the latest"
            raise ValueError(msg)
        return hours

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            msg = "there is no such time zone; wanted one of IANA's, as Europe/Zurich"
            raise ValueError(msg) from exc
        return name

    @model_validator(mode="after")
    def _fits_in_a_day(self) -> "AbsenceCondition":
        if not self.is_always and self.duration >= self._longest_run * (self.end_minute - self.begin_minute) * 60:
            msg = (
                "for is not shorter than a day's working time, or that of whole days on end, so it would never be over"
            )
            raise ValueError(msg)
        return self

    @property
    def begin_minute(self) -> int:
        """Minute of the day at which working time begins."""
        return self._span()[0]

    @property
    def end_minute(self) -> int:
        """Minute of the day at which working time ends."""
        return self._span()[1]

    @property
    def is_all_day(self) -> bool:
        """Whether working time is whole days."""
        return self._span() == (0, _MINUTES_OF_A_DAY)

    @property
    def is_always(self) -> bool:
        """Whether all time is working time."""
        return self.is_all_day and set(self.days) == set(DAYS)

    @property
    def _longest_run(self) -> int:
        """How many working days follow each other without a night between them, at most."""
        if not self.is_all_day:
            return 1
        runs = "".join("x" if day in self.days else " " for day in DAYS * 2).split()
        return max(map(len, runs))

    def _span(self) -> tuple[int, int]:
        found = _HOURS.fullmatch(self.hours)
        return _minutes(found) if found else (0, _MINUTES_OF_A_DAY)


class UnansweredCondition(_Part):
    """Images that a gateway accepted and that have no outcome after so long; one alarm for each source."""

    duration: Duration = Field(alias="for")
    """From ``accepted`` on."""
    source: Globs | None = None
    """``ce_source`` of the image."""

    @field_validator("duration")
    @classmethod
    def _is_remembered(cls, duration: float) -> float:
        if duration >= UNANSWERED_S:
            msg = "wanted less than 7d, after which an image is forgotten"
            raise ValueError(msg)
        return duration


class _Defaults(_Part):
    severity: Literal["info", "warning", "critical"] = "warning"
    """How bad it is."""
    max_age: Duration = 900.0
    """Images that Kafka has had for longer when their outcome is read make one summary."""
    open_for: Duration = 3600.0
    """How long the alarm of an image counts as open, for sinks that show what is open."""
    routes: tuple[str, ...] = ()
    """Names of the sinks that get it."""
    labels: dict[str, str] = Field(default={})
    """What receivers route by."""

    @field_validator("labels")
    @classmethod
    def _labels_are_free(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if name in OWN_LABELS or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
                msg = f"{name}: wanted letters, digits and _, and none of {', '.join(sorted(OWN_LABELS))}"
                raise ValueError(msg)
        return labels


class Defaults(_Defaults):
    """What holds for every rule that says nothing else; labels are added to the rule's."""


class Rule(_Defaults):
    """One rule: a name, one condition, and where its alarms go."""

    name: RuleName
    """Unlike all others; it is part of each alarm's id."""
    prediction: PredictionCondition | None = None
    """An alarm for each of these predictions."""
    dead_letter: DeadLetterCondition | None = None
    """An alarm for each of these dead letters."""
    rate: RateCondition | None = None
    """An alarm for as long as there are so many."""
    absence: AbsenceCondition | None = None
    """An alarm for as long as no image comes."""
    unanswered: UnansweredCondition | None = None
    """An alarm for as long as accepted images wait for their outcome."""
    summary: str | None = None
    """One line for a reader; {source}, {label}, {score}, {model}, {reason} and {count} are filled in."""
    description: str | None = None
    """More of the same."""
    runbook: str | None = None
    """What to do, or the address of what to do."""

    @field_validator("summary", "description", "runbook")
    @classmethod
    def _placeholders_are_known(cls, text: str | None) -> str | None:
        check_placeholders(text or "")
        return text

    @model_validator(mode="after")
    def _has_one_condition(self) -> "Rule":
        wanted = ("prediction", "dead_letter", "rate", "absence", "unanswered")
        found = [name for name in wanted if getattr(self, name) is not None]
        if len(found) != 1:
            msg = f"wanted one of {', '.join(wanted)}; found {' and '.join(found) or 'none'}"
            raise ValueError(msg)
        return self

    @property
    def is_of_images(self) -> bool:
        """Whether each image has an alarm of its own."""
        return self.prediction is not None or self.dead_letter is not None


class ExpectedAlarm(_Part):
    """An alarm that a test wants."""

    rule: RuleName
    """Name of the rule."""
    state: Literal["open", "resolved"] = "open"
    """At the test's end."""
    labels: dict[str, str] = Field(default={})
    """Those that it must have; it may have more."""
    count: int = Field(default=1, ge=1)
    """How many such alarms."""
    summary_of: int | None = Field(default=None, ge=1)
    """That it is a summary, of so many images."""


class RuleTest(_Part):
    """A test of the rules: what is read, and which alarms there are afterwards."""

    name: str = Field(min_length=1)
    """What it shows."""
    events: tuple[dict[str, Any], ...] = ()
    """In the order of their times; see docs/alerts.md."""
    begin: AwareDatetime | None = None
    """When it begins, where that is before the first event: what `absence` counts from."""
    until: AwareDatetime | None = None
    """When it ends, where that is after the last event."""
    expect: tuple[ExpectedAlarm, ...] = ()
    """All alarms that there are; none where it is empty."""


class Rules(_Part):
    """A whole file of rules."""

    version: Literal[1]
    """Of the file's form."""
    defaults: Defaults = Defaults()
    """What holds for every rule that says nothing else."""
    sinks: dict[RuleName, dict[str, Any]] = Field(default={})
    """Receivers by name; see docs/alerts.md."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """The rules, in any order: each is tried for each event."""
    tests: tuple[RuleTest, ...] = ()
    """Tests of the rules, which 'xray alerts check' runs."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("rules"), list):
            return value
        defaults = value.get("defaults")
        if not isinstance(defaults, dict):
            return value
        return value | {"rules": [_with_defaults(rule, defaults) for rule in value["rules"]]}

    @model_validator(mode="after")
    def _names_are_known(self) -> "Rules":
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"rules: wanted each name once; found twice: {', '.join(twice)}"
            raise ValueError(msg)
        for rule in self.rules:
            if missing := [name for name in rule.routes if name not in self.sinks]:
                msg = (
                    f"rule {rule.name}: routes: there is no sink {missing[0]}; sinks: {', '.join(self.sinks) or 'none'}"
                )
                raise ValueError(msg)
        return self

    @property
    def longest_max_age_s(self) -> float:
        """Of all rules."""
        return max(rule.max_age for rule in self.rules)


def _with_defaults(rule: Any, defaults: Mapping[str, Any]) -> Any:
    if not isinstance(rule, dict):
        return rule
    labels, own = defaults.get("labels", {}), rule.get("labels", {})
    merged = {"labels": labels | own} if isinstance(labels, dict) and isinstance(own, dict) else {}
    return {**defaults, **rule, **merged}


def matches(globs: Globs | None, *texts: str) -> bool:
    """Tell whether one of the texts is like one of the patterns; without patterns each is."""
    return globs is None or any(fnmatchcase(text, glob) for glob in globs for text in texts)


def check_placeholders(text: str) -> None:
    """Refuse a text with anything in braces that nothing is known of.

    Raises
    ------
    ValueError
        It has.
    """
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as exc:
        msg = "a brace without its other one; write {{ and }} for braces"
        raise ValueError(msg) from exc
    for _, name, shape, conversion in found:
        if name is not None and (name not in PLACEHOLDERS or shape or conversion):
            msg = f"{{{name}}}: wanted one of {', '.join(PLACEHOLDERS)}, alone in its braces"
            raise ValueError(msg)


def _minutes(found: re.Match[str]) -> tuple[int, int]:
    hours = [int(part) for part in found.groups()]
    return hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]


def find_absence_begin(condition: AbsenceCondition, last: float, now: datetime) -> float | None:
    """Tell since when an absence counts.

    Parameters
    ----------
    condition : AbsenceCondition
        Days, hours and time zone.
    last : float
        When the last image came, Unix time in seconds.
    now : datetime
        With a time zone.

    Returns
    -------
    float or None
        The last image's time, or the begin of working time where that is later, which is today's, or that of the first
        of whole days on end; None where it is no working
        time now.
    """
    if condition.is_always:
        return last
    zone = ZoneInfo(condition.time_zone)
    local = now.astimezone(zone)
    minute = local.hour * 60 + local.minute
    if DAYS[local.weekday()] not in condition.days or not condition.begin_minute <= minute < condition.end_minute:
        return None
    day = local.date()
    if condition.is_all_day:  # a night between two such days is working time too
        while DAYS[(day - timedelta(days=1)).weekday()] in condition.days:
            day -= timedelta(days=1)
    hour, minute = divmod(condition.begin_minute, 60)
    return max(last, datetime.combine(day, time(hour, minute), tzinfo=zone).timestamp())
