"""The ``xray`` command: runs it and turns typed errors into one line and an exit code."""

import logging
import sys

from schemas.errors import SettingsError, XrayError
from xray.cli import app
from xray.console import show_error

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    # Libraries below speak through logging; on a terminal only what the user must know is shown.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for chatty in ("py4j", "pyspark", "pydicom", "cloudevents"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        app()
    except SettingsError as exc:
        show_error(str(exc))
        sys.exit(EXIT_USAGE)
    except XrayError as exc:
        show_error(str(exc))
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
