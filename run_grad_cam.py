"""Draw what each attention head of a trained DAN attends to.

python run_grad_cam.py --checkpoint models/rafdb/best.pth
python run_grad_cam.py --checkpoint FILE --images face.jpg faces/ --method attention
python run_grad_cam.py --checkpoint FILE --target fear --output cam_fear
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from utils import cli
from utils.checkpoint import TrainedDAN, read_trained
from utils.data.datasets import data_of
from utils.data.images import list_files, read_rgb, unique_names
from utils.data.transforms import preprocess
from utils.device import resolve_device
from utils.errors import UserError, exit_on_user_error, one_line, plural, writing
from utils.heatmaps.maps import ATTENTION, CLASS_AGNOSTIC, METHODS, head_maps, normalize
from utils.heatmaps.sheets import ExplainedFace, write_pictures
from utils.progress import progress

DEFAULT_LIMIT = 16  # images of the data set, where --images names none


def main(argv: Sequence[str] | None = None) -> None:
    # ---- flags ----
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
        metavar="CLASS",
        help="class that the maps explain (default: the predicted one); "
        f"{' and '.join(CLASS_AGNOSTIC)} do not depend on it",
    )
    add("--output", metavar="DIR", default="cam_result", help="folder of the pictures")
    args = parser.parse_args(argv)
    trained = read_trained(args.checkpoint, dataset=args.dataset)
    if args.target not in (None, *trained.class_names):
        names = ", ".join(trained.class_names)
        raise UserError(f"--target {args.target}: unknown; use one of {names}")
    if args.method == ATTENTION and trained.num_head == 0:
        raise UserError(f"--method {ATTENTION}: {trained.path} has no heads; use another method")
    device = resolve_device(args.device)

    # ---- images ----
    images = choose_images(trained, args)
    if trained.toy and args.images:
        print(f"note: {trained.path} was trained on drawn faces only", file=sys.stderr)
    output = Path(args.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)

    # ---- maps ----
    titles = [f"head {i}" for i in range(trained.num_head)] or ["last block"]
    count = write_pictures(explain(trained, images, args, device), titles, output)
    if count == 0:
        raise UserError(f"none of the {plural(len(images), 'image')} could be read")
    print(
        f"images: {count} of {len(images)}, heads: {trained.num_head}, {args.method}; "
        f"in {output}/: overview.jpg, *_sheet.jpg and *_head*_cam.jpg"
    )


def choose_images(trained: TrainedDAN, args: argparse.Namespace) -> dict[Path, str | None]:
    """Choose the images of --images, else test images of the data set, with their labels."""
    if args.images:
        images = dict.fromkeys(list_files(args.images, output=args.output))
        limit = args.limit or len(images)
    elif data := data_of(trained):
        split = data.held_out
        images = {split.path(i): data.class_names[label] for i, label in enumerate(split.labels)}
        limit = args.limit or DEFAULT_LIMIT
    else:
        raise UserError(f"{trained.path}: its data set is unknown; name --images")
    # Evenly spaced, as data sets are often sorted by class.
    chosen = np.linspace(0, len(images) - 1, min(len(images), limit)).round().astype(int)
    files = list(images)
    return {files[i]: images[files[i]] for i in chosen}


def explain(
    trained: TrainedDAN,
    images: Mapping[Path, str | None],
    args: argparse.Namespace,
    device: torch.device,
) -> Iterator[ExplainedFace]:
    """Predict and explain one face after another; report and skip images that cannot be read."""
    model = trained.network(device).requires_grad_(False)
    target = None if args.target is None else trained.class_names.index(args.target)
    names = unique_names(list(images))
    bar = progress(zip(images.items(), names, strict=True), total=len(images), desc=args.method)
    for (file, label), name in bar:
        try:
            image = read_rgb(file)
        except UserError as error:
            bar.write(f"skipped: {error}", file=sys.stderr)
            continue
        batch = preprocess(torch.tensor(image).permute(2, 0, 1)[None], trained.image_size)
        probabilities, maps = head_maps(model, batch.to(device), method=args.method, target=target)
        trained.check_predictions(probabilities)
        prediction = trained.class_names[probabilities.argmax()]
        caption = [f"{prediction} {100 * probabilities.max():.1f} %"]
        if label is not None:
            verdict = "correct" if label == prediction else "wrong"
            caption.append(f"{verdict}, the label is {label}")
        explained = "" if args.method in CLASS_AGNOSTIC else f", {args.target or prediction}"
        caption += [args.method + explained, one_line(name)]
        yield ExplainedFace(name, image, normalize(maps[0]), caption)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
