"""Data sets: how they lie on disk, and what they are in memory. No image is decoded here."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd

from utils import labels
from utils.cli import locate
from utils.data.images import IMAGE_SUFFIXES, describe_others, has_suffix, is_rubbish, walk_files
from utils.errors import UserError, plural

if TYPE_CHECKING:  # imports PyTorch, which takes seconds
    from utils.checkpoint import TrainedDAN

RAFDB_URL = "http://www.whdeng.cn/raf/model1.html"
AFFECTNET_URL = "http://mohammadmahoor.com/affectnet/"
TOY_MARKER = "toy.json"  # in the folder of a toy set: what it was drawn from
BAD_IMAGES = "bad_images.csv"  # images to leave out, as written by utils/check_data.py
UNFINISHED = ".conversion_unfinished"  # beside class folders until their conversion has ended


# ---- in memory -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Files and labels as two arrays: 300,000 images take a few MB."""

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
    """A data set: training images, held-out images, and what the labels mean.

    Raises:
        UserError: a split without images, or labels outside of the classes.
    """

    name: str
    class_names: tuple[str, ...]  # labels index it; made of any sequence of names
    train: Split
    val: Split  # chooses the best epoch; the test images where a data set has no others
    test: Split | None = None  # to report on, choosing nothing; None if `val` are the test images
    root: Path | None = None  # the folder of the whole data set
    whole: str = ""  # fingerprint before a validation part was set aside
    note: str = ""  # a line for the summary
    left_out: int = 0  # images that BAD_IMAGES names
    others: str = ""  # what lies there besides images, such as "3 .heic files"
    problems: Sequence[str] = ()  # to be corrected before training; nothing is checked then

    def __post_init__(self):
        # Plain text: checkpoints keep it and refuse other types, such as NumPy's strings.
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        checked = {} if self.problems else self.splits
        for name, split in checked.items():
            if not len(split):
                raise UserError(f"{split.root}: no {name} images")
            if split.labels.min() < 0 or split.labels.max() >= self.num_class:
                raise UserError(
                    f"{split.root}: labels from {split.labels.min()} to {split.labels.max()}, but "
                    f"those of {self.num_class} classes are 0 to {self.num_class - 1}"
                )

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, Split]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def held_out(self) -> Split:
        """The images to report on."""
        return self.val if self.test is None else self.test

    @property
    def toy(self) -> bool:
        """Whether its faces are drawn."""
        return self.root is not None and (self.root / TOY_MARKER).exists()

    @property
    def title(self) -> str:
        return labels.title(self.name, toy=self.toy)

    def fingerprint(self) -> str:
        """A checksum of all file names and labels, whatever folder holds them."""
        arrays = [a for split in self.splits.values() for a in (split.names, split.labels)]
        return f"{crc32(b''.join(array.tobytes() for array in arrays)):08x}"

    def summary(self) -> str:
        """A table of images per class of each split, and what else is to be known."""
        counts = {name: split.counts(self.num_class) for name, split in self.splits.items()}
        table = pd.DataFrame(counts, index=self.class_names).rename_axis(self.title, axis=1)
        table.loc["total"] = table.sum()
        lines = [table.to_string(), self.note]
        if self.left_out:
            lines.append(f"{plural(self.left_out, 'image')} left out, listed in {BAD_IMAGES}")
        if self.others:
            lines.append(f"not images, and left out: {self.others}")
        return "\n".join(line for line in lines if line)

    def with_validation(self, share: float, seed: int) -> "FaceData":
        """Set a share of the training images of each class aside for choosing the best epoch; the
        held-out images become the test images.

        Raises:
            UserError: the data set has validation images already.
        """
        if share == 0:
            return self
        if self.test is not None:
            raise UserError(
                f"{self.root}: has validation and test images already; leave --val_fraction out"
            )
        chosen = np.zeros(len(self.train), bool)
        rng = np.random.default_rng((seed, len(self.train)))
        for label in range(self.num_class):
            places = np.flatnonzero(self.train.labels == label)
            chosen[rng.choice(places, max(1, round(share * len(places))), replace=False)] = True
        train, val = (
            replace(self.train, names=self.train.names[part], labels=self.train.labels[part])
            for part in (~chosen, chosen)
        )
        return replace(self, train=train, val=val, test=self.val, whole=self.fingerprint())


