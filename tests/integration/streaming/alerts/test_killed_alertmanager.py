"""A real Alertmanager and 'xray alerts run', killed in turn: what is open is there again, and no alarm is lost."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import derive_event_id
from streaming.alerts.ledger import LEDGER_FILE, Ledger
from streaming.gateway.receipts.receipt import State
from streaming.settings import StreamSettings
from tests.alertrecords import prediction, publish, receipt
from tests.integration.streaming.alerts.alertmanager import ALERTMANAGER, Daemon
from tests.integration.streaming.alerts.hooks import RULES, Program, wait_until, write_rules
from tests.receiver import Receiver, receive

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed (prometheus-alertmanager)"),
]

RESEND_S = 5.0
ROOM_S = 5.0
"""For a machine that has other work: a look each second, the posts, and Alertmanager's own time to show them."""
CONDITIONS: list[dict[str, Any]] = [
    {"name": "NeverAnswered", "unanswered": {"for": "1s"}},
    {"name": "Silent", "absence": {"source": ["/silent-1", "/silent-2"], "for": "1s"}},
]
WARDS = ("/ward-1", "/ward-2", "/ward-3", "/ward-4")


@pytest.fixture
def pager() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


def told(pager: Receiver, status: str) -> set[str]:
    """The ids of alarms that a person was told of, as firing or resolved."""
    alerts = [alert for got in list(pager.got) for alert in json.loads(got.body)["alerts"]]
    return {alert["labels"]["alarm_id"] for alert in alerts if alert["status"] == status}


class Scene:
    """What is published, and the alarms that have to be there for it."""

    def __init__(self, settings: StreamSettings, daemon: Daemon, rules: Path) -> None:
        self.settings = settings
        self.daemon = daemon
        self.rules = rules
        self.findings: set[str] = set()
        self._numbers = iter(range(1_000_000))

    def publish_findings(self, count: int) -> None:
        """Publish predictions that make an alarm each, and as many that make none."""
        kafka = self.settings.kafka
        records = [prediction(kafka, next(self._numbers)) for _ in range(count)]
        others = [prediction(kafka, next(self._numbers), label="normal") for _ in range(count)]
        self.findings |= {derive_event_id(one.event_id, "Opacities") for one in records}
        publish(kafka, *records, *others)

    def accept(self, *wards: str) -> None:
        """Have the gateway accept an image of each of them."""
        publish(self.settings.kafka, *(receipt(self.settings.kafka, 1, source=ward) for ward in wards))

    def answer(self, *wards: str) -> None:
        """Have those images answered."""
        kafka = self.settings.kafka
        publish(kafka, *(receipt(kafka, 1, state=State.PREDICTED, source=ward) for ward in wards))

    def conditions(self) -> dict[str, str]:
        """The open conditions by what they are about, as the ledger has them."""
        ledger = Ledger(self.settings.alerts_folder / LEDGER_FILE)
        try:
            return {entry.part: entry.alarm.id for entry in ledger.list_unsettled()}
        finally:
            ledger.close()

    def wait_open(self, *parts: str) -> None:
        """Wait until these conditions are open, and no others."""
        wait_until(lambda: set(self.conditions()) == {"/silent-1", "/silent-2", *parts}, f"open: {parts}")

    def is_shown(self) -> bool:
        """Whether Alertmanager has all that is open, and nothing else."""
        return set(self.daemon.shown()) == self.findings | set(self.conditions().values())

    def wait_shown(self, within_s: float) -> float:
        """Wait until Alertmanager has all of it; give the seconds that it took."""
        began = time.monotonic()
        wait_until(self.is_shown, "that Alertmanager has what is open, and nothing else", within_s)
        return time.monotonic() - began

    def wait_snapshot(self, pager: Receiver) -> None:
        """Wait until Alertmanager has on the disk whom it has told so far."""
        count, since = len(pager.got), time.time()
        log = self.daemon.folder / "data" / "nflog"
        wait_until(lambda: log.exists() and log.stat().st_mtime > since + 1, "a snapshot")
        assert len(pager.got) == count, "it has told more meanwhile"

    def has_failed_often(self) -> bool:
        """Whether each of the deliveries has failed four times: 256 at once, then 64, 16, 4 and one."""
        with closing(sqlite3.connect(self.settings.alerts_folder / LEDGER_FILE)) as ledger:
            (fewest,) = ledger.execute("SELECT min(attempts) FROM deliveries").fetchone()
        return int(fewest) >= 4

    def start(self) -> Program:
        """Start 'xray alerts run'."""
        return Program(self.settings, self.rules).wait_ready()


