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
from typing import NamedTuple

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
from utils.progress import print_above, progress

BLOCK = 64  # images that a thread decodes at a time, or pairs that are compared


class Image(NamedTuple):
    path: str
    split: int  # its number: test images come last
    label: str


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
    excluded = root / BAD_IMAGES
    if exclude:
        with writing(excluded):
            excluded.unlink(missing_ok=True)  # an old list would hide what it names
    data = recognise(root)
    for problem in data.problems:
        print(one_line(f"{root}/{problem}"))
    images = [
        Image(str(split.path(i)), number, data.class_names[split.labels[i]])
        for number, split in enumerate(data.splits.values())
        for i in range(len(split))
    ]
    paths = [image.path for image in images]
    left_out, good = {}, []  # path -> why; images
    thumbnails = np.empty((len(images), SIDE, SIDE, 3), np.uint8)  # of the good ones
    with ThreadPool(workers) as pool:
        results = pool.imap(decode, paths, BLOCK)
        bar = progress(results, total=len(images), desc="decode", unit="img")
        for image, result in zip(images, bar, strict=True):
            if isinstance(result, str):
                left_out[image.path] = result
                print_above(one_line(f"{image.path}: {result}"))
            else:
                thumbnails[len(good)] = result
                good.append(image)
    bad_files, leaks = len(left_out), 0
    copies = find_copies(good, thumbnails[: len(good)])
    for copy, (other, flipped) in copies.items():
        how = "the mirrored photo of" if flipped else "the same photo as"
        place = os.path.relpath(other.path, root)
        left_out[copy.path] = f"{how} {place} ({copy.label}, there {other.label})"
        leaks += copy.split != other.split
        print(one_line(f"{copy.path}: {left_out[copy.path]}"))
    if data.others:
        print(f"{root}: not images: {data.others}")
    where = f" ({leaks:,} between splits)" if copies else ""
    print(
        one_line(
            f"{root}: {data.name}, {data.num_class} classes, {plural(len(images), 'image')}, "
            f"{plural(bad_files, 'bad file')}, {plural(len(data.problems), 'bad label')}, "
            f"{plural(len(copies), 'duplicate')}{where}"
        )
    )
    if exclude and left_out:
        places = [Path(os.path.relpath(path, root)).as_posix() for path in left_out]
        table = pd.DataFrame({"path": places, "problem": left_out.values()})
        with writing(excluded):
            table.to_csv(excluded, index=False, errors="surrogateescape")
        print(f"{excluded}: {plural(len(left_out), 'image')} that training leaves out")
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


def find_copies(images: Sequence[Image], thumbnails: np.ndarray) -> dict[Image, tuple[Image, bool]]:
    """Find images that show the same photo as another.

    Args:
        thumbnails: of the images, (N, SIDE, SIDE, 3) uint8.

    Returns:
        The image to leave out of each pair -> the one that stays, and whether it is mirrored.
    """
    matches, pairs = find_matches(thumbnails), []
    for start in progress(range(0, len(matches), BLOCK), desc="compare"):
        part = matches[start : start + BLOCK]
        shown = [detail(read_rgb(images[match.shown].path)) for match in part]
        other = [detail(read_rgb(images[match.other].path)) for match in part]
        for match, same in zip(part, same_photo(shown, other, part), strict=True):
            if same:
                # The image of the later split stays: a test image. Within a split, the first.
                kept, copy = sorted(match[:2], key=lambda i: (-images[i].split, i))
                pairs.append((copy, kept, match.flipped))
    copies = {}
    for copy, kept, flipped in sorted(pairs, key=lambda p: (p[0], -images[p[1]].split, p[2])):
        copies.setdefault(images[copy], (images[kept], flipped))
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
