"""What became of one file: what the stream would do with it, its pictures, and what decided their grays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import ContractError, Reason, RecordError
from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.row import array_from_row
from sparkdl.image.steps import Step
from xray.render.plan import RenderPlan

MADE_BY = "made by xray render"
"""In the first bytes of every file that is written: one without it is somebody else's, and is left alone."""

UNREADABLE = "cannot_be_read"
"""Instead of a `Reason`, where the file itself cannot be read: nothing is known of what the stream would say."""

NOTE = "The pictures may show a patient, or text that is burned into the image: look at them before you attach them."

SETTINGS: Mapping[str, str] = {
    Reason.RECORD_TOO_LARGE: "XRAY_KAFKA__MAX_MESSAGE_BYTES",
    Reason.PAYLOAD_TOO_LARGE: "XRAY_SCORE__MAX_PAYLOAD_BYTES",
    Reason.TOO_MANY_PIXELS: "XRAY_SCORE__MAX_PIXELS",
    Reason.DICOM_FOREIGN_MODALITY: "XRAY_SCORE__MODALITIES",
    Reason.DICOM_FOR_PROCESSING: "XRAY_SCORE__FOR_PROCESSING",
}
"""The setting that decides on a reason; such a file is decoded by `RenderPlan.showing` all the same."""

_BLACK, _WHITE = 0, 255
_ERROR_CLASS = f"{ContractError.__module__}.{ContractError.__qualname__}"
_ORIGIN = "file"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no picture, as a dead letter says it.

    Parameters
    ----------
    reason : str
        A `Reason`, or `UNREADABLE`.
    error_class, error_message : str
        As in a dead letter; no text of the file.
    """

    reason: str
    error_class: str
    error_message: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A setting of the stream that a file goes beyond.

    Parameters
    ----------
    reason : str
        What the stream would say.
    setting : str
        The variable that says how much the stream takes.
    most, found : int
        Its value, and the file's.
    """

    reason: str
    setting: str
    most: int
    found: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was written, and what is in it.

    Parameters
    ----------
    file : str
        Its name, beside this text.
    height, width, channels : int
        In pixels; 1 channel is gray, 3 are colour.
    min, max, mean : float
        Of all values, 0 to 255.
    black_share, white_share : float
        Of all pixels: those that are 0, or 255, in every channel.
    """

    file: str
    height: int
    width: int
    channels: int
    min: int
    max: int
    mean: float
    black_share: float
    white_share: float


@dataclass(frozen=True, slots=True)
class Rendering:
    """What became of one file.

    Parameters
    ----------
    name : str
        Of the file without its folders, safe to print; with hidden names its `image_id`.
    image_id : str
        What ``xray publish`` would call it; with hidden names, or where the file cannot be read, by the content or
        place alone.
    base : str
        What the names of its own outputs begin with.
    media_type : str or None
        What the bytes are; None where they are none of the three formats.
    height, width : int or None
        Of the file, upright; None where no picture came of it.
    payload_bytes : int or None
        Size of the file; None where it cannot be read.
    sha256 : str
        Of the file; empty where it cannot be read.
    plan : RenderPlan
        What decided.
    refusal : Refusal or None
        What the stream would say; None where it takes the file.
    beyond : tuple of Limit
        Settings of the stream that would have to be raised for it.
    behind : Refusal or None
        What it would say then, where that is a refusal too.
    steps : tuple of Step
        What was done to the pixels.
    network, full : Picture or None
        What the network sees, and the same before it is resized.
    """

    name: str
    image_id: str
    base: str
    plan: RenderPlan
    media_type: str | None = None
    height: int | None = None
    width: int | None = None
    payload_bytes: int | None = None
    sha256: str = ""
    refusal: Refusal | None = None
    beyond: tuple[Limit, ...] = ()
    behind: Refusal | None = None
    steps: tuple[Step, ...] = ()
    network: Picture | None = None
    full: Picture | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give all facts for JSON; absent ones are null."""
        refusal = {"reason": None, "error_class": None, "error_message": None}
        return {
            "note": f"{MADE_BY}. {NOTE}",
            "file": self.name,
            "image_id": self.image_id,
            "media_type": self.media_type,
            "height": self.height,
            "width": self.width,
            "payload_bytes": self.payload_bytes,
            "sha256": self.sha256 or None,
            "rendering_version": self.plan.rendering_version,
            "network_size": list(self.plan.size),
            "network_size_from": self.plan.size_from,
            "accepted": self.refusal is None,
            **(asdict(self.refusal) if self.refusal else refusal),
            "beyond_settings": [asdict(limit) for limit in self.beyond],
            "with_larger_limits": asdict(self.behind) if self.behind else None,
            "steps": [asdict(step) for step in self.steps],
            "network": asdict(self.network) if self.network else None,
            "full": asdict(self.full) if self.full else None,
        }


