"""Data sets: how they lie on disk, and what they are in memory.

`read_...` refuse a data set with anything wrong; `scan_...` return all that is wrong beside what
can be used, for `utils/check_data.py`. No image is decoded here.
"""

import csv
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

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
    """Files and labels as two arrays: 300,000 images take a few MB, which worker processes share.
    (A list of paths would be copied into each of them, as reference counts are written to it.)"""

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

    Args:
        class_names: any sequence of names; labels index it.
        train: images to train on.
        val: images to choose the best epoch on; the test images where a data set has no others.
        test: images to report on, which choose nothing; None if `val` are the test images.
        root: the folder of the whole data set.
        published: images per class of each split, where known.
        notes: lines for the summary.

    Raises:
        UserError: class names that are not distinct names, labels outside of them, names and
            labels of different length, or a split without images.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    root: Path | None = None
    test: Split | None = None
    toy: bool = False
    published: Mapping[str, Sequence[int]] | None = None
    notes: tuple[str, ...] = ()
    whole: str = ""  # fingerprint before a validation part was set aside

    def __post_init__(self):
        # Plain text: checkpoints keep it and refuse other types, such as NumPy's strings.
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        where, names = self.train.root, ", ".join(self.class_names)
        if not all(map(labels.is_name, (self.name, *self.class_names))):
            raise UserError(f"{where}: {self.name} with the classes {names}: not all are names")
        if len(set(self.class_names)) < self.num_class:
            raise UserError(f"{where}: a class is named twice ({names}); name each once")
        for split in self.splits.values():
            if len(split.names) != len(split):
                raise UserError(f"{split.root}: {len(split)} labels for {len(split.names)} images")
            if not len(split):
                raise UserError(f"{split.root}: one of the splits has no images")
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
    def title(self) -> str:
        return labels.title(self.name, toy=self.toy)

    def fingerprint(self) -> str:
        """A checksum of all file names and labels, whatever folder holds them."""
        arrays = [a for split in self.splits.values() for a in (split.names, split.labels)]
        return f"{crc32(b''.join(array.tobytes() for array in arrays)):08x}"

    def summary(self) -> str:
        """Images per class of each split as aligned text, and how they compare to the published
        numbers."""
        counts = [split.counts(self.num_class) for split in self.splits.values()]
        width = max(len("total"), len(self.title), *map(len, self.class_names))
        rows = [*zip(self.class_names, *counts, strict=True)]
        rows = [(self.title, *self.splits), *rows, ("total", *map(len, self.splits.values()))]
        lines = [f"{name:<{width}}" + "".join(f"  {n:>6}" for n in row) for name, *row in rows]
        if not self.toy and self.published is not None:
            same = all(map(np.array_equal, counts, self.published.values()))
            verdict = "are" if same else "differ from"
            lines.append(f"These {verdict} the published counts of {self.name}.")
        return "\n".join([*lines, *self.notes])

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
            Split(self.train.root, self.train.names[part], self.train.labels[part])
            for part in (~chosen, chosen)
        )
        whole = self.fingerprint()
        return replace(self, train=train, val=val, test=self.val, published=None, whole=whole)


class Problem(NamedTuple):
    """Something in a data set that has to be corrected before training."""

    where: str  # relative to the data set: an image, a folder, or a line as FILE:NUMBER
    reason: str
    of_label: bool = False  # otherwise of an image file

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Scan:
    """What of a data set can be used, and all that is wrong with it; FaceData's arguments."""

    root: Path
    name: str
    class_names: tuple[str, ...]
    splits: list[Split]
    problems: list[Problem]
    left_out: int  # images that BAD_IMAGES names
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by suffix
    published: Mapping[str, Sequence[int]] | None = None
    notes: tuple[str, ...] = ()

    def whole(self) -> FaceData:
        """The data set, if nothing is wrong with it.

        Raises:
            UserError: the number of problems, the first five, and what to do.
        """
        toy = os.path.exists(self.root / TOY_MARKER)
        if self.problems:
            command = f"python utils/check_data.py {shlex.quote(str(self.root))}"
            more = f"; for all of them: {command}" if len(self.problems) > 5 else ""
            shown = "; ".join(map(str, self.problems[:5]))
            remedy = f"correct that, or leave images out with {command} --exclude"
            if toy:
                remedy = "remove this toy set, and --toy draws it anew"
            count = plural(len(self.problems), "problem")
            raise UserError(f"{self.root}: {count}: {shown}; {remedy}{more}")
        notes = () if toy else self.notes
        if self.left_out:
            notes += (f"{plural(self.left_out, 'image')} left out, listed in {BAD_IMAGES}",)
        if self.others:
            notes += (f"not images, and left out: {describe_others(self.others)}",)
        train, val, *test = self.splits
        return FaceData(
            *(self.name, self.class_names, train, val, self.root, *test),
            toy=toy,
            published=self.published,
            notes=notes,
        )


