"""The kill matrix."""

from benchmarks.chaos.damage import BrokerKilled, CheckpointDeleted, CleanStop, TableBlocked, TwoJobs, WorkerKilled
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.kills import AfterDeltaCommit, AfterPublishing, BeforeInference, DriverKilled, ModelSwap


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
        CheckpointDeleted("score", "score-checkpoint", "SCORE's checkpoint is deleted", "replayed"),
        CheckpointDeleted("archive", "archive-checkpoint", "ARCHIVE's checkpoint is deleted", "clean"),
        BeforeInference(),
        AfterPublishing(),
        AfterDeltaCommit(),
        WorkerKilled(),
        BrokerKilled(outage_s=10.0 if short else 60.0),
        CleanStop(),
        TwoJobs(),
        TableBlocked(blocked_s=5.0 if short else 10.0),
        DriverKilled(),
        ModelSwap(),
    ]


SOAK_EXCLUDED = ("score-checkpoint", "two-jobs")
"""Left out of a soak: scoring a whole soak again takes as long as the soak, and a refused start disturbs nothing."""
