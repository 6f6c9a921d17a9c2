"""What is sent: a DICOM object of a wanted size, and a PNG; built once, with a name of its own each time it is sent."""

from dataclasses import dataclass, replace
from typing import Self

from pydicom.uid import ExplicitVRLittleEndian

from xray.phantom import FINDINGS, encode_png, generate_radiograph
from xray.simulator.association import encode_store
from xray.simulator.habits import CR, draw_habits
from xray.simulator.objects import Shot, write_dataset_bytes
from xray.simulator.patient import derive_uid
from xray.simulator.pictures import Pictures

SYNTAX = str(ExplicitVRLittleEndian)
SOP_CLASS = CR
_BITS = 12
_BYTES_A_PIXEL = 2
_UID_CHARACTERS = 44
"""Of "2.25." and 39 digits: all that 128 bits can need."""
_PNG_SIDES = range(160, 512, 8)


def draw_dataset(size: int) -> tuple[bytes, str]:
    """Make an uncompressed CR object of about so many bytes; gives its data set, and its SOP Instance UID."""
    height = round((size / _BYTES_A_PIXEL) ** 0.5)
    pictures = Pictures(1, count=1, shape=(height, size // _BYTES_A_PIXEL // height))
    habits = replace(draw_habits(1, seed=1, http=False), sop_class=CR, bits=_BITS, inverted=False)
    # A shot whose UID is as long as the longest, so that any other fits in its place.
    number = next(n for n in range(1000) if len(derive_uid(1, "instance", n)) == _UID_CHARACTERS)
    shot = Shot(habits, number, number)
    return write_dataset_bytes(shot, pictures, SYNTAX), shot.sop_uid


def draw_png(size: int) -> bytes:
    """Make a PNG of a radiograph, as near to so many bytes as the steps of its side allow."""
    drawn = (encode_png(generate_radiograph(1, finding=FINDINGS[0], height=side, width=side)) for side in _PNG_SIDES)
    return min(drawn, key=lambda png: abs(len(png) - size))


def name_object(sender: int, number: int) -> str:
    """Give a SOP Instance UID as long as the longest."""
    return f"2.25.3{sender:08d}{number:030d}"


@dataclass
class Message:
    """A C-STORE request with all its PDUs, encoded once.

    Parameters
    ----------
    data : bytearray
        What goes to the socket.
    places : tuple of int
        Where the SOP Instance UID stands in it.
    """

    data: bytearray
    places: tuple[int, ...]

    @classmethod
    def encode(cls, dataset: bytes, uid: str, *, context: int, max_pdu_bytes: int) -> Self:
        """Encode for an association.

        Raises
        ------
        RuntimeError
            The UID is not where it is looked for: in the command, and whole in the first PDU of the data set.
        """
        parts = encode_store(SOP_CLASS, uid, dataset, context=context, message=1, max_pdu_bytes=max_pdu_bytes)
        data = bytearray(b"".join(parts))
        first = data.find(uid.encode())
        second = data.find(uid.encode(), first + 1)
        if min(first, second) < 0:
            msg = "the SOP Instance UID was not found in the command and in the data set"
            raise RuntimeError(msg)
        return cls(data, (first, second))

    def rename(self, uid: str) -> None:
        """Make it another object, of the same pixels."""
        for place in self.places:
            self.data[place : place + _UID_CHARACTERS] = uid.encode()
