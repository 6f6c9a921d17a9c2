"""Which SOP classes and transfer syntaxes the DICOM door takes."""

import re
from pathlib import Path

import pytest
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from streaming.gateway.dicom.contexts import STORAGE_CLASSES, TRANSFER_SYNTAXES, choose_contexts
from tests.paths import ROOT
from tests.testimages import good_files


def negotiate(*proposed: tuple[str, list[str]], others: tuple[PresentationContext, ...] = ()) -> list[tuple[int, str]]:
    """Give result and transfer syntax of each context, in order."""
    contexts: list[PresentationContext] = []
    for number, (abstract, syntaxes) in enumerate(proposed):
        context = build_context(abstract, list(syntaxes))
        context.context_id = 2 * number + 1
        contexts.append(context)
    results, _ = negotiate_as_acceptor(contexts, choose_contexts(contexts, others=others))
    return [(one.result, one.transfer_syntax[0]) for one in results]


ACCEPTED, NO_CLASS, NO_SYNTAX = 0, 3, 4
DX = DigitalXRayImageStorageForPresentation


@pytest.mark.parametrize("abstract", STORAGE_CLASSES)
@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_each_class_is_taken_in_each_syntax_that_is_read(abstract: str, syntax: str) -> None:
    assert negotiate((abstract, [syntax])) == [(ACCEPTED, syntax)]


def test_syntaxes_are_those_of_the_files_that_decoding_reads() -> None:
    syntaxes = set()
    for name, payload in good_files().items():
        if payload[128:132] == b"DICM":
            found = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", payload)
            assert found is not None, name
            syntaxes.add(UID(found[1].decode()))
    assert syntaxes, "no DICOM files were found"
    assert syntaxes <= set(TRANSFER_SYNTAXES)


def test_as_many_syntaxes_as_the_page_for_publishers_names() -> None:
    page = Path(ROOT, "docs", "publishing.md").read_text()
    found = re.search(r"transfer syntaxes that are read: (.*?)\n\n", page, re.DOTALL)
    assert found is not None
    counts = {"both": 2, "all three": 3, "8 and 12 bits": 1}
    names = [re.search(r"\(([^)]*)\)", name) for name in found[1].split(",")]
    assert sum(1 if name is None else counts[name[1]] for name in names) == len(TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    "abstract",
    [
        CTImageStorage,
        DigitalXRayImageStorageForProcessing,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        EnhancedSRStorage,
        StorageCommitmentPushModel,
        "1.2.826.0.1.3680043.8.498.77",
    ],
)
def test_other_classes_are_refused_one_by_one(abstract: str) -> None:
    results = negotiate((abstract, [ImplicitVRLittleEndian]), (DX, [ImplicitVRLittleEndian]))
    assert results == [(NO_CLASS, ImplicitVRLittleEndian), (ACCEPTED, ImplicitVRLittleEndian)]


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.100", "1.2.3.4"])
def test_other_syntaxes_are_refused_one_by_one(syntax: str) -> None:
    results = negotiate((DX, [syntax]), (DX, [ExplicitVRLittleEndian]))
    assert results == [(NO_SYNTAX, syntax), (ACCEPTED, ExplicitVRLittleEndian)]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([ExplicitVRLittleEndian, ImplicitVRLittleEndian], ExplicitVRLittleEndian),
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([ExplicitVRBigEndian, ExplicitVRLittleEndian], ExplicitVRBigEndian),
        ([JPEGLosslessSV1, ImplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([RLELossless, JPEG2000Lossless], RLELossless),
        ([JPEG2000Lossless, RLELossless], JPEG2000Lossless),
        (["1.2.3.4", JPEG2000Lossless], JPEG2000Lossless),
    ],
)
def test_of_several_syntaxes_the_first_uncompressed_one_is_chosen(offered: list[str], chosen: str) -> None:
    assert negotiate((DX, offered)) == [(ACCEPTED, chosen)]


def test_a_context_for_each_syntax_is_accepted_with_its_own() -> None:
    proposed = [(DX, [one]) for one in (JPEGLosslessSV1, ExplicitVRLittleEndian, RLELossless)]
    assert [syntax for _, syntax in negotiate(*proposed)] == [JPEGLosslessSV1, ExplicitVRLittleEndian, RLELossless]


def test_verification_and_commitment() -> None:
    proposed = [(Verification, [ImplicitVRLittleEndian]), (StorageCommitmentPushModel, [ExplicitVRLittleEndian])]
    assert [result for result, _ in negotiate(*proposed)] == [ACCEPTED, NO_CLASS]
    assert [result for result, _ in negotiate(*proposed, others=(build_context(StorageCommitmentPushModel),))] == [
        ACCEPTED,
        ACCEPTED,
    ]


def test_nothing_proposed_is_no_error() -> None:
    assert negotiate() == []


def test_classes_are_of_one_frame() -> None:
    assert set(STORAGE_CLASSES) == {ComputedRadiographyImageStorage, DX, SecondaryCaptureImageStorage}
