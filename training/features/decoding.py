"""Training's first stages, inside a Spark Python worker: files to image rows, and files to what is known of each.

Files are decoded as serving decodes them, larger ones too. It imports no Spark, so that a worker starts fast and the
tests need no JVM.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.files import noting_error, read_file
from sparkdl.image.limits import FILE_LIMITS, RENDERING_VERSION, DecodeLimits
from sparkdl.image.row import IMAGE_ARROW_TYPE, IMAGE_DDL, array_from_row
from training.data.duplicates import HASH_BITS, hash_image
from training.data.summary import summarize_image

DECODED_DDL = f"path string, digest string, image struct<{IMAGE_DDL}>, error string"
"""What decoding gives for every file: either ``image`` or ``error`` is null; ``digest`` is the SHA-256 of the bytes
that were read, null where they were not."""

FACTS_DDL = (
    "path string, digest string, picture binary, height int, width int, n_bytes long, thumbnail array<double>, "
    "borders array<double>, corners array<double>, metadata array<double>, error string"
)
"""What examining gives for every file: see `ImageFacts`. Either ``picture`` or ``error`` is null."""

EXAMINED_PX = 256
"""Side of the image that facts come from, whatever network follows; a JPEG is then shrunk inside its decoder."""

_DECODED = pa.schema(
    [("path", pa.string()), ("digest", pa.string()), ("image", IMAGE_ARROW_TYPE), ("error", pa.string())]
)
_VALUES = pa.list_(pa.float64())
_FACTS = pa.schema(
    [
        ("path", pa.string()),
        ("digest", pa.string()),
        ("picture", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("n_bytes", pa.int64()),
        ("thumbnail", _VALUES),
        ("borders", _VALUES),
        ("corners", _VALUES),
        ("metadata", _VALUES),
        ("error", pa.string()),
    ]
)


def decode_files(
    paths: Sequence[str],
    size: tuple[int, int],
    *,
    limits: DecodeLimits = FILE_LIMITS,
    rendering: int = RENDERING_VERSION,
) -> pa.RecordBatch:
    """Decode files; one that fails carries why.

    Parameters
    ----------
    paths : sequence of str
        Files that this worker can read.
    size : tuple of int
        (height, width) in pixels that the network wants.
    limits : DecodeLimits
        What one file may cost.
    rendering : int
        Rendering version that the network's model is for.

    Returns
    -------
    pyarrow.RecordBatch
        Columns of `DECODED_DDL`, one row per path.
    """
    rows = [_row(path, size, limits, rendering, lambda decoded, _: {"image": asdict(decoded.image)}) for path in paths]
    return pa.RecordBatch.from_pylist(rows, schema=_DECODED)


def examine_files(paths: Sequence[str], *, limits: DecodeLimits = FILE_LIMITS) -> pa.RecordBatch:
    """Find out what training must know of files besides their features; for one that does not decode, why.

    Parameters
    ----------
    paths : sequence of str
        Files that this worker can read.
    limits : DecodeLimits
        What one file may cost.

    Returns
    -------
    pyarrow.RecordBatch
        Columns of `FACTS_DDL`, one row per path.
    """
    size = EXAMINED_PX, EXAMINED_PX
    rows = [_row(path, size, limits, RENDERING_VERSION, _examine) for path in paths]
    return pa.RecordBatch.from_pylist(rows, schema=_FACTS)


def _row(
    path: str,
    size: tuple[int, int],
    limits: DecodeLimits,
    rendering: int,
    make: Callable[[DecodedImage, bytes], dict[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path}
    with noting_error(row, unreadable="cannot be read"):
        payload = read_file(path, limits.max_payload_bytes)
        row["digest"] = hashlib.sha256(payload).hexdigest()
        row |= make(decode_image(payload, origin=path, size=size, limits=limits, rendering=rendering), payload)
    return row


def _examine(decoded: DecodedImage, payload: bytes) -> dict[str, Any]:
    pixels = array_from_row(decoded.image)
    size = decoded.original_height, decoded.original_width
    summary = summarize_image(pixels, original_size=size, n_bytes=len(payload))
    return {
        "picture": hash_image(pixels).to_bytes(HASH_BITS // 8),
        "height": size[0],
        "width": size[1],
        "n_bytes": len(payload),
        "thumbnail": summary.thumbnail,
        "borders": summary.borders,
        "corners": summary.corners,
        "metadata": summary.metadata,
    }
