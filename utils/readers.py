"""Readers of data sets on disk. Each checks what it reads before anything is built on it.

`read_...` raise an error that names the first problems; `scan_...` return all of them beside what
can be used, for `utils.check_data`. No image is decoded here.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils import labels
from utils.errors import UserError
from utils.face_data import FaceData, Problem, Scan, Split
from utils.images import IMAGE_SUFFIXES
from utils.text_files import read_lines

RAFDB_URL = "http://www.whdeng.cn/raf/model1.html"
AFFECTNET_URL = "http://mohammadmahoor.com/affectnet/"
# What lies at the top of AffectNet as its authors give it, before conversion.
RAW_AFFECTNET = ("train_set", "Manually_Annotated_Images", "Manually_Annotated", "affectnet.csv")
# Lies beside the class folders until their conversion has ended.
UNFINISHED = ".conversion_unfinished"

RAFDB_LABELS = "EmoLabel/list_patition_label.txt"
RAFDB_IMAGES = "Image/aligned"
_RAFDB_NAME = re.compile(r"(train|test)_\w+\.(?i:jpg)", re.ASCII)
_SUFFIX_BYTES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)


# --- RAF-DB ---


def read_rafdb(root: str | os.PathLike) -> FaceData:
    """RAF-DB's basic emotions: `EmoLabel/list_patition_label.txt` and `Image/aligned/`.

    Raises:
        UserError: files are missing, the label file has bad lines, or a class has no image.
    """
    return scan_rafdb(root).whole(Path(root))


def scan_rafdb(root: str | os.PathLike) -> Scan:
    """RAF-DB with all its problems: bad lines, missing images, splits and classes without any.

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
    for path in (label_file, image_folder):
        if not os.path.exists(path):
            raise UserError(
                f"{path}: missing; {root} should hold {RAFDB_LABELS} and {RAFDB_IMAGES}/ as "
                "RAF-DB's basic set does"
            )
    present = {entry.name: entry.is_file() for entry in _entries(image_folder)}
    listed, problems = _read_rafdb_labels(label_file)
    found = {"train": [], "test": []}
    for name, (number, code) in listed.items():
        aligned = f"{Path(name).stem}_aligned.jpg"
        if present.get(aligned):
            found[name.partition("_")[0]].append((aligned, code - 1))
        else:
            reason = "not a file" if aligned in present else "missing"
            reason += f", but line {number} of {label_file.name} lists it"
            problems.append(Problem(f"{RAFDB_IMAGES}/{aligned}", reason))
    problems += _rafdb_gaps([(name.partition("_")[0], code) for name, (_, code) in listed.items()])
    splits = []
    for rows in found.values():
        names = np.array([name for name, _ in rows], dtype="S")
        codes = np.array([code for _, code in rows], dtype=np.int64)
        splits.append(Split(image_folder, names, codes))
    data = FaceData("RAF-DB", "rafdb", labels.RAFDB, *splits, published=labels.RAFDB_COUNTS)
    return Scan(data, problems)


def _read_rafdb_labels(path: Path) -> tuple[dict[str, tuple[int, int]], list[Problem]]:
    """{`train_00001.jpg`: (its line, its label from 1 to 7)}, and the lines that say something
    else."""
    listed, problems = {}, []
    for number, line in read_lines(path):
        name, *rest = line.split()
        if not _RAFDB_NAME.fullmatch(name) or len(rest) != 1:
            reason = f"{line[:60]!r} is not 'train_NNNNN.jpg LABEL' or 'test_NNNN.jpg LABEL'"
        elif rest[0] not in ("1", "2", "3", "4", "5", "6", "7"):
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


def _rafdb_gaps(listed: Sequence[tuple[str, int]]) -> list[Problem]:
    """Splits without an image, and classes without one to train on, from (split, label) pairs."""
    gaps = [
        f"lists no {split}_*.jpg image"
        for split in ("train", "test")
        if not any(own == split for own, _ in listed)
    ]
    codes = {code for split, code in listed if split == "train"}
    for code, name in enumerate(labels.RAFDB, start=1):
        if codes and code not in codes:
            gaps.append(f"lists no train_*.jpg image of {name} (label {code})")
    return [Problem(RAFDB_LABELS, gap, of_label=True) for gap in gaps]


# --- AffectNet and other class folders ---


def read_affectnet(root: str | os.PathLike, *, num_class: int | None = None) -> FaceData:
    """AffectNet as class folders 0-7, or any other data set as class folders of other names.

    Args:
        num_class: 8 or 7 (without contempt), 8 where not given; other data sets have as many
            classes as folders.

    Raises:
        UserError: no data set, one that is to be converted first, a class without images in one
            of the splits, or folders named like images.
    """
    return scan_affectnet(root, num_class=num_class).whole(Path(root))


