"""``xray`` with a clock: each line that a start logs is also written to a file, with the time it was logged at.

Run it: ``python -m benchmarks.startlog FILE stream ...``.
"""

import logging
import sys
from pathlib import Path


def main() -> None:
    """Run the command line that follows the file's name; the process ends with its exit code."""
    clock = logging.FileHandler(Path(sys.argv.pop(1)))
    clock.setFormatter(logging.Formatter("%(created).3f %(message)s"))
    logger = logging.getLogger("streaming.run.service")
    logger.setLevel(logging.INFO)
    logger.addHandler(clock)
    from xray.__main__ import main as run  # noqa: PLC0415 - what it imports is a part of what is measured

    run()


if __name__ == "__main__":
    main()
