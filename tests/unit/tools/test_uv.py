"""uv is told of pip's settings."""

import re

import pytest

from tests.paths import ROOT
from tools.uv import read_pip_settings

LOCKS = ROOT / "locks"


@pytest.mark.parametrize(
    ("listing", "wanted"),
    [
        ("", {}),
        ("global.index-url='https://packages.example/simple'", {"UV_DEFAULT_INDEX": "https://packages.example/simple"}),
        (":env:.cert='/etc/ca.pem'\nglobal.cert='/old.pem'", {"SSL_CERT_FILE": "/etc/ca.pem"}),
        ("global.cert='/old.pem'\nsite.cert='/etc/ca.pem'", {"SSL_CERT_FILE": "/etc/ca.pem"}),
        ("install.find-links='/a /b'", {"UV_FIND_LINKS": "/a,/b"}),
        ("global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'",
         {"UV_INDEX": "https://a.example https://b.example"}),
        ("download.index-url='https://elsewhere.example'", {}),
        (":env:.disable-pip-version-check='1'", {}),
    ],
)  # fmt: skip
def test_settings_are_translated(listing: str, wanted: dict[str, str]) -> None:
    assert read_pip_settings(listing) == wanted


def pins(name: str) -> dict[str, str]:
    text = (LOCKS / f"{name}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_a_larger_lock_holds_the_smaller_one() -> None:
    train, dev, tensorflow = pins("train"), pins("dev"), pins("tensorflow")
    assert train.items() <= dev.items() <= tensorflow.items()
    assert {"pyspark", "keras"} <= train.keys()
    assert not {"mlflow", "nncf", "pytest"} & train.keys()
    assert "tensorflow-cpu" not in dev


@pytest.mark.parametrize("name", ["build", "train", "dev", "tensorflow"])
def test_every_package_has_hashes_and_no_address(name: str) -> None:
    text = (LOCKS / f"{name}.lock").read_text(encoding="utf-8")
    packages = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)
    assert "//" not in text
