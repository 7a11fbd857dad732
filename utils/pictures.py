"""Which pictures a script works on: from paths or a split to files, labels and output names."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.face_data import Split
from utils.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Picture:
    """An image file."""

    path: Path
    name: str  # for files about it, unlike those of the other pictures
    label: int | None  # its class, where a data set says so


def list_files(
    paths: Sequence[str | os.PathLike],
    *,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    output: str | os.PathLike | None = None,
) -> list[Path]:
    """Files as they are, folders as the images in and below them; each file once.

    What is missing, and a folder without any, is one line on stderr, or the error if that is all.

    Args:
        suffixes: endings that are looked for in folders, in lower case.
        output: the folder of results, whose files are not listed with a folder around it.

    Raises:
        UserError: nothing is there, or results would go into a folder that is to be read.
    """
    files, problems = {}, []
    for path in paths:
        if "://" in str(path):
            problems.append(f"{path}: is an address; download the file, and give its path")
            continue
        path = Path(path)
        if not os.path.exists(path):
            problems.append(f"{path}: no such file or folder; check the path")
            continue
        found = [path]
        if path.is_dir():
            if output is not None and os.path.realpath(output) == os.path.realpath(path):
                raise UserError(f"{path}: is to be read and written to; give another --output")
            inner = output is not None and is_below(output, path)
            found = sorted(_files_below(path, suffixes))
            found = [file for file in found if not (inner and is_below(file, output))]
        if not found:
            endings = ", ".join(suffixes)
            problems.append(f"{path}: has no files ending in {endings}")
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    if not files:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError("; ".join(problems[:5]) + more)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return list(files.values())


def spread(count: int, limit: int | None) -> list[int]:
    """Up to `limit` of the indices 0 ... count - 1, evenly: sets are often sorted by class."""
    if limit is None or limit >= count:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()


def find_labels(paths: Sequence[Path], splits: Sequence[Split]) -> list[int | None]:
    """The label of each path that is an image of one of the splits, None for the others."""
    labels: list[int | None] = [None] * len(paths)
    for split in splits:
        root = os.path.realpath(split.root)
        known = dict(zip(split.names.tolist(), split.labels.tolist(), strict=True))
        for i, path in enumerate(paths):
            below = os.path.realpath(path).removeprefix(root + os.sep).replace(os.sep, "/")
            labels[i] = known.get(os.fsencode(below), labels[i])
    return labels


def is_below(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own without ending, where several share it with the folder's in
    front, and where that is not enough with a number; they differ even where case does not."""
    names = [path.stem for path in paths]
    counts = Counter(name.casefold() for name in names)
    taken, unique = set(), []
    for path, name in zip(paths, names, strict=True):
        if counts[name.casefold()] > 1:
            name = f"{path.absolute().parent.name}_{name}"
        number, candidate = 1, name
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent, name)
