"""'xray', which is killed the Nth time that it comes to a point: ``python -m ...killed POINT:N alerts run ...``."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from streaming.alerts.dispatcher import Dispatcher
from streaming.alerts.evaluator import Evaluator
from streaming.alerts.ledger import Ledger
from streaming.alerts.outcomereader import OutcomeReader
from streaming.alerts.sinks.webhook import WebhookSink
from xray.__main__ import main

POINTS: dict[str, tuple[type, str, bool]] = {
    "after reading": (OutcomeReader, "poll", True),
    "before an event is judged": (Evaluator, "take", False),
    "before an alarm is written": (Ledger, "add", False),
    "within the transaction": (Ledger, "add", True),
    "before the offsets are committed": (OutcomeReader, "commit", False),
    "after the offsets are committed": (OutcomeReader, "commit", True),
    "before conditions are judged": (Evaluator, "tick", False),
    "after conditions are judged": (Evaluator, "tick", True),
    "before the attempt is noted": (Ledger, "begin_attempt", False),
    "before the send": (WebhookSink, "deliver", False),
    "after the send": (WebhookSink, "deliver", True),
    "before the delivery is closed": (Ledger, "note_delivered", False),
    "after the delivery is closed": (Ledger, "note_delivered", True),
    "while sinks look for what is due": (Dispatcher, "deliver_due", False),
}
"""Where: class, function, and whether it is killed after that instead of before."""


def install(point: str, number: int) -> None:
    """Have this process kill itself there."""
    owner, name, is_after = POINTS[point]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def killed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*args, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, killed)


if __name__ == "__main__":
    where, _, count = sys.argv.pop(1).partition(":")
    install(where, int(count))
    main()