def bad_images(root: Path) -> set[str]:
    """Images that BAD_IMAGES says to leave out, relative to the data set."""
    try:
        with open(root / BAD_IMAGES, encoding="utf-8", errors="surrogateescape") as file:
            return {row["path"] for row in csv.DictReader(file)}
    except FileNotFoundError:
        return set()
    except KeyError:
        raise UserError(f"{root / BAD_IMAGES}: has no column path; remove it") from None


# ---- RAF-DB --------------------------------------------------------------------------------------

RAFDB_LABELS = "EmoLabel/list_patition_label.txt"
RAFDB_IMAGES = "Image/aligned"
_RAFDB_NAME = re.compile(r"(train|test)_\w+\.(?i:jpg)", re.ASCII)


def read_rafdb(root: str | os.PathLike) -> FaceData:
    """Read RAF-DB's basic set: `EmoLabel/list_patition_label.txt` and `Image/aligned/`, or class
    folders `train/1 ... 7` and `test/1 ... 7`.

    Raises:
        UserError: files are missing, the label file has bad lines, or a class has no image.
    """
    return scan_rafdb(root).whole()


def scan_rafdb(root: str | os.PathLike) -> Scan:
    """Read RAF-DB with everything that is wrong with it.

    Raises:
        UserError: the label file or the folder of images is missing or cannot be read.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; get RAF-DB from {RAFDB_URL} and unpack it there, "
            "give its place with --raf_path, or try --toy, which needs no data"
        )
    label_file, image_folder = root / RAFDB_LABELS, root / RAFDB_IMAGES
    if not os.path.exists(label_file) and (splits := find_splits(root)):
        names, published = labels.RAFDB, labels.RAFDB_COUNTS
        return _scan_class_folders(root, splits, [*"1234567"], "RAF-DB", names, published)
    for path in (label_file, image_folder):
        if not os.path.exists(path):
            raise UserError(
                f"{path}: missing; {root} should hold {RAFDB_LABELS} and {RAFDB_IMAGES}/ as "
                "RAF-DB's basic set does, or train/1 ... 7 and test/1 ... 7"
            )
    present = {path.removeprefix(f"{image_folder}{os.sep}") for path in walk_files(image_folder)}
    excluded, left_out = bad_images(root), 0
    listed, problems = _read_rafdb_labels(label_file)
    found = {"train": [], "test": []}
    for name, (number, code) in listed.items():
        aligned = f"{Path(name).stem}_aligned.jpg"
        if f"{RAFDB_IMAGES}/{aligned}" in excluded:
            left_out += 1
        elif aligned in present:
            found[name.partition("_")[0]].append((aligned, code - 1))
        else:
            reason = f"missing, but line {number} of {label_file.name} lists it"
            problems.append(Problem(f"{RAFDB_IMAGES}/{aligned}", reason))
    for split in found:
        if not any(name.startswith(split) for name in listed):
            problems.append(Problem(RAFDB_LABELS, f"lists no {split}_*.jpg image", True))
    codes = {code for name, (_, code) in listed.items() if name.startswith("train")}
    for code, name in enumerate(labels.RAFDB, start=1):
        if codes and code not in codes:
            reason = f"lists no train_*.jpg image of {name} (label {code})"
            problems.append(Problem(RAFDB_LABELS, reason, True))
    splits = [
        Split(
            image_folder,
            np.array([name for name, _ in rows], dtype="S"),
            np.array([code for _, code in rows], dtype=np.int64),
        )
        for rows in found.values()
    ]
    names, published = labels.RAFDB, labels.RAFDB_COUNTS
    return Scan(root, "RAF-DB", names, splits, problems, left_out, published=published)


def _read_rafdb_labels(path: Path) -> tuple[dict[str, tuple[int, int]], list[Problem]]:
    """{`train_00001.jpg`: (its line, its label from 1 to 7)}, and the lines that say something
    else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not plain text in UTF-8; get another copy") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    listed, problems = {}, []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split()
        if not _RAFDB_NAME.fullmatch(name) or len(rest) != 1:
            reason = f"{line[:60]!r} is not 'train_NNNNN.jpg LABEL' or 'test_NNNN.jpg LABEL'"
        elif rest[0] not in [*"1234567"]:
            reason = f"{line[:60]!r} has no label from 1 to 7"
        elif name in listed:
            other, code = listed[name]
            reason = f"repeats {name} of line {other}"
            reason += "" if code == int(rest[0]) else f", which gives it label {code}"
        else:
            listed[name] = number, int(rest[0])
            continue
        problems.append(Problem(f"{RAFDB_LABELS}:{number}", reason, of_label=True))
    return listed, problems


