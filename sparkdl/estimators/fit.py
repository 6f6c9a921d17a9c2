"""Trains a Keras model in a process of its own: the driver's Keras is on OpenVINO, which has no gradients.

``python -m sparkdl.estimators.fit FOLDER`` reads `ARGUMENTS_FILE` there and leaves `MODEL_FILE` and `HISTORY_FILE`, or
its error. Images are read from disk batch by batch, so that a training set may be larger than memory.
"""

import json
import sys
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import JobError, SettingsError
from sparkdl.network.backends import import_keras
from sparkdl.network.child import handing_back_errors, run_child
from sparkdl.network.kerasmodels import load_keras_model

ARGUMENTS_FILE = "arguments.json"
MODEL_FILE = "model.keras"
HISTORY_FILE = "history.json"

History = dict[str, list[float]]
"""One value for each epoch, by name: ``loss``, and ``val_loss`` where a part was held out."""


@dataclass(frozen=True)
class FitArguments:
    """What one training run is given; values that JSON can carry.

    Parameters
    ----------
    model_file : str
        ``.keras`` or ``.h5``; it is not changed.
    images : str
        Path of an ``.npy`` file: float32, shape (n, *input shape).
    labels : str
        Path of an ``.npy`` file: float32, shape (n, *output shape), or (n,).
    optimizer, loss : str
        Keras's names.
    fit_params : dict
        Arguments of ``keras.Model.fit``.
    seed : int or None
        Of everything random in Keras, and of the order of the images.
    """

    model_file: str
    images: str
    labels: str
    optimizer: str
    loss: str
    fit_params: dict[str, Any]
    seed: int | None


def fit_apart(arguments: FitArguments, folder: Path) -> History:
    """Train in a new process.

    Parameters
    ----------
    arguments : FitArguments
        What to train, on what, and how.
    folder : Path
        Empty; the trained model is left there as `MODEL_FILE`.

    Returns
    -------
    dict
        See `History`.

    Raises
    ------
    XrayError
        The very error that it raised; `JobError` where the process ended otherwise.
    """
    (folder / ARGUMENTS_FILE).write_text(json.dumps(asdict(arguments)))
    run_child(
        "sparkdl.estimators.fit", str(folder),
        folder=folder, backend="tensorflow", what="training", failure=JobError,
        shown=bool(arguments.fit_params.get("verbose")),
    )  # fmt: skip
    history: History = json.loads((folder / HISTORY_FILE).read_text())
    return history


def check_names(keras: Any, optimizer: str, loss: str) -> None:
    """Refuse names that Keras does not know.

    Parameters
    ----------
    keras : module
        Keras, on any backend.
    optimizer, loss : str
        E.g. ``"adam"`` and ``"categorical_crossentropy"``.

    Raises
    ------
    SettingsError
        Keras has no such optimizer or loss.
    """
    for name, value, module in (("kerasOptimizer", optimizer, keras.optimizers), ("kerasLoss", loss, keras.losses)):
        try:
            module.get(value)
        except ValueError as exc:
            msg = f"{name} is {value!r}, which Keras {keras.__version__} does not know"
            raise SettingsError(msg) from exc


def fit_model(arguments: FitArguments, folder: Path) -> None:
    """Train in this process, and write `MODEL_FILE` and `HISTORY_FILE`.

    Parameters
    ----------
    arguments : FitArguments
        What to train, on what, and how.
    folder : Path
        Where to write.

    Raises
    ------
    DependencyError
        TensorFlow is missing.
    ModelLoadError
        The model file is damaged, or would have to run code to be loaded.
    SettingsError
        Keras cannot train with these settings.
    """
    keras = import_keras("tensorflow")
    if arguments.seed is not None:
        keras.utils.set_random_seed(arguments.seed)
    model = load_keras_model(keras, arguments.model_file)
    check_names(keras, arguments.optimizer, arguments.loss)
    images, labels = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (arguments.images, arguments.labels))
    try:
        # No XLA: on a CPU its compiler takes longer than most fits, anew for the last batch's size.
        model.compile(optimizer=arguments.optimizer, loss=arguments.loss, jit_compile=False)
        history = _fit(keras, model, images, labels, arguments)
    except Exception as exc:  # the border to Keras, which raises what its backends raise
        settings = f"optimizer {arguments.optimizer!r}, loss {arguments.loss!r} and {arguments.fit_params}"
        msg = f"{arguments.model_file}: Keras cannot train it with {settings}: {type(exc).__name__}: {exc}"
        raise SettingsError(msg) from exc
    model.save(folder / MODEL_FILE)
    (folder / HISTORY_FILE).write_text(json.dumps(history))


def _fit(keras: Any, model: Any, images: Any, labels: Any, arguments: FitArguments) -> History:
    params = dict(arguments.fit_params)
    batch_size = params.pop("batch_size", None) or 32  # Keras's own default
    validation_batch_size = params.pop("validation_batch_size", None) or batch_size
    shuffle = params.pop("shuffle", True)
    # The last part is held out, as Keras does with arrays; it cannot split what is read batch by batch.
    n_fit = len(images) - int(len(images) * params.pop("validation_split", 0.0))
    if n_fit < len(images):
        rest = np.arange(n_fit, len(images))
        params["validation_data"] = _batches(keras, images, labels, rest, batch_size=validation_batch_size)
    if params.get("class_weight"):  # JSON has no numbers for keys
        params["class_weight"] = {int(label): weight for label, weight in params["class_weight"].items()}
    rng = np.random.default_rng(arguments.seed) if shuffle else None
    batches = _batches(keras, images, labels, np.arange(n_fit), batch_size=batch_size, rng=rng)
    found = model.fit(batches, shuffle=False, **params)
    return {name: [float(value) for value in values] for name, values in found.history.items()}


def _batches(
    keras: Any,
    images: Any,
    labels: Any,
    rows: np.typing.NDArray[np.int64],
    *,
    batch_size: int,
    rng: np.random.Generator | None = None,
) -> Any:
    """Make Keras's data set of some rows, in a new order for every epoch where there is a generator."""

    class Batches(keras.utils.PyDataset):  # here: the backend must be chosen before Keras is imported
        def __init__(self) -> None:
            super().__init__()
            self.on_epoch_end()

        def __len__(self) -> int:
            return ceil(len(rows) / batch_size)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            # In the file's order, which is the faster one to read; within a batch it makes no difference.
            taken = np.sort(rows[index * batch_size : (index + 1) * batch_size])
            return images[taken], labels[taken]

        def on_epoch_end(self) -> None:
            if rng is not None:
                rng.shuffle(rows)

    return Batches()


def _main(folder: Path) -> None:
    with handing_back_errors(folder):
        fit_model(FitArguments(**json.loads((folder / ARGUMENTS_FILE).read_text())), folder)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
