"""What is asked for: one image, by any of its names, and the names that are learned of it on the way."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from schemas.errors import JobError
from streaming.lookup.outcome import Outcome
from streaming.lookup.rows import match_any

_HEX_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class AskedBy(StrEnum):
    """What the text is taken for."""

    ID = "id"
    SHA256 = "sha256"
    FILE = "file"


class Image(NamedTuple):
    """What names one image everywhere downstream.

    Parameters
    ----------
    source, image_id : str
        As published.
    sha256 : str
        Of its bytes as they were published.
    """

    source: str
    image_id: str
    sha256: str


@dataclass(frozen=True)
class Query:
    """Which outcomes are meant: those that have one of these names.

    Parameters
    ----------
    text : str
        As it was asked.
    by : AskedBy
        What it was taken for.
    hex_ids : frozenset of str
        Event ids, of outcomes or of images: 32 hexadecimal characters.
    image_ids : frozenset of str
        As publishers gave them, whoever the publisher is.
    digests : frozenset of str
        SHA-256 of images' bytes.
    images : frozenset of Image
        Learned from what was found: other outcomes of the same image are meant as well.
    """

    text: str
    by: AskedBy
    hex_ids: frozenset[str] = frozenset()
    image_ids: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    images: frozenset[Image] = field(default=frozenset())

    def takes(self, outcome: Outcome) -> bool:
        """Whether an outcome is meant."""
        return not self.hex_ids.isdisjoint((outcome.event_id, outcome.image_key)) or self.takes_image(
            outcome.source, outcome.image_id, outcome.sha256
        )

    def takes_image(self, source: str | None, image_id: str | None, sha256: str | None) -> bool:
        """Whether an image is meant, by what its publisher calls it and its bytes."""
        if image_id in self.image_ids or sha256 in self.digests:
            return True
        return bool(source and image_id and sha256 and Image(source, image_id, sha256) in self.images)

    def to_filter(self) -> pc.Expression:
        """Give it as a filter of a table with ``event_id``, ``source``, ``id`` and ``sha256``."""
        wanted = match_any("event_id", self.hex_ids) | match_any("id", self.image_ids)
        wanted = wanted | match_any("sha256", self.digests)
        for one in sorted(self.images):
            same = (pc.field("source") == one.source) & (pc.field("id") == one.image_id)
            wanted = wanted | (same & (pc.field("sha256") == one.sha256))
        return wanted

    def follow(self, outcomes: Iterable[Outcome]) -> "Query":
        """Mean the other outcomes of these images as well: the dead letter before a prediction, or a second model's."""
        named = {
            Image(one.source, one.image_id, one.sha256)
            for one in outcomes
            if one.source
            and one.image_id
            and one.sha256
            # What is meant already by id or bytes needs no name of its own.
            and one.image_id not in self.image_ids
            and one.sha256 not in self.digests
        }
        return self if named <= self.images else replace(self, images=self.images | named)

    def meet(self, image: Image) -> "Query":
        """Mean an image as well."""
        return replace(self, images=self.images | {image})

    def describe(self) -> str:
        """Say what the text was taken for."""
        match self.by:
            case AskedBy.FILE:
                return f"the file {self.text}, SHA-256 {next(iter(self.digests))}"
            case AskedBy.SHA256:
                return f"images whose bytes have SHA-256 {self.text.lower()}"
            case AskedBy.ID:
                return f"the id {self.text}"

    def to_json_ids(self, outcomes: Iterable[Outcome]) -> str:
        """Give the event ids that ledgers may know, as a JSON array: those asked for, and the outcomes'."""
        return json.dumps(sorted(self.hex_ids | {one.event_id for one in outcomes}))


def read_query(text: str) -> Query:
    """Read what was asked: a file that is there, a SHA-256, or an id.

    Parameters
    ----------
    text : str
        A path, 64 hexadecimal characters, or an id: of an image as its publisher gave it, of an image's own event (as
        receipts have it), or of an outcome.

    Raises
    ------
    JobError
        It is a file that cannot be read, or a folder, or empty.
    """
    wanted = text.strip()
    if not wanted:
        msg = "nothing is asked for; wanted one file, an id or a SHA-256"
        raise JobError(msg)
    place = os.path.expanduser(text)
    if os.path.isfile(place):  # what is no name that a file can have is none, too
        digest = _hash_file(Path(place))
        return Query(text, AskedBy.FILE, digests=frozenset({digest}))
    if os.path.isdir(place):
        msg = f"{text} is a folder; wanted one file, an id or a SHA-256"
        raise JobError(msg)
    if _SHA256.fullmatch(wanted.lower()):
        return Query(wanted, AskedBy.SHA256, digests=frozenset({wanted.lower()}))
    hex_ids = frozenset({wanted.lower()} if _HEX_ID.fullmatch(wanted.lower()) else ())
    return Query(wanted, AskedBy.ID, hex_ids=hex_ids, image_ids=frozenset({wanted}))


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        msg = f"{path} cannot be read: {exc.strerror}"
        raise JobError(msg) from exc
