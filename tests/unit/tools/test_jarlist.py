"""The list of jars is made of what was fetched, and of what Ivy has read of it."""

import hashlib
import json
from pathlib import Path

import pytest

from streaming.run.jars import JarSet
from tools.jarlist import list_jars, render_list

JARS = JarSet("set-1", ("org.example:one:1",), is_locked=True)


def fetched(folder: Path, licence: str) -> None:
    cache = folder / "ivy-cache" / "set-1" / "org.example" / "one"
    cache.mkdir(parents=True)
    (cache / "ivy-1.xml").write_text(
        f'<ivy-module><info organisation="org.example" module="one" revision="1">{licence}</info></ivy-module>'
    )
    (folder / "set-1").mkdir()
    (folder / "set-1" / "one-1.jar").write_bytes(b"one")


def test_a_jar_is_listed_with_its_hash_and_licences(tmp_path: Path) -> None:
    fetched(tmp_path, '<license name="MIT"/><license name="The Apache License, Version 2.0"/>')
    listed = json.loads(render_list({"set-1": list_jars(JARS, tmp_path)}))
    assert listed == {
        "set-1": [
            {
                "organisation": "org.example",
                "name": "one",
                "version": "1",
                "file": "one-1.jar",
                "sha256": hashlib.sha256(b"one").hexdigest(),
                "licences": ["MIT", "The Apache License, Version 2.0"],
            }
        ]
    }


def test_a_jar_of_which_no_licence_is_known_is_not_listed(tmp_path: Path) -> None:
    fetched(tmp_path, "")
    with pytest.raises(ValueError, match=r"no licence of one-1\.jar"):
        list_jars(JARS, tmp_path)
