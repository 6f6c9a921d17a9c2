"""De-identified files: the same pixels, the same reasons, and of everything else only what is on the list."""

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from schemas import envelope
from schemas.errors import Reason, RecordError
from sparkdl.image.codecs import SYNTAXES
from sparkdl.image.decode import decode_image
from sparkdl.image.dicomfile import NATIVE_SYNTAXES
from sparkdl.image.limits import DecodeLimits
from streaming.devices.deidentify import Deidentified, Deidentifier, examine
from streaming.devices.pseudonyms import Pseudonyms
from tests import testimages
from tests.unit.streaming.devices.markers import exif, marked_jpeg, marked_jpeg2000, segment

LIMITS = DecodeLimits(max_payload_bytes=testimages.MAX_PAYLOAD_BYTES)
NAMED = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "AccessionNumber": "ACC-1",
    "StudyInstanceUID": "1.2.3.1",
    "SeriesInstanceUID": "1.2.3.2",
    "SOPInstanceUID": "1.2.3.3",
    "FrameOfReferenceUID": "1.2.3.4",
    "StudyDate": "20240229",
    "StudyTime": "101112.5",
    "AcquisitionDate": "20240301",
    "AcquisitionTime": "235959",
    "SeriesDate": "not a date",
    "ContentDate": "20240230",
    "ContentTime": "12",
    "Manufacturer": "Maker of Things",
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, where the test writes what it should not


@pytest.fixture(scope="module")
def pseudonyms(tmp_path_factory: pytest.TempPathFactory) -> Pseudonyms:
    file = tmp_path_factory.mktemp("keys") / "key"
    file.write_bytes(bytes(range(32)))
    file.chmod(0o600)
    return Pseudonyms(file)


@pytest.fixture(scope="module")
def deidentifier(pseudonyms: Pseudonyms) -> Deidentifier:
    return Deidentifier(pseudonyms, limits=LIMITS)


def outcome_of(payload: bytes, **options: Any) -> object:
    try:
        return decode_image(payload, origin="x", limits=LIMITS, **options).image
    except RecordError as exc:
        return exc.reason


def read(cleaned: Deidentified) -> Dataset:
    return pydicom.dcmread(io.BytesIO(cleaned.payload))


# --- pixels -----------------------------------------------------------------------------------------------------------


def lossless_jpeg(process: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(testimages.twelve_bit_pixels(), lossless=True, bitspersample=12, predictor=process)
    )


