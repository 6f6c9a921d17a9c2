"""DICOM rendering, proven with numbers worked out by hand, and the isolated codec."""

import os
import signal
import sys
from functools import partial

import numpy as np
import pytest
from pydicom.uid import (
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from schemas.errors import CorruptImageError, DependencyError, Reason, RecordError
from sparkdl.image import gdcm as codec
from sparkdl.image.decode import decode_image
from sparkdl.image.dicom import looks_like_dicom, render_dicom
from sparkdl.image.limits import DecodeLimits
from tests import testimages
from tests.testimages import big_endian_dicom, dicom, gray_pixels, lookup_table, twelve_bit_pixels

ORIGIN = "xray.images-3@1024"


def render(payload):
    return render_dicom(payload, origin=ORIGIN, limits=DecodeLimits())


def shown(values, dtype=np.uint16, **elements):
    """Render one row of stored values (twice, as two rows)."""
    pixels = np.array([values, values], dtype)
    rendered = render(dicom(pixels, **elements))
    np.testing.assert_array_equal(rendered[0], rendered[1])
    assert rendered.shape == pixels.shape
    return rendered[0].tolist()


def fault_of(payload):
    with pytest.raises(RecordError) as failure:
        render(payload)
    return failure.value


# --- windows ----------------------------------------------------------------------------------------------------------


def test_without_a_window_the_range_present_is_shown():
    assert shown([1000, 2000, 3000, 2500]) == [0, 128, 255, 191]


def test_a_constant_image_is_black_and_inverted_white():
    assert shown([700, 700]) == [0, 0]
    assert shown([700, 700], photometric="MONOCHROME1") == [255, 255]


@pytest.mark.parametrize(
    ("padding", "wanted"),
    [
        ({}, [0, 85, 170, 255]),
        ({"PixelPaddingValue": 0}, [0, 0, 128, 255]),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 1000}, [0, 0, 0, 255]),
        ({"PixelPaddingValue": 3000}, [0, 128, 255, 255]),
    ],
)
def test_padding_does_not_count_for_the_range(padding, wanted):
    assert shown([0, 1000, 2000, 3000], **padding) == wanted


def test_an_image_of_nothing_but_padding_is_still_shown():
    assert shown([5, 5], PixelPaddingValue=5) == [0, 0]


@pytest.mark.parametrize(
    ("function", "stored", "wanted"),
    [
        # C.11.2.1.2.1 with c = 2048, w = 4096: ((x - 2047.5) / 4095 + 0.5) * 255
        (None, [0, 1024, 2048, 4095], [0, 64, 128, 255]),
        ("LINEAR", [0, 1024, 2048, 4095], [0, 64, 128, 255]),
        # C.11.2.1.3.2: ((x - 2048) / 4096 + 0.5) * 255
        ("LINEAR_EXACT", [0, 1024, 2048, 4095], [0, 64, 128, 255]),
        # C.11.2.1.3.1: 255 / (1 + exp(-4 (x - 2048) / 4096)); 1024 -> 255 / (1 + e) = 68.58
        ("SIGMOID", [0, 1024, 2048, 4095], [30, 69, 128, 225]),
    ],
)
def test_window_functions(function, stored, wanted):
    assert shown(stored, WindowCenter=2048, WindowWidth=4096, VOILUTFunction=function or "") == wanted


def test_linear_and_linear_exact_differ_where_the_standard_says():
    """With c = 100, w = 4, LINEAR spans 98 to 101, LINEAR_EXACT 98 to 102."""
    stored = [97, 98, 99, 100, 101, 102, 103]
    window = {"WindowCenter": 100, "WindowWidth": 4}
    assert shown(stored, **window) == [0, 0, 85, 170, 255, 255, 255]
    assert shown(stored, VOILUTFunction="LINEAR_EXACT", **window) == [0, 0, 64, 128, 191, 255, 255]


def test_a_window_of_width_one_is_a_threshold():
    assert shown([99, 100, 101], WindowCenter=100, WindowWidth=1) == [0, 255, 255]


def test_the_first_of_several_windows_is_taken():
    assert shown([0, 1, 2], WindowCenter=[1, 3000], WindowWidth=[3, 10]) == shown(
        [0, 1, 2], WindowCenter=1, WindowWidth=3
    )


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": 1, "WindowWidth": -5},
        {"WindowCenter": 1, "WindowWidth": 0.5},
        {"WindowCenter": 1, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 1, "WindowWidth": 10, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
    ],
)
def test_impossible_display_parameters_are_named(elements):
    assert fault_of(dicom(**elements)).reason == Reason.DICOM_CORRUPT


