"""Sort any release of AffectNet into the class folders that training reads.

    python utils/convert_affectnet.py --aff_path datasets/AffectNet

writes train/0 ... train/7 and val/0 ... val/7, the list affectnet.csv, and convert_report.csv with
every row that was left out and why. The folder may hold
  - the npy release: train_set/images/N.jpg, train_set/annotations/N_exp.npy, val_set/ likewise;
  - the Manually_Annotated release: photos in Manually_Annotated_Images/, and training.csv and
    validation.csv with a box around each face, which is cropped;
  - a list of images, affectnet.csv, with the columns phase, img_path, label.
An interrupted conversion continues when it is started again.
"""

import csv
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil, floor, isfinite
from pathlib import Path
from tokenize import TokenError

import numpy as np
from PIL import Image

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import labels
from utils.cli import Parser, locate, not_negative, whole_number
from utils.data import conversion
from utils.data.conversion import read_table, write_csv, write_whole
from utils.data.datasets import AFFECTNET_URL, TOY_MARKER, UNFINISHED
from utils.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    has_suffix,
    is_rubbish,
    read_rgb,
    unique_names,
)
from utils.errors import UserError, exit_on_user_error, plural, writing
from utils.labels import AFFECTNET
from utils.progress import progress

REPOSITORY = Path(__file__).resolve().parents[1]
PHASES = ("train", "val")
CLASS_FOLDERS = [f"{phase}/{code}" for phase in PHASES for code in range(len(AFFECTNET))]
CROP_SIZE = 224  # pixels

LIST_RELEASE = "list affectnet.csv"
LIST_COLUMNS = ["phase", "img_path", "label"]
MANUAL_COLUMNS = ["subDirectory_filePath", "expression"]
MANUAL_COLUMNS += ["face_x", "face_y", "face_width", "face_height"]
PHASE_NAMES = {"training": "train", "valid": "val", "validation": "val"}
UNUSED = {8: "none", 9: "uncertain", 10: "non-face"}
CODES = {labels.canonical(name): code for code, name in [*enumerate(AFFECTNET), *UNUSED.items()]}

MARGIN = ".conversion_margin"  # a file in the output folder: the margin of the crops there

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


@dataclass(slots=True)
class Face(conversion.Face):
    box: Box | None = None  # of the face, where it is to be cropped from a photo


def convert(
    aff_path: str | os.PathLike,
    *,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    margin: float = 0.0,
    workers: int | None = None,
) -> str:
    """Write class folders for the AffectNet release that lies in a folder.

    Args:
        aff_path: the folder of the release.
        output: where `train/` and `val/` go; the same folder by default.
        copy: copy images; by default they are hard-linked where the file system allows it.
        margin: added to each side of a face's box before a photo is cropped, as a fraction of the
            box's width and height.
        workers: processes that crop photos; one per core by default.

    Returns:
        A table of images per class beside the published counts, and why rows were left out.

    Raises:
        UserError: there is no release, it is incomplete, or no row of it can be used; or the
            output folder holds other images, or cannot be written.
    """
    folder = Path(aff_path)
    output = folder if output is None else Path(output)
    release, faces = read_release(folder)
    _choose_targets(faces)
    todo = [face for face in faces if not face.reason]
    with writing(output):
        present = conversion.find_converted(output, CLASS_FOLDERS, todo)
        before = f", {len(present):,} of them converted before" if present else ""
        print(f"{folder}: found the {release}, {plural(len(faces), 'row')}{before}")
        has_photos = any(face.box for face in todo)
        if has_photos and present and (marker := output / MARGIN).exists():
            _check_margin(marker, margin)
        if copy:  # also replaces the links of an earlier conversion
            present = {name for name in present if (output / name).stat().st_nlink == 1}
        todo = [face for face in todo if face.target not in present]
        output.mkdir(parents=True, exist_ok=True)
        (output / UNFINISHED).touch()
        if has_photos:
            (output / MARGIN).write_text(str(float(margin)))
        write = partial(_write_image, output=output, copy=copy, margin=margin)
        reasons = _in_parallel(write, todo, workers) if has_photos else map(write, todo)
        bar = progress(reasons, desc="images", total=len(todo), unit="img")
        for face, reason in zip(todo, bar, strict=True):
            face.reason = reason
        conversion.write_report(output, ["phase", "source", "label", "reason"], faces)
        used = [face for face in faces if not face.reason]
        if used:
            for name in CLASS_FOLDERS:
                (output / name).mkdir(parents=True, exist_ok=True)
            if not (release == LIST_RELEASE and output.samefile(folder)):
                _write_list(output / "affectnet.csv", used)
            if (folder / TOY_MARKER).exists() and not (output / TOY_MARKER).exists():
                shutil.copyfile(folder / TOY_MARKER, output / TOY_MARKER)
        (output / UNFINISHED).unlink()
    classes = {str(code): f"{code} {name}" for code, name in enumerate(AFFECTNET)}
    return conversion.summary(output, faces, classes, labels.AFFECTNET_COUNTS)


