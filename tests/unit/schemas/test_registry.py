"""Aliases move atomically, never point at nothing, and every move is written down."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas import registry
from schemas.errors import ChampionChangedError, ModelLoadError
from schemas.modelcard import ModelCard
from schemas.registry import (
    CHALLENGER_FILE,
    CHAMPION_FILE,
    HISTORY_FILE,
    challenger_folder,
    champion_folder,
    clear_challenger,
    find_model,
    list_models,
    promote,
    read_aliases,
    read_history,
    rollback,
    set_challenger,
)
from tests import savedmodels


def _add_model(models: Path, version: str, *, created_at: str = "2026-01-31T12:00:00+00:00") -> ModelCard:
    return savedmodels.add_model_to(models, version, created_at=created_at)


def test_promote_and_go_back(tmp_path: Path) -> None:
    old, new = _add_model(tmp_path, "v1"), _add_model(tmp_path, "v2")
    assert promote(tmp_path, "v2") == new
    assert champion_folder(tmp_path) == tmp_path / "v2"
    assert promote(tmp_path, "v1") == old
    assert champion_folder(tmp_path) == tmp_path / "v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHAMPION_FILE, HISTORY_FILE, "v1", "v2"]
    assert (tmp_path / CHAMPION_FILE).stat().st_mode & 0o777 == 0o644
    assert (tmp_path / CHAMPION_FILE).read_bytes() == b"v1\n"  # a stream that runs reads it so


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


# --- history and the way back -----------------------------------------------------------------------------------------


def _champions(models: Path, *versions: str) -> None:
    for version in versions:
        if not (models / version).exists():
            _add_model(models, version)
        promote(models, version)


def _damage(models: Path, version: str) -> None:
    (models / version / "weights").write_text("other", encoding="utf-8")


def test_every_move_is_written_down(tmp_path: Path) -> None:
    _champions(tmp_path, "v1")
    _add_model(tmp_path, "v2")
    set_challenger(tmp_path, "v2", why="looks good")
    promote(tmp_path, "v2", why="worse by 0.02", forced=True, command="xray retrain")
    rollback(tmp_path, why="too many alarms")
    lines = (tmp_path / HISTORY_FILE).read_text(encoding="utf-8").splitlines()
    wanted = [
        ("promote", "champion", None, "v1", "", False, "xray models promote"),
        ("challenge", "challenger", None, "v2", "looks good", False, "xray models challenge"),
        ("promote", "champion", "v1", "v2", "worse by 0.02", True, "xray retrain"),
        ("clear", "challenger", "v2", None, "it was promoted", False, "xray retrain"),
        ("rollback", "champion", "v2", "v1", "too many alarms", False, "xray models rollback"),
    ]
    names = ("action", "alias", "from", "to", "why", "forced", "command")
    assert [tuple(json.loads(line)[name] for name in names) for line in lines] == wanted
    assert [move.to_dict() for move in read_history(tmp_path)] == [json.loads(line) for line in lines]


def test_promoting_the_champion_moves_nothing(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v1")
    assert len(read_history(tmp_path)) == 1


def test_rollback_goes_further_back_each_time(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v2", "v3")
    done = rollback(tmp_path)
    assert (done.card.version, done.before, done.skipped) == ("v2", "v3", ())
    assert champion_folder(tmp_path) == tmp_path / "v2"
    assert rollback(tmp_path).card.version == "v1"
    with pytest.raises(ModelLoadError, match="no champion before v1"):
        rollback(tmp_path)
    assert champion_folder(tmp_path) == tmp_path / "v1"


def test_rollback_after_going_back_by_promotion(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v2", "v1")
    assert rollback(tmp_path).card.version == "v2"


def test_rollback_after_a_rollback_and_a_promotion(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v2")
    rollback(tmp_path)
    _champions(tmp_path, "v3")
    assert rollback(tmp_path).card.version == "v1"


def test_rollback_skips_what_cannot_be_served_and_says_which(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v2", "v3", "v4")
    _damage(tmp_path, "v3")
    (tmp_path / "v2").rename(tmp_path / ".gone")
    done = rollback(tmp_path)
    assert done.card.version == "v1"
    assert [version for version, _ in done.skipped] == ["v3", "v2"]
    assert "changed after training" in done.skipped[0][1]
    assert "no model at" in done.skipped[1][1]


def test_rollback_from_a_champion_that_is_gone(tmp_path: Path) -> None:
    _champions(tmp_path, "v1", "v2")
    (tmp_path / "v2").rename(tmp_path / ".gone")
    assert rollback(tmp_path).card.version == "v1"
    assert champion_folder(tmp_path) == tmp_path / "v1"


def test_where_nothing_can_be_gone_back_to_all_stays(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no model was promoted"):
        rollback(tmp_path / "nowhere")
    _champions(tmp_path, "v1", "v2")
    _damage(tmp_path, "v1")
    with pytest.raises(ModelLoadError, match=r"not v1: .* was changed after training"):
        rollback(tmp_path)
    assert champion_folder(tmp_path) == tmp_path / "v2"
    assert len(read_history(tmp_path)) == 2


def test_a_champion_from_before_there_was_a_history_can_be_gone_back_to(tmp_path: Path) -> None:
    _add_model(tmp_path, "v1")
    (tmp_path / CHAMPION_FILE).write_text("v1\n", encoding="utf-8")
    _champions(tmp_path, "v2")
    assert rollback(tmp_path).card.version == "v1"


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"{", b"[]", b"7", b'{"when": "now"}', b"\x00\x00"])
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    _champions(tmp_path, "v1")
    with (tmp_path / HISTORY_FILE).open("ab") as stream:
        stream.write(damage)  # and no end of line: as a crash leaves it
    _champions(tmp_path, "v2")
    with caplog.at_level(logging.WARNING):
        assert [move.after for move in read_history(tmp_path)] == ["v1", "v2"]
    assert "line 2 is damaged" in caplog.text
    assert rollback(tmp_path).card.version == "v1"


def test_a_crash_between_history_and_alias_misleads_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _champions(tmp_path, "v1", "v2")
    _add_model(tmp_path, "v3")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(tmp_path, "v3")
    assert champion_folder(tmp_path) == tmp_path / "v2"
    assert read_history(tmp_path)[-1].after == "v3"
    assert not list(tmp_path.glob(".champion-*"))
    assert rollback(tmp_path).card.version == "v1"


def test_history_is_on_disk_before_the_alias_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _champions(tmp_path, "v1")
    done: list[str] = []
    sync, move = registry.os.fsync, Path.replace
    monkeypatch.setattr(registry.os, "fsync", lambda fd: (done.append("sync"), sync(fd)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append(f"move {target.name}"), move(path, target)))
    _champions(tmp_path, "v2")
    assert done == ["sync", "sync", "move champion", "sync"]  # new alias, history; then its folder


def test_moves_at_the_same_time_are_one_after_the_other(tmp_path: Path) -> None:
    versions = [f"v{number}" for number in range(8)]
    for version in versions:
        _add_model(tmp_path, version)
    threads = [threading.Thread(target=promote, args=(tmp_path, version)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = read_history(tmp_path)
    assert sorted(str(move.after) for move in moves) == versions
    assert [move.before for move in moves] == [None, *[move.after for move in moves[:-1]]]
    assert champion_folder(tmp_path).name == moves[-1].after


@pytest.mark.parametrize("expected", [None, "v1"])
def test_a_champion_that_nobody_decided_against_is_not_replaced(tmp_path: Path, expected: str | None) -> None:
    _champions(tmp_path, "v1", "v2")
    _add_model(tmp_path, "v3")
    said = f"v3 was decided on while {expected or 'no model'} was in service, and now v2 is: nothing was changed"
    with pytest.raises(ChampionChangedError, match=said):
        promote(tmp_path, "v3", expected=expected)
    assert champion_folder(tmp_path).name == "v2"
    assert len(read_history(tmp_path)) == 2
    promote(tmp_path, "v2", expected=expected)  # it is what was wanted
    promote(tmp_path, "v3", expected="v2")
    assert champion_folder(tmp_path).name == "v3"


def test_of_two_that_were_decided_on_at_once_one_is_promoted(tmp_path: Path) -> None:
    _champions(tmp_path, "v0")
    versions = [f"v{number}" for number in range(1, 9)]
    for version in versions:
        _add_model(tmp_path, version)

    def try_to(version: str) -> bool:
        try:
            promote(tmp_path, version, expected="v0")
        except ChampionChangedError:
            return False
        return True

    with ThreadPoolExecutor(len(versions)) as pool:
        promoted = [version for version, done in zip(versions, pool.map(try_to, versions), strict=True) if done]
    assert promoted == [champion_folder(tmp_path).name]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    _champions(tmp_path, "v1")
    (tmp_path / HISTORY_FILE).unlink()
    (tmp_path / HISTORY_FILE).mkdir()
    _add_model(tmp_path, "v2")
    with pytest.raises(ModelLoadError, match="cannot change which model is served"):
        promote(tmp_path, "v2")
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_history(tmp_path)
    assert champion_folder(tmp_path) == tmp_path / "v1"


# --- the challenger ---------------------------------------------------------------------------------------------------


def test_a_challenger_comes_and_goes(tmp_path: Path) -> None:
    assert challenger_folder(tmp_path) is None
    assert clear_challenger(tmp_path) is None
    _champions(tmp_path, "v1")
    card = _add_model(tmp_path, "v2")
    assert set_challenger(tmp_path, "v2") == card
    assert challenger_folder(tmp_path) == tmp_path / "v2"
    assert read_aliases(tmp_path) == {CHAMPION_FILE: "v1", CHALLENGER_FILE: "v2"}
    assert (tmp_path / CHALLENGER_FILE).stat().st_mode & 0o777 == 0o644
    assert champion_folder(tmp_path) == tmp_path / "v1"
    assert clear_challenger(tmp_path) == "v2"
    assert challenger_folder(tmp_path) is None
    assert [move.action for move in read_history(tmp_path)] == ["promote", "challenge", "clear"]


def test_a_promoted_challenger_is_one_no_more_and_another_stays(tmp_path: Path) -> None:
    _champions(tmp_path, "v1")
    for version in ("v2", "v3"):
        _add_model(tmp_path, version)
    set_challenger(tmp_path, "v3")
    promote(tmp_path, "v2")
    assert challenger_folder(tmp_path) == tmp_path / "v3"
    promote(tmp_path, "v3")
    assert challenger_folder(tmp_path) is None


@pytest.mark.parametrize("version", ["v9", "../v1", "", "v1", "damaged"])
def test_what_cannot_be_the_challenger(tmp_path: Path, version: str) -> None:
    _champions(tmp_path, "v1")
    _add_model(tmp_path, "damaged")
    _damage(tmp_path, "damaged")
    with pytest.raises(ModelLoadError):
        set_challenger(tmp_path, version)
    assert challenger_folder(tmp_path) is None


def test_a_challenger_that_is_gone_is_an_error_and_can_be_forgotten(tmp_path: Path) -> None:
    _add_model(tmp_path, "v1")
    set_challenger(tmp_path, "v1")
    (tmp_path / "v1").rename(tmp_path / ".gone")
    with pytest.raises(ModelLoadError, match="challenge --none"):
        challenger_folder(tmp_path)
    clear_challenger(tmp_path)
    assert challenger_folder(tmp_path) is None


def test_a_model_is_found_by_version_and_by_alias(tmp_path: Path) -> None:
    _champions(tmp_path, "v1")
    assert find_model(tmp_path, "v1") == find_model(tmp_path, "champion") == tmp_path / "v1"
    with pytest.raises(ModelLoadError, match="no challenger"):
        find_model(tmp_path, "challenger")
    for name in ("v9", "../v1", ""):
        with pytest.raises(ModelLoadError):
            find_model(tmp_path, name)


def test_an_unreadable_alias_can_be_repaired_by_promoting(tmp_path: Path) -> None:
    _champions(tmp_path, "v1")
    (tmp_path / CHAMPION_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match="cannot read"):
        champion_folder(tmp_path)
    promote(tmp_path, "v1")
    assert champion_folder(tmp_path) == tmp_path / "v1"
