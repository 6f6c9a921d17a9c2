"""``python -m streaming``: run the stream with the settings of the environment."""

import logging
import sys
import threading

from schemas.errors import XrayError
from streaming.ending import end_on_signals
from streaming.run.service import run_stream
from streaming.settings import load_settings

log = logging.getLogger("streaming")


def main() -> int:
    """Run until SIGTERM or SIGINT.

    Returns
    -------
    int
        0 after a stop in order, 1 after an error.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    ended = threading.Event()
    end_on_signals(ended)
    try:
        settings = load_settings()
        run_stream(
            settings,
            ended=ended,
            on_ready=lambda state: log.info("ready; metrics at %s", state.metrics_url),
        )
    except XrayError as exc:
        log.error("%s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
