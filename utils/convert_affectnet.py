"""Sort any release of AffectNet into the class folders that training reads.

    python utils/convert_affectnet.py --aff_path datasets/AffectNet

writes train/0 ... train/7 and val/0 ... val/7, and convert_report.csv with every row that was left
out and why, such as the expressions 8 (none), 9 (uncertain) and 10 (non-face). Images are
hard-linked where the file system allows it. The folder may hold
  - the npy release: train_set/images/N.jpg, train_set/annotations/N_exp.npy, val_set/ likewise;
  - the Manually_Annotated release: photos in Manually_Annotated_Images/, and training.csv and
    validation.csv with a box around each face, which is cropped;
  - a list of images, affectnet.csv, with the columns phase, img_path, label.
An interrupted conversion continues when it is started again.
"""

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
from PIL import Image

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import REPOSITORY, Parser, locate, whole_number
from utils.data.conversion import Face, link_image, read_table, write_class_folders, write_whole
from utils.data.datasets import AFFECTNET_URL, TOY_MARKER
from utils.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    has_suffix,
    read_rgb,
    unique_names,
    walk_files,
)
from utils.errors import UserError, exit_on_user_error, plural
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, canonical
from utils.progress import progress

CLASSES = {str(code): f"{code} {name}" for code, name in enumerate(AFFECTNET)}  # by folder
CODES = {key: code for code, name in enumerate(AFFECTNET) for key in (str(code), canonical(name))}
CROP_SIZE = 224  # pixels
BOX = ["face_x", "face_y", "face_width", "face_height"]


def convert(
    aff_path: str | os.PathLike, *, output: str | os.PathLike | None = None, workers: int = 1
) -> str:
    """Write class folders for the AffectNet release that lies in a folder.

    Arguments are the script's flags. Returns a table of images per class beside the published
    counts, and why rows were left out.

    Raises:
        UserError: there is no release, it is malformed, or no row of it can be used; or the output
            folder holds other images, or cannot be written.
    """
    folder, output = Path(aff_path), Path(output or aff_path)
    release, faces = read_release(folder)
    print(f"{folder}: found the {release}, {plural(len(faces), 'row')}")
    _choose_targets(faces)
    summary = write_class_folders(
        output,
        faces,
        _write_face,
        columns=("phase", "source", "label", "reason"),
        classes=CLASSES,
        published=AFFECTNET_COUNTS,
        workers=workers,
    )
    if (folder / TOY_MARKER).exists() and not (output / TOY_MARKER).exists():
        shutil.copyfile(folder / TOY_MARKER, output / TOY_MARKER)
    return summary


# ---- releases ------------------------------------------------------------------------------------