def test_an_empty_window_is_none():
    assert shown([1000, 2000, 3000], WindowCenter="", WindowWidth="") == [0, 128, 255]


# --- the order --------------------------------------------------------------------------------------------------------


def test_the_window_sees_rescaled_values():
    """Stored 0, 100, 200 become -1000, -800, -600; the window centre -800 only makes sense there."""
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": -799.5, "WindowWidth": 401}
    assert shown([0, 50, 100, 150, 200], **elements) == [0, 64, 128, 191, 255]


def test_a_negative_slope_turns_the_image_over():
    assert shown([0, 50, 200], RescaleSlope=-1, RescaleIntercept=0) == [255, 191, 0]


def test_a_negative_slope_and_a_window():
    """The window applies to -200..0, so stored 0 is white."""
    elements = {"RescaleSlope": -1, "RescaleIntercept": 0, "WindowCenter": -99.5, "WindowWidth": 201}
    assert shown([0, 50, 100, 200], **elements) == [255, 191, 128, 0]


def test_modality_lut_then_voi_lut_then_inversion():
    """Stored 10..13 -> modality 0, 3, 1, 2 -> VOI 0, 30, 100, 255 -> inverted. Another order gives other numbers."""
    elements = {
        "ModalityLUTSequence": lookup_table([0, 3, 1, 2], first=10, bits=16),
        "VOILUTSequence": lookup_table([0, 30, 100, 255], first=0, bits=8),
    }
    assert shown([10, 11, 12, 13], **elements) == [0, 255, 30, 100]
    assert shown([10, 11, 12, 13], photometric="MONOCHROME1", **elements) == [255, 0, 225, 155]


def test_values_outside_a_lut_take_its_ends():
    elements = {"VOILUTSequence": lookup_table([10, 20, 250], first=100, bits=8)}
    assert shown([0, 99, 100, 101, 102, 103, 4095], **elements) == [10, 10, 10, 20, 250, 250, 250]


def test_a_lut_of_12_bits_fills_the_gray_scale():
    assert shown([0, 1], VOILUTSequence=lookup_table([0, 4095], first=0, bits=12)) == [0, 255]


def test_a_lut_of_65536_entries():
    """Its descriptor says 0 entries, for 16 bits cannot say 65,536."""
    table = lookup_table(np.arange(65535, -1, -1).astype("<u2").tobytes(), count=65536, first=0, bits=16)
    assert shown([0, 32767, 65535], bits_stored=16, VOILUTSequence=table) == [255, 128, 0]


def test_8_bit_entries_packed_two_to_a_word():
    table = lookup_table(bytes([0, 50, 200, 255]), count=4, first=0, bits=8)
    assert shown([0, 1, 2, 3], VOILUTSequence=table) == [0, 50, 200, 255]


def test_a_lut_shorter_than_it_says_is_corrupt():
    table = lookup_table([0, 50, 200, 255], count=9, first=0, bits=8)
    assert fault_of(dicom(VOILUTSequence=table)).reason == Reason.DICOM_CORRUPT


def test_a_voi_lut_wins_over_a_window():
    elements = {"VOILUTSequence": lookup_table([0, 177], first=0, bits=8), "WindowCenter": 1, "WindowWidth": 2}
    assert shown([0, 1], **elements) == [0, 177]


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # as DX images have it: once, not twice
    ],
)
def test_inversion_happens_once(photometric, shape, inverted):
    elements = {} if shape is None else {"PresentationLUTShape": shape}
    wanted = [0, 64, 255]
    rendered = shown([0, 1000, 4000], photometric=photometric, **elements)
    assert rendered == ([255 - value for value in wanted] if inverted else wanted)


# --- VOI LUTs of other bits than they say -----------------------------------------------------------------------------

ENTRIES = [0, 1000, 2000, 4095]  # 12 bits
LITTLE, BIG = (np.array(ENTRIES, order).tobytes() for order in ("<u2", ">u2"))


def lut_of(bits, *, entries=ENTRIES, **options):
    return {"VOILUTSequence": lookup_table(entries, first=0, bits=bits, **options)}


