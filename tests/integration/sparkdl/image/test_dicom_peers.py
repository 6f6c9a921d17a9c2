"""The public files that pydicom carries, beside dcmtk, which reads them on its own."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless

from schemas.errors import Reason, RecordError
from sparkdl.image.dicom import render_dicom
from sparkdl.image.dicomfile import looks_like_dicom
from sparkdl.image.limits import DecodeLimits
from tests import testimages
from tests.testimages import dicom, lookup_table

ANY_IMAGE = DecodeLimits(
    modalities=tuple("CR DX RG SC CT MR US NM PT RTDOSE XA SEG SM RTIMAGE ES".split()), for_processing=True
)
FOLDER = Path(pydicom.data.__file__).parent / "test_files"

EXPLAINED = {
    "JPEG-lossy.dcm": "a scintigram of 90 values without window: dcmtk's hundredth of the pixels ends a few lower",
    "JPGExtended.dcm": "the same picture",
}
"""Files whose pictures differ by more than 2 of 255 in the mean, and why."""

JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)


def peer(syntax):
    """Name dcmtk's program for a transfer syntax; None where Debian's build has none."""
    if syntax in JPEG:
        return "dcmj2pnm"
    if str(syntax).startswith("1.2.840.10008.1.2.4.8"):
        return "dcml2pnm"
    return None if str(syntax).startswith(("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")) else "dcm2pnm"


def show(path, folder):
    """Render a file with dcmtk as it is meant: VOI LUT, else window, else all but a hundredth at either end."""
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    program = peer(dataset.file_meta.get("TransferSyntaxUID", ""))
    if program is None:
        pytest.skip("dcmtk as Debian has it reads no JPEG 2000")
    if shutil.which(program) is None:
        pytest.skip("dcmtk is not installed")
    if "VOILUTSequence" in dataset:
        how = ["+Wl", "1"]
    else:
        how = ["+Wi", "1"] if dataset.get("WindowWidth") else ["+Wh", "1"]
    target = folder / "picture.pgm"
    done = subprocess.run([program, *how, "+opb", str(path), str(target)], capture_output=True, text=True, check=False)
    assert target.is_file(), done.stderr
    return np.asarray(Image.open(target)).astype(int)


def read(path):
    payload = path.read_bytes()
    if not looks_like_dicom(payload):
        return None
    try:
        return render_dicom(payload, origin=path.name, limits=ANY_IMAGE).pixels.astype(int)
    except RecordError as exc:
        return exc


FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
FOUND = {path.relative_to(FOLDER).as_posix(): read(path) for path in FILES}
"""Pixels, an error, or None for what is no DICOM file."""


@pytest.mark.parametrize("name", [name for name, found in FOUND.items() if isinstance(found, np.ndarray)])
def test_a_public_file_is_shown_as_dcmtk_shows_it(name, tmp_path):
    shown = show(FOLDER / name, tmp_path)
    difference = np.abs(shown - FOUND[name]).mean()
    assert (difference > 2) == (name in EXPLAINED), f"{name} differs by {difference:.2f}"


def test_most_public_images_are_read_and_the_others_have_named_reasons():
    assert sum(isinstance(found, np.ndarray) for found in FOUND.values()) >= 45
    reasons = {name: found.reason for name, found in FOUND.items() if isinstance(found, RecordError)}
    corrupt = sorted(Path(name).name for name, reason in reasons.items() if reason == Reason.DICOM_CORRUPT)
    assert corrupt == [
        "MR_truncated.dcm",  # 62 bytes of pixels are missing
        "badVR.dcm",  # NumberOfFrames is "1A"
        "meta_missing_tsyntax.dcm",  # no Photometric Interpretation
        "nested_priv_SQ.dcm",  # the same
        "rtplan_truncated.dcm",
    ]
    assert Reason.UNEXPECTED not in reasons.values()


RAMP = np.tile(np.arange(0, 4096, 16, dtype=np.uint16), (16, 1))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(dicom(RAMP, WindowCenter=2048, WindowWidth=4096), id="window"),
        pytest.param(dicom(RAMP, WindowCenter=900, WindowWidth=500, VOILUTFunction="SIGMOID"), id="SIGMOID"),
        pytest.param(dicom(RAMP, photometric="MONOCHROME1", WindowCenter=2048, WindowWidth=4096), id="MONOCHROME1"),
        pytest.param(
            dicom(
                RAMP + np.uint16(40000),
                bits_stored=16,
                VOILUTSequence=lookup_table([*range(4096)], first=20000 * 2 - 65536, bits=12),
            ),
            id="first value in SS",
        ),
        pytest.param(dicom(RAMP << 4, bits_stored=12, HighBit=15, WindowCenter=2048, WindowWidth=4096), id="high bit"),
        pytest.param(
            dicom(RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=4000), id="rescale"
        ),
        pytest.param(testimages.big_endian_dicom(RAMP, WindowCenter=2048, WindowWidth=4096), id="big endian"),
        pytest.param(
            testimages.gdcm_dicom(JPEGLosslessSV1, pixels=RAMP, WindowCenter=2048, WindowWidth=4096), id="lossless"
        ),
        pytest.param(
            testimages.gdcm_dicom(JPEGLSLossless, pixels=RAMP, WindowCenter=2048, WindowWidth=4096), id="JPEG-LS"
        ),
    ],
)
def test_what_makers_write_is_shown_as_dcmtk_shows_it(payload, tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(payload)
    assert np.abs(show(path, tmp_path) - read(path)).mean() <= 1


@pytest.mark.parametrize("says", [13, 14, 16])
@pytest.mark.parametrize(
    "entries",
    [
        [round(64 * i**0.5) for i in range(4096)],
        [*range(4095, -1, -1)],
        [round(4095 / (1 + np.exp(4 - i / 512))) for i in range(4096)],
    ],
    ids=["root", "inverse", "sigmoid"],
)
def test_a_lut_of_12_bits_is_shown_as_dcmtk_shows_it_with_a_true_descriptor(entries, says, tmp_path):
    true, false = (dicom(RAMP, VOILUTSequence=lookup_table(entries, first=0, bits=bits)) for bits in (12, says))
    (tmp_path / "true.dcm").write_bytes(true)
    (tmp_path / "false.dcm").write_bytes(false)
    assert np.abs(show(tmp_path / "true.dcm", tmp_path) - read(tmp_path / "false.dcm")).mean() <= 1
