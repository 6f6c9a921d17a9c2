"""The alias moves atomically and never points at nothing."""

import logging
from pathlib import Path

import pytest

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import CHAMPION_FILE, champion_folder, list_models, promote


def _add_model(models: Path, version: str, *, created_at: str = "2026-01-31T12:00:00+00:00") -> ModelCard:
    folder = models / version
    folder.mkdir(parents=True)
    (folder / "weights").write_text(version, encoding="utf-8")
    card = ModelCard(
        name="cxr",
        version=version,
        labels=("normal", "ill"),
        positive_label="ill",
        threshold=0.5,
        operating_point="not tuned",
        network="EfficientNetLite0",
        precision="fp32",
        rendering_version=1,
        sha256=hash_model_folder(folder),
        created_at=created_at,
        metrics={"accuracy": 0.5},
    )
    write_card(folder, card)
    return card


def test_promote_and_go_back(tmp_path: Path) -> None:
    old, new = _add_model(tmp_path, "v1"), _add_model(tmp_path, "v2")
    assert promote(tmp_path, "v2") == new
    assert champion_folder(tmp_path) == tmp_path / "v2"
    assert promote(tmp_path, "v1") == old
    assert champion_folder(tmp_path) == tmp_path / "v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHAMPION_FILE, "v1", "v2"]
    assert (tmp_path / CHAMPION_FILE).stat().st_mode & 0o777 == 0o644


def test_without_a_champion_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="xray train --data FOLDER"):
        champion_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("version", ["v9", "", ".", "..", "../v1", "/etc", "v1/stages"])
def test_what_is_no_model_is_not_promoted(tmp_path: Path, version: str) -> None:
    models = tmp_path / "models"
    _add_model(models, "v1")
    _add_model(tmp_path, "outside")
    promote(models, "v1")
    with pytest.raises(ModelLoadError):
        promote(models, version)
    for way_out in ("../outside", "v1/../../outside", str(tmp_path / "outside")):
        with pytest.raises(ModelLoadError, match="is no version"):
            promote(models, way_out)
    assert champion_folder(models) == models / "v1"


def test_a_changed_model_is_not_promoted(tmp_path: Path) -> None:
    _add_model(tmp_path, "v1")
    (tmp_path / "v1" / "weights").write_text("other", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="changed after training"):
        promote(tmp_path, "v1")
    assert list(tmp_path.glob("*champion*")) == []


def test_a_champion_that_is_gone_is_an_error(tmp_path: Path) -> None:
    _add_model(tmp_path, "v1")
    promote(tmp_path, "v1")
    (tmp_path / "v1").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="v1 is not in"):
        champion_folder(tmp_path)


def test_models_are_listed_oldest_first_and_damaged_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _add_model(tmp_path, "b", created_at="2026-01-01T00:00:00+00:00")
    _add_model(tmp_path, "a", created_at="2026-02-01T00:00:00+00:00")
    _add_model(tmp_path, "damaged")
    (tmp_path / "damaged" / "weights").unlink()
    _add_model(tmp_path, ".unfinished")
    promote(tmp_path, "a")
    with caplog.at_level(logging.WARNING):
        assert [card.version for card in list_models(tmp_path)] == ["b", "a"]
    assert "damaged" in caplog.text
    assert list_models(tmp_path / "nowhere") == []
