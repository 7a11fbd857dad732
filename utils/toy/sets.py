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
RAFDB_STEMS = {"train": "train_{:05d}", "test": "test_{:04d}"}  # of a number from 1
AFFECTNET_FOLDERS = {"train": "train_set", "test": "val_set"}
FACES_PER_PERSON = 4
MIN_FACES_FOR_POOL = 500  # fewer take less time than starting processes


@dataclass(frozen=True)
class ToySet:
    """The parameters of a toy set, on which alone its files depend.

    Args:
        layout: rafdb or affectnet.
        seed: not negative.
        train, test: number of training and of test (AffectNet: validation) faces.
        num_class: 7 in RAF-DB's layout, 8 in AffectNet's.
    """

    layout: str
    seed: int
    train: int
    test: int
    num_class: int
    renderer: int = RENDERER

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Indices into the layout's classes, (n,) for each split, shuffled.

        Classes are equally frequent, except in AffectNet's training split. There they are
        proportional to the square roots of the published counts: imbalanced in the same order,
        but with enough faces of the rarest class to learn it.
        """
        labels = {}
        for split, total in (("train", self.train), ("test", self.test)):
            shares = np.ones(self.num_class)
            if self.layout == "affectnet" and split == "train":
                shares = np.sqrt(AFFECTNET_COUNTS["train"])
            ordered = np.repeat(np.arange(self.num_class), _apportion(total, shares))
            labels[split] = self._rng(split, "labels").permutation(ordered)
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
            return f"Image/aligned/{RAFDB_STEMS[split].format(index + 1)}_aligned.jpg"
        return f"{AFFECTNET_FOLDERS[split]}/images/{index}.jpg"

    def _rng(self, split: str, purpose: str, index: int = 0) -> np.random.Generator:
        """An independent stream for each split, purpose and index."""
        key = SPLITS.index(split), ("labels", "person", "face").index(purpose), index
        return np.random.default_rng((self.seed, *key))


def _apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Integers in proportion to the shares, each at least 1, that add up to the total."""
    exact = (total - len(shares)) * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    rest = np.argsort(counts - exact, kind="stable")[: total - len(shares) - counts.sum()]
    counts[rest] += 1
    return counts + 1


# ---- reading and writing -------------------------------------------------------------------------


def write_rafdb(
    root: str | os.PathLike, *, seed: int = 0, train: int = 700, test: int = 210
) -> ToySet:
    """Draw a set in RAF-DB's format: 100x100 JPEGs of 7 expressions and their label file.

    Args:
        root: the new folder, which appears when all of it is written. A finished set of the same
            parameters is kept, and a toy set of others is replaced.
        seed: not negative.
        train, test: number of faces.

    Raises:
        UserError: `root` is not a toy set or cannot be written.
    """
    return _write(root, ToySet("rafdb", seed, train, test, num_class=7))


def write_affectnet(
    root: str | os.PathLike, *, seed: int = 0, train: int = 1600, val: int = 240
) -> ToySet:
    """Draw a set in the format of AffectNet's npy release: 224x224 JPEGs of 8 expressions and a
    label file each. Arguments and errors are those of `write_rafdb`."""
    return _write(root, ToySet("affectnet", seed, train, val, num_class=8))


def read_toy_set(root: str | os.PathLike) -> ToySet | None:
    """Read the parameters of the finished toy set in a folder; None if it holds none."""
    path = Path(root, TOY_MARKER)
    return ToySet(**json.loads(path.read_text())) if path.exists() else None


def _write(root: str | os.PathLike, toy: ToySet) -> ToySet:
    root = Path(root).resolve()
    old = read_toy_set(root)
    if old == toy:
        return toy
    with writing(root):
        if not old and root.exists() and os.listdir(root):
            raise UserError(f"{root}: exists and is not a toy data set; give another folder")
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{root.name}.toy-", dir=root.parent) as scratch:
            new, replaced = Path(scratch, "new"), Path(scratch, "replaced")
            _write_files(new, toy)
            (new / TOY_MARKER).write_text(json.dumps(asdict(toy), indent=2) + "\n")
            if read_toy_set(root) != toy:  # another process may have finished it meanwhile
                if root.exists():
                    root.rename(replaced)
                new.rename(root)
    return toy


def _write_files(folder: Path, toy: ToySet) -> None:
    if toy.layout == "rafdb":
        (folder / "Image/aligned").mkdir(parents=True)
        (folder / "EmoLabel").mkdir()
        with open(folder / "EmoLabel/list_patition_label.txt", "w") as file:
            for split in SPLITS:
                for number, label in enumerate(toy.labels[split], start=1):
                    file.write(f"{RAFDB_STEMS[split].format(number)}.jpg {label + 1}\n")
    else:
        for split in SPLITS:
            images = folder / AFFECTNET_FOLDERS[split] / "images"
            images.mkdir(parents=True)
            annotations = images.with_name("annotations")
            annotations.mkdir()
            for index, label in enumerate(toy.labels[split]):
                # The published files store labels as strings too.
                np.save(annotations / f"{index}_exp.npy", np.array(str(label)))

    faces = [(split, index) for split in SPLITS for index in range(len(toy.labels[split]))]
    draw = partial(_write_image, folder, toy)
    with ProcessPoolExecutor() as pool:  # starts processes only when it is used
        few = len(faces) < MIN_FACES_FOR_POOL
        done = map(draw, faces) if few else pool.map(draw, faces, chunksize=50)
        list(progress(done, total=len(faces), desc="drawing toy faces", unit="img"))


def _write_image(folder: Path, toy: ToySet, face: tuple[str, int]) -> None:
    save_picture(Image.fromarray(toy.face(*face)), folder / toy.image(*face), quality=95)
