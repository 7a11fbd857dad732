"""What a toy data set holds: which face, with which label, in which file."""

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np

from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.toy.drawing import ToyFace, draw_face
from utils.toy.identity import draw_identity

RENDERER = 1  # to be raised whenever the same parameters come to draw other faces
FACES_PER_PERSON = 4
SPLITS = ("train", "test")  # test is what AffectNet calls val
IMAGE_SIZE = {"rafdb": 100, "affectnet": 224}  # pixels, as released
AFFECTNET_FOLDERS = {"train": "train_set", "test": "val_set"}

# Valence and arousal of AffectNet's classes, about where annotators put them.
CIRCUMPLEX = (
    (0.0, 0.0),
    (0.7, 0.2),
    (-0.7, -0.3),
    (0.2, 0.7),
    (-0.2, 0.8),
    (-0.7, 0.4),
    (-0.5, 0.7),
    (-0.6, 0.5),
)


@dataclass(frozen=True)
class ToySet:
    """A set of toy faces, any of which can be drawn without the others, and drawn again.

    Args:
        layout: rafdb or affectnet.
        seed: not negative.
        train, test: faces in the training and in the test (AffectNet: validation) images.
        num_class: how many of the layout's classes are drawn, from the first on.

    Raises:
        UserError: a negative seed, or fewer images than classes.
    """

    layout: str
    seed: int
    train: int
    test: int
    num_class: int
    renderer: int = RENDERER

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"a seed for toy faces is 0 or more, not {self.seed}")
        if min(self.train, self.test) < self.num_class:
            raise UserError(
                f"a toy set needs {self.num_class} training and {self.num_class} test faces at "
                f"least, one a class, not {self.train} and {self.test}"
            )

    def parameters(self) -> dict:
        """All that the files depend on; `ToySet(**parameters)` is this set again."""
        return asdict(self)

    @property
    def class_names(self) -> tuple[str, ...]:
        return (RAFDB if self.layout == "rafdb" else AFFECTNET)[: self.num_class]

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """For each split (n,) ints into `class_names`, shuffled.

        All classes are equally frequent, but in AffectNet's training images as the square roots
        of their published counts: the same order, and enough of the rarest left to learn it.
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

    def face(self, split: str, index: int) -> ToyFace:
        """The face at an index, from 0, of a split."""
        person = draw_identity(self._rng(split, "person", index // FACES_PER_PERSON))
        expression = self.class_names[self.labels[split][index]]
        size = IMAGE_SIZE[self.layout]
        return draw_face(expression, self._rng(split, "face", index), size, person)

    def _rng(self, split: str, purpose: str, index: int = 0) -> np.random.Generator:
        """A stream of its own for each split, purpose and index: no person is in two splits."""
        purposes = ("labels", "person", "face")
        key = (self.seed, SPLITS.index(split), purposes.index(purpose), index)
        return np.random.default_rng(key)

    # ---- files, as paths below the set's folder ----

    @property
    def folders(self) -> tuple[str, ...]:
        if self.layout == "rafdb":
            return "EmoLabel", "Image/aligned"
        splits = AFFECTNET_FOLDERS.values()
        return tuple(f"{split}/{kind}" for split in splits for kind in ("images", "annotations"))

    def image_name(self, split: str, index: int) -> str:
        if self.layout == "rafdb":
            return f"Image/aligned/{_rafdb_stem(split, index)}_aligned.jpg"
        return f"{AFFECTNET_FOLDERS[split]}/images/{index}.jpg"

    def find(self, image: PurePath) -> tuple[str, int]:
        """The split and the index of an image, the opposite of `image_name`.

        Knows an image of AffectNet's layout in its class folder (`val/3/17.jpg`) too.

        Raises:
            UserError: there is no such face in this set.
        """
        if self.layout == "rafdb":
            match = re.fullmatch(r"(train|test)_(\d+)(?:_aligned)?", image.stem)
            split, index = (match[1], int(match[2]) - 1) if match else ("test", -1)
        else:
            split = "train" if image.parts[0] in ("train", "train_set") else "test"
            index = int(image.stem) if image.stem.isdecimal() else -1
        if not 0 <= index < len(self.labels[split]):
            raise UserError(f"{image}: not an image of this toy set")
        return split, index

    def text_files(self) -> dict[str, str]:
        """RAF-DB's label file, name -> contents; AffectNet's layout has none."""
        if self.layout != "rafdb":
            return {}
        lines = [
            f"{_rafdb_stem(split, index)}.jpg {label + 1}\n"
            for split in SPLITS
            for index, label in enumerate(self.labels[split])
        ]
        return {"EmoLabel/list_patition_label.txt": "".join(lines)}

    def annotations(self, split: str, index: int, face: ToyFace) -> dict[str, np.ndarray]:
        """AffectNet's arrays for one face, name -> array, its numbers stored as strings."""
        if self.layout != "affectnet":
            return {}
        label = int(self.labels[split][index])
        valence, arousal = CIRCUMPLEX[label]
        stem = f"{AFFECTNET_FOLDERS[split]}/annotations/{index}"
        return {
            f"{stem}_exp.npy": np.array(str(label)),
            f"{stem}_val.npy": np.array(str(valence)),
            f"{stem}_aro.npy": np.array(str(arousal)),
            f"{stem}_lnd.npy": face.landmarks.ravel(),  # x and y of 68 points, in pixels
        }


def _rafdb_stem(split: str, index: int) -> str:
    return f"train_{index + 1:05d}" if split == "train" else f"test_{index + 1:04d}"


def _apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to the shares, at least 1 each, that add up to the total."""
    exact = (total - len(shares)) * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    rest = np.argsort(counts - exact, kind="stable")[: total - len(shares) - counts.sum()]
    counts[rest] += 1
    return counts + 1
