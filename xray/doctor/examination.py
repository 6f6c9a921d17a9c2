"""All checks, each within a deadline of its own, whatever hangs."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from streaming.settings import StreamSettings
from xray.bounded import Bounded
from xray.doctor.broker import check_clocks, check_reach, check_rights, check_topics
from xray.doctor.contradictions import check_settings
from xray.doctor.finding import Finding, Verdict
from xray.doctor.folders import check_disks, check_modes
from xray.doctor.machine import check_extras, check_jars, check_java, check_limits
from xray.doctor.ports import check_ports
from xray.doctor.state import check_models, check_tables

Check = Callable[[StreamSettings], Iterable[Finding]]

WITHIN_S = 30.0
"""For one check. A broker that is away is given up after ten seconds, a large model's hash takes a few."""

_OF_KAFKA = ("topics", "rights", "clocks")


def list_checks(roles: Collection[str] = ()) -> dict[str, Check]:
    """List every check by its name, in the order in which they are told.

    Parameters
    ----------
    roles : collection of str
        Whose rights at the broker this user must have; by default those of any one.
    """
    return {
        "java": check_java,
        "jars": check_jars,
        "extras": check_extras,
        "limits": check_limits,
        "settings": check_settings,
        "ports": check_ports,
        "disks": check_disks,
        "modes": check_modes,
        "models": check_models,
        "tables": check_tables,
        "kafka": check_reach,
        "topics": check_topics,
        "rights": partial(check_rights, roles=roles),
        "clocks": check_clocks,
    }


def examine(settings: StreamSettings, checks: Mapping[str, Check], *, within_s: float = WITHIN_S) -> list[Finding]:
    """Make every check at the same time, and give what was found in their order.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    checks : Mapping of str to callable
        By name; see `list_checks`.
    within_s : float
        Seconds that each has; one that takes longer is a fault, and is waited for no longer.

    Returns
    -------
    list of Finding
        At least one of each check. Where Kafka does not answer, what asks it too is left out.
    """
    until = time.monotonic() + within_s
    running = {name: Bounded(f"doctor-{name}", partial(_list, check, settings)) for name, check in checks.items()}
    found = [finding for name, one in running.items() for finding in _await(name, one, until, within_s)]
    if any(one.check == "kafka" and one.verdict is Verdict.FAULT for one in found):
        return [one for one in found if one.check not in _OF_KAFKA]
    return found


def _list(check: Check, settings: StreamSettings) -> list[Finding]:
    return list(check(settings))


def _await(name: str, running: Bounded[list[Finding]], until: float, within_s: float) -> list[Finding]:
    try:
        return running.await_end(until)
    except TimeoutError:
        advice = "Whatever it asks hangs: a disk, a network folder, a store or a program. Look at that."
        return [Finding(name, Verdict.FAULT, f"not checked within {within_s:g} s", advice)]
    except Exception as exc:  # one check that fails must not keep the others' answers back
        # Not its words, which may quote what it read.
        advice = "Run it again; if it stays, report it with 'xray support'."
        return [Finding(name, Verdict.FAULT, f"not checked: {type(exc).__name__}", advice)]
