"""Going on with a run: what it goes on from, whose flags hold, and what is never overwritten."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from utils import checkpoint
from utils.cli import NOT_OF_THE_TRAINING, is_plain
from utils.distributed import World
from utils.errors import UserError
from utils.places import default_folder, evaluation_folder
from utils.trained_on import check_recipe

# Where a run goes on may be another machine and another folder.
OF_THE_PLACE = ("device", "output_dir")
# Flags that may be given anew, as they do not decide on a run's numbers; all others may not.
# `..._path` may change too: the data that lie there are compared themselves.
FREE = ("epochs", "workers", "skip_bad_images", "compile", "deterministic")
# By these a folder is known to hold a run.
RUN_FILES = ("last.pth", "best.pth", "metrics.csv")
RESULTS = (*RUN_FILES, "curves.png", "confusion_matrix.png", "bad_images.csv")
EVALUATED = (
    "metrics.json",
    "predictions.csv",
    "tsne.png",
    "confusion_matrix.png",
    "bad_images.csv",
)
# Seconds for which a run that was ended may still hold its folder: it saves first, and after a
# SIGKILL its workers take five seconds to notice.
PATIENCE = 10


def take_run_flags(args: argparse.Namespace, world: World) -> None:
    """Set the flags that were not given to those of the run that --resume goes on with, so that
    its data are found. Where the recipe's own flags differ from those of the run in the default
    folder, the data that they choose may lead to another one; `find` looks there later.

    Raises:
        UserError: there is no such run, or it has other flags than those that were given.
    """
    if isinstance(args.resume, str):
        path = _named(args.resume)
        args.output_dir = args.output_dir or str(path.parent)
        _adopt(args, path, _load(path))
    elif args.resume:
        path = Path(args.output_dir or default_folder(args.run_name, toy=args.toy)) / "last.pth"
        elsewhere = _folder_follows_from_data(args)
        if elsewhere:
            content = _load_if_own_flags_agree(path, args)
        else:
            content = _load(path) if os.path.isfile(path) else None
        if content is not None:
            args.output_dir = str(path.parent)
            _adopt(args, path, content)
        elif not elsewhere:
            _say_that_one_starts(path.parent, world)


def find(args: argparse.Namespace, folder: Path, world: World) -> Path | None:
    """The checkpoint to go on from, None for a run that starts.

    Raises:
        UserError: there is no such checkpoint, or the folder holds a run that would be lost.
    """
    last, path = folder / "last.pth", None
    if isinstance(args.resume, str):
        path = _named(args.resume)
    elif args.resume and os.path.isfile(last):
        path = last
    elif args.resume and _folder_follows_from_data(args):
        _say_that_one_starts(folder, world)
    held = [name for name in RUN_FILES if os.path.exists(folder / name)]
    if not held or args.overwrite or (path is not None and last.exists() and path.samefile(last)):
        return path
    go_on = f"go on with it by --resume {shlex.quote(str(last))}, " if last.exists() else ""
    raise UserError(
        f"{folder}: holds a run already ({', '.join(held)}); {go_on}"
        "start anew with --overwrite, or give another --output_dir"
    )


def read(path: Path, args: argparse.Namespace, data_fingerprint: str) -> dict[str, Any]:
    """The content of a checkpoint, once its flags and its data are found to be the same.

    Raises:
        UserError: they are not, or it is no checkpoint of a run.
    """
    content = _load(path)
    read_by = {name: getattr(args, name) for name in args.own}
    _adopt(args, path, content)
    if content.get("data_fingerprint") != data_fingerprint:
        differing = [
            f"--{name} {_words(getattr(args, name))}"
            for name, value in sorted(read_by.items())
            if getattr(args, name) != value
        ]
        if differing:
            raise UserError(
                f"{path}: the run has {', '.join(differing)}; go on with it by "
                f"--resume {shlex.quote(str(path))}"
            )
        raise UserError(
            f"{path}: the run was trained on other images or labels than those that are there now; "
            "put the data back as they were, or start a new run with another --output_dir"
        )
    return content


def lock_of(folder: Path) -> FileLock:
    """The lock by which a run keeps others out of its folder; one and the same in a process."""
    return FileLock(folder / ".lock", is_singleton=True)


def hold(lock: FileLock, folder: Path) -> None:
    """Keep other runs out of a folder that is there, for as long as the lock object lives.

    Raises:
        UserError: another run is in it.
    """
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder}: another run is there; waiting for its end", file=sys.stderr)
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"{folder}: another run is still writing there; wait until it has ended, or start a "
            "run of its own with another --output_dir"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        print(
            f"note: {folder}: cannot be locked ({reason}); start no second run there",
            file=sys.stderr,
        )


def clear(folder: Path) -> None:
    """Remove the results of a run that is overwritten, and of its evaluations."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    for checkpoint_name in ("best.pth", "last.pth"):
        evaluated = evaluation_folder(folder / checkpoint_name)
        for name in EVALUATED:
            (evaluated / name).unlink(missing_ok=True)
        if evaluated.is_dir() and not any(evaluated.iterdir()):
            evaluated.rmdir()
    clear_temporary(folder)