def odd_files() -> dict[str, bytes]:
    """Give files as devices write them that are not in `testimages.good_files`."""
    gray, deep = testimages.gray_pixels(), testimages.twelve_bit_pixels()
    odd = np.ascontiguousarray(gray[:7, :9])
    signed = deep.astype(np.int16) - 2048
    wide = {"WindowCenter": [2048, 3000], "WindowWidth": [4096, 10]}
    lut = testimages.lookup_table([*range(4096)], first=0, bits=12)
    files = {
        "odd": testimages.dicom(odd, bits_stored=8),
        "odd big endian": testimages.big_endian_dicom(odd, bits_stored=8),
        "signed": testimages.dicom(signed),
        "signed big endian": testimages.big_endian_dicom(signed),
        "window": testimages.dicom(**wide),
        "sigmoid": testimages.dicom(**wide, VOILUTFunction="SIGMOID"),
        "unknown function": testimages.dicom(**wide, VOILUTFunction="SOMETHING"),
        "rescale": testimages.dicom(RescaleSlope="0.00024420024420", RescaleIntercept="-1.5"),
        "padding": testimages.dicom(PixelPaddingValue=320),
        "signed padding": testimages.dicom(signed, PixelPaddingValue=-1728, PixelPaddingRangeLimit=-1000),
        "inverse": testimages.dicom(PresentationLUTShape="INVERSE"),
        "high bit": testimages.dicom((deep << 4).astype(np.uint16), HighBit=15),
        "voi lut": testimages.dicom(VOILUTSequence=lut, **wide),
        "voi lut big endian": testimages.big_endian_dicom(VOILUTSequence=lut),
        "voi lut implicit": testimages.dicom(syntax="1.2.840.10008.1.2", VOILUTSequence=lut),
        "large lut": testimages.dicom(
            syntax="1.2.840.10008.1.2",
            ModalityLUTSequence=testimages.lookup_table(
                np.arange(65536, dtype="<u2").tobytes(), first=0, bits=16, count=65536
            ),
        ),
        "lut below zero": testimages.dicom(
            signed, ModalityLUTSequence=testimages.lookup_table([*range(4096)], first=-2048, bits=12)
        ),
        "no class": testimages.dicom(SOPClassUID="1.2.826.0.1.3680043.8.498.77"),
        "behind": testimages.dicom() + bytes(100),
        "12 bit jpeg": testimages.encapsulated_dicom(testimages.twelve_bit_jpeg(), JPEGExtended12Bit, deep),
        "jpeg lossless 1": testimages.encapsulated_dicom(lossless_jpeg(1), JPEGLosslessSV1, deep),
        "jpeg lossless 5": testimages.encapsulated_dicom(lossless_jpeg(5), JPEGLossless, deep),
        "near lossless": testimages.encapsulated_dicom(
            bytes(imagecodecs.jpegls_encode(gray, level=2)), JPEGLSNearLossless, gray, bits_stored=8
        ),
        "restarts": testimages.encapsulated_dicom(
            testimages.jpeg(restart_marker_blocks=1), JPEGBaseline8Bit, gray, bits_stored=8
        ),
        "comments": testimages.encapsulated_dicom(
            marked_jpeg(testimages.jpeg()), JPEGBaseline8Bit, gray, bits_stored=8
        ),
        "jpeg-ls comments": testimages.encapsulated_dicom(
            marked_jpeg(bytes(imagecodecs.jpegls_encode(deep))), JPEGLSLossless, deep
        ),
        "jp2 boxes": testimages.encapsulated_dicom(
            testimages.encode(Image.fromarray(gray), "JPEG2000", irreversible=False),
            JPEG2000Lossless,
            gray,
            bits_stored=8,
        ),
        "tiles and comments": testimages.encapsulated_dicom(
            marked_jpeg2000(
                testimages.encode(
                    Image.fromarray(gray),
                    "JPEG2000",
                    irreversible=False,
                    no_jp2=True,
                    tile_size=(32, 32),
                    comment="text",
                )
            ),
            JPEG2000Lossless,
            gray,
            bits_stored=8,
        ),
        "htj2k": testimages.encapsulated_dicom(
            bytes(imagecodecs.htj2k_encode(deep, reversible=True)),
            HTJ2KLossless,
            deep,
        ),
        "fragments": fragmented(bytes(imagecodecs.jpegls_encode(deep)), JPEGLSLossless, deep),
        "texts.jpg": marked_jpeg(testimages.jpeg(testimages.rgb_pixels())),
        "rgb.jpg": testimages.jpeg(testimages.rgb_pixels(), keep_rgb=True),
        "mpo.jpg": testimages.mpo(),
        "sbit.png": testimages.png16(testimages.deep_samples(3), chunks=testimages.png_chunk(b"sBIT", b"\x0c\x0c\x0c")),
        "sbit alpha.png": testimages.png16(
            testimages.deep_samples(4), chunks=testimages.png_chunk(b"sBIT", b"\x0c\x0c\x0c\x10")
        ),
        "sbit gray.png": testimages.png16(testimages.deep_samples(1), chunks=testimages.png_chunk(b"sBIT", b"\x0c")),
        "interlaced.png": testimages.png16(testimages.deep_samples(1), interlaced=True),
        "transparent.png": testimages.png(testimages.gray_pixels(), transparency=100),
    }
    for orientation in range(10):
        block = b"Exif\0\0" + exif("text", orientation)
        files[f"{orientation}.jpg"] = testimages.jpeg(testimages.rgb_pixels(), exif=block)
        files[f"{orientation}.png"] = testimages.png(testimages.rgb_pixels(), exif=block)
    return files


def fragmented(frame: bytes, syntax: str, pixels: Any) -> bytes:
    dataset = testimages.dicom_dataset(pixels)
    dataset.PixelData = pydicom.encaps.encapsulate([frame], fragments_per_frame=4)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return testimages.write_dicom(dataset, syntax)


FILES = testimages.good_files() | odd_files()
WRONG = {name: wrong for name, wrong in testimages.wrong_files().items() if wrong.payload is not None}


