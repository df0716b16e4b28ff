"""What a direction is to this room: a notebook of its name, and `llamax.<direction>.config.CONFIG`."""

import importlib
from pathlib import Path

from llamax import files
from llamax.config import Config
from llamax.errors import RunError


def directions() -> list[str]:
    """Names of the directions that have a notebook, in the order of their numbers."""
    return [path.stem.split("_", 1)[1] for path in _notebooks()]


def notebook_of(direction: str) -> Path:
    """Path of the notebook `NN_<direction>.ipynb`. Raises: RunError that lists the directions."""
    for path in _notebooks():
        if path.stem.split("_", 1)[1] == direction:
            return path
    raise RunError(f"no direction {direction!r}: there are {', '.join(directions()) or 'none yet'}")


def config_class(direction: str) -> type[Config]:
    """The direction's config: fields `profile`, `seed`; methods `datasets()`, `models()` for the run key.

    Raises: RunError when the direction has no `config.py`, or one without `CONFIG`.
    """
    name = f"llamax.{direction}.config"
    if not direction.isidentifier():
        raise RunError(f"no direction {direction!r}: there are {', '.join(directions()) or 'none yet'}")
    try:
        return importlib.import_module(name).CONFIG
    except ModuleNotFoundError as error:
        if error.name not in (name, f"llamax.{direction}"):
            raise
        raise RunError(f"no direction {direction!r}: there are {', '.join(directions()) or 'none yet'}") from None
    except AttributeError:
        raise RunError(f"{name} does not name its config class as CONFIG") from None


def _notebooks() -> list[Path]:
    return sorted((files.repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
