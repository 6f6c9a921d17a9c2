"""Each alert fires once as its fault is caused in a real run, and ends with it; each panel's query finds data.

A broker, ``xray stream``, ``xray archive``, ``xray gateway``, ``xray alerts run`` and ``xray results run``, scraped by
a real Prometheus, which tells a real Alertmanager. The tests are one story, in this order: each begins where all is
well again. Times are shortened as `tests.integration.deploy.shortened` says.
"""

import json
import re
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from confluent_kafka import Producer
from deltalake import DeltaTable
from PIL import Image
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from benchmarks.chaos.commands import run_command
from benchmarks.chaos.scene import Site, clean_environ
from benchmarks.ports import find_ports
from schemas.errors import Reason
from schemas.registry import set_challenger
from streaming.devices.crosswalk import Crosswalk
from streaming.kafka.places import Place
from streaming.settings import load_settings
from tests.integration.deploy.listeners import Listeners, open_listeners
from tests.integration.deploy.watched import DEPLOY, DEVICE, Watched, missing_programs, sending
from tests.integration.streams import change
from tests.receiver import say
from tests.savedmodels import copy_model
from tests.testimages import dicom, png
from tests.unit.streaming.deadletters.test_deadletters import added_headers
from xray.broker import LocalBroker

pytestmark = [
    pytest.mark.long,
    pytest.mark.story,
    pytest.mark.kafka,
    pytest.mark.delta,
    pytest.mark.train,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"not installed: {', '.join(missing_programs())} (Debian: packages of these names)",
    ),
]

NOT_CAUSED = {
    ("XrayArchiveUpkeep", "warning"): "failed upkeep is tried again after ten minutes, and three failures are wanted",
    ("XrayErrorBudget", "outcome"): "an image without outcome must never be: no fault that is known causes one",
}
"""Alerts that no test here makes fire, by what tells them apart, and why; promtool's tests have them all."""

LASTING = {
    "XrayDrift": "looks at the images of seven days",
    "XrayErrorBudget": "its longer windows last six minutes, shortened as they are; the shortest is waited for",
}
"""Alerts whose end is not waited for, and why."""

N_TRAINING = 360
"""Three in ten are held out: drift of scores is told from 100 of them on."""

N_BASELINE = 2200
"""Enough for XrayScoreShift, which compares with 2,000 scores, and for seconds of backlog."""

Pixels = npt.NDArray[np.uint8]