@pytest.mark.parametrize("rendering", [1, 2])
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_the_same(deidentifier: Deidentifier, name: str, rendering: int) -> None:
    if (name, rendering) == ("mpo.jpg", 1):
        pytest.skip("version 1 refused all pictures of such a file for the further ones, which are gone")
    before = outcome_of(FILES[name], rendering=rendering)
    cleaned = deidentifier.deidentify(FILES[name], origin="x")
    assert outcome_of(cleaned.payload, rendering=rendering) == before
    assert not isinstance(before, Reason) or rendering == 1 or name == "unknown function"


def test_every_transfer_syntax_that_is_read_is_among_them() -> None:
    files = [pydicom.dcmread(io.BytesIO(file), force=True) for name, file in FILES.items() if file[128:132] == b"DICM"]
    found = {str(file.file_meta.TransferSyntaxUID) for file in files}
    ours = {str(syntax) for syntax in (*NATIVE_SYNTAXES, *SYNTAXES)}
    same_stream = {"1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"}
    assert ours - found <= same_stream


@pytest.mark.parametrize("name", WRONG)
def test_what_decoding_refuses_has_the_same_reason(deidentifier: Deidentifier, name: str) -> None:
    wrong = WRONG[name]
    assert wrong.payload is not None
    try:
        cleaned = deidentifier.deidentify(wrong.payload, origin="x")
    except RecordError as exc:
        assert exc.reason in (wrong.reason, outcome_of(wrong.payload))
    else:
        assert outcome_of(cleaned.payload, content_type=wrong.content_type) == wrong.reason


@pytest.mark.parametrize("elements", [{"NumberOfFrames": 2}, {"BitsStored": 20}, {"Rows": 0}, {"SamplesPerPixel": 3}])
@pytest.mark.parametrize("first", [{"Modality": "CT"}, {"PresentationIntentType": "FOR PROCESSING"}])
def test_of_several_faults_that_of_decoding_is_named(
    deidentifier: Deidentifier, elements: dict[str, Any], first: dict[str, Any]
) -> None:
    payload = testimages.dicom(**elements, **first)
    with pytest.raises(RecordError) as caught:
        deidentifier.deidentify(payload, origin="x")
    assert caught.value.reason == outcome_of(payload)


@pytest.mark.parametrize("extra", [b"", b"\0\0", b"hidden text, for once", bytes(5000)])
def test_pixels_end_where_they_end(deidentifier: Deidentifier, extra: bytes) -> None:
    dataset = testimages.dicom_dataset()
    pixels = dataset.PixelData
    dataset.PixelData = pixels + extra + b"\0" * (len(extra) % 2)
    assert read(deidentifier.deidentify(testimages.write_dicom(dataset), origin="x")).PixelData == pixels