def decode(
    payload: bytes, size: tuple[int, int] | None, limits: DecodeLimits, rendering: int
) -> DecodedImage | Refusal:
    """Decode as the stream does; where that fails, say why in the words of its dead letter.

    Raises
    ------
    MemoryError, ImportError
        They are the machine's fault, not the file's.
    """
    try:
        return decode_image(payload, origin=_ORIGIN, size=size, limits=limits, rendering=rendering)
    except (MemoryError, ImportError):
        raise
    except RecordError as exc:
        return _refuse(exc, exc.reason, exc.detail)
    except Exception as exc:  # the record boundary
        detail = f"an error that nobody foresaw ({type(exc).__name__}); its own words are withheld"
        return _refuse(exc, Reason.UNEXPECTED, detail)


def _refuse(exc: Exception, reason: Reason, detail: str) -> Refusal:
    return Refusal(reason.value, f"{type(exc).__module__}.{type(exc).__qualname__}", detail)


def refuse_unreadable(exc: OSError) -> Refusal:
    """Say why a file cannot be read, without its path."""
    return Refusal(UNREADABLE, type(exc).__name__, exc.strerror or "cannot be read")


def refuse_size(payload_bytes: int, plan: RenderPlan) -> Refusal | None:
    """Say what the stream would say of so many bytes, without a look at them; None where it takes them.

    Kafka's own limit comes first. Where a client compresses, it is the stream that finds out.
    """
    if payload_bytes > plan.max_message_bytes:
        detail = f"the record unpacked has more than {payload_bytes} bytes, expected at most {plan.max_message_bytes}"
        return Refusal(Reason.RECORD_TOO_LARGE.value, _ERROR_CLASS, detail)
    if payload_bytes > plan.limits.max_payload_bytes:
        detail = f"value has {payload_bytes} bytes, expected at most {plan.limits.max_payload_bytes}"
        return Refusal(Reason.PAYLOAD_TOO_LARGE.value, _ERROR_CLASS, detail)
    return None


def find_limits(payload_bytes: int, pixels: int, plan: RenderPlan) -> tuple[Limit, ...]:
    """List the settings that a file goes beyond, in the order in which the stream looks at them."""
    found = {
        Reason.RECORD_TOO_LARGE: (plan.max_message_bytes, payload_bytes),
        Reason.PAYLOAD_TOO_LARGE: (plan.limits.max_payload_bytes, payload_bytes),
        Reason.TOO_MANY_PIXELS: (plan.limits.max_pixels, pixels),
    }
    return tuple(
        Limit(reason.value, SETTINGS[reason], most, has) for reason, (most, has) in found.items() if has > most
    )


def measure(decoded: DecodedImage) -> tuple[npt.NDArray[np.uint8], Mapping[str, Any]]:
    """Give the pixels, (height, width) or (height, width, 3) in RGB order, and the figures of a `Picture`."""
    pixels = array_from_row(decoded.image)
    height, width, channels = pixels.shape
    darkest, brightest = pixels.max(axis=2), pixels.min(axis=2)
    figures = {
        "height": height,
        "width": width,
        "channels": channels,
        "min": int(brightest.min()),
        "max": int(darkest.max()),
        "mean": round(float(pixels.mean()), 2),
        "black_share": round(float((darkest == _BLACK).mean()), 4),
        "white_share": round(float((brightest == _WHITE).mean()), 4),
    }
    return (pixels[..., 0] if channels == 1 else pixels[..., ::-1]), figures
