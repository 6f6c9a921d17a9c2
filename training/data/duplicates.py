"""Finds copies among labelled images, keeps them on one side of a split, and refuses a split that does not.

A copy under another name is found twice over: the same bytes (SHA-256), and the same picture (a perceptual hash) after
it was scaled, compressed again or made a little brighter, as collections do to each other's images.

The perceptual hash is the sign pattern of a cosine transform: the image as 64x64 gray, its 24x24 lowest frequencies
without those that are constant along an axis, each above or below their median: 576 bits. Chest X-rays all look alike,
so the usual 64 bits are too few. It is own code because ``imagehash`` keeps the frequencies that are constant along an
axis, which make all chests alike. Measured on 206 public X-rays of 125 patients (NIH ChestX-ray8 and ieee8023) and on
240 phantoms (`xray.phantom`): the largest distance of a copy (JPEG quality 30, half size, 224x224, brightness 8 % up or
down, gamma 0.8 and 1.25, contrast 15 % up, and all in one) and the smallest distance between two patients:

=======================  =====  ==========  ============  =============
hash                     bits   copies      X-rays apart  phantoms apart
=======================  =====  ==========  ============  =============
dHash 8                     64  up to 7     from 1        from 0
pHash 8                     64  up to 6     from 8        from 0
dHash 16                   256  up to 22    from 24       from 9
pHash 16                   256  up to 26    from 68       from 36
**pHash 24** (this one)    576  up to 52    from 206      from 108
=======================  =====  ==========  ============  =============

`MAX_DISTANCE` is 80: half as much again as the worst copy, three quarters of the most alike phantoms. One pair of
X-rays that two "patients" of ieee8023 share, at distance 64, was found this way and is left out of the table. Not
found: a copy that lost 1 % at each edge (distance up to 106), is turned or mirrored, or has a large label on it.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.errors import DatasetError, LeakError
from sparkdl.image.pixels import resize_pixels

HASH_BITS = 576
MAX_DISTANCE = 80

_SIDE_PX = 64
_FREQUENCIES = 24
_ROUNDING = 3  # decimals: a picture of one grey has no pattern, and must not take one from rounding errors
_BLOCK = 4096  # 64 MB of distances at a time
_MAX_PAIRS = 1_000_000


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that are one.

    Parameters
    ----------
    first, second : str
        Their ids; ``first`` came earlier.
    kind : str
        ``"exact"`` for the same bytes, ``"near"`` for the same picture.
    distance : int
        Bits in which the pictures' hashes differ, 0 to `MAX_DISTANCE`.
    """

    first: str
    second: str
    kind: Literal["exact", "near"]
    distance: int


def hash_image(pixels: npt.NDArray[np.uint8]) -> int:
    """Hash what a picture shows.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, shape (height, width) or (height, width, n_channels), of any size; colours are averaged.

    Returns
    -------
    int
        `HASH_BITS` bits. Pictures that differ in at most `MAX_DISTANCE` of them are the same one; a picture of one
        grey level has hash 0.
    """
    from scipy.fft import dctn  # noqa: PLC0415  part of the train extra only

    small = resize_pixels(pixels, (_SIDE_PX, _SIDE_PX)).astype(np.float64)
    gray = small.reshape(_SIDE_PX, _SIDE_PX, -1).mean(axis=2)
    low = dctn(gray, norm="ortho")[1 : _FREQUENCIES + 1, 1 : _FREQUENCIES + 1].round(_ROUNDING).ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def find_duplicates(
    hashes: Sequence[int],
    ids: Sequence[str],
    *,
    digests: Sequence[str] | None = None,
    max_distance: int = MAX_DISTANCE,
) -> tuple[DuplicatePair, ...]:
    """Find the pairs of images that are copies of each other.

    Parameters
    ----------
    hashes : sequence of int
        From `hash_image`.
    ids : sequence of str
        Each image's name, unlike any other.
    digests : sequence of str, optional
        Each file's SHA-256, to tell exact copies.
    max_distance : int
        Bits in which the hashes of copies may differ.

    Returns
    -------
    tuple of DuplicatePair
        In the order of ``ids``. Of images whose hashes are equal only the first is paired with each other one, so that
        `union_groups` of the pairs, not the pairs themselves, says everything that belongs together.

    Raises
    ------
    DatasetError
        There are more than a million near pairs: the images are hardly different from each other at all.
    ValueError
        The lengths differ, or an id is there twice (a mistake of the program).

    Notes
    -----
    Distances are inner products of blocks of hashes, in float32, which is exact here. Measured on 2 cores: 100,000
    hashes take 60 s and 0.4 GB, 20,000 take 2.3 s.
    """
    if not len(ids) == len(hashes) == len(set(ids)) or (digests is not None and len(digests) != len(ids)):
        msg = f"{len(hashes)} hashes and {len(set(ids))} unlike ids for {len(ids)} images, expected as many of each"
        raise ValueError(msg)
    unlike, exact = _collapse(range(len(ids)), digests if digests is not None else ids)
    apart, same = _collapse(unlike, [hashes[index] for index in unlike])
    near = _near_pairs([hashes[index] for index in apart], max_distance)
    found = [
        *(DuplicatePair(ids[a], ids[b], "exact", 0) for a, b in exact),
        *(DuplicatePair(ids[a], ids[b], "near", 0) for a, b in same),
        *(DuplicatePair(ids[apart[a]], ids[apart[b]], "near", distance) for a, b, distance in near),
    ]
    place = {name: index for index, name in enumerate(ids)}
    return tuple(sorted(found, key=lambda pair: (place[pair.first], place[pair.second])))


