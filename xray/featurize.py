"""Featurizing a folder from the command line: a Spark session, a progress bar, what came out."""

import logging
from pathlib import Path
from typing import Any

from sparkdl.folders import FolderResult, count_reasons, featurize_folder
from sparkdl.spark.session import start_session
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from streaming.folders import check_folder
from streaming.settings import StreamSettings
from xray.console import err, new_progress, new_table, out, print_json
from xray.tabular import print_table


def featurize(
    settings: StreamSettings, folder: Path, target: Path, *, images_per_batch: int, verbose: bool, **network: Any
) -> FolderResult:
    """Featurize a folder in a Spark session of its own.

    Parameters
    ----------
    settings : StreamSettings
        Spark's section and the folders.
    folder, target : Path
        Of images and of results.
    images_per_batch : int
        See `sparkdl.folders.featurize_folder`.
    verbose : bool
        Leave Spark's own words on the terminal.
    **network
        Parameters of `DeepImageFeaturizer`.

    Returns
    -------
    FolderResult
        Counts of this run.
    """
    check_folder(settings.logs_folder, "XRAY_HOME")
    check_folder(target, "--out")
    featurizer = DeepImageFeaturizer(inputCol="image", outputCol="features", **network)
    # It logs the trace of a Ctrl-C that meets it inside a call, which here only happens while Spark starts.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    spark = None
    try:
        spark = start_session(
            app_name="xray-featurize",
            log_folder=settings.logs_folder,
            master=settings.spark.master,
            driver_memory=settings.spark.driver_memory,
            conf=settings.spark.to_conf(),
            verbose=verbose,
        )
        with new_progress() as progress:
            task = progress.add_task("featurizing", total=None)
            return featurize_folder(
                spark,
                folder,
                featurizer,
                target,
                images_per_batch=images_per_batch,
                limits=settings.to_file_limits(),
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        err.print(f"Stopped. What is done is in {target}; the same command goes on from there.", markup=False)
        raise
    finally:
        if spark is not None:
            spark.stop()


def show_result(result: FolderResult, *, as_json: bool) -> None:
    """Print what a run did, and why files failed.

    Parameters
    ----------
    result : FolderResult
        Of the run.
    as_json : bool
        One JSON document instead.
    """
    reasons = count_reasons(result.out)
    rate = result.n_images / result.seconds
    if as_json:
        counts = {"done": result.n_images - result.n_failed, "failed": result.n_failed}
        print_json({**counts, "done_before": result.n_done_before, "seconds": round(result.seconds, 2),
                    "images_per_second": round(rate, 1), "reasons": dict(reasons), "out": str(result.out)})  # fmt: skip
        return
    if reasons:
        table = new_table("reason", "#files", title="failed files, earlier runs included; each has its row")
        for reason, count in reasons.most_common():
            table.add_row(reason, str(count))
        print_table(table)
    out.print(
        f"{result.n_images - result.n_failed} images done, {result.n_failed} failed, {result.n_done_before} already "
        f"done before; {rate:.1f} images/s ({result.seconds:.1f} s)."
    )
    out.print(f"Features (path, features, reason) in {result.out}", markup=False)
