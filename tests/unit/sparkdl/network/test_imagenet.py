"""The classes of ImageNet, and naming a network's output."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from sparkdl.network.imagenet import decode_predictions, load_classes


def test_the_ids_are_1000_in_ascending_order():
    ids = [one.wnid for one in load_classes()]
    assert len(ids) == 1000
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)


@pytest.mark.parametrize(
    ("index", "wnid", "description"),
    [
        (0, "n01440764", "tench"),
        (2, "n01484850", "great_white_shark"),
        (134, "n02012849", "crane"),
        (207, "n02099601", "golden_retriever"),
        (240, "n02107908", "Appenzeller"),
        (285, "n02124075", "Egyptian_cat"),
        (386, "n02504458", "African_elephant"),
        (404, "n02690373", "airliner"),
        (477, "n02966687", "carpenter's_kit"),
        (517, "n03126707", "crane"),
        (590, "n03485407", "hand-held_computer"),
        (638, "n03710637", "maillot"),
        (639, "n03710721", "maillot"),
        (836, "n04355933", "sunglass"),
        (837, "n04356056", "sunglasses"),
        (986, "n12057211", "yellow_lady's_slipper"),
        (999, "n15075141", "toilet_tissue"),
    ],
)
def test_classes_are_where_keras_has_them(index, wnid, description):
    assert load_classes()[index] == (wnid, description)
    assert load_classes()[index].description == description


def test_descriptions_are_single_words_but_for_underscores():
    descriptions = [one.description for one in load_classes()]
    assert [name for name in descriptions if not re.fullmatch(r"[A-Za-z]+([_'-]+[A-Za-z]+)*", name)] == []
    assert {name: times for name, times in Counter(descriptions).items() if times > 1} == {"crane": 2, "maillot": 2}


def test_the_most_probable_come_first():
    probabilities = np.zeros(1000, np.float32)
    probabilities[[999, 207, 1]] = 0.25, 0.625, 0.125
    assert decode_predictions(probabilities, 3) == [
        ("n02099601", "golden_retriever", 0.625),
        ("n15075141", "toilet_tissue", 0.25),
        ("n01443537", "goldfish", 0.125),
    ]
    assert all(type(value) is float for _, _, value in decode_predictions(probabilities, 3))


def test_equal_probabilities_keep_the_classes_order():
    named = decode_predictions(np.full(1000, 0.001), 1000)
    assert [(wnid, description) for wnid, description, _ in named] == list(load_classes())


def test_unsigned_scores_are_ordered_too():
    scores = np.arange(1000, dtype=np.uint16)
    assert [value for _, _, value in decode_predictions(scores, 3)] == [999.0, 998.0, 997.0]


@pytest.mark.parametrize("shape", [(999,), (1001,), (1, 1000), (1000, 1), ()])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=rf"shape {re.escape(str(shape))}, expected \(1000,\)"):
        decode_predictions(np.zeros(shape), 5)


@pytest.mark.parametrize("top_k", [0, -1, 1001])
def test_another_number_of_classes_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}, expected 1 to 1000"):
        decode_predictions(np.zeros(1000), top_k)


def test_it_needs_no_spark():
    code = "import sys, sparkdl.network.imagenet as i; i.load_classes(); print('pyspark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
