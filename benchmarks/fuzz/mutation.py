"""Damages files: numbers that readers believe, whole pieces, and single bytes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fuzz.formats import Map, Number

_BORDERS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 64, 127, 128, 129, 254, 255, 256, 257, 1000,
            0x3FFF, 0x4000, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 0xFFFFFF, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
"""Where programs change their mind: sizes of types, counts of bits, lengths that mean "unknown"."""

_MAX_BYTES = 1 << 20
"""A mutated file may have so many."""

_CHANGES_A_FILE = (1, 1, 1, 1, 2, 2, 3, 5)
_SHARE_OF_PIECES = 0.8  # of what is left out, repeated or moved; the rest is any bytes


@dataclass
class Draft:
    """A file while it is damaged.

    Parameters
    ----------
    damaged : bytearray
        As it is now.
    found : Map
        Of the file as it was. A change that moves bytes leaves it out of step, which is damage as well.
    others : sequence of bytes
        Files to take pieces from.
    secret : bytes
        A text that is written somewhere at times: no error may quote it.
    rng : random.Random
        Draws the changes.
    """

    damaged: bytearray
    found: Map
    others: Sequence[bytes]
    secret: bytes
    rng: random.Random

    def draw_piece(self) -> tuple[int, int]:
        """Draw the begin and the end of a piece."""
        if self.found.pieces and self.rng.random() < _SHARE_OF_PIECES:
            start, end = self.rng.choice(self.found.pieces)
            return min(start, len(self.damaged)), min(end, len(self.damaged))
        start = self.rng.randrange(len(self.damaged) + 1)
        return start, min(len(self.damaged), start + self.rng.choice((1, 2, 3, 4, 8, 16, 64, 256)))

    def draw_number(self) -> Number | None:
        """Draw a number that is inside the file; None where there is none."""
        inside = [number for number in self.found.numbers if number.offset + number.width <= len(self.damaged)]
        return self.rng.choice(inside) if inside else None

    def read(self, number: Number) -> int:
        """Give the value of a number."""
        return int.from_bytes(self.damaged[number.offset : number.offset + number.width], number.order)

    def write(self, number: Number, value: int) -> None:
        """Give a number the lowest bits of a value."""
        whole = (value % (1 << 8 * number.width)).to_bytes(number.width, number.order)
        self.damaged[number.offset : number.offset + number.width] = whole


def mutate(payload: bytes, found: Map, others: Sequence[bytes], secret: bytes, rng: random.Random) -> bytes:
    """Damage a file in one way or a few; for the parameters see `Draft`."""
    draft = Draft(bytearray(payload), found, others, secret, rng)
    for change in rng.choices(_CHANGES, _WEIGHTS, k=rng.choice(_CHANGES_A_FILE)):
        change(draft)
    return bytes(draft.damaged[:_MAX_BYTES])


def _set_number(draft: Draft) -> None:
    number = draft.draw_number()
    if number is None:
        return
    value, rng = draft.read(number), draft.rng
    near, doubled = value + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8)), rng.choice((value * 2, value // 2, -value))
    ways = (near, rng.choice(_BORDERS), doubled, value ^ 1 << rng.randrange(32), rng.getrandbits(32))
    draft.write(number, rng.choices(ways, (8, 8, 1, 1, 2))[0])


def _swap_numbers(draft: Draft) -> None:
    one, other = draft.draw_number(), draft.draw_number()
    if one is not None and other is not None:
        values = draft.read(one), draft.read(other)
        draft.write(one, values[1])
        draft.write(other, values[0])


def _leave_out(draft: Draft) -> None:
    start, end = draft.draw_piece()
    del draft.damaged[start:end]


def _repeat(draft: Draft) -> None:
    start, end = draft.draw_piece()
    times = draft.rng.choice((1, 1, 1, 2, 3, 10, 100))
    draft.damaged[end:end] = (draft.damaged[start:end] * times)[:_MAX_BYTES]


def _move(draft: Draft) -> None:
    start, end = draft.draw_piece()
    piece = draft.damaged[start:end]
    del draft.damaged[start:end]
    at, _ = draft.draw_piece()
    draft.damaged[at:at] = piece


def _flip(draft: Draft) -> None:
    for _ in range(draft.rng.choice((1, 1, 2, 4, 16)) if draft.damaged else 0):
        draft.damaged[draft.rng.randrange(len(draft.damaged))] ^= 1 << draft.rng.randrange(8)


def _fill(draft: Draft) -> None:
    """Overwrite a piece from some place on, which is most often data, with noise or with one byte."""
    start, end = draft.draw_piece()
    start += draft.rng.randrange(max(1, end - start))
    count = max(0, end - start)
    noise = draft.rng.choice((draft.rng.randbytes(count), bytes(count), b"\xff" * count))
    draft.damaged[start : start + count] = noise


def _cut(draft: Draft) -> None:
    del draft.damaged[draft.rng.randrange(len(draft.damaged) + 1) :]


def _splice(draft: Draft) -> None:
    other = draft.rng.choice(draft.others)
    start, at = draft.rng.randrange(len(other) + 1), draft.rng.randrange(len(draft.damaged) + 1)
    some = other[start : start + draft.rng.choice((16, 256, len(other)))]
    draft.damaged[at : at + draft.rng.choice((0, 16, len(some)))] = some


def _write_secret(draft: Draft) -> None:
    at = draft.rng.randrange(len(draft.damaged) + 1)
    draft.damaged[at : at + draft.rng.choice((0, len(draft.secret)))] = draft.secret


_CHANGES = (_set_number, _swap_numbers, _leave_out, _repeat, _move, _flip, _fill, _cut, _splice, _write_secret)
_WEIGHTS = (50, 4, 6, 6, 4, 12, 8, 1, 4, 3)
