"""DICOM rendering, proven with numbers worked out by hand."""

import io
from functools import partial

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from schemas.errors import Reason, RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.dicom import render_dicom
from sparkdl.image.dicomfile import looks_like_dicom
from sparkdl.image.limits import DecodeLimits
from tests import testimages
from tests.testimages import big_endian_dicom, dicom, gray_pixels, lookup_table, twelve_bit_pixels

ORIGIN = "xray.images-3@1024"


def render(payload):
    return render_dicom(payload, origin=ORIGIN, limits=DecodeLimits()).pixels


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
        ({"PixelPaddingValue": 3000}, [0, 128, 255, 0]),
    ],
)
def test_padding_does_not_count_for_the_range_and_is_black(padding, wanted):
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


def lut_of(bits, *, entries=ENTRIES, first=0, **options):
    return {"VOILUTSequence": lookup_table(entries, first=first, bits=bits, **options)}


@pytest.mark.parametrize("says", [12, 13, 14, 15, 16, 17, 32, 255, 11, 10, 8, 1, 0])
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
def test_the_bits_of_the_entries_decide_and_not_the_descriptors(build, options, says):
    pixels = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint16)
    np.testing.assert_array_equal(render(build(pixels=pixels, **lut_of(says, **options))), [[0, 62, 125, 255]] * 2)


@pytest.mark.parametrize(
    ("entries", "says", "wanted"),
    [
        ([0, 128], 8, [0, 128]),
        ([0, 128], 16, [0, 128]),
        ([0, 255], 16, [0, 255]),
        ([0, 127], 8, [0, 127]),  # entries of fewer than 8 bits are dark, where the descriptor says 8
        ([0, 100], 16, [0, 100]),
        ([0, 1023], 12, [0, 255]),
        ([0, 32767], 16, [0, 255]),
        ([0, 257], 8, [0, 128]),  # 9 bits
        ([0, 2048, 4095], 12, [0, 128, 255]),
        ([0, 2048, 4096], 12, [0, 128, 255]),  # one too high: clipped
        ([0, 256], 8, [0, 255]),
        ([0, 32768, 65535], 16, [0, 128, 255]),
        ([0, 40000], 16, [0, 156]),
        ([1, 0], 1, [255, 0]),
        ([3, 0], 2, [255, 0]),
    ],
)
def test_voi_luts_fill_the_bits_they_use(entries, says, wanted):
    assert shown(range(len(wanted)), **lut_of(says, entries=entries)) == wanted


def test_entries_that_no_pixel_reaches_say_nothing_of_the_bits():
    """65,536 entries for pixels of 10 bits: a ramp, then zeros."""
    entries = np.zeros(65536, "<u2")
    entries[:1024] = np.arange(1024)
    table = lut_of(16, entries=entries.tobytes(), count=65536)
    assert shown([0, 512, 1023], **table) == [0, 128, 255]


@pytest.mark.parametrize("outliers", [1, 40])
@pytest.mark.parametrize("says", [12, 16])
def test_a_few_entries_that_stand_out_leave_the_bits_unclear(outliers, says):
    entries = [*range(4096 - outliers), *[65535] * outliers]
    error = fault_of(dicom(**lut_of(says, entries=entries)))
    assert error.reason == Reason.DICOM_UNSUPPORTED_LUT
    assert "go up to 65535, and nearly all take fewer bits" in error.detail


@pytest.mark.parametrize(
    ("build", "entries", "vr"),
    [
        (dicom, bytes([0, 50, 200, 255]), "OW"),
        (dicom, bytes([0, 50, 200, 255]), "OB"),
        (dicom, bytes([0, 50, 200, 255]), "UN"),
        (dicom, [0 | 50 << 8, 200 | 255 << 8], "US"),
        (dicom, [0 | 50 << 8, (200 | 255 << 8) - 65536], "SS"),
        (implicit, bytes([0, 50, 200, 255]), "OW"),
        (big_endian_dicom, bytes([50, 0, 255, 200]), "OW"),  # the first entry in the low byte of each word
        (big_endian_dicom, [0 | 50 << 8, 200 | 255 << 8], "US"),
    ],
)
@pytest.mark.parametrize("says", [8, 16])
def test_two_entries_of_8_bits_in_a_word(build, entries, vr, says):
    pixels = np.array([[0, 1, 2, 3]], np.uint16)
    payload = build(pixels=pixels, **lut_of(says, entries=entries, count=4, vr=vr))
    assert render(payload).tolist() == [[0, 50, 200, 255]]


