"""What the worker process computes: a model's features of one image, and the classifier's weights on its last map."""

import io
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.errors import JobError, ModelLoadError
from schemas.modelcard import NOVELTY_FILE, ModelCard, read_card
from sparkdl.engine.activation import ActivationEngine, NoMapError
from sparkdl.engine.base import Engine
from sparkdl.engine.cache import start_engine
from sparkdl.engine.novelty import StoredDetector, read_detector
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.viewer import PNG_TYPE, View
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import MANIFEST_FILE, NETWORK_FOLDER, read_input_size
from sparkdl.transformers.batches import read_row
from sparkdl.transformers.savedstages import read_head, read_network
from streaming.page.pictures.making import ORIGIN, telling
from streaming.page.pictures.picture import PictureUnreadable

_CELL_PX = 32
_OPAQUE = 190  # of 255, where the map is strongest: the image must show through
# Told apart by every kind of colour vision, and seen on the black of air as on the white of bone.
_FOR, _AGAINST = (240, 120, 20), (64, 156, 255)
_MODELS = 2

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Insight:
    """What a model makes of one image.

    Parameters
    ----------
    version, precision : str
        Of the model.
    features : numpy.ndarray
        float32, shape (n_features,).
    map : numpy.ndarray or None
        float32, shape (height, width): weights on the last map, of the positive label's logit.
    intercept : float
        That its mean lacks to the logit.
    why_none : str
        Why there is no map.
    distance, limit : float or None
        Novelty; None of a model that judges every image.
    """

    version: str
    precision: str
    features: Floats = field(repr=False)
    map: Floats | None = None
    intercept: float = 0.0
    why_none: str = ""
    distance: float | None = None
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class _Model:
    """A model, ready to be asked."""

    card: ModelCard
    engine: ActivationEngine | Engine
    weights: npt.NDArray[np.float64] | None
    intercept: float
    why_none: str
    detector: StoredDetector | None


def get_ready() -> None:
    """Import what runs networks."""
    import_openvino()


def look_into(payload: bytes, folder: Path, limits: DecodeLimits) -> Insight:
    """Compute what a model makes of one image.

    Parameters
    ----------
    payload : bytes
        The image.
    folder : Path
        Of the model.
    limits : DecodeLimits
        Those of the stream.

    Raises
    ------
    PictureUnreadable
        The image does not decode, or the model cannot be loaded.
    """
    try:
        model = _load(folder)
    except JobError as exc:
        raise PictureUnreadable(str(exc)) from None
    with telling():
        size, rendering = model.engine.network.input_size, model.card.rendering_version
        image = decode_image(payload, origin=ORIGIN, size=size, limits=limits, rendering=rendering).image
        pixels = read_row(image, model.engine.network)
        weighed = None
        if isinstance(model.engine, ActivationEngine):
            activation = model.engine.infer(pixels)
            features = activation.features
            if model.weights is not None:
                weighed = activation.weigh(model.weights).astype(np.float32)
        else:
            features = model.engine.infer(pixels)
    detector = model.detector
    return Insight(
        model.card.version,
        model.card.precision,
        features,
        weighed,
        model.intercept,
        model.why_none,
        None if detector is None else float(detector.measure_distances(features[np.newaxis])[0]),
        None if detector is None else detector.threshold,
    )


@lru_cache(_MODELS)
def _load(folder: Path) -> _Model:
    card, network = read_card(folder), read_network(folder)
    weights, intercept, why_none = None, 0.0, ""
    engine: ActivationEngine | Engine
    try:
        weights, intercept = read_head(folder).logit_of(card.labels.index(card.positive_label))
        engine = ActivationEngine(network)
    except NoMapError as exc:
        engine, weights, why_none = start_engine(network), None, str(exc)
    detector = None if card.novelty is None else read_detector(folder / NOVELTY_FILE)
    return _Model(card, engine, weights, intercept, why_none, detector)


def read_taken_size(folder: Path) -> tuple[int, int]:
    """Read what images a saved model takes, (height, width) in pixels; its weights are left alone.

    Raises
    ------
    ModelLoadError
        Its first stage has no network that says.
    """
    for manifest in sorted(folder.glob(f"stages/0_*/{NETWORK_FOLDER}/{MANIFEST_FILE}")):
        return read_input_size(manifest.read_bytes())
    msg = f"the model at {folder} has no network in its first stage"
    raise ModelLoadError(msg)


# --- the overlay ------------------------------------------------------------------------------------------------------


def find_peak(weighed: Floats) -> tuple[float, float]:
    """Give the middle of the largest cell as (row, column), each a fraction of the image."""
    row, column = np.unravel_index(int(weighed.argmax()), weighed.shape)
    return (float(row) + 0.5) / weighed.shape[0], (float(column) + 0.5) / weighed.shape[1]


def paint_map(logits: Floats) -> View:
    """Paint a map of logits, shape (height, width), to be laid over the image.

    Returns
    -------
    View
        Transparent PNG: orange where a logit is above 0, blue below, as strong as the logit is.
    """
    height, width = logits.shape
    scaled = Image.fromarray(logits / (float(np.abs(logits).max()) or 1.0))
    smooth = np.asarray(scaled.resize((width * _CELL_PX, height * _CELL_PX), Image.Resampling.BICUBIC))
    painted = np.empty((*smooth.shape, 4), np.uint8)
    painted[..., :3] = np.where(smooth[..., np.newaxis] > 0, _FOR, _AGAINST)
    painted[..., 3] = np.rint(np.minimum(np.abs(smooth), 1) * _OPAQUE)
    buffer = io.BytesIO()
    Image.fromarray(painted).save(buffer, "PNG")
    return View(buffer.getvalue(), PNG_TYPE, smooth.shape[1], smooth.shape[0])
