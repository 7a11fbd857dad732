"""Draw toy data sets: cartoon faces in the on-disk formats of RAF-DB and AffectNet.

    python utils/toy_faces.py --layout rafdb --output datasets/toy-raf-basic
    python utils/toy_faces.py --sheet static/toy_faces.jpg

With them every script runs, and a network learns, without the licensed photos. Brows, eyes, nose
and mouth carry the label and nothing else does, no person is in both the training and the test
split, and the same parameters give the same files.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if __name__ == "__main__":  # makes `utils` importable from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, whole_number
from utils.errors import exit_on_user_error, writing
from utils.labels import AFFECTNET
from utils.toy.render import render_face
from utils.toy.sets import write_affectnet, write_rafdb

SIZE, GAP, HEADING = 112, 4, 22  # of a sheet, in pixels


def draw_sheet(seed: int, people: int = 5) -> Image.Image:
    """Draw a few people (rows) with all expressions (columns), with the expressions' names."""
    step = SIZE + GAP
    shape = (step * len(AFFECTNET) - GAP, HEADING + step * people - GAP)
    sheet = Image.new("RGB", shape, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.7 * HEADING)
    for column, name in enumerate(AFFECTNET):
        x = step * column
        pen.text((x + SIZE / 2, HEADING / 2), name, fill="black", font=font, anchor="mm")
        for row in range(people):  # generators in the same state draw the same person
            face = render_face(name, np.random.default_rng((seed, row)), SIZE)
            sheet.paste(Image.fromarray(face), (x, HEADING + step * row))
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", metavar="DIR", help="folder that becomes the data set")
    add("--layout", choices=("rafdb", "affectnet"), default="rafdb", help="format of its files")
    default = "(default: as many as the recipe's --toy)"
    add("--train", metavar="N", type=whole_number(7), help=f"number of training faces {default}")
    add("--test", metavar="N", type=whole_number(7), help=f"number of test faces {default}")
    add("--seed", metavar="N", type=whole_number(0), default=0, help="random seed")
    add("--sheet", metavar="FILE", help="write a labelled .jpg or .png of a few faces")
    args = parser.parse_args(argv)
    if not (args.output or args.sheet):
        parser.error("nothing to do: give an --output folder or a --sheet")
    if args.output:
        write, test = (write_rafdb, "test") if args.layout == "rafdb" else (write_affectnet, "val")
        counts = {"train": args.train, test: args.test}
        given = {split: count for split, count in counts.items() if count}
        toy = write(args.output, seed=args.seed, **given)
        print(f"{args.output}: {toy.train} training and {toy.test} test faces")
    if args.sheet:
        with writing(args.sheet):
            Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
            draw_sheet(args.seed).save(args.sheet, quality=90)
        print(f"{args.sheet}: a sheet of faces")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
