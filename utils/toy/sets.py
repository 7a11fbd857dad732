"""Toy data sets: drawn faces in the on-disk formats of RAF-DB and AffectNet.

Every face can be drawn alone, and again. The same parameters give the same files, and no person
is in both splits.
"""

import glob
import json
import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from utils.data.datasets import TOY_MARKER
from utils.data.images import save_picture
from utils.errors import UserError, writing
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.progress import progress
from utils.toy.render import RENDERER, Identity, ToyFace, draw_face

SPLITS = ("train", "test")  # AffectNet calls its test images val
FACES_PER_PERSON = 4
MIN_FACES_FOR_POOL = 500  # fewer take less time than starting processes
ABANDONED_AFTER = 3600  # seconds without a sign of the process that draws a set


@dataclass(frozen=True)
class ToySet:
    """The parameters of a toy set, on which alone its files depend.

    Args:
        layout: rafdb or affectnet.
        seed: not negative.
        train, test: number of training and of test (AffectNet: validation) faces.
        num_class: how many of the layout's classes are drawn, from the first on.

    Raises:
        UserError: fewer faces than classes.
    """

    layout: str
    seed: int
    train: int
    test: int
    num_class: int
    renderer: int = RENDERER

    def __post_init__(self):
        if min(self.train, self.test) < self.num_class:
            raise UserError(
                f"a toy set of {self.num_class} classes needs at least as many training and test "
                f"faces, not {self.train} and {self.test}"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        return (RAFDB if self.layout == "rafdb" else AFFECTNET)[: self.num_class]

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Indices into `class_names`, (n,) for each split, shuffled.

        Classes are equally frequent, except in AffectNet's training split. There they are
        proportional to the square roots of the published counts: imbalanced in the same order,
        but with enough faces of the rarest class to learn it.
        """
        shares = {split: np.ones(self.num_class) for split in SPLITS}
        if self.layout == "affectnet":
            shares["train"] = np.sqrt(AFFECTNET_COUNTS["train"][: self.num_class])
        labels = {}
        for split, total in (("train", self.train), ("test", self.test)):
            counts = _apportion(total, shares[split])
            ordered = np.repeat(np.arange(self.num_class), counts)
            labels[split] = self._rng(split, "labels").permutation(ordered)
        return labels

    def person(self, split: str, index: int) -> Identity:
        """Who the face at an index, from 0, of a split shows."""
        return Identity(self._rng(split, "person", index // FACES_PER_PERSON))

    def face(self, split: str, index: int) -> ToyFace:
        """Draw the face at an index, from 0, of a split."""
        expression = self.class_names[self.labels[split][index]]
        size = 100 if self.layout == "rafdb" else 224  # pixels, as released
        rng = self._rng(split, "face", index)
        return draw_face(expression, rng, size, self.person(split, index))

    def _rng(self, split: str, purpose: str, index: int = 0) -> np.random.Generator:
        """An independent stream for each split, purpose and index."""
        purposes = ("labels", "person", "face")
        key = (self.seed, SPLITS.index(split), purposes.index(purpose), index)
        return np.random.default_rng(key)

    def image(self, split: str, index: int) -> str:
        """The path of an image below the set's folder."""
        if self.layout == "rafdb":
            return f"Image/aligned/{_rafdb_stem(split, index)}_aligned.jpg"
        return f"{_affectnet_folder(split)}/images/{index}.jpg"

    def find(self, image: PurePath) -> tuple[str, int]:
        """The split and the index of an image, given its path below the set's folder.

        In AffectNet's layout, that may be its path in the converted class folders: val/3/17.jpg.

        Raises:
            UserError: the set has no such image.
        """
        if self.layout == "rafdb":
            match = re.fullmatch(r"(train|test)_(\d+)_aligned", image.stem)
            split, index = (match[1], int(match[2]) - 1) if match else ("test", -1)
        else:
            split = "train" if image.parts[0] in ("train", "train_set") else "test"
            index = int(image.stem) if image.stem.isdecimal() else -1
        if not 0 <= index < len(self.labels[split]):
            raise UserError(f"{image}: not an image of this toy set")
        return split, index


def _rafdb_stem(split: str, index: int) -> str:
    return f"train_{index + 1:05d}" if split == "train" else f"test_{index + 1:04d}"


def _affectnet_folder(split: str) -> str:
    return "train_set" if split == "train" else "val_set"


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
        UserError: `root` is not a toy set or cannot be written, or there are too few faces.
    """
    return _write(root, ToySet("rafdb", seed, train, test, num_class=7))


def write_affectnet(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = 1800,
    val: int = 240,
    num_class: int = 8,
) -> ToySet:
    """Draw a set in the format of AffectNet's npy release: 224x224 JPEGs and a label file each.

    Args:
        root, seed, train: as for `write_rafdb`.
        val: number of validation faces.
        num_class: 8, or 7 without contempt.

    Raises:
        UserError: as for `write_rafdb`.
    """
    return _write(root, ToySet("affectnet", seed, train, val, num_class))


def read_toy_set(root: str | os.PathLike) -> ToySet | None:
    """Read the parameters of the finished toy set in a folder; None if it holds none."""
    path = Path(root) / TOY_MARKER
    try:
        return ToySet(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove its folder") from None


def redraw_face(image_path: str | os.PathLike) -> ToyFace:
    """Draw the face of an image in a toy set again, to know where its features are.

    Raises:
        UserError: the image is not in a toy set.
    """
    path = Path(image_path).absolute()
    for folder in path.parents:
        toy = read_toy_set(folder)
        if toy:
            return toy.face(*toy.find(path.relative_to(folder)))
    raise UserError(f"{image_path}: not in a toy data set, there is no {TOY_MARKER} above it")


def _write(root: str | os.PathLike, toy: ToySet) -> ToySet:
    root = Path(os.path.realpath(root))
    prefix = f".{root.name}.toy-"
    _remove_abandoned(root.parent, prefix)
    old = read_toy_set(root)
    if old == toy:
        return toy
    if not old and root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root}: exists and is not a toy data set; give another folder")
    with writing(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=prefix, dir=root.parent, ignore_cleanup_errors=True
        ) as scratch:
            new, replaced = Path(scratch, "new"), Path(scratch, "replaced")
            _write_labels(new, toy)
            _write_images(new, toy)
            (new / TOY_MARKER).write_text(json.dumps(asdict(toy), indent=2) + "\n")
            if read_toy_set(root) != toy:  # another process may have finished it meanwhile
                if root.exists():
                    root.rename(replaced)
                new.rename(root)
    return toy


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders in which killed processes were drawing."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(FileNotFoundError):  # another process has just finished
            if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(folder, ignore_errors=True)


def _write_labels(folder: Path, toy: ToySet) -> None:
    if toy.layout == "rafdb":
        lines = [
            f"{_rafdb_stem(split, index)}.jpg {label + 1}\n"
            for split in SPLITS
            for index, label in enumerate(toy.labels[split])
        ]
        (folder / "EmoLabel").mkdir(parents=True)
        (folder / "EmoLabel/list_patition_label.txt").write_text("".join(lines))
        return
    for split in SPLITS:
        annotations = folder / _affectnet_folder(split) / "annotations"
        annotations.mkdir(parents=True)
        for index, label in enumerate(toy.labels[split]):
            # The published files store labels as strings too.
            np.save(annotations / f"{index}_exp.npy", np.array(str(label)))


def _write_images(folder: Path, toy: ToySet) -> None:
    faces = [(split, index) for split in SPLITS for index in range(len(toy.labels[split]))]
    for split in SPLITS:
        (folder / toy.image(split, 0)).parent.mkdir(parents=True, exist_ok=True)
    draw = partial(_write_image, folder, toy)
    with ProcessPoolExecutor() as pool:  # starts processes only when it is used
        few = len(faces) < MIN_FACES_FOR_POOL
        done = map(draw, faces) if few else pool.map(draw, faces, chunksize=50)
        for _ in progress(done, total=len(faces), desc="drawing toy faces", unit="img"):
            os.utime(folder.parent)  # tells `_remove_abandoned` that this process is alive


def _write_image(folder: Path, toy: ToySet, face: tuple[str, int]) -> None:
    picture = Image.fromarray(toy.face(*face).image)
    save_picture(picture, folder / toy.image(*face), quality=95)
