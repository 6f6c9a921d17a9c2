"""What a running stream finds out about its models: gauges that are there, those that are not, what it survives."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from schemas.extras import install_line
from schemas.modelcard import ModelCard
from schemas.registry import clear_challenger, promote
from streaming.settings import StreamSettings, load_settings
from tests.challenger import add_challenger, add_labels_said
from tests.metricspage import DRIFT, SHADOW
from tests.stored import FIRST_DAY, add_champion, score_images
from training.features.stored import describe_featurizer
from training.figures.shift import make_reference, save_reference
from training.lifecycle.drift import measure_drift
from training.lifecycle.shadow import compare_shadow
from xray import monitor
from xray.commands import stream as stream_command
from xray.monitor import Findings, Monitor, MonitorMetrics

OF_CHAMPION = {
    "xray_drift_score_psi",
    "xray_drift_score_ks",
    "xray_drift_vector_energy",
    "xray_drift_images",
    "xray_retraining_called_for",
}
OF_CHALLENGER = {
    "xray_challenger_info",
    "xray_shadow_images",
    "xray_shadow_agreement_ratio",
    "xray_shadow_score_difference",
}
TIME = "xray_last_monitor_timestamp_seconds"


def read(registry: CollectorRegistry) -> dict[str, tuple[str | None, float]]:
    """Give the version and the value of each sample; no name has two."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    found = {sample.name: (sample.labels.get("version"), sample.value) for sample in samples}
    assert len(found) == len(samples)
    return found


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def settings(tmp_path: Path) -> StreamSettings:
    return load_settings(environ={}, home=tmp_path)


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    """A champion that has a reference, and has scored 500 images that are like it."""
    card = add_champion(tmp_path)
    scored = score_images(tmp_path, card, 500, days=7)
    add_labels_said(tmp_path)
    scores = 1 / (1 + 2.718281828 ** (1 - scored.features[:, 1]))
    save_reference(tmp_path / "reports" / card.version, make_reference(scored.features, scores))
    return card


def test_a_measurement_shows_drift_and_the_challenger(
    tmp_path: Path, settings: StreamSettings, registry: CollectorRegistry, card: ModelCard
) -> None:
    rival = add_challenger(tmp_path, card, coefficients=(0.5, 1.0, 0.0))
    before = time.time()
    Monitor(settings, registry).measure()
    found = read(registry)
    assert found.keys() == OF_CHAMPION | OF_CHALLENGER | {TIME}
    assert {found[name][0] for name in OF_CHAMPION} == {card.version}
    assert {found[name][0] for name in OF_CHALLENGER} == {rival.version}
    assert before <= found[TIME][1] <= time.time()
    values = {name: value for name, (_, value) in found.items()}
    featurizer = describe_featurizer(tmp_path / "models" / card.version, card)
    drift = measure_drift(settings.tables_folder, card, featurizer, [card.sha256], None)
    assert drift.scores is None, "without the reference beside the report this archive is too young"
    assert (values["xray_retraining_called_for"], values["xray_drift_images"]) == (0, 500)
    assert 0 <= values["xray_drift_score_psi"] < 0.05
    assert 0 <= values["xray_drift_score_ks"] < 0.05
    assert abs(values["xray_drift_vector_energy"]) < 0.01
    models = [(tmp_path / "models" / one.version, one) for one in (card, rival)]
    shadow = compare_shadow(settings.tables_folder, models[0], models[1])
    assert shadow.agreement is not None
    assert shadow.difference is not None
    assert values["xray_shadow_images"] == 500
    assert values["xray_shadow_agreement_ratio"] == shadow.agreement.value < 1
    assert values["xray_shadow_score_difference"] == shadow.difference.mean != 0


