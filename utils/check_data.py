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

import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, whole_number
from utils.data.datasets import (
    BAD_IMAGES,
    RAW_AFFECTNET,
    FaceData,
    find_class_folders,
    read_affectnet,
    read_rafdb,
)
from utils.data.duplicates import SIDE, detail, find_matches, same_photo, thumbnail
from utils.data.images import read_rgb
from utils.errors import UserError, exit_on_user_error, one_line, plural, writing
from utils.progress import progress

BLOCK = 64  # images that a thread decodes at a time, or pairs that are compared


def check(root: str | os.PathLike, *, workers: int = 1, exclude: bool = False) -> bool:
    """Print all that is wrong with a data set, one line each, and a summary.

    Args:
        workers: threads that decode.
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
    data = recognise(root)
    for problem in data.problems:
        print(one_line(f"{root}/{problem}"))
    splits = data.splits.values()
    paths = [str(split.path(i)) for split in splits for i in range(len(split))]
    split_numbers = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    left_out, good = {}, []  # index -> why; indices
    thumbnails = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)  # of the good ones
    with ThreadPool(workers) as pool, progress(total=len(paths), desc="decode", unit="img") as bar:
        for i, result in enumerate(pool.imap(decode, paths, BLOCK)):
            if isinstance(result, str):
                left_out[i] = result
                bar.write(one_line(f"{paths[i]}: {result}"), file=sys.stdout)
            else:
                thumbnails[len(good)] = result
                good.append(i)
            bar.update()
    bad_files = len(left_out)
    copies = find_copies(paths, split_numbers, good, thumbnails[: len(good)], workers)
    for copy, (other, flipped) in copies.items():
        how = "the mirrored photo of" if flipped else "the same photo as"
        place = os.path.relpath(paths[other], root)
        names = [data.class_names[labels[i]] for i in (copy, other)]
        left_out[copy] = f"{how} {place} ({names[0]}, there {names[1]})"
        print(one_line(f"{paths[copy]}: {left_out[copy]}"))
    if data.others:
        print(f"{root}: not images: {data.others}")
    leaks = sum(split_numbers[copy] != split_numbers[other] for copy, (other, _) in copies.items())
    where = f" ({leaks:,} between splits)" if copies else ""
    print(
        one_line(
            f"{root}: {data.name}, {data.num_class} classes, {plural(len(paths), 'image')}, "
            f"{plural(bad_files, 'bad file')}, {plural(len(data.problems), 'bad label')}, "
            f"{plural(len(copies), 'duplicate')}{where}"
        )
    )
    if exclude and left_out:
        places = [Path(os.path.relpath(paths[i], root)).as_posix() for i in left_out]
        table = pd.DataFrame({"path": places, "problem": left_out.values()})
        with writing(root / BAD_IMAGES):
            table.to_csv(root / BAD_IMAGES, index=False, errors="surrogateescape")
        print(f"{root / BAD_IMAGES}: {plural(len(left_out), 'image')} that training leaves out")
    return not (data.problems or left_out or data.others)


def recognise(root: Path) -> FaceData:
    """Read the data set in a folder, whichever it is.

    Raises:
        UserError: there is none that is known.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; check the path")
    splits, keys = find_class_folders(root)
    if (root / "EmoLabel").exists() or (root / "Image").exists() or keys == [*"1234567"]:
        return read_rafdb(root, strict=False)
    if splits or any((root / name).exists() for name in RAW_AFFECTNET):
        # AffectNet without contempt has no folder for it, which is fine.
        num_class = 7 if keys == [*"0123456"] else None
        return read_affectnet(root, num_class=num_class, strict=False)
    raise UserError(
        f"{root}: no data set here; looked for EmoLabel/ and Image/aligned/ (RAF-DB), and for "
        "train/ with val/ or test/ (one folder of images per class)"
    )


def decode(path: str) -> np.ndarray | str:
    """The thumbnail of an image, or what is wrong with it."""
    try:
        return thumbnail(read_rgb(path, min_side=SIDE))
    except UserError as error:
        return str(error).removeprefix(one_line(f"{path}: "))


def find_copies(
    paths: Sequence[str],
    splits: np.ndarray,
    good: Sequence[int],
    thumbnails: np.ndarray,
    workers: int,
) -> dict[int, tuple[int, bool]]:
    """Find images that show the same photo as another.

    Args:
        splits: (N,), number of the split of each path.
        good: indices of the images that can be decoded.
        thumbnails: theirs, (n, SIDE, SIDE, 3) uint8.

    Returns:
        The image to leave out of each pair -> the one that stays, and whether it is mirrored.
    """
    matches, pairs = find_matches(thumbnails, workers), []
    for start in progress(range(0, len(matches), BLOCK), desc="compare"):
        part = matches[start : start + BLOCK]
        images = [(good[match.shown], good[match.other]) for match in part]
        details = [[detail(read_rgb(paths[i])) for i in side] for side in zip(*images, strict=True)]
        for match, pair, same in zip(part, images, same_photo(*details, part), strict=True):
            if same:
                # The image of the later split stays: a test image. Within a split, the first.
                kept, copy = sorted(pair, key=lambda i: (-splits[i], i))
                pairs.append((copy, kept, match.flipped))
    copies = {}
    for copy, kept, flipped in sorted(pairs, key=lambda p: (p[0], -splits[p[1]], p[2])):
        copies.setdefault(copy, (kept, flipped))
    return copies


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("path", metavar="PATH", help="folder of the data set")
    add("--exclude", action="store_true", help=f"write what is to be left out to {BAD_IMAGES}")
    workers = {"type": whole_number(1), "default": os.cpu_count(), "metavar": "N"}
    add("--workers", **workers, help="threads that decode")
    args = parser.parse_args(argv)
    return 0 if check(args.path, workers=args.workers, exclude=args.exclude) else 1


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
