"""The names of `sparkdl.image.decode` under the path that they had: kept for one release."""

from sparkdl.image.decode import DecodedImage, decode_image, sniff_media_type
from sparkdl.image.limits import DICOM, JPEG, MAX_PAYLOAD_BYTES, MAX_PIXELS, PNG, RENDERING_VERSION, DecodeLimits
from sparkdl.image.pixels import resize_pixels

__all__ = [
    "DICOM",
    "JPEG",
    "MAX_PAYLOAD_BYTES",
    "MAX_PIXELS",
    "PNG",
    "RENDERING_VERSION",
    "DecodeLimits",
    "DecodedImage",
    "decode_image",
    "resize_pixels",
    "sniff_media_type",
]
