"""Applies the rules to what was read, and writes what follows into the ledger.

The caller holds a transaction of the ledger around all that one poll gave: events, counts and alarms are on the disk
together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from schemas.envelope import derive_event_id
from streaming.alerts.alarm import Alarm, State
from streaming.alerts.ledger import MAX_MEMBERS, AlarmKind, Entry, Ledger
from streaming.alerts.matching import Place, Why, find_bar, find_mismatch, find_rate_mismatch
from streaming.alerts.outcomeevents import Event, Kind
from streaming.alerts.rules import Rule, Rules, find_absence_begin, matches
from streaming.alerts.wording import (
    annotate,
    annotate_image,
    describe_condition,
    describe_image,
    label_condition,
    label_image,
    write_time,
)

GATHERING_S = 30.0
"""A summary is told when no further old image came for so long,"""
LONGEST_GATHERING_S = 600.0
"""or when it has gathered for so long."""
_STEPS = 60
_CALM_S = 300.0
"""A rate that is below its bound for so long, or for its window where that is shorter, is over."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of an event.

    Parameters
    ----------
    rule : str
        Its name.
    alarm : str or None
        Id of the image's alarm; None where there is none.
    why : Why or None
        Why there is none.
    """

    rule: str
    alarm: str | None
    why: Why | None


class Evaluator:
    """Turns events into alarms.

    Parameters
    ----------
    rules : Rules
        As the file has them.
    ledger : Ledger
        Where alarms are written, and what is known is read.
    find_place : callable
        Gives what is known of the stream now.
    """

    def __init__(self, rules: Rules, ledger: Ledger, find_place: Callable[[], Place] = Place) -> None:
        self._rules = rules.rules
        self._ledger = ledger
        self._find_place = find_place
        self._by_name = {rule.name: rule for rule in rules.rules}
        self._ticked_at: datetime | None = None

    def take(self, event: Event, now: datetime) -> list[Verdict]:
        """Apply every rule to an event.

        Parameters
        ----------
        event : Event
            As read.
        now : datetime
            When it was read: how old the image is follows from it.

        Returns
        -------
        list of Verdict
            One for each rule.
        """
        # A clock that is ahead, or in a year that nobody has, must neither silence an absence nor hold an alarm open.
        event = replace(event, at=min(event.at, now), received_at=min(event.received_at, now))
        bar = find_bar(event, self._find_place())
        if bar in (None, Why.REDRIVEN):
            # What was sent again is noted too: a later answer about it is of an image that was scored before.
            known = self._find_known(event)
            bar = bar or known
        if bar is not Why.CANARY:
            self._note_presence(event)
        return [self._judge(rule, event, bar, now) for rule in self._rules]

    def _find_known(self, event: Event) -> Why | None:
        """Tell whether an outcome was there before, of this model or another; note it where not."""
        if event.kind in (Kind.ACCEPTED, Kind.ANSWERED):
            return None
        # A dead letter and a prediction of one image are both news: it was sent again, and scored this time.
        key = event.image_key if event.kind is Kind.PREDICTION else derive_event_id(event.image_key, event.kind)
        before = self._ledger.note_seen(key, event.event_id, event.received_at.timestamp())
        if before is None:
            return None
        return Why.REPEATED if before == event.event_id else Why.RESCORED

    def _note_presence(self, event: Event) -> None:
        """Note what `absence` and `unanswered` want to know of an image."""
        source = event.source or ""
        for rule in self._rules:
            if rule.absence is not None and not event.is_redriven and event.kind is not Kind.ANSWERED:
                for part in rule.absence.source:
                    if matches((part,), source):
                        self._ledger.note_arrival(rule.name, part, event.received_at.timestamp())
        if any(rule.unanswered is not None for rule in self._rules) and source:
            note = self._ledger.note_accepted if event.kind is Kind.ACCEPTED else self._ledger.note_answered
            note(event.image_key, source, event.at.timestamp())

    def _judge(self, rule: Rule, event: Event, bar: Why | None, now: datetime) -> Verdict:
        mismatch = find_rate_mismatch(rule, event) if rule.rate is not None else find_mismatch(rule, event)
        is_old = (now - event.received_at).total_seconds() > rule.max_age
        if rule.rate is not None:
            if bar is None and not is_old:
                self._count(rule, event, matched=mismatch is None)
            return Verdict(rule.name, None, mismatch or bar or (Why.OLD if is_old else Why.COUNTED))
        why = mismatch or bar
        if why is None and is_old:
            self._gather(rule, event, now)
            why = Why.OLD
        if why is not None:
            return Verdict(rule.name, None, why)
        return Verdict(rule.name, self._raise_image(rule, event), None)

    def _raise_image(self, rule: Rule, event: Event) -> str:
        alarm = Alarm(
            derive_event_id(event.event_id, rule.name),
            rule.name,
            rule.severity,
            State.OPEN,
            label_image(rule, event),
            annotate_image(rule, event),
            event.at,
            event.at + timedelta(seconds=rule.open_for),
            describe_image(event),
        )
        self._ledger.add(Entry(alarm, AlarmKind.IMAGE, "", 1, event.at.timestamp(), rule.routes))
        return alarm.id

    def _gather(self, rule: Rule, event: Event, now: datetime) -> None:
        """Count an old image into its rule's summary, the one of this outage."""
        entry = self._ledger.find_unsettled(rule.name, "")
        if entry is None:
            alarm = Alarm(
                derive_event_id(rule.name, "summary", event.event_id),
                rule.name,
                rule.severity,
                State.OPEN,
                label_condition(rule, ""),
                {},
                now,
                None,
                {},
            )
            entry = Entry(alarm, AlarmKind.GATHERING, "", 0, now.timestamp(), rule.routes)
            self._ledger.add(entry)
        if entry.images < MAX_MEMBERS:
            self._ledger.add_member(entry.alarm.id, describe_image(event))
        self._ledger.update(replace(entry, images=entry.images + 1, held_at=now.timestamp()))

    def _count(self, rule: Rule, event: Event, *, matched: bool) -> None:
        if rule.rate is None or not matches(rule.rate.source, event.source or ""):
            return
        if event.kind not in (Kind.PREDICTION, Kind.DEAD_LETTER):
            return
        step = rule.rate.within / _STEPS
        begin = int(event.at.timestamp() // step * step)
        self._ledger.count(rule.name, (event.source or "") if rule.rate.by_source else "", begin, matched=matched)

    def tick(self, now: datetime, *, read_until: datetime | None) -> None:
        """Open and resolve what depends on time.

        Parameters
        ----------
        now : datetime
            With a time zone.
        read_until : datetime or None
            All that the topics had at this time is read: only of it can an absence be told. None where that is not
            known.
        """
        if self._ticked_at is None or now < self._ticked_at:
            self._ledger.bring_back(now.timestamp())
        self._ticked_at = now
        for rule in self._rules:
            if rule.rate is not None:
                self._judge_rate(rule, now)
            if rule.absence is not None and read_until is not None:
                self._judge_absence(rule, now, read_until)
            if rule.unanswered is not None and read_until is not None:
                self._judge_unanswered(rule, now, read_until)
        for entry in self._ledger.list_unsettled():
            if entry.kind is AlarmKind.CONDITION:
                if read_until is not None:
                    self._settle_condition(entry, now)
            else:
                self._settle_summary(entry, now)

    def _judge_rate(self, rule: Rule, now: datetime) -> None:
        rate = rule.rate
        if rate is None:
            return
        counts = self._ledger.read_counts(rule.name, now.timestamp() - rate.within)
        for part, (matched, total) in counts.items():
            if matched >= rate.at_least and (rate.share is None or matched / total >= rate.share):
                text = f"{matched} of {total} outcomes within {rate.within:.0f} s"
                self._hold(rule, part, now, now, text, images=matched, of=total)

    def _judge_absence(self, rule: Rule, now: datetime, read_until: datetime) -> None:
        absence = rule.absence
        if absence is None:
            return
        for part in absence.source:
            last = self._ledger.read_arrival(rule.name, part)
            if last is None:
                # Nothing was ever seen of it: the time counts from when the rule was first there.
                self._ledger.note_arrival(rule.name, part, now.timestamp())
                continue
            text = f"no image since {write_time(datetime.fromtimestamp(last, UTC))}"
            entry = self._ledger.find_unsettled(rule.name, part)
            if entry is not None:
                # An image ends it, and the end of working time does not. It may be one of before the alarm, whose
                # outcome is read after it.
                opened = entry.alarm.starts_at.timestamp()
                if last < opened and read_until.timestamp() - last >= absence.duration:
                    self._hold(rule, part, entry.alarm.starts_at, now, text)
                continue
            begun = find_absence_begin(absence, last, read_until)
            if begun is not None and read_until.timestamp() - begun >= absence.duration:
                self._hold(rule, part, datetime.fromtimestamp(begun + absence.duration, UTC), now, text)

    def _judge_unanswered(self, rule: Rule, now: datetime, read_until: datetime) -> None:
        if rule.unanswered is None:
            return
        # A receipt of later than this may be read before the outcome, which is in another topic.
        waiting = self._ledger.read_waiting(read_until.timestamp() - rule.unanswered.duration)
        for source, (count, first) in waiting.items():
            if matches(rule.unanswered.source, source):
                since = write_time(datetime.fromtimestamp(first, UTC))
                text = f"{count} accepted images without an outcome, the first since {since}"
                self._hold(rule, source, now, now, text, images=count)

    def _hold(self, rule: Rule, part: str, start: datetime, now: datetime, text: str, **facts: int) -> None:
        """Open the alarm of a condition that holds, or note that it still does."""
        entry = self._ledger.find_unsettled(rule.name, part)
        images = facts.get("images", 0)
        if entry is None:
            alarm = Alarm(
                derive_event_id(rule.name, part, write_time(start)),
                rule.name,
                rule.severity,
                State.OPEN,
                label_condition(rule, part),
                {},
                start,
                None,
                {},
            )
            entry = Entry(alarm, AlarmKind.CONDITION, part, images, now.timestamp(), rule.routes)
            self._ledger.add(self._word(entry, rule, text, facts))
            return
        self._ledger.update(self._word(replace(entry, images=images, held_at=now.timestamp()), rule, text, facts))

    def _word(self, entry: Entry, rule: Rule, text: str, facts: dict[str, int]) -> Entry:
        alarm = entry.alarm
        about = f"{entry.part}: {text}" if entry.part else text
        said = {"source": entry.part, "count": entry.images}
        # The text is a fact, not a form: a source may have braces.
        annotations = annotate(rule, "{about}", "", said | {"about": f"{rule.name}: {about}"})
        event = describe_condition(_condition_of(rule), rule, entry.part, alarm.starts_at, says=text, **facts)
        return replace(entry, alarm=replace(alarm, annotations=annotations, event=event))

    def _settle_condition(self, entry: Entry, now: datetime) -> None:
        """End a condition that does not hold any more, or whose rule is gone."""
        rule = self._by_name.get(entry.alarm.rule)
        if now.timestamp() - entry.held_at >= (0.0 if rule is None else _calm_s(rule)):
            self._end(entry, now)

    def _settle_summary(self, entry: Entry, now: datetime) -> None:
        """Tell a summary that is whole, and end one whose outage is over."""
        rule = self._by_name.get(entry.alarm.rule)
        quiet_s = now.timestamp() - entry.held_at
        if entry.kind is AlarmKind.GATHERING:
            gathered_s = (now - entry.alarm.starts_at).total_seconds()
            if quiet_s < GATHERING_S and gathered_s < LONGEST_GATHERING_S:
                return
        worded = self._word_summary(replace(entry, kind=AlarmKind.SUMMARY), rule)
        if worded != entry:
            self._ledger.update(worded)
        if rule is None or quiet_s >= rule.max_age:
            self._end(worded, now)

    def _word_summary(self, entry: Entry, rule: Rule | None) -> Entry:
        if rule is None:
            return entry
        alarm, count = entry.alarm, entry.images
        text = f"{rule.name}: {count} images whose outcome came more than {rule.max_age:.0f} s late"
        facts = {"about": text, "count": count}
        lines = {"summary": text, "description": "'xray alerts show' and the id name them."}
        annotations = annotate(rule, "{about}", "", facts) | lines
        event = describe_condition("summary", rule, "", alarm.starts_at, images=count)
        return replace(entry, alarm=replace(alarm, annotations=annotations, event=event))

    def _end(self, entry: Entry, now: datetime) -> None:
        self._ledger.update(replace(entry, alarm=replace(entry.alarm, state=State.RESOLVED, ends_at=now)))


def _calm_s(rule: Rule) -> float:
    """How long a condition must not have held to be over."""
    return 0.001 if rule.rate is None else min(_CALM_S, rule.rate.within)


def _condition_of(rule: Rule) -> str:
    return next(name for name in ("rate", "absence", "unanswered") if getattr(rule, name) is not None)
