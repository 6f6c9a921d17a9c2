"""What a receiver is told under one id is the same each time, however long it takes and whatever happens meanwhile."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streaming.alerts.alarm import Alarm, Delivered, Outcome, Retry
from streaming.alerts.dispatcher import Dispatcher
from streaming.alerts.evaluator import GATHERING_S
from streaming.alerts.sinks.wording import message_id, to_json
from tests.unit.streaming.alerts.test_dispatcher import Meter
from tests.unit.streaming.alerts.test_evaluator import Case


class Receiver:
    """Has what it is sent, and says that it has not, as long as it is told to."""

    name = "ward"
    resolved_for_s = 0.0
    at_once = 1

    def __init__(self, resend_s: float | None = None) -> None:
        self.resend_s = resend_s
        self.bodies: dict[str, list[str]] = {}
        self.fails = True

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        for alarm in alarms:
            self.bodies.setdefault(message_id(alarm), []).append(to_json(alarm))
        return Retry(None, "no answer") if self.fails else Delivered()

    def next_try_s(self, attempt: int) -> float | None:
        return 1.0


def open_rate(case: Case) -> None:
    for number in range(3):
        case.take("dead_letter", id=str(number))


def open_absence(case: Case) -> None:
    case.take()
    case.wait(3601)


def open_unanswered(case: Case) -> None:
    case.take("accepted", id="a")
    case.wait(601)


def gather(case: Case) -> None:
    for number in range(3):
        case.take(id=str(number), age_s=2000)
    case.wait(GATHERING_S + 1)


def more_of_all(case: Case, turn: int) -> None:
    case.take("dead_letter", id=f"d{turn}", source="/dx-3")
    case.take("accepted", id=f"a{turn}")
    case.take(id=f"old {turn}", age_s=2000 + turn, source="/dx-4")


RULES: dict[str, tuple[dict[str, Any], Callable[[Case], None], float]] = {
    "rate": ({"rate": {"dead_letter": {}, "at_least": 3, "within": "10m"}}, open_rate, 3000),
    "absence": ({"absence": {"source": "/dx-1", "for": "1h"}}, open_absence, 1),
    "unanswered": ({"unanswered": {"for": "10m"}}, open_unanswered, 1),
    "summary": ({"prediction": {}, "max_age": "10m"}, gather, 700),
    "image": ({"prediction": {}}, lambda case: bool(case.take()) and None, 1),
}


@pytest.mark.parametrize("what", RULES)
@pytest.mark.parametrize("resend_s", [None, 60.0])
def test_one_id_has_one_text(what: str, resend_s: float | None) -> None:
    rule, begin, over_s = RULES[what]
    case, receiver = Case(rule), Receiver(resend_s)
    now = [datetime.now(UTC).timestamp() + 1]
    dispatcher = Dispatcher(receiver, case.ledger, Meter(), lambda: now[0])

    def work() -> None:
        now[0] += 2
        while dispatcher.deliver_due():
            pass

    case.wait(0)
    begin(case)
    case.wait(1)
    work()
    for turn in range(3):
        case.wait(1)
        more_of_all(case, turn)
        case.wait(1)
        work()
    receiver.fails = False  # it says that it has the open one, and then has the resolved one too
    case.now += timedelta(seconds=1)
    case.take("answered", id="a")
    for turn in range(3):
        case.take("answered", id=f"a{turn}")
    case.take(id="ends an absence")
    case.wait(over_s)
    case.wait(400)
    receiver.fails = True
    work()
    for turn in range(3, 6):
        case.wait(1)
        more_of_all(case, turn)
        case.wait(1)
        work()
    case.ledger.close()
    repeated = [texts for texts in receiver.bodies.values() if len(texts) > 1]
    assert repeated
    if resend_s is None:
        assert all(len(set(texts)) == 1 for texts in receiver.bodies.values())
    elif what in ("rate", "unanswered", "summary"):
        assert any(len(set(texts)) > 1 for texts in repeated), "what is sent again tells how things are"
