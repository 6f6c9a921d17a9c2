"""What `xray train` does with a model that it has made: whether it may serve, and how that is told."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from schemas.errors import DatasetError
from schemas.modelcard import ModelCard
from schemas.registry import champion_folder, promote, read_aliases
from streaming.settings import StreamSettings, load_settings
from tests.savedmodels import add_model, evaluate
from training.data.dataset import Dataset
from training.evidence.probes import Verdict
from xray import console
from xray.__main__ import run
from xray.train import Trained, promote_trained
from xray.views import _verdict_text, show_training

BETTER = (0.02, 0.01, 0.03)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamSettings:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    return load_settings()


def trained(card: ModelCard, *, champion: str | None, compared: bool = True) -> Trained:
    result: Any = SimpleNamespace(card=card)
    served = f"{champion} (trained on 3 of these 48 images)" if champion and compared else ""
    return Trained(result, evaluate(card, served=served, difference=BETTER), Path("report.html"), champion)


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("champion", [None, "v0"])
def test_a_model_replaces_what_it_was_judged_against(
    tmp_path: Path, settings: StreamSettings, champion: str | None, compared: bool
) -> None:
    if champion:
        add_model(tmp_path, champion)
        promote(tmp_path / "models", champion)
    assert promote_trained(settings, trained(add_model(tmp_path, "new"), champion=champion, compared=compared)).allowed
    assert champion_folder(tmp_path / "models").name == "new"


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("champion", [None, "v0"])
def test_a_model_that_came_into_service_meanwhile_stays(
    tmp_path: Path, settings: StreamSettings, champion: str | None, compared: bool
) -> None:
    for version in ("v0", "other"):
        add_model(tmp_path, version)
    if champion:
        promote(tmp_path / "models", champion)
    made = trained(add_model(tmp_path, "new"), champion=champion, compared=compared)
    promote(tmp_path / "models", "other")  # by another run, while this one judged
    decision = promote_trained(settings, made)
    assert not decision.allowed
    assert f"new was decided on while {champion or 'no model'} was in service, and now other is" in decision.why
    assert read_aliases(tmp_path / "models") == {"champion": "other"}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("ok", "No shortcut found by the probes"),
        ("unknown", "Not judged: no shortcut probe could be measured"),
        ("confounded", "Confounded: the figures below are no evidence"),
    ],
)
def test_the_verdict_is_said_in_words(verdict: Any, said: str) -> None:
    assert Text.from_markup(_verdict_text(Verdict(verdict, ()))).plain.startswith(said)


# --- the positive class: health taken for the finding would have ill people missed ------------------------------------


class _Stopped(DatasetError):
    """Ends a run where training would begin."""


@pytest.fixture
def train(
    tmp_path: Path, settings: StreamSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run the command on a file of each class up to the moment at which work begins."""
    monkeypatch.setattr(console.err, "width", 400)
    begun: list[tuple[Dataset, str]] = []

    def train_model(_: object, dataset: Dataset, **__: object) -> None:
        begun.append((dataset, capsys.readouterr().err))
        msg = "stopped here"
        raise _Stopped(msg)

    monkeypatch.setattr("xray.train.train_model", train_model)

    def run_on(labels: tuple[str, ...], *options: str) -> SimpleNamespace:
        begun.clear()
        for label in labels:
            (tmp_path / "data" / label).mkdir(parents=True)
            (tmp_path / "data" / label / f"{label}.png").write_bytes(b"no image")
        monkeypatch.setattr("sys.argv", ["xray", "train", "--data", str(tmp_path / "data"), *options])
        code = run()
        said = capsys.readouterr()
        dataset, before = begun[0] if begun else (None, "")
        return SimpleNamespace(code=code, dataset=dataset, before=before, out=said.out, err=said.err)

    return run_on


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_positive_class_is_said_before_anything_else(train: Any, options: tuple[str, ...]) -> None:
    done = train(("No Finding", "Effusion"), *options)
    assert done.before == "positive: Effusion ('No Finding' is the negative class)\n"
    assert done.dataset.labels == ("No Finding", "Effusion")
    assert done.out == ""


def test_the_positive_class_can_be_given(train: Any) -> None:
    done = train(("a", "b", "c"), "--positive", "b", "--classes", "a,b")
    assert done.before == "positive: b (given with --positive)\n"
    assert done.dataset.labels == ("a", "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "cannot tell which class of"),
        (("--json",), "name it with --positive LABEL"),
        (("--positive", "c"), "--positive is 'c', which is no class of"),
    ],
)
def test_without_a_positive_class_nothing_is_begun(train: Any, options: tuple[str, ...], said: str) -> None:
    done = train(("a", "b"), *options)
    assert (done.code, done.dataset, done.out) == (1, None, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: ")
    assert said in done.err
    assert "found 'a' and 'b'" in done.err


def test_help_says_how_the_positive_class_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["xray", "train", "--help"])
    assert run() == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "given with --positive or in the manifest's column positive, or it is the one beside classes like" in text
    assert "Where nothing tells it, nothing is trained." in text


def test_a_name_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say_positive("[bold]x[/]\x1b[2J\ny", "given")
    assert capsys.readouterr().err == "positive: [bold]x[/]\ufffd[2J\ufffdy (given)\n"


def test_a_program_reads_which_class_is_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trained(add_model(tmp_path, "new"), champion=None)
    vars(made.result).update(
        folder=tmp_path / "new", accuracy_interval=(0.8, 0.95), n_train={}, n_test={}, failed=(), seconds=1.0
    )
    show_training(made, None, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["positive_label"], answer["positive_known_by"]) == ("ill", "'normal' is the negative class")
