"""Moves small sets of files between the driver and any Hadoop path: local disk, HDFS, S3."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyspark.sql import SparkSession


def write_files(spark: SparkSession, folder: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder of any Hadoop file system.

    Parameters
    ----------
    spark : SparkSession
        Its Hadoop configuration knows the file systems and their credentials.
    folder : str
        Path or URI; made when missing.
    files : Mapping of str to bytes
        Content by file name.
    """
    with TemporaryDirectory() as scratch:
        for name, content in files.items():
            local = Path(scratch) / name
            local.write_bytes(content)
            target = _path(spark, f"{folder}/{name}")
            _file_system(spark, target).copyFromLocalFile(False, True, _local(spark, local), target)


def read_files(spark: SparkSession, folder: str) -> dict[str, bytes]:
    """Read every file of a folder of any Hadoop file system.

    Returns
    -------
    dict of str to bytes
        Content by file name; folders inside and hidden files are left out.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    source = _path(spark, folder)
    system = _file_system(spark, source)
    if not system.exists(source):
        raise FileNotFoundError(folder)
    with TemporaryDirectory() as scratch:
        return dict(_read_one(spark, system, status, Path(scratch)) for status in system.listStatus(source))


def _read_one(spark: SparkSession, system: Any, status: Any, scratch: Path) -> tuple[str, bytes]:
    name = status.getPath().getName()
    local = scratch / name
    # The last argument: no checksum file beside the copy.
    system.copyToLocalFile(False, status.getPath(), _local(spark, local), True)
    return name, local.read_bytes()


def _path(spark: SparkSession, text: str) -> Any:
    return spark._jvm.org.apache.hadoop.fs.Path(text)


def _local(spark: SparkSession, path: Path) -> Any:
    # Not as_uri(): Hadoop takes a path as it is written, and would look for a folder named "%20".
    return _path(spark, f"file://{path}")


def _file_system(spark: SparkSession, path: Any) -> Any:
    return path.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf())