def test_an_odd_number_of_entries_of_8_bits():
    table = lut_of(8, entries=bytes([0, 50, 255, 0]), count=3, vr="OW")
    assert shown([0, 1, 2, 9], **table) == [0, 50, 255, 255]
    words = lut_of(8, entries=[0 | 50 << 8, 255], count=3, vr="US")
    assert shown([0, 1, 2, 9], **words) == [0, 50, 255, 255]


def test_a_modality_lut_is_not_scaled_so_its_bits_do_not_matter():
    for bits in (16, 17, 0):
        table = lookup_table([0, 1, 2, 3], first=0, bits=bits)
        assert shown([0, 1, 2, 3], ModalityLUTSequence=table) == [0, 85, 170, 255]


def empty_item(**elements):
    item = Dataset()
    for keyword, value in elements.items():
        vr = "US" if keyword == "LUTDescriptor" else "OW"
        item.add_new(keyword, vr, value)
    return item


@pytest.mark.parametrize(
    "item",
    [
        empty_item(),
        empty_item(LUTDescriptor=[4, 0, 12]),
        empty_item(LUTDescriptor=[4, 0, 12], LUTData=b""),
        empty_item(LUTData=LITTLE),
    ],
    ids=["nothing", "no data", "empty data", "no descriptor"],
)
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_an_item_with_no_table_in_it_is_passed_over(item, keyword):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert shown([0, 2048, 4095], **{keyword: Sequence([item])}, **window) == [0, 128, 255]
    behind = Sequence([item, *lookup_table([*range(4095, -1, -1)], first=0, bits=12)])
    assert shown([0, 4095], **{keyword: behind}) == [255, 0]


def test_only_the_first_voi_lut_counts():
    first, other = (lookup_table(entries, first=0, bits=12) for entries in (ENTRIES, ENTRIES[::-1]))
    assert shown([0, 3], VOILUTSequence=[*first, *other]) == [0, 255]


def test_a_lut_of_zeros_does_not_tell_its_bits():
    for bits in (16, 17):
        assert shown([700, 700], **lut_of(bits, entries=[0, 0])) == [0, 0]
        assert fault_of(dicom(**lut_of(bits, entries=[0, 0]))).reason == Reason.BLANK_RENDERING


# --- the sign of a LUT's first value ----------------------------------------------------------------------------------

RAMP = [*range(0, 65536, 16)]  # 4096 entries


def first_as(vr, first, entries=RAMP, keyword="VOILUTSequence"):
    """Write the descriptor in either VR, whatever sign the number has in the other."""
    sequence = lookup_table(entries, first=0, bits=16)
    number = (first + 32768) % 65536 - 32768 if vr == "SS" else first % 65536
    sequence[0].add_new("LUTDescriptor", vr, [len(entries), number, 16])
    return {keyword: sequence}


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("build", [dicom, implicit, big_endian_dicom])
@pytest.mark.parametrize(
    ("values", "dtype", "first", "elements"),
    [
        ([40000, 42000, 44095], np.uint16, 40000, {}),
        ([-20000, -18000, -15905], np.int16, -20000, {}),
        ([20000, 22000, 24095], np.int16, 20000, {}),
        ([0, 2000, 4095], np.uint16, -1000, {"RescaleSlope": 1, "RescaleIntercept": -1000}),
        ([-25536, -23536, -21441], np.int16, 40000, {"RescaleSlope": 1, "RescaleIntercept": 65536}),
        ([-8000, -6000, -3905], np.int16, -8000, {"RescaleSlope": 1, "RescaleIntercept": 0}),
    ],
)
def test_the_first_value_has_the_sign_of_the_input_whatever_its_vr(build, values, dtype, first, elements, vr):
    pixels = np.array([values], dtype)
    payload = build(pixels=pixels, bits_stored=16, **first_as(vr, first), **elements)
    assert render(payload).tolist() == [[0, 125, 255]]


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize(
    ("values", "dtype"), [([40000, 42000, 44095], np.uint16), ([-20000, -18000, -15905], np.int16)]
)
def test_a_modality_lut_goes_by_the_sign_of_the_pixels(values, dtype, vr):
    table = first_as(vr, values[0], keyword="ModalityLUTSequence")
    assert shown(values, dtype, bits_stored=16, **table) == [0, 125, 255]


