"""What one device is and does, drawn from the seed: no two vendors behave alike."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydicom.uid import (
    HTJ2K,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

NATIVE = (str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian), str(ExplicitVRBigEndian))
LOSSLESS = tuple(
    map(str, (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, HTJ2K))
)
BASELINE, EXTENDED = str(JPEGBaseline8Bit), str(JPEGExtended12Bit)
CR = str(ComputedRadiographyImageStorage)
DX = str(DigitalXRayImageStorageForPresentation)
SC = str(SecondaryCaptureImageStorage)

# Nobody's: a real maker's name in a generated file might be believed.
_MAKERS = {
    "Imagined Roentgen Works": ("Arc 1", "Arc 2 mobile"),
    "Example Imaging": ("Plate 300", "Plate 500 DR"),
    "Nowhere Medical": ("Beam", "Beam-W"),
    "Placeholder Devices": ("PD-7",),
}
_ECHOING = 0.3
_NAMING = 0.7
_MAX_IMAGES = 3
"""Of a study: frontal, lateral, and one that was taken again."""


class Way(StrEnum):
    """How an object is sent."""

    C_STORE = "c-store"
    STOW = "stow-rs"
    POST_PNG = "post png"
    POST_JPEG = "post jpeg"
    POST_DICOM = "post dicom"


@dataclass(frozen=True)
class Habits:
    """A device.

    Parameters
    ----------
    number : int
        1 is the first.
    seed : int
        Of all devices together.
    way : Way
        How it sends.
    maker, model : str
        Imagined.
    sop_class : str
        `CR`, `DX` or `SC`.
    bits : int
        Stored in each pixel: 8, 10, 12 or 14.
    inverted : bool
        MONOCHROME1.
    syntaxes : tuple of str
        Transfer syntaxes that it proposes, the preferred one first.
    context_each : bool
        Whether each of them is proposed in a presentation context of its own.
    max_images : int
        Of a study, 1 to 3.
    connection_each : bool
        Whether it connects anew for each image; otherwise for each study.
    echoes : bool
        Whether it asks with C-ECHO first.
    retry_s : float
        Wait before the first retry; it doubles up to 16 times that.
    max_pdu_bytes : int
        Of what it sends, where the gateway allows more.
    names_objects : bool
        Whether an HTTP device gives an ``Idempotency-Key``.
    """

    number: int
    seed: int
    way: Way
    maker: str
    model: str
    sop_class: str
    bits: int
    inverted: bool
    syntaxes: tuple[str, ...]
    context_each: bool
    max_images: int
    connection_each: bool
    echoes: bool
    retry_s: float
    max_pdu_bytes: int
    names_objects: bool

    @property
    def aet(self) -> str:
        """Its calling AE title."""
        return f"SIM-{self.number:03d}"

    @property
    def modality(self) -> str:
        """As in DICOM; Secondary Capture comes from a digitised film here."""
        return {CR: "CR", DX: "DX"}.get(self.sop_class, "CR")


def draw_habits(number: int, *, seed: int, http: bool) -> Habits:
    """Draw a device.

    Parameters
    ----------
    number, seed : int
        The same ones give the same device.
    http : bool
        Whether it sends by HTTP.
    """
    rng = np.random.default_rng([seed, number, 0])
    maker = str(rng.choice(sorted(_MAKERS)))
    sop_class = str(rng.choice([CR, DX, SC], p=[0.4, 0.45, 0.15]))
    bits = 8 if sop_class == SC else int(rng.choice([10, 12, 14] if sop_class == DX else [8, 10, 12]))
    return Habits(
        number=number,
        seed=seed,
        way=Way(rng.choice([Way.STOW, Way.POST_PNG, Way.POST_JPEG, Way.POST_DICOM])) if http else Way.C_STORE,
        maker=maker,
        model=str(rng.choice(_MAKERS[maker])),
        sop_class=sop_class,
        bits=bits,
        inverted=bool(rng.random() < 1 / 3),
        syntaxes=_draw_syntaxes(rng, bits),
        context_each=bool(rng.random() < 1 / 2),
        max_images=int(rng.integers(1, _MAX_IMAGES + 1)),
        connection_each=bool(rng.random() < 1 / 2),
        echoes=bool(rng.random() < _ECHOING),
        retry_s=float(rng.uniform(0.5, 2.0)),
        max_pdu_bytes=int(rng.choice([16_384, 32_768, 65_536, 131_072])),
        names_objects=bool(rng.random() < _NAMING),
    )


def _draw_syntaxes(rng: np.random.Generator, bits: int) -> tuple[str, ...]:
    """Most prefer a native one; whoever compresses also proposes those that every receiver has."""
    lossy = [BASELINE] if bits == 8 else [EXTENDED] * (bits == 12)  # noqa: PLR2004
    first = str(rng.choice([*NATIVE, *NATIVE[:2], *LOSSLESS, *lossy]))
    return tuple(dict.fromkeys([first, *NATIVE[1::-1]]))
