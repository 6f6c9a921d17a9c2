"""Points of the archive's and the gateway's work at which their processes can be halted, to be killed or frozen there.

See ``halting/sitecustomize.py``, which is on those processes' path and nowhere else.
"""

import os
import runpy
from collections.abc import Mapping
from pathlib import Path

_ON_THE_PATH = Path(__file__).parent / "halting"

_KNOWN = runpy.run_path(str(_ON_THE_PATH / "sitecustomize.py"))
_OF_ARCHIVE: tuple[str, ...] = tuple(_KNOWN["OF_ARCHIVE"])
AT_START = ("claim-begun", "table-made", "claimed", "places-taken-over", "claim-done")
"""Those of the archive's claim; its others are in its work."""
AT_WORK = tuple(point for point in _OF_ARCHIVE if point not in AT_START)
OF_GATEWAY: tuple[str, ...] = tuple(_KNOWN["OF_GATEWAY"])


class Halts:
    """Asks for halts, through files.

    Parameters
    ----------
    folder : Path
        Is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def environ(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Give what such a process, or the stream that starts an archive's, needs in its environment."""
        path = os.pathsep.join(filter(None, [str(_ON_THE_PATH), inherited.get("PYTHONPATH")]))
        return {"CHAOS_HALTS": str(self._folder), "PYTHONPATH": path}

    def ask_for(self, point: str) -> None:
        """Halt the process where it reaches this point the next time."""
        for path in self._folder.glob(f"{point}.*"):
            path.unlink()
        (self._folder / point).touch()

    def withdraw(self, point: str) -> bool:
        """Ask for it no more; False where a process stands there already."""
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def has_halted(self, point: str) -> bool:
        """Tell whether it stands there."""
        return (self._folder / f"{point}.halted").exists()

    def let_go_on(self, point: str) -> None:
        """Let it go on from there."""
        (self._folder / f"{point}.go-on").touch()