# --- windows that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, -5, 0.5, "NaN"])
def test_an_impossible_window_is_passed_over(width):
    payload = set_text(WindowCenter=b"2000", WindowWidth=str(width).encode())
    assert render(payload([0, 1000, 2000])).tolist() == [[0, 128, 255]]
    second = set_text(WindowCenter=b"2000\\50.5", WindowWidth=f"{width}\\101".encode())
    assert render(second([0, 50, 2000])).tolist() == [[0, 128, 255]]


def test_a_narrow_window_is_one_where_its_function_allows_it():
    window = {"WindowCenter": 100, "WindowWidth": 0.5}
    assert shown([99, 100, 101], VOILUTFunction="LINEAR_EXACT", **window) == [0, 128, 255]
    assert shown([99, 100, 101], **window) == [0, 128, 255]


def set_text(**texts):
    """Write texts into elements of VR DS as they are: pydicom would refuse them."""

    def build(values, syntax=ImplicitVRLittleEndian):
        dataset = testimages.dicom_dataset(np.array([values], np.uint16))
        for keyword, text in texts.items():
            tag = Tag(keyword)
            padded = text + b" " * (len(text) % 2)
            implicit_vr = syntax == ImplicitVRLittleEndian
            dataset._dict[tag] = RawDataElement(tag, "DS", len(padded), padded, 0, implicit_vr, True, True)
        return testimages.write_dicom(dataset, syntax)

    return build


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize(
    "texts",
    [
        {"WindowCenter": b"2048,0", "WindowWidth": b"4096,0"},
        {"WindowCenter": b" 2048,0 ", "WindowWidth": b"4096"},
        {"WindowCenter": b"2048,0\\1,5", "WindowWidth": b"4096,0\\2,5"},
        {"WindowCenter": b"1024,0", "WindowWidth": b"2048,5", "RescaleSlope": b"0,5", "RescaleIntercept": b"0,0"},
        {"WindowCenter": b"2048\0", "WindowWidth": b"4096\0"},
    ],
)
def test_a_decimal_comma_is_a_point(texts, syntax):
    assert render(set_text(**texts)([0, 2048, 4095], syntax)).tolist() == [[0, 128, 255]]


# --- without a window -------------------------------------------------------------------------------------------------


def body_and(share, value):
    """A ramp of 800 to 1000, and a share of pixels of another value."""
    pixels = np.linspace(800, 1000, 10_000).round().astype(np.uint16)
    n = round(share * len(pixels))
    pixels[5000 : 5000 + n] = value
    return pixels.reshape(100, 100)


@pytest.mark.parametrize("value", [4095, 0, 1500, 700])
@pytest.mark.parametrize("share", [0.0001, 0.003, 0.0099])
def test_a_marker_or_a_dead_pixel_does_not_set_the_range(share, value):
    clean, marked = (render(dicom(body_and(s, value))).astype(int) for s in (0, share))
    other = np.abs(clean - marked)[body_and(share, value) == body_and(0, value)]
    assert other.mean() < 2
    assert marked[body_and(share, value) == value].tolist() == [255 if value > 1000 else 0] * round(share * 10_000)


def test_a_small_object_on_one_gray_is_shown():
    pixels = np.full((100, 100), 500, np.uint16)
    pixels[50, 40:60] = 900
    rendered = render(dicom(pixels))
    assert (rendered[0, 0], rendered[50, 50]) == (0, 255)


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
    """The example by its own arithmetic: 12 bits, but for 38 of 3,840 pixels at either end."""
    pixels = twelve_bit_pixels().astype(float)
    ordered = np.sort(pixels.ravel())
    low, high = ordered[38], ordered[-39]
    return np.rint(np.clip(255 * (pixels - low) / (high - low), 0, 255))


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


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(JPEGBaseline8Bit, 8), (JPEGExtended12Bit, 8), (JPEGLosslessSV1, 8), (JPEGLSLossless, 8), (JPEG2000Lossless, 8)],
)
def test_8_bits_compressed_may_be_16_allocated(syntax, bits):
    frame = compress(gray_pixels(), syntax)
    words = gray_pixels().astype(np.uint16)
    payload = testimages.encapsulated_dicom(frame, syntax, words, bits_stored=bits, WindowCenter=128, WindowWidth=256)
    assert np.abs(render(payload).astype(int) - gray_pixels()).mean() < (2 if "4.5" in syntax else 0.001)


