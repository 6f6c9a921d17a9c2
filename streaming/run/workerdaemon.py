"""Spark's daemon of Python workers, with what a worker needs imported before it forks them.

Each worker would import it again, for a second of a processor: at the start, and whenever one has been idle for a
minute and is forked anew. Workers also share the memory of it. Spark runs it by name, see `streaming.run.session`.
"""

import gc

from pyspark.daemon import manager

# Nothing of OpenVINO is here: a process that is forked behind its back hangs.
import sparkdl.transformers.sentnetwork  # noqa: F401
import streaming.score.isolation
import streaming.score.scoring  # noqa: F401


def main() -> None:
    """Fork workers until Spark ends."""
    # A collection in a worker would copy every page that it marks.
    gc.collect()
    gc.freeze()
    manager()


if __name__ == "__main__":
    main()
