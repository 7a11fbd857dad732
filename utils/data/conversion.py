"""What the converters of data sets share: reading their tables, writing class folders."""

import csv
import io
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.data.images import IMAGE_SUFFIXES, has_suffix, walk_files
from utils.errors import UserError, plural

REPORT = "convert_report.csv"


@dataclass(slots=True)
class Face:
    """A row of a data set's tables."""

    split: str  # train, val or test
    source: str  # the image's path or name, or its row in the table where it has none
    label: str  # as the data set gives it
    reason: str = ""  # why it is left out; empty where it is used
    target: str = ""  # path below the output folder, such as train/happy/0.jpg


# ---- reading -------------------------------------------------------------------------------------


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str], str]]:
    """Read some columns of a CSV file.

    Yields:
        The line number, the cells without spaces around them, and "". Where a row has more or fewer
        fields than the header, the cells are empty, and a text says so.
    """
    rows = read_rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    indices = [header.index(name) for name in columns]
    for line, row in rows:
        problem = ""
        if not any(row[len(header) :]):
            del row[len(header) :]  # empty cells that spreadsheets leave
        if len(row) != len(header):
            problem = f"has {plural(len(row), 'field')}, but the header {len(header)}"
            row = [""] * len(header)
        yield line, [row[index].strip() for index in indices], problem


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of a CSV file, with commas, semicolons or tabs between them."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            yield from ((rows.line_num, row) for row in rows if any(row))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from None


# ---- writing -------------------------------------------------------------------------------------


def find_converted(output: Path, folders: Iterable[str], faces: Iterable[Face]) -> set[str]:
    """Targets that an earlier conversion has written.

    Raises:
        UserError: the folders hold other images, which training would read too.
    """
    present = {
        Path(path).relative_to(output).as_posix()
        for folder in folders
        if (output / folder).is_dir()
        for path in walk_files(output / folder)
        if has_suffix(path, IMAGE_SUFFIXES)
    }
    if others := sorted(present - {face.target for face in faces}):
        raise UserError(
            f"{output}: the class folders hold {plural(len(others), 'image')} that this conversion "
            f"does not put there ({', '.join(others[:3])}); move them away or give another --output"
        )
    return present


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file and its folder. An interruption leaves the whole file or none."""
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".tmp-{name}")
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # Names of files may hold bytes that are not valid UTF-8.
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_report(output: Path, columns: Sequence[str], faces: Iterable[Face]) -> None:
    """List the rows that are left out. Columns name split, source, label and reason."""
    rows = ([face.split, face.source, face.label, face.reason] for face in faces if face.reason)
    write_csv(output / REPORT, [columns, *rows])


def summary(
    output: Path,
    faces: Sequence[Face],
    classes: Mapping[str, str],
    published: Mapping[str, Sequence[int] | None],
) -> str:
    """A table of images per class, why rows were left out, and what to do next.

    Args:
        classes: folder of each class -> its name in the table.
        published: published number of images per class of each split, where there is one.

    Raises:
        UserError: no image can be used.
    """
    reasons = Counter(face.reason for face in faces if face.reason).most_common(10)
    used = Counter(os.path.dirname(face.target) for face in faces if not face.reason)
    if not used:
        reason, number = reasons[0]
        example = next(face.source for face in faces if face.reason == reason)
        raise UserError(
            f"{output}: no row can be used; most common reason ({number:,} of {len(faces):,} "
            f"rows): {reason}, for example {example}; {output / REPORT} lists all"
        )
    table = pd.DataFrame(index=[*classes.values()])
    for split, numbers in published.items():
        table[split] = [used[f"{split}/{folder}"] for folder in classes]
        if numbers is not None:
            table[f"{split} published"] = numbers
    table.loc["all"] = table.sum()
    lines = [table.map("{:,}".format).to_string()]
    lines += [f"left out {number:,}: {reason}" for reason, number in reasons]
    lines += [
        f"{output}: {plural(used.total(), 'image')}; {REPORT} lists what is left out",
        f"train with: python affectnet.py --aff_path {shlex.quote(str(output))}",
    ]
    return "\n".join(lines)
