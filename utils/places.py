"""Where the files of runs and evaluations lie. Free of PyTorch: a wrong path is told at once."""

import os
import shlex
from pathlib import Path

from utils.errors import UserError


def default_folder(run_name: str, *, toy: bool = False) -> Path:
    """Where a run's results go that names no folder."""
    return Path("models") / f"{'toy-' if toy else ''}{run_name}"


def evaluation_folder(checkpoint: Path) -> Path:
    """Where an evaluation's results go that names no folder."""
    return checkpoint.with_name(f"{checkpoint.stem}-evaluation")


def checkpoint_file(path: str | os.PathLike) -> Path:
    """A file that a flag names, found to be there before PyTorch is imported.

    Raises:
        UserError: it is not, or is a folder.
    """
    if "://" in str(path):
        raise UserError(f"{path}: is an address; download the file, and give its path")
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file, such as the best.pth of a run")
    if os.path.isfile(path):
        return path
    last = path.with_name("last.pth")
    if path.name == "best.pth" and os.path.isfile(last):
        raise UserError(
            f"{path}: not there yet, its run was interrupted in the first epoch; use {last}, "
            f"or go on with the run by --resume {shlex.quote(str(last))}"
        )
    raise UserError(f"{path}: no such checkpoint; check the path")