@pytest.mark.parametrize("says", [13, 14, 15, 16, 17, 32, 255, 11, 10, 8, 1, 0])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        pytest.param(dicom, {}, id="explicit, US"),
        pytest.param(dicom, {"vr": "SS"}, id="explicit, SS"),
        pytest.param(dicom, {"entries": LITTLE, "count": 4}, id="explicit, OW"),
        pytest.param(dicom, {"entries": LITTLE, "count": 4, "vr": "UN"}, id="explicit, UN"),
        pytest.param(implicit := partial(dicom, syntax=ImplicitVRLittleEndian), {}, id="implicit, US"),
        pytest.param(implicit, {"entries": LITTLE, "count": 4}, id="implicit, OW"),
        pytest.param(big_endian_dicom, {}, id="big endian, US"),
        pytest.param(big_endian_dicom, {"entries": BIG, "count": 4}, id="big endian, OW"),
        pytest.param(partial(testimages.gdcm_dicom, JPEGLosslessSV1), {}, id="JPEG lossless, US"),
    ],
)
def test_a_voi_lut_of_other_bits_than_it_says_is_refused(build, options, says):
    pixels = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint16)
    error = fault_of(build(pixels=pixels, **lut_of(says, **options)))
    assert error.reason == Reason.DICOM_UNSUPPORTED_LUT
    assert error.detail.startswith("largest entry of the VOI LUT is 4095, which takes 12 bits, but its descriptor says")
    np.testing.assert_array_equal(render(build(pixels=pixels, **lut_of(12, **options))), [[0, 62, 125, 255]] * 2)


@pytest.mark.parametrize(
    ("largest", "says"), [(255, 16), (255, 9), (127, 8), (1, 8), (2047, 12), (32767, 16), (257, 8), (8191, 12)]
)
def test_the_largest_entry_decides(largest, says):
    assert fault_of(dicom(**lut_of(says, entries=[0, largest]))).reason == Reason.DICOM_UNSUPPORTED_LUT


@pytest.mark.parametrize("outliers", [1, 40])
def test_a_few_entries_that_stand_out_do_not_make_12_bits_16(outliers):
    entries = [*range(4096 - outliers), *[65535] * outliers]
    assert fault_of(dicom(**lut_of(16, entries=entries))).reason == Reason.DICOM_UNSUPPORTED_LUT
    assert fault_of(dicom(**lut_of(12, entries=entries))).reason == Reason.DICOM_UNSUPPORTED_LUT


def test_packed_8_bit_entries_that_say_16():
    packed = lut_of(16, entries=bytes([0, 50, 200, 255]), count=4)
    assert fault_of(dicom(**packed)).reason == Reason.DICOM_UNSUPPORTED_LUT


@pytest.mark.parametrize(
    ("entries", "says", "wanted"),
    [
        ([0, 128], 8, [0, 128]),  # the smallest that takes 8 bits
        ([0, 2048, 4095], 12, [0, 128, 255]),
        ([0, 2048, 4096], 12, [0, 128, 255]),  # one too high: clipped
        ([0, 256], 8, [0, 255]),
        ([0, 32768, 65535], 16, [0, 128, 255]),
        ([0, 40000], 16, [0, 156]),
        ([1, 0], 1, [255, 0]),
    ],
)
def test_voi_luts_that_use_their_bits_are_shown_as_ever(entries, says, wanted):
    assert shown(range(len(wanted)), **lut_of(says, entries=entries)) == wanted


def test_a_modality_lut_is_not_scaled_so_its_bits_do_not_matter():
    table = lookup_table([0, 1, 2, 3], first=0, bits=16)
    assert shown([0, 1, 2, 3], ModalityLUTSequence=table) == [0, 85, 170, 255]
    impossible = lookup_table([0, 1, 2, 3], first=0, bits=17)
    assert fault_of(dicom(ModalityLUTSequence=impossible)).reason == Reason.DICOM_CORRUPT


def test_only_the_first_voi_lut_counts():
    used, other = (lookup_table(ENTRIES, first=0, bits=bits) for bits in (12, 16))
    assert shown([0, 3], VOILUTSequence=[*used, *other]) == [0, 255]
    assert fault_of(dicom(VOILUTSequence=[*other, *used])).reason == Reason.DICOM_UNSUPPORTED_LUT


