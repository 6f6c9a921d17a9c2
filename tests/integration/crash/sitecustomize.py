"""Put on a Spark worker's path, it makes its image decoder crash as a defect in native code would.

A fake, of the defect alone: the process really ends by SIGABRT, in the midst of decoding.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

MARK = b"ends-its-decoder"


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "streaming.score.decoding":
            return None
        found = PathFinder.find_spec(name, path)
        found.loader = _Loader(found.loader)
        return found


class _Loader(Loader):
    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> None:
        return self._inner.create_module(spec)

    def exec_module(self, module) -> None:
        self._inner.exec_module(module)
        decode = module.decode_image

        def decode_or_crash(payload, **options):
            if payload is not None and MARK in payload:
                os.abort()
            return decode(payload, **options)

        module.decode_image = decode_or_crash


sys.meta_path.insert(0, _Finder())
