"""What the page is answered where it promotes a model or goes back."""

from pathlib import Path

import pytest

from schemas.errors import ModelLoadError
from schemas.registry import promote, read_aliases, read_history
from streaming.settings import StreamSettings
from tests.savedmodels import add_model, add_report, evaluate
from xray.modelmoves import PageMoves


@pytest.fixture
def moves(tmp_path: Path) -> PageMoves:
    """v1 serves; v2 is worse, v3 is not, and confounded."""
    add_report(tmp_path, evaluate(add_model(tmp_path, "v1")))
    promote(tmp_path / "models", "v1")
    add_report(tmp_path, evaluate(add_model(tmp_path, "v2"), served="v1", difference=(-0.05, -0.09, -0.01)))
    card = add_model(tmp_path, "v3")
    add_report(tmp_path, evaluate(card, served="v1", difference=(0.01, -0.01, 0.03), confounded=True))
    return PageMoves(StreamSettings(home=tmp_path))


def test_a_worse_model_is_refused_with_its_figures(moves: PageMoves, tmp_path: Path) -> None:
    answer = moves.promote("v2", why="")
    assert not answer.done
    assert answer.text.startswith("refused: ")
    assert "difference -0.050" in answer.text
    assert read_aliases(tmp_path / "models") == {"champion": "v1"}


def test_a_promotion_has_what_the_comparison_says_and_is_in_the_history(moves: PageMoves, tmp_path: Path) -> None:
    answer = moves.promote("v3", why="asked for on the page by op-1")
    assert answer.done
    for part in ("Promoted cxr v3.", "Not shown to be worse", "Warning: its figures are confounded"):
        assert part in answer.text
    move = read_history(tmp_path / "models")[-1]
    assert (move.after, move.command, move.forced) == ("v3", "xray page", False)
    assert move.why.startswith("asked for on the page by op-1; ")
    assert moves.promote("v3", why="").text.startswith("cxr v3 is the champion already.")
    back = moves.roll_back(why="too many alarms")
    assert back.done
    assert "Back from v3 to cxr v1." in back.text
    with pytest.raises(ModelLoadError, match="no champion before v1"):
        moves.roll_back(why="")
