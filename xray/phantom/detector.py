"""From a ray sum to display values: scatter, noise, blur, contrast, marker and shutter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from xray.phantom.chance import EXPOSURE, NOISE, happens, open_stream
from xray.phantom.images import Map, blur, resize, shrink, smooth


@dataclass(frozen=True)
class Exposure:
    """How the radiograph was taken and shown."""

    photons: float  # per pixel behind no patient
    scatter: float  # scattered over primary, in a thick chest
    contrast: float  # steepness of the display curve
    level: float  # its middle: 0 lung, 1 abdomen
    equalize: float  # how much low-frequency contrast is taken away, 0-1
    sharpness: float  # weight of the detector blur's neighbours
    marker: str
    marker_at: tuple[float, float]  # (row, column) as a fraction of the image
    shutter: tuple[float, float, float, float]  # top, bottom, left, right, as a fraction of the image


def draw_exposure(seed: int) -> Exposure:
    """Draw how one radiograph was taken."""
    rng = open_stream(seed, EXPOSURE)
    left = happens(rng, 0.8)  # "L" stands at the patient's left: the image's right
    shutter = rng.uniform(0.0, 0.035, 4) if happens(rng, 0.4) else np.zeros(4)
    return Exposure(
        photons=float(np.exp(rng.uniform(np.log(1.2e4), np.log(1e5)))),
        scatter=rng.uniform(0.5, 1.0),
        # As wide as departments differ: brightness and contrast alone must say little about a finding.
        contrast=rng.uniform(2.8, 4.8),
        level=rng.uniform(0.26, 0.6),
        equalize=rng.uniform(0.3, 0.6),
        sharpness=rng.uniform(0.12, 0.3),
        marker="L" if left else "R",
        marker_at=(rng.uniform(0.05, 0.13), rng.uniform(0.9, 0.94) if left else rng.uniform(0.06, 0.1)),
        shutter=(float(shutter[0]), float(shutter[1]), float(shutter[2]), float(shutter[3])),
    )


def expose(healthy: Map, disease: Map, lungs: Map, exposure: Exposure, seed: int) -> NDArray[np.uint8]:
    """Turn a ray sum into display values, uint8, shape (height, width)."""
    thumb = shrink(healthy)
    scatter = _scatter(thumb, exposure)
    seen = -np.log(np.exp(-(healthy + disease)) + resize(scatter, healthy.shape))
    noise = open_stream(seed, NOISE).standard_normal(healthy.shape, dtype=np.float32)
    seen += noise * np.exp(seen / 2) / np.float32(np.sqrt(exposure.photons))
    reference = -np.log(np.exp(-thumb) + scatter)
    seen = blur(seen, exposure.sharpness) - resize(exposure.equalize * smooth(reference, 6), healthy.shape)
    shown = _display_curve(seen, reference - exposure.equalize * smooth(reference, 6), shrink(lungs), exposure)
    return _add_marker_and_shutter(shown, exposure)


def _scatter(thumb: Map, exposure: Exposure) -> Map:
    """Model scattered photons: a wide blur of the primary beam, stronger behind a thick body."""
    primary = np.exp(-thumb)
    return exposure.scatter * smooth(np.minimum(primary, 0.15) * np.clip(thumb / 3, 0, 1), 5)


def _display_curve(seen: Map, reference: Map, lungs: Map, exposure: Exposure) -> Map:
    """Window from the lungs to the densest body part, with the soft ends of film; values 0 to 1."""
    dark = float(np.percentile(reference[lungs > 0.5 * lungs.max()], 30))
    bright = float(np.percentile(reference, 92))
    place = (seen - dark) / (bright - dark)
    return np.asarray(1 / (1 + np.exp(-exposure.contrast * (place - exposure.level))))


def _add_marker_and_shutter(shown: Map, exposure: Exposure) -> NDArray[np.uint8]:
    height, width = shown.shape
    pixels = add_letter((shown * 255).clip(0, 255).astype(np.uint8), exposure.marker, exposure.marker_at)
    top, bottom, left, right = exposure.shutter
    pixels[: round(top * height)] = pixels[height - round(bottom * height) :] = 0
    pixels[:, : round(left * width)] = pixels[:, width - round(right * width) :] = 0
    return pixels


def add_letter(pixels: NDArray[np.uint8], letter: str, place: tuple[float, float]) -> NDArray[np.uint8]:
    """Write a letter at ``place`` (row, column), a fraction of the image."""
    height, width = pixels.shape
    canvas = Image.fromarray(pixels)
    font = ImageFont.load_default(0.055 * width)
    ImageDraw.Draw(canvas).text((place[1] * width, place[0] * height), letter, fill=244, font=font, anchor="mm")
    return np.array(canvas)
