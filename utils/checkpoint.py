"""Checkpoints: safe reading, atomic writing, and the released files' formats.

Ours hold plain types and tensors only and name their main entries as the released ones do
(`model_state_dict`, `optimizer_state_dict`, `iter`); files are data, never code.
"""

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from utils import labels
from utils.errors import UserError

# Class order of the released files, which say nothing of it themselves; by data set and count.
RELEASED_CLASSES = {
    ("RAF-DB", 7): labels.RAFDB,
    ("AffectNet", 7): labels.AFFECTNET[:7],
    ("AffectNet", 8): labels.AFFECTNET,
}
RELEASED_NAMES = {"rafdb": "RAF-DB", "affecnet": "AffectNet", "affectnet": "AffectNet"}
RELEASED_IMAGE_SIZE = 224


@dataclass(frozen=True)
class TrainedModel:
    """What it takes to use a trained DAN."""

    path: Path
    state_dict: dict[str, Tensor]  # as DAN's own, float32
    class_names: tuple[str, ...]
    num_head: int
    dataset: str
    image_size: int  # pixels a side of the images that it was trained on
    toy: bool  # trained on drawn faces, of no use on photos
    config: dict[str, Any]  # the run's flags, empty for released files
    epoch: int | None

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    def load_into(self, model: torch.nn.Module) -> None:
        """Put the weights into a DAN of as many classes and heads.

        Raises:
            UserError: keys are missing, unknown or misshapen; the message names them.
        """
        try:
            model.load_state_dict(self.state_dict)
        except RuntimeError as error:
            reasons = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
            reason = " ".join("; ".join(reasons).split())
            reason = reason if len(reason) <= 300 else f"{reason[:300]}..."
            raise UserError(f"{self.path}: its weights are not DAN's: {reason}") from None


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old file or the whole new one."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it onto `path`.

    The temporary name is always the same, so what a killed run left behind is overwritten.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "write failed, is the disk full?"
        raise UserError(f"{path}: cannot be written ({reason}); the old file is intact") from None


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` in one step; a copy where links are unknown."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file that `torch.save` wrote, on the CPU, refusing anything but tensors and plain
    types (`weights_only=True`, without fallback).

    Raises:
        UserError: there is no such file, or it is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; check the path")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        # Mapped, a file's optimizer state costs nothing where only the weights are used.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if start.lstrip()[:1] == b"<":
            hint = "it is a web page, so the download failed: download the file again"
        elif "Unsupported global" in str(error) or "weights_only" in str(error).lower():
            hint = "it holds Python objects, which could run code, or is damaged: get another copy"
        else:
            hint = "it is damaged or of another format: get another copy"
        raise UserError(f"{path}: not a checkpoint that can be read; {hint}") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{path}: not a checkpoint that can be read ({reason}); "
            "it is cut short or of another format: get another copy"
        ) from None
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind} where a dict of weights was expected")
    return dict(content)


def read_trained(path: str | os.PathLike, *, dataset: str | None = None) -> TrainedModel:
    """Read a checkpoint of ours or a released one, or a bare state dict of DAN.

    Args:
        dataset: "RAF-DB" or "AffectNet", for files of 7 classes that do not say it themselves,
            neither inside nor by their name. The class order follows from it.

    Raises:
        UserError: not a DAN, or its class order is unknown.
    """
    path = Path(path)
    content = load(path)
    state = content.get("model_state_dict", content)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: its model_state_dict is no dict of weights")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    heads = {match[1] for key in state if (match := re.match(r"cat_head(\d+)\.", key))}
    if "fc.weight" not in state or state["fc.weight"].ndim != 2 or not heads:
        raise UserError(
            f"{path}: not a trained DAN (no fc.weight or no cat_head0); "
            "give a best.pth of a run or a released file"
        )
    state = {key: v.float() if v.is_floating_point() else v for key, v in state.items()}
    num_class = state["fc.weight"].shape[0]
    if "class_names" in content:
        class_names, own_dataset = tuple(content["class_names"]), content["dataset"]
        if len(class_names) != num_class:
            raise UserError(f"{path}: names {len(class_names)} classes, but has {num_class}")
        if dataset is not None and dataset != own_dataset:
            raise UserError(f"{path}: trained on {own_dataset}, but {dataset} was asked for")
    else:
        own_dataset = _released_dataset(path, num_class, dataset)
        class_names = RELEASED_CLASSES[own_dataset, num_class]
    config = dict(content.get("config", {}))
    return TrainedModel(
        path=path,
        state_dict=state,
        class_names=class_names,
        num_head=len(heads),
        dataset=own_dataset,
        image_size=config.get("image_size", RELEASED_IMAGE_SIZE),
        toy=config.get("toy", False),
        config=config,
        epoch=content.get("iter"),
    )


def _released_dataset(path: Path, num_class: int, asked: str | None) -> str:
    """The data set of a file that does not name it, from what was asked, else the file's name."""
    named = [name for start, name in RELEASED_NAMES.items() if path.name.lower().startswith(start)]
    if asked and named and asked != named[0]:
        raise UserError(f"{path}: by its name trained on {named[0]}, but {asked} was asked for")
    dataset = asked or (named[0] if named else None)
    if dataset is None and num_class == 8:
        dataset = "AffectNet"  # RAF-DB has seven
    if dataset is None:
        raise UserError(
            f"{path}: {num_class} classes in an unknown order, since neither the file nor its "
            "name (rafdb*, affecnet7*) says which data set; give it with --dataset"
        )
    if (dataset, num_class) not in RELEASED_CLASSES:
        raise UserError(f"{path}: has {num_class} classes, which {dataset} does not")
    return dataset
