"""Training from the command line: a Spark session, a progress bar, the training itself."""

from pathlib import Path
from typing import Any

from sparkdl.session import start_session
from streaming.settings import StreamSettings
from training.dataset import read_dataset
from training.fit import TrainingResult, train_model
from xray.console import new_progress


def train_on(
    settings: StreamSettings, data: Path, *, classes: list[str] | None, verbose: bool, **options: Any
) -> TrainingResult:
    """Read the data, then fit in a Spark session of its own.

    Parameters
    ----------
    settings : StreamSettings
        Spark's section and the folders.
    data : Path
        Folder or manifest.
    classes : list of str, optional
        Only these.
    verbose : bool
        Leave Spark's own words on the terminal.
    **options
        See `training.fit.train_model`.
    """
    dataset = read_dataset(data, classes=classes)  # before Spark starts: wrong data is told at once
    spark = start_session(
        app_name="xray-train",
        log_folder=settings.logs_folder,
        master=settings.spark.master,
        driver_memory=settings.spark.driver_memory,
        verbose=verbose,
    )
    try:
        with new_progress() as progress:
            task = progress.add_task("decoding and featurizing", total=None)
            return train_model(
                spark,
                dataset,
                out=settings.models_folder,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                **options,
            )
    finally:
        spark.stop()
