"""What a Spark Python worker does once, for the sake of every task after."""

import gc
from functools import cache


@cache
def prepare_worker(loaded: str) -> None:
    """Take what is loaded by now out of the garbage collector's sight, once for each name.

    Spark's worker daemon collects all garbage after every task. With numpy, pyarrow and OpenVINO loaded one such walk
    takes about a tenth of a second of a core; what a library has loaded stays anyway.

    Parameters
    ----------
    loaded : str
        What was loaded, e.g. ``"decode"`` or a network's SHA-256.
    """
    gc.collect()
    gc.freeze()