def compress(pixels, syntax):
    """Compress with imagecodecs, whose encoders are other code than its decoders are tested with elsewhere."""
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=8 if pixels.dtype == np.uint8 else 12)
    if syntax == JPEGLosslessSV1:
        return imagecodecs.ljpeg_encode(pixels)
    if syntax == JPEGLSLossless:
        return imagecodecs.jpegls_encode(pixels)
    return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)


@pytest.mark.parametrize("high_bit", [11, 15])
def test_jpeg_of_12_bits(high_bit):
    frame = compress(twelve_bit_pixels(), JPEGExtended12Bit)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    payload = testimages.encapsulated_dicom(frame, JPEGExtended12Bit, twelve_bit_pixels(), HighBit=high_bit, **window)
    assert np.abs(render(payload).astype(int) - twelve_bit_pixels() / 16).mean() < 1.5


@pytest.mark.parametrize(("bits_stored", "high_bit"), [(10, 11), (12, 15), (8, 15), (8, 11)])
@pytest.mark.parametrize("signed", [False, True])
def test_values_that_end_at_a_high_bit_further_up(bits_stored, high_bit, signed):
    """Uncompressed, RLE and lossless: the bits around them may hold overlays."""
    pixels = np.arange(0, 1 << bits_stored, max(1, (1 << bits_stored) // 256), dtype=np.uint16).reshape(16, -1)
    shift = high_bit + 1 - bits_stored
    words = pixels << shift | (0xFFFF >> (16 - shift))
    words = words.view(np.int16) if signed else words
    plain = pixels.astype(np.int32)
    if signed:
        plain[plain >= 1 << (bits_stored - 1)] -= 1 << bits_stored
    low, high = plain.min(), plain.max()
    wanted = np.rint(255 * (plain - low) / (high - low))
    window = {"WindowCenter": (low + high + 1) / 2, "WindowWidth": high - low + 1}
    for build in (dicom, big_endian_dicom):
        payload = build(words, bits_stored=bits_stored, HighBit=high_bit, **window)
        np.testing.assert_array_equal(render(payload), wanted)
    frame = imagecodecs.ljpeg_encode(words.view(np.uint16))
    packed = testimages.encapsulated_dicom(
        frame, JPEGLosslessSV1, words, bits_stored=bits_stored, HighBit=high_bit, **window
    )
    np.testing.assert_array_equal(render(packed), wanted)


@pytest.mark.parametrize("declared", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "low"), [(np.int16, -2048), (np.int16, -30000), (np.uint16, 0), (np.uint16, 40000), (np.int8, -100)]
)
def test_a_jpeg_2000_stream_says_the_sign_itself(dtype, low, declared):
    pixels = (gray_pixels().astype(np.int32) // (2 if dtype == np.int8 else 1) + low).astype(dtype)
    frame = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)
    payload = testimages.encapsulated_dicom(
        frame, JPEG2000Lossless, pixels, bits_stored=8 * pixels.itemsize, PixelRepresentation=declared
    )
    plain = render(dicom(pixels, bits_stored=8 * pixels.itemsize))
    np.testing.assert_array_equal(render(payload), plain)


@pytest.mark.parametrize(
    ("dtype", "padding", "vr"),
    [
        (np.int16, 63536, "US"),
        (np.int16, -2000, "SS"),
        (np.uint16, -2000, "SS"),
        (np.uint16, 63536, "US"),
        (np.int16, 65535, "US"),
        (np.int16, b"\x30\xf8", "OW"),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_read_with_the_sign_of_the_pixels_and_shown_black(dtype, padding, vr, photometric):
    value = int.from_bytes(padding, "little") if isinstance(padding, bytes) else padding
    inside = twelve_bit_pixels()[8:-8].astype(dtype)
    pixels = twelve_bit_pixels().astype(dtype)
    pixels[:8] = pixels[-8:] = np.array([value % 65536], np.uint16).view(dtype)
    dataset = testimages.dicom_dataset(pixels, bits_stored=16, photometric=photometric)
    dataset.add_new("PixelPaddingValue", vr, padding)
    rendered = render(testimages.write_dicom(dataset))
    assert not rendered[:8].any()
    assert not rendered[-8:].any()
    np.testing.assert_array_equal(rendered[8:-8], render(dicom(inside, bits_stored=16, photometric=photometric)))


def test_padding_marked_by_bits_above_the_stored_ones():
    assert shown([0xF000, 1000, 2000, 3000], PixelPaddingValue=0xF000) == [0, 0, 128, 255]


@pytest.mark.parametrize("photometric", [" MONOCHROME1", "MONOCHROME1 ", "MONOCHROME1\0", " monochrome1 "])
def test_spaces_around_a_code_are_not_significant(photometric):
    payload = dicom(np.array([[0, 1000, 4000]], np.uint16), photometric=photometric)
    assert render(payload).tolist() == [[255, 191, 0]]


def test_spaces_around_other_codes():
    pixels = np.array([[0, 1024, 2048, 4095]], np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert render(dicom(pixels, VOILUTFunction=" SIGMOID", **window)).tolist() == [[30, 69, 128, 225]]
    assert render(dicom(pixels, PresentationLUTShape=" INVERSE", **window)).tolist() == [[255, 191, 127, 0]]
    assert render(dicom(pixels, Modality=" CR", **window)).tolist() == [[0, 64, 128, 255]]


# --- files as they are written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_bare_data_set_in_big_endian(dtype):
    pixels = gray_pixels().astype(dtype)
    payload = big_endian_dicom(pixels, bits_stored=8, WindowCenter=128, WindowWidth=256)
    dataset = payload[132:]
    offset = 12 + int.from_bytes(dataset[8:12], "little")
    bare = dataset[offset:]
    assert looks_like_dicom(bare)
    np.testing.assert_array_equal(render(bare), gray_pixels())


JPEG_LIKE = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("syntax", [*JPEG_LIKE, RLELossless])
@pytest.mark.parametrize(
    "tail",
    [b"", bytes(8), bytes(2), bytes(12), bytes(1000), b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0abcd"],
    ids=["file ends", "8 zeros", "2 zeros", "12 zeros", "1000 zeros", "next element"],
)
def test_no_delimiter_behind_a_whole_frame_is_no_damage(syntax, tail):
    pixels = gray_pixels()
    if syntax == RLELossless:
        whole = testimages.rle_dicom()
    else:
        whole = testimages.encapsulated_dicom(compress(pixels, syntax), syntax, pixels, bits_stored=8)
    assert whole.endswith(DELIMITER)
    np.testing.assert_array_equal(render(whole.removesuffix(DELIMITER) + tail), render(whole))


@pytest.mark.parametrize("syntax", [*JPEG_LIKE, RLELossless])
@pytest.mark.parametrize("missing", [2, 20, 400])
def test_a_fragment_that_is_cut_is_damage(syntax, missing):
    pixels = gray_pixels()
    if syntax == RLELossless:
        whole = testimages.rle_dicom()
    else:
        whole = testimages.encapsulated_dicom(compress(pixels, syntax), syntax, pixels, bits_stored=8)
    assert fault_of(whole.removesuffix(DELIMITER)[:-missing]).reason == Reason.DICOM_CORRUPT


def test_several_fragments_without_an_offset_table_are_one_frame():
    pixels = gray_pixels()
    frame = compress(pixels, JPEGLosslessSV1)
    whole = testimages.encapsulated_dicom(frame, JPEGLosslessSV1, pixels, bits_stored=8)
    dataset = dcmread(io.BytesIO(whole))
    parts = [frame[i : i + 500] for i in range(0, len(frame), 500)]
    items = b"".join(b"\xfe\xff\0\xe0" + len(part).to_bytes(4, "little") + part for part in [b"", *parts])
    dataset.PixelData = items
    np.testing.assert_array_equal(render(testimages.write_dicom(dataset, JPEGLosslessSV1)), render(whole))


def test_something_else_between_fragments_is_damage():
    whole = testimages.encapsulated_dicom(
        compress(gray_pixels(), JPEGLSLossless), JPEGLSLossless, gray_pixels(), bits_stored=8
    )
    at = whole.rindex(b"\xfe\xff\0\xe0")
    assert fault_of(whole[:at] + b"\x10\0\x10\0" + whole[at + 4 :]).reason == Reason.DICOM_CORRUPT


def meta_of(syntax):
    """Give a file meta information, group length first."""
    payload = (
        testimages.encapsulated_dicom(bytes(8), syntax, gray_pixels()) if syntax in JPEG_LIKE else dicom(syntax=syntax)
    )
    end = 132 + 12 + int.from_bytes(payload[140:144], "little")
    return payload[132:end]


@pytest.mark.parametrize("second", [ExplicitVRLittleEndian, JPEG2000Lossless, ImplicitVRLittleEndian])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "syntax alone"])
@pytest.mark.parametrize("wrong_length", [0, -40, 100])
def test_of_two_file_meta_informations_the_first_counts(second, whole, wrong_length):
    pixels = gray_pixels()
    payload = testimages.encapsulated_dicom(
        compress(pixels, JPEGLosslessSV1), JPEGLosslessSV1, pixels, bits_stored=8, WindowCenter=128, WindowWidth=256
    )
    length = int.from_bytes(payload[140:144], "little")
    end = 132 + 12 + length
    added = meta_of(second)
    if not whole:
        at = added.index(b"\2\0\x10\0UI")
        added = added[at : at + 8 + int.from_bytes(added[at + 6 : at + 8], "little")]
    twice = payload[:140] + (length + wrong_length).to_bytes(4, "little") + payload[144:end] + added + payload[end:]
    np.testing.assert_array_equal(render(twice), pixels)


# --- what is no radiograph to look at ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "CT"},
        {"Modality": "MG"},
        {"Modality": "us "},
        {"Modality": testimages.PATIENT_NAME},
        {"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"},
        {"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"},
    ],
)
def test_a_foreign_modality_is_refused_unless_it_is_allowed(elements):
    error = fault_of(dicom(**elements))
    assert error.reason == Reason.DICOM_FOREIGN_MODALITY
    assert testimages.PATIENT_NAME not in str(error)
    limits = DecodeLimits(modalities=("CT", "MG", "US", "MR", testimages.PATIENT_NAME.upper()))
    render_dicom(dicom(**elements), origin=ORIGIN, limits=limits)


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "DR", "SC", "", None, "OT", "dx"])
def test_radiographs_and_what_names_no_modality_are_rendered(modality):
    np.testing.assert_array_equal(render(dicom(Modality=modality)), reference())


