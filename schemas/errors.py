"""Every error this project raises on purpose, and the reasons a record can fail for.

::

    XrayError
    ├── RecordError(reason, origin)      one record is at fault: it becomes a dead letter, the stream goes on
    │   ├── UnsupportedImageError        a format, transfer syntax or pixel layout that is not read
    │   ├── CorruptImageError            the format is known, the bytes do not decode
    │   └── ContractError                the message breaks the input contract (headers, size, emptiness)
    └── JobError                         the job is at fault: it stops with a non-zero exit code
        ├── SettingsError                a setting is missing or wrong; the message names it
        ├── ModelLoadError               a model folder is missing, damaged or not what its hash says
        ├── DependencyError              Java, a jar or an optional package is missing; says what to install
        ├── BrokerError                  Kafka cannot be started, reached or used
        └── DatasetError                 training data is missing or cannot be used as labelled
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a record became a dead letter: one closed set for rows, headers, metrics and tests."""

    TOMBSTONE = "tombstone"
    EMPTY_PAYLOAD = "empty_payload"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    INVALID_HEADER = "invalid_header"
    STRUCTURED_MODE = "structured_mode"
    CONTENT_TYPE_MISMATCH = "content_type_mismatch"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_COLOR = "unsupported_color"
    MULTI_FRAME = "multi_frame"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    DICOM_CORRUPT = "dicom_corrupt"
    DICOM_NO_PIXEL_DATA = "dicom_no_pixel_data"
    DICOM_UNSUPPORTED_TRANSFER_SYNTAX = "dicom_unsupported_transfer_syntax"
    DICOM_UNSUPPORTED_PIXELS = "dicom_unsupported_pixels"
    UNEXPECTED = "unexpected"


class XrayError(Exception):
    """Base of every error raised on purpose by this project."""


class RecordError(XrayError):
    """One record cannot be scored; it becomes a dead letter and the stream goes on.

    Parameters
    ----------
    reason : Reason
        The stable name that rows, headers and metrics carry.
    origin : str
        Where the record came from, e.g. ``"xray.images-3@1024"`` (topic-partition@offset) or a file's path.
    detail : str
        What was found and what was wanted. Never patient data.
    """

    def __init__(self, reason: Reason, origin: str, detail: str) -> None:
        super().__init__(f"{origin}: {detail}")
        self.reason = reason
        self.origin = origin
        self.detail = detail

    def __reduce__(self) -> tuple[type["RecordError"], tuple[Reason, str, str]]:
        """Pickle by the constructor's own arguments, so the error crosses process borders."""
        return type(self), (self.reason, self.origin, self.detail)


class UnsupportedImageError(RecordError):
    """The format, transfer syntax or pixel layout is one that is not read."""


class CorruptImageError(RecordError):
    """The format is known but the bytes do not decode."""


class ContractError(RecordError):
    """The message breaks the input contract: its headers, its size or its emptiness."""


class JobError(XrayError):
    """The job cannot go on; the process ends with a non-zero exit code."""


class SettingsError(JobError):
    """A setting is missing or wrong; the message names it."""


class ModelLoadError(JobError):
    """A model folder is missing, damaged or not what its hash says."""


class DependencyError(JobError):
    """Java, a jar or an optional package is missing; the message says what to install."""


class BrokerError(JobError):
    """Kafka cannot be started, reached or used."""


class DatasetError(JobError):
    """Training data is missing or cannot be used as labelled."""