# ---- releases ------------------------------------------------------------------------------------


def read_release(folder: Path) -> tuple[str, list[Face]]:
    """Find which release lies in a folder and read its annotations, but not its images.

    Raises:
        UserError: there is none, or it is incomplete, malformed or empty.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put AffectNet there or name it by --aff_path")
    photos = folder / "Manually_Annotated_Images"
    if not photos.is_dir():
        photos = folder / "Manually_Annotated" / photos.name
    if (folder / "train_set").is_dir():
        name, faces = "npy release", _read_npy(folder)
    elif photos.is_dir():
        name, faces = "Manually_Annotated release", _read_manual(folder, photos)
    elif (folder / "affectnet.csv").is_file():
        name, faces = LIST_RELEASE, _read_list(folder / "affectnet.csv")
    else:
        raise UserError(
            f"{folder}: holds no train_set/, Manually_Annotated_Images/ or affectnet.csv; get "
            f"AffectNet from {AFFECTNET_URL} and unpack it there"
        )
    if not faces:
        raise UserError(f"{folder}: the {name} is empty; get another copy")
    return name, faces


def read_label(label: str) -> tuple[int | None, str]:
    """Return the code of an expression ("3", "3.0", "happy"), and why it is not used, if so."""
    try:
        code = float(label)
    except ValueError:
        code = CODES.get(labels.canonical(label))
    if label in ("", "nan"):
        return None, "no expression"
    if code in UNUSED:
        return None, f"expression {int(code)} ({UNUSED[code]})"
    if code not in range(len(AFFECTNET)):
        return None, f"unknown expression {label!r}"
    return int(code), ""


def _read_npy(folder: Path) -> list[Face]:
    faces = []
    for phase in PHASES:
        images, annotations = (folder / f"{phase}_set" / name for name in ("images", "annotations"))
        for part in (images, annotations):
            if not part.is_dir():
                raise UserError(f"{part}: missing from the npy release; unpack it there")
        names = [name for name in os.listdir(images) if has_suffix(name, IMAGE_SUFFIXES)]
        files = {os.path.splitext(name)[0]: name for name in names if not is_rubbish(name)}
        names = [name for name in os.listdir(annotations) if name.endswith("_exp.npy")]
        labelled = {name.removesuffix("_exp.npy") for name in names if not is_rubbish(name)}
        stems = sorted(files.keys() | labelled, key=lambda stem: (len(stem), stem))
        for stem in progress(stems, desc=f"{phase} annotations", unit="img"):
            face = Face(phase, f"{images}/{files.get(stem, f'{stem}.jpg')}", label="")
            if stem not in files:
                face.reason = "missing image"
            elif stem not in labelled:
                face.reason = "no annotation"
            else:
                with open(f"{annotations}/{stem}_exp.npy", "rb") as file:
                    face.label = _read_annotation(file.read())
                face.reason = read_label(face.label)[1] if face.label else "unreadable annotation"
            faces.append(face)
    return faces


@lru_cache  # hundreds of thousands of files share a few contents
def _read_annotation(content: bytes) -> str:
    """Return the label in a .npy file, which holds a string or a number; "" if it is damaged."""
    try:
        label = np.load(io.BytesIO(content)).item()
    except (ValueError, EOFError, SyntaxError, TypeError, TokenError):  # of damaged headers
        return ""
    return label.decode() if isinstance(label, bytes) else str(label)


def _read_manual(folder: Path, photos: Path) -> list[Face]:
    places = [folder, folder / "Manually_Annotated", folder / "Manually_Annotated_file_lists"]
    faces = []
    for phase, name in zip(PHASES, ("training.csv", "validation.csv"), strict=True):
        path = next((place / name for place in places if (place / name).exists()), None)
        if path is None:
            raise UserError(f"{folder / name}: missing from the Manually_Annotated release")
        for line, (image, label, *numbers), problem in read_table(path, MANUAL_COLUMNS):
            box = _read_box(numbers)
            reason = problem or read_label(label)[1] or ("" if box else "no face box")
            faces.append(Face(phase, image or f"{name}:{line}", label, reason, box=box))
    _locate(faces, [photos])
    return faces


def _read_box(numbers: Sequence[str]) -> Box | None:
    try:
        box = tuple(map(float, numbers))
    except ValueError:
        return None
    return box if all(map(isfinite, box)) and min(box[2:]) > 0 else None


def _read_list(path: Path) -> list[Face]:
    faces = []
    for line, (phase, image, label), problem in read_table(path, LIST_COLUMNS):
        phase = PHASE_NAMES.get(phase.lower(), phase.lower())
        reason = problem or ("" if phase in PHASES else "phase is neither train nor val")
        reason = reason or read_label(label)[1]
        faces.append(Face(phase, image or f"{path.name}:{line}", label, reason))
    # Paths should be relative to the repository; some are to the working folder or to the list.
    _locate(faces, [REPOSITORY, Path.cwd(), path.parent.resolve()])
    return faces


def _locate(faces: Iterable[Face], bases: Sequence[Path]) -> None:
    """Replace the paths in a list by those of the images on this computer.

    Lists come from other computers, with backslashes, absolute, or relative to other folders: the
    longest end of a path that exists below one of `bases` is taken. What lay in one folder there
    is expected in one folder here: that of the first image found.
    """
    places: dict[str, list[str]] = {}  # of a folder in the list, where it may be here
    for face in faces:
        if face.reason:
            continue
        folder, _, name = face.source.replace("\\", "/").rpartition("/")
        if folder not in places:
            parts = folder.split("/")
            ends = ["/".join(parts[start:]) for start in range(len(parts) + 1)]
            places[folder] = [os.path.join(base, end) for end in ends for base in bases]
        found = [p for p in places[folder] if os.path.isfile(os.path.join(p, name))]
        if found:
            places[folder] = found[:1]
            face.source = os.path.join(found[0], name)
        else:
            face.reason = "missing image"


def _choose_targets(faces: Iterable[Face]) -> None:
    """Give each usable face its path below the output folder, such as `train/3/name.jpg`."""
    classes: dict[str, list[Face]] = {folder: [] for folder in CLASS_FOLDERS}
    seen = set()
    for face in faces:
        if face.reason:
            continue
        if (face.split, face.source) in seen:
            face.reason = "listed before"
        elif face.box is None and not has_suffix(face.source, IMAGE_SUFFIXES):
            face.reason = "unsupported file type"
        else:
            seen.add((face.split, face.source))
            classes[f"{face.split}/{read_label(face.label)[0]}"].append(face)
    for folder, members in classes.items():
        names = unique_names([Path(face.source) for face in members])
        for face, name in zip(members, names, strict=True):
            suffix = os.path.splitext(face.source)[1] if face.box is None else ".jpg"
            face.target = f"{folder}/{name}{suffix}"


# ---- writing -------------------------------------------------------------------------------------


def _check_margin(marker: Path, margin: float) -> None:
    """Refuse another margin than that of an earlier conversion, whose crops are kept."""
    if float(marker.read_text()) != margin:
        raise UserError(
            f"{marker.parent}: its faces were cropped with --margin {marker.read_text()}; give the "
            "same margin, or move train/ and val/ away to crop anew"
        )


def _in_parallel(
    write: Callable[[Face], str], faces: Sequence[Face], workers: int | None
) -> Iterator[str]:
    with ProcessPoolExecutor(  # whose processes leave Ctrl-C to the parent
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as processes:
        yield from processes.map(write, faces, chunksize=16)


def _write_image(face: Face, output: Path, copy: bool, margin: float) -> str:
    """Link, copy or crop an image into its class folder; return why it cannot be used, or ""."""
    target = output / face.target
    try:
        if face.box is not None:
            photo = Image.fromarray(read_rgb(face.source))
        elif not _is_whole_jpeg(face.source):
            read_rgb(face.source)
    except (UserError, OSError):
        return "unreadable image"
    if face.box is not None:
        crop = crop_face(photo, face.box, margin)
        if crop is None:
            return "face box outside the image"
        content = io.BytesIO()
        crop.save(content, "JPEG", quality=95)
        write_whole(target, content.getvalue())
        return ""
    if not copy:
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
        try:  # os.link does not follow symbolic links on Linux
            os.link(os.path.realpath(face.source), target)
            return ""
        except OSError:  # another file system, or one without hard links
            pass
    write_whole(target, Path(face.source).read_bytes())
    return ""


def _is_whole_jpeg(path: str) -> bool:
    """Whether a file has a JPEG's start and end markers: decoding all images takes minutes."""
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(max(0, os.path.getsize(path) - 64))
        return start == b"\xff\xd8\xff" and b"\xff\xd9" in file.read()


