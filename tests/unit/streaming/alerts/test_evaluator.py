"""What rules make of events over time: alarms once, summaries, and conditions that open and resolve."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from schemas.envelope import DISCLAIMER, derive_event_id
from streaming.alerts.alarm import State
from streaming.alerts.evaluator import GATHERING_S, Evaluator
from streaming.alerts.ledger import AlarmKind, Entry, Ledger
from streaming.alerts.matching import Place, Why
from streaming.alerts.outcomeevents import Event, read_line
from streaming.alerts.rulesfile import parse_rules

START = datetime(2026, 1, 30, 9, 0, tzinfo=UTC)  # a Friday


class Case:
    """Rules, a ledger in memory, and a clock."""

    def __init__(self, *rules: dict[str, Any]) -> None:
        named = [{"name": f"R{number}", **rule} for number, rule in enumerate(rules)]
        self.ledger = Ledger(None)
        text = yaml.safe_dump({"version": 1, "rules": named, "sinks": {"ward": {}}, "defaults": {"routes": ["ward"]}})
        self._rules = parse_rules(text, "rules.yml")
        self.now = START
        self.restart()

    def restart(self) -> None:
        """Begin anew with what the ledger has."""
        self.evaluator = Evaluator(self._rules, self.ledger, lambda: Place("xray.images"))

    def take(self, kind: str = "prediction", *, age_s: float = 0.0, **said: Any) -> list[Why | None]:
        """Read an event that was written now."""
        event = read_line({kind: said, "at": self.now.isoformat(), "age_s": age_s}, None)
        assert event is not None
        return self.take_event(event)

    def take_event(self, event: Event) -> list[Why | None]:
        with self.ledger.transaction():
            return [verdict.why for verdict in self.evaluator.take(event, self.now)]

    def wait(self, seconds: float, *, is_current: bool = True, behind_s: float = 0.0) -> None:
        """Let time pass, with a tick at its end; what the topics had ``behind_s`` before it is read."""
        self.now += timedelta(seconds=seconds)
        with self.ledger.transaction():
            read_until = self.now - timedelta(seconds=behind_s) if is_current else None
            self.evaluator.tick(self.now, read_until=read_until)

    @property
    def alarms(self) -> list[Entry]:
        return self.ledger.list_alarms()[::-1]

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(entry.alarm.rule, entry.alarm.state.value) for entry in self.alarms]

    def sent(self) -> list[tuple[str, str]]:
        """What is on its way: rule and state."""
        now = datetime.now(UTC).timestamp() + 1
        return [(one.alarm.rule, one.alarm.state.value) for one in self.ledger.list_due("ward", now, 1000)]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    case = Case(*request.param)
    yield case
    case.ledger.close()


def rules(*them: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("case", [them], indirect=True)


@rules({"prediction": {"label": "opacities"}}, {"dead_letter": {}})
def test_an_image_has_one_alarm_by_each_rule_whose_id_is_of_its_event(case: Case) -> None:
    assert case.take() == [None, Why.KIND]
    assert case.take("dead_letter", id="2") == [Why.KIND, None]
    for entry in case.alarms:
        event = entry.alarm.event
        assert entry.alarm.id == derive_event_id(event["event_id"], entry.alarm.rule)
        assert (entry.alarm.state, event["notice"]) == (State.OPEN, DISCLAIMER)
        assert event["image"].keys() == {"source", "id", "sha256"}
        assert entry.alarm.labels["source"] == "/dx-1"
    assert case.alarms[0].alarm.ends_at == START + timedelta(hours=1)
    assert case.sent() == [("R0", "open"), ("R1", "open")]


@pytest.mark.parametrize("said", [{}, {"score": 0.2}, {"flags": ["uncertain"]}])
@rules({"prediction": {}})
def test_a_repetition_is_known_whatever_it_says(case: Case, said: dict[str, Any]) -> None:
    case.take()
    case.wait(3600)
    assert case.take(**said) == [Why.REPEATED if not said or "score" in said else Why.FLAGS]
    assert len(case.alarms) == 1


@pytest.mark.parametrize("first", [{}, {"label": "normal"}, {"flags": ["uncertain"]}, {"redriven": True}])
@rules({"prediction": {"label": "opacities"}})
def test_another_models_answer_about_an_image_makes_no_alarm(case: Case, first: dict[str, Any]) -> None:
    case.take(**first)
    n_before = len(case.alarms)
    assert case.take(model="cxr@2") == [Why.RESCORED]
    assert len(case.alarms) == n_before


@pytest.mark.parametrize("first", ["demo@1", "demo-2@1", "demo-2@7"])
@rules({"prediction": {}})
def test_a_demonstrations_answer_does_not_hide_that_of_a_model_in_earnest(case: Case, first: str) -> None:
    assert case.take(model=first) == [Why.DEMONSTRATION]
    assert case.take() == [None]


@rules({"prediction": {}}, {"dead_letter": {}})
def test_an_image_that_is_sent_again_after_its_dead_letter_has_its_alarm(case: Case) -> None:
    assert case.take("dead_letter") == [Why.KIND, None]
    assert case.take() == [None, Why.KIND]


@rules({"prediction": {}, "max_age": "10m"}, {"dead_letter": {}, "max_age": "1h"})
def test_old_images_make_one_summary_for_each_rule_and_outage(case: Case) -> None:
    for number in range(20):
        assert case.take(id=str(number), age_s=601) == [Why.OLD, Why.KIND]
        case.wait(1)
    assert case.take(id="0", age_s=601) == [Why.REPEATED, Why.KIND]
    assert case.take(id="new", age_s=599) == [None, Why.KIND]
    assert case.sent() == [("R0", "open")]  # the new one: the summary is not whole
    case.wait(GATHERING_S)
    assert len(case.sent()) == 2
    [summary] = [entry for entry in case.alarms if entry.kind is AlarmKind.SUMMARY]
    assert (summary.images, summary.alarm.event["images"], summary.alarm.event["type"]) == (20, 20, "summary")
    assert len(case.ledger.list_members(summary.alarm.id)) == 20
    assert case.take(id="late", age_s=700) == [Why.OLD, Why.KIND]
    case.wait(1)
    assert [(entry.images, entry.alarm.state) for entry in case.alarms if entry.kind is AlarmKind.SUMMARY] == [
        (21, State.OPEN)
    ]
    case.wait(601)
    assert case.take(id="another outage", age_s=700) == [Why.OLD, Why.KIND]
    case.wait(GATHERING_S)
    found = [(entry.images, entry.alarm.state) for entry in case.alarms if entry.kind is AlarmKind.SUMMARY]
    assert found == [(21, State.RESOLVED), (1, State.OPEN)]
    assert len({entry.alarm.id for entry in case.alarms}) == 3
    assert len(case.sent()) == 3  # that an outage is over is nobody's news


@rules({"rate": {"dead_letter": {}, "at_least": 3, "within": "10m"}})
def test_a_rate_opens_with_its_bound_once_and_resolves_when_it_is_over(case: Case) -> None:
    for number in range(2):
        assert case.take("dead_letter", id=str(number)) == [Why.COUNTED]
    assert case.take("dead_letter", id="1") == [Why.REPEATED]
    case.wait(1)
    assert case.states == []
    case.take("dead_letter", id="2")
    case.wait(1)
    case.wait(1)
    assert case.states == [("R0", "open")]
    case.wait(605)
    case.wait(301)
    assert case.states == [("R0", "resolved")]
    for number in range(3, 6):
        case.take("dead_letter", id=str(number))
    case.wait(1)
    assert case.states == [("R0", "resolved"), ("R0", "open")]
    assert len({entry.alarm.id for entry in case.alarms}) == 2


@pytest.mark.parametrize(("n_good", "is_open"), [(3, True), (4, False), (40, False)])
@rules({"rate": {"dead_letter": {"source": "/dx-1"}, "at_least": 3, "share": 0.5, "within": "10m"}})
def test_a_share_is_of_the_outcomes_of_the_same_sources(case: Case, n_good: int, *, is_open: bool) -> None:
    for number in range(3):
        case.take("dead_letter", id=str(number))
    for number in range(n_good):
        case.take(id=f"good {number}")
        case.take(id=f"elsewhere {number}", source="/dx-2")
    case.wait(1)
    assert case.states == [("R0", "open")] * is_open


@rules({"rate": {"dead_letter": {}, "at_least": 2, "within": "10m", "by_source": True}})
def test_each_source_has_an_alarm_of_its_own(case: Case) -> None:
    for source, n in (("/dx-1", 2), ("/dx-2", 1), ("/dx-3", 3)):
        for number in range(n):
            case.take("dead_letter", id=str(number), source=source)
    case.wait(1)
    assert [entry.alarm.labels["source"] for entry in case.alarms] == ["/dx-1", "/dx-3"]


@pytest.mark.parametrize("said", [{"redriven": True}, {"age_s": 1000}, {"source": "/xray-stream/canary"}])
@rules({"rate": {"prediction": {}, "at_least": 1, "within": "10m"}})
def test_a_rate_counts_nothing_that_would_make_no_alarm(case: Case, said: dict[str, Any]) -> None:
    case.take(**said)
    case.wait(1)
    assert case.states == []


ABSENCE = {"source": "/dx-1", "for": "1h", "days": ["fri"], "hours": "08:00-18:00"}


@rules({"absence": ABSENCE})
def test_an_absence_opens_when_its_time_is_over_and_an_image_ends_it(case: Case) -> None:
    case.wait(0)
    case.take()
    case.wait(3599)
    assert case.states == []
    case.wait(2)
    assert case.states == [("R0", "open")]
    assert case.alarms[0].alarm.starts_at == START + timedelta(hours=1)
    case.wait(9 * 3600)  # the end of working time is no image
    assert case.states == [("R0", "open")]
    case.take("dead_letter", id="2")
    case.wait(1)
    assert case.states == [("R0", "resolved")]
    assert case.sent() == [("R0", "open")]  # the resolved one follows it


@pytest.mark.parametrize("before_s", [1, 60, 1800])
@rules({"absence": ABSENCE})
def test_an_image_of_before_an_absence_whose_outcome_is_read_after_it_ends_it(case: Case, before_s: int) -> None:
    case.wait(0)
    case.take()
    case.wait(3601)
    assert case.states == [("R0", "open")]
    case.take(id="2", age_s=before_s + 1)  # received before the alarm began
    case.wait(1)
    assert case.states == [("R0", "resolved")]
    case.wait(3600 - before_s)
    assert case.states == [("R0", "resolved"), ("R0", "open")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("prediction", {"source": "/dx-2"}), ("prediction", {"redriven": True}), ("answered", {})],
)
@rules({"absence": ABSENCE})
def test_what_is_no_new_image_of_the_source_ends_no_absence(case: Case, kind: str, said: dict[str, Any]) -> None:
    case.wait(0)
    case.wait(3000)
    case.take(kind, **said)
    case.wait(601)
    assert case.states == [("R0", "open")]


@pytest.mark.parametrize("kind", ["prediction", "dead_letter", "accepted"])
@rules({"absence": ABSENCE})
def test_whatever_shows_an_image_of_the_source_is_one(case: Case, kind: str) -> None:
    case.wait(0)
    case.wait(3000)
    case.take(kind)
    case.wait(601)
    assert case.states == []


@pytest.mark.parametrize("ahead", [datetime(9999, 12, 31, 23, 59, tzinfo=UTC), START + timedelta(days=400)])
@rules({"absence": ABSENCE}, {"prediction": {}}, {"rate": {"prediction": {}, "at_least": 1, "within": "10m"}})
def test_a_clock_that_is_ahead_silences_nothing_and_holds_nothing_open(case: Case, ahead: datetime) -> None:
    case.wait(0)
    event = read_line({"prediction": {}, "at": START.isoformat()}, None)
    assert event is not None
    case.take_event(replace(event, at=ahead, received_at=ahead))
    case.wait(1)
    assert case.alarms[0].alarm.ends_at == START + timedelta(hours=1)
    case.wait(3600)
    assert sorted(case.states) == [("R0", "open"), ("R1", "open"), ("R2", "resolved")]


@rules(
    {"absence": ABSENCE},
    {"unanswered": {"for": "10m"}},
    {"rate": {"dead_letter": {}, "at_least": 1, "within": "1m"}},
)
def test_conditions_stay_as_they_are_while_not_all_is_read(case: Case) -> None:
    case.wait(0)
    case.take("accepted")
    case.wait(3601, is_current=False)
    assert case.states == []
    case.wait(1)
    case.take("dead_letter", id="2", source="/dx-2")
    case.wait(1)
    open_ones = [("R0", "open"), ("R1", "open"), ("R2", "open")]
    assert sorted(case.states) == open_ones
    case.take("prediction")
    case.wait(1000, is_current=False)
    assert sorted(case.states) == open_ones
    case.wait(1)
    assert sorted(case.states) == [(rule, "resolved") for rule, _ in open_ones]


@pytest.mark.parametrize("answer", ["answered", "prediction", "dead_letter"])
@rules({"unanswered": {"for": "10m", "source": "/dx-*"}})
def test_an_accepted_image_without_an_outcome_opens_and_its_outcome_resolves(case: Case, answer: str) -> None:
    case.take("accepted")
    case.take("accepted", id="2", source="/ct-1")
    case.wait(599)
    assert case.states == []
    case.wait(2)
    assert case.states == [("R0", "open")]
    assert (case.alarms[0].images, case.alarms[0].alarm.labels["source"]) == (1, "/dx-1")
    case.take(answer)
    case.wait(1)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("answer", ["answered", "prediction", "dead_letter"])
@rules({"unanswered": {"for": "10m"}})
def test_an_outcome_that_is_read_before_accepted_counts(case: Case, answer: str) -> None:
    case.take(answer)
    case.take("accepted")
    case.wait(3600)
    assert case.states == []


@pytest.mark.parametrize("behind_s", [1.0, 600.0, 86_400.0])
@pytest.mark.parametrize("answer", ["answered", "prediction", "dead_letter"])
@rules({"unanswered": {"for": "10m"}})
def test_a_receipt_that_is_read_late_is_judged_when_the_other_topics_are_read_as_well(
    case: Case, answer: str, behind_s: float
) -> None:
    case.wait(0)
    accepted_at = case.now
    case.now += timedelta(seconds=599 + behind_s)
    event = read_line({"accepted": {}, "at": accepted_at.isoformat()}, None)
    assert event is not None
    case.take_event(event)
    case.wait(0, behind_s=behind_s)
    case.wait(0.5, behind_s=behind_s)
    assert case.states == []
    case.take(answer)
    case.wait(3600)
    assert case.states == []


@pytest.mark.parametrize("behind_s", [1.0, 600.0, 86_400.0])
@rules({"absence": {"source": "/dx-1", "for": "1h"}})
def test_an_absence_is_told_of_what_is_read(case: Case, behind_s: float) -> None:
    case.wait(0)
    case.take()
    case.wait(3600 + behind_s - 1, behind_s=behind_s)
    assert case.states == []
    case.wait(2, behind_s=behind_s)
    assert case.states == [("R0", "open")]
    case.take(id="2")
    case.wait(1, behind_s=behind_s)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("source", ["/{dx}", "{source}", "/dx-1 {0.__class__}"])
@rules({"prediction": {}, "summary": "{label} at {source}, {score}"})
def test_a_source_with_braces_is_text(case: Case, source: str) -> None:
    case.take(source=source)
    assert case.alarms[0].alarm.annotations["summary"] == f"opacities at {source}, 1.000"


STEPS = [-7200.0, -86_400.0 * 30]
"""By how much a clock goes back."""


def step(case: Case, step_s: float, *, is_new: bool) -> None:
    """Have the clock go back, while the process runs or is started again."""
    case.now += timedelta(seconds=step_s)
    if is_new:
        case.restart()


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("step_s", STEPS)
@rules({"absence": {"source": "/dx-1", "for": "1h"}})
def test_a_clock_that_goes_back_hides_no_absence_for_long(case: Case, step_s: float, *, is_new: bool) -> None:
    case.wait(0)
    case.take()
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.wait(3601)
    assert case.states == [("R0", "open")]
    case.take(id="2")
    case.wait(1)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("step_s", STEPS)
@pytest.mark.parametrize("ahead_s", [7200, 86_400])
@rules({"absence": {"source": "/dx-1", "for": "1h"}})
def test_an_absence_that_a_clock_ahead_has_opened_ends_with_it(
    case: Case, ahead_s: int, step_s: float, *, is_new: bool
) -> None:
    case.wait(0)
    case.take()
    case.wait(ahead_s)
    assert case.states == [("R0", "open")]
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.take(id="2")
    case.wait(1)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("step_s", STEPS)
@rules({"unanswered": {"for": "10m"}})
def test_a_clock_that_goes_back_hides_no_image_without_an_answer(case: Case, step_s: float, *, is_new: bool) -> None:
    case.take("accepted")
    case.wait(1)
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.wait(601)
    assert case.states == [("R0", "open")]
    case.take("answered")
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.wait(1)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("step_s", STEPS)
@rules({"rate": {"dead_letter": {}, "at_least": 3, "within": "10m"}})
def test_a_clock_that_goes_back_holds_no_rate_and_loses_none(case: Case, step_s: float, *, is_new: bool) -> None:
    for number in range(2):
        case.take("dead_letter", id=str(number))
    case.wait(1)
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.take("dead_letter", id="2")
    case.wait(1)
    assert case.states == [("R0", "open")]
    step(case, step_s, is_new=is_new)
    case.wait(1)
    for _ in range(20):
        case.wait(60)
    assert case.states == [("R0", "resolved")]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("step_s", STEPS)
@rules({"prediction": {}, "max_age": "10m"})
def test_a_clock_that_goes_back_holds_no_summary(case: Case, step_s: float, *, is_new: bool) -> None:
    case.take(age_s=700)
    case.wait(1)
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.wait(GATHERING_S + 1)
    assert [entry.kind for entry in case.alarms] == [AlarmKind.SUMMARY]
    assert len(case.sent()) == 1
    step(case, step_s, is_new=is_new)
    case.wait(1)
    case.wait(601)
    assert case.states == [("R0", "resolved")]
