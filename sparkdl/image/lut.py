"""Look-up tables of DICOM files: one item of a Modality or VOI LUT Sequence, as devices write it.

What makers get wrong is read as it was meant, where that can be told: the sign of the first value's VR, the number of
bits, two entries of 8 bits in a word, an item with nothing in it.

References
----------
DICOM PS3.3 C.11.1.1 (Modality LUT), C.11.2.1.1 (VOI LUT); PS3.5 section 8 (entries of 8 bits in words).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from sparkdl.image.elements import read_items

_BYTE, _WORD = 8, 16
_DESCRIPTOR_NUMBERS = 3
_MOST_ENTRIES = 1 << _WORD
_OUTLIERS = 100
"""One entry in so many may stand out above the others, and says nothing of their bits."""


@dataclass(frozen=True, slots=True)
class LookupTable:
    """One table of a file.

    Parameters
    ----------
    entries : numpy.ndarray
        float64 of shape (n,), 0 to 65535.
    first : int
        The input value of the first entry, as the 16 bits that the file has: its sign is for who knows the input.
    declared_bits : int
        Bits of an entry as the descriptor says.
    """

    entries: npt.NDArray[np.float64]
    first: int
    declared_bits: int

    @property
    def bits(self) -> int | None:
        """Bits that the entries take, which is what counts; None where that cannot be told.

        One entry in a hundred that takes more than the others may be wrong, or they may be dark. The descriptor has the
        last word only on entries of fewer than 8 bits. A few largest entries of 2 ** bits, one too high, are clipped.
        """
        entries = self.entries[self.entries > 0]
        if not len(entries):
            return max(1, min(_WORD, self.declared_bits))
        largest = int(entries.max())
        usual = len(entries) - 1 - len(entries) // _OUTLIERS
        typical = int(np.partition(entries, usual)[usual]).bit_length()
        found = largest.bit_length()
        if largest == 1 << self.declared_bits or (typical < found and largest.bit_count() == 1):
            found -= 1
        if typical < found:
            return None
        return max(found, min(_BYTE, self.declared_bits))

    def look_up(self, values: npt.NDArray[Any], *, signed: bool) -> npt.NDArray[np.float64]:
        """Give the entries of values; below the first they take that, above the last the last.

        Parameters
        ----------
        values : numpy.ndarray
            Any shape, any number.
        signed : bool
            Whether the input can be negative, and so the first value.
        """
        first = self.first - _MOST_ENTRIES if signed and self.first >= _MOST_ENTRIES // 2 else self.first
        places = np.clip(np.rint(values) - first, 0, len(self.entries) - 1).astype(np.intp)
        found: npt.NDArray[np.float64] = self.entries[places]
        return found


def read_table(dataset: Dataset, keyword: str) -> LookupTable | None:
    """Read the first item with a table in it of a sequence; None where there is none.

    Parameters
    ----------
    dataset : Dataset
        Of the file.
    keyword : str
        ``"ModalityLUTSequence"`` or ``"VOILUTSequence"``.

    Returns
    -------
    LookupTable or None
        An item without descriptor or data says nothing and is passed over.

    Raises
    ------
    ValueError
        The table has another length than its descriptor says.
    """
    for item in read_items(dataset, keyword):
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor in (None, "", b"") or data in (None, "", b"") or _length(data) == 0:
            continue
        file_order = "<" if dataset.original_encoding[1] is not False else ">"
        numbers = [int(number) for number in _words(descriptor, file_order)]
        if len(numbers) != _DESCRIPTOR_NUMBERS:
            msg = "the descriptor of a LUT has not three numbers"
            raise ValueError(msg)
        count, first, bits = numbers
        order = "<" if item["LUTData"].VR == "OB" else file_order
        return LookupTable(_entries(data, count or _MOST_ENTRIES, order), first, bits)
    return None


def _length(data: Any) -> int:
    return len(data) if hasattr(data, "__len__") else 1


def _words(data: Any, order: str) -> npt.NDArray[np.int64]:
    """Give 16-bit words, unsigned, from bytes or from the numbers that pydicom makes of them."""
    if isinstance(data, bytes):
        return np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype(np.int64)
    return np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF


def _entries(data: Any, count: int, order: str) -> npt.NDArray[np.float64]:
    if isinstance(data, bytes) and count <= len(data) < 2 * count and len(data) % 2:
        entries = np.frombuffer(data, np.uint8).astype(np.int64)  # bytes, an odd number of them
    else:
        entries = _words(data, order)
        if len(entries) < count <= 2 * len(entries):  # two entries of 8 bits in a word, the first in its low byte
            entries = entries.astype("<u2").view(np.uint8).astype(np.int64)
    if len(entries) < count:
        msg = "the LUT has not the length that its descriptor says"
        raise ValueError(msg)
    return entries[:count].astype(np.float64)
