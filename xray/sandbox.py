"""The sandbox of ``xray demo --keep``: a trickle of generated images."""

import io
import itertools
import threading
import time
from enum import StrEnum

import numpy as np
from PIL import Image

from schemas.errors import JobError
from streaming.devices.publish import ImagePublisher, image_message
from streaming.settings import KafkaSettings
from xray.phantom import FINDINGS, encode_png, generate_radiograph

SOURCE = "/xray/sandbox"
"""``ce_source`` of what trickles in."""


class Kind(StrEnum):
    """What comes next. A consumer must bear each of them."""

    IMAGE = "image"
    REPEATED = "repeated"
    PHOTO = "photo"
    BROKEN = "broken"


ROUND = (Kind.IMAGE, Kind.IMAGE, Kind.REPEATED, Kind.PHOTO, Kind.IMAGE, Kind.BROKEN)
"""In this order, again and again; a repeated one is the image before it, with its id: its prediction has a known id."""


class Trickle:
    """Publishes generated images one at a time, so that events flow while another team develops.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    seed : int
        Of the first image; each is of another patient.
    """

    def __init__(self, kafka: KafkaSettings, seed: int) -> None:
        self._publisher = ImagePublisher(kafka, self._note_delivery)
        self._rounds = itertools.cycle(ROUND)
        self._seed = seed
        self._last: tuple[str, bytes] | None = None
        self._failed: str | None = None
        self.published = 0
        """Images that the broker has confirmed."""

    def _note_delivery(self, _token: object, error: str | None) -> None:
        self._failed = error or self._failed
        self.published += error is None

    def publish_next(self) -> Kind:
        """Make the next image and publish it.

        Raises
        ------
        JobError
            The broker did not confirm it.
        """
        kind = next(self._rounds)
        if kind is not Kind.REPEATED or self._last is None:
            self._last = self._draw(kind)
        image_id, payload = self._last
        value, headers = image_message(payload, image_id=image_id, source=SOURCE)
        self._publisher.publish(value, headers, key=image_id.encode(), token=image_id)
        self._publisher.flush()
        if self._failed is not None:
            msg = f"the sandbox could not publish an image: {self._failed}"
            raise JobError(msg)
        return kind

    def _draw(self, kind: Kind) -> tuple[str, bytes]:
        self._seed += 1
        image_id = f"{kind}-{self._seed}"
        if kind is Kind.PHOTO:
            return image_id, draw_photo(self._seed)
        finding = FINDINGS[self._seed % len(FINDINGS)]
        payload = encode_png(generate_radiograph(self._seed, finding=finding))
        return image_id, payload[: len(payload) // 2] if kind is Kind.BROKEN else payload


def draw_photo(seed: int) -> bytes:
    """Draw what is no radiograph: sky and meadow, as PNG."""
    rng = np.random.default_rng(seed)
    height, width = 240, 320
    y, x = np.mgrid[:height, :width] / height
    sky = np.stack([90 + 120 * y, 140 + 90 * y, 230 - 20 * y], axis=2)
    meadow = np.stack([60 + 40 * x, 130 + 60 * y, 40 + 20 * x], axis=2)
    pixels = np.where((y > rng.uniform(0.3, 0.7))[..., None], meadow, sky) + rng.normal(0, 8, (height, width, 1))
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def run_trickle(trickle: Trickle, ended: threading.Event, every_s: float) -> None:
    """Publish an image now and then until told to end.

    Parameters
    ----------
    trickle : Trickle
        What publishes.
    ended : threading.Event
        Ends it.
    every_s : float
        From one image to the next; what drawing takes is a part of it.
    """
    while not ended.is_set():
        due = time.monotonic() + every_s
        trickle.publish_next()
        ended.wait(max(0.0, due - time.monotonic()))
