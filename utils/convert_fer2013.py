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
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.data import conversion
from utils.data.conversion import read_rows, read_table, write_whole
from utils.data.datasets import UNFINISHED
from utils.data.images import read_rgb
from utils.errors import UserError, exit_on_user_error, plural, writing
from utils.labels import FER2013_COUNTS
from utils.progress import progress

SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # codes 0-6
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTES = (*FERPLUS, "unknown", "NF")  # NF: not a face
SIDE = 48  # pixels
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")


@dataclass(slots=True)
class Face(conversion.Face):
    """Its source is the name of its PNG file."""

    image: np.ndarray | Path = None  # (48, 48) uint8, or an image file


def convert(
    fer2013: str | os.PathLike,
    *,
    ferplus: str | os.PathLike | None = None,
    output: str | os.PathLike = "datasets/FER2013",
) -> str:
    """Write class folders for FER2013.

    Args:
        fer2013: the CSV file with the pixels, or a folder as described above.
        ferplus: FER+'s CSV file of votes, `fer2013new.csv`.
        output: where `train/`, `val/` and `test/` go.

    Returns:
        A table of images per class beside the published counts, and why images were left out.

    Raises:
        UserError: a file is missing, damaged or another one, or no image can be used; or the
            output folder holds other images, or cannot be written.
    """
    path, output, classes = Path(fer2013), Path(output), FER2013
    found = next((name for name in (*FOLDERS, *CSV_NAMES) if (path / name).exists()), None)
    if path.is_dir() and found is None:
        raise UserError(f"{path}: holds none of {', '.join((*FOLDERS, *CSV_NAMES))}; name the file")
    if found in FOLDERS:
        faces, classes = list(_read_folders(path)), FERPLUS
    else:
        path = path / found if found else path
        faces = list(_read_csv(path))
        if ferplus is not None:
            _read_votes(Path(ferplus), faces, path)
            classes = FERPLUS
    if not faces:
        raise UserError(f"{path}: has no rows; get another copy")
    todo = [face for face in faces if not face.reason]
    for face in todo:
        face.target = f"{face.split}/{face.label}/{face.source}"
    with writing(output):
        present = conversion.find_converted(output, SPLITS.values(), todo)
        output.mkdir(parents=True, exist_ok=True)
        flags = ["--fer2013", str(fer2013), "--output", str(output)]
        flags += ["--ferplus", str(ferplus)] if ferplus else []
        # The marker says how to continue.
        (output / UNFINISHED).write_text(shlex.join(["python", "utils/convert_fer2013.py", *flags]))
        for face in progress(todo, desc="images", unit="img"):
            if face.target not in present:
                face.reason = _write_image(face, output)
        conversion.write_report(output, ["split", "image", "label", "reason"], faces)
        (output / UNFINISHED).unlink()
    published = FER2013_COUNTS if classes == FER2013 else dict.fromkeys(FER2013_COUNTS)
    return conversion.summary(output, faces, {name: name for name in classes}, published)


# ---- reading -------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Iterator[Face]:
    table = read_table(path, ["Usage", "emotion", "pixels"])
    rows = enumerate(progress(table, desc="read", unit="img"))
    for number, (line, (usage, emotion, text), problem) in rows:
        is_numbers = text.replace(" ", "").isdigit()
        pixels = np.fromstring(text, dtype=np.int64, sep=" ") if is_numbers else np.array([])
        is_image = pixels.size == SIDE**2 and pixels.max() <= 255
        if not is_image or usage not in SPLITS or emotion not in [*"0123456"]:
            row = f"Usage {usage[:20]!r}, emotion {emotion[:20]!r}, {plural(pixels.size, 'pixel')}"
            row += f" up to {pixels.max(initial=0)}"
            raise UserError(f"{path}:{line}: {problem or row}: not of FER2013; get another copy")
        image, name = pixels.reshape(SIDE, SIDE).astype(np.uint8), f"fer{number:07d}.png"
        yield Face(SPLITS[usage], name, FER2013[int(emotion)], image=image)


def _read_votes(path: Path, faces: Sequence[Face], pixels: Path) -> None:
    """Replace the labels by FER+'s. Faces keep their names, which number the rows: those in FER+'s
    table do not always do so, and are empty where FER+ removed an image."""
    rows = list(read_table(path, ["Usage", "Image name", *VOTES]))
    if len(rows) != len(faces):
        raise UserError(
            f"{path}: has {plural(len(rows), 'row')}, but {pixels} has {len(faces):,}; they must "
            "describe the same images in the same order"
        )
    for face, (line, (usage, name, *votes), problem) in zip(faces, rows, strict=True):
        if SPLITS.get(usage) != face.split:
            problem = problem or f"Usage {usage!r} is not that of this row in {pixels}"
            raise UserError(f"{path}:{line}: {problem}")
        face.label, face.reason = majority(votes, f"{path}:{line}")
        face.reason = face.reason if name else "removed by FER+"


def _read_folders(root: Path) -> Iterator[Face]:
    for folder, split in FOLDERS.items():
        path = root / folder / "label.csv"
        for line, (name, *cells) in read_rows(path):
            label, reason = majority(cells[-len(VOTES) :], f"{path}:{line}")
            image = path.parent / os.path.basename(name)
            reason = reason or ("" if name else "no image name")
            yield Face(split, image.name, label, reason, image=image)


def majority(votes: Sequence[str], where: str) -> tuple[str, str]:
    """Choose FER+'s label by majority, as its authors do.

    A class with one vote is dropped as an outlier. The label is the class that has more than half
    of the other votes.

    Args:
        votes: ten numbers, in the order of VOTES.
        where: names the votes in an error.

    Returns:
        The class and "", or the votes and why there is none.
    """
    try:
        counts = dict(zip(VOTES, map(int, votes), strict=True))
    except ValueError:
        raise UserError(f"{where}: {' '.join(votes)[:60]!r} are not {len(VOTES)} votes") from None
    kept = {name: count for name, count in counts.items() if count > 1}
    winner = max(kept, key=kept.get, default=None)
    if winner is None or 2 * kept[winner] <= sum(kept.values()):
        return " ".join(votes), "no majority in FER+"
    if winner not in FERPLUS:
        return " ".join(votes), f"majority in FER+: {winner}"
    return winner, ""


# ---- writing -------------------------------------------------------------------------------------


def _write_image(face: Face, output: Path) -> str:
    """Write a PNG file; return why it cannot be used, or ""."""
    if isinstance(face.image, Path):
        try:
            read_rgb(face.image)
        except UserError:
            return "unreadable image" if face.image.exists() else "missing image"
        content = face.image.read_bytes()
    else:  # uncompressed, which takes a third of the time and still fits into a block of 4 KiB
        content = cv2.imencode(".png", face.image, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
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
