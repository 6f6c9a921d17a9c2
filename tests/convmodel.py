"""A small convolutional network, and a model of it as training saves one: for tests of the activation map."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import promote
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from sparkdl.transformers.pipelinefiles import Regression, write_pipeline
from tests.stored import NO_CARD
from training.model.decision import Decision, store_decision

HEIGHT, WIDTH, CHANNELS = 32, 48, 24
MAP = (8, 12)


def conv_network(folder: Path, *, ending: str = "mean", precision: str = "fp32", seed: int = 0) -> Network:
    """Two convolutions of stride 2 with ReLU, and what makes features of the last map."""
    openvino = import_openvino()
    ops, rng = openvino.opset13, np.random.default_rng(seed)
    image = ops.parameter([1, HEIGHT, WIDTH, 3], np.uint8)
    x = ops.transpose(ops.convert(image, "f32"), ops.constant([0, 3, 1, 2]))
    x = ops.multiply(x, ops.constant(np.float32(1 / 255)))
    n_inputs = 3
    for n_outputs in (12, CHANNELS):
        kernel = rng.normal(0, np.sqrt(2 / (9 * n_inputs)), (n_outputs, n_inputs, 3, 3)).astype(np.float32)
        x = ops.convolution(x, ops.constant(kernel), [2, 2], [1, 1], [1, 1], [1, 1])
        x = ops.relu(ops.add(x, ops.constant(rng.normal(0, 0.1, (1, n_outputs, 1, 1)).astype(np.float32))))
        n_inputs = n_outputs
    ends: dict[str, Any] = {
        "mean": lambda: ops.reduce_mean(x, ops.constant([2, 3]), keep_dims=False),
        "kept": lambda: ops.reshape(ops.reduce_mean(x, ops.constant([-1, -2]), keep_dims=True), [1, CHANNELS], False),
        "nhwc": lambda: ops.reduce_mean(ops.transpose(x, ops.constant([0, 2, 3, 1])), ops.constant([1, 2]), False),
        "flat": lambda: ops.reshape(x, [1, CHANNELS * MAP[0] * MAP[1]], False),
        "max": lambda: ops.reduce_max(x, ops.constant([2, 3]), keep_dims=False),
        "rows": lambda: ops.reshape(ops.reduce_mean(x, ops.constant([2]), False), [1, CHANNELS * MAP[1]], False),
    }
    output = ends[ending]()
    openvino.serialize(openvino.Model([output], [image]), str(folder / "g.xml"), str(folder / "g.bin"))
    return Network(
        name="Small",
        engine="openvino",
        graph={XML_FILE: (folder / "g.xml").read_bytes(), BIN_FILE: (folder / "g.bin").read_bytes()},
        input_shape=(HEIGHT, WIDTH, 3),
        input_type="uint8",
        output_shape=tuple(output.get_output_partial_shape(0).get_min_shape())[1:],
        weights="random",
        weights_sha256="0" * 64,
        precision=precision,
        pooling="avg",
    )


def add_conv_model(
    home: Path,
    version: str = "20260101T000000Z",
    *,
    ending: str = "mean",
    n_classes: int = 2,
    decision: Decision | None = None,
) -> ModelCard:
    """Put a model with random numbers into XRAY_HOME and promote it."""
    folder = home / "models" / version
    network = conv_network(home, ending=ending)
    rng, rows = np.random.default_rng(5), 1 if n_classes == 2 else n_classes
    featurizer = DeepImageFeaturizer(inputCol="image", outputCol="features")
    featurizer._network = network
    regression = Regression(rng.normal(size=(rows, network.n_features)), rng.normal(size=rows), {})
    write_pipeline(folder, featurizer, regression)
    decision = decision or Decision()
    store_decision(folder, decision)
    labels = ("normal", "ill", "worse")[:n_classes]
    card = replace(
        NO_CARD,
        version=version,
        labels=labels,
        positive_label=labels[1],
        threshold=0.5 if n_classes == 2 else None,
        sha256=hash_model_folder(folder),
        novelty=decision.novelty,
    )
    write_card(folder, card)
    promote(home / "models", version)
    return card
