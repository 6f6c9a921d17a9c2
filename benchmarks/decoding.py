"""Milliseconds to decode one file to the network's size, beside the other ways there are, in one run on one core.

The others are what one would write without this project: Pillow, pydicom, numpy, and the codecs by themselves, which
only decode; and dcmtk's ``dcm2pnm`` and libjpeg-turbo's ``djpeg`` where they are installed. All take turns, since a
machine's speed moves while one looks, and the ratio is taken within each turn. What is measured is processor time, of
programs without that of their start.

Run it: ``python -m benchmarks.decoding`` (``--help``).
"""

import io
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import typer
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
)

from sparkdl.image.decode import decode_image
from xray.console import err, new_table, print_json, step
from xray.phantom import generate_radiograph

SIDE = 224
"""Pixels of the network's input."""

OURS = "decode_image"

_Pixels = npt.NDArray[np.uint8]
_Deep = npt.NDArray[np.uint16]
_Way = Callable[[], float]


@dataclass(frozen=True)
class File:
    """One file, and the ways to decode it.

    Parameters
    ----------
    name : str
        What it is.
    ways : dict
        By name, each gives the seconds that it took; ours is the first.
    aims : dict
        By the name of another way: what part of its time ours may take.
    """

    name: str
    ways: dict[str, _Way]
    aims: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """Medians over the rounds for one way; ``ratio`` is our time in this one's."""

    file: str
    way: str
    ms: float
    ratio: float
    aim: float | None


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 15,
    smallest: Annotated[bool, typer.Option("--smallest", help="Small images, one turn: does it run?")] = False,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure how long a file takes to decode, beside other ways."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results: list[Result] = []
    with TemporaryDirectory() as folder:
        for file in make_files(Path(folder), 4 if smallest else 1):
            with step(file.name):
                results += measure(file, 1 if smallest else rounds)
    if json_:
        print_json([asdict(result) for result in results])
    else:
        show(results)


def measure(file: File, rounds: int) -> list[Result]:
    """Let all ways take turns; the first turn, which loads libraries, does not count."""
    for way in file.ways.values():
        way()
    turns = [{name: way() for name, way in file.ways.items()} for _ in range(rounds)]
    return [
        Result(
            file.name,
            name,
            1000 * statistics.median(turn[name] for turn in turns),
            statistics.median(turn[OURS] / turn[name] for turn in turns),
            file.aims.get(name),
        )
        for name in file.ways
    ]


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    table = new_table("file", "way", "#ms", "#ours / this", "#aim")
    last = ""
    for r in results:
        aim = f"{r.aim:.2f}" if r.aim else ""
        table.add_row("" if r.file == last else r.file, r.way, f"{r.ms:.1f}", f"{r.ratio:.2f}", aim)
        last = r.file
    err.print(table)


# --- seconds ----------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> _Way:
    """Measure work in this process."""

    def way() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return way


def timed_program(program: str, version: str, *arguments: str, then: Callable[[], Any] = lambda: None) -> _Way:
    """Measure a program without the time of its start, which is what its version takes, and work that follows here."""

    def way() -> float:
        start, seconds = _run(program, version), _run(program, *arguments)
        return max(seconds - start, 1e-6) + timed(then)()

    return way


def _run(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)  # noqa: S603 (our own)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(payload: bytes) -> dict[str, _Way]:
    """Give the way this project decodes."""
    return {OURS: timed(lambda: decode_image(payload, origin="here", size=(SIDE, SIDE)))}


# --- files ------------------------------------------------------------------------------------------------------------


