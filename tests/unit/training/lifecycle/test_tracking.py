"""Runs, figures, versions and aliases, read back from a real MLflow store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from schemas import extras
from schemas.errors import DependencyError, JobError
from schemas.modelcard import CARD_FILE, ModelCard
from tests.paths import ROOT
from tests.savedmodels import add_model, add_report, as_json, evaluate
from training.evidence.probes import Verdict
from training.lifecycle import tracking
from training.lifecycle.tracking import mirror_alias, show_uri, track_run

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the tracking extra (MLflow)")


pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tracking._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("a home")  # one store for all: making its tables takes seconds


@pytest.fixture
def uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def _client(uri: str) -> Any:
    from mlflow import MlflowClient  # noqa: PLC0415  part of the tracking extra only

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _track(uri: str, home: Path, card: ModelCard, evaluation: Any, *, with_weights: bool = False) -> str:
    folders = home / "reports" / card.version, home / "models" / card.version
    return track_run(uri, "xray", card, evaluation, *folders, with_weights=with_weights)


@needs_mlflow
def test_a_run_is_read_back(home: Path, uri: str) -> None:
    card = add_model(home, "v1")
    evaluation = evaluate(card, served="v0", difference=(0.02, -0.01, 0.05), confounded=True)
    add_report(home, evaluation)
    run_id = _track(uri, home, card, evaluation)
    client = _client(uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "v1")
    assert run.info.end_time - run.info.start_time == 60_000
    figures = run.data.metrics
    assert (figures["auroc"], figures["auroc_low"], figures["auroc_high"]) == (0.97, 0.94, 0.99)
    assert (figures["accuracy"], figures["f1"]) == (0.9, 0.9)
    assert figures["data_elsewhere _2/auroc"] == 0.61
    assert figures["probe/thumbnail_high"] == 0.7
    assert figures["against_in_service/auroc_low"] == -0.01
    assert not [name for name in figures if name.startswith("auprc")]  # it could not be computed
    wanted = {
        "network": "EfficientNetLite0",
        "weights": "imagenet",
        "seed": "3",
        "procedure": "paper",
        "labels": "normal, ill",
        "n_train_images": "112",
        "n_test_patients": "24",
    }
    assert wanted.items() <= run.data.params.items()
    tags = run.data.tags
    assert (tags["xray_version"], tags["sha256"], tags["verdict"]) == ("v1", card.sha256, "confounded")
    assert tags["verdict_reasons"] == evaluation.verdict.reasons[0]
    assert tags["model_folder"] == str(home / "models" / "v1")
    assert client.get_experiment(run.info.experiment_id).name == "xray"


@needs_mlflow
def test_a_model_that_nobody_probed_is_tagged_so(home: Path, uri: str) -> None:
    card = add_model(home, "unprobed")
    reasons = ("the model in service was confounded: a thumbnail tells",)
    run_id = _track(uri, home, card, replace(evaluate(card), verdict=Verdict("unknown", reasons)))
    tags = _client(uri).get_run(run_id).data.tags
    assert (tags["verdict"], tags["verdict_reasons"]) == ("unknown", reasons[0])


@needs_mlflow
def test_report_and_card_go_with_the_run_and_nothing_else(home: Path, uri: str, tmp_path: Path) -> None:
    card = add_model(home, "v2")
    add_report(home, evaluate(card))
    run_id = _track(uri, home, card, evaluate(card))
    client = _client(uri)
    assert [item.path for item in client.list_artifacts(run_id)] == ["model", "report.html", "report.json", "report.md"]
    assert [item.path for item in client.list_artifacts(run_id, "model")] == [f"model/{CARD_FILE}"]
    fetched = Path(client.download_artifacts(run_id, "report.json", str(tmp_path)))
    assert json.loads(fetched.read_text(encoding="utf-8")) == as_json(evaluate(card))
    assert (home / "mlartifacts" / run_id / "artifacts" / "report.html").is_file()


@needs_mlflow
def test_weights_go_with_the_run_where_asked_for(home: Path, uri: str) -> None:
    card = add_model(home, "v3")
    run_id = _track(uri, home, card, None, with_weights=True)
    assert {item.path for item in _client(uri).list_artifacts(run_id, "model")} == {
        f"model/{CARD_FILE}",
        "model/weights",
    }


@needs_mlflow
def test_a_model_is_registered_once(home: Path, uri: str) -> None:
    card = add_model(home, "v4")
    run_id = _track(uri, home, card, as_json(evaluate(card)))
    assert _track(uri, home, card, evaluate(card)) == run_id
    client = _client(uri)
    [found] = client.search_model_versions("name = 'cxr' and tags.xray_version = 'v4'")
    assert found.tags == {"xray_version": "v4", "sha256": card.sha256, "verdict": "ok"}
    assert found.run_id == run_id
    assert (
        len(client.search_runs([client.get_experiment_by_name("xray").experiment_id], "tags.xray_version = 'v4'")) == 1
    )


@needs_mlflow
def test_without_a_report_the_cards_figures_are_written(home: Path, uri: str) -> None:
    card = add_model(home, "v5")
    client, run_id = _client(uri), track_run(uri, "xray", card, None, None, home / "models" / "v5")
    assert client.get_run(run_id).data.metrics == {"accuracy": 0.5}
    [found] = client.search_model_versions("name = 'cxr' and tags.xray_version = 'v5'")
    assert found.tags == {"xray_version": "v5", "sha256": card.sha256}


@needs_mlflow
def test_aliases_follow(home: Path, uri: str) -> None:
    for version in ("v6", "v7"):
        card = add_model(home, version)
        _track(uri, home, card, None)
    client = _client(uri)
    for version in ("v6", "v7", "v6"):
        number = mirror_alias(uri, "cxr", "champion", version)
        found = client.get_model_version_by_alias("cxr", "champion")
        assert (found.version, found.tags["xray_version"]) == (int(number or 0), version)
    mirror_alias(uri, "cxr", "challenger", "v7")
    assert set(client.get_registered_model("cxr").aliases) == {"champion", "challenger"}
    for _ in range(2):
        assert mirror_alias(uri, "cxr", "challenger", None) is None
    assert set(client.get_registered_model("cxr").aliases) == {"champion"}
    assert mirror_alias(uri, "unknown", "challenger", None) is None


@needs_mlflow
def test_an_unknown_version_is_an_error_that_names_the_next_step(uri: str) -> None:
    with pytest.raises(JobError, match="does not know cxr v99; 'xray models sync'"):
        mirror_alias(uri, "cxr", "champion", "v99")


@needs_mlflow
def test_a_run_that_breaks_off_is_marked_and_done_again(home: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = add_model(home, "v8")
    with monkeypatch.context() as patched:
        patched.setattr(tracking, "CARD_FILE", "gone.json")
        with pytest.raises(JobError, match=r"gone\.json"):
            _track(uri, home, card, None)
    run_id = _track(uri, home, card, None)
    client = _client(uri)
    experiment = client.get_experiment_by_name("xray").experiment_id
    runs = client.search_runs([experiment], "tags.xray_version = 'v8'")
    assert {run.info.run_id: run.info.status for run in runs}[run_id] == "FINISHED"
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


@needs_mlflow
def test_a_server_that_is_away_is_an_error_without_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(JobError, match=r"MLflow at http://127\.0\.0\.1:1: no answer") as caught:
        mirror_alias("http://me:geheim@127.0.0.1:1", "cxr", "champion", "v1")
    assert "geheim" not in str(caught.value)


@needs_mlflow
def test_a_store_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 100, encoding="utf-8")
    with pytest.raises(JobError, match=r"MLflow at sqlite:.*DatabaseError"):
        mirror_alias(f"sqlite:///{tmp_path / 'mlflow.db'}", "cxr", "champion", "v1")


_QUIET = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from tests.savedmodels import add_model
from training.lifecycle.tracking import track_run
from pathlib import Path
home = Path(sys.argv[1])
card = add_model(home, "v1")
track_run(f"sqlite:///{home}/mlflow.db", "xray", card, None, None, home / "models" / "v1")
"""


@needs_mlflow
def test_a_new_store_is_made_without_a_word_and_leaves_nothing_elsewhere(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in tracking._ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", _QUIET, str(home)],
        cwd=elsewhere,
        env={**environ, "PYTHONPATH": str(ROOT), "HOME": str(elsewhere)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in home.iterdir()) == ["mlartifacts", "mlflow.db", "models"]


def test_without_mlflow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(DependencyError, match=r"extra tracking .*pip install"):
        mirror_alias(f"sqlite:///{tmp_path / 'mlflow.db'}", "cxr", "champion", "v1")
    assert list(tmp_path.iterdir()) == []


def test_no_password_is_shown() -> None:
    assert show_uri("https://me:geheim@mlflow.example:5000/x") == "https://mlflow.example:5000/x"
    assert show_uri("sqlite:////home/me@work/mlflow.db") == "sqlite:////home/me@work/mlflow.db"
