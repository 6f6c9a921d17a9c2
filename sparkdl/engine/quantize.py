"""Post-training int8 quantisation: a converted fp32 network and some of its own images become an int8 network.

It needs the ``int8`` extra (NNCF) and happens once, at training time; serving an int8 network needs OpenVINO alone.

What is done, with the figures it was chosen by: EfficientNetLite0 with its ImageNet weights, 206 public chest X-rays,
calibrated on 100 of them, cosine of the features to fp32 on the 103 others (mean, smallest in brackets).
    * Batch normalisations are folded into their convolutions first. Apart they hide the biases from NNCF's correction,
      which then corrects nothing: 0.857 (0.726) against 0.960 (0.869), all else left at NNCF's defaults.
    * Biases are corrected layer by layer, each on the output of those before it, not all at once: 0.979 (0.926).
    * Weights use half their range. Without it CPUs that lack VNNI overflow in silence: by NNCF's defaults the same
      network's features there had a cosine of 0.87 (0.71) to its own with VNNI. With it they agree to 1.00000, at
      0.977 (0.930) and the same speed: a model may be trained on one machine and serve on another.
    * The first convolution stays in floating point, for a tenth of EfficientNetLite0's time and nearly nothing of
      InceptionV3's: 0.986 (0.937).
On one core EfficientNetLite0 is then 2.4 times as fast as in fp32 (bf16 1.8), InceptionV3 3.5 times (bf16 1.9).
Asymmetric ranges (NNCF's preset "mixed") changed nothing; means or quantiles instead of the extremes were worse.
"""

import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DependencyError, SettingsError
from schemas.extras import install_line
from sparkdl.engine.base import to_bgr
from sparkdl.image.pixels import resize_pixels
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network
from sparkdl.network.conversion import fold_normalisations, name_by_place

INT8 = "int8"

MIN_IMAGES = 10
"""Fewer do not show the range of a layer's values."""

_QUANTIZABLE = ("fp32", "bf16")  # the stored weights are fp32 in both
_NNCF_LOGGER = "nncf"

_Pixels = npt.NDArray[np.uint8]


def quantize_network(network: Network, images: Iterable[_Pixels], *, max_images: int = 300) -> Network:
    """Quantise a network's weights and activations to int8.

    Takes seconds to a few minutes; the features then differ from fp32's by a few percent, so train the classifier on
    the features of the network that will serve.

    Parameters
    ----------
    network : Network
        An image network in fp32 or bf16, run by OpenVINO.
    images : iterable of numpy.ndarray
        What the ranges of the layers' values are measured on: images like those that will be scored, and never those
        that the result is judged by. uint8 of shape (height, width) or (height, width, 1 | 3 | 4) in BGR order, of any
        size; they are resized as decoding does.
    max_images : int
        How many images are taken, the first ones; each is kept in memory at the network's input size.

    Returns
    -------
    Network
        The same network with precision ``"int8"`` and about a quarter of the bytes. On one machine with the same
        versions, the same network and images give the same bytes.

    Raises
    ------
    SettingsError
        The network is of another precision, engine or input, or there are fewer than `MIN_IMAGES` images.
    DependencyError
        The ``int8`` extra is missing.
    TypeError, ValueError
        An image is not one that an engine takes.
    """
    _check_network(network)
    pixels = [_prepare(image, network.input_size) for image in islice(images, max_images)]
    if len(pixels) < MIN_IMAGES:
        msg = f"int8: {len(pixels)} images to calibrate on, wanted at least {MIN_IMAGES}"
        raise SettingsError(msg)
    openvino, nncf = import_openvino(), import_nncf()
    graph = _read_folded(openvino, network)
    with _silenced():
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(pixels),
            subset_size=len(pixels),
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=_first_convolution(graph)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    name_by_place(quantized, network.name)
    return replace(network, graph=_serialize(openvino, quantized), precision=INT8)


def import_nncf() -> ModuleType:
    """Import NNCF without its telemetry, which goes the way of OpenVINO's (see `import_openvino`).

    Returns
    -------
    module
        ``nncf``.

    Raises
    ------
    DependencyError
        It is not installed.
    """
    import_openvino()  # first, because NNCF would import it with its telemetry
    blocked = not {"nncf", "openvino_telemetry"} & sys.modules.keys()
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    # NNCF's own class of loggers would become that of everybody's, and it takes sys.stdout for its handler.
    logger_class = logging.getLoggerClass()
    try:
        import nncf  # noqa: PLC0415 - the optional extra, and only for quantising
    except ImportError as exc:
        msg = f"int8 needs NNCF ({exc}): {install_line('int8')}"
        raise DependencyError(msg) from exc
    finally:
        logging.setLoggerClass(logger_class)
        if blocked:
            sys.modules.pop("openvino_telemetry", None)
    return nncf


def _check_network(network: Network) -> None:
    if network.precision not in _QUANTIZABLE:
        msg = f"int8: network {network.name} is in {network.precision}, wanted {' or '.join(_QUANTIZABLE)}"
        raise SettingsError(msg)
    if (network.engine, network.input_type) != ("openvino", "uint8"):
        found = f"{network.engine} with {network.input_type} input"
        msg = f"int8: network {network.name} is for {found}, wanted openvino with uint8 input"
        raise SettingsError(msg)


def _prepare(image: _Pixels, size: tuple[int, int]) -> _Pixels:
    """Bring an image to the graph's input: uint8 [1, height, width, 3] in BGR order."""
    bgr = to_bgr(image, image.shape[:2])  # first, because it checks what it is given
    return resize_pixels(bgr, size)[np.newaxis]


def _read_folded(openvino: ModuleType, network: Network) -> Any:
    """Read the graph, batch normalisations folded: those of a network of an earlier release are not."""
    graph = openvino.Core().read_model(model=network.graph[XML_FILE], weights=network.graph[BIN_FILE])
    fold_normalisations(graph)
    name_by_place(graph, network.name)  # NNCF writes the names it was given into the result
    return graph


def _first_convolution(graph: Any) -> list[str]:
    """Give the name of the first convolution, in a list; empty where there is none."""
    names = (node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution")
    return list(islice(names, 1))


def _serialize(openvino: ModuleType, graph: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        xml, data = Path(folder) / XML_FILE, Path(folder) / BIN_FILE
        openvino.serialize(graph, str(xml), str(data))
        return {XML_FILE: xml.read_bytes(), BIN_FILE: data.read_bytes()}


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep NNCF's progress bars and log lines off the terminal; both go to standard output, where --json goes."""
    from nncf.common.logging import track_progress  # noqa: PLC0415

    logger, progress = logging.getLogger(_NNCF_LOGGER), track_progress.Progress
    level = logger.level
    logger.setLevel(logging.ERROR)
    track_progress.Progress = lambda *columns, **options: progress(*columns, **{**options, "disable": True})
    try:
        yield
    finally:
        track_progress.Progress = progress
        logger.setLevel(level)
