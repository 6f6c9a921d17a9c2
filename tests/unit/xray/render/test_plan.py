"""What decides how a file is shown: settings, and the model that would see it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelLoadError
from schemas.modelcard import hash_model_folder, read_card, write_card
from schemas.registry import set_challenger
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from sparkdl.network.base import MANIFEST_FILE
from streaming.settings import KafkaSettings, ScoreSettings, StreamSettings, variable_names
from tests.stored import add_champion
from xray.render.plan import USUAL_SIZE, make_plan
from xray.render.rendering import SETTINGS, find_limits

MODEL_SIZE = (4, 6)  # of the first release's model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def settings_of(home: Path, **sections: Any) -> StreamSettings:
    return StreamSettings(home=home, **sections)


def test_without_a_model_it_is_the_usual_size(home: Path) -> None:
    plan = make_plan(settings_of(home))
    assert (plan.size, plan.size_from) == (USUAL_SIZE, "default")
    assert plan.rendering_version == RENDERING_VERSION


def test_limits_are_the_streams(home: Path) -> None:
    score, kafka = ScoreSettings(max_payload_bytes=4096, max_pixels=5000), KafkaSettings(max_message_bytes=2_000_000)
    plan = make_plan(settings_of(home, score=score, kafka=kafka), hide_names=True)
    assert plan.limits == DecodeLimits(4096, 5000)
    assert (plan.max_message_bytes, plan.hide_names) == (2_000_000, True)


def test_limits_are_named_by_their_variables(home: Path) -> None:
    limits = find_limits(10**12, 10**12, make_plan(settings_of(home)))
    assert len(limits) == 3
    assert {limit.setting for limit in limits} <= set(SETTINGS.values()) <= set(variable_names())


def test_the_model_in_service_decides_where_nobody_says_otherwise(home: Path, tmp_path: Path) -> None:
    card = add_champion(home)
    plan = make_plan(settings_of(home))
    assert (plan.size, plan.size_from) == (MODEL_SIZE, f"model cxr {card.version}")
    assert make_plan(settings_of(home), size=(10, 20)).size == (10, 20)
    served = tmp_path / "elsewhere"
    shutil.copytree(home / "models" / card.version, served)
    write_card(served, replace(read_card(served), version="v2"))
    assert make_plan(settings_of(home, model=served)).size_from == "model cxr v2"


@pytest.mark.parametrize("name", ["20260101T000000Z", "champion", "challenger", "{folder}"])
def test_a_model_is_named_by_version_alias_or_folder(home: Path, name: str) -> None:
    card = add_champion(home)
    folder = home / "models" / card.version
    other = home / "models" / "v2"
    shutil.copytree(folder, other)
    write_card(other, replace(card, version="v2"))
    set_challenger(home / "models", "v2")
    plan = make_plan(settings_of(home), model=name.format(folder=folder))
    assert plan.size == MODEL_SIZE
    assert plan.size_from == f"model cxr {'v2' if name == 'challenger' else card.version}"


@pytest.mark.parametrize("name", ["v9", "challenger", "../v1", "{home}"])
def test_a_model_that_is_not_there_is_refused(home: Path, name: str) -> None:
    add_champion(home)
    with pytest.raises(ModelLoadError):
        make_plan(settings_of(home), model=name.format(home=home))


def test_a_changed_model_is_refused(home: Path) -> None:
    card = add_champion(home)
    (home / "models" / card.version / "note").touch()
    with pytest.raises(ModelLoadError, match="changed after training"):
        make_plan(settings_of(home))


def test_a_model_that_the_stream_does_not_serve_is_refused_with_what_to_do(home: Path) -> None:
    card = add_champion(home)
    write_card(home / "models" / card.version, replace(card, rendering_version=RENDERING_VERSION + 1))
    with pytest.raises(ModelLoadError, match="--size HxW"):
        make_plan(settings_of(home))
    assert make_plan(settings_of(home), size=(10, 20)).size == (10, 20)


@pytest.mark.parametrize("damage", ["no manifest", "no stages", "other input"])
def test_a_model_without_an_image_network_is_refused(home: Path, damage: str) -> None:
    card = add_champion(home)
    folder = home / "models" / card.version
    [manifest] = folder.glob(f"stages/0_*/network/{MANIFEST_FILE}")
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "no stages":
        shutil.rmtree(folder / "stages")
    else:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps({**content, "input_size": []}), encoding="utf-8")
    write_card(folder, replace(card, sha256=hash_model_folder(folder)))
    with pytest.raises(ModelLoadError):
        make_plan(settings_of(home))
