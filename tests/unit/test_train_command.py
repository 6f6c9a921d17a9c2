"""What `xray train` does with a model that it has made: whether it may serve, and how that is told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from schemas.modelcard import ModelCard
from schemas.registry import champion_folder, promote, read_aliases
from streaming.settings import StreamSettings, load_settings
from tests.shelf import add_model, evaluate
from training.probes import Verdict
from xray.train import Trained, promote_trained
from xray.views import _verdict_text

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