def test_drift_calls_for_retraining(
    tmp_path: Path, settings: StreamSettings, registry: CollectorRegistry, card: ModelCard
) -> None:
    shutil.rmtree(tmp_path / "tables")
    score_images(tmp_path, card, 500, seed=1, shift=1.5, first_day=FIRST_DAY + timedelta(days=30))
    Monitor(settings, registry).measure()
    found = read(registry)
    assert found["xray_retraining_called_for"] == (card.version, 1)
    assert found["xray_drift_score_psi"][1] > 0.25
    assert found["xray_drift_vector_energy"][1] > 0.01


def test_without_a_finding_there_is_no_sample(
    tmp_path: Path, settings: StreamSettings, registry: CollectorRegistry, card: ModelCard
) -> None:
    watch = Monitor(settings, registry)
    assert read(registry) == {}
    watch.measure()
    assert read(registry).keys() == OF_CHAMPION | {TIME}, "there is no challenger"
    shutil.rmtree(tmp_path / "tables")
    score_images(tmp_path, card, 99)
    add_labels_said(tmp_path)
    rival = add_challenger(tmp_path, card)
    watch.measure()
    found = read(registry)
    assert found.keys() == {"xray_challenger_info", "xray_shadow_images", TIME}, "99 images say nothing"
    assert found["xray_shadow_images"] == (rival.version, 99)
    clear_challenger(tmp_path / "models")
    watch.measure()
    assert read(registry).keys() == {TIME}


def test_a_promotion_takes_the_old_models_series_away(
    tmp_path: Path, settings: StreamSettings, registry: CollectorRegistry, card: ModelCard
) -> None:
    rival = add_challenger(tmp_path, card)
    shutil.copytree(tmp_path / "reports" / card.version, tmp_path / "reports" / rival.version)
    watch = Monitor(settings, registry)
    pinned_registry = CollectorRegistry()
    pinned = Monitor(settings, pinned_registry, model_folder=tmp_path / "models" / card.version)
    watch.measure()
    promote(tmp_path / "models", rival.version)
    shutil.rmtree(tmp_path / "tables")
    for one, count, seed in ((card, 500, 1), (rival, 300, 2)):
        score_images(tmp_path, one, count, seed=seed, days=7)
    watch.measure()
    pinned.measure()
    found = read(registry)
    assert {version for name, (version, _) in found.items() if name != TIME} == {rival.version}
    assert not found.keys() & OF_CHALLENGER
    assert read(pinned_registry)["xray_drift_images"] == (card.version, 800), "vectors of both, by one featurizer"


