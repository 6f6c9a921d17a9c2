"""What the worker process does for pictures: functions of bytes that raise nothing but `PictureError`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from schemas.errors import RecordError
from sparkdl.image.files import read_file
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.steps import Step
from sparkdl.image.viewer import View, make_full, make_steps, make_thumbnail
from streaming.page.pictures.picture import PictureUnreadable

ORIGIN = "image"
"""Errors name no place: people see it beside the picture that is missing."""


def get_ready() -> None:
    """Do nothing: calling it has imported this module, and with it every decoder."""


def thumbnail(payload: bytes, limits: DecodeLimits) -> View:
    """Make a thumbnail; see `sparkdl.image.viewer.make_thumbnail`."""
    return _view(make_thumbnail, payload, limits)


def full(payload: bytes, limits: DecodeLimits) -> View:
    """Make a full view; see `sparkdl.image.viewer.make_full`."""
    return _view(make_full, payload, limits)


def steps(payload: bytes, limits: DecodeLimits, size: tuple[int, int], rendering: int) -> list[tuple[Step, View]]:
    """Show each step; see `sparkdl.image.viewer.make_steps`."""
    with telling():
        return make_steps(payload, origin=ORIGIN, size=size, limits=_open(limits), rendering=rendering)


def thumbnail_of_file(path: Path, limits: DecodeLimits) -> View:
    """Make a thumbnail of a training image."""
    with telling():
        try:
            payload = read_file(str(path), limits.max_payload_bytes)
        except OSError as exc:
            msg = f"the training image cannot be read any more: {exc.strerror}"
            raise PictureUnreadable(msg) from exc
    return thumbnail(payload, limits)


def _view(make: Callable[..., View], payload: bytes, limits: DecodeLimits) -> View:
    with telling():
        return make(payload, origin=ORIGIN, limits=_open(limits))


def _open(limits: DecodeLimits) -> DecodeLimits:
    """Allow what the stream refuses by a setting, for people who ask why; the bounds on memory stay."""
    return replace(limits, max_payload_bytes=sys.maxsize, modalities=None, for_processing=True)


@contextmanager
def telling() -> Iterator[None]:
    """Turn what decoding raises into words for people.

    Raises
    ------
    PictureUnreadable
        Instead of any other error but those of the machine.
    """
    try:
        yield
    except (MemoryError, ImportError, PictureUnreadable):
        raise
    except RecordError as exc:
        msg = f"{exc.reason.value}: {exc.detail}"
        raise PictureUnreadable(msg) from None  # errors of libraries do not come through a pipe whole
    except Exception as exc:  # the record boundary: one image, whatever its bytes do
        msg = f"an error that nobody foresaw ({type(exc).__name__}); its own words are withheld"
        raise PictureUnreadable(msg) from None