def test_a_lut_of_zeros_does_not_tell_its_bits():
    assert shown([700, 700], **lut_of(16, entries=[0, 0])) == [0, 0]
    assert fault_of(dicom(**lut_of(16, entries=[0, 0]))).reason == Reason.BLANK_RENDERING
    assert fault_of(dicom(**lut_of(17, entries=[0, 0]))).reason == Reason.DICOM_UNSUPPORTED_LUT


# --- one gray ---------------------------------------------------------------------------------------------------------

ABOVE, BELOW = {"WindowCenter": 60_000, "WindowWidth": 400}, {"WindowCenter": -9_000, "WindowWidth": 400}


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param(ABOVE, id="window above"),
        pytest.param(BELOW, id="window below"),
        pytest.param(ABOVE | {"VOILUTFunction": "LINEAR_EXACT"}, id="LINEAR_EXACT"),
        pytest.param(ABOVE | {"VOILUTFunction": "SIGMOID"}, id="SIGMOID"),
        pytest.param({"WindowCenter": 5000, "WindowWidth": 1}, id="threshold"),
        pytest.param({"WindowCenter": -9000, "WindowWidth": 10**7}, id="window too wide"),
        pytest.param(BELOW | {"photometric": "MONOCHROME1"}, id="MONOCHROME1"),
        pytest.param(ABOVE | {"PresentationLUTShape": "INVERSE"}, id="INVERSE"),
        pytest.param(
            {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 1e-5, "RescaleIntercept": 0}, id="slope"
        ),
        pytest.param(
            {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": -9000}, id="intercept"
        ),
        pytest.param({"ModalityLUTSequence": lookup_table([9] * 4096, first=0, bits=16)}, id="flat Modality LUT"),
        pytest.param({"VOILUTSequence": lookup_table([200] * 4096, first=0, bits=8)}, id="flat VOI LUT"),
        pytest.param({"VOILUTSequence": lookup_table([0, 255], first=5000, bits=8)}, id="VOI LUT above"),
        pytest.param({"VOILUTSequence": lookup_table([0, 255], first=-300, bits=8)}, id="VOI LUT below"),
        pytest.param(
            {"VOILUTSequence": lookup_table([*[255] * 100, *[9] * 4096], first=-100, bits=8)},
            id="VOI LUT flat where it counts",
        ),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_different_values_that_are_shown_as_one_gray_are_refused(elements, size):
    with pytest.raises(RecordError) as failure:
        decode_image(dicom(**elements), origin=ORIGIN, size=size)
    assert failure.value.reason == Reason.BLANK_RENDERING
    assert failure.value.detail.startswith("stored values 572 to 3855 are all shown as gray ")
    assert len(set(render(dicom(np.full((4, 6), 900, np.uint16), **elements)).flat)) == 1, "a constant image is shown"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(dicom(syntax=ImplicitVRLittleEndian, **ABOVE), id="implicit"),
        pytest.param(big_endian_dicom(**ABOVE), id="big endian"),
        pytest.param(testimages.gdcm_dicom(RLELossless, **ABOVE), id="RLE"),
        pytest.param(testimages.gdcm_dicom(JPEGLosslessSV1, **ABOVE), id="JPEG lossless"),
        pytest.param(testimages.gdcm_dicom(JPEGLSLossless, **ABOVE), id="JPEG-LS"),
        pytest.param(testimages.gdcm_dicom(JPEG2000Lossless, **ABOVE), id="JPEG 2000"),
        pytest.param(dicom(gray_pixels(), bits_stored=8, **ABOVE), id="8 bits"),
        pytest.param(big_endian_dicom(gray_pixels(), bits_stored=8, **ABOVE), id="8 bits, big endian"),
        pytest.param(dicom(twelve_bit_pixels().astype(np.int16) - 2000, bits_stored=16, **ABOVE), id="signed"),
        pytest.param(
            testimages.encapsulated_dicom(
                testimages.jpeg(), JPEGBaseline8Bit, gray_pixels(), bits_stored=8, WindowCenter=900, WindowWidth=100
            ),
            id="JPEG baseline",
        ),
    ],
)
def test_one_gray_is_refused_in_every_encoding(payload):
    assert fault_of(payload).reason == Reason.BLANK_RENDERING


