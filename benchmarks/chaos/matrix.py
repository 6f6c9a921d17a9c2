"""The kill matrix."""

from benchmarks.chaos.damage import (
    ArchiveKilled,
    BrokerKilled,
    CheckpointDeleted,
    CleanStop,
    TableBlocked,
    TablesDamaged,
    TablesDeleted,
    TwoJobs,
    WorkerKilled,
)
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.halts import AT_WORK
from benchmarks.chaos.kills import AfterDeltaCommit, AfterPublishing, BeforeInference, DriverKilled, ModelSwap

APPENDING = ("read", "ids-checked", "appended", "group-untold")
UPKEEP = tuple(point for point in AT_WORK if point not in APPENDING)


def make_faults(*, short: bool = False) -> list[Fault]:
    """Give the matrix in the order in which one scene should suffer it.

    Checkpoints are deleted while there is little to do again, and before the model changes: what is scored again by
    another model is another event.

    Parameters
    ----------
    short : bool
        Shorter outages.
    """
    return [
        CheckpointDeleted(),
        TablesDeleted(),
        TablesDamaged(),
        BeforeInference(),
        AfterPublishing(),
        AfterDeltaCommit(),
        ArchiveKilled(APPENDING, "archive-appends", "SIGKILL of the archive alone, while it brings outcomes in"),
        ArchiveKilled(UPKEEP, "archive-upkeep", "SIGKILL of the archive alone, at a point of its upkeep"),
        WorkerKilled(),
        BrokerKilled(outage_s=10.0 if short else 60.0),
        CleanStop(),
        TwoJobs(),
        TableBlocked(blocked_s=5.0 if short else 10.0),
        DriverKilled(),
        ModelSwap(),
    ]


SOAK_EXCLUDED = ("score-checkpoint", "tables-deleted", "two-jobs")
"""Left out of a soak: scoring a whole soak again takes as long as the soak, and a refused start disturbs nothing."""
