"""How a program is told to end: by SIGTERM or Ctrl-C, and then it ends in order."""

import signal
import threading


def end_on_signals(ended: threading.Event) -> None:
    """Have SIGTERM and SIGINT set an event, instead of what they do else; for the main thread.

    Parameters
    ----------
    ended : threading.Event
        What the program's work looks at.
    """
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
