"""What the converters of data sets share: reading their tables, writing class folders."""

import csv
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.datasets import UNFINISHED
from utils.data.images import IMAGE_SUFFIXES, has_suffix, read_rgb, walk_files
from utils.errors import UserError, plural, writing
from utils.progress import progress


@dataclass(slots=True)
class Face:
    """A row of a data set's tables."""

    split: str  # train, val or test
    source: str  # the image's path or name, or its row in the table where it has none
    label: str  # as the data set gives it
    reason: str = ""  # why it is left out; empty where it is used
    target: str = ""  # path below the output folder, such as train/happy/0.jpg
    box: Sequence[str] | None = None  # of a face in a photo: left, top, width, height
    pixels: np.ndarray | None = None  # (h, w) uint8, of an image that is not a file


def read_table(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[tuple[int, list[str], str]]:
    """Read some columns of a CSV file, with commas, semicolons or tabs between its cells.

    Args:
        header: names of the columns of a file that does not give them.

    Yields:
        The line number, the cells without spaces around them, and "". Where a row has more or fewer
        fields than the header, the cells are empty, and a text says so.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = header or [name.strip() for name in next(rows, [])]
            if missing := ", ".join(name for name in columns if name not in header):
                raise UserError(f"{path}: no column {missing}; expected {', '.join(columns)}")
            indices = [header.index(name) for name in columns]
            for row in filter(any, rows):
                if not any(row[len(header) :]):
                    del row[len(header) :]  # empty cells that spreadsheets leave
                if len(row) == len(header):
                    yield rows.line_num, [row[index].strip() for index in indices], ""
                else:
                    problem = f"has {plural(len(row), 'field')}, but the header {len(header)}"
                    yield rows.line_num, [""] * len(columns), problem
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from None


def write_class_folders(
    output: Path,
    faces: Sequence[Face],
    write: Callable[[Path, Face], str],
    *,
    columns: Sequence[str],
    classes: Mapping[str, str],
    published: Mapping[str, Sequence[int] | None],
    workers: int = 1,
) -> str:
    """Write the faces that an earlier conversion has not written, and report what is left out.

    Args:
        output: the folder below which the faces' targets lie.
        write: writes a face there, and returns why it cannot be used, or "".
        columns: what convert_report.csv calls split, source, label and reason.
        classes: folder of each class -> its name in the table.
        published: published number of images per class of each split, where there is one.
        workers: threads that write.

    Returns:
        A table of images per class, why rows were left out, and what to do next.

    Raises:
        UserError: no image can be used, or the class folders hold others, which training would
            read too.
    """
    report = output / "convert_report.csv"
    usable = [face for face in faces if not face.reason]
    with writing(output):
        present = {
            Path(path).relative_to(output).as_posix()
            for split in published
            for name in classes
            for path in walk_files(output / split / name)
            if has_suffix(path, IMAGE_SUFFIXES)
        }
        if others := sorted(present - {face.target for face in usable}):
            raise UserError(
                f"{output}: the class folders hold {plural(len(others), 'image')} that this "
                f"conversion does not put there, such as {others[0]}, perhaps of one with other "
                "labels; move them away or give another --output"
            )
        output.mkdir(parents=True, exist_ok=True)
        (output / UNFINISHED).write_text(shlex.join(["python", *sys.argv]))  # how to continue
        todo = [face for face in usable if face.target not in present]
        with ThreadPool(workers) as pool:
            run = partial(pool.imap, chunksize=16) if workers > 1 else map
            reasons = run(partial(write, output), todo)
            bar = progress(reasons, desc="images", total=len(todo), unit="img")
            for face, reason in zip(todo, bar, strict=True):
                face.reason = reason
        unused = [face for face in faces if face.reason]
        with open(report, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = ([face.split, face.source, face.label, face.reason] for face in unused)
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        (output / UNFINISHED).unlink()
    used = Counter(os.path.dirname(face.target) for face in faces if not face.reason)
    reasons = Counter(face.reason for face in unused).most_common(10)
    reasons = [f"left out {number:,}: {reason}" for reason, number in reasons]
    if not used:
        why = "; ".join(reasons) or "the data set lists none"
        raise UserError(f"{output}: no image can be used: {why}; see {report}")
    table = pd.DataFrame(index=[*classes.values()])
    for split, numbers in published.items():
        table[split] = [used[f"{split}/{folder}"] for folder in classes]
        if numbers is not None:
            table[f"{split} published"] = numbers
    table.loc["all"] = table.sum()
    lines = [
        table.map("{:,}".format).to_string(),
        *reasons,
        f"{output}: {plural(used.total(), 'image')}; {report.name} lists what is left out",
        f"train with: python affectnet.py --aff_path {shlex.quote(str(output))}",
    ]
    return "\n".join(lines)


def link_image(output: Path, face: Face) -> str:
    """Hard-link an image, or copy it where links do not work; return why it is unusable, or ""."""
    target = output / face.target
    try:
        if not _is_whole_jpeg(face.source):
            read_rgb(face.source)
    except (OSError, UserError):
        return "unreadable image"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:  # os.link does not follow symbolic links on Linux
        os.link(os.path.realpath(face.source), target)
    except OSError:  # another file system, or one without hard links
        write_whole(target, Path(face.source).read_bytes())
    return ""


def _is_whole_jpeg(path: str) -> bool:
    """Whether a file has a JPEG's start and end: decoding hundreds of thousands takes minutes, and
    links need not read them either."""
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(max(0, os.path.getsize(path) - 64))
        return start == b"\xff\xd8\xff" and b"\xff\xd9" in file.read()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and its folder. An interruption leaves the whole file or none."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".tmp-{name}")
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
