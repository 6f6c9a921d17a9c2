"""Deliveries to one sink: once, again, later, in parts, or never."""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import JobError
from streaming.alerts.alarm import Alarm, Delivered, Disabled, Outcome, Refused, Retry, State
from streaming.alerts.dispatcher import Dispatcher
from streaming.alerts.ledger import KEPT_S, UNDELIVERED, AlarmKind, Delivery, Entry, Ledger, Status


class Meter:
    def __init__(self) -> None:
        self.results: list[str] = []

    def note_attempt(self, sink: str, result: str, alarms: Sequence[Delivery], seconds: float) -> None:
        self.results.append(result)


@dataclass
class FakeSink:
    """Answers as it is told, and keeps what it got."""

    name: str = "ward"
    resend_s: float | None = None
    resolved_for_s: float = 0.0
    at_once: int = 16
    waits: tuple[float, ...] = (5.0, 300.0)
    answer: Callable[[Sequence[Alarm]], Outcome] = lambda alarms: Delivered()
    got: list[tuple[tuple[str, ...], int]] = field(default_factory=list)

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        self.got.append((tuple(f"{one.id[:2]}{one.state.value[0]}" for one in alarms), attempt))
        return self.answer(alarms)

    def next_try_s(self, attempt: int) -> float | None:
        return self.waits[attempt] if attempt < len(self.waits) else None


class Desk:
    """A ledger, a sink, and a clock that moves when it is told to."""

    def __init__(self, path: Path | None = None, **options: Any) -> None:
        self.now = datetime.now(UTC).timestamp() + 1
        self.ledger = Ledger(path)
        self.sink = FakeSink(**options)
        self.meter = Meter()
        self.dispatcher = Dispatcher(self.sink, self.ledger, self.meter, lambda: self.now)

    def add(self, *numbers: int, kind: AlarmKind = AlarmKind.IMAGE, open_s: float | None = 3600.0) -> None:
        with self.ledger.transaction():
            for number in numbers:
                self.ledger.add(self.entry(number, kind, open_s))

    def entry(self, number: int, kind: AlarmKind = AlarmKind.IMAGE, open_s: float | None = 3600.0) -> Entry:
        at = datetime.fromtimestamp(self.now, UTC)
        ends_at = None if open_s is None else at + timedelta(seconds=open_s)
        alarm = Alarm(f"{number:02}" * 16, "R", "info", State.OPEN, {}, {}, at, ends_at, {})
        return Entry(alarm, kind, str(number), 1, self.now, ("ward",))

    def resolve(self, number: int) -> None:
        found = self.ledger.find(f"{number:02}" * 16)
        assert found is not None
        ended = {"state": State.RESOLVED, "ends_at": datetime.fromtimestamp(self.now, UTC)}
        alarm = Alarm(**{name: getattr(found.alarm, name) for name in Alarm.__slots__} | ended)
        with self.ledger.transaction():
            self.ledger.update(Entry(alarm, found.kind, found.part, 1, self.now, ("ward",)))

    def work(self, seconds: float = 0.0) -> list[tuple[tuple[str, ...], int]]:
        """Let time pass, deliver what is due, and give what the sink got."""
        self.now += seconds
        self.sink.got.clear()
        while self.dispatcher.deliver_due():
            pass
        return list(self.sink.got)

    def status(self, number: int = 1, state: str = "open") -> tuple[str, int]:
        [one] = [one for one in self.ledger.list_deliveries(f"{number:02}" * 16) if one.alarm.state == state]
        return one.status.value, one.attempts


def test_what_is_delivered_is_delivered_once() -> None:
    desk = Desk()
    desk.add(1, 2)
    desk.add(2)  # read again
    assert desk.work() == [(("01o", "02o"), 0)]
    assert desk.work(1e6) == []
    assert desk.status() == ("delivered", 0)