def make_files(folder: Path, divisor: int) -> Iterator[File]:
    """Generate each file when its turn comes; sides are divided for a small run."""
    small = radiograph(1024 // divisor)
    yield png_file(small)
    yield deep_png_file(deepen(small, 12))
    large = radiograph(2048 // divisor)
    yield jpeg_file("gray", large, folder)
    yield jpeg_file("colour", np.dstack([large, np.roll(large, 9, axis=0), large // 2 + 60]), folder)
    yield jpeg_2000_file(deepen(large, 12))
    yield jpeg_lossless_file(deepen(large, 12), folder)
    yield native_file(deepen(radiograph(3072 // divisor), 16), folder)


def radiograph(side: int) -> _Pixels:
    """Generate a square radiograph."""
    return generate_radiograph(1, finding="opacities", height=side, width=side).pixels


def deepen(pixels: _Pixels, bits: int) -> _Deep:
    """Add low bits of noise, as a detector has."""
    noise = np.random.default_rng(0).integers(0, 1 << (bits - 8), pixels.shape, np.uint16)
    deep: _Deep = (pixels.astype(np.uint16) << (bits - 8)) + noise
    return deep


def png_file(pixels: _Pixels) -> File:
    """Make a gray PNG of 8 bits."""
    payload = _encode(pixels, "PNG")
    ways = ours(payload) | {"Pillow": timed(lambda: _shrink(Image.open(io.BytesIO(payload))))}
    return File(f"PNG 8 bits, {_px(pixels)}", ways, {"Pillow": 0.55})


def deep_png_file(pixels: _Deep) -> File:
    """Make a gray PNG of 16 bits, 12 of them in use."""
    payload = _encode(pixels, "PNG")

    def by_pillow() -> None:
        samples = np.asarray(Image.open(io.BytesIO(payload)))
        _shrink(Image.fromarray((samples >> 4).astype(np.uint8)))

    return File(f"PNG 16 bits, {_px(pixels)}", ours(payload) | {"Pillow, >> 4": timed(by_pillow)})


def jpeg_file(kind: str, pixels: _Pixels, folder: Path) -> File:
    """Make a JPEG, which decoders shrink while they decode."""
    payload = _encode(pixels, "JPEG", quality=92)
    path = folder / f"{kind}.jpg"
    path.write_bytes(payload)

    def by_pillow() -> None:
        image = Image.open(io.BytesIO(payload))
        image.draft(None, (2 * SIDE, 2 * SIDE))
        _shrink(image)

    quarter = Image.fromarray(pixels[::4, ::4])
    others = {"Pillow, draft": timed(by_pillow)}
    if djpeg := shutil.which("djpeg"):
        arguments = ("-scale", "1/4", "-outfile", os.devnull, str(path))
        others["djpeg 1/4, resize"] = timed_program(djpeg, "-version", *arguments, then=lambda: _shrink(quarter))
    return File(f"JPEG {kind}, {_px(pixels)}", ours(payload) | others, {"djpeg 1/4, resize": 1.15})


def jpeg_2000_file(pixels: _Deep) -> File:
    """Make a DICOM file of lossless JPEG 2000, 12 bits; dcmtk does not read it."""
    frame = bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True, bitspersample=12, codecformat="j2k"))
    payload = dicom(pixels, JPEG2000Lossless, frame)
    others = {
        "imagecodecs, alone": timed(lambda: imagecodecs.jpeg2k_decode(frame)),
        "Pillow, alone": timed(lambda: Image.open(io.BytesIO(frame)).load()),
        "pydicom": timed(lambda: _by_pydicom(payload)),
    }
    return File(f"JPEG 2000, {_px(pixels)}", ours(payload) | others)


def jpeg_lossless_file(pixels: _Deep, folder: Path) -> File:
    """Make a DICOM file of JPEG lossless, 12 bits."""
    frame = bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12))
    payload = dicom(pixels, JPEGLosslessSV1, frame)
    others = {
        "imagecodecs, alone": timed(lambda: imagecodecs.jpeg8_decode(frame)),
        "ljpeg, alone": timed(lambda: imagecodecs.ljpeg_decode(frame)),
        **_by_dcmtk(payload, folder / "lossless.dcm", "dcmj2pnm"),
    }
    return File(f"JPEG lossless, {_px(pixels)}", ours(payload) | others)


def native_file(pixels: _Deep, folder: Path) -> File:
    """Make an uncompressed DICOM file."""
    payload = dicom(pixels, ExplicitVRLittleEndian, pixels.tobytes(), bits=16)
    stored = pixels.tobytes()
    table = np.minimum(np.arange(1 << 16) // 257, 255).astype(np.uint8)

    def by_numpy() -> None:
        shown = table.take(np.frombuffer(stored, np.uint16).reshape(pixels.shape))
        _area_mean(shown)

    others = {
        "numpy: table, mean": timed(by_numpy),
        "pydicom": timed(lambda: _by_pydicom(payload)),
        **_by_dcmtk(payload, folder / "native.dcm", "dcm2pnm"),
    }
    aims = {"numpy: table, mean": 2.0}
    return File(f"DICOM 16 bits, {_px(pixels)}", ours(payload) | others, aims)


def dicom(pixels: _Deep, syntax: str, data: bytes, *, bits: int = 12) -> bytes:
    """Write a DX image with a window over all its bits; ``data`` are its pixels, compressed or not."""
    dataset = Dataset()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.Modality = "DX"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 1 << (bits - 1), 1 << bits
    dataset.PixelData = data if syntax == ExplicitVRLittleEndian else encapsulate([data])
    dataset["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# --- other ways -------------------------------------------------------------------------------------------------------


def _by_pydicom(payload: bytes) -> None:
    dataset = pydicom.dcmread(io.BytesIO(payload))
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = shown.min(), shown.max()
    _shrink(Image.fromarray(((shown - low) * (255 / ((high - low) or 1))).astype(np.uint8)))


def _by_dcmtk(payload: bytes, path: Path, name: str) -> dict[str, _Way]:
    """Let dcmtk render it with its first window: ``dcmj2pnm`` is the program that reads JPEG, too."""
    path.write_bytes(payload)
    program = shutil.which(name)
    if program is None:
        return {}
    arguments = ("+Wi", "1", "+Sxv", str(SIDE), "+Syv", str(SIDE), str(path), os.devnull)
    return {name: timed_program(program, "--version", *arguments)}


def _area_mean(shown: _Pixels) -> npt.NDArray[np.float64]:
    """Shrink by the mean of the pixels that fall into each of SIDE x SIDE areas."""
    rows, columns = (np.arange(SIDE) * side // SIDE for side in shown.shape)
    sums = np.add.reduceat(np.add.reduceat(shown, rows, axis=0, dtype=np.uint32), columns, axis=1)
    heights, widths = (np.diff(starts, append=side) for starts, side in zip((rows, columns), shown.shape, strict=True))
    return sums / np.outer(heights, widths)


def _shrink(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _encode(pixels: npt.NDArray[Any], file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def _px(pixels: npt.NDArray[Any]) -> str:
    return f"{pixels.shape[0]} px"


if __name__ == "__main__":
    typer.run(main)
