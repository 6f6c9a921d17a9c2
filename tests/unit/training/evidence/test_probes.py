"""Probes find planted shortcuts, and the verdict follows the rule that is written down."""

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from training.data.summary import ImageSummary, summarize_image
from training.evidence.probes import Probe, Verdict, give_verdict, predict_probe, run_probes
from training.figures.bootstrap import Estimate
from xray.phantom import generate_radiograph

pytestmark = pytest.mark.slow

metrics = pytest.importorskip("sklearn.metrics", reason="needs the train extra (scikit-learn)")

N_IMAGES = 100
LABELS = [index % 2 for index in range(N_IMAGES)]
PATIENTS = [f"p{index}" for index in range(N_IMAGES)]


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def radiographs() -> list[np.ndarray]:
    """Healthy chests only: whatever tells the label is planted."""
    return [generate_radiograph(seed, finding="normal", height=256, width=224).pixels for seed in range(N_IMAGES)]


def _summaries(images: Sequence[np.ndarray], n_bytes: Sequence[int] = (40_000,) * N_IMAGES) -> list[ImageSummary]:
    return [
        summarize_image(pixels, original_size=(256, 224), n_bytes=size)
        for pixels, size in zip(images, n_bytes, strict=True)
    ]


def _aurocs(probes: Sequence[Probe]) -> dict[str, float]:
    return {probe.name: probe.auroc.value for probe in probes}


def _marked(pixels: np.ndarray, rng: np.random.Generator, *, darker: bool = False) -> np.ndarray:
    marked = pixels.copy()
    row, column = (int(value) for value in rng.integers((225, 8), (242, 22)))
    marked[row : row + 5, column : column + 8] = 0 if darker else 235
    return marked


@pytest.mark.slow
def test_summary_has_the_shapes_it_says(radiographs: list[np.ndarray]) -> None:
    gray = summarize_image(radiographs[0], original_size=(2000, 1000), n_bytes=500_000)
    assert (gray.thumbnail.shape, gray.borders.shape, gray.corners.shape) == ((64,), (240,), (48,))
    assert np.exp(gray.metadata) == pytest.approx([2000, 1000, 2, 500_000, 0.25])
    colour = summarize_image(np.repeat(radiographs[0][..., None], 3, axis=2), original_size=(1, 1), n_bytes=0)
    assert colour.thumbnail == pytest.approx(gray.thumbnail)
    assert np.isfinite(colour.metadata).all()


def test_borders_do_not_see_the_middle_and_corners_neither(radiographs: list[np.ndarray]) -> None:
    changed = radiographs[0].copy()
    changed[60:190, 55:165] = 255
    before, after = _summaries(radiographs[:1], [1])[0], _summaries([changed], [1])[0]
    np.testing.assert_array_equal(before.borders, after.borders)
    np.testing.assert_array_equal(before.corners, after.corners)
    assert np.abs(before.thumbnail - after.thumbnail).max() > 50