def read_release(folder: Path) -> tuple[str, list[Face]]:
    """Find which release lies in a folder and read its annotations, but not its images.

    Raises:
        UserError: there is none, or it is incomplete or malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put AffectNet there or name it by --aff_path")
    if (folder / "train_set").is_dir():
        return "npy release", [*_read_npy(folder, "train"), *_read_npy(folder, "val")]
    if (photos := _find(folder, "Manually_Annotated_Images")).is_dir():
        faces = [*_read_manual(folder, "train", "training.csv")]
        faces += _read_manual(folder, "val", "validation.csv")
        _locate(faces, [photos])
        return "Manually_Annotated release", faces
    if (folder / "affectnet.csv").is_file():
        faces = list(_read_list(folder / "affectnet.csv"))
        _locate(faces, [REPOSITORY, Path.cwd(), folder])
        return "list affectnet.csv", faces
    raise UserError(
        f"{folder}: holds no train_set/, Manually_Annotated_Images/ or affectnet.csv; get "
        f"AffectNet from {AFFECTNET_URL} and unpack it there"
    )


def _find(folder: Path, name: str) -> Path:
    """Locate a part of the Manually_Annotated release, whose archives unpack into subfolders."""
    if (folder / name).exists():
        return folder / name
    return next(folder.glob(f"Manually_Annotated*/{name}"), folder / name)


def _read_npy(folder: Path, phase: str) -> Iterator[Face]:
    folder = folder / f"{phase}_set"
    for part in (folder / "images", folder / "annotations"):
        if not part.is_dir():
            raise UserError(f"{part}: missing from the npy release; unpack it there")
    files = [path for path in walk_files(folder / "images") if has_suffix(path, IMAGE_SUFFIXES)]
    images = {Path(path).stem: path for path in files}
    files = [path for path in walk_files(folder / "annotations") if path.endswith("_exp.npy")]
    annotations = {os.path.basename(path).removesuffix("_exp.npy"): path for path in files}
    stems = sorted(images | annotations, key=lambda stem: (len(stem), stem))
    for stem in progress(stems, desc=f"{phase} annotations", unit="img"):
        face = Face(phase, images.get(stem, f"{folder}/images/{stem}.jpg"), label="")
        if stem not in images:
            face.reason = "missing image"
        elif stem not in annotations:
            face.reason = "no annotation"
        else:
            try:  # the file holds a string or a number
                face.label = np.load(annotations[stem]).astype(str).item()
            # What NumPy raises on damaged files.
            except (OSError, ValueError, EOFError, SyntaxError, TypeError, TokenError):
                face.reason = "unreadable annotation"
        yield face


def _read_manual(folder: Path, phase: str, name: str) -> Iterator[Face]:
    table = read_table(_find(folder, name), ["subDirectory_filePath", "expression", *BOX])
    for line, (image, label, *box), problem in table:
        yield Face(phase, image or f"{name}:{line}", label, problem, box=box)


def _read_list(path: Path) -> Iterator[Face]:
    for line, (phase, image, label), problem in read_table(path, ["phase", "img_path", "label"]):
        face = Face(phase, image or f"{path.name}:{line}", label, problem)
        for split in AFFECTNET_COUNTS:
            if phase.lower().startswith(split):  # also training, validation
                face.split = split
        if face.split not in AFFECTNET_COUNTS:
            face.reason = face.reason or "phase is neither train nor val"
        yield face


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
        found = [place for place in places[folder] if os.path.isfile(os.path.join(place, name))]
        if found:
            places[folder] = found[:1]
            face.source = os.path.join(found[0], name)
        else:
            face.reason = "missing image"


def _choose_targets(faces: Iterable[Face]) -> None:
    """Give each usable face its path below the output folder, such as `train/3/name.jpg`."""
    members = defaultdict(list)  # of each class folder
    seen = set()
    for face in faces:
        if face.reason:
            continue
        code = CODES.get(canonical(face.label.removesuffix(".0")))  # of "3", "3.0", "happy"
        if code is None:
            face.reason = f"expression {face.label!r} is not one of the eight classes"
        elif (face.split, face.source) in seen:
            face.reason = "listed before"
        else:
            seen.add((face.split, face.source))
            members[f"{face.split}/{code}"].append(face)
    for folder, group in members.items():
        names = unique_names([Path(face.source) for face in group])
        for face, name in zip(group, names, strict=True):
            suffix = ".jpg" if face.box else Path(face.source).suffix
            face.target = f"{folder}/{name}{suffix}"


# ---- writing -------------------------------------------------------------------------------------


def _write_face(output: Path, face: Face) -> str:
    """Link an image, or cut the face from a photo; return why that cannot be done, or ""."""
    if not face.box:
        return link_image(output, face)
    try:
        photo = Image.fromarray(read_rgb(face.source))
        crop = crop_face(photo, [float(number) for number in face.box])
    except UserError:
        return "unreadable image"
    except (ValueError, OverflowError):  # of a box that is empty, NULL, infinite or elsewhere
        return "no face box in the image"
    content = BytesIO()
    crop.save(content, "JPEG", quality=95)
    write_whole(output / face.target, content.getvalue())
    return ""


def crop_face(photo: Image.Image, box: Sequence[float]) -> Image.Image:
    """Cut a face from an RGB photo and resize it to CROP_SIZE squared. What reaches beyond the
    photo is black: the face keeps its proportions.

    Args:
        box: left, top, width, height in pixels.

    Raises:
        ValueError: the box is empty, lies outside the photo, or is far too large for it.
    """
    left, top, width, height = map(round, box)
    right, bottom = left + width, top + height
    overlap = min(min(photo.width, right) - max(0, left), min(photo.height, bottom) - max(0, top))
    if overlap < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"{box}: outside the photo or too large")
    crop = photo.crop((left, top, right, bottom))
    return crop.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    aff_path = locate("datasets/AffectNet")
    add("--aff_path", metavar="DIR", default=aff_path, help="folder of the release")
    add("--output", metavar="DIR", help="folder for train/ and val/ (default: that of --aff_path)")
    help = "threads that decode images"
    add("--workers", metavar="N", type=whole_number(1), default=os.cpu_count(), help=help)
    print(convert(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    with exit_on_user_error(interrupted="interrupted; run the same command again to continue"):
        main()
