"""Stored vectors joined with labels: whose vectors, each image once, in one order, without Python lists."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from schemas.errors import DatasetError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from tests.stored import LABELS, Scored, add_champion, score_images
from training.data.labelfile import Confirmation
from training.data.labelstable import record_labels
from training.features.stored import StoredSet, describe_featurizer, find_models_with, read_stored


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return add_champion(tmp_path)


def record(home: Path, scored: Scored, *, patients: bool = True) -> None:
    rows = zip(scored.digests, scored.labels, scored.patients, strict=True)
    found = {digest: Confirmation(2, (), label, patient if patients else None) for digest, label, patient in rows}
    record_labels(str(home / "tables"), found)


def read(home: Path, card: ModelCard) -> StoredSet:
    return read_stored(str(home / "tables"), home / "models", card.version)


def copy_model(home: Path, card: ModelCard, version: str, *, change_network: bool = False) -> ModelCard:
    """Another version: with another classifier, and where asked for another network."""
    folder = home / "models" / version
    shutil.copytree(home / "models" / card.version, folder)
    (folder / "more").write_text(version, encoding="utf-8")
    if change_network:
        [path] = folder.glob("stages/0_*/network/network.json")
        path.write_text(path.read_text(encoding="utf-8").replace('"avg"', '"none"'), encoding="utf-8")
    copied = replace(card, version=version, sha256=hash_model_folder(folder))
    write_card(folder, copied)
    return copied


def test_vectors_and_labels_are_joined_by_digest(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 40, days=3)
    score_images(tmp_path, card, 10, seed=1)  # nobody has labelled these
    record(tmp_path, scored)
    told: list[tuple[int, int]] = []
    found = read_stored(
        str(tmp_path / "tables"), tmp_path / "models", card.version, report=lambda _, *counts: told.append(counts)
    )
    order = np.argsort(scored.digests)
    assert found.digests.tolist() == sorted(scored.digests)
    assert found.features.dtype == np.float32
    assert np.array_equal(found.features, scored.features[order])
    assert [LABELS[label] for label in found.labels] == [scored.labels[index] for index in order]
    assert found.patients.tolist() == [scored.patients[index] for index in order]
    assert set(found.sources) == {"ward 1", "ward 2"}
    assert (found.n_unknown_patients, found.left_out) == (0, {})
    assert told[0] == (0, 40)
    assert told[-1] == (40, 40)


def test_an_image_that_was_scored_twice_counts_once(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 20)
    again = copy_model(tmp_path, card, "again")
    score_images(tmp_path, again, 20)
    record(tmp_path, scored)
    before = read(tmp_path, card)
    DeltaTable(str(tmp_path / "tables" / "features")).optimize.compact()
    after = read(tmp_path, card)
    assert len(before.labels) == 20
    assert np.array_equal(before.features, after.features), "joining files changes nothing"


def test_vectors_of_another_network_are_not_taken(tmp_path: Path, card: ModelCard) -> None:
    scored, others = score_images(tmp_path, card, 20), []
    for number, version in enumerate(("same", "other"), start=1):
        other = copy_model(tmp_path, card, version, change_network=version == "other")
        others.append(score_images(tmp_path, other, 6, seed=number))
    gone = score_images(tmp_path, replace(card, sha256="0" * 64), 4, seed=8)
    int8 = score_images(tmp_path, replace(card, precision="int8"), 3, seed=9)
    for images in (scored, *others, gone, int8):
        record(tmp_path, images)

    found = read(tmp_path, card)

    assert set(found.digests) == {*scored.digests, *others[0].digests}
    assert found.left_out == {"scored with other featurizers, or by models that are gone, only": 13}
    featurizer = describe_featurizer(tmp_path / "models" / card.version, card)
    assert (featurizer.network, featurizer.precision, featurizer.n_features) == ("EfficientNetLite0", "fp32", 3)
    assert sorted(find_models_with(tmp_path / "models", featurizer).values()) == [card.version, "same"]


def test_what_cannot_be_taken_is_counted(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 6)
    wide = score_images(tmp_path, card, 2, seed=1, n_features=4)
    record(tmp_path, scored, patients=False)
    record(tmp_path, wide)
    unseen, odd = "1" * 64, "2" * 64
    record_labels(str(tmp_path / "tables"), {unseen: Confirmation(2, (), "ill"), odd: Confirmation(2, (), "covid")})
    found = read(tmp_path, card)
    assert found.digests.tolist() == sorted(scored.digests)
    assert found.n_unknown_patients == 6
    assert found.patients.tolist() == found.digests.tolist()
    assert found.left_out == {
        "with a label that the model does not have": 1,
        "that are not in the archive any more": 1,
        "whose vector is incomplete": 2,
    }


def test_rows_that_were_written_anew_are_read(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 6, sources=[None, "ward"])
    record(tmp_path, scored)
    table = DeltaTable(str(tmp_path / "tables" / "features"))
    table.delete(predicate=f"sha256 = '{scored.digests[0]}'")  # as somebody's wish to be forgotten would
    found = read(tmp_path, card)
    assert found.digests.tolist() == sorted(scored.digests[1:])
    assert set(found.sources) == {"", "ward"}


@pytest.mark.parametrize("labelled", [False, True])
def test_nothing_to_learn_from_says_what_to_do(tmp_path: Path, card: ModelCard, labelled: bool) -> None:
    scored = score_images(tmp_path, replace(card, sha256="0" * 64), 6)
    if labelled:
        record(tmp_path, scored)
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, card)
    said = "none of the 6 labelled images has a vector" if labelled else "no labels yet"
    assert said in str(caught.value)
    assert labelled or "xray label FILE.csv" in str(caught.value)


@pytest.mark.slow
def test_memory_is_little_more_than_the_vectors(tmp_path: Path, card: ModelCard) -> None:
    [path] = (tmp_path / "models" / card.version).glob("stages/0_*/network/network.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"n_features": 3', '"n_features": 1280'), encoding="utf-8")
    card = replace(card, sha256=hash_model_folder(tmp_path / "models" / card.version))
    write_card(tmp_path / "models" / card.version, card)
    for day in range(16):
        record(tmp_path, score_images(tmp_path, card, 2500, seed=day, n_features=1280))
    taken: list[int] = []
    found = read_stored(
        str(tmp_path / "tables"),
        tmp_path / "models",
        card.version,
        report=lambda *_: taken.append(pa.total_allocated_bytes()),
    )
    assert found.features.nbytes == 4 * 40_000 * 1280
    assert len(taken) > 16
    # One file's column and a few batches: 45 MB, of 205 MB of vectors as of 512 MB.
    assert max(taken) - taken[0] < 0.4 * found.features.nbytes
