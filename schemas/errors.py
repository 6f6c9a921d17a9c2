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
        ├── ChampionChangedError         another model came into service than the one that was decided against
        ├── DependencyError              Java, a jar or an optional package is missing; says what to install
        ├── BrokerError                  Kafka cannot be started, reached or used
        ├── DataLossError                records are gone that were not read yet; says which offsets
        ├── RepetitionError              a stream without a checkpoint would score images again
        ├── NoCheckpointError            no stream has run from this state folder, so there is no account of it
        └── DatasetError                 training data is missing or cannot be used as labelled
            └── LeakError                the same patient or picture is in both training and test
"""

from collections.abc import Sequence
from enum import StrEnum

_NAMED_IN_ERROR = 5


class Reason(StrEnum):
    """Why a record became a dead letter: one closed set for rows, headers, metrics and tests."""

    TOMBSTONE = "tombstone"
    EMPTY_PAYLOAD = "empty_payload"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    RECORD_TOO_LARGE = "record_too_large"
    KEY_TOO_LARGE = "key_too_large"
    HEADER_TOO_LARGE = "header_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    INVALID_HEADER = "invalid_header"
    STRUCTURED_MODE = "structured_mode"
    CONTENT_TYPE_MISMATCH = "content_type_mismatch"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_COLOR = "unsupported_color"
    UNSUPPORTED_BIT_DEPTH = "unsupported_bit_depth"
    MULTI_FRAME = "multi_frame"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    DICOM_CORRUPT = "dicom_corrupt"
    DICOM_NO_PIXEL_DATA = "dicom_no_pixel_data"
    DICOM_FOREIGN_MODALITY = "dicom_foreign_modality"
    DICOM_FOR_PROCESSING = "dicom_for_processing"
    DICOM_UNSUPPORTED_TRANSFER_SYNTAX = "dicom_unsupported_transfer_syntax"
    DICOM_UNSUPPORTED_PIXELS = "dicom_unsupported_pixels"
    DICOM_UNSUPPORTED_LUT = "dicom_unsupported_lut"
    BLANK_RENDERING = "blank_rendering"
    DECODER_CRASH = "decoder_crash"
    NO_FEATURES = "no_features"
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


class ChampionChangedError(JobError):
    """Another model came into service than the one that a promotion was decided against; nothing was changed."""


class DependencyError(JobError):
    """Java, a jar or an optional package is missing; the message says what to install."""


class BrokerError(JobError):
    """Kafka cannot be started, reached or used."""


class TableError(JobError):
    """A Delta table cannot be made, brought up to date, read or written."""


class TableMovedError(TableError):
    """Another writer changed a Delta table since it was opened; nothing was written."""


class TableClaimedError(TableError):
    """Another archive fills the tables; one at a time."""


class DataLossError(JobError):
    """Records are gone from a topic that a query had not read yet; the message says which offsets."""


class RepetitionError(JobError):
    """A stream without a checkpoint would score images that have an outcome already; the message says how many."""


class NoCheckpointError(JobError):
    """No stream has run from this state folder, so nobody can say what it has consumed."""


class DatasetError(JobError):
    """Training data is missing or cannot be used as labelled."""


class LeakError(DatasetError):
    """The same patient or picture is in both training and test.

    Parameters
    ----------
    patients : sequence of str
        On both sides.
    pairs : sequence of (str, str)
        (training file, test file) that are copies of each other; where no copies are on both sides, of patients who
        have copies in common elsewhere, so are one person or one mistake.
    """

    def __init__(self, patients: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
        self.patients = tuple(patients)
        self.pairs = tuple(pairs)
        found = [
            *_named(self.patients, "patient(s)"),
            *_named(
                [f"{train} = {test}" for train, test in self.pairs],
                "pair(s) of copies, or of patients with a copy in common",
            ),
        ]
        advice = "Give all images of one patient, and all copies, the same side; or none, for a split that does"
        super().__init__(f"in both training and test, wanted none: {'; '.join(found)}. {advice}.")

    def __reduce__(self) -> tuple[type["LeakError"], tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.patients, self.pairs)


def _named(items: Sequence[str], noun: str) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _NAMED_IN_ERROR} more" if len(items) > _NAMED_IN_ERROR else ""
    return [f"{len(items)} {noun}: {', '.join(items[:_NAMED_IN_ERROR])}{more}"]