# ---- AffectNet and other class folders -----------------------------------------------------------

# What lies at the top of AffectNet as its authors distribute it, before conversion.
RAW_AFFECTNET = ("train_set", "Manually_Annotated_Images", "Manually_Annotated", "affectnet.csv")
SPLIT_NAMES = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


def read_affectnet(root: str | os.PathLike, *, num_class: int | None = None) -> FaceData:
    """Read AffectNet as class folders 0-7, or any data set as class folders of other names.

    Args:
        num_class: 8 or 7 (without contempt), 8 if None; other data sets have as many classes as
            folders.

    Raises:
        UserError: no data set, one that has to be converted first, a class without images in one
            of the splits, or folders whose names do not say which classes they are.
    """
    return scan_affectnet(root, num_class=num_class).whole()


def scan_affectnet(root: str | os.PathLike, *, num_class: int | None = None) -> Scan:
    """Read AffectNet, or other class folders, with everything that is wrong with them.

    Raises:
        UserError: there are no class folders, or other ones than asked for.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; get AffectNet from {AFFECTNET_URL} and unpack it there, "
            "give its place with --aff_path, or try --toy, which needs no data"
        )
    convert = f"python utils/convert_affectnet.py --aff_path {shlex.quote(str(root))}"
    if os.path.exists(root / UNFINISHED):
        command = (root / UNFINISHED).read_text().strip() or convert
        raise UserError(f"{root}: its conversion was interrupted; continue it with {command}")
    splits = find_splits(root)
    if not splits:
        for name in RAW_AFFECTNET:
            if os.path.exists(root / name):
                raise UserError(f"{root}: holds {name} but no class folders; make them: {convert}")
        raise UserError(
            f"{root}: has no train/ and val/ (or valid/, validation/, test/) with one folder of "
            "images per class"
        )
    keys = sorted({key for folder in splits for key in _class_folders(folder)})
    if all(key.isdecimal() for key in keys):
        _refuse_other_numbers(root, splits[0], keys, num_class)
        codes = range(len(labels.AFFECTNET) if num_class is None else num_class)
        published = {split: n[: len(codes)] for split, n in labels.AFFECTNET_COUNTS.items()}
        names = labels.AFFECTNET[: len(codes)]
        return _scan_class_folders(root, splits, [*map(str, codes)], "AffectNet", names, published)
    if len(keys) < 2:
        raise UserError(f"{root}: has {plural(len(keys), 'class folder')}; at least 2 are needed")
    for folder in (root.resolve().name, *keys):
        if not labels.is_name(folder):
            raise UserError(f"{root}: a folder is called {folder!r}; rename it to plain text")
    if num_class not in (None, len(keys)):
        raise UserError(
            f"{root}: has {len(keys)} class folders of its own, but --num_class {num_class} was "
            "given; leave it out, or give another --aff_path"
        )
    return _scan_class_folders(root, splits, keys, root.resolve().name, tuple(keys))


def affectnet_run_name(root: str | os.PathLike, num_class: int | None) -> str:
    """What runs on `read_affectnet`'s data are called."""
    splits = find_splits(Path(root)) if os.path.isdir(root) else None
    if splits and not all(key.isdecimal() for key in _class_folders(splits[0])):
        return Path(root).resolve().name
    return f"affectnet-{num_class or len(labels.AFFECTNET)}"


def find_splits(root: Path) -> list[Path] | None:
    """`train/`, `val/` and `test/` by any of their usual names, in `root` or in the only folder
    there; one of the latter two may be missing."""
    folders = {path.name.lower(): path for path in _subfolders(root)}
    found = [
        next((folders[name] for name in names if name in folders), None) for names in SPLIT_NAMES
    ]
    if found[0] and any(found[1:]):
        return [folder for folder in found if folder]
    if len(folders) == 1 and not any(found):
        return find_splits(*folders.values())
    return None


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not is_rubbish(p.name) and p.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _class_folders(split: Path) -> list[str]:
    return [path.name for path in _subfolders(split)]


