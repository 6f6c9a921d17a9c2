"""Paths that users imported from before the modules moved."""

from importlib import import_module

import pytest

OLD_PATHS = {
    "sparkdl.decode": ("sparkdl.image.decode", "sparkdl.image.limits", "sparkdl.image.pixels"),
    "sparkdl.imagerow": ("sparkdl.image.row",),
}


@pytest.mark.parametrize("path", OLD_PATHS)
def test_an_old_path_gives_the_very_same_things(path: str) -> None:
    old, homes = import_module(path), [import_module(home) for home in OLD_PATHS[path]]
    assert old.__all__
    for name in old.__all__:
        assert any(getattr(home, name, None) is getattr(old, name) for home in homes), name
