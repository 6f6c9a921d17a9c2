"""Training runs, their figures and the models' aliases in MLflow, for those who look there.

A mirror: what is served is decided by the alias files of `schemas.registry` alone. MLflow is imported by the functions
here, not with this module: that takes seconds.
"""

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import JobError
from schemas.extras import check_extra
from schemas.modelcard import CARD_FILE, ModelCard

if TYPE_CHECKING:
    from training.evidence.evaluation import Evaluation

REPORT_NAMES = ("report.html", "report.md", "report.json")
"""What of a model's report is kept with its run. They name files and no patient's id; the page shows images."""

VERSION_TAG = "xray_version"
"""Tag of a run and of a registered version: MLflow counts 1, 2, 3 where the models have names of their own."""

_SQLITE = "sqlite:///"
_ARTIFACTS_FOLDER = "mlartifacts"
_MODEL_PATH = "model"
_MAX_SAID = 200
_MAX_TEXT = 5000  # MLflow refuses tags from 8000 bytes on, parameters from 6000

# What MLflow reads from the environment; a value that somebody has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that it may hold
    "GIT_PYTHON_REFRESH": "quiet",
    # A server that is away is told within seconds; by default that takes minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def track_run(
    uri: str,
    experiment: str,
    card: ModelCard,
    evaluation: "Evaluation | Mapping[str, Any] | None",
    report_folder: Path | None,
    model_folder: Path,
    *,
    with_weights: bool = False,
) -> str:
    """Write a training run down in MLflow and register its model; once for each model.

    Parameters
    ----------
    uri : str
        ``sqlite:///FILE``, with artifacts in ``mlartifacts`` beside the file, or ``http(s)://SERVER``.
    experiment : str
        Made where it is not there.
    card : ModelCard
        Of the model. It is registered by ``card.name``.
    evaluation : Evaluation or mapping, optional
        What was found out, or the report's JSON; without it the card's metrics are written.
    report_folder : Path, optional
        What is there of `REPORT_NAMES` goes with the run.
    model_folder : Path
        Its card goes with the run, and its path and hash as tags.
    with_weights : bool
        Also store the whole folder.

    Returns
    -------
    str
        The run's id; of a model that is registered already, the id of its run.

    Raises
    ------
    DependencyError
        MLflow is not installed.
    JobError
        It cannot be reached, or refuses.
    """
    with _connect(uri) as client:
        registered = _find_version(client, card.name, card.version)
        if registered is not None:
            return str(registered.run_id)
        found = evaluation if evaluation is None or isinstance(evaluation, Mapping) else evaluation.to_dict()
        begun, ended = _read_times(card, found)
        run = client.create_run(
            _find_experiment(client, uri, experiment),
            start_time=begun,
            run_name=card.version,
            tags=_describe_tags(card, found, model_folder),
        )
        status = "FAILED"
        try:
            _log_all(client, run.info.run_id, card, found)
            for path in _files_of(report_folder):
                client.log_artifact(run.info.run_id, str(path))
            if with_weights:
                client.log_artifacts(run.info.run_id, str(model_folder), _MODEL_PATH)
            else:
                client.log_artifact(run.info.run_id, str(model_folder / CARD_FILE), _MODEL_PATH)
            _register(client, run.info, card, found)
            status = "FINISHED"
        finally:
            client.set_terminated(run.info.run_id, status, ended)
    return str(run.info.run_id)


def mirror_alias(uri: str, name: str, alias: str, version: str | None) -> str | None:
    """Let MLflow's alias name the version that ours names.

    Parameters
    ----------
    uri : str
        See `track_run`.
    name : str
        Of the model, ``card.name``.
    alias : str
        ``"champion"`` or ``"challenger"``.
    version : str or None
        Ours, e.g. ``"20260131T120000Z"``; None removes the alias.

    Returns
    -------
    str or None
        MLflow's number of the version.

    Raises
    ------
    DependencyError
        MLflow is not installed.
    JobError
        It cannot be reached, or does not know the version.
    """
    with _connect(uri) as client:
        if version is None:
            # MLflow is content with removing an alias that is not there, but not from a model that is not there.
            if client.search_registered_models(f"name = '{name}'"):
                client.delete_registered_model_alias(name, alias)
            return None
        registered = _find_version(client, name, version)
        if registered is None:
            msg = f"MLflow at {show_uri(uri)} does not know {name} {version}; 'xray models sync' registers it"
            raise JobError(msg)
        client.set_registered_model_alias(name, alias, registered.version)
        return str(registered.version)