@pytest.mark.parametrize(
    "elements",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"PresentationIntentType": " for processing "},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
    ],
)
def test_raw_data_of_a_detector_are_refused_unless_they_are_allowed(elements):
    assert fault_of(dicom(**elements)).reason == Reason.DICOM_FOR_PROCESSING
    render_dicom(dicom(**elements), origin=ORIGIN, limits=DecodeLimits(for_processing=True))
    render(dicom(PresentationIntentType="FOR PRESENTATION"))


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "names"),
    [
        ({}, ["decode", "range"]),
        ({"WindowCenter": 2048, "WindowWidth": 4096}, ["decode", "voi"]),
        ({"photometric": "MONOCHROME1", "PixelPaddingValue": 320}, ["decode", "range", "invert", "padding"]),
        (
            {
                "RescaleSlope": 2,
                "RescaleIntercept": -9,
                "VOILUTSequence": lookup_table([*range(4096)], first=0, bits=12),
            },
            ["decode", "modality", "voi"],
        ),
    ],
)
def test_each_step_is_told_with_what_decided_it(elements, names):
    rendered = render_dicom(dicom(**elements), origin=ORIGIN, limits=DecodeLimits())
    assert [step.name for step in rendered.steps] == names
    decided = {key: value for step in rendered.steps for key, value in step.decided_by.items()}
    assert decided["TransferSyntaxUID"] == "1.2.840.10008.1.2.1"
    for keyword, value in elements.items():
        if keyword not in ("photometric", "VOILUTSequence"):
            assert decided[keyword] == str(value)
    assert testimages.PATIENT_NAME not in str(rendered.steps)


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


def test_a_precision_that_no_codec_has_costs_one_record():
    """17 bits ended gdcm by abort()."""
    poison = bytearray(testimages.gdcm_dicom(JPEGLosslessSV1))
    poison[poison.index(b"\xff\xc3") + 4] = 17
    assert fault_of(bytes(poison)).reason == Reason.DICOM_CORRUPT


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
