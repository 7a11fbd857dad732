"""Look for everything that is wrong with a data set, before a run meets it.

    python utils/check_data.py datasets/raf-basic

decodes every image, and prints each bad file, bad label and class without images on a line of its
own, a summary last. Exit code: 0 where all is well, 1 where something is bad, 2 where there is no
data set. RAF-DB and class folders are checked; a release of AffectNet is to be converted first.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, positive_int
from utils.errors import UserError, exit_on_user_error, one_line
from utils.face_data import Scan, Split
from utils.images import read_rgb
from utils.progress import progress
from utils.readers import RAW_AFFECTNET, scan_affectnet, scan_rafdb

FILES_PER_TASK = 64


def check(root: str | os.PathLike, *, workers: int = 1) -> bool:
    """Print all that is wrong with a data set, a line each on stdout, and a summary.

    Args:
        workers: processes that decode.

    Returns:
        Whether all is well.

    Raises:
        UserError: there is no data set, or one in a form that cannot be checked.
    """
    data, problems = scan(Path(root))
    for problem in problems:
        print(one_line(f"{root}/{problem}"))
    labels = sum(problem.of_label for problem in problems)
    files = len(problems) - labels
    total = len(data.train) + len(data.val)
    with progress(total=total, desc="decode", unit="img") as bar:
        for decoded, bad in decode(tasks((data.train, data.val)), workers):
            for line in bad:
                bar.write(line, file=sys.stdout)
            files += len(bad)
            bar.update(decoded)
    # A data set in class folders is called as its folder is.
    name = "" if data.name == Path(root).resolve().name else f"{data.name}, "
    counts = f"{_bad(files, 'file')}, {_bad(labels, 'label')}"
    print(one_line(f"{root}: {name}{data.num_class} classes, {total:,} images, {counts}"))
    return files + labels == 0


def _bad(count: int, what: str) -> str:
    return f"{count:,} bad {what}{'' if count == 1 else 's'}"


def scan(root: Path) -> Scan:
    """Recognise what lies in a folder, and read it without its images.

    Raises:
        UserError: nothing that is known, or as the scan of what was recognised.
    """
    if any(os.path.exists(root / name) for name in ("EmoLabel", "Image")):
        return scan_rafdb(root)
    if any(os.path.exists(root / name) for name in ("train", *RAW_AFFECTNET)):
        # What was converted without contempt has no folder for it, which is no mistake.
        folders = {path.name for split in ("train", "val") for path in root.glob(f"{split}/*/")}
        return scan_affectnet(root, num_class=7 if folders == set("0123456") else None)
    what = "no data set here" if os.path.isdir(root) else "no such folder"
    raise UserError(
        f"{root}: {what}; looked for EmoLabel/ and Image/aligned/ (RAF-DB), and for train/ with "
        "val/ or test/ (a folder of images a class)"
    )


def tasks(splits: Iterable[Split]) -> Iterator[tuple[str, Sequence[bytes]]]:
    """A folder and some names of files below it, at a time."""
    for split in splits:
        for start in range(0, len(split), FILES_PER_TASK):
            yield str(split.root), split.names[start : start + FILES_PER_TASK]


def decode(
    tasks: Iterator[tuple[str, Sequence[bytes]]], workers: int
) -> Iterator[tuple[int, list[str]]]:
    """How many images each task had and what is wrong with the bad ones, in order; only so many
    tasks are on their way that the processes never wait."""
    if workers == 1:
        yield from map(_decode, tasks)
        return
    # An interrupt from the keyboard is for the parent alone.
    with ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            pending = deque(pool.submit(_decode, task) for task in islice(tasks, 4 * workers))
            while pending:
                yield pending.popleft().result()
                pending += [pool.submit(_decode, task) for task in islice(tasks, 1)]
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes has died, perhaps for want of memory; try --workers 1"
            ) from None


def _decode(task: tuple[str, Sequence[bytes]]) -> tuple[int, list[str]]:
    root, names = task
    bad = []
    for name in names:
        try:
            read_rgb(os.path.join(root, os.fsdecode(name)))
        except UserError as error:
            bad.append(str(error))
    return len(names), bad


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("path", metavar="PATH", help="folder of the data set")
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        metavar="N",
        help="processes that decode",
    )
    args = parser.parse_args(argv)
    return 0 if check(args.path, workers=args.workers) else 1


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
