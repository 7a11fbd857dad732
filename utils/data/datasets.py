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

    Raises:
        UserError: a split without images, or labels outside of the classes.
    """

    name: str
    class_names: tuple[str, ...]  # labels index it; made of any sequence of names
    train: Split
    val: Split  # chooses the best epoch; the test images where a data set has no others
    root: Path | None = None  # the folder of the whole data set
    test: Split | None = None  # to report on, choosing nothing; None if `val` are the test images
    toy: bool = False
    published: Mapping[str, Sequence[int]] | None = None  # images per class of each split
    notes: Sequence[str] = ()  # lines for the summary
    whole: str = ""  # fingerprint before a validation part was set aside

    def __post_init__(self):
        # Plain text: checkpoints keep it and refuse other types, such as NumPy's strings.
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        for name, split in self.splits.items():
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
            replace(self.train, names=self.train.names[part], labels=self.train.labels[part])
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


@dataclass
class Scan:
    """What of a data set can be used, and all that is wrong with it."""

    root: Path
    name: str
    class_names: tuple[str, ...]
    published: Mapping[str, Sequence[int]] | None = None
    splits: list[Split] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: int = 0  # images that BAD_IMAGES names
    others: Counter[str] = field(default_factory=Counter)  # files that are not images, by suffix
    notes: list[str] = field(default_factory=list)

    def whole(self) -> FaceData:
        """The data set, if nothing is wrong with it.

        Raises:
            UserError: the number of problems, the first five, and what to do.
        """
        if self.problems:
            command = f"python utils/check_data.py {shlex.quote(str(self.root))}"
            more = f"; for all of them: {command}" if len(self.problems) > 5 else ""
            raise UserError(
                f"{self.root}: {plural(len(self.problems), 'problem')}: "
                f"{'; '.join(map(str, self.problems[:5]))}; correct that, or leave images out "
                f"with {command} --exclude{more}"
            )
        toy = os.path.exists(self.root / TOY_MARKER)
        notes = [] if toy else [*self.notes]
        if self.left_out:
            notes.append(f"{plural(self.left_out, 'image')} left out, listed in {BAD_IMAGES}")
        if self.others:
            notes.append(f"not images, and left out: {describe_others(self.others)}")
        train, val, test = (*self.splits, None)[:3]
        return FaceData(
            self.name, self.class_names, train, val, self.root, test, toy, self.published, notes
        )


# ---- what the readers share ----------------------------------------------------------------------

SPLIT_NAMES = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


def bad_images(root: Path) -> set[str]:
    """Images that BAD_IMAGES says to leave out, relative to the data set."""
    path = root / BAD_IMAGES
    if not path.exists():
        return set()
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise UserError(f"{path}: has no column path; remove it")
        return {row["path"] for row in rows}


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
    return sorted(p for p in folder.iterdir() if not is_rubbish(p.name) and p.is_dir())


def _scan_class_folders(scan: Scan, folders: Sequence[Path], keys: Sequence[str]) -> Scan:
    """Fill a scan from the splits of a tree of class folders; labels index `keys`, their names."""
    excluded = bad_images(scan.root)
    for folder in folders:
        prefix = f"{os.path.relpath(folder, scan.root)}/"
        names, class_labels = [], []
        for label, key in enumerate(keys):
            for path in walk_files(folder / key) if os.path.isdir(folder / key) else ():
                name = path.removeprefix(f"{folder}{os.sep}")
                if not has_suffix(path, IMAGE_SUFFIXES):
                    scan.others[os.path.splitext(path)[1].lower()] += 1
                elif prefix + name in excluded:
                    scan.left_out += 1
                else:
                    names.append(os.fsencode(name))
                    class_labels.append(label)
            if class_labels[-1:] != [label]:
                reason = "no images; each class needs some"
                scan.problems.append(Problem(prefix + key, reason, of_label=True))
        names, class_labels = np.array(names, dtype="S"), np.array(class_labels, np.int64)
        scan.splits.append(Split(folder, names, class_labels))
    return scan


def _no_folder(root: Path, name: str, url: str, flag: str) -> UserError:
    return UserError(
        f"{root}: no such folder; get {name} from {url} and unpack it there, give its place with "
        f"{flag}, or try --toy, which needs no data"
    )


# ---- RAF-DB --------------------------------------------------------------------------------------

RAFDB_LABELS = "EmoLabel/list_patition_label.txt"
RAFDB_IMAGES = "Image/aligned"
_RAFDB_LINE = re.compile(r"\s*(?P<name>(train|test)_\w+\.(?i:jpg))\s+(?P<code>[1-7])\s*", re.ASCII)


def read_rafdb(root: str | os.PathLike) -> FaceData:
    """Read RAF-DB's basic set: `EmoLabel/list_patition_label.txt` and `Image/aligned/`, or class
    folders `train/1 ... 7` and `test/1 ... 7`.

    Raises:
        UserError: files are missing, the label file has bad lines, or a class has no image.
    """
    return scan_rafdb(root).whole()


def scan_rafdb(root: str | os.PathLike) -> Scan:
    """Read RAF-DB with everything that is wrong with it."""
    root = Path(root)
    if not os.path.isdir(root):
        raise _no_folder(root, "RAF-DB", RAFDB_URL, "--raf_path")
    scan = Scan(root, "RAF-DB", labels.RAFDB, labels.RAFDB_COUNTS)
    label_file, image_folder = root / RAFDB_LABELS, root / RAFDB_IMAGES
    if not label_file.exists() and (splits := find_splits(root)):
        return _scan_class_folders(scan, splits, "1234567")
    for path in (label_file, image_folder):
        if not path.exists():
            raise UserError(
                f"{path}: missing; {root} should hold {RAFDB_LABELS} and {RAFDB_IMAGES}/ as "
                "RAF-DB's basic set does, or train/1 ... 7 and test/1 ... 7"
            )
    present, excluded = set(os.listdir(image_folder)), bad_images(root)
    names, codes = {"train": [], "test": []}, {"train": [], "test": []}
    for name, (number, code) in _read_rafdb_labels(label_file, scan.problems).items():
        split = name.partition("_")[0]
        aligned = f"{Path(name).stem}_aligned.jpg"
        if f"{RAFDB_IMAGES}/{aligned}" in excluded:
            scan.left_out += 1
        elif aligned in present:
            names[split].append(aligned)
            codes[split].append(code)
        else:
            reason = f"missing, but line {number} of {label_file.name} lists it"
            scan.problems.append(Problem(f"{RAFDB_IMAGES}/{aligned}", reason))
    for split, found in codes.items() if not scan.problems else ():
        missing = {*range(1, 8)} - {*found} if split == "train" and found else ()
        reasons = [
            f"no {split} image of {labels.RAFDB[code - 1]} (label {code})" for code in missing
        ]
        reasons += [] if found else [f"no {split} image"]
        scan.problems += [Problem(RAFDB_LABELS, reason, of_label=True) for reason in reasons]
    scan.splits = [
        Split(image_folder, np.array(names[split], dtype="S"), np.array(codes[split], np.int64) - 1)
        for split in names
    ]
    return scan


def _read_rafdb_labels(path: Path, problems: list[Problem]) -> dict[str, tuple[int, int]]:
    """{"train_00001.jpg": (its line, its label from 1 to 7)}; lines that say something else are
    added to the problems."""
    listed = {}
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _RAFDB_LINE.fullmatch(line)
        if match is None:
            reason = (
                f"{line[:60]!r} is not 'train_NNNNN.jpg LABEL' or 'test_NNNN.jpg LABEL', or has "
                "no label from 1 to 7"
            )
        elif match["name"] in listed:
            reason = f"repeats {match['name']} of line {listed[match['name']][0]}"
        else:
            listed[match["name"]] = number, int(match["code"])
            continue
        problems.append(Problem(f"{RAFDB_LABELS}:{number}", reason, of_label=True))
    return listed


# ---- AffectNet, and data sets of any other classes -----------------------------------------------

# What lies at the top of AffectNet as its authors distribute it, before conversion.
RAW_AFFECTNET = ("train_set", "Manually_Annotated_Images", "Manually_Annotated", "affectnet.csv")


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
    """Read AffectNet, or other class folders, with everything that is wrong with them."""
    root = Path(root)
    if not os.path.isdir(root):
        raise _no_folder(root, "AffectNet", AFFECTNET_URL, "--aff_path")
    convert = f"python utils/convert_affectnet.py --aff_path {shlex.quote(str(root))}"
    if (root / UNFINISHED).exists():
        command = (root / UNFINISHED).read_text().strip() or convert
        raise UserError(f"{root}: its conversion was interrupted; continue it with {command}")
    splits = find_splits(root)
    if not splits:
        for name in RAW_AFFECTNET:
            if (root / name).exists():
                raise UserError(f"{root}: holds {name} but no class folders; make them: {convert}")
        raise UserError(
            f"{root}: has no train/ and val/ (or valid/, validation/, test/) with one folder of "
            "images per class"
        )
    keys = sorted({path.name for split in splits for path in _subfolders(split)})
    for key in (root.resolve().name, *keys):
        if not key.isprintable() or not key.strip():
            raise UserError(f"{root}: a folder is called {key!r}; rename it to plain text")
    if len(keys) < 2:
        raise UserError(f"{root}: has {plural(len(keys), 'class folder')}; at least 2 are needed")
    if all(key.isdecimal() for key in keys):
        return _scan_numbered_folders(root, splits, keys, num_class)
    if num_class not in (None, len(keys)):
        raise UserError(
            f"{root}: has {len(keys)} class folders of its own, but --num_class {num_class} was "
            "given; leave it out, or give another --aff_path"
        )
    return _scan_class_folders(Scan(root, root.resolve().name, tuple(keys)), splits, keys)


def _scan_numbered_folders(
    root: Path, splits: Sequence[Path], keys: Sequence[str], num_class: int | None
) -> Scan:
    """Read numbered folders as AffectNet's, unless they are known to be those of another set."""
    codes = [f"{code} {name}" for code, name in enumerate(labels.AFFECTNET)]
    known = f"not AffectNet's ({', '.join(codes)})"
    rename = f"rename the folders to class names, such as train/{keys[0]} to train/happy"
    some_file = os.path.basename(next(walk_files(splits[0]), ""))
    if re.fullmatch(r"(train|test)_\d+_aligned\.\w+", some_file):
        raise UserError(
            f"{root}: these are RAF-DB's images; train on them with python rafdb.py --raf_path "
            f"{shlex.quote(str(root))}"
        )
    if not set(keys) <= {*"01234567"} or "0" not in keys:
        raise UserError(f"{root}: the folders {', '.join(keys)} are {known}; {rename}")
    without_contempt = keys == [*"0123456"]
    count = num_class or (7 if without_contempt else 8)
    published = {split: counts[:count] for split, counts in labels.AFFECTNET_COUNTS.items()}
    scan = Scan(root, "AffectNet", labels.AFFECTNET[:count], published)
    _scan_class_folders(scan, splits, "01234567"[:count])
    counts = [split.counts(count) for split in scan.splits]
    if np.array_equal(counts[0], labels.FER2013_COUNTS["train"]):
        raise UserError(f"{root}: these are FER2013's folders, {known}; {rename}")
    if num_class is None and without_contempt:
        raise UserError(
            f"{root}: has no folder 7 (contempt): give --num_class 7, or if this is another data "
            f"set, {rename}"
        )
    if not all(map(np.array_equal, counts, published.values())):
        scan.notes.append(f"The folders are taken for AffectNet's: {', '.join(codes[:count])}.")
    return scan


def affectnet_run_name(root: str | os.PathLike, num_class: int | None) -> str:
    """What runs on `read_affectnet`'s data are called."""
    splits = find_splits(Path(root)) if os.path.isdir(root) else None
    if splits and not all(folder.name.isdecimal() for folder in _subfolders(splits[0])):
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
