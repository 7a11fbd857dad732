"""Readers of data sets on disk. Each checks what it reads before anything is built on it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from utils import labels
from utils.errors import UserError
from utils.images import IMAGE_SUFFIXES

RAFDB_URL = "http://www.whdeng.cn/raf/model1.html"
AFFECTNET_URL = "http://mohammadmahoor.com/affectnet/"
# What lies at the top of AffectNet as its authors give it, before conversion.
RAW_AFFECTNET = ("train_set", "Manually_Annotated_Images", "Manually_Annotated", "affectnet.csv")
# Lies beside the class folders until their conversion has ended.
UNFINISHED = ".conversion_unfinished"


@dataclass(frozen=True)
class Split:
    """Files and labels as two arrays: 300,000 images are a few MB, which worker processes share
    (a list of paths would be copied into each, as counting references writes to it)."""

    root: Path
    names: np.ndarray  # (N,) bytes, file names relative to root
    labels: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    def counts(self, num_class: int) -> np.ndarray:
        return np.bincount(self.labels, minlength=num_class)


@dataclass(frozen=True)
class FaceData:
    """A data set: what trains, what is held out, and what the labels mean."""

    name: str
    run_name: str  # what its runs' folders are called
    class_names: tuple[str, ...]
    train: Split
    val: Split
    published: dict[str, Sequence[int]] | None = None  # images a class, by split, where known

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Changes with any file's name, label or place; not with the folder that holds them."""
        arrays = [a for split in (self.train, self.val) for a in (split.names, split.labels)]
        return f"{crc32(b''.join(array.tobytes() for array in arrays)):08x}"

    def summary(self, *, compare: bool = True) -> str:
        """Images per class of both splits as aligned text, and whether they are the published."""
        counts = [split.counts(self.num_class) for split in (self.train, self.val)]
        width = max(len("total"), *map(len, self.class_names))
        lines = [f"{self.name:<{width}}   train     val"]
        for name, train, val in zip(self.class_names, *counts, strict=True):
            lines.append(f"{name:<{width}}  {train:6d}  {val:6d}")
        lines.append(f"{'total':<{width}}  {len(self.train):6d}  {len(self.val):6d}")
        if compare and self.published is not None:
            same = all(map(np.array_equal, counts, self.published.values()))
            verdict = "are" if same else "differ from"
            lines.append(f"These {verdict} the published counts of {self.name}.")
        return "\n".join(lines)


