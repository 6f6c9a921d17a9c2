"""What a command needs of the extra ``train``, asked for before the work begins."""

from importlib.util import find_spec

from schemas.errors import DependencyError


def require_train_extra(what: str, *modules: str) -> None:
    """Refuse to begin where a package is missing.

    Parameters
    ----------
    what : str
        That needs it, e.g. ``"retraining"``.
    *modules : str
        Names by which the packages are imported.

    Raises
    ------
    DependencyError
        One of them cannot be found; the message says what to install.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        msg = f"{what} needs {', '.join(missing)}: pip install 'xray-stream[train]'"
        raise DependencyError(msg)