def padded_pixels(padding, dtype=np.int16):
    """Show values from 320 on in a frame of padding, as in collimated images."""
    pixels = twelve_bit_pixels().astype(dtype)
    pixels[:8] = pixels[-8:] = padding
    return pixels


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param({"PixelPaddingValue": -2000}, id="value"),
        pytest.param({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1}, id="range"),
        pytest.param({"PixelPaddingValue": -1, "PixelPaddingRangeLimit": -2000}, id="range, the other way round"),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_padding_of_another_gray_does_not_hide_that_the_rest_is_one(elements, size):
    """Padding is black, all else white."""
    window = {"WindowCenter": 0, "WindowWidth": 100, "bits_stored": 16}
    payload = dicom(padded_pixels(-2000), **elements, **window)
    with pytest.raises(RecordError) as failure:
        decode_image(payload, origin=ORIGIN, size=size)
    assert failure.value.reason == Reason.BLANK_RENDERING
    without = render(dicom(padded_pixels(-2000), **window))
    assert set(without.flat) == {0, 255}, "without the element these are pixels like others"


def test_padding_in_the_other_signs_vr_does_not_hide_it_either():
    signed = testimages.dicom_dataset(padded_pixels(-2000), bits_stored=16, WindowCenter=0, WindowWidth=100)
    signed.add_new("PixelPaddingValue", "US", 63536)
    assert fault_of(testimages.write_dicom(signed)).reason == Reason.BLANK_RENDERING
    unsigned = testimages.dicom_dataset(
        padded_pixels(63536, np.uint16), bits_stored=16, WindowCenter=50_000, WindowWidth=100
    )
    unsigned.add_new("PixelPaddingValue", "SS", -2000)
    assert fault_of(testimages.write_dicom(unsigned)).reason == Reason.BLANK_RENDERING


def test_padding_is_not_needed_where_there_is_a_window():
    dataset = testimages.dicom_dataset(np.array([[0, 2048, 4095]], np.uint16), WindowCenter=2048, WindowWidth=4096)
    dataset.add_new("PixelPaddingValue", "LO", "none")
    assert render(testimages.write_dicom(dataset)).tolist() == [[0, 128, 255]]


def test_nothing_but_padding_of_several_values():
    padding = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}
    assert shown([0, 1000, 4095], **padding) == [0, 62, 255]
    assert fault_of(dicom(**padding, **ABOVE)).reason == Reason.BLANK_RENDERING


@pytest.mark.parametrize(
    ("stored", "elements", "wanted"),
    [
        ([700, 700, 700], ABOVE, [0, 0, 0]),
        ([700, 700, 700], BELOW, [255, 255, 255]),
        ([700, 700, 700], {"VOILUTSequence": lookup_table([200] * 4096, first=0, bits=8)}, [200, 200, 200]),
        ([0, 700, 700], {"PixelPaddingValue": 0, "WindowCenter": 350.5, "WindowWidth": 701}, [0, 255, 255]),
        ([0, 700, 700], {"PixelPaddingValue": 0}, [0, 0, 0]),
        ([0x02BC, 0x12BC, 0xF2BC], ABOVE, [0, 0, 0]),  # 700 below bits that are not stored ones
    ],
)
def test_pixels_that_do_not_differ_are_shown_as_ever(stored, elements, wanted):
    assert shown(stored, **elements) == wanted


@pytest.mark.parametrize(
    ("stored", "elements", "wanted"),
    [
        ([0, 4000], {"WindowCenter": 4000.5, "WindowWidth": 2}, [0, 128]),
        ([0, 4095], {"WindowCenter": 2048, "WindowWidth": 10**6}, [127, 128]),
        ([0, 1], {}, [0, 255]),
    ],
)
def test_two_grays_are_a_picture(stored, elements, wanted):
    assert shown(stored, **elements) == wanted


def test_a_window_that_just_misses_every_value():
    pixels = np.array([[0, 3999]], np.uint16)
    assert fault_of(dicom(pixels, WindowCenter=4000.5, WindowWidth=2)).reason == Reason.BLANK_RENDERING


def test_a_single_pixel_of_a_second_gray_is_found():
    """It lies where a sample of the rows and columns does not look."""
    pixels = np.full((400, 300), 100, np.uint16)
    pixels[201, 151] = 200
    pixels[0, 0] = 101  # the first gray has two values
    rendered = render(dicom(pixels, WindowCenter=150, WindowWidth=2))
    assert (rendered.sum(), rendered[201, 151]) == (255, 255)