@pytest.mark.parametrize(
    ("position", "value", "after"), [(15, 0x8ABC, 0x0ABC), (12, 0x1ABC, 0x0ABC), (11, 0x0ABC, 0x0ABC)]
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_embedded_overlays_are_cleared(
    deidentifier: Deidentifier, position: int, value: int, after: int, big_endian: bool
) -> None:
    pixels = testimages.twelve_bit_pixels()
    pixels[3, 4:20] = value
    payload = (testimages.big_endian_dicom if big_endian else testimages.dicom)(pixels)
    dataset = pydicom.dcmread(io.BytesIO(payload))
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", position)
    payload = testimages.write_dicom(dataset, dataset.file_meta.TransferSyntaxUID)
    cleaned = deidentifier.deidentify(payload, origin="x")
    stored = np.frombuffer(read(cleaned).PixelData, ">u2" if big_endian else "<u2").reshape(pixels.shape)
    pixels[3, 4:20] = after
    assert np.array_equal(stored, pixels)
    assert outcome_of(cleaned.payload) == outcome_of(payload)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_gone_or_pseudonyms(deidentifier: Deidentifier, pseudonyms: Pseudonyms) -> None:
    cleaned = deidentifier.deidentify(testimages.dicom(**NAMED), origin="x")
    dataset, identity = read(cleaned), cleaned.identity
    assert identity is not None
    for keyword in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "Manufacturer",
        "StudyID",
    ):
        assert keyword in dataset
        assert not dataset[keyword].value, keyword
    for keyword in ("AcquisitionDate", "AcquisitionTime", "SeriesDate", "ContentDate", "ContentTime"):
        assert keyword not in dataset
    known = {"StudyInstanceUID": identity.study_uid, "SeriesInstanceUID": identity.series_uid}
    for keyword, pair in (known | {"SOPInstanceUID": identity.sop_uid}).items():
        assert pair.own == NAMED[keyword]
        assert dataset[keyword].value == pair.pseudonym == pseudonyms.uid(NAMED[keyword])
    assert dataset.PatientID == identity.patient_id.pseudonym == pseudonyms.identifier("MRN-4711")
    assert dataset.AccessionNumber == identity.accession_number.pseudonym == pseudonyms.identifier("ACC-1")
    assert (identity.patient_id.own, identity.accession_number.own) == ("MRN-4711", "ACC-1")
    assert dataset.FrameOfReferenceUID == pseudonyms.uid("1.2.3.4")
    assert cleaned.image_id == dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_it_says_what_was_done(pseudonyms: Pseudonyms) -> None:
    for dates, codes, modified in (("cut", ["113100"], "REMOVED"), ("shift", ["113100", "113107"], "MODIFIED")):
        dataset = read(Deidentifier(pseudonyms, dates=dates).deidentify(testimages.dicom(**NAMED), origin="x"))  # type: ignore[arg-type]
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethod
        assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == codes
        assert {item.CodingSchemeDesignator for item in dataset.DeidentificationMethodCodeSequence} == {"DCM"}
        assert dataset.LongitudinalTemporalInformationModified == modified


def test_the_head_of_the_file_is_new(deidentifier: Deidentifier) -> None:
    payload = b"\1" * 128 + testimages.dicom()[128:]
    cleaned = deidentifier.deidentify(payload, origin="x").payload
    assert cleaned[:132] == bytes(128) + b"DICM"
    meta = pydicom.dcmread(io.BytesIO(cleaned)).file_meta
    assert {int(element.tag) & 0xFFFF for element in meta} == {0, 1, 2, 3, 0x10, 0x12, 0x13}
    assert meta.FileMetaInformationGroupLength == struct.unpack_from("<I", cleaned, 140)[0]


@pytest.mark.parametrize(
    "missing", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "AccessionNumber"]
)
def test_what_is_missing_links_nothing(deidentifier: Deidentifier, missing: str) -> None:
    """Two images without a study are not of one study, nor two without a patient of one patient."""
    found = []
    for number in "12":
        dataset = testimages.dicom_dataset(
            **NAMED | {"SOPInstanceUID": f"1.2.{number}", "PixelPaddingValue": int(number)}
        )
        setattr(dataset, missing, "")
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
        cleaned = deidentifier.deidentify(buffer.getvalue(), origin="x")
        found.append(read(cleaned)[missing].value)
        assert (cleaned.image_id is None) == (missing == "SOPInstanceUID")
    if missing.endswith("UID"):
        assert found[0] != found[1]
    else:
        assert found in (["", ""], [None, None])


def test_padding_of_a_name_does_not_count(deidentifier: Deidentifier) -> None:
    found = {
        read(deidentifier.deidentify(testimages.dicom(PatientID=text), origin="x")).PatientID
        for text in ("A1", "A1 ", " A1", "A1\0")
    }
    assert len(found) == 1


@pytest.mark.parametrize("name", FILES)
def test_the_same_object_gives_the_same_bytes(deidentifier: Deidentifier, pseudonyms: Pseudonyms, name: str) -> None:
    first = deidentifier.deidentify(FILES[name], origin="x")
    again = Deidentifier(pseudonyms, limits=LIMITS).deidentify(bytes(bytearray(FILES[name])), origin="y")
    assert again == first


def test_bytes_stay_as_they_are(pseudonyms: Pseudonyms) -> None:
    """They are part of event ids: a release that changes them makes a new image of each that is sent again."""
    files = {name: testimages.good_files()[name] for name in ("explicit.dcm", "big_endian.dcm", "gray.png")}
    found = {
        name: sha256(Deidentifier(pseudonyms, dates="shift").deidentify(file, origin="x").payload).hexdigest()[:16]
        for name, file in files.items()
    }
    assert found == {
        "explicit.dcm": "6be637a710055ecb",
        "big_endian.dcm": "e98468135a223f20",
        "gray.png": "4d444f0f07281212",
    }


