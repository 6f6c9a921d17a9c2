"""The converted network: what a saved model carries and an engine runs, as one value that checks its own files."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError

NETWORK_FOLDER = "network"
"""In a saved stage's folder: the files of its network."""

MANIFEST_FILE = "network.json"
XML_FILE = "network.xml"
BIN_FILE = "network.bin"
KERAS_FILE = "network.keras"

MANIFEST_FORMAT = 2
_FIRST_FORMAT = 1
_IMAGE_NDIM = 3

# The files an engine runs, in the order they are hashed in.
GRAPH_FILES: Mapping[str, tuple[str, ...]] = {"openvino": (XML_FILE, BIN_FILE), "tensorflow": (KERAS_FILE,)}


@dataclass(frozen=True)
class Network:
    """A converted network, self-contained.

    Parameters
    ----------
    name : str
        The architecture, a key of `sparkdl.network.catalog.NETWORKS`, or the name of a user's own Keras model.
    engine : str
        ``"openvino"`` or ``"tensorflow"``: what runs it.
    graph : mapping of str to bytes
        The engine's files by name: OpenVINO's graph and its weights, or one Keras file. Preprocessing is inside.
    input_shape : tuple of int
        Of one input. An image's is (height, width, 3) in pixels, in BGR order.
    input_type : str
        ``"uint8"`` for an image row's pixels as they are, ``"float32"`` for any other tensor.
    output_shape : tuple of int
        Of one output, float32.
    weights : str
        How the weights were asked for: ``"imagenet"``, ``"random"`` or a path.
    weights_sha256 : str
        SHA-256 over the values of the weights, the same for the same values in whatever file format.
    precision : str
        ``"fp32"``, ``"bf16"`` or ``"int8"``: what the engine computes in.
    pooling : str
        ``"avg"`` or ``"none"`` for features, ``"classes"`` for a network with its head, ``""`` for a user's own model.
    folder : Path, optional
        Where the engine's files lie, by their names, instead of in ``graph``: an engine then maps them, and processes
        that map the same file share its memory.
    """

    name: str
    engine: str
    graph: Mapping[str, bytes] = field(repr=False)
    input_shape: tuple[int, ...]
    input_type: str
    output_shape: tuple[int, ...]
    weights: str
    weights_sha256: str
    precision: str
    pooling: str
    folder: Path | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image it takes."""
        height, width = self.input_shape[:2]
        return height, width

    @property
    def n_features(self) -> int:
        """How many values one output has."""
        return math.prod(self.output_shape)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the graph's files: the same for two builds of the same thing with the same versions."""
        digest = hashlib.sha256()
        for name in GRAPH_FILES[self.engine]:
            digest.update(self.graph[name])
        return digest.hexdigest()

    def find_file(self, name: str) -> bytes | Path:
        """Give one of the engine's files: its content, or where it lies."""
        return self.graph[name] if self.folder is None else self.folder / name

    def to_files(self) -> dict[str, bytes]:
        """Give the files that hold this network.

        Returns
        -------
        dict
            File name to content: the graph's files, and ``network.json`` with every other field and their SHA-256.
        """
        manifest = {
            "format": MANIFEST_FORMAT,
            **{name: getattr(self, name) for name in _MANIFEST_FIELDS},
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in self.graph.items()},
        }
        return {MANIFEST_FILE: (json.dumps(manifest, indent=2) + "\n").encode(), **self.graph}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Network":
        """Read a network back from the files of :meth:`to_files`.

        Parameters
        ----------
        files : mapping
            File name to content.

        Returns
        -------
        Network
            Equal to the one that was written.

        Raises
        ------
        ModelLoadError
            A file is missing, the manifest is unreadable or of another format, or a file is not what its hash says.
        """
        manifest = _read_manifest(files)
        graph = {name: _checked(files, name, manifest["files"]) for name in _graph_files(manifest)}
        kept = {name: manifest[name] for name in _MANIFEST_FIELDS}
        shapes = {name: tuple(manifest[name]) for name in ("input_shape", "output_shape")}
        return cls(graph=graph, **(kept | shapes))


def read_input_size(manifest: bytes) -> tuple[int, int]:
    """Read what images a saved network takes, from its manifest alone.

    Parameters
    ----------
    manifest : bytes
        Content of ``network.json``.

    Returns
    -------
    tuple of int
        (height, width) in pixels.

    Raises
    ------
    ModelLoadError
        The manifest is unreadable or of another format, or the network takes no images.
    """
    shape = _read_manifest({MANIFEST_FILE: manifest})["input_shape"]
    is_image = isinstance(shape, list) and len(shape) == _IMAGE_NDIM
    if not is_image or not all(isinstance(side, int) and side > 0 for side in shape):
        msg = f"saved network: input_shape is {shape!r}, expected height, width and channels of an image"
        raise ModelLoadError(msg)
    return shape[0], shape[1]


_MANIFEST_FIELDS = tuple(item.name for item in fields(Network) if item.name not in ("graph", "folder"))


def _graph_files(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    if manifest["engine"] not in GRAPH_FILES:
        msg = f"saved network: engine is {manifest['engine']!r}, expected one of {', '.join(GRAPH_FILES)}"
        raise ModelLoadError(msg)
    return GRAPH_FILES[manifest["engine"]]


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        msg = f"saved network: {name} is missing, found {', '.join(sorted(files)) or 'no files'}"
        raise ModelLoadError(msg)
    return files[name]


def _checked(files: Mapping[str, bytes], name: str, hashes: Mapping[str, object]) -> bytes:
    data = _file(files, name)
    found, wanted = hashlib.sha256(data).hexdigest(), hashes.get(name)
    if found != wanted:
        msg = f"saved network: {name} has SHA-256 {found}, expected {wanted}: damaged or changed after it was saved"
        raise ModelLoadError(msg)
    return data


def _read_manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        manifest = json.loads(_file(files, MANIFEST_FILE))
    except ValueError as exc:  # also covers bytes that are not UTF-8
        msg = f"saved network: {MANIFEST_FILE} is not JSON: {exc}"
        raise ModelLoadError(msg) from exc
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in (_FIRST_FORMAT, MANIFEST_FORMAT):
        msg = f"saved network: {MANIFEST_FILE} has format {found!r}, expected {_FIRST_FORMAT} or {MANIFEST_FORMAT}"
        raise ModelLoadError(msg)
    if found == _FIRST_FORMAT:
        manifest = _from_first_format(manifest)
    missing = {*_MANIFEST_FIELDS, "files"} - manifest.keys()
    if missing or not isinstance(manifest["files"], dict):
        msg = f"saved network: {MANIFEST_FILE} lacks {', '.join(sorted(missing)) or 'hashes'}"
        raise ModelLoadError(msg)
    return manifest


def _from_first_format(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the first release's manifest to today's fields: it knew only OpenVINO and images."""
    upgraded = {"engine": "openvino", "input_type": "uint8", **manifest}
    if "input_size" in manifest:
        upgraded["input_shape"] = [*manifest["input_size"], 3]
    if "n_features" in manifest:
        upgraded["output_shape"] = [manifest["n_features"]]
    return upgraded
