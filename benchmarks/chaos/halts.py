"""Points of the archive's work at which its process can be halted, to be killed or frozen there.

See ``halting/sitecustomize.py``, which is on that process's path and nowhere else.
"""

import os
import runpy
from collections.abc import Mapping
from pathlib import Path

_ON_THE_PATH = Path(__file__).parent / "halting"

POINTS: tuple[str, ...] = tuple(runpy.run_path(str(_ON_THE_PATH / "sitecustomize.py"))["POINTS"])
AT_START = ("claim-begun", "table-made", "claimed", "places-taken-over", "claim-done")
"""Those of the claim; the others are in its work."""
AT_WORK = tuple(point for point in POINTS if point not in AT_START)


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
        """Give what an archive's process, or the stream that starts it, needs in its environment."""
        path = os.pathsep.join(filter(None, [str(_ON_THE_PATH), inherited.get("PYTHONPATH")]))
        return {"CHAOS_HALTS": str(self._folder), "PYTHONPATH": path}

    def ask_for(self, point: str) -> None:
        """Halt the process where it reaches this point the next time."""
        for path in self._folder.glob(f"{point}.*"):
            path.unlink()
        (self._folder / point).touch()

    def has_halted(self, point: str) -> bool:
        """Tell whether it stands there."""
        return (self._folder / f"{point}.halted").exists()

    def let_go_on(self, point: str) -> None:
        """Let it go on from there."""
        (self._folder / f"{point}.go-on").touch()
