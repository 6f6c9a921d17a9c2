"""An engine for several images at a time, as a worker process starts it: OpenVINO or ONNX Runtime, one thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.onnx import start_onnx
from sparkdl.engine.base import prepare_input
from sparkdl.engine.openvino import OpenVinoEngine, compile_options
from sparkdl.image.decode import decode_image
from sparkdl.image.row import array_from_row
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network

Pixels = npt.NDArray[np.uint8]
Infer = Callable[[Sequence[Pixels]], npt.NDArray[np.float32]]
"""Decoded images, at most a batch of them, to their features, a row each."""


@dataclass(frozen=True)
class EngineChoice:
    """What a process starts; it can be sent to one.

    Parameters
    ----------
    network : Network
        OpenVINO's; its input's shape is that of the other engine too.
    batch : int
        Images at a time.
    onnx_path : str
        The same network for ONNX Runtime, exported for so many; empty for OpenVINO.
    """

    network: Network
    batch: int = 1
    onnx_path: str = ""

    def start(self) -> Infer:
        """Start the engine in this process."""
        if self.onnx_path:
            return _padded(start_onnx(self.onnx_path), self.network, self.batch)
        if self.batch == 1:  # the stream's own engine, as it is
            infer = OpenVinoEngine(self.network, n_threads=1).infer
            return lambda images: np.stack([infer(image) for image in images])
        return _padded(_start_openvino(self.network, self.batch), self.network, self.batch)

    def decode(self, payload: bytes) -> Pixels:
        """Decode a file as the stream does, to the size that the network takes."""
        return array_from_row(decode_image(payload, origin="benchmark", size=self.network.input_size).image)


def _start_openvino(network: Network, batch: int) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    """Compile the network for a batch: the product's engine takes one image at a time."""
    core = import_openvino().Core()
    model = core.read_model(model=network.graph[XML_FILE], weights=network.graph[BIN_FILE])
    model.reshape([batch, *network.input_shape])
    request = core.compile_model(model, "CPU", compile_options(network.precision, 1, "CPU")).create_infer_request()

    def infer(pixels: Pixels) -> npt.NDArray[np.float32]:
        request.get_input_tensor().data[:] = pixels
        request.infer()
        return np.array(request.get_output_tensor().data, np.float32)

    return infer


def _padded(infer: Callable[[Pixels], npt.NDArray[np.float32]], network: Network, batch: int) -> Infer:
    """Fill a batch that is not full: an engine takes exactly as many as it was made for."""
    light = replace(network, graph={})

    def infer_some(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        pixels = np.zeros((batch, *light.input_shape), np.uint8)
        for place, image in enumerate(images):
            pixels[place] = prepare_input(light, image)
        return infer(pixels)[: len(images)].reshape(len(images), -1)

    return infer_some
