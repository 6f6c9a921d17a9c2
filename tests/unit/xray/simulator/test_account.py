"""What devices make of answers, and the account of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from streaming.gateway.refusals import Cause
from xray.simulator.account import Account, Try
from xray.simulator.answers import NO_ANSWER, Answer, Verdict, read_http, read_status
from xray.simulator.damage import Damage, draw_damage, spoil
from xray.simulator.habits import Way, draw_habits
from xray.simulator.objects import Shot

SHOT = Shot(draw_habits(3, seed=1, http=False), 5, 5)
TAKEN, REFUSED = read_status(0), read_status(0xC000)


def note(account: Account, answer: Answer | None, *, number: int = 1, damage: Damage | None = None) -> None:
    account.note(Try(SHOT, number, damage, answer, 0.5, gives_up=False))


@pytest.mark.parametrize("cause", list(Cause), ids=lambda cause: cause.label)
def test_every_refusal_of_the_gateway_is_understood(cause: Cause) -> None:
    wanted = Verdict.LATER if cause.value.is_transient else Verdict.REFUSED
    assert read_status(cause.value.status).verdict is wanted
    assert read_http(cause.value.http).verdict is wanted


def test_success_and_warnings_are_taken() -> None:
    for status in (0x0000, 0xB000, 0xB006, 0xB007):
        assert read_status(status).verdict is Verdict.TAKEN
    for status in (200, 201, 202):
        assert read_http(status).verdict is Verdict.TAKEN
    assert read_status(0x0001).verdict is read_http(404).verdict is Verdict.REFUSED


def test_an_image_is_counted_once_and_each_try_too() -> None:
    account = Account()
    note(account, NO_ANSWER)
    note(account, read_status(0xA700), number=2)
    note(account, TAKEN, number=3)
    figures = account.figures()
    assert (figures["sent"], figures["accepted"], figures["retried"], figures["no_answer"]) == (1, 1, 2, 1)
    assert (figures["failed"], figures["refused"]) == (0, {})
    assert figures["latency_s"]["p50"] == 0.5


@pytest.mark.parametrize(
    ("answer", "damage", "gives_up", "failed"),
    [
        (REFUSED, None, False, 1),
        (REFUSED, Damage.TRUNCATED, False, 0),
        (REFUSED, Damage.SLOW, False, 1),
        (NO_ANSWER, None, True, 1),
        (NO_ANSWER, Damage.GARBAGE, True, 0),
        (NO_ANSWER, None, False, 0),
        (TAKEN, None, False, 0),
        (None, Damage.ABORTED, False, 0),
        (None, Damage.ABORTED, True, 1),
    ],
)
def test_a_good_image_that_nobody_took_is_a_failure(
    answer: Answer | None, damage: Damage | None, gives_up: bool, failed: int
) -> None:
    account = Account()
    account.note(Try(SHOT, 1, damage, answer, 0.1, gives_up))
    assert account.figures()["failed"] == failed


def test_broken_ones_are_told_by_what_they_were_and_what_was_said() -> None:
    account = Account()
    note(account, REFUSED, damage=Damage.TRUNCATED)
    note(account, read_status(0xC002), damage=Damage.NO_PIXELS)
    note(account, None, damage=Damage.ABORTED)
    figures = account.figures()
    assert figures["broken"] == {"aborted": {"retry": 1}, "no pixels": {"C002": 1}, "truncated": {"C000": 1}}
    assert figures["refused"] == {"C000": 1, "C002": 1}
    assert figures["aborted_on_purpose"] == 1


def test_the_file_has_a_line_for_each_try_at_once(tmp_path: Path) -> None:
    file = tmp_path / "account.jsonl"
    with Account(file) as account:
        note(account, NO_ANSWER)
        assert len(file.read_text().splitlines()) == 1
        account.note(Try(SHOT, 2, None, Answer("201", Verdict.TAKEN, "an-event"), 0.25, gives_up=False))
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["answer"], first["outcome"], first["try"]) == ("no answer", "retry", 1)
    assert (second["answer"], second["outcome"], second["event_id"]) == ("201", "accepted", "an-event")
    assert first["uid"] == second["uid"] == SHOT.sop_uid
    assert second["device"] == "SIM-003"


def test_latencies_take_no_more_memory_than_a_fair_draw() -> None:
    account = Account()
    for number in range(50_000):
        account.note(Try(SHOT, 2, None, TAKEN, number / 50_000, gives_up=False))
    assert len(account._latencies) == 20_000
    assert account.figures()["latency_s"]["p50"] == pytest.approx(0.5, abs=0.02)


def test_damage_is_drawn_at_its_share_and_fits_the_way() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_damage(rng, 0.3, Way.POST_PNG) for _ in range(2000)]
    assert 0.25 < sum(one is not None for one in drawn) / 2000 < 0.35
    assert Damage.NO_PIXELS not in drawn
    assert {draw_damage(rng, 1, Way.C_STORE) for _ in range(200)} == set(Damage)
    assert {draw_damage(rng, 0, Way.C_STORE) for _ in range(200)} == {None}


def test_what_is_spoiled_is_other_bytes() -> None:
    payload = bytes(range(256)) * 10
    assert spoil(payload, Damage.TRUNCATED, 2) == payload[:1280]
    assert spoil(payload, Damage.TRUNCATED, 3) == payload[:1281], "ends within a word"
    assert payload[:64] not in spoil(payload, Damage.GARBAGE, 3)
    for damage in (None, Damage.SLOW, Damage.ABORTED, Damage.WRONG_CLASS):
        assert spoil(payload, damage, 3) == payload
