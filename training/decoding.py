"""Training's first stage, inside a Spark Python worker: files to image rows, decoded as serving decodes them.

It imports no Spark, so that a worker starts fast and the tests need no JVM.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.errors import RecordError
from sparkdl.decode import decode_image
from sparkdl.imagerow import IMAGE_ARROW_TYPE, IMAGE_DDL

DECODED_DDL = f"path string, image struct<{IMAGE_DDL}>, error string"
"""What decoding gives for every file: either ``image`` or ``error`` is null."""

_SCHEMA = pa.schema([("path", pa.string()), ("image", IMAGE_ARROW_TYPE), ("error", pa.string())])


def decode_files(paths: Sequence[str], size: tuple[int, int]) -> pa.RecordBatch:
    """Decode files; one that fails carries why.

    Parameters
    ----------
    paths : sequence of str
        Files that this worker can read.
    size : tuple of int
        (height, width) in pixels that the network wants.

    Returns
    -------
    pyarrow.RecordBatch
        Columns of `DECODED_DDL`, one row per path.
    """
    return pa.RecordBatch.from_pylist([_decode_file(path, size) for path in paths], schema=_SCHEMA)


def _decode_file(path: str, size: tuple[int, int]) -> dict[str, Any]:
    try:
        decoded = decode_image(Path(path).read_bytes(), origin=path, size=size)
    except MemoryError:
        raise  # the machine's fault, not the file's
    except RecordError as exc:
        return {"path": path, "error": f"{exc.reason}: {exc.detail}"}
    except OSError as exc:
        return {"path": path, "error": f"cannot be read: {exc.strerror}"}
    except Exception as exc:  # the one catch-all: what is a dead letter in the stream is left out here
        return {"path": path, "error": f"unexpected: {type(exc).__name__}: {exc}"}
    return {"path": path, "image": asdict(decoded.image)}
