"""The engines of this process: each network is compiled once."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from schemas.errors import ModelLoadError
from sparkdl.engine.base import Engine
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.network.base import Network

# Two, because a promoted model replaces another one while micro-batches of both are in flight; more would keep
# hundreds of MB of dead networks in a long-lived worker.
_MAX_ENGINES = 2


def start_engine(network: Network, *, n_threads: int = 1, device: str = "CPU") -> Engine:
    """Start what runs a network.

    Parameters
    ----------
    network, n_threads, device
        See `OpenVinoEngine`; TensorFlow, the reference, runs on the CPU only.

    Returns
    -------
    Engine
        A new one.

    Raises
    ------
    SettingsError, ModelLoadError
        See `OpenVinoEngine`.
    DependencyError
        The network is TensorFlow's, which is not installed.
    """
    if network.engine == "openvino":
        return OpenVinoEngine(network, n_threads=n_threads, device=device)
    from sparkdl.engine.tensorflow import TensorFlowEngine  # noqa: PLC0415 - only the reference needs it

    return TensorFlowEngine(network, n_threads=n_threads)


def find_engine(
    sha256: str, precision: str, load: Callable[[], Network], *, n_threads: int = 1, device: str = "CPU"
) -> Engine:
    """Return this process's engine for a network, starting one only where there is none yet.

    Spark calls this for every task. A network is up to 500 MB: reading it each time, only to find that its engine is
    there already, cost a third of a second of every task with InceptionV3. The most recently used two engines stay.

    Parameters
    ----------
    sha256, precision : str
        Of the network.
    load : callable
        Gives the network; called only where there is no engine yet.
    n_threads, device
        See `OpenVinoEngine`.

    Returns
    -------
    Engine
        The same object for the same arguments, from any thread.

    Raises
    ------
    SettingsError, ModelLoadError, DependencyError
        See `start_engine`; also when this process was forked from one that had already started an engine.
    """
    key = (sha256, precision, n_threads, device)
    _cache.check_process()
    with _cache.lock:
        engine = _cache.engines.pop(key, None) or start_engine(load(), n_threads=n_threads, device=device)
        _cache.engines[key] = engine  # last in = most recently used
        while len(_cache.engines) > _MAX_ENGINES:
            _cache.engines.popitem(last=False)
    return engine


class _Cache:
    """The engines of this process, oldest use first, and the lock that makes one thread compile and others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engines: OrderedDict[tuple[str, str, int, str], Engine] = OrderedDict()
        self.pid = os.getpid()

    def check_process(self) -> None:
        """Refuse to run in a child forked after an engine was loaded: OpenVINO's threads are not there, it would hang.

        Spark's workers are safe, they are forked from a daemon that loads nothing.
        """
        if self.engines and self.pid != os.getpid():
            msg = f"process {os.getpid()} was forked from {self.pid} after it loaded a network: start it by spawn"
            raise ModelLoadError(msg)
        self.pid = os.getpid()


_cache = _Cache()