def _refuse_other_numbers(
    root: Path, train: Path, keys: Sequence[str], num_class: int | None
) -> None:
    """Refuse numbered folders that are known not to be AffectNet's codes."""
    names = ", ".join(f"{i} {name}" for i, name in enumerate(labels.AFFECTNET))
    rename = f"rename the folders to class names, such as train/{keys[0]} to train/happy"
    some = next(walk_files(train), "")
    if re.fullmatch(r"(train|test)_\d+_aligned\.\w+", os.path.basename(some)):
        raise UserError(
            f"{root}: these are RAF-DB's images; train on them with python rafdb.py --raf_path "
            f"{shlex.quote(str(root))}"
        )
    if not set(keys) <= {*"01234567"} or "0" not in keys:
        raise UserError(
            f"{root}: the folders {', '.join(keys)} are not AffectNet's ({names}); {rename}"
        )
    fer2013 = labels.FER2013_COUNTS["train"]
    # Lazily: walking all of AffectNet takes seconds, and it differs in its first folder.
    if len(keys) == len(fer2013) and all(
        sum(1 for _ in walk_files(train / key)) == count
        for key, count in zip(keys, fer2013, strict=True)
    ):
        raise UserError(f"{root}: these are FER2013's folders, not AffectNet's ({names}); {rename}")
    if num_class is None and set(keys) == {*"0123456"}:
        raise UserError(
            f"{root}: has no folder 7 (contempt); for AffectNet without it give --num_class 7; if "
            f"this is another data set, {rename}"
        )


def _scan_class_folders(
    root: Path,
    folders: Sequence[Path],
    keys: Sequence[str],
    name: str,
    class_names: tuple[str, ...],
    published: Mapping[str, Sequence[int]] | None = None,
) -> Scan:
    """Read the splits of a tree of class folders; labels index `keys`, the folders' names."""
    excluded, left_out = {os.fsencode(path) for path in bad_images(root)}, 0
    splits, problems, others = [], [], Counter()
    for folder in folders:
        prefix = os.fsencode(os.path.relpath(folder, root)) + b"/"
        files = []
        for key in keys:
            below = walk_files(folder / key) if os.path.isdir(folder / key) else ()
            names = []
            for path in below:
                if has_suffix(path, IMAGE_SUFFIXES):
                    names.append(os.fsencode(path.removeprefix(f"{folder}{os.sep}")))
                else:
                    others[os.path.splitext(path)[1].lower()] += 1
            kept = [name for name in names if prefix + name not in excluded]
            left_out += len(names) - len(kept)
            files.append(np.array(kept, dtype="S"))
            if not kept:
                where = f"{os.fsdecode(prefix)}{key}"
                problems.append(Problem(where, "no images; each class needs some", of_label=True))
        class_labels = np.repeat(np.arange(len(keys)), [len(names) for names in files])
        splits.append(Split(folder, np.concatenate(files), class_labels))
    notes = ()
    counts = [split.counts(len(keys)) for split in splits]
    if name == "AffectNet" and not all(map(np.array_equal, counts, published.values())):
        assumed = ", ".join(f"{key} {name}" for key, name in zip(keys, class_names, strict=True))
        notes = (f"The folders are taken for AffectNet's: {assumed}.",)
    return Scan(root, name, class_names, splits, problems, left_out, others, published, notes)


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


def data_root(trained: "TrainedDAN") -> str | None:
    """Where its data set lies, as far as the checkpoint says."""
    return next((locate(trained.config[name]) for name in SOURCES if name in trained.config), None)


def data_of(trained: "TrainedDAN") -> FaceData | None:
    """Read the data set that a network was trained on; None if the checkpoint does not say which.

    Raises:
        UserError: it is not there or not whole, or has other classes now.
    """
    root = data_root(trained)
    if root is None:
        return None
    flag = next(name for name in SOURCES if name in trained.config)
    source = SOURCES[flag]
    if not os.path.isdir(root):
        remedy = "put the data there, or a link to them,"
        if trained.toy:
            command = f"python {source.script} --evaluate --checkpoint"
            remedy = f"draw them with {command} {shlex.quote(str(trained.path))}"
        raise UserError(
            f"{root}: no such folder, but {trained.path} was trained on the data there; "
            f"{remedy} or name --images"
        )
    data = source.read({**trained.config, flag: root})
    if data.class_names != trained.class_names:
        raise UserError(
            f"{trained.path}: trained on {', '.join(trained.class_names)}, but {root} "
            f"now has {', '.join(data.class_names)}; name --images"
        )
    return data
