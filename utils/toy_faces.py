"""Toy data sets: drawn faces in the on-disk formats of RAF-DB and AffectNet.

    python utils/toy_faces.py --layout rafdb --output datasets/toy-raf-basic
    python utils/toy_faces.py --sheet static/toy_faces.jpg

They let every script run, and a network learn, where the licensed photos are not at hand. Brows,
eyes and mouth carry the label and nothing else does; nobody is in both the training and the test
images; the same parameters give the same files.
"""

import json
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.errors import UserError, exit_on_user_error
from utils.images import IMAGE_SUFFIXES
from utils.labels import AFFECTNET
from utils.outputs import check_file, encode_picture, write_picture, writing
from utils.progress import progress
from utils.toy import MARKER
from utils.toy.drawing import ToyFace, draw_face
from utils.toy.sets import SPLITS, ToySet

FACES_PER_TASK = 50
DEFAULT_TRAIN = {"rafdb": 700, "affectnet": 1800}
DEFAULT_TEST = {"rafdb": 210, "affectnet": 240}


def write_rafdb(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = DEFAULT_TRAIN["rafdb"],
    test: int = DEFAULT_TEST["rafdb"],
) -> ToySet:
    """Draw a set with RAF-DB's files: 100x100 JPEGs of 7 expressions and their label file.

    Args:
        root: the folder to be. A finished set of the same parameters is kept, a toy set of others
            is replaced, and nothing appears there before all of it is written.
        seed: what the faces are drawn from, not negative.
        train, test: how many faces.

    Raises:
        UserError: `root` exists and is no toy set, cannot be written, or the numbers make no set.
    """
    return _write(root, ToySet("rafdb", seed=seed, train=train, test=test, num_class=7))


def write_affectnet(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = DEFAULT_TRAIN["affectnet"],
    val: int = DEFAULT_TEST["affectnet"],
    num_class: int = 8,
) -> ToySet:
    """Draw a set with the files of AffectNet's npy release: 224x224 JPEGs, four arrays each.

    Args:
        root, seed, train: as for `write_rafdb`.
        val: how many validation faces.
        num_class: 8, or 7 without contempt.

    Raises:
        UserError: as for `write_rafdb`.
    """
    toy = ToySet("affectnet", seed=seed, train=train, test=val, num_class=num_class)
    return _write(root, toy)


