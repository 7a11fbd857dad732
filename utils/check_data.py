"""Find everything that is wrong with a data set before a run does.

    python utils/check_data.py datasets/raf-basic
    python utils/check_data.py datasets/raf-basic --exclude

decodes every image, and prints each bad file, bad label, class without images and duplicate on a
line of its own, then a summary. A duplicate shows the same photo as another image, also flipped,
recompressed, resized or cropped by 10 %; between training and test images it is a leak. Exit code:
0 if all is well, 1 if something is wrong, 2 if there is no data set. With --exclude the bad images
and the duplicates are written to bad_images.csv in the data set's folder, and training leaves them
out: of a training and a test image it leaves out the training image, otherwise the second. RAF-DB
and class folders are checked; AffectNet has to be converted first.
"""

import csv
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

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
from utils.data.duplicates import SIDE, detail, find_matches, same_photo, thumbnail
from utils.data.images import describe_others, read_rgb
from utils.errors import UserError, exit_on_user_error, one_line, plural, writing
from utils.progress import progress

IMAGES_PER_TASK = 64


def check(root: str | os.PathLike, *, workers: int = 1, exclude: bool = False) -> bool:
    """Print all that is wrong with a data set, one line each, and a summary.

    Args:
        workers: processes that decode.
        exclude: write the bad images and the duplicates to BAD_IMAGES, so that training leaves
            them out.

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
    thumbnails, good = np.empty((total, SIDE, SIDE, 3), np.uint8), np.zeros(total, bool)
    with progress(total=total, desc="decode", unit="img") as bar:
        for index, result in enumerate(decode(root, scan.splits, workers)):
            if isinstance(result, Problem):
                bar.write(one_line(f"{root}/{result}"), file=sys.stdout)
                problems.append(result)
            else:
                thumbnails[index], good[index] = result, True
            bar.update()
    bad_labels = sum(problem.of_label for problem in problems)
    bad_files = [problem for problem in problems if not problem.of_label]
    duplicates, leaks = find_duplicates(scan, thumbnails, np.flatnonzero(good), workers)
    for duplicate in duplicates:
        print(one_line(f"{root}/{duplicate}"))
    if scan.others:
        print(f"{root}: not images: {describe_others(scan.others)}")
    print(
        one_line(
            f"{root}: {scan.name}, {len(scan.class_names)} classes, "
            f"{plural(total, 'image')}, {plural(len(bad_files), 'bad file')}, "
            f"{plural(bad_labels, 'bad label')}, {plural(len(duplicates), 'duplicate')}"
            + (f" ({leaks:,} between splits)" if duplicates else "")
        )
    )
    if exclude and (bad_files or duplicates):
        write_bad_images(root / BAD_IMAGES, [*bad_files, *duplicates])
        count = plural(len(bad_files) + len(duplicates), "image")
        print(f"{root / BAD_IMAGES}: {count} that training leaves out")
    return not problems and not duplicates and not scan.others


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


def decode(root: Path, splits: Sequence[Split], workers: int) -> Iterator[Problem | np.ndarray]:
    """Decode every image, in order; yield what is wrong with it, or its thumbnail."""
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
            for results in pool.map(_decode, block):
                yield from results


def _decode(task: tuple[Path, Path, Sequence[bytes]]) -> list[Problem | np.ndarray]:
    root, folder, names = task
    results = []
    for name in names:
        path = os.path.join(folder, os.fsdecode(name))
        try:
            results.append(thumbnail(read_rgb(path, min_side=SIDE)))
        except UserError as error:
            where = os.path.relpath(path, root)
            results.append(Problem(where, str(error).removeprefix(one_line(f"{path}: "))))
    return results


def find_duplicates(
    scan: Scan, thumbnails: np.ndarray, good: np.ndarray, workers: int
) -> tuple[list[Problem], int]:
    """Find images that show the same photo as another.

    Args:
        thumbnails: of all images, split after split: (N, SIDE, SIDE, 3) uint8.
        good: indices of those that could be decoded.

    Returns:
        The image to leave out of each pair, each once, and how many are copies between splits.
    """
    splits = np.repeat(np.arange(len(scan.splits)), [len(split) for split in scan.splits])
    starts = np.searchsorted(splits, splits)
    good_thumbnails = thumbnails if len(good) == len(thumbnails) else thumbnails[good]

    def path(i: int) -> Path:
        return scan.splits[splits[i]].path(i - starts[i])

    matches, pairs = find_matches(good_thumbnails, workers), []
    for start in progress(range(0, len(matches), IMAGES_PER_TASK), desc="compare"):
        part = matches[start : start + IMAGES_PER_TASK]
        images = [(int(good[match.shown]), int(good[match.other])) for match in part]
        details = [[detail(read_rgb(path(i))) for i in side] for side in zip(*images, strict=True)]
        for match, pair, same in zip(part, images, same_photo(*details, part), strict=True):
            if same:
                # The image of the later split stays: a test image. Within a split, the first.
                kept, dropped = sorted(pair, key=lambda i: (-splits[i], i))
                pairs.append((dropped, kept, match.flipped))
    duplicates, leaks = {}, 0
    for dropped, kept, flipped in sorted(pairs, key=lambda p: (p[0], -splits[p[1]], p[2])):
        if dropped in duplicates:
            continue
        places, names = [], []
        for i in (dropped, kept):
            places.append(os.path.relpath(path(i), scan.root))
            names.append(scan.class_names[scan.splits[splits[i]].labels[i - starts[i]]])
        label = f"both {names[0]}" if names[0] == names[1] else f"{names[0]}, there {names[1]}"
        how = "the mirrored photo of" if flipped else "the same photo as"
        duplicates[dropped] = Problem(places[0], f"{how} {places[1]} ({label})")
        leaks += int(splits[dropped] != splits[kept])
    return list(duplicates.values()), leaks


def write_bad_images(path: Path, problems: Sequence[Problem]) -> None:
    with writing(path), open(path, "w", newline="", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "problem"])
        table.writerows([Path(problem.where).as_posix(), problem.reason] for problem in problems)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("path", metavar="PATH", help="folder of the data set")
    parser.add_argument(
        "--exclude", action="store_true", help=f"write what is to be left out to {BAD_IMAGES}"
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