class Images:
    """Small images, each with bytes of its own, made of the radiographs that the model knows; for one thread.

    Parameters
    ----------
    folder : Path
        The radiographs, in a folder for each class.
    seed : int
        Of what differs.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drawn = {kind: cycle(read_small(folder / kind)) for kind in ("normal", "opacities")}

    def like(self, kind: str) -> bytes:
        """Give a radiograph of that kind, two of whose pixels are changed."""
        return png(self._draw(kind), compress_level=1)

    def of_patient(self, kind: str) -> bytes:
        """Give the same as a DICOM object, of which there is a report."""
        uids = {
            keyword: f"1.2.826.0.1.3680043.8.498.{self._rng.integers(1, 2**62)}"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        }
        return dicom(self._draw(kind), bits_stored=8, **uids)

    def _draw(self, kind: str) -> Pixels:
        pixels = next(self._drawn[kind]).copy()
        for _ in range(2):
            pixels[self._rng.integers(200), self._rng.integers(160)] = self._rng.integers(256)
        return pixels

    def noise(self, side: int = 160) -> bytes:
        """Give what is no radiograph."""
        return png(self._rng.integers(0, 256, (side, side)).astype(np.uint8))


def read_small(folder: Path) -> list[Pixels]:
    """Read the first radiographs of a folder."""
    files = sorted(folder.glob("*.png"))[:20]
    return [np.array(Image.open(file).convert("L").resize((160, 200))) for file in files]


@pytest.fixture(scope="module")
def site(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A broker, and a model with a challenger; trained on enough images that drift and unlike images are told."""
    folder = tmp_path_factory.mktemp("watched")
    home = folder / "site"
    settings = load_settings(home=home, jars=jars, kafka={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
    environ = clean_environ() | {"XRAY_HOME": str(home), "XRAY_JARS": str(jars)}
    for words in (
        ("phantom", str(home / "images"), "--count", str(N_TRAINING)),
        ("train", "--data", str(home / "images"), "--flag-unlike"),
    ):
        done = run_command(environ, *words, timeout_s=300)
        assert done.returncode == 0, done.stderr
    (champion,) = (path for path in settings.models_folder.iterdir() if path.is_dir())
    challenger = copy_model(settings.models_folder, champion, "second")
    set_challenger(settings.models_folder, challenger.name)
    broker = LocalBroker.of(settings)
    broker.start()
    yield Site(folder, jars, broker, (champion, challenger))
    broker.stop()


@pytest.fixture(scope="module")
def images(site: Site) -> Images:
    """What the tests send and publish."""
    return Images(site.folder / "site" / "images", seed=5)


@pytest.fixture(scope="module")
def listeners() -> Iterator[Listeners]:
    """Who gets alarms and reports."""
    with open_listeners() as found:
        yield found


@pytest.fixture(scope="module")
def watched(site: Site, listeners: Listeners) -> Iterator[Watched]:
    """All programs, ready, with a device that sends an image every half second, each third one as a DICOM object."""
    watched = Watched(site, site.folder / "watching", listeners)
    try:
        watched.start("stream", "archive", "gateway", "alerts")
        watched.start("reports")
        watched.wait_for(lambda: watched.page_value("stream", "xray_last_audit_timestamp_seconds"), "the first account")
        of_device = Images(site.folder / "site" / "images", seed=6)
        kinds = cycle((of_device.of_patient, of_device.like, of_device.like))
        with sending(watched, lambda: next(kinds)("normal")):
            watched.wait_for(lambda: watched.page_value("alerts", "xray_alerts_conditions_judged"), "all is read")
            watched.wait_for(lambda: len(listeners.hospital.accepted) > 1, "the first reports")
            watched.watch()
            yield watched
    finally:
        watched.close()


@pytest.fixture
def since(watched: Watched) -> float:
    """When this test began."""
    return time.time()


def test_nothing_fires_while_all_is_well(watched: Watched) -> None:
    for slo in ("intake", "latency", "freshness", "outcome"):
        watched.wait_for(lambda slo=slo: watched.query(f'xray_slo:error_ratio:rate1h{{slo="{slo}"}}'), slo)  # type: ignore[misc]
    watched.wait_for(lambda: watched.value("sum(xray_archived_rows_total)") > 50, "rows")
    assert watched.ever_fired() == []
    watched.wait_for(watched.alarms, "an alarm about an image is with Alertmanager")
    left = {one["metric"]["slo"]: float(one["value"][1]) for one in watched.query("xray_slo:budget_left:ratio")}
    assert left == dict.fromkeys(("intake", "latency", "freshness", "outcome"), 1.0)


def test_what_else_devices_send(watched: Watched) -> None:
    """No alert: what some panels show."""
    assert watched.send(dicom(BurnedInAnnotation="YES")) == 201
    device = AE(ae_title="DX1")
    device.add_requested_context(Verification)
    association = device.associate("127.0.0.1", watched.ports["dicom"], ae_title="NOBODY")
    assert association.is_rejected
    watched.wait_for(lambda: watched.query("xray_gateway_flagged_objects_total"), "the flag")
    watched.wait_for(lambda: watched.query("xray_gateway_rejected_associations_total"), "the rejection")


def test_images_that_cannot_be_read_and_images_unlike_the_training(
    watched: Watched, images: Images, since: float
) -> None:
    watched.publish([b"\x89PNG\r\n\x1a\n and no more"] * 20)
    watched.wait_fired(since, "XrayDeadLetterRatio")
    watched.publish(images.noise() for _ in range(120))
    watched.wait_fired(since, "XrayUnlikeTraining")
    watched.wait_silent("XrayDeadLetterRatio")


def test_a_backlog_and_a_spark_that_stands_still(watched: Watched, images: Images, since: float) -> None:
    """The alarms are ended meanwhile, and have a backlog of their own afterwards, by rules that are slow."""
    assert watched.programs["alerts"].terminate() == 0
    watched.publish([images.like("normal") for _ in range(N_BASELINE)])
    watched.wait_fired(since, "XrayLagGrowing")
    assert watched.value("sum(xray_lag_images)") > 0
    with watched.frozen():
        watched.wait_fired(since, "XrayNoBatch", "XrayCanaryMissing")
        watched.wait_for(lambda: watched.inhibited("XrayCanaryMissing"), "XrayCanaryMissing is inhibited")
        watched.wait_for(lambda: watched.value("time() - xray_last_canary_timestamp_seconds") > 38, "half a minute")
    watched.wait_fired(since, "XrayCanaryLate")
    watched.wait_fired(since, "XrayErrorBudget", slo="latency", window="1h")
    watched.wait_for(lambda: watched.value("sum(xray_lag_images)") == 0, "all is scored")
    watched.wait_fired(since, "XrayAlertsDown")
    watched.launch_with_many_rules()
    watched.wait_for(lambda: watched.answers("alerts"), "the page of the alarms")
    with watched.slowed("alerts"):
        watched.wait_fired(since, "XrayAlertsBehind")
        watched.wait_for(lambda: watched.inhibited("XrayAlertsNotReading"), "XrayAlertsNotReading is inhibited")
    watched.wait_silent("XrayAlertsBehind")
    assert watched.programs["alerts"].terminate() == 0
    watched.start("alerts")
    for name in ("XrayNoBatch", "XrayCanaryMissing", "XrayCanaryLate", "XrayLagGrowing", "XrayAlertsDown"):
        watched.wait_silent(name)
    watched.wait_fired(since, "XrayDrift")


def test_a_promoted_model_that_cannot_be_served(watched: Watched, site: Site, since: float) -> None:
    models = watched.settings.models_folder
    damaged = copy_model(models, site.models[0], "damaged")
    (damaged / "note").write_text("not what was hashed", encoding="utf-8")
    (models / "champion").write_text(f"{damaged.name}\n", encoding="utf-8")
    watched.wait_fired(since, "XrayModelWaiting")
    (models / "champion").write_text(f"{site.models[0].name}\n", encoding="utf-8")
    watched.wait_silent("XrayModelWaiting")


def test_kafka_is_away_until_the_spool_is_full(watched: Watched, site: Site, images: Images, since: float) -> None:
    site.broker.stop()
    watched.wait_fired(since, "XrayGatewayKafkaAway", "XrayCanaryMissing", "XrayAuditMissing", "XrayAlertsNotReading")
    watched.wait_fired(since, "XrayGatewaySpool", severity="warning")
    for name in ("XrayCanaryMissing", "XrayAuditMissing", "XrayGatewaySpool", "XrayAlertsNotReading"):
        watched.wait_for(lambda name=name: watched.inhibited(name), f"{name} is inhibited")  # type: ignore[misc]
    assert not watched.inhibited("XrayGatewayKafkaAway")
    answers = [watched.send(images.noise(400)) for _ in range(40)]
    assert {202, 503} == set(answers), "spooled, then refused for a time"
    watched.wait_fired(since, "XrayGatewaySpool", severity="critical")
    watched.wait_fired(since, "XrayGatewayRefusing")
    watched.wait_fired(since, "XrayErrorBudget", slo="intake", window="1h")
    damage(max(watched.spool.glob("*.record")))
    site.broker.start()
    watched.wait_fired(since, "XrayGatewaySetAside")
    for name in (
        "XrayGatewayKafkaAway",
        "XrayCanaryMissing",
        "XrayAuditMissing",
        "XrayGatewaySpool",
        "XrayGatewayRefusing",
        "XrayAlertsNotReading",
    ):
        watched.wait_silent(name)


def damage(record: Path) -> None:
    """Change a bit of a file, as a disk may."""
    content = bytearray(record.read_bytes())
    content[-40] ^= 1
    record.write_bytes(content)


def test_the_gateway_is_ended_and_a_device_is_silent(watched: Watched, since: float) -> None:
    """The image that was set aside is taken away meanwhile, as the runbook says."""
    assert watched.programs["gateway"].terminate() == 0
    for record in (watched.spool / "damaged").iterdir():
        record.unlink()
    watched.wait_fired(since, "XrayGatewayDown")
    watched.wait_fired(since, "XrayDeviceSilent", source=DEVICE)
    watched.wait_for(lambda: watched.inhibited("XrayDeviceSilent"), "XrayDeviceSilent is inhibited")
    watched.start("gateway")
    for name in ("XrayGatewayDown", "XrayDeviceSilent", "XrayGatewaySetAside"):
        watched.wait_silent(name)


def test_a_sink_takes_no_alarms_and_the_crosswalk_is_another_one(
    watched: Watched, listeners: Listeners, since: float
) -> None:
    assert watched.programs["reports"].terminate() == 0
    watched.wait_fired(since, "XrayReportsDown")
    another = watched.folder / "another-crosswalk"
    Crosswalk(another, watched.settings.crosswalk_key).close()
    watched.start("reports", environ={"XRAY_GATEWAY__CROSSWALK": str(another)})
    listeners.webhook.answers = [say(500)] * 10_000
    watched.wait_fired(since, "XrayAlertsWaiting", sink="ris")
    listeners.webhook.answers = [say(410)]
    watched.wait_fired(since, "XrayAlertsUndelivered", sink="ris")
    replayed = run_command(watched.environ, "alerts", "replay", "--undelivered", "--sink", "ris", timeout_s=60)
    assert replayed.returncode == 0, replayed.stderr
    watched.wait_fired(since, "XrayReportsLeftOut", target="mllp")
    watched.wait_fired(since, "XrayReportsLeftOut", target="files")
    assert watched.programs["reports"].terminate() == 0
    watched.start("reports")
    for name in ("XrayAlertsWaiting", "XrayAlertsUndelivered", "XrayReportsDown", "XrayReportsLeftOut"):
        watched.wait_silent(name)


def test_a_hospital_system_refuses_reports_and_then_is_away(
    watched: Watched, listeners: Listeners, since: float
) -> None:
    listeners.hospital.answer = lambda _id, _times: "AE"
    watched.wait_fired(since, "XrayReportsGivenUp", target="mllp")
    listeners.hospital.answer = lambda _id, _times: "hang up"
    watched.wait_fired(since, "XrayReportTargetDown", "XrayReportsWaiting", target="mllp")
    watched.wait_for(lambda: watched.inhibited("XrayReportsWaiting"), "XrayReportsWaiting is inhibited")
    listeners.hospital.answer = lambda _id, _times: "AA"
    assert watched.programs["reports"].terminate() == 0
    watched.start("reports", options=("--again",))
    for name in ("XrayReportsGivenUp", "XrayReportTargetDown", "XrayReportsWaiting"):
        watched.wait_silent(name)
    away = watched.crosswalk.rename(watched.folder / "crosswalk.away")
    watched.wait_fired(since, "XrayReportsFailing", target="mllp")
    away.rename(watched.crosswalk)
    watched.wait_silent("XrayReportsFailing")
    assert not watched.fired(since, "XrayReportTargetDown", target="files")


def test_the_archive_is_ended_and_topics_keep_little(watched: Watched, since: float) -> None:
    kafka, hour_ms = watched.settings.kafka, 3_600_000
    kept = {kafka.predictions_topic: 30 * 24, kafka.features_topic: 7 * 24}
    assert watched.programs["archive"].terminate() == 0
    watched.wait_fired(since, "XrayArchiveDown", "XrayArchiveStopped")
    watched.wait_fired(since, "XrayErrorBudget", slo="freshness", window="1h")
    watched.wait_fired(since, "XrayArchiveRetention", severity="critical", table="")
    for topic, hours in zip(kept, (1, 30), strict=True):
        change(watched.settings, topic, "retention.ms", str(hours * hour_ms))
    watched.start("archive")
    watched.wait_fired(since, "XrayArchiveRetention", severity="critical", table="predictions")
    watched.wait_fired(since, "XrayArchiveRetention", severity="warning", table="features")
    for topic, hours in kept.items():
        change(watched.settings, topic, "retention.ms", str(hours * hour_ms))
    assert watched.programs["archive"].terminate() == 0
    watched.start("archive")
    for name in ("XrayArchiveDown", "XrayArchiveStopped", "XrayArchiveRetention"):
        watched.wait_silent(name)


def test_the_tables_cannot_be_written(watched: Watched, since: float) -> None:
    """A file is where their folder was: root, which tests often are, may write into any folder."""
    tables = Path(watched.settings.tables_folder)
    away = tables.rename(tables.with_name("tables.away"))
    tables.write_text("no folder", encoding="utf-8")
    watched.wait_fired(since, "XrayQueryDown", query="archive")
    watched.wait_fired(since, "XrayArchiveBehind")
    watched.wait_for(lambda: watched.inhibited("XrayArchiveBehind"), "XrayArchiveBehind is inhibited")
    tables.unlink()
    away.rename(tables)
    watched.wait_silent("XrayQueryDown")
    watched.wait_silent("XrayArchiveBehind")


def test_rows_are_deleted_and_an_image_has_two_outcomes(watched: Watched, images: Images, since: float) -> None:
    kafka, places = watched.settings.kafka, list[Place]()
    producer = Producer(kafka.to_librdkafka())
    producer.produce(
        kafka.images_topic,
        images.like("normal"),
        on_delivery=lambda _, m: places.append(Place(m.partition(), m.offset())),
    )
    producer.flush()
    (place,) = places
    headers = added_headers(input_place=place, topic=kafka.images_topic, reason=Reason.CORRUPT_IMAGE)
    producer.produce(kafka.deadletters_topic, b"a second outcome", headers=list(headers))
    producer.flush()
    watched.wait_fired(since, "XrayUnaccountedRecords")
    DeltaTable(f"{watched.settings.tables_folder}/predictions").delete()
    watched.wait_fired(since, "XrayTableFaults")
    # The account is about the last 30 s.
    watched.wait_silent("XrayUnaccountedRecords")
    watched.wait_silent("XrayTableFaults")


def test_other_scores_than_before(watched: Watched, images: Images, since: float) -> None:
    watched.publish([images.like("opacities") for _ in range(300)])
    watched.wait_fired(since, "XrayScoreShift")


def test_the_stream_is_killed_again_and_again(watched: Watched, since: float) -> None:
    for kill in range(3):
        watched.programs["stream"].kill()
        watched.wait_for(lambda: watched.value('up{job="xray-stream"}') == 0, "the page is gone")
        if kill == 0:
            watched.wait_fired(since, "XrayStreamDown")
        watched.launch("stream")
        watched.wait_for(lambda: watched.value('up{job="xray-stream"}') == 1, "the page is there")
    watched.wait_fired(since, "XrayStreamRestarting")
    watched.wait_ready("stream")


def test_all_have_ended(watched: Watched) -> None:
    def firing() -> list[dict[str, str]]:
        return [one for one in watched.firing() if one["alertname"] not in LASTING or one.get("window") == "1h"]

    watched.wait_for(lambda: not firing(), "the end of all alerts", 180)


def panel_queries() -> Iterator[tuple[str, str]]:
    """Give every query of the dashboard with the title of its panel."""
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        dashboard: Any = json.loads(file.read_text(encoding="utf-8"))
        for panel in (one for outer in dashboard["panels"] for one in (outer, *outer.get("panels", []))):
            for target in panel.get("targets", []):
                yield panel["title"], target["expr"]
        for note in dashboard["annotations"]["list"]:
            if "expr" in note:
                yield note["name"], note["expr"]


def test_every_panel_has_shown_something(watched: Watched) -> None:
    span = {"start": watched.started_at, "end": time.time(), "step": 3}
    empty = [
        (title, query)
        for title, query in panel_queries()
        if not watched.query(query.replace("$__rate_interval", "10s"), **span)
    ]
    assert empty == []


def test_every_alert_has_fired(watched: Watched) -> None:
    def key(name: str, labels: dict[str, str]) -> tuple[str, str]:
        return name, labels.get("slo") or labels["severity"]

    wanted = set()
    for file in ("alerts.yml", "slo.yml"):
        rules = yaml.safe_load((DEPLOY / "prometheus" / file).read_text(encoding="utf-8"))
        named = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
        wanted |= {key(rule["alert"], rule["labels"]) for rule in named if rule["alert"] != "XrayErrorBudget"}
    slos = re.findall(r"slo: (\w+)", (DEPLOY / "prometheus" / "slo.yml").read_text(encoding="utf-8"))
    wanted |= {("XrayErrorBudget", slo) for slo in slos}
    fired = {key(one["alertname"], one) for one in watched.ever_fired()}
    assert fired == wanted - set(NOT_CAUSED)
