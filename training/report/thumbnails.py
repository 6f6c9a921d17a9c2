"""Pictures of misjudged images, small and inside the page."""

import base64
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.errors import RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import array_from_row

SIDE_PX = 160
_JPEG_QUALITY = 85
_LIMITS = DecodeLimits(max_payload_bytes=sys.maxsize)  # training has read these files, within its own limit


@dataclass(frozen=True)
class Thumbnail:
    """A picture, or why there is none.

    Parameters
    ----------
    uri : str
        A ``data:`` URI; empty where there is none.
    width, height : int
        In pixels; 0 where there is none.
    error : str
        Why there is none.
    """

    uri: str
    width: int = 0
    height: int = 0
    error: str = ""


def make_thumbnail(path: Path) -> Thumbnail:
    """Decode a file as serving does, and shrink it to at most 160 pixels a side.

    Parameters
    ----------
    path : Path
        A PNG, JPEG or DICOM file.

    Returns
    -------
    Thumbnail
        A file that cannot be read or decoded any more gives one without a picture.
    """
    try:
        # The name is left out of the error: the page shows it once, escaped and without folders.
        row = decode_image(path.read_bytes(), origin=path.name, limits=_LIMITS).image
    except RecordError as exc:
        return Thumbnail("", error=exc.reason.replace("_", " "))
    except OSError as exc:
        return Thumbnail("", error=exc.strerror or "cannot be read")
    pixels = array_from_row(row)
    scale = SIDE_PX / max(row.height, row.width)
    height, width = (max(1, round(side * min(scale, 1.0))) for side in (row.height, row.width))
    small = resize_pixels(np.ascontiguousarray(pixels), (height, width))
    image = Image.fromarray(small[..., 0] if row.nChannels == 1 else np.ascontiguousarray(small[..., 2::-1]))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", width, height)
