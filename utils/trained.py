"""What a trained DAN's checkpoint means: ours, a released file, or a bare state dict.

Ours name their main entries as the released ones do (`model_state_dict`, `optimizer_state_dict`,
`iter`), and say besides what they were trained on. Nothing in a file is trusted.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import labels
from utils.checkpoint import load
from utils.cli import IMAGE_SIZES, is_plain
from utils.errors import UserError

# Class order of the released files, which say nothing of it themselves; by data set and count.
RELEASED_CLASSES = {
    ("RAF-DB", 7): labels.RAFDB,
    ("AffectNet", 7): labels.AFFECTNET[:7],
    ("AffectNet", 8): labels.AFFECTNET,
}
RELEASED_NAMES = {"rafdb": "RAF-DB", "affecnet": "AffectNet", "affectnet": "AffectNet"}
RELEASED_IMAGE_SIZE = 224

_PREFIXES = re.compile(r"(module\.|_orig_mod\.)+")  # of data-parallel and of compiled networks
_HEAD = re.compile(r"cat_head(\d{1,4})\.", re.ASCII)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class TrainedModel:
    """What it takes to use a trained DAN."""

    path: Path
    state_dict: dict[str, Tensor]  # as DAN's own, float32, all finite
    class_names: tuple[str, ...]
    num_head: int
    dataset: str
    image_size: int  # pixels a side of the images that it was trained on
    toy: bool  # trained on drawn faces, of no use on photos
    config: dict[str, Any]  # the run's flags, empty for released files
    epoch: int | None

    @property
    def title(self) -> str:
        return labels.title(self.dataset, toy=self.toy)

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

    def check_answers(self, probabilities: Tensor) -> None:
        """Whether its answers are numbers, as finite weights alone do not make them.

        Raises:
            UserError: they are not.
        """
        if probabilities.isnan().any():
            raise UserError(
                f"{self.path}: answers with NaN in place of probabilities, since it has diverged "
                "or its BatchNorm statistics are not there yet; train it longer, or with a lower "
                "--lr"
            )


def read_trained(path: str | os.PathLike, *, dataset: str | None = None) -> TrainedModel:
    """Read a checkpoint of ours or a released one, or a bare state dict of DAN.

    Args:
        dataset: "RAF-DB" or "AffectNet", for files of 7 classes that do not say it themselves,
            neither inside nor by their name. The class order follows from it.

    Raises:
        UserError: no such file, not a DAN, weights that are not finite numbers, an unknown class
            order, or entries of other types than ours.
    """
    path, content = Path(path), load(path)
    state = _read_weights(path, content)
    num_class = state["fc.weight"].shape[0]
    if "class_names" in content:
        own_dataset, class_names = _read_classes(path, content, num_class, dataset)
    else:
        own_dataset = _released_dataset(path, num_class, dataset)
        class_names = RELEASED_CLASSES[own_dataset, num_class]
    config = _read_config(path, content, num_class)
    epoch = content.get("iter")
    return TrainedModel(
        path=path,
        state_dict=state,
        class_names=class_names,
        num_head=len(_head_numbers(state)),
        dataset=own_dataset,
        image_size=config.get("image_size", RELEASED_IMAGE_SIZE),
        toy=config.get("toy", False),
        config=config,
        epoch=epoch if type(epoch) is int else None,
    )


def _read_weights(path: Path, content: Mapping) -> dict[str, Tensor]:
    """The state dict in DAN's own names and in float32."""
    state = content.get("model_state_dict", content)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: its model_state_dict is no dict of weights")
    state = {_PREFIXES.sub("", str(key), count=1): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    numbers = _head_numbers(state)
    if "fc.weight" not in state or state["fc.weight"].ndim != 2 or not numbers:
        raise UserError(
            f"{path}: not a trained DAN (no fc.weight or no cat_head0); "
            "give a best.pth of a run or a released file"
        )
    if numbers != list(range(len(numbers))):
        found = ", ".join(map(str, numbers[:10]))
        raise UserError(
            f"{path}: its heads are numbered {found}, not from 0 on without a gap; get another copy"
        )
    for key, value in state.items():
        counts = key.endswith("num_batches_tracked")  # the only integers
        if not _is_plain(value) or not (counts or value.dtype in _FLOATS):
            kind = f"{value.dtype}, {value.layout}".replace("torch.", "")
            raise UserError(f"{path}: {key[:80]} is not plain floats ({kind}); get another copy")
        if value.is_floating_point():
            state[key] = value.float()
            if not state[key].isfinite().all():
                raise UserError(
                    f"{path}: {key[:80]} holds NaN or infinite values; give an earlier checkpoint"
                )
    return state


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is numbers in memory, no more of them than the file holds."""
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return False
    if value.device.type != "cpu":  # "meta": a shape without numbers
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _head_numbers(state: Mapping[str, Tensor]) -> list[int]:
    return sorted({int(match[1]) for key in state if (match := _HEAD.match(key))})


def _read_classes(
    path: Path, content: Mapping, num_class: int, asked: str | None
) -> tuple[str, tuple[str, ...]]:
    """Data set and class names of a file that says them."""
    names, dataset = content["class_names"], content.get("dataset")
    if not isinstance(names, list | tuple) or not names or not all(map(labels.is_name, names)):
        raise UserError(f"{path}: its class_names are no list of names; get another copy")
    if not labels.is_name(dataset):
        raise UserError(f"{path}: its dataset is no name; get another copy")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: names a class twice ({', '.join(names)}); get another copy")
    if len(names) != num_class:
        raise UserError(f"{path}: names {len(names)} classes, but has {num_class}")
    if asked is not None and asked != dataset:
        raise UserError(f"{path}: trained on {dataset}, but {asked} was asked for")
    return dataset, tuple(names)


def _read_config(path: Path, content: Mapping, num_class: int) -> dict[str, Any]:
    """The run's flags, plain values; those that anything here looks at have their types."""
    config = content.get("config", {})
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{path}: its config is no dict of flags; get another copy")
    size = config.get("image_size", RELEASED_IMAGE_SIZE)
    well_formed = {
        **{key: is_plain(value) for key, value in config.items()},
        "image_size": type(size) is int and size in IMAGE_SIZES,
        "toy": isinstance(config.get("toy", False), bool),
        "num_class": config.get("num_class") in (None, num_class),
    }
    for key, is_well_formed in well_formed.items():
        if not is_well_formed:
            shown = repr(config[key])[:80]
            raise UserError(f"{path}: its config says {key[:80]} {shown}; get another copy")
    return dict(config)


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