# ---- what the readers share ----------------------------------------------------------------------

SPLIT_NAMES = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


def find_class_folders(root: Path) -> tuple[list[Path], list[str]]:
    """Find splits of class folders: `train/` with `val/`, `test/` or both, by any of their usual
    names, in `root` or in the only folder there.

    Returns:
        The splits, and the names of the class folders in them; both empty if there are none.
    """
    folders = {path.name.lower(): path for path in _subfolders(root)}
    found = [next((folders[n] for n in names if n in folders), None) for names in SPLIT_NAMES]
    if found[0] and any(found[1:]):
        splits = [folder for folder in found if folder]
        return splits, sorted({path.name for split in splits for path in _subfolders(split)})
    if len(folders) == 1 and not any(found):
        return find_class_folders(*folders.values())
    return [], []


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not is_rubbish(p.name) and p.is_dir())


def _list_class_folders(folders: Sequence[Path], codes: Sequence[str]) -> tuple[list[Split], str]:
    """List the images in the class folders `codes`, which labels index; describe the other
    files."""
    splits, others = [], []
    for folder in folders:
        images = []
        for label, code in enumerate(codes):
            for path in walk_files(folder / code):
                if has_suffix(path, IMAGE_SUFFIXES):
                    images.append((path.removeprefix(f"{folder}{os.sep}"), label))
                else:
                    others.append(path)
        splits.append(_make_split(folder, images))
    return splits, describe_others(others)


def _make_split(folder: Path, images: Sequence[tuple[str, int]]) -> Split:
    """Make a split of paths in a folder and labels."""
    names = np.array([os.fsencode(path) for path, _ in images], dtype="S")
    return Split(folder, names, np.array([label for _, label in images], np.int64))


def _face_data(
    root: Path,
    splits: Sequence[Split],
    strict: bool,
    *,
    codes: Sequence[str],
    problems: Sequence[str] = (),
    published: Mapping[str, Sequence[int]] | None = None,
    note: str = "",
    **about,
) -> FaceData:
    """Make a data set of what a reader has found, without the images in BAD_IMAGES.

    Args:
        splits: train and val, or train, val and test.
        strict: raise the problems.
        codes: what the files call the classes.
        published: images per class of each split, to compare with.
        about: further fields of FaceData.
    """
    splits, left_out = _without_bad_images(root, splits)
    counts = [split.counts(len(codes)) for split in splits]
    problems = [*problems]
    for name, numbers in zip(("train", "val", "test"), counts, strict=False):
        empty = [code for code, number in zip(codes, numbers, strict=True) if number == 0]
        if empty:
            problems.append(f"{name}: no images of class {', '.join(empty)}")
    if strict and problems:
        raise UserError(
            f"{root}: {plural(len(problems), 'problem')}: {'; '.join(problems[:5])}; correct that "
            f"(python utils/check_data.py {shlex.quote(str(root))} lists all problems)"
        )
    about.update(zip(("train", "val", "test"), splits, strict=False))
    data = FaceData(root=root, note=note, left_out=left_out, problems=problems, **about)
    if published is None or data.toy:
        return data
    same = all(map(np.array_equal, counts, published.values()))
    verdict = f"It {'has' if same else 'does not have'} the published numbers of images per class."
    return replace(data, note=f"{verdict} {note}".strip())


def _without_bad_images(root: Path, splits: Sequence[Split]) -> tuple[list[Split], int]:
    """Leave out the images in BAD_IMAGES, and count them."""
    path = root / BAD_IMAGES
    if not path.exists():
        return list(splits), 0
    options = {"dtype": str, "keep_default_na": False, "encoding_errors": "surrogateescape"}
    try:
        table = pd.read_csv(path, usecols=["path"], **options)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it") from None
    bad, kept = {root / name for name in table["path"]}, []
    for split in splits:
        good = np.array([split.path(i) not in bad for i in range(len(split))], bool)
        names = np.array(split.names[good].tolist(), dtype="S")  # only as wide as they need
        kept.append(Split(split.root, names, split.labels[good]))
    return kept, sum(map(len, splits)) - sum(map(len, kept))


