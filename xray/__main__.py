"""The ``xray`` command: runs it and turns typed errors into one line and an exit code."""

import errno
import logging
import os
import sys
from contextlib import suppress

from schemas.errors import NoCheckpointError, SettingsError, XrayError
from xray.commands.app import app
from xray.console import err, out

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NO_ACCOUNT = 3
EXIT_INTERRUPTED = 130

_OF_A_FOLDER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_CODES = {SettingsError: EXIT_USAGE, NoCheckpointError: EXIT_NO_ACCOUNT}


def main() -> None:
    """Run the command line; the process ends with its exit code.

    It ends without the interpreter's own farewell: now and then a native library's thread aborted the process there
    (exit code 134) after all was done, and an exit code is what scripts go by. By then Spark, threads and files are
    closed by their own ``with`` and ``finally``.
    """
    code = run()
    with suppress(BrokenPipeError):  # a reader like "head" may have gone
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run() -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit code.
    """
    # Libraries below speak through logging; on a terminal only what the user must know is shown.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for chatty in ("py4j", "pyspark", "pydicom", "cloudevents"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    for console in (out, err):
        console.soft_wrap = not console.is_terminal  # in a pipe a sentence is one line, for grep
    try:
        app()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except XrayError as exc:
        _show_error(str(exc))
        return next((code for kind, code in _CODES.items() if isinstance(exc, kind)), EXIT_ERROR)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as exc:
        return _explain(exc)
    return 0


def _explain(error: Exception) -> int:
    """Say what is wrong with a folder, which a user can mend; give the trace of everything else."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _OF_A_FOLDER:
        _show_error(
            f"cannot use {error.filename}: {error.strerror}. Give this user leave to write there, or name another "
            "folder; what no option names is in XRAY_HOME."
        )
        return EXIT_USAGE
    logging.error("a defect of this program", exc_info=error)
    return EXIT_ERROR


def _show_error(message: str) -> None:
    """Print what failed and what to do next; the terminal breaks long lines, so that a pipe has each in one."""
    err.print("[bold red]error:[/]", end=" ")
    err.print(message, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
