"""Read the expressions of all faces in photos, folders and videos.

python demo.py --image photo.jpg
python demo.py --image holidays/ party.mp4 --output annotated --json faces.jsonl
python demo.py --image face.jpg --whole_image --top 3 --checkpoint models/rafdb/best.pth
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np

from utils import cli
from utils.errors import UserError, exit_on_user_error
from utils.faces import Detector, Face, choose_detector, whole_image, with_margin
from utils.findings import Findings, output_paths
from utils.images import IMAGE_SUFFIXES
from utils.outputs import JsonLines, check_file, check_folder, make_folder
from utils.pictures import list_files
from utils.places import checkpoint_file
from utils.video import VIDEO_SUFFIXES
from utils.views import Viewer, in_batches

MODELS = Path("models")
RELEASED = MODELS / "affecnet8_epoch5_acc0.6209.pth"
RELEASED_URL = "https://drive.google.com/file/d/1uHNADViICyJEjJljv747nfvrGu12kjtu/view?usp=sharing"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where no file has a face.

    Raises:
        UserError: nothing could be read, or a flag asks for what is not there; or results cannot
            be written.
    """
    # ---- flags and files -------------------------------------------------------------------------
    args = parse(argv)
    files = list_files(args.image, suffixes=IMAGE_SUFFIXES + VIDEO_SUFFIXES, output=args.output)
    checkpoint = checkpoint_file(args.checkpoint or default_checkpoint())
    outputs = output_paths(files, check_folder(args.output)) if args.output else None
    if args.json:
        check_file(args.json)
        if os.path.realpath(args.json) in map(os.path.realpath, [checkpoint, *files]):
            raise UserError(f"{args.json}: is one of the files to read; give --json another name")
    detector = None if args.whole_image else choose_detector(MODELS)

    # ---- network ---------------------------------------------------------------------------------
    # PyTorch is imported there: it takes seconds, and a mistyped path should not cost them.
    classify, trained, batch_size = load(checkpoint, args.dataset, args.device)
    kind = f"{trained.title}, {trained.num_class} classes, {trained.num_head} heads"
    faces = "whole images" if detector is None else f"faces by {detector.name}"
    print(f"{checkpoint} ({kind}), {faces}")
    if trained.toy:
        print(
            f"warning: {checkpoint} has only ever seen drawn toy faces; on photos it guesses",
            file=sys.stderr,
        )

    # ---- faces -----------------------------------------------------------------------------------
    viewer = Viewer(
        find=finder(detector, args.margin),
        size=trained.image_size,
        every=args.every,
        keep_images=outputs is not None,
    )
    batches = in_batches(viewer(files), batch_size)
    first = next(batches, None)
    if first is None:
        raise UserError(f"--image: none of {len(files)} files could be read")
    with ExitStack() as stack:
        if args.output:
            make_folder(args.output)
        json_lines = stack.enter_context(JsonLines(args.json)) if args.json else None
        findings = Findings(trained.class_names, top=args.top, outputs=outputs, json=json_lines)
        stack.callback(findings.close)
        for views in chain([first], batches):
            counts = np.cumsum([len(view.cut_outs) for view in views])
            probabilities = classify(np.concatenate([view.cut_outs for view in views]))
            for view, rows in zip(views, np.split(probabilities, counts[:-1]), strict=True):
                findings.add(view, rows)
    if copies := findings.copies:
        more = f" and {len(copies) - 3} more" if len(copies) > 3 else ""
        print(f"annotated: {', '.join(map(str, copies[:3]))}{more}")
    return 0 if findings.num_with_faces else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        usage="%(prog)s --image PATH [PATH ...] [flags]",
        description=__doc__,
        epilog="Exit code: 0, 1 where no file has a face, 2 where none could be read.",
    )
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "--image", nargs="+", metavar="PATH", required=True, help="images, videos, folders of them"
    )
    group.add_argument(
        "--whole_image",
        action="store_true",
        help="take each picture as one face, as RAF-DB's and AffectNet's images are",
    )
    group.add_argument(
        "--margin",
        type=cli.weight,
        default=0.1,
        metavar="X",
        help="what is added to each side of a face's box, as a fraction of its length",
    )
    group.add_argument(
        "--every", type=cli.positive_int, default=1, metavar="N", help="look at each N-th frame"
    )
    group = parser.add_argument_group("network")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=f"a best.pth or a released file (default: {RELEASED}, else the newest best.pth below "
        f"{MODELS}/)",
    )
    cli.add_dataset_flag(group)
    cli.add_device_flag(group)
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--top", type=cli.positive_int, default=1, metavar="N", help="classes that are printed"
    )
    group.add_argument(
        "--output", metavar="DIR", help="write annotated copies there (videos without sound)"
    )
    group.add_argument(
        "--json",
        metavar="FILE",
        help="write a JSON object a face, its box x, y, width, height in pixels of the file",
    )
    return parser.parse_args(argv)


def default_checkpoint() -> Path:
    """The released AffectNet-8 file, else the newest best.pth below models/."""
    if RELEASED.is_file():
        return RELEASED
    runs = sorted(MODELS.rglob("best.pth"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UserError(
            f"{MODELS}/ has neither {RELEASED.name} nor a run's best.pth; get the former from "
            f"{RELEASED_URL}, train with python rafdb.py (--toy without data), or give --checkpoint"
        )
    return runs[-1]


def load(path: Path, dataset: str | None, device: str):
    """A checkpoint -> (uint8 faces (N, h, w, 3) -> probabilities (N, C)), its TrainedModel, and a
    batch size that suits the device."""
    import torch

    from networks.dan import DAN
    from networks.fused import FusedDAN
    from utils.device import resolve_device
    from utils.trained import read_trained
    from utils.transforms import preprocess

    trained = read_trained(path, dataset=dataset)
    device = resolve_device(device)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # plain float32
    with torch.device("meta"):  # without drawing initial weights that nobody needs
        model = DAN(num_class=trained.num_class, num_head=trained.num_head)
    model.to_empty(device="cpu")
    trained.load_into(model)
    model = FusedDAN(model.to(device))

    @torch.inference_mode()
    def classify(faces: np.ndarray) -> np.ndarray:
        if not len(faces):
            return np.empty((0, trained.num_class), dtype=np.float32)
        images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(device)
        probabilities = model(preprocess(images, trained.image_size)).logits.softmax(dim=1)
        trained.check_answers(probabilities)
        return probabilities.cpu().numpy()

    return classify, trained, 64 if device.type == "cuda" else 8


def finder(detector: Detector | None, margin: float) -> Callable[[np.ndarray], list[Face]]:
    """The faces of a picture with their margin, or the picture itself where no detector is."""
    if detector is None:
        return lambda image: [whole_image(image)]
    return lambda image: [with_margin(face, margin, image) for face in detector(image)]


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