# ---- RAF-DB --------------------------------------------------------------------------------------

RAFDB_LABELS = "EmoLabel/list_patition_label.txt"
RAFDB_IMAGES = "Image/aligned"
RAFDB_CODES = "1234567"
_RAFDB_LINE = re.compile(r"((train|test)_\w+)\.(?i:jpg)\s+([1-7])", re.ASCII)


def read_rafdb(root: str | os.PathLike, *, strict: bool = True) -> FaceData:
    """Read RAF-DB's basic set: `EmoLabel/list_patition_label.txt` and `Image/aligned/`, or class
    folders `train/1 ... 7` and `test/1 ... 7`.

    Args:
        strict: raise bad labels and classes without images instead of returning them as `problems`.

    Raises:
        UserError: files are missing, the label file has bad lines, or a split has no image of a
            class.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; get RAF-DB from {RAFDB_URL}, or try --toy")
    folders, keys = find_class_folders(root)
    about = {"name": "RAF-DB", "class_names": labels.RAFDB, "published": labels.RAFDB_COUNTS}
    if folders and {*keys} <= {*RAFDB_CODES} and not (root / RAFDB_LABELS).exists():
        splits, about["others"] = _list_class_folders(folders, RAFDB_CODES)
    else:
        splits, about["problems"] = _read_label_file(root)
    return _face_data(root, splits, strict, codes=RAFDB_CODES, **about)


def _read_label_file(root: Path) -> tuple[list[Split], list[str]]:
    """Read RAF-DB as it is distributed, and what is wrong with the lines of its label file."""
    if not ((root / RAFDB_LABELS).exists() and (root / RAFDB_IMAGES).is_dir()):
        raise UserError(
            f"{root}: should hold {RAFDB_LABELS} and {RAFDB_IMAGES}/, or train/1 ... 7 and "
            "test/1 ... 7; affectnet.py --aff_path reads other data sets"
        )
    images, problems = {"train": {}, "test": {}}, []
    text = (root / RAFDB_LABELS).read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        match = _RAFDB_LINE.fullmatch(line.strip())
        if match and (name := f"{match[1]}_aligned.jpg") not in images[match[2]]:
            images[match[2]][name] = int(match[3]) - 1
        elif line.strip():
            problems.append(
                f"{RAFDB_LABELS}:{number}: {line[:60]!r} is not 'train_NNNNN.jpg LABEL' or "
                "'test_NNNN.jpg LABEL' with a label from 1 to 7, or names an image again"
            )
    splits = [_make_split(root / RAFDB_IMAGES, [*split.items()]) for split in images.values()]
    return splits, problems


# ---- AffectNet, and data sets of any other classes -----------------------------------------------

# What lies at the top of AffectNet as its authors distribute it, before conversion.
RAW_AFFECTNET = ("train_set", "Manually_Annotated_Images", "Manually_Annotated", "affectnet.csv")


def read_affectnet(
    root: str | os.PathLike, *, num_class: int | None = None, strict: bool = True
) -> FaceData:
    """Read AffectNet as class folders 0-7, or any data set as class folders of other names.

    Args:
        num_class: 8 or 7 (without contempt), 8 if None; other data sets have as many classes as
            folders.
        strict: raise classes without images instead of returning them as `problems`.

    Raises:
        UserError: no data set, one that has to be converted first, a class without images in one
            of the splits, or folders whose names do not say which classes they are.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; get AffectNet from {AFFECTNET_URL}, or try --toy")
    if (root / UNFINISHED).exists():
        command = (root / UNFINISHED).read_text()
        raise UserError(f"{root}: its conversion was interrupted; continue it with {command}")
    folders, keys = find_class_folders(root)
    raw = [name for name in RAW_AFFECTNET if (root / name).exists()]
    if raw and not folders:
        raise UserError(
            f"{root}: holds {raw[0]} but no class folders; make them with "
            f"python utils/convert_affectnet.py --aff_path {shlex.quote(str(root))}"
        )
    if len(keys) < 2:
        raise UserError(
            f"{root}: should hold train/ and val/ (or valid/, validation/, test/) with a folder of "
            "images for each of at least 2 classes"
        )
    if not all(key.isdecimal() for key in keys):
        if num_class not in (None, len(keys)):
            own = f"has {len(keys)} class folders of its own"
            raise UserError(f"{root}: {own}, but --num_class {num_class} was given; leave it out")
        splits, others = _list_class_folders(folders, keys)
        about = {"name": root.resolve().name, "class_names": keys, "others": others}
        return _face_data(root, splits, strict, codes=keys, **about)

    # ---- AffectNet, unless the folders are known to be those of another data set ----
    class_names = labels.AFFECTNET[:num_class]
    codes = [str(code) for code in range(len(class_names))]
    mapping = ", ".join(f"{code} {name}" for code, name in enumerate(class_names))
    splits, others = _list_class_folders(folders, codes)
    train, wrong = splits[0], ""
    if len(train) and re.search(r"(train|test)_\d+_aligned\.", train.path(0).name):
        wrong = "these are RAF-DB's images; train on folders 1 ... 7 with rafdb.py --raf_path"
    elif not {"0"} <= {*keys} <= {*"01234567"}:
        wrong = f"the folders {', '.join(keys)} are not AffectNet's ({mapping})"
    elif tuple(train.counts(7)) == labels.FER2013_COUNTS["train"]:
        wrong = f"these are FER2013's folders, not AffectNet's ({mapping})"
    elif num_class is None and "7" not in keys:
        wrong = "has no folder 7 (contempt); if this is AffectNet, give --num_class 7"
    if wrong:
        raise UserError(
            f"{root}: {wrong}; rename the folders of another data set to class names, such as "
            f"train/{keys[0]} to train/happy"
        )
    about = {"name": "AffectNet", "class_names": class_names, "others": others}
    about["published"] = {name: n[: len(codes)] for name, n in labels.AFFECTNET_COUNTS.items()}
    about["note"] = f"The folders are taken for AffectNet's: {mapping}."
    return _face_data(root, splits, strict, codes=codes, **about)


