"""The flags: what all recipes share, and how every script reads its own."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from utils.places import default_folder

MSCELEB = "models/resnet18_msceleb.pth"
IMAGE_SIZES = range(32, 4097)  # from 32 on a position is left where ResNet-18 has halved it 5 times
NOT_OF_THE_TRAINING = (
    *("evaluate", "checkpoint", "dataset", "tsne"),
    *("resume", "overwrite", "own", "given", "run_name", "command"),
)
# What --evaluate presets: the checkpoint knows its head count and image size.
EVALUATE = {"num_head": None, "image_size": None, "precision": "fp32"}


class Parser(argparse.ArgumentParser):
    """Shows every default, and says what is wrong with a flag in one line."""

    def __init__(self, usage: str = "%(prog)s [flags]", **kwargs):
        super().__init__(usage=usage, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)
        self.toy: Mapping[str, Any] = {}  # what a recipe's --toy presets
        self.shared: frozenset[str] = frozenset()  # the flags that a recipe has as all do
        self.run_name = ""
        self._words: list[str] = []  # of the command line that is parsed

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        flags = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        given = [word[2:].split("=")[0] for word in self._words if word.startswith("--")]
        unknown = next((flag for flag in given if flag and flag not in flags), "")
        if unknown and message.startswith("the following arguments are required"):
            # The flag that is missing is often the one that is mistyped.
            message = f"unrecognized arguments: --{unknown}"
        if message.startswith("unrecognized arguments"):
            alike = difflib.get_close_matches(unknown, flags, 1)
            message += "".join(f" (did you mean --{flag}?)" for flag in alike)
        self.exit(2, f"error: {message}; see --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each flag that has one; description and examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def recipe_parser(
    description: str,
    *,
    batch_size: int,
    lr: float,
    epochs: int,
    run_name: str,
    toy: Mapping[str, Any] | None = None,
) -> tuple[Parser, argparse._ArgumentGroup]:
    """The flags that all recipes share, with one's own defaults.

    Args:
        run_name: what the data that the defaults lead to call their runs' folder.
        toy: flags that --toy presets; a recipe without it has no --toy.

    Returns:
        The parser, and its group for the flags that say where the script's data lie.
    """
    parser = Parser(description=description)
    parser.run_name = run_name
    parser.set_defaults(toy=False)
    data = parser.add_argument_group("data")
    if toy:
        parser.toy = toy
        presets = " ".join(f"--{name} {value}" for name, value in toy.items())
        parser.epilog = f"--toy presets, where not given:\n  {presets}"
        data.add_argument(
            "--toy", action="store_true", help="draw toy faces and train on them; needs no data"
        )
    data.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="leave out broken images, and list them in bad_images.csv; missing ones stop the run",
    )

    group = parser.add_argument_group("recipe")
    add = partial(group.add_argument, metavar="N")
    add("--batch_size", type=positive_int, default=batch_size, help="images a step, on all GPUs")
    add("--lr", type=positive_float, default=lr, metavar="X", help="initial learning rate")
    add("--epochs", type=positive_int, default=epochs, help="passes over the data")
    add("--num_head", type=positive_int, default=4, help="attention heads")
    add("--image_size", type=image_size, default=224, help="pixels a side")
    add(
        "--pretrained",
        metavar="FILE",
        default=MSCELEB,
        help="weights that the backbone starts from, or imagenet (downloads torchvision's) or none",
    )
    add("--seed", type=seed, default=0, help="of all that is random")

    add = partial(parser.add_argument_group("losses").add_argument, metavar="X")
    add("--affinity_weight", type=weight, default=1.0, help="0 leaves it out")
    add("--partition_weight", type=weight, default=1.0, help="0 leaves it out")
    add(
        "--num_center",
        type=positive_int,
        metavar="N",
        help="centres of the affinity loss (default: one a class); 8 reproduces the released "
        "RAF-DB run",
    )

    group = parser.add_argument_group("machine")
    add_device_flag(group)
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto is bf16 where the hardware does it natively, else fp32; --evaluate presets fp32",
    )
    group.add_argument(
        "--workers", type=natural_int, default=4, metavar="N", help="decoding processes, each GPU's"
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the network, which takes its time"
    )
    group.add_argument(
        "--deterministic", action="store_true", help="bit-identical runs on a GPU, too; slower"
    )

    toy_folder = f"{default_folder(run_name, toy=True)} with --toy, " if toy else ""
    group = parser.add_argument_group("files")
    group.add_argument(
        "--output_dir",
        metavar="DIR",
        help=f"where results go (default: {default_folder(run_name)}, {toy_folder}or as other data "
        "are called; with --evaluate beside the checkpoint)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FILE",
        help="go on with FILE, the last.pth of a run, whose flags hold where none are given; or, "
        "without FILE, with that in the folder of --output_dir, and from the start where it has "
        "none",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start anew in a folder that holds a run"
    )

    group = parser.add_argument_group("evaluation, instead of training")
    group.add_argument("--evaluate", action="store_true", help="evaluate --checkpoint")
    group.add_argument("--checkpoint", metavar="FILE", help="a best.pth, or a released file")
    add_dataset_flag(group)
    group.add_argument("--tsne", action="store_true", help="also draw the features by t-SNE")
    parser.shared = frozenset(vars(parser.parse_args([])))
    return parser, data


def add_device_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N"
    )


def add_dataset_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dataset",
        choices=("RAF-DB", "AffectNet"),
        help="what a released 7-class file was trained on, where its name does not say",
    )


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a recipe's flags; --toy and --evaluate preset some, and given ones still win.

    Returns:
        The flags. Those of the run that --resume goes on with are set by `resume.take_run_flags`.
        Besides, `given` are the names of the flags that were given, `own` of those that the recipe
        has of its own, `run_name` is the recipe's, `command` what was called.

    Raises:
        TypeError: a recipe's own flag has values that no checkpoint could keep.
    """
    args = parser.parse_args(argv)
    if args.evaluate != (args.checkpoint is not None):
        parser.error("--evaluate and --checkpoint FILE go together")
    if args.evaluate and args.resume:
        parser.error("--evaluate and --resume do not go together")
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite do not go together; leave one out")
    if args.tsne and not args.evaluate:
        parser.error("--tsne goes together with --evaluate")
    presets = {**(parser.toy if args.toy else {}), **(EVALUATE if args.evaluate else {})}
    if presets:
        parser.set_defaults(**presets)
        args = parser.parse_args(argv)
    unset = object()
    asked = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.own = frozenset(vars(asked).keys() - parser.shared)
    for name in args.own:
        if not is_plain(getattr(args, name)):
            raise TypeError(
                f"--{name} {getattr(args, name)!r}: checkpoints keep numbers, text and lists of "
                "them; convert it where it is used"
            )
    args.given = frozenset(name for name, value in vars(asked).items() if value is not unset)
    args.run_name = parser.run_name
    args.command = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
    return args


def is_plain(value: object) -> bool:
    """Whether a flag's value can be kept by checkpoints and by config.json as it is."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(value, int | float | str | None) for value in values)


def positive_int(text: str) -> int:
    return _number(text, int, 1)


def natural_int(text: str) -> int:
    return _number(text, int, 0)


def seed(text: str) -> int:
    return _number(text, int, 0, 2**63 - 1)


def image_size(text: str) -> int:
    return _number(text, int, IMAGE_SIZES[0], IMAGE_SIZES[-1])


def positive_float(text: str) -> float:
    value = _number(text, float, 0)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def weight(text: str) -> float:
    return _number(text, float, 0)


def _number(text: str, kind: type, low: float, high: float = float("inf")):
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if not low <= value <= high or value == float("inf"):
        bound = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
    return value
