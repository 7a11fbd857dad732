"""Command-line flags: those that all recipes share, and which value of a flag wins."""

import argparse
import difflib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from utils.errors import UserError

MSCELEB = "models/resnet18_msceleb.pth"
# Flags that belong to one call of a script; a checkpoint does not keep them.
PER_CALL = ("evaluate", "checkpoint", "dataset", "tsne", "resume", "overwrite")
# Flags that may change when a run is resumed, besides those of paths: its numbers do not depend on
# them. `epochs` may only grow.
MAY_CHANGE = ("epochs", "workers", "device", "output_dir", "compile", "deterministic", "figures")
# Arguments of the network, besides the number of classes.
NETWORK_FLAGS = ("num_head",)
# Files that mark a folder as that of a run.
RUN_FILES = ("last.pth", "best.pth", "metrics.csv")
REPOSITORY = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """Shows every default in its help, and reports a wrong flag in one line."""

    def __init__(self, usage: str = "%(prog)s [flags]", **kwargs):
        super().__init__(usage=usage, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            words = (word.split("=")[0] for word in message.split() if word.startswith("--"))
            similar = difflib.get_close_matches(next(words, ""), self._option_string_actions, 1)
            message += "".join(f" (did you mean {flag}?)" for flag in similar)
        self.exit(2, f"error: {message}; see --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except None and False; keeps the layout of description and examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class RecipeParser(Parser):
    """The flags that all recipes share, with one recipe's defaults.

    A recipe adds flags that choose its data to the group `data`. Evaluation and heat maps take
    their values from the checkpoint.

    Args:
        description: of the script.
        name: of the recipe: its runs go to models/NAME. A function of the flags where it depends
            on them.
        geometric: default of --geometric, the recipe's probability; without it there is no such
            flag.
        toy: flags that --toy presets; without it there is no --toy.
    """

    def __init__(
        self,
        description: str,
        name: str | Callable[[argparse.Namespace], str],
        *,
        batch_size: int,
        lr: float,
        epochs: int,
        optimizer: str = "sgd",
        geometric: float | None = None,
        toy: Mapping[str, Any] | None = None,
    ):
        super().__init__(description=description)
        self.name = name
        self.toy = toy or {}
        self.data = self.add_argument_group("data")

        add = self.add_argument_group("recipe").add_argument
        self.set_defaults(toy=False)
        if toy:
            presets = " ".join(f"--{flag} {value}" for flag, value in toy.items())
            self.epilog = f"--toy presets, where not given:\n  {presets}"
            add(
                "--toy", action="store_true", help="draw toy faces and train on them; needs no data"
            )
        add("--batch_size", type=whole_number(2), default=batch_size, help="images per step")
        add("--lr", type=not_negative, default=lr, help="initial learning rate")
        add("--epochs", type=whole_number(1), default=epochs, help="passes over the data")
        optimizers = ("sgd", "adam")
        add("--optimizer", choices=optimizers, default=optimizer, help="as the recipe sets it up")
        add(
            "--schedule",
            choices=("recipe", "cosine"),
            default="recipe",
            help="of the learning rate; cosine falls to 0 step by step until the last epoch ends",
        )
        warmup = "raise the learning rate linearly, step by step, over this many epochs"
        add("--warmup_epochs", type=not_negative, default=0.0, help=warmup)
        clip = "limit the norm of the gradient of all parameters; 0 for no limit"
        add("--clip_grad", type=not_negative, default=0.0, help=clip)
        shaken = "probability that a training image is rotated, scaled, shifted or cropped"
        if geometric is not None:
            add("--geometric", type=probability, default=geometric, help=shaken)
        add(
            "--num_head",
            type=whole_number(0),
            default=4,
            help="attention heads; 0 is the plain ResNet-18, with cross-entropy unless "
            "--affinity_weight is given",
        )
        side = whole_number(32, 4096)  # ResNet-18 halves an image five times
        add("--image_size", type=side, default=224, help="side of the network's input in pixels")
        add(
            "--pretrained",
            metavar="FILE",
            default=MSCELEB,
            help="initial weights: a file of the backbone's or of a run, or imagenet (downloads "
            "torchvision's), or none",
        )
        add(
            "--val_fraction",
            type=fraction,
            default=0.0,
            help="choose the best epoch on this part of the training images, drawn by class and "
            "--seed, and look at the test images once, at the end",
        )
        add("--seed", type=whole_number(0, 2**63 - 1), default=0, help="random seed")

        add = self.add_argument_group("losses").add_argument
        add("--affinity_weight", type=not_negative, default=1.0, help="of the affinity loss")
        add("--partition_weight", type=not_negative, default=1.0, help="of the partition loss")
        centers = "centres of the affinity loss, one per class unless given; 8 as released for RAF"
        add("--num_center", type=whole_number(1), help=centers)

        group = self.add_argument_group("machine")
        add_device_flag(group)
        add = group.add_argument
        add(
            "--precision",
            choices=("auto", "fp32", "bf16"),
            default="auto",
            help="auto is bf16 where the hardware has it, else fp32; fp32 with --evaluate",
        )
        workers = "data-loading workers per process"
        add("--workers", type=whole_number(0), default=default_workers(), help=workers)
        add("--compile", action="store_true", help="torch.compile the network")
        add("--deterministic", action="store_true", help="bit-identical runs on a GPU too; slower")

        add = self.add_argument_group("files").add_argument
        add("--output_dir", metavar="DIR", help="of the run (default: models/ and a name)")
        add(
            "--resume",
            nargs="?",
            const=True,
            metavar="FILE",
            help="continue the run of FILE, a last.pth, in its folder and with its flags; without "
            "FILE the run in --output_dir, or start one if there is none",
        )
        add("--overwrite", action="store_true", help="replace a run that --output_dir holds")
        formats = ("png", "pdf", "svg")
        add("--figures", choices=formats, default="png", help="format of figures")

        group = self.add_argument_group("evaluation, instead of training")
        add_dataset_flag(group)
        add = group.add_argument
        add("--evaluate", action="store_true", help="evaluate --checkpoint")
        add("--checkpoint", metavar="FILE", help="a best.pth, or a released file")
        add("--tsne", action="store_true", help="plot a t-SNE of the features")


def default_workers() -> int:
    """As many workers as this machine has cores for each process, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def add_device_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_dataset_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dataset",
        choices=("RAF-DB", "AffectNet"),
        help="what a released 7-class file was trained on, if its name does not tell",
    )


class Saved(NamedTuple):
    """A checkpoint of a run to continue."""

    path: Path
    content: dict[str, Any]


def parse(parser: RecipeParser, argv: Sequence[str] | None = None):
    """Parse a recipe's flags.

    A flag's value is the one given on the command line, else the checkpoint's (of --resume and
    --evaluate), else what --toy presets, else the recipe's default. `output_dir` is always set.

    Returns:
        The flags, and the checkpoint: for --resume a `Saved`, or None if no run is there yet; for
        --evaluate a `TrainedDAN`; else None.

    Raises:
        UserError: no such checkpoint, flags that contradict it, or a run in `output_dir` that
            would be overwritten.
    """
    defaults = vars(parser.parse_args([]))
    given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults))))
    given = {name: value for name, value in given.items() if value is not None}
    if ("evaluate" in given) != ("checkpoint" in given):
        parser.error("--evaluate and --checkpoint FILE go together")
    if "tsne" in given and "evaluate" not in given:
        parser.error("--tsne goes together with --evaluate")
    for other in ("evaluate", "overwrite"):
        if "resume" in given and other in given:
            parser.error(f"--resume and --{other} exclude each other; leave one out")
    presets = dict(parser.toy) if "toy" in given else {}
    if given.get("num_head") == 0:  # the baseline is trained with cross-entropy
        presets["affinity_weight"] = 0.0
    saved, kept = None, {}
    if "evaluate" in given:
        presets["precision"] = "fp32"
        saved, kept = _evaluated(parser, defaults, given)
    else:
        folder = _run_folder(parser, {**defaults, **presets, **given})
        if path := _run_to_continue(folder, given):
            saved, kept = _resumed(path, defaults, given)
        else:
            kept = {"output_dir": str(folder)}
    args = {**defaults, **presets, **kept, **given}
    for name in args.keys() - given.keys():
        if name.endswith("_path") or name == "pretrained":
            args[name] = locate(args[name])
    return argparse.Namespace(**args), saved


def locate(path: str | None) -> str | None:
    """Find a default path in the repository if the working directory does not have it."""
    if path is None or os.path.exists(path) or not (REPOSITORY / path).exists():
        return path
    return str(REPOSITORY / path)


def _evaluated(parser: RecipeParser, defaults: Mapping[str, Any], given: Mapping[str, Any]):
    """Read --checkpoint; keep its flags that choose the data, and those of the network."""
    from utils import checkpoint  # not above: importing PyTorch takes seconds

    trained = checkpoint.read_trained(given["checkpoint"], dataset=given.get("dataset"))
    own = [action.dest for action in parser.data._group_actions]  # the recipe's, for its data
    data = {name: trained.config[name] for name in (*own, "toy") if name in trained.config}
    if _names_data(given):
        data.pop("toy", None)  # draw nothing there
    else:
        _check_script(defaults, trained.config, trained.path)
    network = {**trained.network_flags, "image_size": trained.image_size}
    for name, value in network.items():
        if given.get(name, value) != value:
            raise UserError(f"{trained.path}: has --{name} {value}, not {given[name]}")
    # Evaluations on other data than the training's have folders of their own.
    folder = f"{trained.path.stem}-evaluation"
    for name in sorted(own):
        if (value := given.get(name, data.get(name))) != data.get(name):
            of_path = name.endswith("_path")
            parts = Path(value).resolve().parts[-2:] if of_path else (name, _text(value))
            folder += "-" + "-".join(parts)
    return trained, {**data, **network, "output_dir": str(trained.path.with_name(folder))}


def _run_folder(parser: RecipeParser, args: Mapping[str, Any]) -> Path:
    name = parser.name if isinstance(parser.name, str) else parser.name(argparse.Namespace(**args))
    return Path(args["output_dir"] or f"models/{'toy-' if args['toy'] else ''}{name}")


def _run_to_continue(folder: Path, given: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint that --resume is about; refuse to replace a run unless --overwrite."""
    resume, last = given.get("resume"), folder / "last.pth"
    if isinstance(resume, str):
        path = Path(resume)
        return existing_checkpoint(path / "last.pth" if path.is_dir() else path)
    if resume and last.is_file():
        return last
    if resume and int(os.environ.get("RANK", 0)) == 0:
        print(f"{folder}: no run to continue, so one starts; --resume FILE names another")
    held = [name for name in RUN_FILES if os.path.exists(folder / name)]
    if held and "overwrite" not in given:
        go_on = f"continue it with --resume {shlex.quote(str(last))}, " if last.exists() else ""
        raise UserError(
            f"{folder}: already holds a run ({', '.join(held)}); {go_on}"
            "replace it with --overwrite, or give another --output_dir"
        )
    return None


def _resumed(path: Path, defaults: Mapping[str, Any], given: Mapping[str, Any]):
    """Read a run's checkpoint; keep its flags, and refuse given ones that change the recipe."""
    from utils import checkpoint  # not above: importing PyTorch takes seconds

    content = checkpoint.load(path)
    config = content.get("config", {})
    if path.name != "last.pth" or "epochs" not in config:
        raise UserError(f"{path}: not the last.pth of a run; give that, or the run's folder")
    if os.path.realpath(given.get("output_dir", path.parent)) != os.path.realpath(path.parent):
        raise UserError(f"{path}: a run continues in its own folder; leave --output_dir out")
    _check_script(defaults, config, path)
    kept = {name: config[name] for name in defaults if name in config and name != "device"}
    if _names_data(given):
        kept["toy"] = False  # draw nothing there
    differing = []
    for name, value in sorted(given.items()):
        own = config.get(name, "none")  # of a flag that is newer than the run
        may_change = name in (*PER_CALL, *MAY_CHANGE) or name.endswith("_path")
        if name == "epochs":  # may only grow, and not where a cosine schedule ends with the last
            may_change = value > own and config.get("schedule") != "cosine"
        if value != own and not may_change:
            differing.append(f"--{name} {_text(value)} (it has {_text(own)})")
    if differing:
        raise UserError(
            f"{path}: the run cannot continue with another recipe: {', '.join(differing)}; leave "
            "that out (only --epochs may grow), or start a new run with another --output_dir"
        )
    return Saved(path, content), {**kept, "output_dir": str(path.parent)}


def _names_data(given: Mapping[str, Any]) -> bool:
    return any(name.endswith("_path") for name in given)


def _check_script(flags: Iterable[str], config: Mapping[str, Any], path: Path) -> None:
    for name, value in config.items():
        if name.endswith("_path") and name not in flags:
            raise UserError(
                f"{path}: trained on --{name} {value}; use the script with that flag (rafdb.py has "
                "--raf_path, affectnet.py --aff_path), or name other data to evaluate on"
            )


def _text(value: Any) -> str:
    """A flag's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def network_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """DAN's arguments, besides num_class, among the flags of a run."""
    return {name: flags[name] for name in NETWORK_FLAGS if name in flags}


def loss_flags(args: argparse.Namespace, num_class: int) -> dict[str, Any]:
    """DANLoss's arguments among the flags.

    Raises:
        UserError: there are fewer centres than classes.
    """
    if args.num_center is not None and args.num_center < num_class:
        raise UserError(f"--num_center {args.num_center}: there are {num_class} classes; use more")
    names = ("num_center", "affinity_weight", "partition_weight")
    return {name: getattr(args, name) for name in names}


def existing_checkpoint(path: str | os.PathLike) -> Path:
    """Check that a flag names a file.

    Raises:
        UserError: it does not.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file, such as the best.pth of a run")
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such checkpoint; check the path (models/README.md links the released ones)"
        )
    return Path(path)


# ---- types of flags ------------------------------------------------------------------------------


def _number(text: str, kind: type, low: float, high: float = inf):
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if not low <= value <= high or value == inf:
        bound = f"at least {low}" if high == inf else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
    return value


def whole_number(low: int, high: float = inf) -> Callable[[str], int]:
    """An argparse type: an integer from low to high."""
    return partial(_number, kind=int, low=low, high=high)


not_negative = partial(_number, kind=float, low=0)
fraction = partial(_number, kind=float, low=0, high=0.9)
probability = partial(_number, kind=float, low=0, high=1)