def test_several_threads_get_the_same(deidentifier: Deidentifier) -> None:
    names = [*FILES] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: deidentifier.deidentify(FILES[name], origin="x"), names))
    for name, cleaned in zip(names, found, strict=True):
        assert cleaned == deidentifier.deidentify(FILES[name], origin="x")


# --- dates ------------------------------------------------------------------------------------------------------------


def test_dates_of_a_patient_move_back_together(pseudonyms: Pseudonyms) -> None:
    shifting = Deidentifier(pseudonyms, dates="shift")
    dataset = read(shifting.deidentify(testimages.dicom(**NAMED), origin="x"))
    study, acquired = date(2024, 2, 29), date(2024, 3, 1)
    days = pseudonyms.days("MRN-4711")
    assert days < 0
    assert dataset.StudyDate == date.fromordinal(study.toordinal() + days).strftime("%Y%m%d")
    assert dataset.AcquisitionDate == date.fromordinal(acquired.toordinal() + days).strftime("%Y%m%d")
    assert (dataset.StudyTime, dataset.AcquisitionTime) == ("101112.5", "235959")
    assert not {"SeriesDate", "ContentDate", "ContentTime", "SeriesTime"} & set(dataset.dir())
    other = read(shifting.deidentify(testimages.dicom(**NAMED | {"PatientID": "MRN-4712"}), origin="x"))
    assert other.StudyDate != dataset.StudyDate


@pytest.mark.parametrize(
    "text", ["00010101", "20241301", "2024.02.29", "2024", "Doe^Jane", "2024022\xb2", "20240229-20240301"]
)
def test_what_is_no_date_is_cut(pseudonyms: Pseudonyms, text: str) -> None:
    dataset = read(Deidentifier(pseudonyms, dates="shift").deidentify(testimages.dicom(StudyDate=text), origin="x"))
    assert dataset.StudyDate == ""


@pytest.mark.parametrize("text", ["Doe^Jane", "2460", "10:11:12", "101112.1234567", "246"])
def test_what_is_no_time_is_cut(pseudonyms: Pseudonyms, text: str) -> None:
    named = {"StudyDate": "20240229", "StudyTime": text}
    dataset = read(Deidentifier(pseudonyms, dates="shift").deidentify(testimages.dicom(**named), origin="x"))
    assert (dataset.StudyTime, bool(dataset.StudyDate)) == ("", True)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "flags"), [("YES", (envelope.BURNED_IN,)), ("NO", ()), ("yes ", (envelope.BURNED_IN,))]
)
def test_burned_in_text_is_flagged_and_told(deidentifier: Deidentifier, word: str, flags: tuple[str, ...]) -> None:
    payload = testimages.dicom(BurnedInAnnotation=word)
    cleaned = deidentifier.deidentify(payload, origin="x")
    assert cleaned.flags == flags == examine(payload, origin="x").flags
    assert read(cleaned).BurnedInAnnotation == word.strip().upper()


@pytest.mark.parametrize("word", [None, "", "MAYBE"])
def test_nothing_is_made_up_of_burned_in_text(deidentifier: Deidentifier, word: str | None) -> None:
    payload = testimages.dicom() if word is None else testimages.dicom(BurnedInAnnotation=word)
    cleaned = deidentifier.deidentify(payload, origin="x")
    assert cleaned.flags == ()
    assert "BurnedInAnnotation" not in read(cleaned)


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "kinds"),
    [
        (testimages.png, [b"IHDR", b"IDAT", b"IEND"]),
        (testimages.palette_png, [b"IHDR", b"PLTE", b"IDAT", b"IEND"]),
        (lambda: FILES["6.png"], [b"IHDR", b"eXIf", b"IDAT", b"IEND"]),
        (lambda: FILES["1.png"], [b"IHDR", b"IDAT", b"IEND"]),
        (lambda: FILES["sbit.png"], [b"IHDR", b"sBIT", b"IDAT", b"IEND"]),
        (lambda: FILES["transparent.png"], [b"IHDR", b"IDAT", b"IEND"]),
    ],
)
def test_chunks_of_a_png(deidentifier: Deidentifier, clean: Callable[[], bytes], kinds: list[bytes]) -> None:
    cleaned = deidentifier.deidentify(clean() + b"behind the end", origin="x")
    found, offset = [], 8
    while offset < len(cleaned.payload):
        found.append(cleaned.payload[offset + 4 : offset + 8])
        offset += 12 + int.from_bytes(cleaned.payload[offset : offset + 4], "big")
    assert found == kinds
    assert (cleaned.image_id, cleaned.identity, cleaned.media_type) == (None, None, "image/png")


