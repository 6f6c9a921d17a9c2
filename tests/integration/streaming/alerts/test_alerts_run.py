"""'xray alerts run' with a real broker and a real receiver."""

import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.ports import find_ports
from schemas import envelope
from schemas.envelope import derive_event_id
from schemas.errors import SettingsError
from streaming.alerts import service
from streaming.alerts.ledger import LEDGER_FILE, Ledger
from streaming.alerts.rulesfile import parse_rules
from streaming.alerts.service import run_alerts
from streaming.gateway.receipts.receipt import State
from streaming.kafka.topics import create_topics, receipt_topics, wanted_topics
from streaming.settings import StreamSettings
from tests.alertrecords import dead_letter, prediction, publish, receipt
from tests.integration.streaming.alerts.hooks import (
    Hook,
    Program,
    hook_sink,
    receiving,
    running,
    wait_until,
    write_rules,
)
from tests.integration.streaming.alerts.killed import POINTS
from xray.broker import LocalBroker
from xray.commands.app import app

pytestmark = [pytest.mark.kafka]


def test_each_prediction_that_matches_is_one_alarm_at_the_receiver(settings: StreamSettings, tmp_path: Path) -> None:
    with receiving() as hook:
        rules = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        with running(settings, rules):
            published = set[str]()
            for number in range(100):
                record = prediction(settings.kafka, number)
                published.add(derive_event_id(record.event_id, "Opacities"))
                publish(settings.kafka, record)
                threading.Event().wait(0.02)
            wait_until(lambda: set(hook.seen) == published, "all alarms")
    assert set(hook.seen.values()) == {1}


@pytest.mark.long
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


@pytest.mark.long
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


def data_of(hook: Hook) -> list[dict[str, Any]]:
    """What the receiver was told, each message once, in the order of their arrival."""
    return [json.loads(hook.bodies[ident])["data"] for ident in sorted(hook.arrived, key=hook.arrived.__getitem__)]


def test_dead_letters_and_receipts_make_alarms_that_open_and_resolve(settings: StreamSettings, tmp_path: Path) -> None:
    kafka = settings.kafka
    rules: list[dict[str, Any]] = [
        {"name": "Broken", "dead_letter": {"reason": "corrupt_image"}},
        {"name": "NeverAnswered", "unanswered": {"for": "2s"}},
    ]
    with receiving() as hook:
        path = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)}, rules)
        with running(settings, path) as program:
            publish(kafka, dead_letter(kafka, 1), dead_letter(kafka, 2, reason="tombstone"), receipt(kafka, 3))
            wait_until(lambda: len(hook.seen) == 2, "a dead letter's alarm, and one of an image without an answer")
            wait_until(lambda: program.health()["ok"], "health")
        # An open condition outlives a restart, and resolves after it under its own id.
        with running(settings, path):
            publish(kafka, receipt(kafka, 3, state=State.PREDICTED))
            wait_until(lambda: len(hook.seen) == 3, "that it is answered")
    said = [(one["rule"], one["state"]) for one in data_of(hook)]
    assert sorted(said) == [("Broken", "open"), ("NeverAnswered", "open"), ("NeverAnswered", "resolved")]
    assert len({one["id"] for one in data_of(hook) if one["rule"] == "NeverAnswered"}) == 1


@pytest.mark.parametrize("header", [envelope.REDRIVEN_FROM, envelope.INPUT_TOPIC, "demonstration"])
def test_what_never_makes_an_alarm_makes_none(settings: StreamSettings, tmp_path: Path, header: str) -> None:
    kafka = settings.kafka
    barred = (
        prediction(kafka, 1, model={"name": "demo"})
        if header == "demonstration"
        else prediction(kafka, 1, headers={header: f"{kafka.canary_topic}-0@1"})
    )
    with receiving() as hook:
        path = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        with running(settings, path) as program:
            publish(kafka, barred)
            wait_until(lambda: 'kind="prediction"} 1.0' in program.read_page(), "that it is read")
            page = program.read_page()
            publish(kafka, prediction(kafka, 2))
            wait_until(lambda: hook.seen, "an alarm of another image")
    assert len(hook.seen) == 1
    assert [line for line in page.splitlines() if line.startswith("xray_alerts_barred_total") and line.endswith(" 1.0")]


def test_a_receiver_that_is_dead_or_slow_stops_no_other_and_gets_all_of_it_later(
    settings: StreamSettings, tmp_path: Path
) -> None:
    kafka = settings.kafka
    records = [prediction(kafka, number) for number in range(30)]
    wanted = {derive_event_id(one.event_id, "Opacities") for one in records}
    with receiving() as dead, receiving() as slow, receiving() as well:
        dead.status, slow.delay_s = 503, 1.0
        sinks = {
            "dead": hook_sink(dead, tmp_path, retries_s=[0.5] * 100),
            "slow": hook_sink(slow, tmp_path),
            "well": hook_sink(well, tmp_path),
        }
        with running(settings, write_rules(tmp_path, sinks)) as program:
            publish(kafka, *records)
            wait_until(lambda: set(well.seen) == wanted, "all alarms at the one that is well", 20)
            assert len(slow.seen) < len(wanted)
            assert not dead.seen
            assert not program.health()["ok"]
            dead.status, slow.delay_s = 200, 0.0
            wait_until(lambda: set(slow.seen) == set(dead.seen) == wanted, "all alarms at all")
            wait_until(lambda: program.health()["ok"], "health")


