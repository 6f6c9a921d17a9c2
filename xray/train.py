"""Training from the command line: a Spark session where it takes one, progress bars, training, judging, the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from schemas.errors import ChampionChangedError
from schemas.registry import CHAMPION_FILE, promote, read_aliases
from sparkdl.spark.session import LateSession, start_session
from streaming.folders import check_folder
from streaming.settings import StreamSettings
from training.data.dataset import read_dataset
from training.evidence.evaluation import Evaluation
from training.evidence.evaluator import evaluate_model, read_external
from training.evidence.served import write_images, write_training_vectors
from training.features.cache import FeatureCache
from training.figures.shift import make_reference, save_reference
from training.lifecycle.promotion import PromotionDecision, decide
from training.model.fit import train_model
from training.model.material import Procedure, TrainingResult
from training.report import write_report
from xray.console import new_progress, say_positive

# A fit is hundreds of small jobs in a JVM that lives for seconds: its second compiler and a parallel collector cost
# more than they give. Measured on 2 cores, start, first fit and saving: 21 s without, 10 s with.
_JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


@dataclass(frozen=True)
class Trained:
    """A trained model and what it is worth.

    Parameters
    ----------
    result : TrainingResult
        The saved model.
    evaluation : Evaluation
        What was found out.
    report : Path
        The page that shows it.
    champion : str or None
        The model that was in service when it was judged; None where there was none.
    """

    result: TrainingResult
    evaluation: Evaluation
    report: Path
    champion: str | None = None


def train_on(
    settings: StreamSettings,
    data: Path,
    *,
    classes: list[str] | None,
    positive: str | None = None,
    external: Sequence[Path] = (),
    procedure: Procedure,
    seed: int,
    verbose: bool,
    **options: Any,
) -> Trained:
    """Read the data, then fit and judge; images that are new are computed in a Spark session of its own.

    Parameters
    ----------
    settings : StreamSettings
        Spark's section and the folders.
    data : Path
        Folder or manifest.
    classes : list of str, optional
        Only these.
    positive : str, optional
        The positive class, see `read_dataset`; which one it is, is said before anything is computed.
    external : sequence of Path
        Folders or manifests of other sets to measure the model on.
    procedure : Procedure
        What is done beside the paper's.
    seed : int
        Of split, fit and random weights.
    verbose : bool
        Leave Spark's own words on the terminal.
    **options
        See `training.model.fit.train_model`.
    """
    dataset = read_dataset(data, classes=classes, positive=positive)
    say_positive(dataset.positive, dataset.positive_known_by)
    others = [read_external(path, dataset.labels) for path in external]
    for folder in (settings.logs_folder, settings.models_folder, settings.reports_folder):
        check_folder(folder, "XRAY_HOME")  # not after minutes of work
    spark = LateSession(
        lambda: start_session(
            app_name="xray-train",
            log_folder=settings.logs_folder,
            master=settings.spark.master,
            driver_memory=settings.spark.driver_memory,
            java_options=_JAVA_OPTIONS,
            conf=settings.spark.to_conf(),
            verbose=verbose,
        )
    )
    cache, reports = FeatureCache(settings.home / "cache"), settings.home / "reports"
    try:
        with new_progress() as progress:
            tasks = _Tasks(progress)
            result = train_model(
                spark,
                dataset,
                out=settings.models_folder,
                procedure=procedure,
                seed=seed,
                cache=cache,
                report=tasks.report,
                limits=settings.to_file_limits(),
                **options,
            )
            champion = read_aliases(settings.models_folder).get(CHAMPION_FILE)
            evaluation = evaluate_model(
                spark,
                result,
                seed=seed,
                external=others,
                models_folder=settings.models_folder,
                reports_folder=reports,
                cache=cache,
                report=tasks.report,
            )
    finally:
        spark.stop()
    folder = reports / result.card.version
    write_images(folder, result.material)
    write_training_vectors(folder, result.material, result.fitted.features, seed=seed)
    scored = result.card.labels.index(result.card.positive_label)
    scores = [item.probabilities[scored] for item in result.held_out]
    save_reference(folder, make_reference(result.fitted.features, scores, seed=seed))
    return Trained(result, evaluation, write_report(evaluation, folder), champion)


def promote_trained(settings: StreamSettings, trained: Trained) -> PromotionDecision:
    """Promote a model unless it is worse than the one in service, or that is another one now; say which, and why."""
    card, evaluation = trained.result.card, trained.evaluation
    # What it was compared with; without a comparison, what was there to be compared with.
    champion = evaluation.in_service_name.partition(" ")[0] or trained.champion
    decision = decide(card, evaluation.to_dict(), champion)
    if not decision.allowed:
        return decision
    try:
        promote(settings.models_folder, card.version, expected=champion, why=decision.why, command="xray train")
    except ChampionChangedError as exc:
        return PromotionDecision(False, str(exc))
    return decision


class _Tasks:
    """One bar for each kind of work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def report(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
