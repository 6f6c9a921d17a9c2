"""Rendering version 1 must not move: pixels are compared with those that the release made which had no other.

The hashes were printed there, on files of the same makers, by ``decode_image`` for each of `SIZES`.
"""

import hashlib
import inspect

import numpy as np
import pytest
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless

from schemas.errors import Reason, RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS
from tests.testimages import (
    bare_dicom,
    big_endian_dicom,
    bilevel_png,
    deep_samples,
    dicom,
    dicom_dataset,
    encode,
    gdcm_dicom,
    gray_alpha_png,
    gray_pixels,
    jpeg,
    jpeg2000_dicom,
    jpeg_baseline_dicom,
    lookup_table,
    mpo,
    palette_png,
    png,
    png16,
    rgb_pixels,
    rgba_png,
    rle_dicom,
    rotated_jpeg,
    twelve_bit_pixels,
)

SIZES = (None, (20, 24))


def _hot() -> np.ndarray:
    """One pixel of all 16 bits in a picture of 12: full scale is then 16 bits."""
    pixels = twelve_bit_pixels()
    pixels[0, 0] = 65535
    return pixels


def _padded() -> np.ndarray:
    pixels = twelve_bit_pixels()
    pixels[:6] = 0
    return pixels


def _turned_png() -> bytes:
    """The EXIF block of a PNG, which version 1 does not look at."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(gray_pixels()), "PNG", exif=exif)


FILES = {
    "gray.png": png,
    "gray12.png": lambda: png(twelve_bit_pixels()),
    "gray16_hot.png": lambda: png(_hot()),
    "colour.png": lambda: png(rgb_pixels()),
    "colour16.png": lambda: png16(deep_samples(3, bits=16), interlaced=True),
    "rgba.png": rgba_png,
    "gray_alpha.png": gray_alpha_png,
    "palette.png": palette_png,
    "bilevel.png": bilevel_png,
    "turned.png": _turned_png,
    "gray.jpg": lambda: jpeg(gray_pixels(400, 300)),
    "colour.jpg": lambda: jpeg(rgb_pixels(400, 300)),
    "turned.jpg": lambda: rotated_jpeg(6),
    "range.dcm": dicom,
    "window.dcm": lambda: dicom(syntax=ImplicitVRLittleEndian, WindowCenter=2048, WindowWidth=1500),
    "sigmoid.dcm": lambda: dicom(WindowCenter=2048, WindowWidth=1500, VOILUTFunction="SIGMOID"),
    "exact.dcm": lambda: dicom(
        twelve_bit_pixels().astype(np.int16) - 1024,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=1000,
        WindowWidth=3000,
        VOILUTFunction="LINEAR_EXACT",
    ),
    "inverted_padded.dcm": lambda: dicom(_padded(), photometric="MONOCHROME1", PixelPaddingValue=0),
    "voi_lut.dcm": lambda: dicom(
        VOILUTSequence=lookup_table([round(4 * value**0.5) for value in range(4096)], first=0, bits=8)
    ),
    "modality_lut.dcm": lambda: dicom(
        ModalityLUTSequence=lookup_table([round(64 * value**0.5) for value in range(4096)], first=0, bits=12)
    ),
    "big_endian.dcm": big_endian_dicom,
    "bare.dcm": bare_dicom,
    "rle.dcm": rle_dicom,
    "baseline.dcm": jpeg_baseline_dicom,
    "lossless.dcm": lambda: gdcm_dicom(JPEGLosslessSV1),
    "jpeg_ls.dcm": lambda: gdcm_dicom(JPEGLSLossless, WindowCenter=1500, WindowWidth=2500),
    "jpeg2000.dcm": jpeg2000_dicom,
}

HASHES = {
    "gray.png": ("250333415bba036d242dc240", "bf38aa918342c95dd6b9bcfe"),
    "gray12.png": ("2900e73ac47eda5071145f3a", "a63f64c7b9282ba40f143c9c"),
    "gray16_hot.png": ("943d5b9ea82d7bb7917e5b5d", "752a829f118d495b05e3d6e9"),
    "colour.png": ("ce3cb8fc46ed46d05a5179cf", "fdd057494c1ded04305c3a45"),
    "colour16.png": ("250333415bba036d242dc240", "bf38aa918342c95dd6b9bcfe"),
    "rgba.png": ("ce3cb8fc46ed46d05a5179cf", "fdd057494c1ded04305c3a45"),
    "gray_alpha.png": ("250333415bba036d242dc240", "bf38aa918342c95dd6b9bcfe"),
    "palette.png": ("206a42c734d34b651ea79665", "51fa90f54901b980477e1f88"),
    "bilevel.png": ("178ec136aa801379a4c6b6a4", "4ffb9b7f777db38bb0b55621"),
    "turned.png": ("250333415bba036d242dc240", "bf38aa918342c95dd6b9bcfe"),
    "gray.jpg": ("249167dc050a773f0531acde", "1f5f8d0dec58be3abd91239f"),
    "colour.jpg": ("ca4d457e5cb49bb4d393c205", "88aa6401dca27e142ad668de"),
    "turned.jpg": ("a7acdbac5ac394f842acaefd", "8251a57f6f2be9c3917b2078"),
    "range.dcm": ("253328ada04393efb0cf3a42", "2911a121485c674166bed3f6"),
    "window.dcm": ("55a4b74a0a675b13ca3ffbac", "4ca4708147525bcbe6280be2"),
    "sigmoid.dcm": ("fb9847a866e75ff3f81f45cf", "3592ce32c8c430e17adc0b79"),
    "exact.dcm": ("e2aecb286a77e610d53ef695", "986c417870dfd1726f2683cd"),
    "inverted_padded.dcm": ("998079df76e098cdac84c5a2", "a4b536adbf11303f950218d8"),
    "voi_lut.dcm": ("2d9951c4243bbcb272a5811c", "bf46a67ad1d5b655b5bb8a5e"),
    "modality_lut.dcm": ("237cf930f846f6946d045c5f", "c9ebcc0f9e6fd57b05fb31eb"),
    "big_endian.dcm": ("253328ada04393efb0cf3a42", "2911a121485c674166bed3f6"),
    "bare.dcm": ("253328ada04393efb0cf3a42", "2911a121485c674166bed3f6"),
    "rle.dcm": ("253328ada04393efb0cf3a42", "2911a121485c674166bed3f6"),
    "baseline.dcm": ("fb1f4ffe70b70936761a822b", "a3dfaf958c8829d4efc21e65"),
    "lossless.dcm": ("253328ada04393efb0cf3a42", "2911a121485c674166bed3f6"),
    "jpeg_ls.dcm": ("6cf8f6c55d045507c9a2822f", "60eebde94df196c93cef27e1"),
    "jpeg2000.dcm": ("2900e73ac47eda5071145f3a", "a63f64c7b9282ba40f143c9c"),
}


def hash_pixels(payload: bytes, size: tuple[int, int] | None, **options: int) -> str:
    image = decode_image(payload, origin="x", size=size, **options).image
    return hashlib.sha256(f"{image.height}x{image.width}x{image.nChannels} ".encode() + image.data).hexdigest()[:24]


def bare_big_endian(**elements: object) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = False, False
    write_dataset(stream, dicom_dataset(**elements))
    return bytes(stream.getvalue())


def test_every_file_has_its_hashes():
    assert HASHES.keys() == FILES.keys()
    assert len({one for both in HASHES.values() for one in both}) > len(FILES)  # they are not all of one picture


@pytest.mark.parametrize("name", FILES)
def test_no_pixel_has_moved(name):
    payload = FILES[name]()
    assert tuple(hash_pixels(payload, size, rendering=1) for size in SIZES) == HASHES[name]


REFUSED = {
    "bare big-endian data set": (bare_big_endian, Reason.UNSUPPORTED_FORMAT),
    "bare big-endian data set of 16 bits": (lambda: bare_big_endian(bits_stored=16), Reason.UNSUPPORTED_FORMAT),
    "bare big-endian data set, inverted": (
        lambda: bare_big_endian(photometric="MONOCHROME1"),
        Reason.UNSUPPORTED_FORMAT,
    ),
    "two pictures in one JPEG": (mpo, Reason.MULTI_FRAME),
    "window of no width": (lambda: dicom(WindowCenter=2048, WindowWidth=0), Reason.DICOM_CORRUPT),
    "high bit above the stored ones": (lambda: dicom(HighBit=15), Reason.DICOM_UNSUPPORTED_PIXELS),
    "LUT of 12 bits that says 16": (
        lambda: dicom(VOILUTSequence=lookup_table([round(64 * i**0.5) for i in range(4096)], first=0, bits=16)),
        Reason.DICOM_UNSUPPORTED_LUT,
    ),
    "colours of 12 bits": (lambda: png16(deep_samples(3)), Reason.UNSUPPORTED_BIT_DEPTH),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_version_1_refused_it_refuses(kind):
    build, reason = REFUSED[kind]
    with pytest.raises(RecordError) as found:
        decode_image(build(), origin="x", rendering=1)
    assert found.value.reason is reason


def test_the_present_version_is_the_default():
    assert RENDERING_VERSIONS[-1] == RENDERING_VERSION
    assert inspect.signature(decode_image).parameters["rendering"].default == RENDERING_VERSION


@pytest.mark.parametrize("version", [-1, 0, max(RENDERING_VERSIONS) + 1])
def test_an_unknown_version_is_a_mistake_of_the_program(version):
    with pytest.raises(ValueError, match=f"rendering version is {version}, expected one of 1, 2"):
        decode_image(png(), origin="x", rendering=version)


@pytest.mark.parametrize("payload", [None, b"", b"text"])
def test_the_envelope_is_checked_as_with_every_version(payload):
    found = []
    for version in RENDERING_VERSIONS:
        with pytest.raises(RecordError) as error:
            decode_image(payload, origin="x", rendering=version)
        found.append((error.value.reason, error.value.detail))
    assert found == [found[0]] * len(RENDERING_VERSIONS)
