"""What one file may cost, the formats there are, and the version of how they are rendered."""

from dataclasses import dataclass

# Kafka's largest message, as brokers and topics are set here: the largest CR plate (3520 x 4280 x 2 bytes = 30.1 MB)
# goes through it uncompressed, the largest flat detector in common use (3072 x 3072 x 2 bytes = 18.9 MB) as well.
MAX_PAYLOAD_BYTES = 33_554_432

# Files that come through no Kafka, in training and in folders: no gray image within the limit of pixels has half of it.
MAX_FILE_BYTES = 268_435_456

# Five times that detector (9.4 M) and three times the largest CR plate (15 M). A decoded image then costs at most
# 150 MB (colour), which a worker survives; a PNG of 30 MB could otherwise ask for 30 GB.
MAX_PIXELS = 50_000_000

# Changes with any change that can move a pixel of the result. It is stored with each model and each prediction, so a
# model is never silently fed images rendered in another way than those it was trained on.
RENDERING_VERSION = 2

# Those that `decode_image` has: the present one, and for the models of the release before its own.
RENDERING_VERSIONS = (1, 2)

PNG, JPEG, DICOM = "image/png", "image/jpeg", "application/dicom"


# What a chest X-ray may call itself: computed, digital and film radiography, scanned film. What names no modality, or
# "other", passes as well.
MODALITIES = ("CR", "DX", "RG", "DR", "SC")


@dataclass(frozen=True)
class DecodeLimits:
    """What one record may cost, and which DICOM images are rendered.

    Parameters
    ----------
    max_payload_bytes : int
        Largest encoded file, in bytes.
    max_pixels : int
        Largest height x width, read from the header before anything is decompressed.
    modalities : tuple of str or None
        Values of the DICOM element Modality that are rendered; a file that names none, or ``"OT"``, is as well. None
        is any.
    for_processing : bool
        Whether raw data of a detector (Presentation Intent Type FOR PROCESSING) are rendered.
    """

    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    max_pixels: int = MAX_PIXELS
    modalities: tuple[str, ...] | None = MODALITIES
    for_processing: bool = False


FILE_LIMITS = DecodeLimits(max_payload_bytes=MAX_FILE_BYTES)
"""What one file of a folder may cost."""


def describe_other_rendering(version: int) -> str:
    """Say what is to be done about a model that was trained on images of another rendering version than this one.

    Parameters
    ----------
    version : int
        Of the images that the model was trained on.

    Returns
    -------
    str
        Two sentences; empty where it is this version.
    """
    if version == RENDERING_VERSION:
        return ""
    served = (
        "This release still decodes so for it, and the next one does not serve it"
        if version in RENDERING_VERSIONS
        else "This release does not decode so, and does not serve it"
    )
    return (
        f"It was trained on images of rendering version {version}, and this is version {RENDERING_VERSION}. "
        f"{served}: train a new one with 'xray train --data FOLDER'."
    )