def test_a_picture_that_is_one_gray_at_the_networks_size_is_refused():
    pixels = np.full((400, 300), 100, np.uint16)
    pixels[201, 151] = 101
    window = {"WindowCenter": 128, "WindowWidth": 256}
    assert set(render(dicom(pixels, **window)).flat) == {100, 101}
    with pytest.raises(RecordError, match="as 20x24 image all are 100") as failure:
        decode_image(dicom(pixels, **window), origin=ORIGIN, size=(20, 24))
    assert failure.value.reason == Reason.BLANK_RENDERING


# --- stored values ----------------------------------------------------------------------------------------------------


def test_signed_values():
    window = {"WindowCenter": 0.5, "WindowWidth": 2001}
    assert shown([-1000, -500, 0, 1000], np.int16, bits_stored=16, **window) == [0, 64, 128, 255]
    assert shown([-1000, 0, 1000], np.int16, bits_stored=16) == [0, 128, 255]


def test_the_sign_bit_is_the_highest_stored_one():
    """In 12 bits 0x800 is -2048, though the word's own sign bit is clear."""
    pixels = np.array([0x0800, 0x0000, 0x07FF], np.int16)
    assert shown(pixels, np.int16) == [0, 128, 255]


def test_bits_above_the_stored_ones_are_ignored():
    """Old files keep overlays there."""
    assert shown([0x0000 | 0xF000, 0x0800, 0x0FFF | 0x5000]) == [0, 128, 255]


def test_16_bits_in_full():
    assert shown([0, 32768, 65535], bits_stored=16) == [0, 128, 255]


@pytest.mark.parametrize("build", [dicom, big_endian_dicom])
def test_8_bits_are_shown_as_they_are(build):
    payload = build(gray_pixels(), bits_stored=8, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(render(payload), gray_pixels())


def test_an_odd_number_of_8_bit_pixels():
    pixels = gray_pixels(5, 7)
    np.testing.assert_array_equal(render(dicom(pixels, bits_stored=8, WindowCenter=128, WindowWidth=256)), pixels)


def reference():
    """The example by its own arithmetic: 12 bits, smallest to largest value present."""
    pixels = twelve_bit_pixels().astype(float)
    return np.rint(255 * (pixels - pixels.min()) / (pixels.max() - pixels.min()))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(dicom(), id="explicit"),
        pytest.param(dicom(syntax=ImplicitVRLittleEndian), id="implicit"),
        pytest.param(big_endian_dicom(), id="big endian"),
        pytest.param(testimages.bare_dicom(), id="no meta, implicit"),
        pytest.param(testimages.bare_dicom(implicit=False), id="no meta, explicit"),
        pytest.param(testimages.dicom_without_preamble(), id="no preamble"),
        pytest.param(testimages.rle_dicom(), id="RLE"),
        pytest.param(testimages.gdcm_dicom(JPEGLosslessSV1), id="JPEG lossless"),
        pytest.param(testimages.gdcm_dicom(JPEGLSLossless), id="JPEG-LS"),
        pytest.param(testimages.gdcm_dicom(JPEG2000Lossless), id="JPEG 2000 lossless"),
    ],
)
def test_each_lossless_encoding_gives_the_same_pixels(payload):
    assert looks_like_dicom(payload)
    np.testing.assert_array_equal(render(payload), reference())


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_signed_pixels(syntax):
    signed = (twelve_bit_pixels().astype(np.int32) - 2048).astype(np.int16)
    payload = testimages.gdcm_dicom(syntax, pixels=signed, bits_stored=16)
    np.testing.assert_array_equal(render(payload), reference())


def test_jpeg_baseline_is_near_its_source():
    payload = testimages.encapsulated_dicom(
        testimages.jpeg(), "1.2.840.10008.1.2.4.50", gray_pixels(), bits_stored=8, WindowCenter=128, WindowWidth=256
    )
    assert np.abs(render(payload).astype(int) - gray_pixels()).mean() < 2


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", testimages.wrong_dicom_files())
def test_wrong_files_name_their_reason_and_no_patient(name):
    wrong = testimages.wrong_dicom_files()[name]
    error = fault_of(wrong.payload)
    assert error.reason == wrong.reason
    assert testimages.PATIENT_NAME not in str(error)
    assert testimages.PATIENT_ID not in str(error)


