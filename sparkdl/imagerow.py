"""The names of `sparkdl.image.row` under the path that they had: kept for one release."""

from sparkdl.image.row import (
    IMAGE_ARROW_TYPE,
    IMAGE_DDL,
    MODE_BY_CHANNELS,
    ImageRow,
    ImageRowLike,
    array_from_row,
    row_from_array,
)

__all__ = [
    "IMAGE_ARROW_TYPE",
    "IMAGE_DDL",
    "MODE_BY_CHANNELS",
    "ImageRow",
    "ImageRowLike",
    "array_from_row",
    "row_from_array",
]