def test_what_goes_wrong_is_logged_in_a_line_and_changes_nothing(
    tmp_path: Path,
    settings: StreamSettings,
    registry: CollectorRegistry,
    card: ModelCard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_challenger(tmp_path, card)
    watch = Monitor(settings, registry)
    watch.measure()
    before = read(registry)
    (tmp_path / "tables").rename(tmp_path / "away")
    watch.measure()
    (tmp_path / "tables" / "features" / "_delta_log").mkdir(parents=True)
    (tmp_path / "tables" / "features" / "_delta_log" / "00000000000000000000.json").write_text("no json\n")
    watch.measure()
    (tmp_path / "models" / "champion").unlink()
    watch.measure()
    assert read(registry) == before
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    lines = [record.getMessage() for record in caplog.records]
    assert all("drift could not be measured: " in line and "\n" not in line for line in lines)
    assert "there is no archive" in lines[0]
    assert "no model was promoted" in lines[2]


def test_a_challenger_that_cannot_be_compared_leaves_drift_alone(
    tmp_path: Path,
    settings: StreamSettings,
    registry: CollectorRegistry,
    card: ModelCard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rival = add_challenger(tmp_path, card, pooling="none")
    watch = Monitor(settings, registry)
    watch.measure()
    assert read(registry).keys() == OF_CHAMPION | {"xray_challenger_info", TIME}
    assert "the challenger is not compared: 20260201T000000Z has another featurizer" in caplog.text
    shutil.rmtree(tmp_path / "models" / rival.version)
    watch.measure()
    assert read(registry).keys() == OF_CHAMPION | {TIME}
    assert "there is no challenger to compare" in caplog.text


def test_findings_that_cannot_be_told_are_left_out() -> None:
    registry = CollectorRegistry()
    metrics = MonitorMetrics(registry)
    untold = replace(DRIFT, scores=None, vectors=None, called_for=None)
    metrics.show(Findings("1", untold, "2", None, 5.0))
    assert read(registry) == {"xray_challenger_info": ("2", 1), TIME: (None, 5)}
    metrics.show(Findings("1", replace(DRIFT, scores=None), None, None, 6.0))
    assert read(registry).keys() == {
        "xray_drift_vector_energy", "xray_drift_images", "xray_retraining_called_for", TIME
    }  # fmt: skip
    metrics.show(Findings("1", untold, "2", replace(SHADOW, agreement=None, difference=None), 7.0))
    assert read(registry).keys() == {"xray_challenger_info", "xray_shadow_images", TIME}


# --- the thread -------------------------------------------------------------------------------------------------------


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "monitor"]


def wait_until(what: Callable[[], bool]) -> bool:
    """Wait up to 10 s."""
    waiting = threading.Event()
    return any(what() or waiting.wait(0.02) for _ in range(500))


def every(settings: StreamSettings, interval_s: float) -> StreamSettings:
    return settings.model_copy(update={"monitor": settings.monitor.model_copy(update={"interval_s": interval_s})})


def test_it_measures_again_and_again_until_it_is_stopped(
    settings: StreamSettings, registry: CollectorRegistry, card: ModelCard
) -> None:
    watch = Monitor(every(settings, 0.01), registry)
    watch.start()
    try:
        assert wait_until(lambda: TIME in read(registry))
        first = read(registry)[TIME]
        assert wait_until(lambda: read(registry)[TIME] != first)
    finally:
        watch.stop()
    assert wait_until(lambda: not monitors())


def test_the_first_measurement_does_not_wait_for_an_hour(
    settings: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.monitor.interval_s == 3600
    assert monitor.FIRST_MEASUREMENT_S == 60
    measured = threading.Event()
    monkeypatch.setattr(monitor, "FIRST_MEASUREMENT_S", 0.01)
    monkeypatch.setattr(Monitor, "_measure", lambda _: measured.set())
    watch = Monitor(settings, CollectorRegistry())
    watch.start()
    try:
        assert measured.wait(10)
    finally:
        watch.stop()
    assert wait_until(lambda: not monitors())


def test_an_interval_of_zero_never_measures(settings: StreamSettings) -> None:
    Monitor(every(settings, 0), CollectorRegistry()).start()
    assert monitors() == []


def test_without_the_extra_it_says_so_and_does_not_run(
    settings: StreamSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "find_spec", lambda _: None)
    watch = Monitor(settings, CollectorRegistry())
    watch.start()
    watch.stop()
    assert monitors() == []
    [record] = caplog.records
    assert install_line("train") in record.getMessage()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("available_now", [False, True])
def test_the_stream_command_watches_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available_now: bool
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(stream_command, "end_on_signals", lambda _: None)
    done: list[str] = []
    monkeypatch.setattr(Monitor, "start", lambda _: done.append("start"))
    monkeypatch.setattr(Monitor, "stop", lambda _: done.append("stop"))

    def run_stream(settings: StreamSettings, *, registry: CollectorRegistry, on_ready: Any, **_: Any) -> None:
        families = {family.name for family in registry.collect()}
        assert families == (set() if available_now else OF_CHAMPION | OF_CHALLENGER | {TIME})
        assert done == []
        state = type("State", (), {"metrics_url": "", "card": add_champion(tmp_path)})
        on_ready(state)
        done.append("ran")

    monkeypatch.setattr("streaming.run.service.run_stream", run_stream)
    stream_command.stream(available_now=available_now, model=None, accept_loss=False, json_=True, verbose=False)
    assert done == (["ran"] if available_now else ["start", "ran", "stop"])
