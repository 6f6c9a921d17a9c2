"""A real Alertmanager (Debian's): shown, notified once, sent again, resolved, and there again after its restart."""

import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Alarm, Delivered, Retry, Sink, State
from streaming.alerts.sinks import open_sinks
from tests.integration.streaming.alerts.alertmanager import ALERTMANAGER, Daemon, notified
from tests.receiver import Receiver, make_alarm, receive

pytestmark = pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed (prometheus-alertmanager)")


def wait_for(what: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


@pytest.fixture
def pager() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture
def daemon(tmp_path: Path, pager: Receiver) -> Daemon:
    return Daemon(tmp_path, pager.url)


def open_sink(*daemons: Daemon, **changes: Any) -> Sink:
    return open_sinks({"duty": {"type": "alertmanager", "urls": [one.url for one in daemons], **changes}})["duty"]


def alarm_of(ident: str, state: State = State.OPEN, **changes: Any) -> Alarm:
    now = datetime.now(UTC)
    over = now if state is State.RESOLVED else None
    return make_alarm(ident * 32, state, **{"starts_at": now - timedelta(minutes=5), "ends_at": over, **changes})


def test_an_alarm_is_shown_with_what_it_says(daemon: Daemon) -> None:
    with daemon.run():
        assert open_sink(daemon, generator_url="https://grafana.example/").deliver([alarm_of("a")], 0) == Delivered()
        [alert] = daemon.shown().values()
        assert alert["status"]["state"] in ("active", "unprocessed")
        assert alert["labels"]["alertname"] == "pneumonia"
        assert alert["annotations"]["notice"] == DISCLAIMER
        assert alert["generatorURL"] == "https://grafana.example/"
        ends = datetime.fromisoformat(alert["endsAt"])
        assert (ends - datetime.now(UTC)).total_seconds() == pytest.approx(180, abs=10)


def test_what_is_sent_again_is_notified_once(daemon: Daemon, pager: Receiver) -> None:
    with daemon.run():
        sink = open_sink(daemon)
        for _ in range(5):
            assert sink.deliver([alarm_of("a", starts_at=datetime(2026, 11, 1, tzinfo=UTC))], 0) == Delivered()
        wait_for(lambda: bool(pager.got))
        assert sink.deliver([alarm_of("b")], 0) == Delivered()
        wait_for(lambda: len(pager.got) > 1)
        assert notified(pager) == [("firing", ["a" * 32]), ("firing", ["a" * 32, "b" * 32])]


def test_alarms_of_one_rule_are_apart_and_a_resolved_one_ends_no_other(daemon: Daemon, pager: Receiver) -> None:
    with daemon.run():
        sink = open_sink(daemon)
        sink.deliver([alarm_of("a"), alarm_of("b")], 0)
        wait_for(lambda: bool(pager.got))
        assert set(daemon.shown()) == {"a" * 32, "b" * 32}
        sink.deliver([alarm_of("a", State.RESOLVED)], 0)
        wait_for(lambda: set(daemon.shown()) == {"b" * 32})


def test_that_it_is_over_is_notified_however_often_it_is_sent(daemon: Daemon, pager: Receiver) -> None:
    with daemon.run():
        sink = open_sink(daemon)
        sink.deliver([alarm_of("a")], 0)
        wait_for(lambda: bool(pager.got))
        over = alarm_of("a", State.RESOLVED)
        for _ in range(3):
            assert sink.deliver([over], 0) == Delivered()
        wait_for(lambda: ("resolved", ["a" * 32]) in notified(pager))
        assert daemon.shown() == {}


def test_an_alarm_ends_by_itself_three_repetitions_after_the_last(daemon: Daemon, pager: Receiver) -> None:
    with daemon.run():
        open_sink(daemon, resend_s=1).deliver([alarm_of("a")], 0)
        wait_for(lambda: bool(pager.got))
        wait_for(lambda: notified(pager)[-1] == ("resolved", ["a" * 32]))


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_alarm_is_there_again_after_a_restart(daemon: Daemon, pager: Receiver, way: signal.Signals) -> None:
    with daemon.run(way):
        sink = open_sink(daemon)
        alarm = alarm_of("a")
        sink.deliver([alarm], 0)
        wait_for(lambda: bool(pager.got))
    outcome = sink.deliver([alarm], 0)
    assert isinstance(outcome, Retry), "it is gone"
    with daemon.run(way):
        assert daemon.shown() == {}, "Alertmanager keeps no alerts; this is why they are sent again"
        assert sink.deliver([alarm], 0) == Delivered()
        assert set(daemon.shown()) == {"a" * 32}
        sink.deliver([alarm_of("b", rule="other")], 0)
        wait_for(lambda: ("firing", ["b" * 32]) in notified(pager))
        times = notified(pager).count(("firing", ["a" * 32]))
        assert times == 1 or (way == signal.SIGKILL and times == 2), "killed, it forgets whom it has told"


def test_all_members_have_every_alarm_once_both_are_there(tmp_path: Path, pager: Receiver) -> None:
    first, second = (Daemon(make_folder(tmp_path / name), pager.url) for name in ("first", "second"))
    sink = open_sink(first, second)
    with first.run():
        assert sink.deliver([alarm_of("a")], 0) == Delivered(), "one of two"
        with second.run():
            assert sink.deliver([alarm_of("a")], 0) == Delivered()
            assert set(first.shown()) == set(second.shown()) == {"a" * 32}


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"site-id": "x", "9": "y", "": "z", "empty": ""}},
        {"labels": {"source": "Ångström 肺炎\n\x00"}, "annotations": {"a-b": "half \ud800 pair"}},
        {"starts_at": datetime.now(UTC) + timedelta(days=30)},
        {"labels": {"source": "x" * 10_000}},
    ],
)
@pytest.mark.parametrize("state", list(State))
def test_alertmanager_refuses_none(daemon: Daemon, changes: dict[str, Any], state: State) -> None:
    with daemon.run():
        assert open_sink(daemon).deliver([alarm_of("a", state, **changes)], 0) == Delivered()


def test_as_many_as_one_delivery_may_hold(daemon: Daemon) -> None:
    with daemon.run():
        sink = open_sink(daemon)
        alarms = [make_alarm(f"{number:032x}", starts_at=datetime.now(UTC)) for number in range(sink.at_once)]
        assert sink.deliver(alarms, 0) == Delivered()
        assert len(daemon.shown()) == sink.at_once
