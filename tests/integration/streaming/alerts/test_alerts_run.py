"""'xray alerts run' with a real broker and a real receiver."""

import json
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import derive_event_id
from streaming.alerts.ledger import LEDGER_FILE, Ledger
from streaming.settings import StreamSettings
from tests.alertrecords import prediction, publish
from tests.integration.streaming.alerts.hooks import Program, hook_sink, receiving, running, wait_until, write_rules
from tests.integration.streaming.alerts.killed import POINTS

pytestmark = [pytest.mark.kafka]


def test_from_the_topic_to_the_receiver_it_takes_a_fifth_of_a_second(settings: StreamSettings, tmp_path: Path) -> None:
    with receiving() as hook:
        rules = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        with running(settings, rules):
            published: dict[str, float] = {}
            for number in range(100):
                record = prediction(settings.kafka, number)
                published[derive_event_id(record.event_id, "Opacities")] = time.time()
                publish(settings.kafka, record)
                threading.Event().wait(0.02)
            wait_until(lambda: set(hook.seen) == set(published), "all alarms")
    waits = sorted(hook.arrived[ident] - at for ident, at in published.items())
    p95 = statistics.quantiles(waits, n=20)[-1]
    assert p95 < 0.2, f"p50 {statistics.median(waits):.3f} s, p95 {p95:.3f} s, max {waits[-1]:.3f} s"


@pytest.mark.slow
def test_killed_at_every_point_of_its_loop_it_loses_no_alarm_and_repeats_none_under_another_id(
    settings: StreamSettings, tmp_path: Path
) -> None:
    draw = random.Random(17)
    said: dict[str, Any] = {"label": "normal", "probabilities": {"normal": 0.9, "opacities": 0.1}}
    # A hundred predictions for each point before the process is killed there, the rest in one go at the end.
    records = [prediction(settings.kafka, n, **({} if n % 5 == 0 else said)) for n in range(10_000)]
    wanted = {derive_event_id(one.event_id, "Opacities") for one in records[::5]}
    share = 400
    with receiving() as hook:
        rules = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path, retries_s=[0.2] * 50)})
        for turn, point in enumerate(POINTS):
            program = Program(settings, rules, kill=f"{point}:{draw.randint(1, 12)}")
            hook.status = 503 if turn % 4 == 3 else 200
            publish(settings.kafka, *records[turn * share : (turn + 1) * share])
            if hook.status == 503 and POINTS[point][1] in ("deliver", "note_delivered"):
                hook.status = 200
            program.wait_killed()
        hook.status = 200
        with running(settings, rules):
            publish(settings.kafka, *records[len(POINTS) * share :])
            wait_until(lambda: len(hook.seen) >= len(wanted), "all alarms", 120)
            wait_until(lambda: is_settled(settings), "all deliveries closed")
    assert set(hook.seen) == wanted
    assert not hook.changed
    # Two of the points are between a send and its being closed.
    assert sum(count - 1 for count in hook.seen.values()) >= 1


def is_settled(settings: StreamSettings) -> bool:
    """Whether the ledger has nothing to deliver."""
    ledger = Ledger(settings.alerts_folder / LEDGER_FILE)
    try:
        return {status for _, status in ledger.count_deliveries()} == {"delivered"}
    finally:
        ledger.close()


def test_a_backlog_of_a_thousand_old_images_is_one_summary(settings: StreamSettings, tmp_path: Path) -> None:
    old = [prediction(settings.kafka, number, age_s=3600 + number) for number in range(1000)]
    new = prediction(settings.kafka, 5000)
    with receiving() as hook:
        rules = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        with running(settings, rules):
            publish(settings.kafka, *old[:600])
        publish(settings.kafka, *old[600:], new)
        with running(settings, rules) as program:
            wait_until(lambda: len(hook.seen) == 2, "the new image's alarm, and the summary", 90)
            publish(settings.kafka, *old[:50])
            wait_until(lambda: 'xray_alerts_barred_total{why="repeated"} 50.0' in program.read_page(), "repetitions")
    bodies = [json.loads(body)["data"] for body in hook.bodies.values()]
    assert sorted(body["type"] for body in bodies) == ["prediction", "summary"]
    [summary] = [body for body in bodies if body["type"] == "summary"]
    assert summary["images"] == 1000
    assert derive_event_id(new.event_id, "Opacities") in hook.seen
