"""Draw what each attention head of a trained DAN looks at.

python run_grad_cam.py --checkpoint models/rafdb/best.pth
python run_grad_cam.py --checkpoint FILE --images face.jpg faces/ --method attention
python run_grad_cam.py --checkpoint FILE --target fear --output cam_fear
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from tqdm import tqdm

from networks.dan import DAN
from utils import cli
from utils.device import resolve_device
from utils.errors import UserError, exit_on_user_error
from utils.head_maps import METHODS, OF_NO_CLASS, PER_CHANNEL, head_maps, normalise
from utils.images import read_rgb
from utils.map_sheets import Explained, Overview, earlier_pictures, write_pictures
from utils.outputs import check_folder, make_folder
from utils.pictures import Picture, find_labels, is_below, list_files, spread, unique_names
from utils.progress import progress
from utils.trained import TrainedModel, read_trained
from utils.trained_on import data_root, read_data
from utils.transforms import preprocess

DEFAULT_LIMIT = 16  # of the data set's images, where none are named


def main(argv: list[str] | None = None) -> None:
    # ---- flags -----------------------------------------------------------------------------------
    args = parse(argv)
    trained = read_trained(args.checkpoint, dataset=args.dataset)
    if args.target not in ("predicted", "label", *trained.class_names):
        names = ", ".join(trained.class_names)
        raise UserError(f"--target {args.target}: unknown; use predicted, label or one of {names}")
    device = resolve_device(args.device)

    # ---- pictures --------------------------------------------------------------------------------
    pictures = choose_pictures(trained, args.images, args.limit, args.output)
    unlabelled = [picture.path for picture in pictures if picture.label is None]
    if args.target == "label" and unlabelled:
        raise UserError(
            f"{unlabelled[0]}: has no label that {trained.path} knows of; --target label needs "
            "images of the data set that it was trained on"
        )
    output = check_folder(args.output)
    if trained.toy and args.images:
        print(f"note: {trained.path} has only ever seen drawn faces", file=sys.stderr)

    # ---- network ---------------------------------------------------------------------------------
    model = DAN(num_class=trained.num_class, num_head=trained.num_head)
    trained.load_into(model)
    model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    # ---- maps ------------------------------------------------------------------------------------
    # One picture at a time where each head of it is hundreds of passes.
    is_slow, heads = args.method in PER_CHANNEL, trained.num_head
    overview, written = Overview(output), set()
    with progress(total=len(pictures) * heads, desc=args.method, unit="map") as bar:
        batches = read_batches(pictures, 1 if is_slow else args.batch_size, bar, heads)
        first = next(batches, None)
        if first is None:
            raise UserError(f"none of the {len(pictures)} images could be read")
        make_folder(output)
        for batch in chain([first], batches):
            inputs = [torch.tensor(image).permute(2, 0, 1)[None] for _, image in batch]
            inputs = torch.cat([preprocess(image, trained.image_size) for image in inputs])
            targets = [asked_class(picture, trained, args.target) for picture, _ in batch]
            result = head_maps(
                model,
                inputs.to(device),
                method=args.method,
                targets=targets,
                each_head=bar.update,
            )
            trained.check_answers(result.probabilities)
            for (picture, image), probabilities, explained, maps in zip(
                batch, result.probabilities, result.targets, result.maps, strict=True
            ):
                name = trained.class_names[explained]
                drawn = Explained(
                    name=picture.name,
                    image=image,
                    maps=normalise(maps),
                    prediction=trained.class_names[probabilities.argmax()],
                    probability=probabilities.max().item(),
                    label=None if picture.label is None else trained.class_names[picture.label],
                    explains=args.method + ("" if args.method in OF_NO_CLASS else f", {name}"),
                )
                written.update(write_pictures(drawn, output))
                overview.add(drawn)
                bar.update(0 if is_slow else heads)  # drawing takes longer than a fast method
    pages = overview.finish()
    earlier = earlier_pictures(output, written.union(pages))
    read = "" if overview.count == len(pictures) else f" of {len(pictures)}"
    more = f" ... {pages[-1].name}" if len(pages) > 1 else ""
    print(
        f"images: {overview.count}{read}, heads: {heads}, {args.method}; "
        f"in {output}/: *_head*_cam.jpg, *_sheet.jpg and {pages[0].name}{more}"
    )
    if earlier:
        print(
            f"note: {output}/ also holds {len(earlier)} pictures of earlier runs, such as "
            f"{earlier[0].name}; --output keeps runs apart",
            file=sys.stderr,
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(usage="%(prog)s --checkpoint FILE [flags]", description=__doc__)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="a best.pth, or a released file"
    )
    cli.add_dataset_flag(group)
    cli.add_device_flag(group)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="pictures that are one face each, as the data sets' are, or folders of them (default: "
        "the test images of the data set that the checkpoint was trained on)",
    )
    group.add_argument(
        "--limit",
        type=cli.positive_int,
        metavar="N",
        help=f"at most N images, evenly spread (default: {DEFAULT_LIMIT} of the data set, "
        "all of --images)",
    )
    group = parser.add_argument_group("maps")
    group.add_argument("--method", choices=METHODS, default=METHODS[0], help="kind of map")
    group.add_argument(
        "--target",
        default="predicted",
        metavar="CLASS",
        help="class that the maps explain: predicted, label (each image's own), or a name; those "
        f"of {' and '.join(OF_NO_CLASS)} are the same for all",
    )
    group.add_argument(
        "--batch_size", type=cli.positive_int, default=32, metavar="N", help="images a pass"
    )
    group.add_argument("--output", metavar="DIR", default="cam_result", help="where pictures go")
    args = parser.parse_args(argv)
    if args.method in OF_NO_CLASS and args.target != "predicted":
        parser.error(f"--target {args.target}: maps of {args.method} are the same for every class")
    return args


def choose_pictures(
    trained: TrainedModel, paths: Sequence[str] | None, limit: int | None, output: str
) -> list[Picture]:
    """The images that were named, else the data set's test images; with labels where known.

    Raises:
        UserError: there is none, or the data set is needed and not there or not whole.
    """
    if paths is None:
        data = read_data(trained)
        if data is None:
            raise UserError(f"{trained.path}: does not say where its data lies; name --images")
        chosen = spread(len(data.val), DEFAULT_LIMIT if limit is None else limit)
        files = [data.val.path(i) for i in chosen]
        labels = data.val.labels[chosen].tolist()
    else:
        files = list_files(paths, output=output)
        files = [files[i] for i in spread(len(files), limit)]
        root = data_root(trained)
        inside = root is not None and any(is_below(file, root) for file in files)
        data = read_data(trained) if inside else None
        labels = find_labels(files, (data.train, data.val) if data else ())
    return [Picture(*fields) for fields in zip(files, unique_names(files), labels, strict=True)]


def asked_class(picture: Picture, trained: TrainedModel, target: str) -> int | None:
    """The index of the class to explain, None for whichever is predicted."""
    if target == "predicted":
        return None
    return picture.label if target == "label" else trained.class_names.index(target)


def read_batches(
    pictures: Sequence[Picture], batch_size: int, bar: tqdm, heads: int
) -> Iterator[list[tuple[Picture, np.ndarray]]]:
    """Pictures with their pixels (h, w, 3) uint8; unreadable ones get a line and are left out.

    Raises:
        UserError: the only picture is unreadable.
    """
    for start in range(0, len(pictures), batch_size):
        batch = []
        for picture in pictures[start : start + batch_size]:
            try:
                batch.append((picture, read_rgb(picture.path)))
            except UserError as error:
                if len(pictures) == 1:
                    raise
                bar.write(f"skipped: {error}", file=sys.stderr)
                bar.update(heads)
        if batch:
            yield batch


if __name__ == "__main__":
    with exit_on_user_error():
        main()