def test_nothing_planted_is_near_chance_and_ok(radiographs: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    probes = run_probes(_summaries(radiographs, rng.integers(30_000, 50_000, N_IMAGES).tolist()), LABELS, PATIENTS)
    assert [probe.name for probe in probes] == ["thumbnail", "borders", "corners", "metadata"]
    assert all(probe.auroc.low < 0.6 for probe in probes), _aurocs(probes)
    assert give_verdict(0.95, probes) == Verdict("ok", ())


def test_without_a_measured_probe_of_the_label_nothing_is_known() -> None:
    nan = Estimate(math.nan, math.nan, math.nan, "not measured")
    unmeasured = [Probe(name, "label", nan, 5) for name in ("thumbnail", "borders")]
    assert give_verdict(0.95, []).verdict == "unknown"
    assert give_verdict(0.95, [*unmeasured, _probe("source_from_thumbnail", 0.5)]).verdict == "unknown"
    assert give_verdict(0.95, [*unmeasured, _probe("corners", 0.5)]).verdict == "ok"


@pytest.mark.parametrize("darker", [False, True])
@pytest.mark.slow
def test_a_corner_marker_is_found_by_the_corners(radiographs: list[np.ndarray], darker: bool) -> None:
    rng = np.random.default_rng(1)
    images = [_marked(p, rng, darker=darker) if label else p for p, label in zip(radiographs, LABELS, strict=True)]
    probes = run_probes(_summaries(images), LABELS, PATIENTS)
    assert _aurocs(probes)["corners"] > 0.85
    verdict = give_verdict(0.99, probes)
    assert verdict.verdict == "confounded"
    assert any("corners" in reason for reason in verdict.reasons)


def test_a_frame_is_found_by_the_borders(radiographs: list[np.ndarray]) -> None:
    images = [np.pad(p[8:-8, 8:-8], 8) if label else p for p, label in zip(radiographs, LABELS, strict=True)]
    probes = run_probes(_summaries(images), LABELS, PATIENTS)
    assert _aurocs(probes)["borders"] > 0.9
    assert give_verdict(0.99, probes).verdict == "confounded"


def test_brightness_is_found_by_the_thumbnail(radiographs: list[np.ndarray]) -> None:
    images = [(p * (0.8 if label else 1.0)).astype(np.uint8) for p, label in zip(radiographs, LABELS, strict=True)]
    assert _aurocs(run_probes(_summaries(images), LABELS, PATIENTS))["thumbnail"] > 0.9


def test_file_size_is_found_by_metadata_alone(radiographs: list[np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    sizes = [int(rng.integers(40_000, 50_000) * (1.5 if label else 1)) for label in LABELS]
    probes = run_probes(_summaries(radiographs, sizes), LABELS, PATIENTS)
    assert _aurocs(probes)["metadata"] > 0.95
    assert len(give_verdict(0.99, probes).reasons) == 1


def test_source_that_is_the_label_is_confounded(radiographs: list[np.ndarray]) -> None:
    images = [(p * (0.8 if label else 1.0)).astype(np.uint8) for p, label in zip(radiographs, LABELS, strict=True)]
    sources = ["clinic" if label else "journal" for label in LABELS]
    features = np.random.default_rng(0).normal(size=(N_IMAGES, 6))
    probes = run_probes(_summaries(images), LABELS, PATIENTS, sources=sources, features=features)
    found = _aurocs(probes)
    assert found["source"] == 1
    assert found["source_from_thumbnail"] > 0.9
    assert found["source_from_features"] < 0.7
    assert any("name of the source" in reason for reason in give_verdict(0.99, probes).reasons)


def test_one_source_has_no_source_probes(radiographs: list[np.ndarray]) -> None:
    probes = run_probes(_summaries(radiographs), LABELS, PATIENTS, sources=["only"] * N_IMAGES)
    assert [probe.name for probe in probes] == ["thumbnail", "borders", "corners", "metadata"]


def test_three_classes_are_probed_each_against_the_rest(radiographs: list[np.ndarray]) -> None:
    labels = [index % 3 for index in range(N_IMAGES)]
    sizes = [90_000 if label == 2 else 40_000 for label in labels]
    metadata = next(p for p in run_probes(_summaries(radiographs, sizes), labels, PATIENTS) if p.name == "metadata")
    assert len(metadata.class_aurocs) == 3
    assert metadata.class_aurocs[2] > 0.99
    assert metadata.auroc.value == pytest.approx(np.mean(metadata.class_aurocs))


def test_too_few_patients_give_a_note_and_no_verdict_against_the_model(radiographs: list[np.ndarray]) -> None:
    for n_images, message in ((4, "a label has 2 patients, wanted 4"), (1, "one label"), (0, "one label")):
        probes = run_probes(_summaries(radiographs[:n_images], [1] * n_images), LABELS[:n_images], PATIENTS[:n_images])
        assert all(math.isnan(probe.auroc.value) and message in probe.auroc.note for probe in probes)
        verdict = give_verdict(0.9, probes)
        assert (verdict.verdict, len(verdict.notes)) == ("unknown", 4)


def test_lengths_must_agree(radiographs: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected 100 as there are labels"):
        run_probes(_summaries(radiographs), LABELS, PATIENTS, sources=["a"])


def test_a_seed_gives_one_answer(radiographs: list[np.ndarray]) -> None:
    summaries = _summaries(radiographs)
    first, second = (run_probes(summaries, LABELS, PATIENTS, seed=4)[0] for _ in range(2))
    assert first == second


def test_patients_are_never_on_both_sides_of_a_fold() -> None:
    """Each patient has a pattern of their own and a random label: only who knows the patient can tell it."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    labels = np.repeat(rng.permutation(40) % 2, 5)
    values = rng.normal(size=(40, 60))[patients] + 0.01 * rng.normal(size=(200, 60))
    told = metrics.roc_auc_score(labels, predict_probe(values, labels, patients.astype(str).tolist())[:, 1])
    leaky = predict_probe(values, labels, [str(index) for index in range(200)])
    assert told < 0.7
    assert metrics.roc_auc_score(labels, leaky[:, 1]) > 0.99


# --- the rule


def _probe(name: str, value: float, *, half_width: float = 0.05, classes: tuple[float, ...] = ()) -> Probe:
    target = "source" if name.startswith("source_from") else "label"
    return Probe(name, target, Estimate(value, value - half_width, min(1.0, value + half_width)), 1, classes)


@pytest.mark.parametrize(
    ("name", "value", "model", "verdict"),
    [
        ("thumbnail", 0.94, 0.98, "confounded"),
        ("thumbnail", 0.70, 0.98, "ok"),  # a large finding may show a little
        ("thumbnail", 0.79, 0.80, "confounded"),  # but the model must be better than it
        ("thumbnail", 0.99, 0.60, "confounded"),  # worse than 64 pixels
        ("corners", 0.80, 0.98, "confounded"),
        ("borders", 0.70, 0.98, "ok"),
        ("borders", 0.70, 0.85, "confounded"),
        ("metadata", 0.64, 0.70, "ok"),  # its interval reaches below 0.6
        ("metadata", 0.20, 0.90, "ok"),
        ("metadata", 0.80, 0.45, "confounded"),  # no model
    ],
)
def test_rule_for_one_probe(name: str, value: float, model: float, verdict: str) -> None:
    found = give_verdict(model, [_probe(name, value)])
    assert found.verdict == verdict
    assert len(found.reasons) == (verdict == "confounded")


def test_reasons_carry_both_figures() -> None:
    (reason,) = give_verdict(0.98, [_probe("corners", 0.9)]).reasons
    assert "0.900 (0.850-0.950), the model with 0.980" in reason


def test_source_counts_only_where_images_betray_it() -> None:
    source = _probe("source", 0.9)
    hidden = [_probe("source_from_thumbnail", 0.52), _probe("source_from_features", 0.55)]
    assert give_verdict(0.95, [source]).verdict == "confounded"
    assert give_verdict(
        0.95, [source, _probe("source_from_thumbnail", 0.52), _probe("source_from_features", 0.9)]
    ).reasons
    found = give_verdict(0.95, [source, *hidden])
    assert found.verdict == "ok"
    assert "do not betray it" in found.notes[0]


def test_source_seen_in_the_image_is_harmless_where_it_says_nothing_of_the_label() -> None:
    assert give_verdict(0.9, [_probe("source", 0.55), _probe("source_from_thumbnail", 0.99)]).verdict == "ok"


def test_one_class_of_many_that_is_a_source_is_confounded() -> None:
    classes = (0.55, 0.55, 0.6, 0.6, 1.0)
    assert give_verdict(0.95, [_probe("source", 0.66, classes=classes)]).verdict == "confounded"
    assert give_verdict(0.95, [_probe("source", 0.66, classes=(0.6, 0.6, 0.6, 0.7, 0.8))]).verdict == "ok"
