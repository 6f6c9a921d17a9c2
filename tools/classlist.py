"""Makes the list of Java's classes that a start of the stream loads: ``python -m tools.classlist``.

``streaming/run/sharedclasses.py`` makes of it what later starts are quick by. The list is of one version of Spark and
of its connector: make it anew with each.

``xray stream`` runs twice as users run it, with a broker, a small model and images: once with no checkpoint, and once
more behind the first. Its JVM writes the names down (``-XX:DumpLoadedClassList``). It takes about a minute, and a Java
as old as the product allows: a class that a newer one lacks is passed over when the list is used, one that the list
lacks is loaded as ever.
"""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.chaos.stream import StreamProcess
from benchmarks.latency import Probe
from benchmarks.stage import Stage, open_stage
from benchmarks.starting import environ_of
from streaming.settings import StreamSettings
from xray.console import err, step

OUT = Path(__file__).resolve().parent.parent / "streaming" / "run" / "classes.lst.gz"
"""The list of this checkout."""

_MADE_WHILE_RUNNING = re.compile(r"^#|\$Proxy\d+( |$)")
_STARTS = 2
_IMAGES = 40
_IMAGES_A_SECOND = 10.0
_READY_TIMEOUT_S = 180.0
_END_TIMEOUT_S = 60.0


def main(out: Annotated[Path, typer.Option(help="The file that is written.")] = OUT) -> None:
    """Start the stream, and write down which of Java's classes it loads."""
    with open_stage() as stage, TemporaryDirectory(prefix="xray-classes-") as scratch:
        _, _, model = stage.train("EfficientNetLite0", "imagenet", "fp32")
        stage.spark.stop()
        settings = with_unshared_classes(stage.fresh_settings(), Path(scratch))
        lists = []
        for number in range(_STARTS):
            with step(f"start {number + 1} of {_STARTS}"):
                lists.append(list_classes(stage, settings, model, Path(scratch) / f"{number}.lst"))
    names = join_lists(lists)
    out.write_bytes(gzip.compress(names, mtime=0))
    err.print(f"{len(names.splitlines())} lines in {out}")


def with_unshared_classes(settings: StreamSettings, scratch: Path) -> StreamSettings:
    """Give settings with the same jars in a folder of their own, where no file of ready classes is."""
    jars = scratch / "jars"
    jars.mkdir()
    for found in settings.jars_folder.iterdir():
        if found.is_dir():
            (jars / found.name).symlink_to(found)
    return settings.model_copy(update={"jars": jars})


def list_classes(stage: Stage, settings: StreamSettings, model: Path, path: Path) -> str:
    """Run the stream over some images; give the list that its JVM has written.

    Raises
    ------
    RuntimeError
        The stream did not start, did not answer, or did not end in order.
    """
    # Of Spark's own launcher: other JVMs do not read it.
    environ = environ_of(settings) | {"SPARK_SUBMIT_OPTS": f"-XX:DumpLoadedClassList={path}"}
    stderr = path.with_suffix(".stderr")
    stream = StreamProcess(environ, stderr, ("--model", str(model)))
    try:
        if stream.wait_ready(_READY_TIMEOUT_S):
            Probe(settings, stage.images).load(_IMAGES_A_SECOND, _IMAGES / _IMAGES_A_SECOND)
        code = stream.terminate()
        # The list is complete once its JVM has ended, which is not waited for where a program ends.
        if code != 0 or stream.time_orphans(_END_TIMEOUT_S) is None:
            msg = f"the stream ended with {code}: {stderr.read_text(encoding='utf-8', errors='replace')[-2000:]}"
            raise RuntimeError(msg)
    finally:
        stream.kill()
    return path.read_text(encoding="utf-8")


def join_lists(lists: Iterable[str]) -> bytes:
    """Join lists that JVMs have written: each line once, in order, without remarks and what no jar has.

    Raises
    ------
    ValueError
        A list is not complete: its JVM was killed.
    """
    found: set[str] = set()
    for text in lists:
        if not text.endswith("\n"):
            msg = f"a list of {len(text.splitlines())} lines breaks off: {text[-80:]!r}"
            raise ValueError(msg)
        found |= {line for line in text.splitlines() if not _MADE_WHILE_RUNNING.search(line)}
    return "".join(f"{line}\n" for line in sorted(found)).encode()


if __name__ == "__main__":
    typer.run(main)
