"""Draw what each attention head of a trained DAN attends to.

python run_grad_cam.py --checkpoint models/rafdb/best.pth
python run_grad_cam.py --checkpoint FILE --images face.jpg faces/ --method attention
python run_grad_cam.py --checkpoint FILE --target fear --output cam_fear
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils import cli
from utils.checkpoint import TrainedDAN, read_trained
from utils.data.datasets import FaceData, data_of, data_root
from utils.data.images import is_below, list_files, read_rgb, unique_names
from utils.data.transforms import preprocess
from utils.device import resolve_device
from utils.errors import UserError, exit_on_user_error, plural, writing
from utils.heatmaps.maps import ATTENTION, CLASS_AGNOSTIC, METHODS, head_maps, normalize
from utils.heatmaps.sheets import ExplainedFace, enlarge, write_pictures
from utils.progress import progress

DEFAULT_LIMIT = 16  # images of the data set, where --images names none


class Face(NamedTuple):
    file: Path
    name: str  # of its results
    label: int | None  # class index, where a data set says so


def main(argv: Sequence[str] | None = None) -> None:
    # ---- flags ----
    args = parse(argv)
    trained = read_trained(args.checkpoint, dataset=args.dataset)
    if args.target not in ("predicted", "label", *trained.class_names):
        names = ", ".join(trained.class_names)
        raise UserError(f"--target {args.target}: unknown; use predicted, label or one of {names}")
    if args.method == ATTENTION and trained.num_head == 0:
        raise UserError(f"--method {ATTENTION}: {trained.path} has no heads; use another method")
    device = resolve_device(args.device)

    # ---- images ----
    faces = choose_faces(trained, args)
    unlabelled = [face.file for face in faces if face.label is None]
    if args.target == "label" and unlabelled:
        raise UserError(
            f"{unlabelled[0]}: its label is unknown; --target label needs images of the data set "
            f"that {trained.path} was trained on"
        )
    if trained.toy and args.images:
        print(f"note: {trained.path} was trained on drawn faces only", file=sys.stderr)
    output = Path(args.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)

    # ---- maps ----
    count = write_pictures(explain(trained, faces, args, device), output)
    if count == 0:
        raise UserError(f"none of the {plural(len(faces), 'image')} could be read")
    print(
        f"images: {count} of {len(faces)}, heads: {trained.num_head}, {args.method}; "
        f"in {output}/: overview.jpg, *_sheet.jpg and *_head*_cam.jpg"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(usage="%(prog)s --checkpoint FILE [flags]", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True, help="a best.pth, or a released file")
    cli.add_dataset_flag(parser)
    cli.add_device_flag(parser)
    add(
        "--images",
        nargs="+",
        metavar="PATH",
        help="images of one cropped face each, or folders of them (default: test images of the "
        f"data set that the checkpoint was trained on, {DEFAULT_LIMIT} without --limit)",
    )
    add("--limit", type=cli.whole_number(1), metavar="N", help="at most N images, evenly spaced")
    add("--method", choices=METHODS, default=METHODS[0], help="kind of map")
    add(
        "--target",
        default="predicted",
        metavar="CLASS",
        help="class that the maps explain: predicted, label (each image's own) or a name; "
        f"{' and '.join(CLASS_AGNOSTIC)} do not depend on a class",
    )
    add("--batch_size", type=cli.whole_number(1), default=32, metavar="N", help="images per pass")
    add("--output", metavar="DIR", default="cam_result", help="folder of the pictures")
    args = parser.parse_args(argv)
    if args.method in CLASS_AGNOSTIC and args.target != "predicted":
        parser.error(f"--target {args.target}: maps of {args.method} are the same for all classes")
    return args


def choose_faces(trained: TrainedDAN, args: argparse.Namespace) -> list[Face]:
    """Choose the images of --images, else test images of the data set; with labels where known."""
    if args.images:
        files = list_files(args.images, output=args.output)
        files = [files[i] for i in spread(len(files), args.limit)]
        root = data_root(trained)
        inside = root is not None and any(is_below(file, root) for file in files)
        labels = find_labels(files, data_of(trained)) if inside else [None] * len(files)
    else:
        data = data_of(trained)
        if data is None:
            raise UserError(f"{trained.path}: its data set is unknown; name --images")
        split = data.held_out
        chosen = spread(len(split), args.limit or DEFAULT_LIMIT)
        files = [split.path(i) for i in chosen]
        labels = [int(split.labels[i]) for i in chosen]
    return [Face(*fields) for fields in zip(files, unique_names(files), labels, strict=True)]


def spread(count: int, limit: int | None) -> list[int]:
    """Choose up to `limit` indices of `count`, evenly, as data sets are often sorted by class."""
    return np.linspace(0, count - 1, min(count, limit or count)).round().astype(int).tolist()


def find_labels(files: Sequence[Path], data: FaceData) -> list[int | None]:
    """Look up the label of each file; None for a file that is not an image of the data set."""
    known = {}
    for split in data.splits.values():
        root = os.path.realpath(split.root)
        for name, label in zip(split.names.tolist(), split.labels.tolist(), strict=True):
            known[Path(root, os.fsdecode(name))] = label
    # The file itself may be a link to an image elsewhere.
    return [known.get(Path(os.path.realpath(file.parent), file.name)) for file in files]


def explain(
    trained: TrainedDAN, faces: Sequence[Face], args: argparse.Namespace, device: torch.device
) -> Iterator[ExplainedFace]:
    """Predict and explain faces batch by batch; report and skip images that cannot be read."""
    model, class_names = trained.network(device).requires_grad_(False), trained.class_names
    named = class_names.index(args.target) if args.target in class_names else None
    with progress(total=len(faces), desc=args.method, unit="image") as bar:
        for start in range(0, len(faces), args.batch_size):
            batch = []
            for face in faces[start : start + args.batch_size]:
                try:
                    batch.append((face, read_rgb(face.file)))
                except UserError as error:
                    bar.write(f"skipped: {error}", file=sys.stderr)
                    bar.update()
            if not batch:
                continue
            inputs = [torch.tensor(image).permute(2, 0, 1).unsqueeze(0) for _, image in batch]
            inputs = torch.cat([preprocess(image, trained.image_size) for image in inputs])
            targets = [face.label if args.target == "label" else named for face, _ in batch]
            result = head_maps(model, inputs.to(device), method=args.method, targets=targets)
            trained.check_predictions(result.probabilities)
            for (face, image), p, target, maps in zip(batch, *result, strict=True):
                about = "" if args.method in CLASS_AGNOSTIC else f", {class_names[target]}"
                yield ExplainedFace(
                    name=face.name,
                    picture=enlarge(image),
                    maps=normalize(maps),
                    prediction=class_names[p.argmax()],
                    probability=p.max().item(),
                    label=None if face.label is None else class_names[face.label],
                    method=args.method + about,
                )
                bar.update()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
