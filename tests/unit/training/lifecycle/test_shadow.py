"""The challenger in shadow: its answers, what is counted apart, and which labels count."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from schemas.envelope import DISCLAIMER
from schemas.errors import DatasetError, ModelLoadError
from schemas.modelcard import AbstainBand, ModelCard, hash_model_folder, write_card
from tests.challenger import AS_SCORED, add_challenger, add_labels_said
from tests.stored import FIRST_DAY, LABELS, Scored, add_champion, score_images
from training.data.labelfile import Confirmation
from training.data.labelstable import record_labels
from training.evidence.served import IMAGES_FILE
from training.figures.bootstrap import gather_outcomes
from training.figures.compare import compare
from training.lifecycle.shadow import compare_shadow
from training.lifecycle.shadowpage import JSON_NAME, MARKDOWN_NAME, list_remarks, list_tables, write_shadow
from training.lifecycle.shadowresult import QUANTILES, Pair, Shadow
from training.model.classifier import Head
from training.model.decision import Decision
from training.model.novelty import NoveltyDetector

OTHER = (0.5, 1.0, 0.0)  # looks at what it should not, too


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return add_champion(tmp_path)


def look(home: Path, card: ModelCard, rival: ModelCard, **options: Any) -> Shadow:
    models = [(home / "models" / one.version, one) for one in (card, rival)]
    return compare_shadow(str(home / "tables"), models[0], models[1], **options)


def probability(features: np.ndarray, coefficients: tuple[float, ...] = AS_SCORED, intercept: float = -1) -> np.ndarray:
    return 1 / (1 + np.exp(-(features.astype(np.float64) @ np.array(coefficients) + intercept)))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_challenger_with_the_same_numbers_says_the_same(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 300)
    add_labels_said(tmp_path)
    found = look(tmp_path, card, add_challenger(tmp_path, card))
    assert (found.n_images, found.n_judged, found.n_without_vector) == (300, 300, 0)
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.high) == pytest.approx((1, 1))
    assert found.agreement.low == pytest.approx(0.9874, abs=1e-4)
    assert found.difference is not None
    assert np.abs([found.difference.mean, *found.difference.quantiles]).max() < 1e-12
    assert found.disagreements == ()
    assert "the same answer" in found.verdict


def test_figures_are_those_of_the_vectors(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 400, days=7)
    add_labels_said(tmp_path)
    rival = add_challenger(tmp_path, card, coefficients=OTHER, intercept=-0.5, threshold=0.6)
    found = look(tmp_path, card, rival)

    old, new = probability(scored.features), probability(scored.features, OTHER, -0.5)
    ill, shadowed = old >= 0.5, new >= 0.6
    same = ill == shadowed
    assert found.answers == {
        "normal": {"normal": (~ill & ~shadowed).sum(), "ill": (~ill & shadowed).sum()},
        "ill": {"normal": (ill & ~shadowed).sum(), "ill": (ill & shadowed).sum()},
    }
    assert 0 < found.answers["normal"]["ill"] < found.answers["ill"]["normal"]
    assert found.agreement is not None
    assert found.agreement.value == same.mean()
    assert found.agreement.low < same.mean() < found.agreement.high
    assert found.positive_shares is not None
    assert [share.value for share in found.positive_shares] == [ill.mean(), shadowed.mean()]
    assert found.difference is not None
    assert found.difference.mean == pytest.approx((new - old).mean())
    assert found.difference.quantiles == pytest.approx(np.quantile(new - old, QUANTILES))
    assert (found.first, found.last) == (FIRST_DAY, FIRST_DAY + timedelta(days=6))
    first = np.arange(400) % 2 == 0
    assert {one.name: (one.n_images, one.agreement.value) for one in found.by_source} == {
        "ward 1": (200, same[first].mean()),
        "ward 2": (200, same[~first].mean()),
    }
    assert found.by_source[0].mean_difference == pytest.approx((new - old)[first].mean())
    worst = max(np.flatnonzero(~same), key=lambda place: abs(new[place] - old[place]))
    assert len(found.disagreements) == 12
    first_one = found.disagreements[0]
    assert (first_one.event_id, first_one.id) == (scored.digests[worst][:32], f"image 0 {worst}")
    assert (first_one.champion_score, first_one.challenger_score) == pytest.approx((old[worst], new[worst]))
    assert {first_one.champion, first_one.challenger} == set(LABELS)


def test_only_the_champions_last_days_count_and_the_newest_images_first(tmp_path: Path, card: ModelCard) -> None:
    rival = add_challenger(tmp_path, card)
    score_images(tmp_path, card, 300, days=10)
    score_images(tmp_path, replace(card, sha256="0" * 64), 150, seed=1, first_day=FIRST_DAY + timedelta(days=40))
    add_labels_said(tmp_path)
    found = look(tmp_path, card, rival, days=3)
    assert (found.n_images, found.first, found.last) == (90, date(2026, 1, 12), date(2026, 1, 14))
    assert "fewer than 100" in found.verdict
    found = look(tmp_path, card, rival, days=30, max_images=140)
    assert (found.n_images, found.first, found.last) == (140, date(2026, 1, 10), date(2026, 1, 14))
    assert any("only the newest 140 images" in note for note in found.notes)


def test_of_one_day_the_newest_images_are_taken(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 100)
    add_labels_said(tmp_path)
    place = str(tmp_path / "tables" / "predictions")
    rows = DeltaTable(place).to_pyarrow_table()
    order = [scored.digests.index(digest) for digest in rows["sha256"].to_pylist()]
    column = rows.schema.field("received_at")
    moments = pa.array([datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=number) for number in order], column.type)
    rows = rows.set_column(rows.column_names.index("received_at"), column, moments)
    write_deltalake(place, rows, mode="overwrite", partition_by=["date"])
    alarmist = add_challenger(tmp_path, card, threshold=0.0)
    found = look(tmp_path, card, alarmist, max_images=20)
    healthy = probability(scored.features[80:]) < 0.5
    assert 2 < healthy.sum() <= 12
    assert {one.event_id for one in found.disagreements} == {
        digest[:32] for digest, negative in zip(scored.digests[80:], healthy, strict=True) if negative
    }


def test_a_picture_that_was_sent_twice_counts_once(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 120)
    add_labels_said(tmp_path)
    for name in ("predictions", "features"):
        place = str(tmp_path / "tables" / name)
        rows = DeltaTable(place).to_pyarrow_table()
        again = [hashlib.sha256(event.encode()).hexdigest()[:32] for event in rows["event_id"].to_pylist()]
        rows = rows.set_column(rows.column_names.index("event_id"), "event_id", pa.array(again))
        write_deltalake(place, rows, mode="append", partition_by=["date"])
    assert look(tmp_path, card, add_challenger(tmp_path, card)).n_images == 120


def test_few_images_say_nothing(tmp_path: Path, card: ModelCard) -> None:
    rival = add_challenger(tmp_path, card, coefficients=OTHER)
    score_images(tmp_path, replace(card, sha256="0" * 64), 300)
    add_labels_said(tmp_path)
    found = look(tmp_path, card, rival)
    assert (found.n_images, found.first, found.verdict.endswith("nothing to compare")) == (0, None, True)
    score_images(tmp_path / "more", card, 99)
    add_labels_said(tmp_path / "more")
    models = [(tmp_path / "models" / one.version, one) for one in (card, rival)]
    found = compare_shadow(str(tmp_path / "more" / "tables"), models[0], models[1])
    assert (found.agreement, found.difference, found.positive_shares, found.by_source) == (None, None, None, ())
    assert found.verdict == "99 images that both models judge, fewer than 100: nothing is said of so few"
    assert sum(sum(row.values()) for row in found.answers.values()) == 99


def test_images_without_a_whole_vector_are_left_out_and_counted(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 150)
    add_labels_said(tmp_path)
    place = str(tmp_path / "tables" / "features")
    rows = DeltaTable(place).to_pyarrow_table().slice(0, 130)
    vectors = [[None, 1.0, 1.0], *rows["features"].to_pylist()[1:]]
    column = rows.schema.field("features")
    rows = rows.set_column(rows.column_names.index("features"), column, pa.array(vectors, column.type))
    write_deltalake(place, rows, mode="overwrite", partition_by=["date"])
    found = look(tmp_path, card, add_challenger(tmp_path, card))
    assert (found.n_images, found.n_without_vector) == (129, 21)


def test_images_that_a_model_does_not_judge_are_counted_apart(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 400)
    old = replace(card, novelty=Decision(detector=NoveltyDetector(np.eye(3, dtype=np.float32), 0.5, 0.9)).novelty)
    add_labels_said(tmp_path, unlike=frozenset(scored.digests[:10]))
    # Distance 1 less the mean cosine to the two: large where the last feature outweighs the others.
    detector = NoveltyDetector(np.eye(3, dtype=np.float32)[:2], 0.9, 0.9)
    rival = add_challenger(tmp_path, card, coefficients=OTHER, decision=Decision(AbstainBand(0.4, 0.6), detector))
    found = look(tmp_path, old, rival)
    novel = detector.flags(scored.features)
    assert 20 < novel.sum() < 200
    assert found.n_unlike == Pair(10, int(novel.sum()))
    judged = ~novel & (np.arange(400) >= 10)
    assert (found.n_images, found.n_judged) == (400, judged.sum())
    new = probability(scored.features, OTHER)
    assert found.n_undecided == Pair(0, int(((new >= 0.4) & (new < 0.6) & judged).sum()))
    assert found.agreement is not None
    ill = probability(scored.features) >= 0.5
    assert found.agreement.value == (ill == (new >= 0.5))[judged].mean()
    assert found.answers["unlike_training"]["unlike_training"] == novel[:10].sum()
    assert sum(sum(row.values()) for row in found.answers.values()) == 400
    [note] = [note for note in found.notes if "table of answers only" in note]
    assert note.startswith(f"{400 - judged.sum()} images")
    digests = {digest[:32] for digest in np.array(scored.digests)[judged]}
    assert {one.event_id for one in found.disagreements} <= digests


def test_a_disagreement_with_an_undecided_score_names_no_class(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 400)
    add_labels_said(tmp_path)
    old = replace(card, abstain=AbstainBand(0.0, 0.3))
    rival = add_challenger(tmp_path, card, coefficients=OTHER, decision=Decision(AbstainBand(0.7, 1.0)))
    found = look(tmp_path, old, rival)
    undecided = [(one.champion_undecided, one.challenger_undecided) for one in found.disagreements]
    assert undecided == [(one.champion_score < 0.3, one.challenger_score >= 0.7) for one in found.disagreements]
    assert {flag for pair in undecided for flag in pair} == {False, True}
    [table] = [table for table in list_tables(found) if table.title == "Largest disagreements"]
    for one, row in zip(found.disagreements, table.rows, strict=True):
        champion = "undecided" if one.champion_undecided else one.champion
        challenger = "undecided" if one.challenger_undecided else one.challenger
        assert row[3:5] == (champion, challenger)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_another_featurizer_is_refused_with_what_to_do(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 120)
    add_labels_said(tmp_path)
    rival = add_challenger(tmp_path, card, pooling="none")
    with pytest.raises(ModelLoadError, match=r"another featurizer than 20260101T000000Z.*'xray retrain' makes"):
        look(tmp_path, card, rival)


@pytest.mark.parametrize(("champion", "challenger"), [(1, 2), (2, 1), (0, 1)])
def test_another_rendering_is_refused_without_a_step_that_does_not_work(
    tmp_path: Path, champion: int, challenger: int
) -> None:
    card = add_champion(tmp_path, rendering=champion)
    score_images(tmp_path, card, 120)
    add_labels_said(tmp_path)
    rival = replace(add_challenger(tmp_path, card), rendering_version=challenger)
    with pytest.raises(ModelLoadError, match=rf"rendering version {challenger} and .* of {champion}, ") as refused:
        look(tmp_path, card, rival)
    assert "xray retrain" not in str(refused.value)
    assert f"xray models show {rival.version}" in str(refused.value)


def test_two_models_of_an_old_rendering_are_compared(tmp_path: Path) -> None:
    card = add_champion(tmp_path, rendering=1)
    score_images(tmp_path, card, 120)
    add_labels_said(tmp_path)
    assert look(tmp_path, card, add_challenger(tmp_path, card)).n_images == 120


def test_other_labels_are_refused(tmp_path: Path, card: ModelCard) -> None:
    rival = replace(add_challenger(tmp_path, card), labels=("normal", "covid"), positive_label="covid")
    with pytest.raises(ModelLoadError, match=r"tells normal, covid .* do not compare"):
        look(tmp_path, card, rival)


def test_a_classifier_for_other_vectors_is_refused(tmp_path: Path, card: ModelCard) -> None:
    rival = add_challenger(tmp_path, card)
    write_numbers(tmp_path / "models" / rival.version, {"numCols": 2, "values": [1.0, 2.0]})
    with pytest.raises(ModelLoadError, match="is for 2 features and 2 classes, expected 3 and 2"):
        look(tmp_path, card, rival)


def test_without_an_archive_it_says_so(tmp_path: Path, card: ModelCard) -> None:
    rival = add_challenger(tmp_path, card)
    with pytest.raises(DatasetError, match=r"there is no archive in .* yet"):
        look(tmp_path, card, rival)


# --- labels -----------------------------------------------------------------------------------------------------------


def confirm(home: Path, scored: Scored, places: list[int]) -> None:
    rows = {
        scored.digests[place]: Confirmation(2, (), scored.labels[place], scored.patients[place]) for place in places
    }
    record_labels(str(home / "tables"), rows)


def write_learned(home: Path, version: str, digests: list[str]) -> None:
    (home / "reports" / version).mkdir(parents=True, exist_ok=True)
    (home / "reports" / version / IMAGES_FILE).write_text("\n".join(digests) + "\n", encoding="utf-8")


def test_labels_count_where_neither_model_knows_the_patient(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 400)
    add_labels_said(tmp_path)
    rival = add_challenger(tmp_path, card, coefficients=OTHER, intercept=-0.5)
    confirm(tmp_path, scored, list(range(300)))
    # Each patient has two images. Of the first ten patients one image was learned from, of the next ten both were.
    write_learned(tmp_path, card.version, list(scored.digests[0:20:2]))
    write_learned(tmp_path, rival.version, [*scored.digests[20:40], "of another archive"])
    whole = look(tmp_path, card, rival, reports_folder=tmp_path / "reports")
    assert f"{rival.version} has learned from 20 of these images" in whole.notes
    assert not any("not known" in note for note in whole.notes)
    found = whole.labelled
    assert found is not None
    assert (found.n_images, found.n_patients, found.n_learned) == (260, 130, 40)
    labels = np.array([LABELS.index(label) for label in scored.labels])[40:300]
    assert dict(found.by_label) == {"normal": (labels == 0).sum(), "ill": (labels == 1).sum()}
    known = scored.features[40:300]
    outcomes = [
        gather_outcomes(labels, scores, scored.patients[40:300], threshold=0.5)
        for scores in (probability(known), probability(known, OTHER, -0.5))
    ]
    assert found.figures is not None
    assert found.figures.keys() == compare(*outcomes, n_resamples=1).keys()
    for name, wanted in compare(*outcomes, n_resamples=1).items():
        assert (found.figures[name].first, found.figures[name].second) == pytest.approx((wanted.first, wanted.second))
    auroc = found.figures["auroc"]
    assert auroc.first > auroc.second
    assert auroc.difference.low < auroc.difference.value < auroc.difference.high


def test_a_positive_label_that_comes_first_is_still_the_positive_one(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 200)
    add_labels_said(tmp_path)
    confirm(tmp_path, scored, list(range(200)))
    rival = add_challenger(tmp_path, card, coefficients=OTHER, intercept=-0.5)
    wanted = look(tmp_path, card, rival, reports_folder=tmp_path)
    # The same model, its classes the other way round: its second class is "normal" now.
    turned = replace(rival, labels=LABELS[::-1])
    write_numbers(tmp_path / "models" / rival.version, {"values": [-value for value in OTHER]}, 0.5)
    found = look(tmp_path, card, turned, reports_folder=tmp_path)
    assert found.answers == wanted.answers
    found = look(tmp_path, replace(card, labels=LABELS[::-1]), turned, reports_folder=tmp_path)
    assert found.labelled is not None
    assert wanted.labelled is not None
    assert found.labelled.figures is not None
    assert wanted.labelled.figures is not None
    for name, figure in wanted.labelled.figures.items():
        assert found.labelled.figures[name].difference.value == pytest.approx(figure.difference.value), name


def test_what_is_not_known_of_labels_is_said(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 200)
    add_labels_said(tmp_path)
    rival = add_challenger(tmp_path, card, coefficients=OTHER)
    reports = tmp_path / "reports"
    assert look(tmp_path, card, rival, reports_folder=reports).labelled is None
    write_learned(tmp_path, rival.version, list(scored.digests[:2]))
    confirm(tmp_path, scored, [place for place in range(200) if scored.labels[place] == "ill"])
    found = look(tmp_path, card, rival, reports_folder=reports)
    assert found.labelled is not None
    assert (found.labelled.figures, found.labelled.by_label["normal"]) == (None, 0)
    assert found.verdict.endswith("for want of labels")
    assert any("a class is missing" in remark for remark in list_remarks(found))
    assert [note for note in found.notes if "not known whether" in note] == [
        f"it is not known whether {card.version} has learned from some of the labelled images"
    ]


# --- three classes ----------------------------------------------------------------------------------------------------


def test_of_three_classes_the_most_probable_one_is_said(tmp_path: Path, card: ModelCard) -> None:
    labels = ("normal", "ill", "covid")
    first, second = np.random.default_rng(3).standard_normal((2, 3, 3))
    models = []
    for version, numbers in (("v1", first), ("v2", second)):
        rival = add_challenger(tmp_path, card, version)
        folder = tmp_path / "models" / version
        write_numbers(folder, {"numRows": 3, "values": numbers.ravel().tolist()}, 0.1, 0.2, 0.3)
        own = replace(rival, labels=labels, positive_label="covid", threshold=None, sha256=hash_model_folder(folder))
        write_card(folder, own)
        models.append((folder, own))
    scored = score_images(tmp_path, models[0][1], 200)
    place = str(tmp_path / "tables" / "predictions")
    heads = [Head(numbers, np.array([0.1, 0.2, 0.3])).predict(scored.features) for numbers in (first, second)]
    rows = DeltaTable(place).to_pyarrow_table().sort_by("id")
    order = np.argsort([f"image 0 {number}" for number in range(200)], kind="stable")
    said = np.array(labels)[heads[0].argmax(axis=1)]
    maps = [list(zip(labels, row, strict=True)) for row in heads[0][order].tolist()]
    rows = rows.drop_columns(["score"]).append_column("score", pa.array(heads[0][order, 2]))
    rows = rows.append_column("label", pa.array(said[order].tolist()))
    rows = rows.append_column("probabilities", pa.array(maps, pa.map_(pa.string(), pa.float64())))
    write_deltalake(place, rows, mode="overwrite", schema_mode="overwrite", partition_by=["date"])
    truth = np.random.default_rng(4).integers(0, 3, 200)
    confirmed = {
        digest: Confirmation(2, (), labels[label]) for digest, label in zip(scored.digests, truth.tolist(), strict=True)
    }
    record_labels(str(tmp_path / "tables"), confirmed)

    found = compare_shadow(str(tmp_path / "tables"), models[0], models[1], reports_folder=tmp_path)

    shadowed = np.array(labels)[heads[1].argmax(axis=1)]
    assert found.agreement is not None
    assert found.agreement.value == (said == shadowed).mean()
    assert found.answers["ill"]["covid"] == ((said == "ill") & (shadowed == "covid")).sum() > 0
    assert found.labelled is not None
    assert found.labelled.figures is not None
    outcomes = [gather_outcomes(truth, head, scored.digests) for head in heads]
    for name, wanted in compare(*outcomes, n_resamples=1).items():
        figure = found.labelled.figures[name]
        assert (figure.first, figure.second) == pytest.approx((wanted.first, wanted.second)), name
    assert "accuracy" in found.verdict


# --- the classifier's numbers -----------------------------------------------------------------------------------------


def write_numbers(folder: Path, matrix: dict[str, Any], *intercepts: float) -> None:
    [path] = folder.glob("stages/1_*/data/*.parquet")
    old = pq.read_table(path)
    [row] = old.to_pylist()
    row["coefficientMatrix"] |= matrix
    if intercepts:
        row["interceptVector"]["values"] = list(intercepts)
    pq.write_table(pa.Table.from_pylist([row], old.schema), path)


@pytest.mark.parametrize("by_row", [True, False])
def test_sparse_and_dense_numbers_are_read_alike(tmp_path: Path, card: ModelCard, by_row: bool) -> None:
    folder = tmp_path / "models" / card.version
    wanted = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    flat = (wanted if by_row else wanted.T).ravel()
    write_numbers(folder, {"numRows": 2, "values": flat.tolist(), "isTransposed": by_row}, 0.5, 0.25)
    found = Head.read(folder)
    assert np.array_equal(found.coefficients, wanted)
    assert found.intercepts.tolist() == [0.5, 0.25]
    sparse = {
        True: {"colPtrs": [0, 1, 3], "rowIndices": [1, 0, 2], "values": [2.0, 1.0, 3.0]},
        False: {"colPtrs": [0, 1, 2, 3], "rowIndices": [1, 0, 1], "values": [1.0, 2.0, 3.0]},
    }
    write_numbers(folder, {"type": 0, "isTransposed": by_row, **sparse[by_row]})
    assert np.array_equal(Head.read(folder).coefficients, wanted)


def test_another_kind_of_pipeline_is_told(tmp_path: Path, card: ModelCard) -> None:
    folder = tmp_path / "models" / card.version
    [metadata] = folder.glob("stages/1_*/metadata/part-*")
    text = metadata.read_text()
    metadata.write_text(text.replace("LogisticRegressionModel", "NaiveBayesModel"))
    with pytest.raises(ModelLoadError, match=r"is a pipeline of sparkdl.DeepImageFeaturizer, .*NaiveBayesModel"):
        Head.read(folder)
    metadata.write_text(text)
    [numbers] = folder.glob("stages/1_*/data/*.parquet")
    numbers.write_bytes(b"no parquet")
    with pytest.raises(ModelLoadError, match=r"the classifier of the model at .* cannot be read"):
        Head.read(folder)
    with pytest.raises(ModelLoadError, match="is no saved pipeline"):
        Head.read(tmp_path)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_files_say_what_was_found(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 300, sources=["a|b\x1b[2J", None])
    add_labels_said(tmp_path)
    confirm(tmp_path, scored, list(range(300)))
    rival = add_challenger(tmp_path, card, coefficients=OTHER)
    found = look(tmp_path, card, rival, reports_folder=tmp_path / "reports")
    write_shadow(tmp_path / "report", found)
    stored = json.loads((tmp_path / "report" / JSON_NAME).read_text(encoding="utf-8"))
    assert stored["disclaimer"] == DISCLAIMER
    assert stored["verdict"] == found.verdict
    assert stored["answers"]["normal"]["ill"] == found.answers["normal"]["ill"]
    assert (stored["first"], stored["quantiles"]) == ("2026-01-05", list(QUANTILES))
    text = (tmp_path / "report" / MARKDOWN_NAME).read_text(encoding="utf-8")
    for part in (DISCLAIMER, f"**{found.verdict}.**", "| a\\|b [2J | 150 |", "| (unknown) | 150 |", "| auroc |"):
        assert part in text
    assert "\x1b" not in text
    titles = [table.title for table in list_tables(found)]
    assert [f"## {title}" in text for title in titles] == [True] * 5
    again = look(tmp_path, card, rival, reports_folder=tmp_path / "reports")
    assert again == found