def _collapse(indices: Sequence[int], keys: Sequence[Hashable]) -> tuple[list[int], list[tuple[int, int]]]:
    """Keep the first index of each key, and pair it with every later one."""
    first: dict[Hashable, int] = {}
    pairs = [
        (kept, index)
        for index, key in zip(indices, keys, strict=True)
        if (kept := first.setdefault(key, index)) != index
    ]
    return list(first.values()), pairs


def _near_pairs(hashes: Sequence[int], max_distance: int) -> list[tuple[int, int, int]]:
    """Compare every hash with every later one: (place, later place, distance)."""
    signs = _signs(hashes)
    pairs: list[tuple[int, int, int]] = []
    for row in range(0, len(signs), _BLOCK):
        some = signs[row : row + _BLOCK].astype(np.float32)
        for column in range(row, len(signs), _BLOCK):
            agreement = some @ signs[column : column + _BLOCK].astype(np.float32).T
            above, below = np.nonzero(agreement >= HASH_BITS - 2 * max_distance)
            later = below + column > above + row
            _check_count(len(pairs) + int(later.sum()), max_distance)
            above, below = above[later], below[later]
            distances = (HASH_BITS - agreement[above, below].astype(np.int64)) // 2
            pairs.extend(zip((above + row).tolist(), (below + column).tolist(), distances.tolist(), strict=True))
    return pairs


def _signs(hashes: Sequence[int]) -> npt.NDArray[np.int8]:
    """Unpack to 1 and -1, so that an inner product is the bits that agree less those that differ."""
    packed = np.frombuffer(b"".join(h.to_bytes(HASH_BITS // 8) for h in hashes), np.uint8)
    return np.unpackbits(packed.reshape(len(hashes), HASH_BITS // 8), axis=1).astype(np.int8) * 2 - 1


def _check_count(n_pairs: int, max_distance: int) -> None:
    if n_pairs > _MAX_PAIRS:
        msg = (
            f"more than {_MAX_PAIRS} pairs of images are the same picture within {max_distance} of {HASH_BITS} bits: "
            "expected a collection of different images"
        )
        raise DatasetError(msg)


# --- groups -----------------------------------------------------------------------------------------------------------


def union_groups(patients: Mapping[str, str], pairs: Collection[DuplicatePair]) -> dict[str, str]:
    """Put a patient's images, their copies, and those copies' patients into one group.

    Parameters
    ----------
    patients : mapping of str to str
        Each image's patient, by the image's id.
    pairs : collection of DuplicatePair
        From `find_duplicates`, of these images.

    Returns
    -------
    dict
        Each image's group, by the image's id: the alphabetically first of the group's patients. A split that keeps
        groups together keeps patients together, and copies.
    """
    links = _Links()
    for patient in patients.values():
        links.find(patient)
    for pair in pairs:
        links.join(patients[pair.first], patients[pair.second])
    return {name: links.find(patient) for name, patient in patients.items()}


class _Links:
    """Union-find; each set is known by its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        root = key
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while self._parent[key] != root:  # the next search is short
            self._parent[key], key = root, self._parent[key]
        return root

    def join(self, first: str, second: str) -> None:
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low


def check_split(
    train: Collection[str], test: Collection[str], patients: Mapping[str, str], pairs: Collection[DuplicatePair]
) -> None:
    """Refuse a split that a patient or a picture is on both sides of.

    Parameters
    ----------
    train, test : collection of str
        Ids of images.
    patients : mapping of str to str
        Each image's patient; of the images on neither side, too, where there are any.
    pairs : collection of DuplicatePair
        From `find_duplicates`, of all these images. Copies of copies count, also by way of an image on neither side.

    Raises
    ------
    LeakError
        Some are; the message names patients and files, at most five of each, and the error carries them all.
    """
    both = sorted({patients[name] for name in train} & {patients[name] for name in test})
    copies = _across(train, test, union_groups({name: name for name in patients}, pairs))
    # Copies join patients: another image of a copied patient leaks as much as the copy, without looking alike.
    joined = _across(train, test, union_groups(patients, pairs))
    if both or joined:
        raise LeakError(both, copies if copies or both else joined)


def _across(train: Collection[str], test: Collection[str], groups: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pair each test image with the first training image of its group."""
    first: dict[str, str] = {}
    for name in sorted(train):
        first.setdefault(groups[name], name)
    return [(first[groups[name]], name) for name in sorted(test) if groups[name] in first]
