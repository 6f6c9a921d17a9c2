"""``xray models`` through its own door: what it prints, what it refuses, what it leaves behind."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from schemas import extras
from schemas.envelope import DISCLAIMER
from schemas.registry import champion_folder, promote, read_aliases, read_history, set_challenger
from sparkdl.image.limits import RENDERING_VERSION
from streaming.settings import load_settings
from tests.challenger import add_challenger, add_labels_said
from tests.savedmodels import add_model, add_report, evaluate
from tests.stored import add_champion, score_images
from training.evidence.probes import Verdict
from training.lifecycle import promotion, tracking
from xray import console, modelmoves
from xray.__main__ import run

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the tracking extra (MLflow)")

WORSE = (-0.05, -0.09, -0.01)


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Models = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(console.out, "width", 200)  # rich reads COLUMNS once, when the console is made
    monkeypatch.setattr(console.err, "width", 200)
    for name, value in tracking._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def models(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Models:
    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["xray", "models", *words])
        code = run()
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return call


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)


without_mlflow = pytest.mark.usefixtures("no_mlflow")


@pytest.fixture
def registry(home: Path) -> Path:
    """v1 serves; v2 is worse, v3 is not, v4 was compared with nothing."""
    add_report(home, evaluate(add_model(home, "v1", created_at="2026-01-01T00:00:00+00:00")))
    promote(home / "models", "v1")
    add_report(
        home, evaluate(add_model(home, "v2", created_at="2026-01-02T00:00:00+00:00"), served="v1", difference=WORSE)
    )
    card = add_model(home, "v3", created_at="2026-01-03T00:00:00+00:00")
    add_report(home, evaluate(card, served="v1", difference=(0.01, -0.01, 0.03), confounded=True))
    add_model(home, "v4", created_at="2026-01-04T00:00:00+00:00")
    return home


def test_names_are_those_of_the_report() -> None:
    report = pytest.importorskip("training.report", reason="needs the train extra (Jinja)")
    assert promotion.REPORT_FILE == report.JSON_NAME
    assert tracking.REPORT_NAMES == (report.PAGE_NAME, report.MARKDOWN_NAME, report.JSON_NAME)


# --- list, show -------------------------------------------------------------------------------------------------------


def test_list_shows_verdict_figure_and_alias(registry: Path, models: Models) -> None:
    set_challenger(registry / "models", "v3")
    done = models("list")
    assert done.code == 0
    rows = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("│ v") and "created" not in line}
    assert list(rows) == ["v1", "v2", "v3", "v4"]
    assert "2026-01-01 00:00" in rows["v1"]
    assert "AUROC 0.970 (0.940 to 0.990)" in rows["v1"]
    assert "champion" in rows["v1"]
    assert "champion" not in rows["v2"]
    assert "confounded" in rows["v3"]
    assert "challenger" in rows["v3"]
    assert "accuracy 0.500 " in rows["v4"]


def test_list_as_json(registry: Path, models: Models) -> None:
    rows = models("list", "--json").json
    assert [(row["version"], row["champion"], row["aliases"], row["verdict"]) for row in rows] == [
        ("v1", True, ["champion"], "ok"),
        ("v2", False, [], "ok"),
        ("v3", False, [], "confounded"),
        ("v4", False, [], None),
    ]
    assert rows[0]["figures"]["auroc"]["low"] == 0.94
    assert rows[3]["accuracy"] == 0.5


def test_list_without_models_says_how_to_get_one(models: Models) -> None:
    assert "xray train --data" in models("list").out
    assert models("list", "--json").json == []


@without_mlflow
def test_show_tells_everything_of_a_version(registry: Path, models: Models) -> None:
    models("promote", "v3")
    done = models("show", "champion")
    assert done.code == 0
    for part in (
        "cxr v3",
        "positive class",
        "hash check",
        "ok",
        str(registry / "models" / "v3"),
        str(registry / "reports" / "v3" / "report.html"),
        "Verdict: confounded",
        "a thumbnail of 8x8 pixels tells the label [too] well",
        "LogisticRegression(maxIter=10)",
        "paper, seed 3",
        "0.970 (0.940 to 0.990)",
        "auroc, /data/elsewhere (2)",
        "+0.010 (-0.010 to +0.030)",
        "xray models promote",
        DISCLAIMER,
    ):
        assert part in done.out, part
    found = models("show", "v3", "--json").json
    assert found["hash_ok"] is True
    assert found["aliases"] == ["champion"]
    assert found["figures"]["auprc"]["value"] is None
    assert found["in_service"]["auroc"]["difference"]["high"] == 0.03
    assert [(move["from"], move["to"]) for move in found["history"]] == [("v1", "v3")]


def test_show_without_a_report(registry: Path, models: Models) -> None:
    done = models("show", "v4")
    assert done.code == 0
    assert "No report" in done.out
    assert models("show", "v4", "--json").json["figures"] is None


@pytest.mark.parametrize("card", [None, "{", "[]"])
def test_show_of_a_changed_model_says_so(registry: Path, models: Models, card: str | None) -> None:
    (registry / "models" / "v1" / "weights").write_text("other", encoding="utf-8")
    if card is not None:
        (registry / "models" / "v1" / "xray_model.json").write_text(card, encoding="utf-8")
    done = models("show", "v1")
    assert done.code == 1
    assert "not ok" in done.out
    found = models("show", "v1", "--json")
    assert (found.code, found.json["hash_ok"]) == (1, False)


@pytest.mark.parametrize("name", ["v9", "challenger", "../v1"])
def test_show_of_what_is_not_there(registry: Path, models: Models, name: str) -> None:
    done = models("show", name)
    assert (done.code, done.out) == (1, "")
    assert "error:" in done.err


# --- promote ----------------------------------------------------------------------------------------------------------


@without_mlflow
def test_a_worse_model_is_refused_with_its_figures(registry: Path, models: Models) -> None:
    done = models("promote", "v2")
    assert done.code == 1
    for part in ("refused:", "AUROC 0.970", "1.020", "-0.050", "-0.090 to -0.010", "48", "24 patients", "--force"):
        assert part in done.err, part
    assert read_aliases(registry / "models") == {"champion": "v1"}
    assert len(read_history(registry / "models")) == 1
    found = models("promote", "v2", "--json")
    assert found.code == 1
    assert (found.json["promoted"], found.json["compared"]) == (False, True)


@without_mlflow
def test_by_force_it_is_promoted_and_the_history_says_so(registry: Path, models: Models) -> None:
    done = models("promote", "v2", "--force", "--why", "the other one is broken")
    assert done.code == 0
    assert "by force" in done.out
    move = read_history(registry / "models")[-1]
    assert (move.after, move.forced) == ("v2", True)
    assert move.why.startswith("the other one is broken; ")
    assert "-0.050" in move.why


@without_mlflow
def test_force_that_was_not_needed_is_not_written_down(registry: Path, models: Models) -> None:
    assert models("promote", "v3", "--force").code == 0
    assert read_history(registry / "models")[-1].forced is False


@without_mlflow
def test_a_confounded_model_is_promoted_with_a_warning(registry: Path, models: Models) -> None:
    done = models("promote", "v3")
    assert done.code == 0
    assert "Not shown to be worse than the model in service: AUROC 0.970" in done.out
    assert "warning: its figures are confounded" in done.err
    assert champion_folder(registry / "models").name == "v3"


@pytest.fixture
def retrained(registry: Path) -> Path:
    """v5 and v6 were not probed for shortcuts; v6 comes after a confounded model."""
    for version, reasons in {"v5": (), "v6": ("the model in service was confounded: a [thumbnail] tells",)}.items():
        evaluation = evaluate(add_model(registry, version), served="v1", difference=(0.01, -0.01, 0.03))
        add_report(registry, replace(evaluation, verdict=Verdict("unknown", reasons, ("no image was read",))))
    return registry


@without_mlflow
def test_a_model_that_nobody_probed_is_not_called_ok(retrained: Path, models: Models) -> None:
    rows = {line.split()[1]: line for line in models("list").out.splitlines() if line.startswith("│ v")}
    assert " unknown " in rows["v5"]
    assert " unknown, after a confounded one " in rows["v6"]
    verdicts = {row["version"]: row["verdict"] for row in models("list", "--json").json}
    assert (verdicts["v5"], verdicts["v6"]) == ("unknown", "unknown")
    shown = models("show", "v6").out
    assert "Verdict: unknown, after a confounded one" in shown
    assert "the model in service was confounded: a [thumbnail] tells." in shown
    assert models("show", "v6", "--json").json["verdict"] == "unknown"
    assert "warning: shortcuts were not looked for.\n" in models("promote", "v5").err
    warned = models("promote", "v6").err
    assert "warning: shortcuts were not looked for; the model in service was confounded: a [thumbnail] tells." in warned


@without_mlflow
def test_a_model_that_came_into_service_while_this_one_was_looked_at_stays(
    registry: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(*arguments: Any, **options: Any) -> promotion.PromotionDecision:
        promote(registry / "models", "v4")
        return promotion.decide(*arguments, **options)

    monkeypatch.setattr(modelmoves, "decide", decide)
    done = models("promote", "v3")
    assert (done.code, done.out) == (1, "")
    assert "v3 was decided on while v1 was in service, and now v4 is" in " ".join(done.err.split())
    assert read_aliases(registry / "models") == {"champion": "v4"}


@without_mlflow
def test_what_was_not_compared_is_promoted_with_a_remark(registry: Path, models: Models) -> None:
    done = models("promote", "v4")
    assert done.code == 0
    assert "Not compared with the model in service, v1" in done.out
    # v2 was compared with v1, which serves no more.
    done = models("promote", "v2")
    assert done.code == 0
    assert "Not compared with the model in service, v4: the report compares it with v1" in done.out


@without_mlflow
def test_the_first_model_has_nothing_to_be_compared_with(home: Path, models: Models) -> None:
    add_model(home, "v1")
    done = models("promote", "v1")
    assert done.code == 0
    assert "no model in service to compare it with" in done.out


@without_mlflow
def test_a_damaged_report_is_told_and_counts_as_none(registry: Path, models: Models) -> None:
    (registry / "reports" / "v2" / "report.json").write_text("{", encoding="utf-8")
    done = models("promote", "v2")
    assert done.code == 0
    assert "cannot read the report" in done.err
    assert models("list").code == 0


@without_mlflow
def test_promoting_the_champion_says_so(registry: Path, models: Models) -> None:
    done = models("promote", "v1")
    assert done.code == 0
    assert "is the champion already" in done.out
    assert len(read_history(registry / "models")) == 1


@without_mlflow
def test_a_changed_model_is_not_promoted(registry: Path, models: Models) -> None:
    (registry / "models" / "v3" / "weights").write_text("other", encoding="utf-8")
    done = models("promote", "v3", "--force")
    assert done.code == 1
    assert "changed after training" in done.err
    assert champion_folder(registry / "models").name == "v1"


# --- rollback, challenge ----------------------------------------------------------------------------------------------


@without_mlflow
def test_rollback(registry: Path, models: Models) -> None:
    for version in ("v3", "v4"):
        models("promote", version)
    (registry / "models" / "v3" / "weights").unlink()
    done = models("rollback", "--why", "too many alarms")
    assert done.code == 0
    assert "Back from v4 to cxr v1" in done.out
    assert "skipped v3: " in done.err
    assert read_history(registry / "models")[-1].why == "too many alarms"
    done = models("rollback", "--json")
    assert (done.code, done.out) == (1, "")
    assert "no champion before v1" in done.err


@without_mlflow
def test_rollback_as_json(registry: Path, models: Models) -> None:
    models("promote", "v4")
    assert models("rollback", "--json").json == {"version": "v1", "before": "v4", "skipped": {}, "mirrored": False}


@without_mlflow
def test_challenge_and_promote_the_challenger(registry: Path, models: Models) -> None:
    assert "cxr v3 is the challenger" in models("challenge", "v3").out
    assert models("show", "challenger", "--json").json["version"] == "v3"
    assert models("promote", "challenger").code == 0
    assert read_aliases(registry / "models") == {"champion": "v3"}
    assert models("challenge", "v3").code == 1
    assert models("challenge", "v4", "--json").json == {"version": "v4", "before": None, "mirrored": False}
    assert "v4 is the challenger no more" in models("challenge", "--none").out
    assert "There was no challenger" in models("challenge", "--none").out
    assert read_aliases(registry / "models") == {"champion": "v3"}


@pytest.mark.parametrize("words", [(), ("v1", "--none")])
def test_challenge_wants_one_of_two(registry: Path, models: Models, words: tuple[str, ...]) -> None:
    assert models("challenge", *words).code == 2


# --- shadow -----------------------------------------------------------------------------------------------------------


# --- models of an old rendering ---------------------------------------------------------------------------------------


OLD = "It was trained on images of rendering version 1, and this is version 2."
NEXT_STEP = "train a new one with 'xray train --data FOLDER'"


@pytest.fixture
def upgraded(home: Path) -> Path:
    """v1, of the release before, serves; so is v0, which served before it; v2 is of this one."""
    for version in ("v0", "v1"):
        add_model(home, version, rendering=1)
        promote(home / "models", version)
    add_report(home, evaluate(add_model(home, "v2"), served="v1"))
    return home


@without_mlflow
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_old_model_is_not_promoted(upgraded: Path, models: Models, force: tuple[str, ...]) -> None:
    done = models("promote", "v0", *force)
    assert done.code == 1
    assert "refused:" in done.err
    for part in ("rendering version 1", "'xray train --data FOLDER'", "'xray models rollback'"):
        assert part in done.err
    assert "--force;" not in done.err  # it would not help
    answer = models("promote", "v0", *force, "--json")
    assert (answer.code, answer.json["promoted"], answer.json["forced"]) == (1, False, False)
    assert read_aliases(upgraded / "models") == {"champion": "v1"}
    assert [move.after for move in read_history(upgraded / "models")] == ["v0", "v1"]


@without_mlflow
def test_an_old_champion_that_is_promoted_again_stays_with_a_warning(upgraded: Path, models: Models) -> None:
    done = models("promote", "v1")
    assert done.code == 0
    assert "is the champion already" in done.out
    assert OLD in done.err


@without_mlflow
def test_a_rollback_to_an_old_model_is_allowed_with_a_warning(upgraded: Path, models: Models) -> None:
    assert models("promote", "v2").code == 0
    for version in ("v1", "v0"):
        done = models("rollback")
        assert (done.code, read_aliases(upgraded / "models")) == (0, {"champion": version})
        assert f"Back from v2 to cxr {version}" in done.out or f"Back from v1 to cxr {version}" in done.out
        assert OLD in done.err
        assert NEXT_STEP in done.err
    assert OLD not in models("promote", "v2").err


@without_mlflow
@pytest.mark.parametrize("version", [-1, 0, RENDERING_VERSION + 1])
def test_a_rollback_leaves_out_what_no_stream_serves(home: Path, models: Models, version: int) -> None:
    for name, rendering in (("good", 1), ("unknown", version), ("last", RENDERING_VERSION)):
        add_model(home, name, rendering=rendering)
        promote(home / "models", name)
    done = models("rollback")
    assert (done.code, read_aliases(home / "models")) == (0, {"champion": "good"})
    assert f"skipped unknown: It was trained on images of rendering version {version}" in done.err


@without_mlflow
def test_an_old_model_is_no_challenger(upgraded: Path, models: Models) -> None:
    done = models("challenge", "v0")
    assert done.code == 1
    assert "v0 cannot be the next champion" in done.err
    assert NEXT_STEP in done.err
    assert read_aliases(upgraded / "models") == {"champion": "v1"}
    assert models("challenge", "v2").code == 0


def test_list_and_show_tell_of_an_old_model(upgraded: Path, models: Models) -> None:
    done = models("list")
    rows = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("│ v") and "created" not in line}
    assert ["old rendering 1" in rows[name] for name in ("v0", "v1", "v2")] == [True, True, False]
    assert done.err.count(OLD) == 1  # of the champion alone
    assert [row["rendering_version"] for row in models("list", "--json").json] == [1, 1, 2]
    assert OLD in " ".join(models("show", "v1").out.replace("│", " ").split())
    assert OLD not in " ".join(models("show", "v2").out.replace("│", " ").split())


def test_shadow_shows_the_sentence_and_the_tables_and_writes_them_down(home: Path, models: Models) -> None:
    card = add_champion(home)
    score_images(home, card, 400, days=10)
    add_labels_said(home)
    rival = add_challenger(home, card, coefficients=(0.5, 1.0, 0.0))
    done = models("shadow")
    assert done.code == 0
    sentence, *rest = done.out.splitlines()
    assert sentence.startswith(f"{rival.version} would have given the same answer as {card.version} on ")
    assert " of 280 images of 2026-01-08 to 2026-01-14, " in sentence
    for part in ("All images", "champion \\ challenger", "By source", "ward 1", "Largest disagreements", DISCLAIMER):
        assert any(part in line for line in rest), part
    folder = home / "reports" / rival.version
    assert sorted(path.name for path in folder.iterdir()) == ["shadow.json", "shadow.md"]
    assert sentence in (folder / "shadow.md").read_text(encoding="utf-8")
    found = models("shadow", "--days", "3", "--json")
    assert (found.code, found.json["n_images"], found.json["disclaimer"]) == (0, 120, DISCLAIMER)
    stored = json.loads((folder / "shadow.json").read_text(encoding="utf-8"))
    assert found.json == {**stored, "folder": str(folder)}


def test_shadow_of_too_few_images_says_so_and_succeeds(home: Path, models: Models) -> None:
    card = add_champion(home)
    add_challenger(home, card)
    score_images(home, card, 40)
    add_labels_said(home)
    done = models("shadow")
    assert done.code == 0
    assert done.out.startswith("40 images that both models judge, fewer than 100: nothing is said of so few.\n")


def test_shadow_without_the_extra_says_what_to_install(
    home: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "sklearn" else object())
    add_challenger(home, add_champion(home))
    done = models("shadow")
    assert (done.code, done.out) == (1, "")
    assert "the comparison needs sklearn, which the extra train brings: pip install" in " ".join(done.err.split())


def test_shadow_says_in_a_line_what_is_missing(home: Path, models: Models) -> None:
    def refused() -> str:
        done = models("shadow")
        assert (done.code, done.out) == (1, "")
        lines = [line for line in done.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        return " ".join(done.err.split())

    card = add_champion(home)
    assert "there is no challenger. 'xray models challenge VERSION' sets one." in refused()
    add_challenger(home, card, "other", pooling="none")
    assert "other has another featurizer than 20260101T000000Z" in refused()
    add_challenger(home, card)
    assert "there is no archive" in refused()
    assert not (home / "reports").exists()


# --- MLflow -----------------------------------------------------------------------------------------------------------


@without_mlflow
def test_without_mlflow_promotion_works_and_one_line_says_what_is_missing(registry: Path, models: Models) -> None:
    done = models("promote", "v4")
    assert done.code == 0
    [line] = [line for line in done.err.splitlines() if "MLflow" in line and "telling" not in line]
    assert "not mirrored" in line
    assert "xray models sync" in line
    assert models("sync").code == 1


def test_mlflow_is_left_alone_where_nobody_wants_to_wait(registry: Path, models: Models) -> None:
    for words in (("challenge", "v4"), ("promote", "v4"), ("rollback",)):
        done = models(*words, "--no-mirror", "--json")
        assert (done.code, done.json["mirrored"], done.err) == (0, False, "")
    assert not (registry / "mlflow.db").exists()


@needs_mlflow
def test_a_server_that_is_away_stops_no_promotion(
    registry: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XRAY_TRACKING__URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = models("promote", "v4", "--json")
    assert (done.code, done.json["promoted"], done.json["mirrored"]) == (0, True, False)
    assert "xray models sync" in done.err
    assert champion_folder(registry / "models").name == "v4"


@needs_mlflow
@pytest.mark.slow
def test_mlflow_follows(registry: Path, models: Models, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415  part of the tracking extra only

    uri = load_settings().tracking_uri
    assert uri == f"sqlite:///{registry / 'mlflow.db'}"
    with caplog.at_level(logging.WARNING):
        assert models("promote", "v3", "--json").json["mirrored"] is True
    assert caplog.text == ""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def aliases() -> dict[str, str]:
        found = client.get_registered_model("cxr").aliases
        return {alias: client.get_model_version("cxr", number).tags["xray_version"] for alias, number in found.items()}

    assert aliases() == {"champion": "v3"}
    models("challenge", "v4")
    assert aliases() == {"champion": "v3", "challenger": "v4"}
    models("rollback")
    assert aliases() == {"champion": "v1", "challenger": "v4"}
    models("challenge", "--none")
    assert aliases() == {"champion": "v1"}
    # What was done while MLflow was away: v2 was never registered, and the alias moved.
    promote(registry / "models", "v2")
    done = models("sync", "--json")
    assert done.code == 0
    assert done.json["aliases"] == {"champion": "v2"}
    assert aliases() == {"champion": "v2"}
    registered = client.search_model_versions("name = 'cxr'")
    assert sorted(version.tags["xray_version"] for version in registered) == ["v1", "v2", "v3", "v4"]
    [run_id] = [version.run_id for version in registered if version.tags["xray_version"] == "v2"]
    assert client.get_run(run_id).data.metrics["auroc_low"] == 0.94
    assert client.get_run(run_id).data.metrics["against_in_service/auroc_high"] == -0.01
    assert "4 models are in MLflow" in models("sync").out
    assert len(client.search_model_versions("name = 'cxr'")) == 4
