"""Checkpoint files: safe reading, atomic writing, and what a file means.

Files hold plain types and tensors only; they are data, never code. Ours name their main entries
as the released ones do (`model_state_dict`, `optimizer_state_dict`, `iter`), and add what the
network was trained on.
"""

import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from networks.dan import DAN
from networks.fused import fuse
from utils import labels
from utils.cli import MSCELEB, existing_checkpoint, network_flags
from utils.errors import UserError, plural, writing

MSCELEB_URL = "https://drive.google.com/file/d/1u2NtY-5DVlTunfN4yxfxys5n8uh7sc3n/view?usp=sharing"
# Class order of the released files, which do not contain it; by data set and number of classes.
RELEASED_CLASSES = {
    ("RAF-DB", 7): labels.RAFDB,
    ("AffectNet", 7): labels.AFFECTNET[:7],
    ("AffectNet", 8): labels.AFFECTNET,
}
RELEASED_NAMES = {"rafdb": "RAF-DB", "affecnet": "AffectNet", "affectnet": "AffectNet"}
# Where the data of the released files lie: their part of a run's configuration.
RELEASED_DATA = {
    "RAF-DB": {"raf_path": "datasets/raf-basic"},
    "AffectNet": {"aff_path": "datasets/AffectNet"},
}

_DTYPES = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
# NumPy's numbers and arrays are data, under the names that NumPy 1 and 2 pickle them by.
NUMPY_DATA = [np.ndarray, np.dtype, *_DTYPES]
for _function in (np.float64().__reduce__()[0], np.empty(0).__reduce__()[0]):
    NUMPY_DATA += [
        (_function, f"numpy.{core}.multiarray.{_function.__name__}") for core in ("core", "_core")
    ]

# What PyTorch raises on files that are cut off, or are something else.
DAMAGE = (pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, LookupError)
DAMAGE += (struct.error,)


