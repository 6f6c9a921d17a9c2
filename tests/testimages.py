"""Synthetic image files: good ones of each kind, and one known-wrong file for each reason a record can fail.

Everything is generated: no pixel and no identifier belongs to anybody. Height is unlike width and each channel unlike
the others, so a swapped axis or channel cannot pass. Builders return bytes and are deterministic.

>>> good_files()["gray.png"][:4]
b'\\x89PNG'
>>> sorted(wrong_files()["cmyk.jpg"])  # doctest: +SKIP
"""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gdcm
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from schemas.errors import Reason

HEIGHT, WIDTH = 48, 80
PATIENT_NAME = "Example^Synthetic"  # in every DICOM file, so a test can search for it where it must not be
PATIENT_ID = "SYN-0001"

MAX_PAYLOAD_BYTES = 20_000_000
"""The limit that `wrong_files` break: a file above the default one gets through no broker."""


@dataclass(frozen=True)
class WrongFile:
    """A message that must become a dead letter, and the reason it must carry."""

    payload: bytes | None
    reason: Reason
    content_type: str | None = None


# --- pixels -----------------------------------------------------------------------------------------------------------


def gray_pixels(height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """Smooth and asymmetric: brighter to the right, twice as much as downwards, with a bright block at the top left."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = 20 + 60 * rows / height + 120 * columns / width
    pixels[: height // 4, : width // 4] = 240
    return np.asarray(pixels, np.uint8)


def rgb_pixels(height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """Red runs down, green runs right, blue stays: no two channels alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 60 + 180 * rows / height, 10 + 100 * columns / width
    return np.stack([red, green, np.full_like(red, 30)], axis=-1).astype(np.uint8)


def twelve_bit_pixels(height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint16]:
    """Like `gray_pixels`, from 320 to 3,840 of 4,095, with every low bit in use."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.asarray(gray_pixels(height, width).astype(np.uint16) * 16 + (rows + columns) % 16, np.uint16)


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


def encode(image: Image.Image | npt.NDArray[Any], file_format: str, **options: Any) -> bytes:
    """Encode pixels (RGB order) or a Pillow image."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(pixels: npt.NDArray[Any] | None = None, **options: Any) -> bytes:
    return encode(gray_pixels() if pixels is None else pixels, "PNG", **options)


def jpeg(pixels: npt.NDArray[Any] | None = None, **options: Any) -> bytes:
    return encode(gray_pixels() if pixels is None else pixels, "JPEG", **{"quality": 95, **options})


def rgba_png() -> bytes:
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, WIDTH // 2 :] = 200  # the left half is transparent, yet has colours
    return png(np.concatenate([rgb_pixels(), alpha], axis=-1))


def gray_alpha_png() -> bytes:
    return png(np.stack([gray_pixels(), np.zeros((HEIGHT, WIDTH), np.uint8)], axis=-1))


def palette_png() -> bytes:
    return encode(Image.fromarray(rgb_pixels()).quantize(32), "PNG")


def bilevel_png() -> bytes:
    return encode(Image.fromarray(gray_pixels()).point(lambda value: 255 * (value > 100)).convert("1"), "PNG")


def rotated_jpeg(orientation: int = 6) -> bytes:
    """Lie on its side with an EXIF orientation; upright it is HEIGHT x WIDTH for 1 to 4, WIDTH x HEIGHT for 5 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def cmyk_jpeg() -> bytes:
    return encode(Image.fromarray(rgb_pixels()).convert("CMYK"), "JPEG")


def animated_png() -> bytes:
    frames = [Image.fromarray(gray_pixels()), Image.fromarray(255 - gray_pixels())]
    return encode(frames[0], "PNG", save_all=True, append_images=frames[1:])


def mpo() -> bytes:
    frames = [Image.fromarray(rgb_pixels()), Image.fromarray(255 - rgb_pixels())]
    return encode(frames[0], "MPO", save_all=True, append_images=frames[1:])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step between rows, step between columns of each pass."""


def png16(samples: npt.NDArray[Any], *, interlaced: bool = False, chunks: bytes = b"") -> bytes:
    """Write uint16 samples of shape (height, width, 1 to 4), which Pillow does not: gray, gray and alpha, RGB, RGBA."""
    height, width, channels = samples.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [samples[y::down, x::right] for y, x, down, right in (_ADAM7 if interlaced else _WHOLE)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, interlaced)
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + body


def deep_samples(channels: int, *, bits: int = 12) -> npt.NDArray[np.uint16]:
    """Give `twelve_bit_pixels` in each channel, shifted up to ``bits``; alpha, the last of 2 or 4, is opaque."""
    samples = np.stack([twelve_bit_pixels() << (bits - 12)] * channels, axis=-1)
    if channels in (2, 4):
        samples[..., -1] = 65535
    return samples


def one_gray_palette_png() -> bytes:
    """Hold a picture in the palette's indices, all of which stand for one colour."""
    image = Image.fromarray(gray_pixels(), "P")
    image.putpalette([10, 20, 30] * 256)
    return encode(image, "PNG")


def drawn_in_alpha_png() -> bytes:
    """Hold a picture in the alpha channel of a black image."""
    return png(np.stack([np.zeros_like(gray_pixels()), gray_pixels()], axis=-1))


@cache
def png_bomb(side: int = 20_000) -> bytes:
    """Claim side x side gray pixels in a few hundred kB or less: all are zero."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_with_short_data() -> bytes:
    """Hold well-formed chunks, but only the first half of the compressed rows."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in gray_pixels()))
    rows = rows[: len(rows) // 2]
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_with_damaged_data() -> bytes:
    """Hold good check sums over bytes that do not inflate."""
    whole = bytearray(png())
    at = whole.index(b"IDAT")
    length = int.from_bytes(whole[at - 4 : at], "big")
    body = bytes(whole[at + 4 : at + 8]) + b"\xff" * (length - 4)
    return bytes(whole[: at - 4]) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def png_with_wrong_checksum() -> bytes:
    """Change one pixel of uncompressed rows: they still inflate, only the sums know."""
    whole = bytearray(png(compress_level=0))
    whole[whole.index(b"IDAT") + 400] ^= 0x40
    return bytes(whole)


def twelve_bit_jpeg(*, lossless: bool = False) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(twelve_bit_pixels(), level=95, bitspersample=12, lossless=lossless))


def jpeg_with_damaged_tables() -> bytes:
    """Hold a quantisation table of impossible precision."""
    whole = bytearray(jpeg())
    whole[whole.index(b"\xff\xdb") + 4] = 0xFF
    return bytes(whole)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def dicom_dataset(
    pixels: npt.NDArray[Any] | None = None, *, bits_stored: int = 12, photometric: str = "MONOCHROME2", **elements: Any
) -> Dataset:
    """Build a DX image's data set; ``elements`` are added by keyword, None removes one."""
    pixels = twelve_bit_pixels() if pixels is None else pixels
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.Modality = "DX"
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = PATIENT_ID
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_dicom(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Write a file with preamble and file meta information."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: npt.NDArray[Any] | None = None, *, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """Build an uncompressed DICOM file; see `dicom_dataset`."""
    return write_dicom(dicom_dataset(pixels, **elements), syntax)


def big_endian_dicom(pixels: npt.NDArray[Any] | None = None, **elements: Any) -> bytes:
    pixels = twelve_bit_pixels() if pixels is None else pixels
    if pixels.dtype.itemsize == 1:  # two 8-bit pixels to a word, the first in its low byte
        dataset = dicom_dataset(pixels, **elements)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
        dataset["PixelData"].VR = "OW"
    else:
        dataset = dicom_dataset(pixels.astype(pixels.dtype.newbyteorder(">")), **elements)
    return write_dicom(dataset, ExplicitVRBigEndian)


def bare_dicom(*, implicit: bool = True) -> bytes:
    """Write the data set alone: no preamble, no file meta information."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    write_dataset(stream, dicom_dataset())
    return bytes(stream.getvalue())


def dicom_without_preamble() -> bytes:
    """Begin with the file meta information itself."""
    return dicom()[132:]


def encapsulated_dicom(frame: bytes, syntax: str, pixels: npt.NDArray[Any], **elements: Any) -> bytes:
    """Wrap an already compressed frame; ``pixels`` gives size and depth."""
    dataset = dicom_dataset(pixels, **elements)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return write_dicom(dataset, syntax)


def rle_dicom() -> bytes:
    dataset = dicom_dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return write_dicom(dataset, RLELossless)


def jpeg_baseline_dicom() -> bytes:
    return encapsulated_dicom(jpeg(), JPEGBaseline8Bit, gray_pixels(), bits_stored=8)


def jpeg2000_dicom() -> bytes:
    """Hold a lossless JPEG 2000 codestream of 16-bit precision, made by Pillow."""
    pixels = twelve_bit_pixels()
    frame = encode(Image.fromarray(pixels), "JPEG2000", irreversible=False, no_jp2=True)
    return encapsulated_dicom(frame, JPEG2000Lossless, pixels, bits_stored=16, WindowCenter=2048, WindowWidth=4096)


def gdcm_dicom(syntax: str, **elements: Any) -> bytes:
    """Compress `dicom` with gdcm."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder, "source.dcm")), str(Path(folder, "target.dcm"))
        Path(source).write_bytes(dicom(**elements))
        reader = gdcm.ImageReader()
        reader.SetFileName(source)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(target).read_bytes()


def deflated_dicom() -> bytes:
    return dicom(syntax=DeflatedExplicitVRLittleEndian)


def lookup_table(
    entries: list[int] | bytes, *, first: int, bits: int, count: int | None = None, vr: str | None = None
) -> Sequence:
    """Build a Modality or VOI LUT Sequence of one item: entries as numbers (US) or as they lie in the file (OW)."""
    length = len(entries) if count is None else count
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [length % 65536, first, bits])
    item.add_new("LUTData", vr or ("OW" if isinstance(entries, bytes) else "US"), entries)
    return Sequence([item])


def unclear_lookup_table() -> Sequence:
    """Give entries of 12 bits but for a few of 16: they may be damage, or the others dark."""
    return lookup_table([*range(4056), *[65535] * 40], first=0, bits=16)


def icon_only_dicom() -> bytes:
    """Hold pixels in the Icon Image Sequence alone."""
    dataset = dicom_dataset(PixelData=None)
    dataset.IconImageSequence = Sequence([dicom_dataset(gray_pixels(8, 8), bits_stored=8)])
    return write_dicom(dataset)


def structured_report() -> bytes:
    """Hold no pixels at all."""
    keywords = ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    nothing: dict[str, Any] = dict.fromkeys(keywords)
    return dicom(**nothing)


def colour_dicom() -> bytes:
    pixels = rgb_pixels()
    return dicom(pixels, bits_stored=8, photometric="RGB", SamplesPerPixel=3, PlanarConfiguration=0)


def multi_frame_dicom() -> bytes:
    dataset = dicom_dataset(NumberOfFrames=3)
    dataset.PixelData = dataset.PixelData * 3
    return write_dicom(dataset)


def float_dicom() -> bytes:
    dataset = dicom_dataset(PixelData=None)
    dataset.FloatPixelData = twelve_bit_pixels().astype(np.float32).tobytes()
    return write_dicom(dataset)


def dicom_with_other_size_inside() -> bytes:
    """Say 48 x 80 in the header and compress another size, as a decompression bomb would."""
    return encapsulated_dicom(jpeg(gray_pixels(96, 160)), JPEGBaseline8Bit, gray_pixels(), bits_stored=8)


# --- collections ------------------------------------------------------------------------------------------------------


def good_files() -> dict[str, bytes]:
    """Give one file of each kind that decodes, by name; all are HEIGHT x WIDTH upright."""
    gray_as_colour = np.stack([gray_pixels()] * 3, axis=-1)
    builders: dict[str, Callable[[], bytes]] = {
        "gray.png": png,
        "gray16.png": lambda: png(twelve_bit_pixels()),
        "colour.png": lambda: png(rgb_pixels()),
        "gray_as_colour.png": lambda: png(gray_as_colour),
        "rgba.png": rgba_png,
        "gray_alpha.png": gray_alpha_png,
        "colour16.png": lambda: png16(rgb_pixels().astype(np.uint16) * 257, chunks=png_chunk(b"sBIT", b"\x10\x10\x10")),
        "gray_as_colour16.png": lambda: png16(deep_samples(3)),
        "gray_alpha16.png": lambda: png16(deep_samples(2, bits=16), interlaced=True),
        "rgba16.png": lambda: png16(deep_samples(4)),
        "palette.png": palette_png,
        "bilevel.png": bilevel_png,
        "gray.jpg": jpeg,
        "colour.jpg": lambda: jpeg(rgb_pixels(), subsampling=0),
        "progressive.jpg": lambda: jpeg(progressive=True),
        "upside_down.jpg": lambda: rotated_jpeg(3),
        "explicit.dcm": dicom,
        "implicit.dcm": lambda: dicom(syntax=ImplicitVRLittleEndian),
        "big_endian.dcm": big_endian_dicom,
        "monochrome1.dcm": lambda: dicom(photometric="MONOCHROME1"),
        "bare_implicit.dcm": bare_dicom,
        "bare_explicit.dcm": lambda: bare_dicom(implicit=False),
        "no_preamble.dcm": dicom_without_preamble,
        "rle.dcm": rle_dicom,
        "jpeg_baseline.dcm": jpeg_baseline_dicom,
        "jpeg_lossless.dcm": lambda: gdcm_dicom(JPEGLosslessSV1),
        "jpeg_ls.dcm": lambda: gdcm_dicom(JPEGLSLossless),
        "jpeg2000.dcm": jpeg2000_dicom,
        "jpeg2000_gdcm.dcm": lambda: gdcm_dicom(JPEG2000Lossless),
    }
    return {name: build() for name, build in builders.items()}


def wrong_files() -> dict[str, WrongFile]:
    """Give one message of each kind that must fail, by name, with the reason it must carry."""
    wrong = {
        "tombstone": WrongFile(None, Reason.TOMBSTONE),
        "empty": WrongFile(b"", Reason.EMPTY_PAYLOAD),
        "too_large.png": WrongFile(png() + bytes(MAX_PAYLOAD_BYTES), Reason.PAYLOAD_TOO_LARGE),
        "structured": WrongFile(b'{"specversion":"1.0"}', Reason.STRUCTURED_MODE, "application/cloudevents+json"),
        "text": WrongFile(b"this is no image", Reason.UNSUPPORTED_FORMAT),
        "gray.gif": WrongFile(encode(gray_pixels(), "GIF"), Reason.UNSUPPORTED_FORMAT),
        "mismatch": WrongFile(png(), Reason.CONTENT_TYPE_MISMATCH, "image/jpeg"),
        "bomb.png": WrongFile(png_bomb(), Reason.TOO_MANY_PIXELS),
        "animated.png": WrongFile(animated_png(), Reason.MULTI_FRAME),
        "cmyk.jpg": WrongFile(cmyk_jpeg(), Reason.UNSUPPORTED_COLOR),
        "twelve_bits.jpg": WrongFile(twelve_bit_jpeg(), Reason.UNSUPPORTED_BIT_DEPTH),
        "lossless_twelve_bits.jpg": WrongFile(twelve_bit_jpeg(lossless=True), Reason.UNSUPPORTED_BIT_DEPTH),
        "jpeg_ls.jpg": WrongFile(bytes(imagecodecs.jpegls_encode(gray_pixels())), Reason.UNSUPPORTED_FORMAT),
        "one_gray_16.png": WrongFile(png(65534 + twelve_bit_pixels() % 2), Reason.BLANK_RENDERING),
        "one_gray_palette.png": WrongFile(one_gray_palette_png(), Reason.BLANK_RENDERING),
        "drawn_in_alpha.png": WrongFile(drawn_in_alpha_png(), Reason.BLANK_RENDERING),
        "truncated.png": WrongFile(png()[:-40], Reason.TRUNCATED_IMAGE),
        "without_end.png": WrongFile(png()[:-12], Reason.TRUNCATED_IMAGE),
        "short_data.png": WrongFile(png_with_short_data(), Reason.TRUNCATED_IMAGE),
        "truncated.jpg": WrongFile(jpeg()[:-200], Reason.TRUNCATED_IMAGE),
        "without_end.jpg": WrongFile(jpeg()[:-2], Reason.TRUNCATED_IMAGE),
        "wrong_checksum.png": WrongFile(png_with_wrong_checksum(), Reason.CORRUPT_IMAGE),
        "damaged_data.png": WrongFile(png_with_damaged_data(), Reason.CORRUPT_IMAGE),
        "damaged_tables.jpg": WrongFile(jpeg_with_damaged_tables(), Reason.CORRUPT_IMAGE),
    }
    return wrong | wrong_dicom_files()


def wrong_dicom_files() -> dict[str, WrongFile]:
    """Give the DICOM files of `wrong_files`."""
    unread = Reason.DICOM_UNSUPPORTED_TRANSFER_SYNTAX
    return {
        "report.dcm": WrongFile(structured_report(), Reason.DICOM_NO_PIXEL_DATA),
        "colour.dcm": WrongFile(colour_dicom(), Reason.UNSUPPORTED_COLOR),
        "palette.dcm": WrongFile(dicom(photometric="PALETTE COLOR"), Reason.UNSUPPORTED_COLOR),
        "multi_frame.dcm": WrongFile(multi_frame_dicom(), Reason.MULTI_FRAME),
        "float.dcm": WrongFile(float_dicom(), Reason.DICOM_UNSUPPORTED_PIXELS),
        "32_bits.dcm": WrongFile(
            dicom(twelve_bit_pixels().astype(np.uint32), bits_stored=32), Reason.DICOM_UNSUPPORTED_PIXELS
        ),
        "high_bit.dcm": WrongFile(dicom(HighBit=16), Reason.DICOM_UNSUPPORTED_PIXELS),
        "unclear_lut.dcm": WrongFile(dicom(VOILUTSequence=unclear_lookup_table()), Reason.DICOM_UNSUPPORTED_LUT),
        "icon_only.dcm": WrongFile(icon_only_dicom(), Reason.DICOM_NO_PIXEL_DATA),
        "tomogram.dcm": WrongFile(dicom(Modality="CT"), Reason.DICOM_FOREIGN_MODALITY),
        "raw.dcm": WrongFile(dicom(PresentationIntentType="FOR PROCESSING"), Reason.DICOM_FOR_PROCESSING),
        "window_elsewhere.dcm": WrongFile(dicom(WindowCenter=60_000, WindowWidth=400), Reason.BLANK_RENDERING),
        "flat_lut.dcm": WrongFile(
            dicom(VOILUTSequence=lookup_table([255] * 4096, first=0, bits=8)), Reason.BLANK_RENDERING
        ),
        "huge.dcm": WrongFile(dicom(Rows=60_000, Columns=60_000), Reason.TOO_MANY_PIXELS),
        "deflated.dcm": WrongFile(deflated_dicom(), unread),
        "film.dcm": WrongFile(encapsulated_dicom(b"\0\0\1\xb3", MPEG2MPML, gray_pixels(), bits_stored=8), unread),
        "htj2k.dcm": WrongFile(
            encapsulated_dicom(b"\xff\x4f", HTJ2KLossless, gray_pixels(), bits_stored=8), Reason.DICOM_CORRUPT
        ),
        "truncated.dcm": WrongFile(dicom()[:-1000], Reason.DICOM_CORRUPT),
        "truncated_jpeg.dcm": WrongFile(jpeg_baseline_dicom()[:-300], Reason.DICOM_CORRUPT),
        "other_size_inside.dcm": WrongFile(dicom_with_other_size_inside(), Reason.DICOM_CORRUPT),
        "no_rows.dcm": WrongFile(dicom(Rows=None), Reason.DICOM_CORRUPT),
        "zero_rows.dcm": WrongFile(dicom(Rows=0), Reason.DICOM_CORRUPT),
        "magic_only.dcm": WrongFile(bytes(128) + b"DICM", Reason.DICOM_CORRUPT),
        "zero_slope.dcm": WrongFile(dicom(RescaleSlope=0, RescaleIntercept=0), Reason.DICOM_CORRUPT),
    }
