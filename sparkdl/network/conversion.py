"""Turns a Keras model into the files an engine runs, with the preprocessing of image rows inside the graph."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, KERAS_FILE, XML_FILE

_CHANNELS = 3


@dataclass(frozen=True)
class Preprocessing:
    """What lies between an image row's pixels (uint8, BGR) and a model's input.

    Parameters
    ----------
    rgb : bool
        Whether the model wants RGB.
    mean, scale : tuple of float
        Of (x - mean) / scale, one value per channel in the model's order.
    """

    rgb: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)


def convert_to_openvino(model: Any, *, preprocessing: Preprocessing | None, layout: str = "NCHW") -> dict[str, bytes]:
    """Convert a Keras model to OpenVINO's two files; two conversions of the same model are the same bytes.

    Parameters
    ----------
    model : keras.Model
        One input and one output, on Keras's OpenVINO backend. Every dimension but the first is fixed.
    preprocessing : Preprocessing or None
        What to put before an image model; None leaves the input as it is, float32.
    layout : str
        The image model's own: ``"NCHW"`` or ``"NHWC"``.

    Returns
    -------
    dict
        File name to content. The graph takes one image at a time (see `sparkdl.engine.openvino`).
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        exported, xml, data = (Path(folder) / name for name in ("keras.xml", XML_FILE, BIN_FILE))
        model.export(str(exported), format="openvino", verbose=False)
        graph = openvino.Core().read_model(exported)
        graph.reshape([1, *model.input_shape[1:]])
        if preprocessing is not None:
            graph = _add_preprocessing(openvino, preprocessing, graph, layout)
        fold_normalisations(graph)
        name_by_place(graph, model.name)
        # serialize() writes weights as they are; save_model() would make them fp16.
        openvino.serialize(graph, str(xml), str(data))
        return {XML_FILE: xml.read_bytes(), BIN_FILE: data.read_bytes()}


def _add_preprocessing(openvino: ModuleType, preprocessing: Preprocessing, graph: Any, layout: str) -> Any:
    """Make the graph take a Spark image row's pixels: uint8, height x width x BGR."""
    preprocess = openvino.preprocess
    steps = preprocess.PrePostProcessor(graph)
    tensor = steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    tensor.set_color_format(preprocess.ColorFormat.BGR)
    steps.input().model().set_layout(openvino.Layout(layout))
    order = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if preprocessing.rgb:
        order = order.convert_color(preprocess.ColorFormat.RGB)
    if preprocessing != Preprocessing(rgb=preprocessing.rgb):
        order.mean(list(preprocessing.mean)).scale(list(preprocessing.scale))
    return steps.build()


def fold_normalisations(graph: Any) -> None:
    """Fold batch normalisations into their convolutions, as OpenVINO does whenever it compiles a graph.

    Done beforehand the weights are what a compiled graph refers to, and stay in the file that processes share. Folded
    while it compiles they are a second copy in each: 85 MB with InceptionV3, and half as much time again. Outputs are
    the same bytes.
    """
    # The module is OpenVINO's own converter's and NNCF's; no public name does the same to a graph that is read.
    from openvino._offline_transformations import apply_moc_transformations  # noqa: PLC0415

    apply_moc_transformations(graph, cf=False)


def name_by_place(graph: Any, name: str) -> None:
    """Name an OpenVINO graph's nodes by type and place.

    Keras and OpenVINO count names up per process, so two builds of the same network would differ.
    """
    for place, node in enumerate(graph.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{place}")
        info = node.get_rt_info()
        for key in [key for key in info.keys() if key.startswith("fused_names")]:
            del info[key]
    graph.set_friendly_name(name)
    graph.input().tensor.set_names({"image"})
    graph.output().tensor.set_names({"features"})


def convert_to_keras(keras: Any, model: Any, *, preprocessing: Preprocessing | None) -> Mapping[str, bytes]:
    """Put the preprocessing before a channels-last Keras model, and save it as one Keras file.

    Parameters
    ----------
    keras : module
        What ``model`` was built with.
    model : keras.Model
        See `convert_to_openvino`.
    preprocessing : Preprocessing or None
        See `convert_to_openvino`.

    Returns
    -------
    mapping
        File name to content.
    """
    whole = model if preprocessing is None else _with_preprocessing(keras, model, preprocessing)
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        path = Path(folder) / KERAS_FILE
        whole.save(path)
        return {KERAS_FILE: path.read_bytes()}


def _with_preprocessing(keras: Any, model: Any, preprocessing: Preprocessing) -> Any:
    pixels = keras.layers.Input(model.input_shape[1:], dtype="float32", name="image")
    ordered = keras.ops.flip(pixels, axis=-1) if preprocessing.rgb else pixels
    # (x - mean) / scale, written as the layer wants it.
    factors = [1 / scale for scale in preprocessing.scale]
    offsets = [-mean / scale for mean, scale in zip(preprocessing.mean, preprocessing.scale, strict=True)]
    return keras.Model(pixels, model(keras.layers.Rescaling(factors, offsets)(ordered)), name=model.name)