@pytest.fixture
def scene(settings: StreamSettings, tmp_path: Path, pager: Receiver) -> Scene:
    daemon = Daemon(tmp_path, pager.url, snapshot_every="1s")
    sinks = {"duty": {"type": "alertmanager", "urls": [daemon.url], "resend_s": RESEND_S, "resolved_for_s": 60}}
    return Scene(settings, daemon, write_rules(tmp_path, sinks, [*RULES, *CONDITIONS]))


@pytest.mark.long
@pytest.mark.parametrize("storage", ["kept", "empty"])
def test_killed_in_turn_they_lose_no_alarm(scene: Scene, pager: Receiver, storage: str) -> None:
    daemon = scene.daemon
    program = scene.start()
    try:
        with daemon.run():
            scene.publish_findings(20)
            scene.accept(*WARDS)
            scene.wait_open(*WARDS)
            scene.wait_shown(60)
            wait_until(lambda: scene.findings <= told(pager, "firing"), "that all are told")
            first = scene.conditions()
            scene.wait_snapshot(pager)
        # Alertmanager is dead. New findings come, a condition ends, and then the consumer is killed too.
        wait_until(lambda: not program.health()["ok"], "that health tells of it")
        scene.publish_findings(20)
        scene.answer("/ward-1")
        scene.wait_open("/ward-2", "/ward-3", "/ward-4")
        scene.publish_findings(20)
        program.kill()
        scene.publish_findings(20)
        program = scene.start()
        if storage == "empty":
            shutil.rmtree(daemon.folder / "data")
        with daemon.run():
            assert scene.wait_shown(60) < RESEND_S + ROOM_S
            assert len(scene.findings) == 80
            wait_until(lambda: program.health()["ok"], "health")
            # What ended meanwhile is told as far as Alertmanager knows that it had begun.
            if storage == "kept":
                wait_until(lambda: first["/ward-1"] in told(pager, "resolved"), "the end of a condition")
            scene.answer("/ward-2")
            wait_until(lambda: first["/ward-2"] in told(pager, "resolved"), "the end of another one")
            scene.wait_shown(30)
            # The consumer is killed alone, and a condition ends while nobody reads.
            program.kill()
            scene.answer("/ward-3")
            scene.publish_findings(20)
            program = scene.start()
            wait_until(lambda: first["/ward-3"] in told(pager, "resolved"), "the end of a third one")
            scene.wait_shown(60)
        with daemon.run():
            assert scene.wait_shown(60) < RESEND_S + ROOM_S
            assert set(scene.conditions()) == {"/ward-4", "/silent-1", "/silent-2"}
            assert scene.conditions()["/ward-4"] == first["/ward-4"]
            wait_until(lambda: scene.findings <= told(pager, "firing"), "that every finding is told")
            assert set(first.values()) <= told(pager, "firing")
            assert not told(pager, "resolved") & scene.findings
        assert program.stop() == 0
    finally:
        if program.is_running:
            program.kill()


@pytest.mark.long
def test_after_an_outage_thousands_of_open_alarms_are_there_again_within_the_repeat_gap(scene: Scene) -> None:
    program = scene.start()
    try:
        with scene.daemon.run():
            scene.publish_findings(2000)
            scene.wait_open()
            scene.wait_shown(60)
        wait_until(scene.has_failed_often, "that each has failed often enough to go alone")
        with scene.daemon.run():
            assert scene.wait_shown(60) < RESEND_S + ROOM_S
        assert program.stop() == 0
    finally:
        if program.is_running:
            program.kill()