def test_a_value_that_does_not_parse_is_quoted_nowhere():
    """A shifted element may hold a name where a number belongs; pydicom's message would repeat it."""
    payload = dicom(WindowCenter=1234.5, WindowWidth=100).replace(b"1234.5", b"DOE^JO")
    error = fault_of(payload)
    assert error.reason == Reason.DICOM_CORRUPT
    assert "DOE" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_pixels_of_the_other_kind_than_the_syntax_says():
    compressed_as_native = testimages.rle_dicom().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0")
    assert fault_of(compressed_as_native).reason == Reason.DICOM_CORRUPT
    native_as_compressed = dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    assert fault_of(native_as_compressed).reason == Reason.DICOM_CORRUPT


def test_a_stream_of_another_size_is_named_before_it_is_decompressed():
    error = fault_of(testimages.dicom_with_other_size_inside())
    assert "compressed pixels are 96x160, expected 48x80" in error.detail


def test_a_stream_larger_than_the_cap_is_refused_by_its_own_header():
    payload = testimages.dicom_with_other_size_inside()
    with pytest.raises(RecordError) as failure:
        render_dicom(payload, origin=ORIGIN, limits=DecodeLimits(max_pixels=48 * 80))
    assert failure.value.reason == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", ["explicit.dcm", "rle.dcm", "jpeg_baseline.dcm", "jpeg2000.dcm"])
def test_no_cut_file_passes_for_an_image(name):
    """Up to the last eight bytes: those of a compressed file are a delimiter after the last pixel."""
    whole = testimages.good_files()[name]
    for length in range(140, len(whole) - 8, 37):
        assert fault_of(whole[:length]).reason in (Reason.DICOM_CORRUPT, Reason.DICOM_NO_PIXEL_DATA), length


@pytest.mark.parametrize("payload", [b"", b"DICM", b"\x08\0\0\0UL\x04\0\x10\0\0\0", b"MSH|^~\\&|XRAY|", bytes(4096)])
def test_what_is_no_dicom(payload):
    assert not looks_like_dicom(payload)


# --- the codec's own process ------------------------------------------------------------------------------------------


@pytest.fixture
def decoder():
    decoder = codec.IsolatedDecoder(timeout_s=2)
    yield decoder
    decoder.close()


def lossless_frame():
    payload = testimages.gdcm_dicom(JPEGLosslessSV1)
    frame = payload[payload.index(b"\xff\xd8") : payload.rindex(b"\xff\xd9") + 2]
    options = {"rows": 48, "columns": 80, "bits_allocated": 16, "bits_stored": 12, "number_of_frames": 1}
    gray = {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_representation": 0}
    return frame, str(JPEGLosslessSV1), {**options, **gray, "pixel_keyword": "PixelData"}


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hanging"])
def test_a_child_that_dies_or_hangs_is_replaced(decoder, blow):
    request = lossless_frame()
    np.testing.assert_array_equal(decoder.decode(*request), twelve_bit_pixels())
    first = decoder._child
    os.kill(first.pid, blow)
    np.testing.assert_array_equal(decoder.decode(*request), twelve_bit_pixels())
    assert decoder._child.pid != first.pid
    assert first.returncode is not None, "the old child was waited for"


def test_a_stream_that_makes_gdcm_abort_costs_one_record():
    """A precision of 17 bits ends gdcm 3.2.6's process by abort()."""
    good = testimages.gdcm_dicom(JPEGLosslessSV1)
    poison = bytearray(good)
    poison[poison.index(b"\xff\xc3") + 4] = 17
    error = fault_of(bytes(poison))
    assert isinstance(error, CorruptImageError)
    assert error.reason == Reason.DICOM_CORRUPT
    np.testing.assert_array_equal(render(good), reference())


def test_a_fork_starts_its_own_child(decoder, monkeypatch):
    """Seen from the fork: the same object, another process id."""
    request = lossless_frame()
    decoder.decode(*request)
    parents = decoder._child
    monkeypatch.setattr(codec.os, "getpid", lambda: -1)
    decoder.decode(*request)
    assert decoder._child is not parents
    assert parents.poll() is None, "the parent's child lives"
    decoder.close()
    parents.kill()
    parents.communicate()


def test_a_codec_that_cannot_start_is_no_fault_of_the_record(decoder, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(codec.sys, "executable", "/bin/false")
    with pytest.raises(DependencyError, match="python-gdcm"):
        decoder.decode(*lossless_frame())
