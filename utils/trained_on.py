"""The data set that a network was trained on, found again by what its checkpoint says."""

import argparse
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.face_data import FaceData
from utils.readers import read_affectnet, read_rafdb
from utils.trained import TrainedModel


class Recipe(NamedTuple):
    """A training script, and how its data are read."""

    script: str
    read: Callable[[Mapping[str, Any]], FaceData]  # the flags of a run -> its data set


# By the flag that says where a recipe's data lie, which a run's configuration keeps.
RECIPES = {
    "raf_path": Recipe("rafdb.py", lambda flags: read_rafdb(flags["raf_path"])),
    "aff_path": Recipe(
        "affectnet.py",
        lambda flags: read_affectnet(flags["aff_path"], num_class=flags.get("num_class")),
    ),
}
# Where the data of the released files lies, which carry no configuration to say so.
RELEASED_DATA = {
    "RAF-DB": {"raf_path": "datasets/raf-basic"},
    "AffectNet": {"aff_path": "datasets/AffectNet"},
}


def data_root(trained: TrainedModel) -> str | None:
    """Where its data set lies, as far as the checkpoint says."""
    config = _config(trained)
    flag = _flag(config)
    return None if flag is None else config[flag]


def read_data(trained: TrainedModel) -> FaceData | None:
    """Its data set; None where the checkpoint does not say which.

    Raises:
        UserError: it is not there or not whole, or has other classes now.
    """
    config = _config(trained)
    flag = _flag(config)
    if flag is None:
        return None
    if not os.path.isdir(config[flag]):
        remedy = "put them there, or a link to them,"
        if trained.toy:
            command = f"python {RECIPES[flag].script} --evaluate --checkpoint"
            remedy = f"draw them by {command} {shlex.quote(str(trained.path))}"
        raise UserError(
            f"{config[flag]}: no such folder, but {trained.path} was trained on the data there; "
            f"{remedy} or name --images"
        )
    data = RECIPES[flag].read(config)
    if data.class_names != trained.class_names:
        raise UserError(
            f"{trained.path}: trained on {', '.join(trained.class_names)}, but {data.val.root} "
            f"now has {', '.join(data.class_names)}; name --images"
        )
    return data


def take_data_flags(args: argparse.Namespace, trained: TrainedModel) -> None:
    """Set a recipe's own flags, by which it finds its data, to those of the training where they
    were not given.

    Raises:
        UserError: the network was trained by another recipe.
    """
    config = _config(trained)
    flag = _flag(config)
    if flag is None:
        return
    check_recipe(args, config, trained.path, "evaluate it with python {} --evaluate --checkpoint")
    taken = args.own - args.given
    if "toy" in args.given:
        taken -= {flag}
    elif flag in taken:
        args.toy = trained.toy
    for name in taken & config.keys():
        setattr(args, name, config[name])


def check_recipe(
    args: argparse.Namespace, config: Mapping[str, Any], path: Path, advice: str
) -> None:
    """Whether a run's configuration is of the recipe whose flags these are.

    Args:
        path: its checkpoint.
        advice: a command of that script to end the message with, `{}` for the script.

    Raises:
        UserError: it is of another one.
    """
    flag = _flag(config)
    if flag is not None and not hasattr(args, flag):
        script = RECIPES[flag].script
        command = f"{advice.format(script)} {shlex.quote(str(path))}"
        raise UserError(f"{path}: trained by {script}; {command}")


def _flag(config: Mapping[str, Any]) -> str | None:
    return next((flag for flag in RECIPES if isinstance(config.get(flag), str)), None)


def _config(trained: TrainedModel) -> dict[str, Any]:
    if trained.config:
        return trained.config
    return {**RELEASED_DATA.get(trained.dataset, {}), "num_class": trained.num_class}