def read_rafdb(root: str | os.PathLike) -> FaceData:
    """RAF-DB's basic emotions: `EmoLabel/list_patition_label.txt` and `Image/aligned/`.

    Raises:
        UserError: files are missing or the label file has bad lines; all problems together.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; get RAF-DB from {RAFDB_URL} and unpack it there, "
            "give its place with --raf_path, or try --toy, which needs no data"
        )
    label_file = root / "EmoLabel" / "list_patition_label.txt"
    image_folder = root / "Image" / "aligned"
    for path in (label_file, image_folder):
        if not path.exists():
            raise UserError(
                f"{path}: missing; {root} should hold EmoLabel/list_patition_label.txt and "
                "Image/aligned/ as RAF-DB's basic set does"
            )
    present = set(os.listdir(image_folder))
    names, codes, problems, seen = [], [], [], {}
    for number, line in enumerate(_read_lines(label_file), start=1):
        if not line.strip():
            continue
        name, code = _parse_rafdb_line(line)
        if name is None:
            problems.append(f"line {number} {line.strip()[:60]!r} is not '{code}'")
            continue
        if name in seen:
            problems.append(f"line {number} repeats {name} of line {seen[name]}")
            continue
        seen[name] = number
        aligned = f"{Path(name).stem}_aligned.jpg"
        if aligned not in present:
            problems.append(f"Image/aligned/{aligned} (line {number}) is missing")
            continue
        names.append(aligned)
        codes.append(code - 1)
    _raise_problems(label_file, problems)
    names, codes = np.array(names, dtype="S"), np.array(codes, dtype=np.int64)
    splits = {}
    for split in ("train", "test"):
        mine = np.char.startswith(names, split.encode()) if len(names) else np.zeros(0, bool)
        if mine.sum() < 2:
            raise UserError(f"{label_file}: lists {mine.sum()} {split}_*.jpg images; expected more")
        splits[split] = Split(image_folder, names[mine], codes[mine])
    return FaceData(
        "RAF-DB",
        "rafdb",
        labels.RAFDB,
        splits["train"],
        splits["test"],
        published=labels.RAFDB_COUNTS,
    )


def _parse_rafdb_line(line: str) -> tuple[str, int] | tuple[None, str]:
    """`train_00001.jpg 5` -> its two fields, or None and what was expected."""
    fields = line.split()
    if len(fields) != 2 or not fields[0].startswith(("train_", "test_")):
        return None, "train_NNNNN.jpg LABEL or test_NNNN.jpg LABEL"
    if Path(fields[0]).name != fields[0] or Path(fields[0]).suffix.lower() != ".jpg":
        return None, "train_NNNNN.jpg LABEL or test_NNNN.jpg LABEL"
    if fields[1] not in ("1", "2", "3", "4", "5", "6", "7"):
        return None, "a label from 1 to 7"
    return fields[0], int(fields[1])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not plain text in UTF-8; convert or replace it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _raise_problems(where: Path, problems: list[str]) -> None:
    """All problems in one error: how many, and the first five by name."""
    if problems:
        more = ", ..." if len(problems) > 5 else ""
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{where}: {count}: {'; '.join(problems[:5])}{more}")


def read_affectnet(root: str | os.PathLike, *, num_class: int | None = None) -> FaceData:
    """AffectNet as class folders 0-7, or any other data set as class folders of other names.

    Args:
        num_class: 8 or 7 (without contempt), 8 where not given; other data sets have as many
            classes as folders.

    Raises:
        UserError: no data set, one that is to be converted first, or as `read_class_folders`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; get AffectNet from {AFFECTNET_URL} and unpack it there, "
            "give its place with --aff_path, or try --toy, which needs no data"
        )
    convert = f"python utils/convert_affectnet.py --aff_path {root}"
    if (root / UNFINISHED).exists():
        raise UserError(f"{root}: its conversion was interrupted; continue it with {convert}")
    raw = [name for name in RAW_AFFECTNET if (root / name).exists()]
    if raw and not (root / "train").is_dir():
        raise UserError(f"{root}: holds {raw[0]} but no class folders; make them with {convert}")
    folders = _subfolders(root / "train") if (root / "train").is_dir() else []
    codes = set(map(str, range(len(labels.AFFECTNET))))
    if not set(folders) <= codes:
        data = read_class_folders(root)
        if num_class not in (None, data.num_class):
            raise UserError(
                f"{root}: has {data.num_class} class folders, but --num_class is {num_class}; "
                "leave it out"
            )
        return data
    num_class = len(labels.AFFECTNET) if num_class is None else num_class
    splits = _read_splits(root, tuple(map(str, range(num_class))))
    published = {split: counts[:num_class] for split, counts in labels.AFFECTNET_COUNTS.items()}
    names = labels.AFFECTNET[:num_class]
    return FaceData("AffectNet", f"affectnet-{num_class}", names, *splits, published=published)


def read_class_folders(root: str | os.PathLike) -> FaceData:
    """Any data set as `train/<class>/` and `val/<class>/` (or `test/<class>/`) of image files;
    the folders' names, sorted, are the classes.

    Raises:
        UserError: the splits differ in their folders, or a class is empty.
    """
    root = Path(root)
    train, val = (_subfolders(folder) for folder in _split_folders(root))
    differing = sorted(set(train) ^ set(val))
    if differing:
        raise UserError(
            f"{root}: its two splits hold different classes; only one of them has "
            f"{', '.join(differing)}"
        )
    if len(train) < 2:
        raise UserError(f"{root}: train/ has {len(train)} class folders; at least 2 are needed")
    name = root.resolve().name
    return FaceData(name, name, tuple(train), *_read_splits(root, tuple(train)))


def _split_folders(root: Path) -> tuple[Path, Path]:
    """`train/` and `val/`, or `test/` where there is no `val/`."""
    train, val = root / "train", root / "val"
    if not val.is_dir():
        val = root / "test"
    for folder, wanted in ((train, "train/"), (val, "val/ (or test/)")):
        if not folder.is_dir():
            raise UserError(f"{root}: has no {wanted} with one folder of images a class")
    return train, val


def _read_splits(root: Path, keys: Sequence[str]) -> list[Split]:
    """Both splits of a tree of class folders; labels are the folders' places in `keys`."""
    splits, empty = [], []
    for folder in _split_folders(root):
        files = [_image_names(folder / key) for key in keys]
        empty += [str(folder / k) for k, names in zip(keys, files, strict=True) if not len(names)]
        class_labels = np.repeat(np.arange(len(keys)), [len(names) for names in files])
        splits.append(Split(folder, np.concatenate(files), class_labels))
    if empty:
        raise UserError(
            f"{root}: no images in {', '.join(empty)}; every class needs some in both splits"
        )
    return splits


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _image_names(folder: Path) -> np.ndarray:
    """(N,) bytes `<folder's name>/<file>`, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return np.empty(0, dtype="S1")
    prefix = os.fsencode(folder.name) + b"/"
    with os.scandir(os.fsencode(folder)) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(_SUFFIX_BYTES)]
    return np.array(sorted(prefix + n for n in names if not n.startswith(b".")), dtype="S")


_SUFFIX_BYTES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)
