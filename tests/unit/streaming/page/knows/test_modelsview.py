"""Models as the page shows them, and how right they were in service."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from schemas.deltatable import arrow_schema
from schemas.documents import load_tables
from schemas.labels import LABELS_TABLE
from schemas.modelcard import CARD_FILE, AbstainBand, write_card
from schemas.registry import promote, set_challenger
from streaming.page.knows.bands import Bands
from streaming.page.knows.modelsview import ModelsView
from streaming.page.knows.servicefigures import LabelledService, share
from streaming.settings import StreamSettings
from tests.savedmodels import add_model, add_report, evaluate
from training.figures.bootstrap import wilson_interval


@pytest.fixture
def view(tmp_path: Path) -> ModelsView:
    """v1 serves, v2 challenges, v3 is damaged."""
    add_report(tmp_path, evaluate(add_model(tmp_path, "v1", created_at="2026-01-01T00:00:00+00:00")))
    card = add_model(tmp_path, "v2", created_at="2026-01-02T00:00:00+00:00")
    add_report(tmp_path, evaluate(card, served="v1", confounded=True))
    add_model(tmp_path, "v3")
    (tmp_path / "models" / "v3" / "weights").write_text("other", encoding="utf-8")
    promote(tmp_path / "models", "v1", why="the first")
    set_challenger(tmp_path / "models", "v2")
    return ModelsView(StreamSettings(home=tmp_path))


def test_models_have_their_aliases_figures_and_verdicts(view: ModelsView) -> None:
    assert [one.version for one in view.list_models()] == ["v2", "v1", "v3"]
    champion, challenger = view.find_champion(), view.find_challenger()
    assert champion is not None
    assert challenger is not None
    assert (champion.version, champion.aliases, champion.verdict) == ("v1", ("champion",), "ok")
    assert (challenger.verdict, challenger.compared_with) == ("confounded", "v1")
    assert challenger.reasons == ("a thumbnail of 8x8 pixels tells the label [too] well",)
    assert challenger.headline is not None
    assert (challenger.headline.name, challenger.headline.value, challenger.headline.low) == ("auroc", 0.97, 0.94)
    assert (challenger.n_images, challenger.n_patients) == (48, 24)
    assert [(one.action, one.after) for one in view.list_history()] == [("challenge", "v2"), ("promote", "v1")]


def test_a_damaged_model_is_told_and_one_that_was_mended_is_seen(view: ModelsView, tmp_path: Path) -> None:
    damaged = view.list_models()[-1]
    assert damaged.card is None
    assert "changed after training" in damaged.damage
    folder = tmp_path / "models" / "v3"
    (folder / "weights").write_text("v3", encoding="utf-8")
    os.utime(folder / CARD_FILE)
    assert view.list_models()[0].damage == ""
    (folder / CARD_FILE).unlink()
    assert "no card" in view.list_models()[-1].damage


def test_a_report_that_cannot_be_read_counts_as_none(view: ModelsView, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"internal": {}}'):
        (tmp_path / "reports" / "v1" / "report.json").write_text(text, encoding="utf-8")
        champion = view.find_champion()
        assert champion is not None
        assert (champion.figures, champion.verdict, champion.has_report) == ((), "", True)


@pytest.mark.parametrize("version", ["", ".", "..", "../v1", "v1/../v1", "v4"])
def test_a_version_is_no_way_out_of_the_reports(view: ModelsView, version: str) -> None:
    assert view.find_report_page(version) is None
    assert view.find_report_page("v1") is not None


def test_there_may_be_no_models_at_all(tmp_path: Path) -> None:
    view = ModelsView(StreamSettings(home=tmp_path))
    assert (view.list_models(), view.find_champion(), view.list_history()) == ([], None, [])


def test_the_band_of_a_model_is_that_of_the_model_that_scored(tmp_path: Path) -> None:
    card = replace(add_model(tmp_path, "v1"), abstain=AbstainBand(0.4, 0.6))
    write_card(tmp_path / "models" / "v1", card)
    bands = Bands(tmp_path / "models")
    assert bands.find(card.version, card.sha256) == AbstainBand(0.4, 0.6)
    assert bands.find(card.version, "0" * 64) is None
    assert bands.find("v-elsewhere", card.sha256) is None
    assert bands.find("../models", card.sha256) is None
    assert bands.find("v" * 300, card.sha256) is None


# --- in service -------------------------------------------------------------------------------------------------------

NOW = datetime.now(UTC)


def write_tables(home: Path, said: list[tuple[str, str, str, list[str], float]], findings: dict[str, str]) -> None:
    """Predictions (image, version, label, flags, age in days) and findings, as archive and labeller write them."""
    table = load_tables()["predictions"]
    schema = arrow_schema(table)
    times = [NOW - timedelta(days=age) for *_, age in said]
    columns = {
        "event_id": [f"{number}" for number in range(len(said))],
        "sha256": [one[0] for one in said],
        "model_version": [one[1] for one in said],
        "label": [one[2] for one in said],
        "positive_label": ["ill"] * len(said),
        "flags": [one[3] for one in said],
        "received_at": times,
        "date": [one.date() for one in times],
    }
    rows = [pa.array(columns.get(field.name, [None] * len(said)), field.type) for field in schema]
    place = str(home / "predictions")
    write_deltalake(place, pa.Table.from_arrays(rows, schema=schema), mode="append", partition_by=["date"])
    labels = arrow_schema(LABELS_TABLE)
    known = {"sha256": list(findings), "label": list(findings.values()), "confirmed_at": [NOW] * len(findings)}
    cells = [pa.array(known.get(field.name, [None] * len(findings)), field.type) for field in labels]
    write_deltalake(str(home / "labels"), pa.Table.from_arrays(cells, schema=labels), mode="append")


def test_figures_are_of_decided_images_with_a_finding(tmp_path: Path) -> None:
    said = [
        ("a", "v1", "ill", [], 1.0),
        ("b", "v1", "normal", [], 1.0),
        ("c", "v1", "normal", [], 1.0),
        ("d", "v1", "ill", ["uncertain"], 1.0),
        ("e", "v1", "ill", [], 1.0),
        ("f", "v1", "ill", [], 1.0),  # nobody has confirmed anything
        ("g", "v2", "normal", [], 1.0),
        ("h", "v1", "normal", [], 200.0),  # long ago
        ("a", "v1", "normal", [], 2.0),  # sent before, and scored otherwise
    ]
    write_tables(
        tmp_path, said, {"a": "ill", "b": "ill", "c": "normal", "d": "ill", "e": "normal", "g": "ill", "h": "ill"}
    )
    service = LabelledService(str(tmp_path))
    found = service.measure("v1")
    assert found is not None
    assert (found.labelled, found.undecided) == (5, 1)
    assert (found.agreement.hits, found.agreement.count) == (2, 4)
    assert (found.sensitivity.hits, found.sensitivity.count) == (1, 2)
    assert (found.specificity.hits, found.specificity.count) == (1, 2)
    other = service.measure("v2")
    assert other is not None
    assert (other.sensitivity.hits, other.specificity.value) == (0, None)
    assert service.measure("v1") is found  # nothing was computed again
    write_tables(tmp_path, [("i", "v1", "ill", [], 0.5)], {"i": "ill"})
    again = service.measure("v1")
    assert again is not None
    assert again.labelled == 6


def test_without_findings_or_an_archive_there_are_no_figures(tmp_path: Path) -> None:
    assert LabelledService(str(tmp_path)).measure("v1") is None


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 11), (970, 1000)])
def test_the_interval_is_that_of_training(hits: int, count: int) -> None:
    found = share([True] * hits + [False] * (count - hits))
    assert (found.low, found.high) == pytest.approx(wilson_interval(hits, count), abs=1e-6)
