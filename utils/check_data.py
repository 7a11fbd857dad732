"""Find everything that is wrong with a data set before a run does.

    python utils/check_data.py datasets/raf-basic
    python utils/check_data.py datasets/raf-basic --exclude

decodes every image, and prints each bad file, bad label and class without images on a line of its
own, then a summary. Exit code: 0 if all is well, 1 if something is bad, 2 if there is no data set.
With --exclude the bad images are written to bad_images.csv in the data set's folder, and training
leaves them out. RAF-DB and class folders are checked; AffectNet has to be converted first.
"""

import csv
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # run as a file from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, whole_number
from utils.data.datasets import (
    BAD_IMAGES,
    RAW_AFFECTNET,
    Problem,
    Scan,
    Split,
    find_splits,
    scan_affectnet,
    scan_rafdb,
)
from utils.data.images import describe_others, read_rgb
from utils.errors import UserError, exit_on_user_error, one_line, plural, writing
from utils.progress import progress

IMAGES_PER_TASK = 64


def check(root: str | os.PathLike, *, workers: int = 1, exclude: bool = False) -> bool:
    """Print all that is wrong with a data set, one line each, and a summary.

    Args:
        workers: processes that decode.
        exclude: write the bad images to BAD_IMAGES, so that training leaves them out.

    Returns:
        Whether all is well.

    Raises:
        UserError: there is no data set, or one in a form that cannot be checked.
    """
    root = Path(root)
    if exclude and (root / BAD_IMAGES).exists():
        with writing(root / BAD_IMAGES):
            (root / BAD_IMAGES).unlink()  # an old list would hide what it names
    scan = recognise(root)
    for problem in scan.problems:
        print(one_line(f"{root}/{problem}"))
    problems = list(scan.problems)
    total = sum(map(len, scan.splits))
    with progress(total=total, desc="decode", unit="img") as bar:
        for problem in decode(root, scan.splits, workers):
            if problem is not None:
                bar.write(one_line(f"{root}/{problem}"), file=sys.stdout)
                problems.append(problem)
            bar.update()
    bad_labels = sum(problem.of_label for problem in problems)
    bad_files = [problem for problem in problems if not problem.of_label]
    if scan.others:
        print(f"{root}: not images: {describe_others(scan.others)}")
    print(
        one_line(
            f"{root}: {scan.name}, {len(scan.class_names)} classes, "
            f"{plural(total, 'image')}, {plural(len(bad_files), 'bad file')}, "
            f"{plural(bad_labels, 'bad label')}"
        )
    )
    if exclude and bad_files:
        write_bad_images(root / BAD_IMAGES, bad_files)
        print(f"{root / BAD_IMAGES}: {plural(len(bad_files), 'image')} that training leaves out")
    return not problems and not scan.others


def recognise(root: Path) -> Scan:
    """Recognise what lies in a folder, and scan it without decoding images.

    Raises:
        UserError: nothing that is known.
    """
    if any(os.path.exists(root / name) for name in ("EmoLabel", "Image")):
        return scan_rafdb(root)
    splits = find_splits(root) if os.path.isdir(root) else None
    if splits or any(os.path.exists(root / name) for name in RAW_AFFECTNET):
        folders = {path.name for split in splits or () for path in split.iterdir()}
        if "0" not in folders and {*"1234567"} <= folders:
            return scan_rafdb(root)
        # AffectNet without contempt has no folder for it, which is fine.
        return scan_affectnet(root, num_class=7 if {*"0123456"} == folders else None)
    what = "no data set here" if os.path.isdir(root) else "no such folder"
    raise UserError(
        f"{root}: {what}; looked for EmoLabel/ and Image/aligned/ (RAF-DB), and for train/ with "
        "val/ or test/ (one folder of images per class)"
    )


def decode(root: Path, splits: Sequence[Split], workers: int) -> Iterator[Problem | None]:
    """Decode every image; what is wrong with it, or None, in their order."""
    tasks = (
        (root, split.root, split.names[start : start + IMAGES_PER_TASK])
        for split in splits
        for start in range(0, len(split), IMAGES_PER_TASK)
    )
    if workers == 1:
        for task in tasks:
            yield from _decode(task)
        return
    # Ctrl-C is for the parent only.
    with ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        while block := list(islice(tasks, 16 * workers)):  # few tasks wait at a time
            for problems in pool.map(_decode, block):
                yield from problems


def _decode(task: tuple[Path, Path, Sequence[bytes]]) -> list[Problem | None]:
    root, folder, names = task
    problems = []
    for name in names:
        path = folder / os.fsdecode(name)
        try:
            read_rgb(path)
        except UserError as error:
            where = os.path.relpath(path, root)
            problems.append(Problem(where, str(error).removeprefix(one_line(f"{path}: "))))
        else:
            problems.append(None)
    return problems


def write_bad_images(path: Path, problems: Sequence[Problem]) -> None:
    with writing(path), open(path, "w", newline="", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "problem"])
        table.writerows([Path(problem.where).as_posix(), problem.reason] for problem in problems)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("path", metavar="PATH", help="folder of the data set")
    parser.add_argument(
        "--exclude", action="store_true", help=f"write the bad images to {BAD_IMAGES}"
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        default=os.cpu_count(),
        metavar="N",
        help="processes that decode",
    )
    args = parser.parse_args(argv)
    return 0 if check(args.path, workers=args.workers, exclude=args.exclude) else 1


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