def scan_affectnet(root: str | os.PathLike, *, num_class: int | None = None) -> Scan:
    """As `read_affectnet`, with all problems of the classes and of what lies in their folders.

    Raises:
        UserError: there are no class folders, or other than asked for.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root}: no such folder; get AffectNet from {AFFECTNET_URL} and unpack it there, "
            "give its place with --aff_path, or try --toy, which needs no data"
        )
    convert = f"python utils/convert_affectnet.py --aff_path {shlex.quote(str(root))}"
    if os.path.exists(root / UNFINISHED):
        raise UserError(f"{root}: its conversion was interrupted; continue it with {convert}")
    raw = [name for name in RAW_AFFECTNET if os.path.exists(root / name)]
    if raw and not os.path.isdir(root / "train"):
        raise UserError(f"{root}: holds {raw[0]} but no class folders; make them with {convert}")
    codes = set(map(str, range(len(labels.AFFECTNET))))
    if os.path.isdir(root / "train") and not set(_subfolders(root / "train")) <= codes:
        scan = scan_class_folders(root)
        if num_class not in (None, scan.data.num_class):
            raise UserError(
                f"{root}: has {scan.data.num_class} class folders of its own, but {num_class} "
                "classes were asked for; leave --num_class out, or give another --aff_path"
            )
        return scan
    num_class = len(labels.AFFECTNET) if num_class is None else num_class
    splits, problems = _scan_splits(root, tuple(map(str, range(num_class))))
    published = {split: counts[:num_class] for split, counts in labels.AFFECTNET_COUNTS.items()}
    names = labels.AFFECTNET[:num_class]
    data = FaceData("AffectNet", f"affectnet-{num_class}", names, *splits, published=published)
    return Scan(data, problems)


def scan_class_folders(root: str | os.PathLike) -> Scan:
    """Any data set as `train/<class>/` and `val/<class>/` (or `test/<class>/`) of image files;
    the folders' names, sorted, are the classes.

    Raises:
        UserError: there are no such folders, or their names cannot name classes.
    """
    root = Path(root)
    keys = sorted({key for folder in _split_folders(root) for key in _subfolders(folder)})
    if len(keys) < 2:
        count = f"{len(keys)} class folder{'' if len(keys) == 1 else 's'}"
        raise UserError(f"{root}: has {count} in train/ and val/; at least 2 are needed")
    name = root.resolve().name
    for folder in (name, *keys):
        if not labels.is_name(folder):
            raise UserError(f"{root}: a folder is called {folder!r}; rename it to plain text")
    splits, problems = _scan_splits(root, keys)
    return Scan(FaceData(name, name, tuple(keys), *splits), problems)


def _split_folders(root: Path) -> tuple[Path, Path]:
    """`train/` and `val/`, or `test/` where there is no `val/`."""
    train, val = root / "train", root / "val"
    if not os.path.isdir(val):
        val = root / "test"
    for folder, wanted in ((train, "train/"), (val, "val/ (or test/)")):
        if not os.path.isdir(folder):
            raise UserError(f"{root}: has no {wanted} with one folder of images a class")
    return train, val


def _scan_splits(root: Path, keys: Sequence[str]) -> tuple[list[Split], list[Problem]]:
    """Both splits of a tree of class folders; labels are the folders' places in `keys`."""
    splits, problems = [], []
    for folder in _split_folders(root):
        files = []
        for key in keys:
            names, no_files = _image_names(folder / key)
            files.append(names)
            problems += [Problem(f"{folder.name}/{name}", "not a file") for name in no_files]
            if not len(names):
                reason = "no images; every class needs some in both splits"
                problems.append(Problem(f"{folder.name}/{key}", reason, of_label=True))
        class_labels = np.repeat(np.arange(len(keys)), [len(names) for names in files])
        splits.append(Split(folder, np.concatenate(files), class_labels))
    return splits, problems


def _subfolders(folder: Path) -> list[str]:
    return sorted(e.name for e in _entries(folder) if e.is_dir() and not e.name.startswith("."))


def _image_names(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The images of a class folder as (N,) bytes `<folder's name>/<file>`, sorted, and what is
    named like one but is no file: a folder, a link to nothing. None where there is no folder."""
    names, no_files = [], []
    prefix = os.fsencode(folder.name) + b"/"
    for entry in _entries(os.fsencode(folder)) if os.path.isdir(folder) else ():
        if entry.name.lower().endswith(_SUFFIX_BYTES) and not entry.name.startswith(b"."):
            (names if entry.is_file() else no_files).append(prefix + entry.name)
    return np.array(sorted(names), dtype="S"), sorted(map(os.fsdecode, no_files))


def _entries(folder: Path | bytes) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{os.fsdecode(folder)}: cannot be read ({error.strerror})") from None
