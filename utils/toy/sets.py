"""Toy data sets: drawn faces in the on-disk formats of RAF-DB and AffectNet.

The same parameters give the same files, and no person is in both splits.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from utils.data.datasets import TOY_MARKER
from utils.data.images import save_picture
from utils.errors import UserError, writing
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.progress import progress
from utils.toy.render import RENDERER, Identity, draw_face

SPLITS = ("train", "test")
FACES_PER_PERSON = 4


@dataclass(frozen=True)
class ToySet:
    """The parameters of a toy set, on which alone its files depend."""

    layout: str  # rafdb or affectnet
    seed: int  # not negative
    train: int  # faces of the training split
    test: int  # faces of the test split, which AffectNet calls validation
    num_class: int  # 7 in RAF-DB's layout, 8 in AffectNet's
    renderer: int = RENDERER

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Indices into the layout's classes, (n,) for each split, shuffled.

        Classes are equally frequent, except in AffectNet's training split. There they are
        proportional to the square roots of the published counts: imbalanced in the same order,
        but with enough faces of the rarest class to learn it. None is without a face.
        """
        labels = {}
        for split, total in (("train", self.train), ("test", self.test)):
            shares = np.ones(self.num_class)
            if self.layout == "affectnet" and split == "train":
                shares = np.sqrt(AFFECTNET_COUNTS["train"])
            positions = np.linspace(0, shares.sum(), total - self.num_class, endpoint=False)
            classes = np.searchsorted(shares.cumsum(), positions, side="right")
            classes = np.sort(np.concatenate([np.arange(self.num_class), classes]))
            labels[split] = self._rng(split, "labels").permutation(classes)
        return labels

    def person(self, split: str, index: int) -> Identity:
        """The person on the face at an index, from 0, of a split."""
        return Identity(self._rng(split, "person", index // FACES_PER_PERSON))

    def face(self, split: str, index: int) -> np.ndarray:
        """Draw the face at an index, from 0, of a split: (size, size, 3) uint8 RGB."""
        classes, size = (RAFDB, 100) if self.layout == "rafdb" else (AFFECTNET, 224)
        expression = classes[self.labels[split][index]]
        rng = self._rng(split, "face", index)
        return draw_face(expression, rng, size, self.person(split, index))

    def image(self, split: str, index: int) -> str:
        """The path of an image below the set's folder."""
        if self.layout == "rafdb":
            digits = 5 if split == "train" else 4
            return f"Image/aligned/{split}_{index + 1:0{digits}}_aligned.jpg"
        return f"{'train_set' if split == 'train' else 'val_set'}/images/{index}.jpg"

    def _rng(self, split: str, purpose: str, index: int = 0) -> np.random.Generator:
        """An independent stream for each split, purpose and index."""
        key = SPLITS.index(split), ("labels", "person", "face").index(purpose), index
        return np.random.default_rng((self.seed, *key))


# ---- reading and writing -------------------------------------------------------------------------


def write_rafdb(
    root: str | os.PathLike, *, seed: int = 0, train: int = 700, test: int = 210
) -> None:
    """Draw a set in RAF-DB's format: 100x100 JPEGs of 7 expressions and their label file.

    Args:
        root: the new folder, which appears when all of it is written. A finished set of the same
            parameters is kept, and a toy set of others is replaced.
        seed: not negative.
        train, test: number of faces.

    Raises:
        UserError: `root` is not a toy set or cannot be written.
    """
    _write(root, ToySet("rafdb", seed, train, test, num_class=7))


def write_affectnet(
    root: str | os.PathLike, *, seed: int = 0, train: int = 1600, val: int = 240
) -> None:
    """Draw a set in the format of AffectNet's npy release: 224x224 JPEGs of 8 expressions and a
    label file each. Arguments and errors are those of `write_rafdb`."""
    _write(root, ToySet("affectnet", seed, train, val, num_class=8))


def read_toy_set(root: str | os.PathLike) -> ToySet | None:
    """Read the parameters of the finished toy set in a folder; None if it holds none."""
    path = Path(root, TOY_MARKER)
    return ToySet(**json.loads(path.read_text())) if path.exists() else None


def _write(root: str | os.PathLike, toy: ToySet) -> None:
    root = Path(root).resolve()
    old = read_toy_set(root)
    if old == toy:
        return
    with writing(root):
        if not old and root.exists() and os.listdir(root):
            raise UserError(f"{root}: exists and is not a toy data set; give another folder")
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{root.name}.toy-", dir=root.parent) as scratch:
            new = Path(scratch, "new")
            _write_files(new, toy)
            (new / TOY_MARKER).write_text(json.dumps(asdict(toy), indent=2) + "\n")
            if read_toy_set(root) != toy:  # another process may have finished it meanwhile
                if root.exists():
                    root.rename(Path(scratch, "old"))
                new.rename(root)


def _write_files(folder: Path, toy: ToySet) -> None:
    raf_labels = []
    faces = [(split, index) for split in SPLITS for index in range(len(toy.labels[split]))]
    with ProcessPoolExecutor() as pool:  # starts processes when it is used
        draw = map if len(faces) < 500 else partial(pool.map, chunksize=50)
        pictures = draw(toy.face, *zip(*faces, strict=True))
        bar = progress(faces, desc="drawing toy faces", unit="img")
        for (split, index), picture in zip(bar, pictures, strict=True):
            path, label = folder / toy.image(split, index), toy.labels[split][index]
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(Image.fromarray(picture), path, quality=95)
            if toy.layout == "rafdb":
                raf_labels.append(f"{path.name.replace('_aligned', '')} {label + 1}\n")
            else:
                annotations = path.parents[1] / "annotations"
                annotations.mkdir(exist_ok=True)
                np.save(annotations / f"{index}_exp.npy", np.array(str(label)))  # as published
    if raf_labels:
        (folder / "EmoLabel").mkdir()
        (folder / "EmoLabel/list_patition_label.txt").write_text("".join(raf_labels))
