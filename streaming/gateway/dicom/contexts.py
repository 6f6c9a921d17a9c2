"""What the DICOM door takes: SOP classes and transfer syntaxes, and which of the latter where a device offers several.

References
----------
DICOM PS3.4 B.5 (Storage SOP classes), PS3.8 7.1.1.13 (presentation contexts).
"""

from collections.abc import Iterable
from typing import Final

from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification

from sparkdl.image.codecs import SYNTAXES
from sparkdl.image.dicomfile import NATIVE_SYNTAXES

IMPLEMENTATION_UID = UID("2.25.180429471283610954873341790842061357042")
IMPLEMENTATION_VERSION = "XRAY_GATEWAY_1"
"""Both are in the files that are made of what is received, and so in their hashes: a release must not change them."""

STORAGE_CLASSES: Final = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)
"""Of one frame, for presentation: what decoding reads of chest radiographs."""

TRANSFER_SYNTAXES: Final = (*NATIVE_SYNTAXES, *map(UID, sorted(SYNTAXES)), RLELossless)
"""All that decoding reads; the uncompressed ones come first."""


def choose_contexts(
    proposed: Iterable[PresentationContext], *, others: Iterable[PresentationContext] = ()
) -> list[PresentationContext]:
    """Give the contexts that are accepted of those which a device proposes; the rest is refused one by one.

    Where one context has several transfer syntaxes, an uncompressed one is chosen, of these the first that the device
    names: it need not compress, nor lose anything. One that is compressed already is mostly offered alone.

    Parameters
    ----------
    proposed : iterable of PresentationContext
        Of the A-ASSOCIATE-RQ.
    others : iterable of PresentationContext
        What is accepted too: Storage Commitment, where it is offered.
    """
    wanted: dict[UID | None, list[UID]] = {}
    for context in proposed:
        wanted.setdefault(context.abstract_syntax, []).extend(context.transfer_syntax)
    stored = [build_context(one, _order(wanted.get(one, []), TRANSFER_SYNTAXES)) for one in STORAGE_CLASSES]
    return [*stored, build_context(Verification, list(NATIVE_SYNTAXES)), *others]


def _order(wanted: list[UID], known: tuple[UID, ...]) -> list[UID]:
    mine = [one for one in dict.fromkeys(wanted) if one in known]
    # The sort is stable: what the device names first stays first.
    return sorted(mine, key=lambda one: one not in NATIVE_SYNTAXES) or list(known)
