"""Tries rules on events without a broker and without a sink: what would fire, and why the rest would not."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from streaming.alerts.alarm import State
from streaming.alerts.evaluator import GATHERING_S, Evaluator, Verdict
from streaming.alerts.ledger import AlarmKind, Entry, Ledger
from streaming.alerts.outcomeevents import Event, read_line
from streaming.alerts.rules import ExpectedAlarm, Rules, RuleTest

_STEP_S = 30.0
_STEPS_AT_MOST = 10_000
_ALL = 1_000_000


@dataclass(frozen=True)
class Trial:
    """What rules made of events.

    Parameters
    ----------
    alarms : list of Entry
        In the order of their starts.
    verdicts : list of (Event, list of Verdict)
        For each event, what each rule says.
    """

    alarms: list[Entry]
    verdicts: list[tuple[Event, list[Verdict]]] = field(default_factory=list)


@dataclass(frozen=True)
class RuleTestResult:
    """What became of a test of rules.

    Parameters
    ----------
    name : str
        The test's.
    faults : list of str
        What is not as expected; empty where all is.
    """

    name: str
    faults: list[str]


def try_rules(
    rules: Rules, events: Sequence[Event], *, begin: datetime | None = None, until: datetime | None = None
) -> Trial:
    """Have rules judge events as if each were read when it was written.

    Parameters
    ----------
    rules : Rules
        As the file has them.
    events : sequence of Event
        In any order; they are judged in that of their times.
    begin, until : datetime, optional
        Where time before the first event, or after the last one, matters.
    """
    ledger = Ledger(None)
    evaluator = Evaluator(rules, ledger)
    verdicts = []
    ordered = sorted(events, key=lambda event: event.at)
    times = [event.at for event in ordered]
    now = begin or (times[0] if times else until or datetime.now(UTC))
    with ledger.transaction():
        evaluator.tick(now, read_until=now)
        for event in ordered:
            now = _pass_time(evaluator, now, event.at)
            verdicts.append((event, evaluator.take(event, max(now, event.at))))
            evaluator.tick(max(now, event.at), read_until=max(now, event.at))
        # By itself, for the last summary to be whole.
        _pass_time(evaluator, now, max(until or now, now + timedelta(seconds=GATHERING_S if until is None else 0)))
    alarms = ledger.list_alarms(limit=_ALL)
    ledger.close()
    return Trial(alarms[::-1], verdicts)


def _pass_time(evaluator: Evaluator, now: datetime, until: datetime) -> datetime:
    """Let time pass in steps, so that what opens and resolves in between does."""
    gap_s = (until - now).total_seconds()
    step = timedelta(seconds=max(_STEP_S, gap_s / _STEPS_AT_MOST))
    while now + step < until:
        now += step
        evaluator.tick(now, read_until=now)
    if until > now:
        evaluator.tick(until, read_until=until)
    return max(now, until)


def read_events(path: Path) -> list[Event]:
    """Read a file of events, one JSON document a line.

    Raises
    ------
    SettingsError
        It cannot be read, or a line is none of the forms that there are.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        msg = f"{path} cannot be read: {why}"
        raise SettingsError(msg) from exc
    return list(_read_lines(path, lines))


def _read_lines(path: Path, lines: Iterable[str]) -> Iterator[Event]:
    previous: datetime | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = read_line(json.loads(line), previous)
        except ValueError:
            event = None
        if event is None:
            msg = f"{path}: line {number} is no event: wanted a topic's record or a prediction as JSON (docs/alerts.md)"
            raise SettingsError(msg)
        previous = event.at
        yield event


def run_tests(rules: Rules) -> list[RuleTestResult]:
    """Run the tests that a file of rules has."""
    return [RuleTestResult(test.name, _find_faults(rules, test)) for test in rules.tests]


def _find_faults(rules: Rules, test: RuleTest) -> list[str]:
    events: list[Event] = []
    for number, line in enumerate(test.events, start=1):
        event = read_line(line, events[-1].at if events else test.begin)
        if event is None:
            return [f"event {number} is none of the forms that there are (docs/alerts.md)"]
        events.append(event)
    trial = try_rules(rules, events, begin=test.begin, until=test.until)
    left = list(trial.alarms)
    faults = []
    for expected in test.expect:
        found = [entry for entry in left if _is(entry, expected)]
        if len(found) < expected.count:
            faults.append(f"expected {_describe_expected(expected)}; found {len(found)} of {expected.count}")
        for entry in found[: expected.count]:
            left.remove(entry)
    more = Counter(_describe_entry(entry) for entry in left)
    return faults + [f"not expected: {n} x {what}" for what, n in more.items()]


def _is(entry: Entry, expected: ExpectedAlarm) -> bool:
    alarm = entry.alarm
    is_summary = entry.kind in (AlarmKind.SUMMARY, AlarmKind.GATHERING)
    return (
        alarm.rule == expected.rule
        and is_summary == (expected.summary_of is not None)
        and (is_summary or alarm.state == State(expected.state))
        and expected.summary_of in (None, entry.images)
        and expected.labels.items() <= alarm.labels.items()
    )


def _describe_expected(expected: ExpectedAlarm) -> str:
    said = expected.model_dump(exclude_defaults=True)
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _describe_entry(entry: Entry) -> str:
    what = f"summary of {entry.images}" if entry.kind is not AlarmKind.IMAGE and not entry.part else entry.alarm.state
    labels = {**entry.alarm.labels}
    return f"rule {entry.alarm.rule}, {what}, labels {labels}"


def describe_verdict(event: Event, verdict: Verdict) -> dict[str, Any]:
    """Render for JSON."""
    return {
        "event_id": event.event_id,
        "kind": event.kind.value,
        "rule": verdict.rule,
        "alarm": verdict.alarm,
        "why": None if verdict.why is None else verdict.why.value,
    }
