"""The featurizer of a training: a network, built once and kept."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import RecordError
from sparkdl.engine.quantize import INT8, quantize_network
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import FILE_LIMITS, RENDERING_VERSION, DecodeLimits
from sparkdl.image.row import array_from_row
from sparkdl.network.base import Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.features.cache import FeatureCache, make_key
from training.features.extract import digest_files

_MAX_CALIBRATION_IMAGES = 300


# --- networks ---------------------------------------------------------------------------------------------------------


def make_featurizer(
    name: str,
    *,
    weights: str,
    precision: str,
    seed: int,
    calibration: Sequence[tuple[Path, str]],
    cache: FeatureCache | None = None,
    limits: DecodeLimits = FILE_LIMITS,
) -> DeepImageFeaturizer:
    """Build the featurizer's network, or read it from the cache.

    Parameters
    ----------
    name, weights, precision, seed
        See `DeepImageFeaturizer`.
    calibration : sequence of (Path, str)
        Training images that decode, and their SHA-256; up to 300 of them calibrate int8.
    cache : FeatureCache, optional
        Where built networks are kept.
    limits : DecodeLimits
        What a training image may cost.

    Returns
    -------
    DeepImageFeaturizer
        From ``image`` to ``features``, its network built.

    Raises
    ------
    SettingsError, DependencyError, ModelLoadError
        The network cannot be built as asked.
    """
    featurizer: DeepImageFeaturizer = DeepImageFeaturizer(
        inputCol="image", outputCol="features", modelName=name, weights=weights, precision=precision, seed=seed
    )
    if precision != INT8:
        asked = _network_parts(name, weights, precision, seed)
        # What a stage would build by itself, kept between runs.
        featurizer._network = _cached(cache, asked, lambda: featurizer.network)
        return featurizer
    count = min(len(calibration), _MAX_CALIBRATION_IMAGES)
    chosen = sorted(random.Random(seed).sample(list(calibration), count))
    asked = _network_parts(name, weights, precision, seed, sorted(digest for _, digest in chosen))

    def quantize() -> Network:
        full = make_featurizer(
            name, weights=weights, precision="fp32", seed=seed, calibration=calibration, cache=cache, limits=limits
        ).network
        return quantize_network(full, _decode_images([path for path, _ in chosen], full.input_size, limits))

    featurizer._network = _cached(cache, asked, quantize)
    return featurizer


def _network_parts(
    name: str, weights: str, precision: str, seed: int, calibration: Sequence[str] = ()
) -> dict[str, Any]:
    """Name everything that a built network follows from."""
    known = weights in ("imagenet", "random")
    # int8 ranges are those of pixels; what needs no image is the same network with any rendering.
    rendering = {"rendering": RENDERING_VERSION} if calibration else {}
    return {
        **rendering,
        "name": name,
        "weights": [weights, "" if known else digest_files([Path(weights)])[0]],
        "seed": seed if weights == "random" else 0,
        "precision": precision,
        "calibration": list(calibration),
        "versions": [_version(package) for package in ("xray-stream", "keras", "openvino", "nncf")],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cached(cache: FeatureCache | None, parts: Mapping[str, Any], build: Callable[[], Network]) -> Network:
    if cache is None:
        return build()
    key = make_key(**parts)
    if (network := cache.read_network(key)) is None:
        network = build()
        cache.add_network(key, network)
    return network


def _decode_images(
    paths: Sequence[Path], size: tuple[int, int], limits: DecodeLimits
) -> Iterator[npt.NDArray[np.uint8]]:
    for path in paths:
        try:
            yield array_from_row(decode_image(path.read_bytes(), origin=str(path), size=size, limits=limits).image)
        except (OSError, RecordError):
            continue  # it decoded when it was examined; what changed since will be told when its features are computed
