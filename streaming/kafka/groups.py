"""Consumer groups: what a cluster says of them, and who else is in one.

A program that wants all of its topics must find out before it reads whether it is alone.
"""

import logging
import threading
import time

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerError
from streaming.kafka.cluster import connect_admin
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

_ASK_S = 10.0
_AGAIN_S = 0.5
MOVED_ON = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError._ASSIGNMENT_LOST,
    )
)
"""The group gave the partitions to somebody, who reads from the last commit on: nothing is wrong."""
COORDINATOR_COMES = frozenset(
    (
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    )
)
"""What a cluster says of a group that has just begun, or moves its groups."""

_LATER = COORDINATOR_COMES | {KafkaError._TIMED_OUT, KafkaError._TRANSPORT}


def await_alone(
    kafka: KafkaSettings, group: str, *, within_s: float, ended: threading.Event, member: str | None = None
) -> bool:
    """Wait until nobody else is in a group; a program that was killed is in it for as long as its session.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker.
    group : str
        Name of the group.
    within_s : float
        For so long: more than a session.
    ended : threading.Event
        Set it to wait no longer.
    member : str, optional
        The own name (``group.instance.id``), where there is one: whoever has it is a former self.

    Returns
    -------
    bool
        Whether nobody else is there; also where ``ended`` was set.

    Raises
    ------
    BrokerError
        Nobody answers, or the group may not be described.
    """
    deadline = time.monotonic() + within_s
    admin = connect_admin(kafka)
    is_told = False
    while not ended.is_set():
        others = _find_others(admin, group, member, may_fail=time.monotonic() < deadline)
        if others == 0:
            return True
        if others is not None and time.monotonic() > deadline:
            return False
        if others is not None and not is_told:
            log.info("somebody is in the group %s; waiting up to %.0f s for it to be gone", group, within_s)
            is_told = True
        ended.wait(_AGAIN_S)
    return True


def _find_others(admin: AdminClient, group: str, member: str | None, *, may_fail: bool) -> int | None:
    """Count the others; None where nobody can tell yet."""
    try:
        found = admin.describe_consumer_groups([group], request_timeout=_ASK_S)[group].result()
    except KafkaException as exc:
        code = exc.args[0].code()
        if code == KafkaError.GROUP_ID_NOT_FOUND:  # as newer brokers say of one that never was
            return 0
        if code in _LATER and may_fail:
            return None
        msg = f"the group {group} cannot be described: {exc.args[0].name()}"
        raise BrokerError(msg) from exc
    return len([one for one in found.members if member is None or one.group_instance_id != member])
