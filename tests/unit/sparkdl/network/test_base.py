"""A saved network's manifest, read without its graph."""

import json

import pytest

from schemas.errors import ModelLoadError
from sparkdl.network.base import MANIFEST_FILE, NETWORK_FOLDER, Network, read_input_size
from tests.paths import FIRST_RELEASE


def manifest(**changes: object) -> bytes:
    network = Network(
        name="ResNet50",
        engine="openvino",
        graph={"network.xml": b"<net/>", "network.bin": b"\0"},
        input_shape=(224, 320, 3),
        input_type="uint8",
        output_shape=(2048,),
        weights="random",
        weights_sha256="0" * 64,
        precision="fp32",
        pooling="avg",
    )
    return json.dumps(json.loads(network.to_files()[MANIFEST_FILE]) | changes).encode()


def test_input_size_is_height_and_width() -> None:
    assert read_input_size(manifest()) == (224, 320)


def test_input_size_of_the_first_releases_manifest() -> None:
    [file] = FIRST_RELEASE.glob(f"stages/0_*/{NETWORK_FOLDER}/{MANIFEST_FILE}")
    assert read_input_size(file.read_bytes()) == (4, 6)


@pytest.mark.parametrize("shape", [[1280], [], None, "224", [224, 0, 3], [224, "224", 3], [224, 224.0, 3]])
def test_what_is_no_image_has_no_input_size(shape: object) -> None:
    with pytest.raises(ModelLoadError, match="expected height, width and channels"):
        read_input_size(manifest(input_shape=shape))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"format": 3}', b'{"format": 2}'])
def test_a_manifest_that_cannot_be_read_is_refused(content: bytes) -> None:
    with pytest.raises(ModelLoadError, match=MANIFEST_FILE):
        read_input_size(content)