def read_toy_set(root: str | os.PathLike) -> ToySet | None:
    """What the finished set in a folder was drawn from; None if there is no toy set."""
    path = Path(root) / MARKER
    try:
        return ToySet(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{path}: cannot be read ({reason}); name another folder") from None
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; remove the folder") from None


def redraw_face(image_path: str | os.PathLike) -> ToyFace:
    """Draw the face of an image in a toy set again, to know where its features are.

    Args:
        image_path: an image as written, or its copy in AffectNet's class folders beside it.

    Raises:
        UserError: the image is not in a toy set.
    """
    path = Path(image_path).absolute()
    for folder in path.parents:
        toy = read_toy_set(folder)
        if toy:
            return toy.face(*toy.find(path.relative_to(folder)))
    raise UserError(f"{image_path}: not in a toy data set, there is no {MARKER} above it")


def draw_sheet(*, rows: int = 5, size: int = 112, seed: int = 0) -> Image.Image:
    """Some people (rows) with all expressions (columns), labelled, faces of size x size."""
    band, step = size // 5, size + size // 28  # with white between the faces
    width, height = (step * count - step + size for count in (len(AFFECTNET), rows))
    sheet = Image.new("RGB", (width, band + height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(band * 0.7)
    for column, name in enumerate(AFFECTNET):
        x = step * column
        pen.text((x + size / 2, band / 2), name, fill="black", font=font, anchor="mm")
        for row in range(rows):  # the same state of the generator: the same person
            face = draw_face(name, np.random.default_rng((seed, row)), size)
            sheet.paste(Image.fromarray(face.image), (x, band + step * row))
    return sheet


def _write(root: str | os.PathLike, toy: ToySet) -> ToySet:
    """Draw into a folder beside `root` that takes its name when all of it is there."""
    root = Path(os.path.realpath(root))
    old = read_toy_set(root)
    if old == toy:
        return toy
    if not old and root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root}: exists and is not a toy data set; name another folder")
    part, trash = (_beside(root) for _ in range(2))
    try:
        with writing(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(root)
            part.mkdir()
            _draw_into(part, toy)
            if root.exists():
                root.rename(trash)
            part.rename(root)
    finally:
        for leftover in (part, trash):
            shutil.rmtree(leftover, ignore_errors=True)
    return toy


def _beside(root: Path) -> Path:
    return root.with_name(f".{root.name}.toy-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _remove_stale(root: Path) -> None:
    """Remove what runs that were killed have left beside `root`."""
    for folder in root.parent.glob(f".{root.name}.toy-*-*"):
        if not _is_running(int(folder.name.split("-")[-2])):
            shutil.rmtree(folder)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _draw_into(folder: Path, toy: ToySet) -> None:
    for name in toy.folders:
        (folder / name).mkdir(parents=True)
    for name, text in toy.text_files().items():
        (folder / name).write_text(text)
    tasks = []
    for split in SPLITS:
        indices = range(len(toy.labels[split]))
        tasks += [(split, indices[i : i + FACES_PER_TASK]) for i in indices[::FACES_PER_TASK]]
    draw = partial(_draw_faces, folder, toy)
    with progress(total=toy.train + toy.test, desc="drawing toy faces", unit="img") as bar:
        if len(tasks) < 10:  # sooner done than a pool is started
            for task in tasks:
                bar.update(draw(task))
        else:
            with ProcessPoolExecutor(os.cpu_count()) as pool:
                for done in pool.map(draw, tasks):
                    bar.update(done)
    (folder / MARKER).write_text(json.dumps(toy.parameters(), indent=2) + "\n")


def _draw_faces(folder: Path, toy: ToySet, task: tuple[str, range]) -> int:
    split, indices = task
    for index in indices:
        face = toy.face(split, index)
        image = folder / toy.image_name(split, index)
        image.write_bytes(encode_picture(Image.fromarray(face.image), image, quality=95))
        for name, value in toy.annotations(split, index, face).items():
            content = BytesIO()
            np.save(content, value)
            (folder / name).write_bytes(content.getvalue())
    return len(indices)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    counts = "(default: {rafdb} in RAF-DB's layout, {affectnet} in AffectNet's)".format
    add("--output", metavar="DIR", help="folder that becomes the data set")
    add("--layout", choices=tuple(DEFAULT_TRAIN), default="rafdb", help="its format")
    add("--train", metavar="N", type=int, help=f"training faces {counts(**DEFAULT_TRAIN)}")
    add("--test", metavar="N", type=int, help=f"test faces {counts(**DEFAULT_TEST)}")
    add("--seed", metavar="N", type=int, default=0, help="what the faces are drawn from")
    add("--sheet", metavar="FILE", help="write a labelled picture of a few faces")
    args = parser.parse_args(argv)
    if not (args.output or args.sheet):
        parser.error("nothing to do: name an --output folder or a --sheet")
    train = DEFAULT_TRAIN[args.layout] if args.train is None else args.train
    test = DEFAULT_TEST[args.layout] if args.test is None else args.test
    if args.sheet:
        check_file(args.sheet)
        if not args.sheet.lower().endswith(IMAGE_SUFFIXES):
            endings = ", ".join(IMAGE_SUFFIXES)
            raise UserError(f"{args.sheet}: no picture's name; let it end in one of {endings}")
    if args.output:
        num_class = 7 if args.layout == "rafdb" else 8
        _write(args.output, ToySet(args.layout, args.seed, train, test, num_class))
        print(f"{args.output}: {train} training and {test} test faces")
    if args.sheet:
        with writing(args.sheet):
            Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
        write_picture(draw_sheet(seed=args.seed), args.sheet, quality=90)
        print(f"{args.sheet}: a sheet of faces")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
