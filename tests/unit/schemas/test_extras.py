"""What is said where an optional package is missing: the line that installs it, and before any work."""

import json
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from schemas import extras
from schemas.errors import DependencyError
from schemas.extras import check_extra, install_line

CHECKOUT = Path(extras.__file__).resolve().parents[1]


class _Installed:
    """Stands for the distribution's metadata as pip writes it."""

    def __init__(self, url: str | None) -> None:
        self._text = None if url is None else json.dumps({"url": url, "archive_info": {}})

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


@pytest.fixture
def no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "schemas" / "extras.py"))


def test_in_the_checkout_it_is_the_line_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert install_line("train") == "pip install -e '.[train]'"


def test_elsewhere_it_names_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert install_line("int8") == f"pip install -e '{CHECKOUT}[int8]'"


@pytest.mark.usefixtures("no_checkout")
def test_after_a_wheel_it_names_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a folder" / "xray_stream-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    monkeypatch.setattr(extras, "distribution", lambda _: _Installed(wheel.as_uri()))
    assert install_line("train") == f"pip install '{wheel}[train]'"


@pytest.mark.usefixtures("no_checkout")
@pytest.mark.parametrize("url", [None, "https://elsewhere/x.whl", "file:///is/gone/x.whl"])
def test_where_the_wheel_is_gone_it_says_what_to_put_there(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "distribution", lambda _: _Installed(url))
    assert install_line("train") == "pip install 'xray_stream-*.whl[train]'"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name in ("scipy", "jinja2") else ModuleSpec(name, None)

    monkeypatch.setattr(extras, "find_spec", find)
    line = re.escape(install_line("train"))
    with pytest.raises(DependencyError, match=f"training needs scipy, jinja2, .* extra train .*: {line}"):
        check_extra("train", "training")
    check_extra("train", "training", modules=("keras",))
    check_extra("int8", "int8")
