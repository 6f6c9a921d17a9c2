"""The class activation map: what each part of an image adds to what the model says.

Where a network's features are the mean of its last convolutional map, a linear classifier on the features is the mean
of the same classifier on the map. So its weights on the map, averaged, plus the intercept ARE the logit that the model
publishes: nothing is approximated but what the network's own precision rounds. The map comes from the very graph that
the stream runs, with that map as one more output.

What such a map cannot tell: a cell of the map has seen far more of the image than lies under it (of EfficientNetLite0
all of it), so a peak is where the network's evidence stands in the map, not the outline of a finding.

References
----------
B. Zhou et al., "Learning deep features for discriminative localization", CVPR (2016).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import JobError, ModelLoadError
from sparkdl.engine.base import prepare_input
from sparkdl.engine.openvino import compile_options
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network

_MAP_NDIM = 4
_PASSED = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Convert"})
"""Operations between the mean and the output that move no value."""
_SPATIAL: Mapping[tuple[int, ...], int] = {(2, 3): 1, (1, 2): 3}
"""Axes that are averaged, and the channels' own: of NCHW, and of NHWC."""


class NoMapError(JobError):
    """The model is as it should be, and has no class activation map; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """What a network makes of one image.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n_features,): what the classifier gets.
    maps : numpy.ndarray
        float32, shape (n_features, height, width): the last convolutional map, whose means the features are.
    """

    features: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32]

    def weigh(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Put a classifier's weights on the map.

        Parameters
        ----------
        weights : numpy.ndarray
            float64, shape (n_features,).

        Returns
        -------
        numpy.ndarray
            float64, shape (height, width). Its mean plus the classifier's intercept is the logit.
        """
        return np.asarray(np.tensordot(weights, self.maps.astype(np.float64), axes=1))


class ActivationEngine:
    """A network compiled to give its last convolutional map beside its features; one call at a time.

    Parameters
    ----------
    network : Network
        Its files may lie in a folder or in memory.
    n_threads : int
        CPU threads of one inference.
    device : str
        OpenVINO's name.

    Raises
    ------
    NoMapError
        The features are no means of a map.
    SettingsError, ModelLoadError
        See `sparkdl.engine.openvino.OpenVinoEngine`.
    """

    def __init__(self, network: Network, *, n_threads: int = 1, device: str = "CPU") -> None:
        if (network.engine, network.input_type) != ("openvino", "uint8"):
            msg = f"network {network.name} runs on {network.engine} with {network.input_type} input, and maps are of "
            msg += "image networks on OpenVINO"
            raise NoMapError(msg)
        self.network = network
        openvino = import_openvino()
        core = openvino.Core()
        try:
            graph = core.read_model(model=network.find_file(XML_FILE), weights=network.find_file(BIN_FILE))
            found, self._channels = find_last_map(graph, network.n_features)
            graph.add_outputs(found)
            compiled = core.compile_model(graph, device, compile_options(network.precision, n_threads, device))
        except RuntimeError as exc:  # the type OpenVINO raises for everything
            msg = f"network {network.name}: OpenVINO {openvino.__version__} cannot load it: {exc}"
            raise ModelLoadError(msg) from exc
        self._request = compiled.create_infer_request()

    def infer(self, values: npt.NDArray[Any]) -> Activation:
        """Compute features and map of one image.

        Parameters
        ----------
        values : numpy.ndarray
            See `sparkdl.engine.openvino.OpenVinoEngine.infer`.

        Raises
        ------
        TypeError, ValueError
            See there.
        """
        self._request.get_input_tensor().data[0] = prepare_input(self.network, values)
        self._request.infer()
        features, maps = (np.array(self._request.get_output_tensor(n).data[0], np.float32) for n in (0, 1))
        return Activation(features.ravel(), np.moveaxis(maps, self._channels - 1, 0))


def find_last_map(graph: Any, n_features: int) -> tuple[Any, int]:
    """Find the map whose means are a graph's output.

    Parameters
    ----------
    graph : openvino.Model
        With one output.
    n_features : int
        Values of that output.

    Returns
    -------
    tuple of openvino.Output and int
        The map, of four dimensions, and which of them is the channels'.

    Raises
    ------
    NoMapError
        Something else makes the output.
    """
    node = graph.output().get_node().input_value(0).get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    source = node.input_value(0) if node.get_input_size() else node.output(0)
    shape = source.get_partial_shape()
    channels = _averaged(node, shape) if shape.is_static and len(shape) == _MAP_NDIM else None
    if channels is None or shape[channels].get_length() != n_features:
        msg = f"the network's features are what {node.get_type_name()} makes, and not the means of its last map"
        raise NoMapError(msg)
    return source, channels


def _averaged(node: Any, shape: Any) -> int | None:
    """Give the dimension of the channels where a node averages all others of a map; None where it does not."""
    if node.get_type_name() == "ReduceMean":
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant":
            return None
        return _SPATIAL.get(tuple(sorted(int(axis) % _MAP_NDIM for axis in constant.data.ravel())))
    if node.get_type_name() == "AvgPool":
        whole = [side.get_length() for side in node.get_output_partial_shape(0)][2:] == [1, 1]
        same = list(node.get_attributes()["kernel"]) == [shape[2].get_length(), shape[3].get_length()]
        return 1 if whole and same else None
    return None