def test_it_is_tried_again_by_the_sinks_schedule_and_given_up_at_its_end() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"))
    desk.add(1)
    assert desk.work() == [(("01o",), 0)]
    assert desk.work(4.9) == []
    assert desk.work(0.2) == [(("01o",), 1)]
    assert desk.work(299) == []
    assert desk.work(2) == [(("01o",), 2)]
    assert desk.status() == ("given_up", 3)
    assert desk.work(1e6) == []
    assert desk.meter.results == ["retried", "retried", "given_up"]


@pytest.mark.parametrize("step_s", [-60.0, -7200.0, -86_400.0 * 400])
@pytest.mark.parametrize("outcome", [Retry(None, "503"), Retry(3600.0, "429"), Delivered()])
def test_a_clock_that_goes_back_is_not_waited_for(outcome: Outcome, step_s: float) -> None:
    desk = Desk(answer=lambda alarms: outcome, resend_s=60.0)
    desk.add(1, open_s=1e6)
    assert len(desk.work()) == 1
    assert desk.work() == []
    assert len(desk.work(step_s)) == 1
    assert desk.work() == []
    desk.add(2)
    assert len(desk.work()) == 1
    assert len(desk.work(3601)) >= 1


@pytest.mark.parametrize("after_s", [0.5, 30.0, 4000.0])
def test_a_receiver_that_says_when_is_heeded(after_s: float) -> None:
    desk = Desk(answer=lambda alarms: Retry(after_s, "429"))
    desk.add(1)
    desk.work()
    assert desk.work(after_s - 0.1) == []
    assert desk.work(0.2) == [(("01o",), 1)]


def test_what_was_no_attempt_uses_none_up() -> None:
    desk = Desk(answer=lambda alarms: Retry(60.0, "asked to wait", tried=False))
    desk.add(1)
    for _ in range(5):
        assert [attempt for _, attempt in desk.work(61)] == [0]
    desk.sink.answer = lambda alarms: Delivered()
    assert desk.work(61) == [(("01o",), 0)]


def test_one_alarm_that_a_receiver_cannot_take_holds_up_no_other() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "500") if any(one.id[:2] == "03" for one in alarms) else Delivered())
    desk.add(*range(1, 9))
    for wait_s in (0, 6, 301):
        desk.work(wait_s)
    assert {desk.status(number)[0] for number in (1, 2, 4, 5, 6, 7, 8)} == {"delivered"}
    assert desk.status(3)[0] == "given_up"


def test_after_an_outage_parts_grow_again() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"), waits=(5.0,) * 100)
    desk.add(*range(60))
    for _ in range(4):
        desk.work(6)
    desk.sink.answer = lambda alarms: Delivered()
    assert [len(alarms) for alarms, _ in desk.work(6)] == [1, 4, 16, 16, 16, 7]