def crop_face(photo: Image.Image, box: Box, margin: float) -> Image.Image | None:
    """Cut a face from an RGB photo and resize it to CROP_SIZE squared.

    The margin, a fraction of the box's width and height, is added on each side. What reaches beyond
    the photo is black, so that the face keeps its place and proportions. None if the box lies
    outside the photo, or is far too large for it.
    """
    left, top, width, height = box
    left, right = left - margin * width, left + (1 + margin) * width
    top, bottom = top - margin * height, top + (1 + margin) * height
    if min(photo.width, right) - max(0, left) < 1 or min(photo.height, bottom) - max(0, top) < 1:
        return None
    x0, x1 = min(0, floor(left)), max(photo.width, ceil(right))
    y0, y1 = min(0, floor(top)), max(photo.height, ceil(bottom))
    if (x1 - x0) * (y1 - y0) > MAX_PIXELS:
        return None
    if (x0, y0, x1, y1) != (0, 0, *photo.size):
        photo = photo.crop((x0, y0, x1, y1))
    box = (left - x0, top - y0, right - x0, bottom - y0)
    return photo.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC, box=box)


def _write_list(path: Path, used: Iterable[Face]) -> None:
    """Write affectnet.csv as the released one is, with paths relative to the repository. A list
    that the user brought is left as it is."""
    if path.is_file() and not _is_own_list(path):
        print(f"{path}: was not written by this script; left as it is")
        return
    root = path.parent.resolve()
    root = root.relative_to(REPOSITORY) if root.is_relative_to(REPOSITORY) else root
    rows = ([f.split, f"{root.as_posix()}/{f.target}", f.target.split("/")[1]] for f in used)
    write_csv(path, [LIST_COLUMNS, *rows])


def _is_own_list(path: Path) -> bool:
    """Whether a list holds nothing but images in the class folder of their phase and label."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        return next(rows, []) == LIST_COLUMNS and all(
            len(row) == 3
            and f"{row[0]}/{row[2]}" in CLASS_FOLDERS
            and os.path.dirname(f"/{row[1]}").endswith(f"/{row[0]}/{row[2]}")
            for row in rows
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    aff_path = locate("datasets/AffectNet")
    add("--aff_path", metavar="DIR", default=aff_path, help="folder of the release")
    add("--output", metavar="DIR", help="folder for train/ and val/ (default: that of --aff_path)")
    add("--copy", action="store_true", help="copy images instead of linking them")
    help = "added to each side of a face's box, as a fraction of its width and height"
    add("--margin", metavar="X", type=not_negative, default=0.0, help=help)
    help = "processes that crop photos"
    add("--workers", metavar="N", type=whole_number(1), default=os.cpu_count(), help=help)
    print(convert(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    with exit_on_user_error(interrupted="interrupted; run the same command again to continue"):
        main()
