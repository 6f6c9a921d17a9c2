"""The ledger: once each, in order, across restarts; what waits is never forgotten."""

import json
import multiprocessing
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SettingsError
from streaming.reports.findings import Finding
from streaming.reports.ledger import Arrival, Ledger, LedgerError, Source, find_left_behind, open_ledger
from streaming.reports.report import Correction
from tests.reportparts import CORRECTION, event, report

LATER = replace(CORRECTION, confirmed_at=CORRECTION.confirmed_at + timedelta(hours=1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reporting" / "one.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with open_ledger(path) as opened:
        yield opened


def prediction(number: int, **changed: Any) -> Arrival:
    source = Source("predictions", number % 2, number, 1.0)
    return Arrival(source, report(number, **changed).prediction, json.dumps(event(number, **changed)).encode())


def finding(number: int, correction: Correction = CORRECTION, *, name: int = 0, offset: int = 1000) -> Arrival:
    return Arrival(Source("labels", 0, offset, 2.0), Finding(report(number).prediction.names[name], correction))


def due(ledger: Ledger, limit: int = 100) -> list[tuple[str, str | None]]:
    found = ledger.list_due(limit)
    return [(json.loads(one.value)["event_id"], one.correction and one.correction.label) for one in found]


def ids(*numbers: int) -> list[tuple[str, str | None]]:
    return [(event(number)["event_id"], None) for number in numbers]


def test_what_came_is_due_in_its_order_and_once(ledger: Ledger) -> None:
    ledger.absorb([prediction(3), prediction(1)])
    ledger.absorb([prediction(1), prediction(2), prediction(3)])
    assert due(ledger) == ids(3, 1, 2)
    assert due(ledger, 2) == ids(3, 1)


def test_what_is_closed_is_never_due_again(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.absorb([prediction(number) for number in range(4)])
        done, left_out, refused, _ = ledger.list_due(10)
        ledger.close_done(done)
        ledger.close_left_out(left_out, "no_patient")
        ledger.note_refusal(refused, "AR", again_in_s=None)
    with open_ledger(path) as ledger:
        ledger.absorb([prediction(number) for number in range(4)])
        assert due(ledger) == ids(3)
        assert ledger.count() == {"open": 1, "given_up": 1}


def test_a_refused_one_waits_and_stops_no_other(ledger: Ledger) -> None:
    ledger.absorb([prediction(1), prediction(2)])
    ledger.note_refusal(ledger.list_due(1)[0], "AE", again_in_s=3600)
    assert due(ledger) == ids(2)
    ledger.note_refusal(ledger.list_due(1)[0], "AE", again_in_s=0)
    assert [one.tries for one in ledger.list_due(9)] == [1]


@pytest.mark.parametrize("step_s", [-60.0, -7200.0, -86_400.0 * 400])
def test_a_clock_that_goes_back_makes_no_refused_report_wait_for_it(
    ledger: Ledger, step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.absorb([prediction(1), prediction(2)])
    ledger.note_refusal(ledger.list_due(1)[0], "AE", again_in_s=30)
    assert due(ledger) == ids(2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + step_s)
    assert due(ledger) == ids(1, 2)
    ledger.note_refusal(ledger.list_due(1)[0], "AE", again_in_s=30)
    assert due(ledger) == ids(2)
    monkeypatch.setattr(time, "time", lambda: now + step_s + 31)
    assert due(ledger) == ids(1, 2)


def test_what_was_given_up_is_sent_again_when_asked(ledger: Ledger) -> None:
    ledger.absorb([prediction(1), prediction(2)])
    ledger.note_refusal(ledger.list_due(1)[0], "AR", again_in_s=None)
    assert ledger.reopen() == 1
    assert due(ledger) == ids(1, 2)
    assert {one.tries for one in ledger.list_due(9)} == {0}


def send_all(ledger: Ledger, labels: set[str]) -> list[str]:
    """Close all that is due as the courier does; give the findings that amend."""
    amended = []
    while found := ledger.list_due(1):
        label = found[0].correction and found[0].correction.label
        if label is None or label in labels:
            ledger.close_done(found[0])
            amended += [label] if label else []
        else:
            ledger.close_left_out(found[0], "unknown_label")
    return amended


UNKNOWN = replace(LATER, label="hernia")
KNOWN = set(report().prediction.labels)


@pytest.mark.parametrize("prediction_at", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "found",
    [
        (CORRECTION, UNKNOWN),
        (UNKNOWN, CORRECTION),
        (CORRECTION, UNKNOWN, replace(UNKNOWN, label="mass", confirmed_at=LATER.confirmed_at + timedelta(days=1))),
        (UNKNOWN, replace(UNKNOWN, label="mass"), CORRECTION),
    ],
    ids=["known first", "unknown first", "two unknown behind", "two unknown before"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_finding_that_the_model_does_not_know_hides_none_that_it_does(
    ledger: Ledger, found: tuple[Correction, ...], prediction_at: int, *, at_once: bool
) -> None:
    arrivals = [finding(1, one, name=number % 2, offset=number) for number, one in enumerate(found)]
    arrivals.insert(prediction_at, prediction(1))
    amended = []
    for some in [arrivals] if at_once else [[one] for one in arrivals]:
        ledger.absorb(some)
        amended += send_all(ledger, KNOWN)
    assert amended == ["normal"]


@pytest.mark.parametrize("prediction_at", [0, 1])
def test_a_finding_that_no_model_knows_is_told_of(ledger: Ledger, prediction_at: int) -> None:
    arrivals = [finding(1, UNKNOWN)]
    arrivals.insert(prediction_at, prediction(1))
    ledger.absorb(arrivals)
    ledger.close_done(ledger.list_due(1)[0])
    assert due(ledger) == [(event(1)["event_id"], "hernia")]


@pytest.mark.parametrize("name", [0, 1, 2])
def test_a_finding_amends_whenever_it_comes_and_however_it_names_the_image(ledger: Ledger, name: int) -> None:
    ledger.absorb([finding(1, name=name)])
    assert due(ledger) == []
    ledger.absorb([prediction(1), prediction(2)])
    ledger.close_done(ledger.list_due(1)[0])
    ledger.absorb([finding(2, name=name)])
    ledger.close_done(next(one for one in ledger.list_due(9) if one.correction is None))
    assert due(ledger) == [(event(1)["event_id"], "normal"), (event(2)["event_id"], "normal")]


def test_an_amended_report_waits_for_the_one_that_it_amends(ledger: Ledger) -> None:
    ledger.absorb([prediction(1), finding(1)])
    assert due(ledger) == ids(1)
    ledger.note_refusal(ledger.list_due(1)[0], "AE", again_in_s=3600)
    assert due(ledger) == []
    ledger.absorb([prediction(2)])
    assert due(ledger) == ids(2)


def test_the_same_finding_amends_once_and_an_older_one_not_at_all(ledger: Ledger) -> None:
    ledger.absorb([prediction(1)])
    ledger.close_done(ledger.list_due(1)[0])
    ledger.absorb([finding(1, LATER), finding(1, LATER), finding(1, LATER, name=1), finding(1, CORRECTION)])
    (only,) = ledger.list_due(9)
    assert only.correction == LATER
    ledger.close_done(only)
    ledger.absorb([finding(1, CORRECTION), finding(1, LATER)])
    assert ledger.list_due(9) == []


def test_one_image_of_two_models_is_amended_twice(ledger: Ledger) -> None:
    other = prediction(1, event_id="f" * 32, model=event()["model"] | {"sha256": "9" * 64})
    ledger.absorb([prediction(1), other, finding(1)])
    for _ in range(2):
        ledger.close_done(ledger.list_due(1)[0])
    assert sorted(due(ledger)) == sorted([(event(1)["event_id"], "normal"), ("f" * 32, "normal")])


def test_offsets_stand_before_the_oldest_that_is_open(ledger: Ledger) -> None:
    ledger.absorb([prediction(number) for number in (4, 1, 2, 3)])
    assert ledger.first_open() == {("predictions", 0): 2, ("predictions", 1): 1}
    for delivery in ledger.list_due(9):
        if json.loads(delivery.value)["event_id"] in (event(2)["event_id"], event(1)["event_id"]):
            ledger.close_done(delivery)
    assert ledger.first_open() == {("predictions", 0): 4, ("predictions", 1): 3}
    for delivery in ledger.list_due(9):
        ledger.note_refusal(delivery, "AR", again_in_s=None)
    assert ledger.first_open() == {}


def test_old_ones_are_forgotten_but_those_that_wait(ledger: Ledger) -> None:
    ledger.absorb([prediction(1), prediction(2), finding(9)])
    ledger.close_done(ledger.list_due(1)[0])
    ledger.remove_before(time.time() - 60)
    ledger.absorb([prediction(1)])
    assert due(ledger) == ids(2)
    ledger.remove_before(time.time() + 1)
    assert ledger.count() == {"open": 1, "given_up": 0}
    assert due(ledger) == ids(2)
    ledger.absorb([prediction(1), prediction(9)])
    assert len(due(ledger)) == 3


def _hold(path: str, ready: Any, ended: Any) -> None:
    with open_ledger(Path(path)):
        ready.set()
        ended.wait(30)


def test_one_process_at_a_time(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(path), ready, ended))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(SettingsError, match="another 'xray results run'"), open_ledger(path):
            pass
    finally:
        ended.set()
        other.join()
    with open_ledger(path):
        pass


def test_it_is_for_its_owner_alone(path: Path, ledger: Ledger) -> None:
    ledger.absorb([prediction(1)])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_told_with_what_to_do(path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    with pytest.raises(LedgerError, match="move it away"), open_ledger(path):
        pass


def fill(path: Path, target: str, n_open: int, n_done: int = 0) -> Path:
    with open_ledger(path) as ledger:
        ledger.note_target("another name")
        ledger.note_target(target)
        ledger.absorb([prediction(number) for number in range(n_open + n_done)])
        for delivery in ledger.list_due(n_done):
            ledger.close_done(delivery)
    return path


def test_what_waits_for_targets_that_nobody_delivers_to_is_found(tmp_path: Path) -> None:
    assert find_left_behind(tmp_path / "no", ()) == {}
    own = fill(tmp_path / "own.db", "mllp:ris:2575", 3)
    fill(tmp_path / "left.db", "fhir:https://h/fhir", 2, 1)
    fill(tmp_path / "done.db", "files:/out", 0, 4)
    (tmp_path / "damaged.db").write_bytes(b"x" * 5000)
    elsewhere = fill(tmp_path / "elsewhere.db", "stow:https://h", 5)
    with open_ledger(elsewhere):  # as another process that delivers to it
        assert find_left_behind(tmp_path, [own]) == {"fhir:https://h/fhir": 2}
    assert find_left_behind(tmp_path, [own]) == {"fhir:https://h/fhir": 2, "stow:https://h": 5}
