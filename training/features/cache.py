"""Keeps on disk what training computed of images and networks, so that it is computed once.

A folder::

    images-<version>/part-*.parquet       what is known of each image, see `extract`
    features-<key>/part-*.parquet         features of each image, by one network in one precision
    networks/<key>/network.*              built networks, as a saved stage holds them

Rows are known by the SHA-256 of the image file's bytes: a file may be moved or renamed, and a changed one is another.
Parts and networks are written aside and renamed, so that they are there whole or not at all, also after a kill; several
runs may use one folder, at worst they compute the same twice. Pages of parts and files of networks carry checksums:
what is damaged is removed, and computed anew. Everything may be deleted at any time. It is own code because ``joblib``
and ``diskcache`` keep results by their arguments: they know neither a file's digest nor a result that is half there.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import JobError, ModelLoadError
from sparkdl.network.base import Network

DIGEST = "digest"

_log = logging.getLogger(__name__)


def make_key(**parts: Any) -> str:
    """Make a short name of what something follows from; values that JSON can carry, in any order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class FeatureCache:
    """A cache in a folder, see the module.

    Parameters
    ----------
    folder : Path
        Made where missing, on the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_rows(self, kind: str, digests: Collection[str], schema: pa.Schema) -> pa.Table:
        """Read the rows of some images.

        Parameters
        ----------
        kind : str
            Name of the folder of parts.
        digests : collection of str
            SHA-256 of the files.
        schema : pyarrow.Schema
            Of the rows; a part of any other is taken for damaged. Has a column `DIGEST`.

        Returns
        -------
        pyarrow.Table
            Those that are there, in no order; one may be there twice, then with the same values.
        """
        wanted = pa.array(sorted(digests), pa.string())
        parts = [part.filter(pc.is_in(part[DIGEST], wanted)) for part in self._read_parts(kind, schema)]
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def _read_parts(self, kind: str, schema: pa.Schema) -> Iterator[pa.Table]:
        for path in sorted((self._folder / kind).glob("part-*.parquet")):
            try:
                table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
            except FileNotFoundError:
                continue  # another run found it damaged
            except (pa.ArrowException, OSError) as exc:
                _drop(path, str(exc))
                continue
            if table.schema.equals(schema):
                yield table
            else:
                _drop(path, "its columns are others")

    def add_rows(self, kind: str, rows: pa.Table) -> None:
        """Add one part.

        Raises
        ------
        JobError
            The folder cannot be written.
        """
        folder = self._folder / kind
        name = uuid4().hex
        scratch = folder / f".{name}"
        with _writing(folder):
            try:
                pq.write_table(rows, scratch, write_page_checksum=True, compression="zstd")
                scratch.replace(folder / f"part-{name}.parquet")
            finally:
                scratch.unlink(missing_ok=True)

    def read_network(self, key: str) -> Network | None:
        """Read a built network; None where there is none, or a damaged one."""
        folder = self._folder / "networks" / key
        if not folder.is_dir():
            return None
        try:
            return Network.from_files({path.name: path.read_bytes() for path in folder.iterdir()})
        except (OSError, ModelLoadError) as exc:
            _log.warning("built anew: cached network %s: %s", key, exc)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def add_network(self, key: str, network: Network) -> None:
        """Keep a built network.

        Raises
        ------
        JobError
            The folder cannot be written.
        """
        folder = self._folder / "networks"
        with _writing(folder):
            scratch = Path(mkdtemp(prefix=".", dir=folder))
            try:
                scratch.chmod(0o755)  # mkdtemp lets only its owner in
                for name, content in network.to_files().items():
                    (scratch / name).write_bytes(content)
                scratch.rename(folder / key)
            except OSError:
                if not (folder / key).is_dir():  # else another run was first, with the same network
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _drop(path: Path, why: str) -> None:
    _log.warning("computed anew: cached part %s: %s", path, why)
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as exc:
        msg = f"cannot write the cache {folder}: {exc.strerror or exc}"
        raise JobError(msg) from exc
