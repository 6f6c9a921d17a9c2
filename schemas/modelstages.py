"""Which classes a saved pipeline would load, checked on its files before anything of it is loaded.

Spark imports whatever Python module a stage's metadata names and calls what it finds there, so a model folder is a
program unless its classes are checked first. Here its metadata is read as plain files, without Spark. The rest of a
folder that passes is data: Spark's own stages keep JSON and Parquet, `sparkdl.DeepImageFeaturizer` a JSON manifest and
its engine's files.

Not covered: what a folder's numbers say. A model that is wrong on purpose passes; take models from people you trust.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from schemas.errors import ModelLoadError

PIPELINES = frozenset({"pyspark.ml.pipeline.PipelineModel", "org.apache.spark.ml.PipelineModel"})
"""What the folder itself, and a stage that is a pipeline, may be."""

PYTHON_STAGES = frozenset({"sparkdl.DeepImageFeaturizer"})
"""Every Python stage of a model that the stream serves."""

# Spark turns these into the pyspark module of the same name and imports it. Not all of org.apache.spark.ml: "connect"
# unpickles files, and the others hold no stage that a model is made of.
_JAVA_STAGE = re.compile(r"org\.apache\.spark\.ml\.(classification|clustering|feature|regression)\.[A-Z][A-Za-z0-9]*")
# Spark joins a stage's uid to a path, and reads the path as a pattern.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_METADATA = "metadata"
# What Spark writes: "part-00000", and from version 4 on "part-00000-<uuid>-c000.txt". Another ending, ".gz" for one, it
# would decompress.
_PART = re.compile(r"part-\d+(-[0-9a-f-]+-c\d+\.txt)?")
_SHOWN_CHARS = 200


def check_stages(folder: Path) -> None:
    """Refuse a saved pipeline with a class that is not one of those a served model is made of.

    Every ``metadata`` folder is checked, wherever it lies below the pipeline: stages may hold stages.

    Parameters
    ----------
    folder : Path
        A saved ``PipelineModel``, on this machine.

    Raises
    ------
    ModelLoadError
        A class is not on the list, the folder is no saved pipeline, metadata can be read in more than one way, or a
        link or a stage's name leads out of the folder. It names the stage and what was found.
    """
    if not (folder / _METADATA).exists():
        msg = f"the model at {folder} is no saved pipeline: it has no folder {_METADATA}/"
        raise ModelLoadError(msg)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            _refuse(folder, path, "is a link", "files only")
        if path.name == _METADATA:
            _check_stage(folder, path.parent)


def _check_stage(folder: Path, stage: Path) -> None:
    metadata = _read_metadata(folder, stage)
    found = metadata.get("class")
    if not isinstance(found, str) or not _is_allowed(found, at_top=stage == folder):
        wanted = "a pipeline" if stage == folder else f"{', '.join(sorted(PYTHON_STAGES))} or a stage of Spark's own"
        _refuse(folder, stage, f"is of class {_shown(found)}", wanted)
    if found in PIPELINES:
        _check_uids(folder, stage, metadata)


def _is_allowed(name: str, *, at_top: bool) -> bool:
    if name in PIPELINES:
        return True
    return not at_top and (name in PYTHON_STAGES or _JAVA_STAGE.fullmatch(name) is not None)


def _check_uids(folder: Path, stage: Path, metadata: dict[str, Any]) -> None:
    params = metadata.get("paramMap")
    uids = params.get("stageUids") if isinstance(params, dict) else None
    if not isinstance(uids, list):
        _refuse(folder, stage, f"has stageUids {_shown(uids)}", "a list of names")
    for uid in uids:
        if not isinstance(uid, str) or _UID.fullmatch(uid) is None:
            _refuse(folder, stage, f"names a stage {_shown(uid)}", "letters, digits, '_', '.' and '-'")


def _read_metadata(folder: Path, stage: Path) -> dict[str, Any]:
    """Read the one line of the one file that Spark would read; where it could read another one, refuse."""
    try:
        text = _find_part(folder, stage).read_text(encoding="utf-8")
        metadata = json.loads(text, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as exc:
        _refuse(folder, stage, f"has metadata that cannot be read ({type(exc).__name__})", "one line of JSON")
    if not isinstance(metadata, dict) or len(text.splitlines()) != 1:
        _refuse(folder, stage, "has metadata of another form", "one line of JSON")
    return metadata


def _find_part(folder: Path, stage: Path) -> Path:
    metadata = stage / _METADATA
    if not metadata.is_dir():
        _refuse(folder, stage, f"has a file {_METADATA}", "a folder")
    # Checksum files, and the mark of a finished write, are none of Spark's input.
    visible = [p for p in metadata.iterdir() if p.name != "_SUCCESS" and not re.fullmatch(r"\..+\.crc", p.name)]
    if len(visible) != 1 or not visible[0].is_file() or _PART.fullmatch(visible[0].name) is None:
        names = ", ".join(sorted(path.name for path in visible)) or "nothing"
        _refuse(folder, stage, f"has {_shown(names)} in {_METADATA}/", "one file part-00000...")
    return visible[0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is there twice: Python takes the last one, Java may take the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name is there twice"
        raise ValueError(msg)
    return found


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN_CHARS]


def _refuse(folder: Path, place: Path, found: str, wanted: str) -> NoReturn:
    name = "the pipeline itself" if place == folder else place.relative_to(folder).as_posix()
    msg = f"the model at {folder} is not loaded: {name} {found}, expected {wanted}"
    raise ModelLoadError(msg)
