"""The child of `benchmarks.fuzz.guided`: atheris with the decoders; takes libFuzzer's options, and last a kind."""

import random
import sys

import atheris

with atheris.instrument_imports(include=["sparkdl.image"]):
    from sparkdl.image.decode import decode_image

from benchmarks.fuzz.jail import Limits
from benchmarks.fuzz.kinds import KINDS
from schemas.errors import RecordError
from sparkdl.image.limits import DecodeLimits

_LIMITS = DecodeLimits(max_pixels=Limits().max_pixels)


def main(arguments: list[str], name: str) -> None:
    """Fuzz one kind; ends the process."""
    kind = KINDS[name]

    def try_file(payload: bytes) -> None:
        try:
            decode_image(kind.wrap(payload), origin="a file", limits=_LIMITS)
        except RecordError:
            return

    def damage(payload: bytes, max_bytes: int, seed: int) -> bytes:
        return kind.damage(bytes(payload), random.Random(seed))[:max_bytes]

    atheris.Setup(arguments, try_file, custom_mutator=damage)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[:-1], sys.argv[-1])