@pytest.mark.parametrize("build", [testimages.jpeg, testimages.mpo, lambda: marked_jpeg(testimages.rotated_jpeg(6))])
def test_segments_of_a_jpeg(deidentifier: Deidentifier, build: Callable[[], bytes]) -> None:
    cleaned = deidentifier.deidentify(build(), origin="x").payload
    assert cleaned.endswith(b"\xff\xd9")
    assert cleaned.count(b"\xff\xd9") == 1
    offset, found = 2, set()
    while cleaned[offset + 1] != 0xDA:
        found.add(cleaned[offset + 1])
        offset += 2 + int.from_bytes(cleaned[offset + 2 : offset + 4], "big")
    assert found <= {0xE0, 0xE1, 0xEE, 0xDB, 0xC4, 0xC0, 0xDD}
    if 0xE1 in found:
        assert cleaned[6:12] == b"Exif\0\0"
        assert Image.open(io.BytesIO(cleaned)).getexif() == {0x0112: 6}


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:2] + b"\xff\x02" + whole[2:],  # a reserved marker
        lambda whole: whole[:2] + b"\xff\xd8" + whole[2:],  # two starts
        lambda whole: whole[:2] + segment(0xF0, b"x") + whole[2:],  # of an extension
        lambda whole: whole[:-2] + segment(0xFE, b"\xff\xd9"),  # its only end is in a comment
        lambda whole: whole[:-2] + segment(0xFE, b"text") + b"junk\xff\xd9",  # neither segment nor data
        lambda whole: whole[:-40] + b"\xff\x01" + whole[-40:],  # a marker in the data
    ],
)
def test_a_jpeg_that_cannot_be_followed_is_refused(
    deidentifier: Deidentifier, damage: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(RecordError) as caught:
        deidentifier.deidentify(damage(testimages.jpeg()), origin="x")
    assert caught.value.reason in (Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE)


# --- without de-identification ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["explicit.dcm", "jpeg_baseline.dcm", "bare_implicit.dcm"])
def test_examined_dicom_is_as_it_was(name: str) -> None:
    payload, uid = testimages.good_files()[name], "1.2.826.0.1.3680043.8.498.1"
    named = (str(testimages.dicom_dataset().SOPClassUID), uid)
    assert examine(payload, origin="x") == Deidentified(payload, "application/dicom", uid, (), None, named)


@pytest.mark.parametrize("uid", ["Doe^Jane", "1.2.3 4", ""])
def test_what_is_no_uid_names_no_image(uid: str) -> None:
    dataset = testimages.dicom_dataset()
    payload = testimages.write_dicom(dataset).replace(b"1.2.826.0.1.3680043.8.498.1", uid.encode().ljust(27, b" "))
    assert examine(payload, origin="x").image_id is None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", Reason.EMPTY_PAYLOAD),
        (b"GIF89a", Reason.UNSUPPORTED_FORMAT),
        (bytes(128) + b"DICM", Reason.DICOM_CORRUPT),
        (testimages.structured_report(), Reason.DICOM_NO_PIXEL_DATA),
    ],
)
def test_what_is_no_image_is_refused_with_and_without(
    deidentifier: Deidentifier, payload: bytes, reason: Reason
) -> None:
    for look in (deidentifier.deidentify, examine):
        with pytest.raises(RecordError) as caught:
            look(payload, origin="x")
        assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["gray.png", "gray.jpg", "palette.png"])
def test_examined_pictures_are_as_they_were(name: str, tmp_path: Path) -> None:
    payload = testimages.good_files()[name]
    found = examine(payload, origin="x")
    assert (found.payload, found.image_id, found.flags, found.identity) == (payload, None, (), None)