def affectnet_run_name(root: str | os.PathLike, num_class: int | None) -> str:
    """What runs on `read_affectnet`'s data are called."""
    _, keys = find_class_folders(Path(root))
    if not all(key.isdecimal() for key in keys):
        return Path(root).resolve().name
    return f"affectnet-{num_class or len(labels.AFFECTNET)}"


# ---- which data a network was trained on ---------------------------------------------------------


class Source(NamedTuple):
    """A training script, and how it reads its data."""

    script: str
    read: Callable[[Mapping[str, Any]], FaceData]  # flags of a run -> its data set


# The table of data sets, by the flag that says where the data lie.
SOURCES = {
    "raf_path": Source("rafdb.py", lambda flags: read_rafdb(flags["raf_path"])),
    "aff_path": Source(
        "affectnet.py",
        lambda flags: read_affectnet(flags["aff_path"], num_class=flags.get("num_class")),
    ),
}


def data_of(trained: "TrainedDAN") -> FaceData | None:
    """Read the data set that a network was trained on; None if the checkpoint does not say which.

    Raises:
        UserError: it is not there or not whole, or has other classes now.
    """
    flag = next((name for name in SOURCES if name in trained.config), None)
    if flag is None:
        return None
    root, source = locate(trained.config[flag]), SOURCES[flag]
    if not os.path.isdir(root):
        remedy = "put the data there or name --images"
        if trained.toy:
            remedy = f"python {source.script} --evaluate --checkpoint {trained.path} draws them"
        raise UserError(f"{root}: no such folder, on which {trained.path} was trained; {remedy}")
    data = source.read({**trained.config, flag: root})
    if data.class_names != trained.class_names:
        raise UserError(
            f"{trained.path}: trained on {', '.join(trained.class_names)}, but {root} "
            f"now has {', '.join(data.class_names)}; name --images"
        )
    return data