def clear_temporary(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def _is_free(name: str) -> bool:
    return name in FREE or name.endswith("_path")


def _folder_follows_from_data(args: argparse.Namespace) -> bool:
    """Whether a bare --resume may lead to a folder that is not known before the data are read."""
    return args.resume is True and "output_dir" not in args.given and bool(args.own & args.given)


def _load_if_own_flags_agree(path: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """A run's checkpoint, where it has the recipe's own flags that were given. One that is not
    there or cannot be read is none: if it is the one that is meant, `read` says what is wrong."""
    try:
        content = checkpoint.load(path)
    except UserError:
        return None
    config, given = content.get("config"), args.own & args.given
    agrees = isinstance(config, Mapping) and all(config.get(n) == getattr(args, n) for n in given)
    return content if agrees else None


def _say_that_one_starts(folder: Path, world: World) -> None:
    world.say(f"{folder}: no run to go on with, so one starts; --resume FILE names another")


def _words(value: Any) -> str:
    """A flag's value as it is given."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _named(resume: str) -> Path:
    path = Path(resume)
    path = path / "last.pth" if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise UserError(f"--resume {resume}: no such checkpoint; check the path")
    return path


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint to go on from; where a run's last one is damaged, the error says what is left.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return checkpoint.load(path)
    except UserError as error:
        if path.name != "last.pth":
            raise
        best, best_epoch = path.with_name("best.pth"), ""
        if best.is_file() and not best.samefile(path):
            best_epoch = (
                f" go on from the best epoch by --resume {shlex.quote(str(best))} with another "
                "--output_dir,"
            )
        raise UserError(
            f"{error},{best_epoch} or start anew with --overwrite in place of --resume"
        ) from None


def _adopt(args: argparse.Namespace, path: Path, content: Mapping[str, Any]) -> None:
    config = content.get("config")
    if not isinstance(config, Mapping) or not config.keys() >= {"batch_size", "epochs", "lr"}:
        raise UserError(
            f"{path}: holds no configuration of a run, so none can go on from it; "
            "give a last.pth, or start anew"
        )
    check_recipe(args, config, path, "go on with it by python {} --resume")
    # A flag that is newer than the run decided nothing in it.
    differing = [
        f"--{name} {_words(getattr(args, name))} (it has none)"
        for name in sorted(args.given - config.keys())
        if not (name in OF_THE_PLACE or name in NOT_OF_THE_TRAINING or _is_free(name))
    ]
    for name, own in config.items():
        if name in OF_THE_PLACE or not hasattr(args, name):
            continue
        asked = getattr(args, name)
        if name not in args.given or (name, asked) == ("precision", "auto"):
            if not is_plain(own):
                raise UserError(f"{path}: its configuration is damaged ({name} is {own!r})")
            setattr(args, name, own)
        elif asked != own and not _is_free(name) or (name == "epochs" and asked < own):
            differing.append(f"--{name} {_words(asked)} (it has {_words(own)})")
    if differing:
        raise UserError(
            f"{path}: the run cannot go on with another recipe: {', '.join(differing)}; "
            "leave that out (only --epochs may grow), or start a new run with another --output_dir"
        )
