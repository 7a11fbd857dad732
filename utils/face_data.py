"""A data set in memory: which files, what their labels mean, and what is wrong with it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from utils import labels
from utils.errors import UserError
from utils.toy import MARKER


@dataclass(frozen=True)
class Split:
    """Files and labels as two arrays: 300,000 images are a few MB, which worker processes share
    (a list of paths would be copied into each, as counting references writes to it)."""

    root: Path
    names: np.ndarray  # (N,) bytes, file names relative to root
    labels: np.ndarray  # (N,) int64, from 0 on

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    def counts(self, num_class: int) -> np.ndarray:
        return np.bincount(self.labels, minlength=num_class)


@dataclass(frozen=True)
class FaceData:
    """A data set: what trains, what is held out, and what the labels mean.

    Raises:
        UserError: class names that are no names or not distinct, labels of no class, or not one
            an image.
    """

    name: str
    run_name: str  # what its runs' folders are called
    class_names: tuple[str, ...]  # given in any sequence, of anything that str makes a name
    train: Split
    val: Split
    published: dict[str, Sequence[int]] | None = None  # images a class, by split, where known

    def __post_init__(self):
        # Plain text, since checkpoints keep them and refuse other types, such as NumPy's strings.
        object.__setattr__(self, "name", str(self.name))
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        where, names = self.train.root, ", ".join(self.class_names)
        if not all(map(labels.is_name, (self.name, *self.class_names))):
            raise UserError(f"{where}: {self.name} with the classes {names}: not all of it is text")
        if len(set(self.class_names)) < self.num_class:
            raise UserError(f"{where}: a class is named twice ({names}); name each once")
        for split in (self.train, self.val):
            if len(split.names) != len(split):
                raise UserError(f"{split.root}: {len(split)} labels for {len(split.names)} images")
            if not set(np.unique(split.labels)) <= set(range(self.num_class)):
                raise UserError(
                    f"{split.root}: labels from {split.labels.min()} to {split.labels.max()}, but "
                    f"those of {self.num_class} classes are 0 to {self.num_class - 1}"
                )

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Changes with any file's name, label or place; not with the folder that holds them."""
        arrays = [a for split in (self.train, self.val) for a in (split.names, split.labels)]
        return f"{crc32(b''.join(array.tobytes() for array in arrays)):08x}"

    def summary(self, *, toy: bool = False) -> str:
        """Images per class of both splits as aligned text, and whether they are the published."""
        title = labels.title(self.name, toy=toy)
        counts = [split.counts(self.num_class) for split in (self.train, self.val)]
        width = max(len("total"), len(title), *map(len, self.class_names))
        lines = [f"{title:<{width}}   train     val"]
        for name, train, val in zip(self.class_names, *counts, strict=True):
            lines.append(f"{name:<{width}}  {train:6d}  {val:6d}")
        lines.append(f"{'total':<{width}}  {len(self.train):6d}  {len(self.val):6d}")
        if not toy and self.published is not None:
            same = all(map(np.array_equal, counts, self.published.values()))
            verdict = "are" if same else "differ from"
            lines.append(f"These {verdict} the published counts of {self.name}.")
        return "\n".join(lines)


class Problem(NamedTuple):
    """Something in a data set that has to be mended before training."""

    where: str  # relative to the data set: an image, a folder, or a line as FILE:NUMBER
    reason: str
    of_label: bool = False  # else of an image file

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Scan(NamedTuple):
    """What of a data set can be used, and all that is wrong with it."""

    data: FaceData
    problems: list[Problem]

    def whole(self, root: Path) -> FaceData:
        """The data set, where nothing is wrong with it.

        Raises:
            UserError: how many problems there are, the first five, and how to see more.
        """
        if not self.problems:
            return self.data
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        shown, more = self.problems[:5], ""
        if len(self.problems) > len(shown):
            more = f"; for the whole list: python utils/check_data.py {shlex.quote(str(root))}"
        remedy = "mend the data set or get another copy"
        if os.path.exists(root / MARKER):
            remedy = "mend this toy set, or remove its folder and let --toy draw it anew there"
        raise UserError(f"{root}: {count}: {'; '.join(map(str, shown))}; {remedy}{more}")