def show_uri(uri: str) -> str:
    """Give an address without the user and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def _connect(uri: str) -> Iterator[Any]:
    """Give a client that keeps quiet, and turn what MLflow raises into our errors."""
    check_extra("tracking", "MLflow as a mirror")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient  # noqa: PLC0415  takes seconds
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        try:
            if uri.startswith(_SQLITE):
                Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, SQLAlchemyError, OSError) as exc:
            msg = f"MLflow at {show_uri(uri)}: {_shorten(exc)}"
            raise JobError(msg) from exc


def _shorten(exc: Exception) -> str:
    """Give what MLflow says in one line: it quotes requests whole, and lets none of its libraries' words out."""
    said = (str(exc).strip().splitlines() or [""])[0]
    if "ConnectionPool" in said:
        return "no answer"
    return f"{type(exc).__name__}: {show_uri(said)[:_MAX_SAID]}"


def _find_experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server says itself where artifacts go; without one they would go below the present folder.
    folder = Path(uri.removeprefix(_SQLITE)).absolute().parent / _ARTIFACTS_FOLDER if uri.startswith(_SQLITE) else None
    return str(client.create_experiment(name, artifact_location=folder.as_uri() if folder else None))


def _find_version(client: Any, name: str, version: str) -> Any | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{VERSION_TAG} = '{version}'")
    return found[0] if found else None


def _register(client: Any, run: Any, card: ModelCard, found: Mapping[str, Any] | None) -> None:
    if not client.search_registered_models(f"name = '{card.name}'"):
        client.create_registered_model(card.name)
    tags = {VERSION_TAG: card.version, "sha256": card.sha256}
    if found is not None:
        tags["verdict"] = found["verdict"]["verdict"]
    client.create_model_version(card.name, f"{run.artifact_uri}/{_MODEL_PATH}", run.run_id, tags=tags)


def _files_of(report_folder: Path | None) -> list[Path]:
    return [] if report_folder is None else [path for name in REPORT_NAMES if (path := report_folder / name).is_file()]


def _read_times(card: ModelCard, found: Mapping[str, Any] | None) -> tuple[int, int]:
    """Give begin and end of the training in milliseconds."""
    ended = int(datetime.fromisoformat(card.created_at).timestamp() * 1000)
    return ended - int(found["provenance"]["seconds"] * 1000 if found else 0), ended


def _describe_tags(card: ModelCard, found: Mapping[str, Any] | None, model_folder: Path) -> dict[str, str]:
    tags = {
        VERSION_TAG: card.version,
        "model_folder": str(model_folder),
        "sha256": card.sha256,
        "mlflow.source.name": "xray train",
    }
    if found is not None:
        tags |= {
            "verdict": found["verdict"]["verdict"],
            "verdict_reasons": "; ".join(found["verdict"]["reasons"]),
            "in_service": found["in_service_name"],
            "mlflow.note.content": found["disclaimer"],
        }
    return {name: text[:_MAX_TEXT] for name, text in tags.items()}


def _log_all(client: Any, run_id: str, card: ModelCard, found: Mapping[str, Any] | None) -> None:
    from mlflow.entities import Metric, Param  # noqa: PLC0415

    now = int(time.time() * 1000)
    figures = dict(card.metrics) if found is None else _gather_figures(found)
    params = {name: str(value)[:_MAX_TEXT] for name, value in _describe_params(card, found).items()}
    client.log_batch(
        run_id,
        metrics=[Metric(name, float(value), now, 0) for name, value in figures.items() if value is not None],
        params=[Param(name, text) for name, text in params.items()],
    )


def _describe_params(card: ModelCard, found: Mapping[str, Any] | None) -> dict[str, object]:
    params: dict[str, object] = {
        "network": card.network,
        "precision": card.precision,
        "rendering_version": card.rendering_version,
        "labels": ", ".join(card.labels),
        "positive_label": card.positive_label,
        "threshold": card.threshold,
        "operating_point": card.operating_point,
    }
    if found is not None:
        provenance, data = found["provenance"], found["data"]
        params |= {
            name: provenance[name]
            for name in ("weights", "weights_sha256", "classifier", "procedure", "seed", "code_version", "data_sha256")
        }
        params |= {
            "n_train_images": data["train"]["n_images"],
            "n_train_patients": data["train"]["n_patients"],
            "n_test_images": data["test"]["n_images"],
            "n_test_patients": data["test"]["n_patients"],
        }
    return params


def _gather_figures(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Give every figure with the ends of its interval; one that could not be computed is None."""
    figures = _spread("", found["internal"]["figures"])
    figures |= found["metrics"]  # the same four, as Spark computes them
    for other in found["others"]:
        figures |= _spread(f"{_metric_name(other['name'])}/", other["figures"])
    figures |= _spread("probe/", {probe["name"]: probe["auroc"] for probe in found["probes"]})
    compared = found["in_service"] or {}
    figures |= _spread("against_in_service/", {name: one["difference"] for name, one in compared.items()})
    return figures


def _spread(prefix: str, estimates: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{prefix}{name}{end}": one[key] for name, one in estimates.items() for end, key in ends.items()}


def _metric_name(text: str) -> str:
    """Keep what MLflow takes in a metric's name."""
    return re.sub(r"[^\w. -]+", "_", text, flags=re.ASCII).strip("_. ") or "set"
