"""``xray featurize``: feature vectors of a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from schemas.extras import check_extra
from streaming.settings import load_settings
from xray.commands.options import Json, Verbose


def featurize(
    folder: Annotated[Path, typer.Argument(help="Searched with its sub-folders for PNG, JPEG and DICOM files.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder for the Parquet files; new, or of a stopped run.")],
    network: Annotated[str, typer.Option(help="EfficientNetLite0, InceptionV3, ResNet50, …")] = "EfficientNetLite0",
    weights: Annotated[str, typer.Option(help="imagenet, random, or a Keras file.")] = "imagenet",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or int8 (calibrated on the training images).")] = "fp32",
    images_per_batch: Annotated[int, typer.Option(min=1, help="What a stop can cost, in files.")] = 1000,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compute feature vectors of a folder of images, however many; Ctrl-C stops, the same command goes on.

    Each file gets one row: path, and features or the reason why there are none. Files that were added since are done
    by the next run.
    """
    check_extra("train", "building a network")
    if precision == "int8":
        check_extra("int8", "int8")
    from xray.featurize import featurize as featurize_images
    from xray.featurize import show_result

    result = featurize_images(
        load_settings(),
        folder,
        out_,
        images_per_batch=images_per_batch,
        verbose=verbose,
        modelName=network,
        weights=weights,
        precision=precision,
    )
    show_result(result, as_json=json_)