def test_an_outage_is_logged_once_each_time(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"), waits=(5.0,) * 100)
    desk.add(*range(60))
    for answer, n_lines in ((Retry(None, "503"), 1), (Retry(None, "no answer"), 2), (Delivered(), 2)):
        desk.sink.answer = lambda alarms, answer=answer: answer
        for _ in range(3):
            desk.work(6)
        assert len(caplog.messages) == n_lines
    desk.sink.answer = lambda alarms: Retry(None, "503")
    desk.add(61)
    desk.work(6)
    assert len(caplog.messages) == 3


def test_a_failure_makes_parts_small_again() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"), waits=(5.0,) * 100)
    desk.add(*range(60))
    for _ in range(4):
        desk.work(6)
    answers = iter([Delivered(), Delivered(), Retry(None, "503")])
    desk.sink.answer = lambda alarms: next(answers, Delivered())
    assert [len(alarms) for alarms, _ in desk.work(6)] == [1, 4, 16, 1, 4, 16, 16, 2]
    assert [len(alarms) for alarms, _ in desk.work(6)] == [1, 4, 11]


@pytest.mark.parametrize("at_fault", [0, 1, 5, 22, 59])
@pytest.mark.parametrize("n_tries", [4, 100])
def test_one_alarm_that_a_receiver_cannot_take_holds_up_no_other_after_an_outage(at_fault: int, n_tries: int) -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"), waits=(5.0,) * n_tries)
    desk.add(*range(60))
    for _ in range(3):
        desk.work(6)
    wrong = f"{at_fault:02}"
    desk.sink.answer = lambda alarms: Retry(None, "500") if any(one.id[:2] == wrong for one in alarms) else Delivered()
    for _ in range(8):
        desk.work(6)
    status = {number: desk.status(number)[0] for number in range(60)}
    assert status.pop(at_fault) == ("given_up" if n_tries == 4 else "waiting")
    assert set(status.values()) == {"delivered"}


def test_of_alarms_that_are_refused_together_each_is_tried_alone() -> None:
    desk = Desk(answer=lambda alarms: Refused("400") if any(one.id[:2] == "02" for one in alarms) else Delivered())
    desk.add(1, 2, 3)
    assert [alarms for alarms, _ in desk.work()] == [("01o", "02o", "03o"), ("01o",), ("02o",), ("03o",)]
    assert [desk.status(number)[0] for number in (1, 2, 3)] == ["delivered", "refused", "delivered"]


def test_a_receiver_that_wants_nothing_more_gets_nothing_until_a_replay() -> None:
    desk = Desk(answer=lambda alarms: Disabled("410"), at_once=1)
    desk.add(1, 2)
    assert len(desk.work()) == 1
    desk.add(3)
    assert desk.work(1e6) == []
    assert {desk.status(number)[0] for number in (1, 2, 3)} == {"disabled"}
    assert desk.ledger.read_disabled() == {"ward": "410"}
    desk.sink.answer = lambda alarms: Delivered()
    ids = [f"{number:02}" * 16 for number in (1, 2, 3)]
    assert desk.ledger.replay(ids, "ward", desk.now) == 3
    assert [alarms for alarms, _ in desk.work()] == [("01o",), ("02o",), ("03o",)]
    assert desk.ledger.read_disabled() == {}


def test_a_replay_of_what_is_undelivered_leaves_what_another_sink_has() -> None:
    desk = Desk(answer=lambda alarms: Disabled("410"))
    with desk.ledger.transaction():
        desk.ledger.add(replace(desk.entry(1), routes=("ward", "office")))
    office = FakeSink(name="office")
    Dispatcher(office, desk.ledger, desk.meter, lambda: desk.now).deliver_due()
    desk.work()
    desk.sink.answer = lambda alarms: Delivered()
    assert desk.ledger.replay_undelivered("office", desk.now) == (0, 0)
    assert desk.work() == []
    assert desk.ledger.replay_undelivered(None, desk.now) == (1, 1)
    assert desk.ledger.count_deliveries() == {("ward", "waiting"): 1, ("office", "delivered"): 1}
    assert [alarms for alarms, _ in desk.work()] == [("01o",)]


def test_a_sink_is_enabled_though_nothing_is_undelivered() -> None:
    desk = Desk()
    desk.ledger.disable("ward", "410", desk.now)
    assert desk.ledger.replay_undelivered("ward", desk.now) == (0, 0)
    assert desk.ledger.read_disabled() == {}


def test_no_alarm_that_comes_while_a_sink_is_enabled_stays_behind(tmp_path: Path) -> None:
    """It was left for good where it came between the choice of what is undelivered and the sink's being enabled."""
    desk = Desk(tmp_path / "ledger.sqlite")
    desk.ledger.disable("ward", "410", desk.now)
    beside = Ledger(tmp_path / "ledger.sqlite")
    desk.add(*range(10, 50))
    coming = threading.Thread(target=lambda: [desk.add(number) for number in range(50, 90)])
    coming.start()
    while desk.ledger.read_disabled():
        beside.replay_undelivered("ward", desk.now)
    coming.join()
    beside.close()
    assert desk.ledger.count_deliveries() == {("ward", "waiting"): 80}


def test_what_waits_for_a_sink_that_is_gone_is_told_and_delivered_once_it_is_back() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"))
    desk.add(1, 2)
    desk.add(3, kind=AlarmKind.CONDITION, open_s=None)
    desk.work()
    assert desk.ledger.note_sinks(["ward", "office"], desk.now) == {}
    assert desk.ledger.note_sinks(["office"], desk.now) == {"ward": 3}
    desk.resolve(3)  # which goes to whom it was told
    assert desk.ledger.note_sinks(["office"], desk.now) == {"ward": 4}
    assert desk.ledger.count_deliveries() == {("ward", "no_sink"): 4}
    assert Status.NO_SINK in UNDELIVERED
    assert len(desk.ledger.list_alarms(status=Status.NO_SINK)) == 3
    assert desk.work(1e6) == []
    desk.sink.answer = lambda alarms: Delivered()
    assert desk.ledger.note_sinks(["office", "ward"], desk.now) == {}
    assert [alarms for alarms, _ in desk.work()] == [("01o", "02o", "03o"), ("03r",)]
    assert desk.ledger.note_sinks([], desk.now) == {}, "what was delivered waits for nobody"


@pytest.mark.parametrize("fault", [OSError("x"), ValueError("x"), KeyError("x")])
def test_a_sinks_own_fault_is_an_attempt_that_failed(fault: Exception) -> None:
    def fail(alarms: Sequence[Alarm]) -> Outcome:
        raise fault

    desk = Desk(answer=fail)
    desk.add(1)
    desk.work()
    assert desk.status() == ("waiting", 1)
    desk.sink.answer = lambda alarms: Delivered()
    assert desk.work(6) == [(("01o",), 1)]


def test_an_image_is_delivered_again_while_it_is_open() -> None:
    desk = Desk(resend_s=60.0)
    desk.add(1, open_s=150)
    assert [len(desk.work(wait_s)) for wait_s in (0, 59, 2, 60, 60, 1e6)] == [1, 0, 1, 1, 0, 0]
    assert desk.status() == ("delivered", 0)


def test_a_condition_is_delivered_again_while_it_is_open_and_for_a_while_resolved() -> None:
    desk = Desk(resend_s=60.0, resolved_for_s=100.0)
    desk.add(1, kind=AlarmKind.CONDITION, open_s=None)
    for wait_s in (0, 61, 61):
        assert desk.work(wait_s) == [(("01o",), 0)]
    desk.resolve(1)
    assert desk.work(1) == [(("01r",), 0)]
    assert desk.work(61) == [(("01r",), 0)]
    assert desk.work(61) == []
    assert desk.work(1e6) == []


def test_a_resolved_one_waits_for_its_open_one() -> None:
    desk = Desk(answer=lambda alarms: Retry(None, "503"))
    desk.add(1, kind=AlarmKind.CONDITION, open_s=None)
    desk.work()
    desk.resolve(1)
    assert desk.work() == []
    desk.sink.answer = lambda alarms: Delivered()
    assert desk.work(6) == [(("01o",), 1), (("01r",), 0)]


def test_a_repetition_that_fails_does_not_take_back_what_arrived() -> None:
    desk = Desk(resend_s=60.0, waits=())
    desk.add(1, open_s=1000)
    desk.work()
    desk.sink.answer = lambda alarms: Retry(None, "503")
    desk.work(61)
    assert desk.status()[0] == "delivered"
    assert len(desk.work(61)) == 1


@pytest.mark.parametrize("point", ["begin_attempt", "note_delivered"])
def test_what_a_kill_left_between_attempt_and_end_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    class Killed(BaseException):
        pass

    def kill(*args: Any, **options: Any) -> None:
        raise Killed

    desk = Desk(tmp_path / "alarms.db")
    desk.add(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, point, kill)
        with pytest.raises(Killed):
            desk.work()
    desk.ledger.close()
    again = Desk(tmp_path / "alarms.db")
    assert [alarms for alarms, _ in again.work()] == [("01o", "02o")]
    again.ledger.close()


@pytest.mark.parametrize("fault", [sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.InternalError])
@pytest.mark.slow
def test_a_fault_of_the_disk_between_two_looks_ends_no_deliveries(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, asked, arrived = Ledger(None), threading.Event(), threading.Event()

    def fail(_sink: str) -> float | None:
        asked.set()
        raise fault("disk I/O error")

    def take(alarms: Sequence[Alarm]) -> Outcome:
        arrived.set()
        return Delivered()

    monkeypatch.setattr(ledger, "find_next_due", fail)
    dispatcher = Dispatcher(FakeSink(answer=take), ledger, Meter())
    dispatcher.start()
    assert asked.wait(10)
    alarm = Alarm("ab" * 16, "R", "info", State.OPEN, {}, {}, datetime.now(UTC), None, {})
    with ledger.transaction():
        ledger.add(Entry(alarm, AlarmKind.IMAGE, "", 1, 0.0, ("ward",)))
    assert arrived.wait(10)
    assert dispatcher.is_alive
    dispatcher.stop()
    dispatcher.join()


def test_a_slow_sink_stops_no_other() -> None:
    ledger, free, arrived, hangs = Ledger(None), threading.Event(), threading.Event(), threading.Event()

    def hang(alarms: Sequence[Alarm]) -> Outcome:
        hangs.set()
        free.wait(60)
        return Delivered()

    def take(alarms: Sequence[Alarm]) -> Outcome:
        arrived.set()
        return Delivered()

    sinks = [FakeSink("slow", answer=hang), FakeSink("quick", answer=take)]
    dispatchers = [Dispatcher(sink, ledger, Meter()) for sink in sinks]
    at = datetime.now(UTC)
    alarm = Alarm("ab" * 16, "R", "info", State.OPEN, {}, {}, at, None, {})
    for one in dispatchers:
        one.start()
    with ledger.transaction():
        ledger.add(Entry(alarm, AlarmKind.IMAGE, "", 1, 0.0, ("slow", "quick")))
    for one in dispatchers:
        one.wake()
    assert hangs.wait(10)
    assert arrived.wait(10)
    free.set()
    for one in dispatchers:
        one.stop()
    for one in dispatchers:
        one.join()
        assert not one.is_alive
    assert set(ledger.count_deliveries()) == {("slow", "delivered"), ("quick", "delivered")}


def test_what_is_closed_is_removed_after_five_weeks_and_what_is_open_is_not() -> None:
    desk = Desk()
    desk.add(1)
    desk.add(2, kind=AlarmKind.CONDITION, open_s=None)
    with desk.ledger.transaction():
        desk.ledger.note_seen("ab" * 16, "cd" * 16, desk.now)
    assert not desk.ledger.remove_old(desk.now + KEPT_S - 10)
    assert len(desk.ledger.list_alarms()) == 2
    desk.ledger.remove_old(desk.now + KEPT_S + 10)
    assert [entry.part for entry in desk.ledger.list_alarms()] == ["2"]
    assert {sink: n for (sink, _), n in desk.ledger.count_deliveries().items()} == {"ward": 1}
    assert desk.ledger.note_seen("ab" * 16, "ef" * 16, desk.now) is None


def test_a_transaction_that_fails_leaves_nothing() -> None:
    desk = Desk()
    with pytest.raises(RuntimeError), desk.ledger.transaction():
        desk.ledger.add(desk.entry(1))
        raise RuntimeError
    assert desk.ledger.list_alarms() == []
    desk.add(2)
    assert desk.status(2) == (Status.WAITING.value, 0)


@pytest.mark.parametrize("content", [b"no database" * 400, b"SQLite format 3\0" + b"x" * 4096, b"\0" * 4096])
def test_a_damaged_ledger_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alarms.db"
    path.write_bytes(content)
    with pytest.raises(JobError, match="ledger of alarms"):
        Ledger(path)