# ---- writing -------------------------------------------------------------------------------------


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: `path` holds either the old file or the whole new one."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # PyTorch's own, raised while handling the system's
            raise error.__context__ or error from None

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` in one step; a copy where links do not exist."""
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there if both were the same file already


# ---- reading -------------------------------------------------------------------------------------


def load(path: str | os.PathLike) -> dict[Any, Any]:
    """Read a file that `torch.save` wrote, on the CPU. Tensors, plain types and NumPy's numbers
    are accepted (`weights_only=True`, without fallback).

    Raises:
        UserError: there is no such file, or it is not a checkpoint, or it is damaged.
    """
    path = existing_checkpoint(path)
    is_zip = zipfile.is_zipfile(path)
    _refuse_other_kinds(path, is_zip)
    try:
        with torch.serialization.safe_globals(NUMPY_DATA):
            # Mapped into memory, an optimizer's state costs nothing where it is not used.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except DAMAGE as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path}: holds a Python object ({refused[1]}), which could run code; get a copy "
                "that holds weights only"
            ) from None
        raise UserError(f"{path}: not a checkpoint, or damaged; get another copy") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return dict(content)


def _refuse_other_kinds(path: Path, is_zip: bool) -> None:
    """Recognise a TorchScript file, and what a failed download leaves in place of a checkpoint."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{path}: is a TorchScript file; give the checkpoint it was made from")
        return
    with open(path, "rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path}: is a web page; open its address in a browser and download again")


def load_pretrained(model: nn.Module, name: str) -> None:
    """Initialise a network as `--pretrained` says, and print what was taken.

    Args:
        name: a file of ResNet-18 weights (a state dict, or one under `state_dict`, with or without
            `module.` before the keys), or of a trained DAN, whose heads and classifier are taken
            where they fit; or `imagenet` for torchvision's weights, or `none`.

    Raises:
        UserError: no such file, not a ResNet-18, or no network to download from.
    """
    if name == "none":
        return
    if name == "imagenet":
        url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
        try:
            content = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except OSError as error:  # urllib's errors are OSErrors
            raise UserError(f"--pretrained imagenet: cannot download {url} ({error})") from None
    elif os.path.exists(name):
        content = load(name)
    else:
        where = f"; the MS-Celeb-1M weights are at {MSCELEB_URL}" if name == MSCELEB else ""
        raise UserError(f"{name}: no such weights{where}; or start without: --pretrained none")
    if list(_state_dicts(content)):
        _load_fitting(model, _find_weights(Path(name), content), name)
        return
    state = content.get("state_dict", content)
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_backbone(state)
    except RuntimeError as error:
        raise UserError(
            f"{name}: not a ResNet-18 ({_reason(error)}); give MS-Celeb or torchvision weights, or "
            "--pretrained none"
        ) from None


def _load_fitting(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the weights of a trained DAN part by part, as far as the parts fit."""
    taken = []
    for part, module in model.named_children():
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        if own and shapes == {key: value.shape for key, value in own.items()}:
            module.load_state_dict(own)
            taken.append(part)
    if "features" not in taken:
        raise UserError(f"{name}: its backbone is another network's")
    print(f"{name}: taken from it: {', '.join(taken)}")


def _reason(error: RuntimeError) -> str:
    """load_state_dict's message on one line, without its heading."""
    return " ".join(" ".join(str(error).splitlines()[1:]).split())[:300]


# ---- trained networks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedDAN:
    """A trained network and what it was trained on."""

    path: Path
    state_dict: dict[str, Tensor]
    class_names: tuple[str, ...]
    network_flags: dict[str, Any]  # DAN's arguments besides num_class
    dataset: str
    image_size: int  # side in pixels of the images that it was trained on
    toy: bool  # trained on drawn faces, useless on photos
    config: dict[str, Any]  # flags of the run; for released files those that choose the data
    epoch: int | None

    @property
    def title(self) -> str:
        return labels.title(self.dataset, toy=self.toy)

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    @property
    def num_head(self) -> int:
        return self.network_flags["num_head"]

    @property
    def kind(self) -> str:
        """What the network is called."""
        return f"DAN with {plural(self.num_head, 'head')}" if self.num_head else "ResNet-18"

    def network(self, device: torch.device | str = "cpu") -> DAN:
        """Build the network in evaluation mode.

        Raises:
            UserError: weights are missing, unknown or of another shape; the message names them.
        """
        with torch.device("meta"):  # without drawing initial weights
            model = DAN(num_class=self.num_class, **self.network_flags)
        try:
            model.load_state_dict(self.state_dict, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{self.path}: its weights are not those of a {self.kind}: {_reason(error)}"
            ) from None
        return model.to(device, memory_format=torch.channels_last).eval()

    def inference_network(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> nn.Module:
        """Build a faster equal form of the network, or the network itself if there is none.

        Args:
            dtype: of the convolutions, float32 if None.
        """
        model = self.network(device)
        fused = fuse(model, image_size=self.image_size, dtype=dtype)
        if fused is None:
            print("note: networks/dan.py has changed; its layers are not merged for inference")
        return model.requires_grad_(False) if fused is None else fused

    def check_predictions(self, probabilities: Tensor) -> None:
        """Raise a UserError if the network predicts NaN."""
        if probabilities.isnan().any():
            raise UserError(
                f"{self.path}: predicts NaN: it has diverged, or its BatchNorm statistics have not "
                "converged; train it longer, or with a lower --lr"
            )


def read_trained(path: str | os.PathLike, *, dataset: str | None = None) -> TrainedDAN:
    """Read a checkpoint of ours, a released one, or any file with the state dict of a DAN.

    Args:
        dataset: "RAF-DB" or "AffectNet", for files of 7 classes that do not contain it and whose
            names do not tell. It determines the class order.

    Raises:
        UserError: no such file, not a DAN, or an unknown class order.
    """
    path, content = Path(path), load(path)
    state = _find_weights(path, content)
    config = content.get("config", {})
    if "class_names" in content:
        class_names, own_dataset = tuple(content["class_names"]), content["dataset"]
        if dataset not in (None, own_dataset):
            raise UserError(f"{path}: trained on {own_dataset}, but --dataset {dataset} was given")
    else:
        num_class = len(state["fc.weight"])
        own_dataset = _released_dataset(path, num_class, dataset)
        class_names = RELEASED_CLASSES[own_dataset, num_class]
        config = {**RELEASED_DATA[own_dataset], "num_class": num_class, **config}
    heads = {key.split(".")[0] for key in state if key.startswith("cat_head")}
    return TrainedDAN(
        path=path,
        state_dict={k: v.float() if v.is_floating_point() else v for k, v in state.items()},
        class_names=class_names,
        network_flags={**network_flags(config), "num_head": len(heads)},
        dataset=own_dataset,
        image_size=config.get("image_size", 224),  # the released files do not say it
        toy=content.get("toy", config.get("toy", False)),
        config=config,
        epoch=content.get("iter"),
    )


def _find_weights(path: Path, content: Mapping) -> dict[str, Tensor]:
    """DAN's state dict, whatever the key that holds it and the prefix that a framework added."""
    if "model_state_dict" in content:
        content = {"model_state_dict": content["model_state_dict"]}
    found = list(_state_dicts(content))
    if not found:
        raise UserError(
            f"{path}: not a trained network (no fc.weight and features); "
            "give a best.pth of a run or a released file"
        )
    if len(found) > 1:
        keys = ", ".join(key for key, _ in found)
        raise UserError(f"{path}: holds several networks ({keys}); save one of them by itself")
    return found[0][1]


def _state_dicts(content: Mapping, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All state dicts of a DAN in a checkpoint with the key that holds them, without prefixes."""
    keys = [key for key in content if isinstance(key, str)]
    for key in keys:
        if key.endswith("fc.weight"):
            prefix = key.removesuffix("fc.weight")
            if any(other.startswith(f"{prefix}features.") for other in keys):
                own = (other for other in keys if other.startswith(prefix))
                yield name, {other.removeprefix(prefix): content[other] for other in own}
    for key in keys:
        if isinstance(content[key], Mapping):
            yield from _state_dicts(content[key], key)


def _released_dataset(path: Path, num_class: int, given: str | None) -> str:
    """The data set of a file that does not contain it, from --dataset or from the file's name."""
    starts = (start for start in RELEASED_NAMES if path.name.lower().startswith(start))
    named = RELEASED_NAMES.get(next(starts, ""))
    if given and named not in (None, given):
        raise UserError(f"{path}: named after {named}, but --dataset {given} was given")
    dataset = given or named or ("AffectNet" if num_class == 8 else None)  # RAF-DB has seven
    if dataset is None:
        raise UserError(
            f"{path}: the order of its {num_class} classes is unknown: neither the file nor its "
            "name (rafdb*, affecnet7*) says which data set it is for; give it with --dataset"
        )
    if (dataset, num_class) not in RELEASED_CLASSES:
        raise UserError(f"{path}: has {num_class} classes, which {dataset} does not")
    return dataset
