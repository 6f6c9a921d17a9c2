"""A child for the jail whose decoder does what the file says; started as a program."""

import itertools
import os
import signal
from dataclasses import replace

import numpy as np

from benchmarks.fuzz import child
from benchmarks.fuzz.kinds import SECRET
from schemas.errors import CorruptImageError, Reason
from sparkdl.image.decode import DecodedImage, decode_image
from tests import testimages

COUNT = itertools.count()
WHOLE = decode_image(testimages.png(testimages.gray_pixels(20, 28)), origin="a file")


class Dropped:
    def __del__(self):
        raise KeyError


def answer(image=WHOLE.image, **changes) -> DecodedImage:
    return replace(WHOLE, image=image, **changes)


def decode(payload: bytes, **_: object) -> DecodedImage:
    """Do what the file says; what it does not know, it decodes."""
    what = payload.decode("latin-1")
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    while what == "count":
        next(COUNT)
    if what == "fill":
        np.ones(100 << 20, np.uint8)
    if what == "ask":
        np.ones(8 << 30, np.uint8)
    if what == "escape":
        raise KeyError(what)
    if what == "drop":
        Dropped()
    if what == "quote":
        raise CorruptImageError(Reason.CORRUPT_IMAGE, "a file", f"the name is {SECRET.decode()}")
    if what == "vary":
        return answer(replace(WHOLE.image, data=bytes([next(COUNT)]) * len(WHOLE.image.data)))
    if what == "short":
        return answer(replace(WHOLE.image, data=WHOLE.image.data[1:]))
    if what == "large":
        return answer(original_height=1000, original_width=1000)
    if what == "resize":
        return answer(replace(WHOLE.image, height=14, width=40))
    return answer()


if __name__ == "__main__":
    child.decode_image = decode
    child.main()
