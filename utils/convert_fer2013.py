"""Turn FER2013 into the class folders that training reads, with its own labels or those of FER+.

    python utils/convert_fer2013.py --fer2013 fer2013.csv
    python utils/convert_fer2013.py --fer2013 fer2013.csv --ferplus fer2013new.csv
    python utils/convert_fer2013.py --fer2013 FOLDER

writes 48x48 PNG files to train/<class>/, val/<class>/ and test/<class>/ (Training, PublicTest and
PrivateTest), and convert_report.csv with every image that was left out and why. FOLDER holds
fer2013.csv or icml_face_data.csv, or FER+'s FER2013Train/, FER2013Valid/ and FER2013Test/ with
images and a label.csv each. FER+'s label is the one that most of its ten annotators gave.
An interrupted conversion continues when it is started again.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.data.conversion import Face, link_image, read_table, write_class_folders, write_whole
from utils.errors import UserError, exit_on_user_error, plural
from utils.labels import FER2013_COUNTS

SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
CODES = dict(zip("0123456", FER2013, strict=True))
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTES = (*FERPLUS, "unknown", "NF")  # NF: not a face
SIDE = 48  # pixels
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")


def convert(
    fer2013: str | os.PathLike,
    *,
    ferplus: str | os.PathLike | None = None,
    output: str | os.PathLike = "datasets/FER2013",
) -> str:
    """Write class folders for FER2013.

    Arguments are the script's flags. Returns a table of images per class beside the published
    counts, and why images were left out.

    Raises:
        UserError: a file is missing, damaged or another one, or no image can be used; or the
            output folder holds other images, or cannot be written.
    """
    path, classes, published = Path(fer2013), FERPLUS, dict.fromkeys(FER2013_COUNTS)
    if (path / "FER2013Train").is_dir():
        faces, write = list(_read_folders(path)), link_image
    else:
        path = next((path / name for name in CSV_NAMES if (path / name).exists()), path)
        if path.is_dir():
            raise UserError(f"{path}: holds no {', '.join(CSV_NAMES)} or FER2013Train/")
        faces, write = list(_read_csv(path)), _write_pixels
        if ferplus:
            _read_votes(Path(ferplus), faces)
        else:
            classes, published = FER2013, FER2013_COUNTS
    for face in faces:
        face.target = f"{face.split}/{face.label}/{os.path.basename(face.source)}"
    return write_class_folders(
        Path(output),
        faces,
        write,
        columns=("split", "image", "label", "reason"),
        classes={name: name for name in classes},
        published=published,
    )


# ---- reading -------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Iterator[Face]:
    rows = read_table(path, ["Usage", "emotion", "pixels"])
    for number, (line, (usage, emotion, text), _) in enumerate(rows):
        try:
            pixels = np.fromstring(text, dtype=np.uint8, sep=" ").reshape(SIDE, SIDE)
            yield Face(SPLITS[usage], f"fer{number:07d}.png", CODES[emotion], pixels=pixels)
        except (KeyError, ValueError):
            raise UserError(f"{path}:{line}: not a row of FER2013; get another copy") from None


def _read_votes(path: Path, faces: Sequence[Face]) -> None:
    """Replace the labels by FER+'s. Faces keep their names, which number the rows: those in FER+'s
    table do not always do so, and are empty where FER+ removed an image."""
    rows = [cells for _, cells, _ in read_table(path, ["Usage", "Image name", *VOTES])]
    if [SPLITS.get(usage) for usage, *_ in rows] != [face.split for face in faces]:
        raise UserError(
            f"{path}: its {plural(len(rows), 'row')} are not the {len(faces):,} images of FER2013 "
            "in the same order; get another copy of both"
        )
    for face, (_, name, *votes) in zip(faces, rows, strict=True):
        face.label, face.reason = majority(votes)
        face.reason = face.reason if name else "removed by FER+"


def _read_folders(root: Path) -> Iterator[Face]:
    for folder, split in FOLDERS.items():
        table = read_table(root / folder / "label.csv", ["name", *VOTES], ["name", "box", *VOTES])
        for line, (name, *votes), problem in table:
            image = root / folder / (name or f"label.csv:{line}")
            label, reason = majority(votes)
            reason = reason or ("" if image.is_file() else "missing image")
            yield Face(split, str(image), label, problem or reason)


def majority(votes: Sequence[str]) -> tuple[str, str]:
    """Choose FER+'s label from the numbers of votes for VOTES, as its authors do: a class with one
    vote is an outlier, and the label has more than half of the other votes.

    Returns:
        The label and "", or the votes and why there is none.
    """
    try:
        counts = {v: 0 if n == "1" else int(n) for v, n in zip(VOTES, votes, strict=True)}
    except ValueError:
        return " ".join(votes), "not ten numbers of votes"
    winner = max(counts, key=counts.get)
    if 2 * counts[winner] <= sum(counts.values()):
        return " ".join(votes), "no majority in FER+"
    if winner not in FERPLUS:
        return " ".join(votes), f"majority in FER+: {winner}"
    return winner, ""


# ---- writing -------------------------------------------------------------------------------------


def _write_pixels(output: Path, face: Face) -> str:
    # Uncompressed, which takes a third of the time and still fits into a block of 4 KiB.
    content = cv2.imencode(".png", face.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
    write_whole(output / face.target, content)
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    help = "CSV file with the pixels, or a folder"
    add("--fer2013", metavar="PATH", default="datasets/FER2013", help=help)
    add("--ferplus", metavar="FILE", help="FER+'s votes: fer2013new.csv")
    help = "folder for train/, val/ and test/"
    add("--output", metavar="DIR", default="datasets/FER2013", help=help)
    print(convert(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    with exit_on_user_error(interrupted="interrupted; run the same command again to continue"):
        main()