def test_a_broker_that_goes_away_is_waited_for(settings: StreamSettings, tmp_path: Path, jars: Path) -> None:
    broker = LocalBroker.of(
        settings.model_copy(
            update={
                "home": tmp_path / "broker",
                "jars": jars,
                "kafka": settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"}),
            }
        )
    )
    own = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})}
    )
    broker.start()
    try:
        create_topics(own.kafka, wanted_topics(own.kafka) | receipt_topics(own.kafka))
        with receiving() as hook, running(own, write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})) as program:
            publish(own.kafka, prediction(own.kafka, 1))
            wait_until(lambda: len(hook.seen) == 1, "the first alarm")
            broker.kill()
            wait_until(lambda: not program.health()["conditions_judged"], "that no condition is judged")
            assert program.is_running
            broker.start()
            publish(own.kafka, prediction(own.kafka, 2))
            wait_until(lambda: len(hook.seen) == 2, "the second alarm")
    finally:
        broker.stop()


def test_one_process_uses_a_folder_and_the_ledger_is_read_and_replayed_beside_it(
    settings: StreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(settings.home))
    cli = CliRunner()
    with receiving() as hook:
        hook.status = 410
        path = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        with running(settings, path):
            with pytest.raises(SettingsError, match="another 'xray alerts run' uses"):
                run_alerts(settings, parse_rules(path.read_text(encoding="utf-8"), "r.yml"), {})
            record = prediction(settings.kafka, 1)
            ident = derive_event_id(record.event_id, "Opacities")
            publish(settings.kafka, record)

            def status() -> str:
                listed = json.loads(cli.invoke(app, ["alerts", "list", "--undelivered", "--json"]).stdout)
                return str(listed[0]["deliveries"][0]["status"]) if listed else ""

            wait_until(lambda: status() == "disabled", "that its receiver wants no more")
            hook.status = 200
            shown = cli.invoke(app, ["alerts", "show", ident[:8]])
            assert "disabled" in shown.stdout
            done = cli.invoke(app, ["alerts", "replay", "--undelivered", "--sink", "ward", "--json"])
            assert json.loads(done.stdout) == {"alarms": 1, "deliveries": 1}
            wait_until(lambda: set(hook.seen) == {ident}, "the same id")
            assert cli.invoke(app, ["alerts", "replay", "zz"]).exit_code != 0
            assert cli.invoke(app, ["alerts", "replay"]).exit_code == 2


@pytest.mark.parametrize("other", ["another folder", "another rule", "no rule in common"])
def test_two_folders_do_not_read_in_one_group(
    settings: StreamSettings, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_GONE_WITHIN_S", 1.0)
    rules = [{"name": name, "prediction": {}} for name in ("Opacities", "More")]
    text = {"another folder": rules[:1], "another rule": rules, "no rule in common": rules[1:]}[other]
    alerts = settings.alerts.model_copy(update={"folder": tmp_path / "elsewhere"})
    elsewhere = settings.model_copy(update={"alerts": alerts})
    (tmp_path / "other").mkdir()
    with receiving() as hook:
        path = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        its = write_rules(tmp_path / "other", {"ward": hook_sink(hook, tmp_path)}, text)
        with running(settings, path) as program:
            with pytest.raises(SettingsError, match="another 'xray alerts run' reads in the group"):
                run_alerts(elsewhere, parse_rules(its.read_text(encoding="utf-8"), "r.yml"), {})
            assert program.health()["holds_all_partitions"]


def test_a_copy_of_a_folder_ends_the_run_whose_place_it_takes(settings: StreamSettings, tmp_path: Path) -> None:
    with receiving() as hook:
        path = write_rules(tmp_path, {"ward": hook_sink(hook, tmp_path)})
        rules = parse_rules(path.read_text(encoding="utf-8"), "r.yml")
        with running(settings, path):
            pass
        shutil.copytree(settings.alerts_folder, tmp_path / "copy")
        ended, ready, failures = threading.Event(), threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                run_alerts(settings, rules, {}, ended=ended, on_ready=lambda _: ready.set())
            except SettingsError as exc:
                failures.append(exc)

        first = threading.Thread(target=work)
        first.start()
        try:
            assert ready.wait(60)
            with running(settings, path, XRAY_ALERTS__FOLDER=str(tmp_path / "copy")):
                publish(settings.kafka, prediction(settings.kafka, 1))
                first.join(60)
                assert [str(one).partition(":")[0] for one in failures] == [
                    "another 'xray alerts run' has taken this one's place in the group"
                ]
        finally:
            ended.set()
            first.join(60)


def test_what_waits_for_a_sink_that_is_gone_is_told_and_delivered_once_it_is_back(
    settings: StreamSettings, tmp_path: Path
) -> None:
    (tmp_path / "less").mkdir()
    with receiving() as hook, receiving() as other:
        hook.status = 503
        sinks = {"ward": hook_sink(hook, tmp_path), "office": hook_sink(other, tmp_path)}
        path = write_rules(tmp_path, sinks)
        less = write_rules(tmp_path / "less", {"office": hook_sink(other, tmp_path / "less")})
        with running(settings, path):
            publish(settings.kafka, *(prediction(settings.kafka, number) for number in range(3)))
            wait_until(lambda: len(other.seen) == 3, "the alarms, at the sink that is well")
        hook.status = 200
        with running(settings, less) as program:
            wait_until(lambda: "xray_alerts_without_sink 3.0" in program.read_page(), "how many wait for nobody")
            assert program.health()["ok"]
            assert not hook.seen
        log = (settings.home / "alerts.log").read_text(encoding="utf-8")
        assert "3 alarms wait for the sink ward, which the rules do not name any more" in log
        with running(settings, path) as program:
            wait_until(lambda: hook.seen == other.seen, "the alarms, once the sink is back")
            wait_until(lambda: "xray_alerts_without_sink 0.0" in program.read_page(), "that none waits for nobody")
