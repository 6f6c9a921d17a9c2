"""``xray train``: a model, its report, and whether it serves."""

from pathlib import Path
from typing import Annotated

import typer

from schemas.extras import check_extra
from streaming.settings import load_settings
from xray.commands.mirror import mirror_aliases
from xray.commands.options import Json, Verbose


def train(
    data: Annotated[Path, typer.Option(help="Folder with one sub-folder per class, or a manifest (CSV: file,label).")],
    network: Annotated[
        list[str] | None, typer.Option(help="EfficientNetLite0 (default), InceptionV3, …; several with --tune.")
    ] = None,
    weights: Annotated[str, typer.Option(help="imagenet, random, or a Keras file.")] = "imagenet",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or int8 (calibrated on the training images).")] = "fp32",
    classes: Annotated[str | None, typer.Option(help="Only these, e.g. normal,covid.")] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The class that score, sensitivity and alerts are about; needed where no name of a class, such as "
            "normal or 'No Finding', tells it.",
        ),
    ] = None,
    external: Annotated[
        list[Path] | None, typer.Option(help="Another set to measure the model on, laid out as --data; repeatable.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose regularisation, and network of several, by cross-validation.")
    ] = False,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Let each class count as much as any other.")
    ] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Make probabilities mean what they say.")] = False,
    sensitivity: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Choose the threshold that reaches it, e.g. 0.95.")
    ] = None,
    abstain: Annotated[
        float | None, typer.Option(min=0.01, max=0.5, help="Share of images too close to the threshold to decide on.")
    ] = None,
    flag_unlike: Annotated[
        bool, typer.Option("--flag-unlike", help="Flag images unlike the training images instead of judging them.")
    ] = False,
    gate: Annotated[bool, typer.Option("--gate", hidden=True, help="Former name of --flag-unlike.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split and of random weights.")] = 0,
    promote: Annotated[
        bool, typer.Option(help="Let the stream serve the new model, unless it is worse than the one in service.")
    ] = True,
    track: Annotated[bool, typer.Option(help="Tell MLflow of the run.")] = True,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fit a model, judge it on a held-out 30 % of the patients, look for shortcuts, write a report.

    One class is the positive one: score, sensitivity and alerts are about it. It is given with [bold]--positive[/] or
    in the manifest's column positive, or it is the one beside classes like normal, healthy, control, No Finding or
    non-covid. Where nothing tells it, nothing is trained. The first line says which one it is.

    Features are kept in XRAY_HOME/cache: a stopped run goes on where it was, and another fit takes seconds.
    """
    check_extra("train", "training")
    if precision == "int8":
        check_extra("int8", "int8")
    from training.model.decision import NOVELTY_QUANTILE
    from training.model.material import Procedure
    from xray.train import promote_trained, train_on
    from xray.views import show_training

    settings = load_settings()
    trained = train_on(
        settings,
        data,
        classes=classes.split(",") if classes else None,
        positive=positive,
        external=external or (),
        procedure=Procedure(
            tune, class_weights, calibrate, sensitivity, abstain, NOVELTY_QUANTILE if flag_unlike or gate else None
        ),
        verbose=verbose,
        network=network or ["EfficientNetLite0"],
        weights=weights,
        precision=precision,
        seed=seed,
    )
    decision = promote_trained(settings, trained) if promote else None
    show_training(trained, decision, as_json=json_)
    if track:
        mirror_aliases(settings, trained.result.card.name, also=[trained.result.card])
