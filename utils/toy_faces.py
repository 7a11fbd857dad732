"""Draw toy data sets: cartoon faces in the on-disk formats of RAF-DB and AffectNet.

    python utils/toy_faces.py --layout rafdb --output datasets/toy-raf-basic

With them every script runs, and a network learns, without the licensed photos. Brows, eyes, nose
and mouth carry the label and nothing else does, no person is in both the training and the test
split, and the same parameters give the same files.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # makes `utils` importable from any working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, whole_number
from utils.errors import exit_on_user_error
from utils.toy.sets import write_affectnet, write_rafdb


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", metavar="DIR", required=True, help="folder that becomes the data set")
    add("--layout", choices=("rafdb", "affectnet"), default="rafdb", help="format of its files")
    default = "(default: as many as the recipe's --toy)"
    add("--train", metavar="N", type=whole_number(7), help=f"number of training faces {default}")
    add("--test", metavar="N", type=whole_number(7), help=f"number of test faces {default}")
    add("--seed", metavar="N", type=whole_number(0), default=0, help="random seed")
    args = parser.parse_args(argv)
    write, test = (write_rafdb, "test") if args.layout == "rafdb" else (write_affectnet, "val")
    counts = {"train": args.train, test: args.test}
    given = {split: count for split, count in counts.items() if count}
    toy = write(args.output, seed=args.seed, **given)
    print(f"{args.output}: {toy.train} training and {toy.test} test faces")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
