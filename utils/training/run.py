"""A training run: all that changes while training, and the folder that keeps it."""

import argparse
import datetime
import json
import math
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import checkpoint
from utils.cli import PER_CALL, RUN_FILES, Saved
from utils.data.datasets import FaceData
from utils.device import device_name
from utils.distributed import World
from utils.errors import Interrupted, UserError, writing
from utils.training import plots
from utils.training.metrics import SCORES

if TYPE_CHECKING:  # the loop, which imports this module
    from utils.training.engine import Evaluation

LOSS_TERMS = ("loss", "cross_entropy", "affinity", "partition")
Row = dict[str, float]  # an epoch in metrics.csv


@dataclass
class Progress:
    """How far an epoch has come, and what its row of metrics.csv is computed from."""

    sums: Tensor  # (6,) float64 on the device: this process's loss terms, hits and images
    steps: int = 0
    seconds: float = 0.0
    row: Row | None = None  # of metrics.csv, once all steps are done


@dataclass(eq=False)
class Run:
    """A network in training and its folder, `args.output_dir`.

    Raises:
        UserError: the run of `saved` was trained on other data, or with another optimizer or
            schedule.
    """

    args: argparse.Namespace
    saved: InitVar[Saved | None]  # the checkpoint to continue from
    data: FaceData
    world: World
    model: nn.Module  # images -> DANOutput, on the device
    criterion: nn.Module  # (output, labels) -> DANLosses, on the device
    optimizer: torch.optim.Optimizer  # of the parameters of both
    scheduler: torch.optim.lr_scheduler.LRScheduler  # steps once per epoch

    def __post_init__(self, saved: Saved | None):
        args, world, data = self.args, self.world, self.data
        self.folder = Path(args.output_dir)
        self.network_name = "DAN" if args.num_head else "ResNet-18"
        self.num_parameters = sum(p.numel() for p in self.model.parameters())
        self.recipe = {
            "optimizer_settings": _describe(self.optimizer),
            "scheduler_settings": _describe(self.scheduler),
        }
        self.test_metrics: dict[str, dict[str, float]] = {}  # of the best and the last epoch
        self.history: list[Row] = []
        self.best_confusion: np.ndarray | None = None  # (C, C), of the best epoch
        self.progress = self._new_progress()
        self.forward: nn.Module = _NetworkAndLosses(
            self.model, self.criterion, args.compile, world.autocast
        )
        if world.size > 1:
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
        self._continues = saved is not None
        world.print_once(data.summary())
        where = f"{world.size} processes, each on " if world.size > 1 else ""
        world.print_once(
            f"{self.network_name}, {self.num_parameters:,} parameters, {data.num_class} classes, "
            f"on {where}{device_name(world.device)} in {world.precision}, torch {torch.__version__}"
        )
        flags = (f"{key}={value}" for key, value in self.config.items() if key not in self.recipe)
        world.print_once("  ".join(flags))
        if saved is not None:
            self._restore(saved)

    @property
    def config(self) -> dict[str, Any]:
        """Every flag that checkpoints keep, resolved, in plain types."""
        flags = {name: value for name, value in vars(self.args).items() if name not in PER_CALL}
        precision = self.world.precision
        return {**flags, "device": str(self.world.device), "precision": precision, **self.recipe}

    @property
    def chosen_on(self) -> str:
        """The split that the best epoch is chosen on: the test images where there are no others."""
        return "val" if self.data.test is not None else "test"

    @property
    def best_row(self) -> Row:
        """The first epoch with the highest validation accuracy; NaN is the lowest."""
        return max(self.history, key=lambda row: np.nan_to_num(row["val_accuracy"], nan=-1))

    def _new_progress(self) -> Progress:
        size = len(LOSS_TERMS) + 2
        return Progress(torch.zeros(size, dtype=torch.float64, device=self.world.device))

    # ---- state ----

    def state(self) -> dict[str, Any]:
        """Everything that a resume needs, in plain types and tensors; the first three named as in
        the released files. All processes call it."""
        progress, confusion = self.progress, self.best_confusion
        *sums, images = self.world.sum(progress.sums).tolist()
        on_cuda = self.world.device.type == "cuda"
        return {
            "iter": len(self.history),
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "criterion_state_dict": self.criterion.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "rng_state": torch.get_rng_state(),
            "cuda_rng_state": torch.cuda.get_rng_state() if on_cuda else None,
            "progress": {
                "steps": progress.steps,
                "sums": sums,
                "images": int(images),
                "seconds": progress.seconds,
                "row": progress.row,
            },
            "class_names": list(self.data.class_names),
            "dataset": self.data.name,
            "toy": self.data.toy,
            "data_fingerprint": self.data.fingerprint(),
            "metrics": self.history,
            "best_confusion": None if confusion is None else confusion.tolist(),
            "config": self.config,
        }

    def _restore(self, saved: Saved) -> None:
        path, content = saved
        if content.get("data_fingerprint") != self.data.fingerprint():
            raise UserError(
                f"{path}: the run was trained on other images or labels than those in the data set "
                "now; restore the data, or start a new run with another --output_dir"
            )
        for name, own in self.recipe.items():
            theirs = content["config"].get(name, own)  # runs of earlier versions lack it
            changed = [key for key in own.keys() & theirs.keys() if own[key] != theirs[key]]
            if changed:
                shown = [{key: part[key] for key in ("class", *changed)} for part in (theirs, own)]
                raise UserError(
                    f"{path}: the run's {name.removesuffix('_settings')} is {shown[0]}, not "
                    f"{shown[1]}; restore it, or start a new run with another --output_dir (a "
                    "schedule may depend on --epochs)"
                )
        try:
            for part in ("model", "criterion", "optimizer", "scheduler"):
                getattr(self, part).load_state_dict(content[f"{part}_state_dict"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: does not fit this network and recipe ({reason})") from None
        torch.set_rng_state(content["rng_state"])
        if self.world.device.type == "cuda" and content["cuda_rng_state"] is not None:
            torch.cuda.set_rng_state(content["cuda_rng_state"])
        self.history, confusion = content["metrics"], content["best_confusion"]
        self.best_confusion = None if confusion is None else np.array(confusion)
        progress = content["progress"]
        self.progress.steps, self.progress.seconds = progress["steps"], progress["seconds"]
        self.progress.row = progress["row"]
        if self.world.is_main:  # each process continues with its own sums, which add up
            sums = [*progress["sums"], progress["images"]]
            self.progress.sums += self.progress.sums.new_tensor(sums)
        step = f", step {self.progress.steps}" if self.progress.steps else ""
        self.world.print_once(f"continuing {path}: epoch {len(self.history)} done{step}")

    # ---- folder ----

    def open_folder(self) -> None:
        """Make the folder and write config.json; remove what an overwritten run left there, or
        complete what the continued run wrote.

        Raises:
            UserError: it cannot be written.
        """
        self.world.barrier()  # no process should take these files for an earlier run
        if not self.world.is_main:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(".*.tmp"):  # half written by a killed run
                path.unlink()
            if not self._continues:
                figures = ("curves.*", "confusion_matrix.*")
                for pattern in (*RUN_FILES, "test_metrics.json", *figures):
                    for path in self.folder.glob(pattern):
                        path.unlink()
            elif self.history:
                if self.best_row is self.history[-1] and not self.progress.steps:
                    # A run may be killed between writing the two.
                    checkpoint.link(self.folder / "last.pth", self.folder / "best.pth")
                self._write_metrics()
            splits = self.data.splits.items()
            config = {
                "dataset": self.data.name,
                "class_names": self.data.class_names,
                "data_fingerprint": self.data.whole or self.data.fingerprint(),
                "images": {n: split.counts(self.data.num_class).tolist() for n, split in splits},
                "chosen_on": self.chosen_on,
                **self.config,
                "command": shlex.join(sys.argv),
                "git_commit": _git_commit(),
                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "parameters": self.num_parameters,
                "processes": self.world.size,
                "device_name": device_name(self.world.device),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            }
            self._write("config.json", json.dumps(config, indent=2) + "\n")

    def end_epoch(self, row: Row, evaluation: "Evaluation") -> None:
        """Complete the epoch's row, log it, save last.pth and best.pth."""
        metrics = evaluation.metrics
        answers = not evaluation.probabilities.isnan().any()
        row["val_loss"] = evaluation.losses[0]
        for name in SCORES:
            row[f"val_{name}"] = getattr(metrics, name) if answers else math.nan
        self.history.append(row)
        is_best = answers and self.best_row is row
        if is_best:
            self.best_confusion = metrics.confusion
        self.progress = self._new_progress()
        state = self.state()
        if self.world.is_main:
            last = self.folder / "last.pth"
            checkpoint.save(last, state)
            if is_best:
                checkpoint.link(last, self.folder / "best.pth")
            self._write_metrics()
        self.world.print_once(format_row(row, self.args.epochs, is_best=is_best))

    def save_interrupted(self, steps: int, number: int) -> NoReturn:
        """Save a run that the signal `number` interrupts in an epoch of `steps` steps.

        Raises:
            Interrupted: always; its message says how to continue.
        """
        done = self.progress.steps
        state = self.state()
        if not self.world.is_main:
            raise Interrupted(number)
        path = self.folder / "last.pth"
        checkpoint.save(path, state)
        where = f"step {done} of {steps}" if done < steps else "its evaluation"
        world, device = self.world, self.args.device
        start = f"torchrun --nproc_per_node={world.local_size}" if world.size > 1 else "python"
        words = [sys.argv[0], "--resume", str(path)]
        words += [] if device == "auto" else ["--device", device]
        raise Interrupted(
            number,
            f"interrupted by {signal.Signals(number).name} in epoch {len(self.history) + 1}, "
            f"{where}; saved in {path}; continue with\n{start} {shlex.join(words)}",
        )

    # ---- after the last epoch ----

    def load_epoch(self, name: str) -> None:
        """Put the weights of the `best` or the `last` epoch into the network."""
        self.world.barrier()  # the main process may still be writing them
        content = checkpoint.load(self.folder / f"{name}.pth")
        self.model.load_state_dict(content["model_state_dict"])

    def add_test(self, name: str, evaluation: "Evaluation") -> None:
        """Note what the `best` or the `last` epoch scores on the test images, in
        test_metrics.json."""
        metrics = evaluation.metrics
        self.test_metrics[name] = {
            "epoch": (self.best_row if name == "best" else self.history[-1])["epoch"],
            "images": len(evaluation.labels),
            **{score: getattr(metrics, score) for score in SCORES},
        }
        if self.world.is_main:
            self._write("test_metrics.json", json.dumps(self.test_metrics, indent=2) + "\n")

    def finish(self) -> None:
        """Plot the curves and the confusion matrix of the best epoch; print the accuracies, and
        what to try next.

        Raises:
            UserError: no epoch predicts numbers.
        """
        if not self.world.is_main:
            return
        best, last, folder, suffix = self.best_row, self.history[-1], self.folder, self.args.figures
        if self.best_confusion is None:
            raise UserError(
                f"{folder}: the network predicts NaN after every epoch; try a smaller --lr or "
                "--precision fp32"
            )
        title = f"{self.data.title}, {self.chosen_on} images"
        curves, confusion = folder / f"curves.{suffix}", folder / f"confusion_matrix.{suffix}"
        held_out = "test" if self.chosen_on == "test" else "validation"
        name = f"{self.network_name} on {title}"
        plots.plot_curves(self.history, curves, title=name, held_out=held_out)
        chosen = f"{title}, epoch {best['epoch']}: {100 * best['val_accuracy']:.2f} %"
        names = self.data.class_names
        plots.plot_confusion(self.best_confusion, names, confusion, title=chosen)
        weights = shlex.quote(str(folder / "best.pth"))
        face = shlex.quote(str(self.data.val.path(0)))
        print(
            f"\n{title}: best accuracy {_percents(best)} at epoch {best['epoch']}, "
            f"last {_percents(last)}"
        )
        for name, row in self.test_metrics.items():
            print(f"test images, {name} epoch: {_percents(row, '')}")
        print(
            f"files in {folder}/: best.pth last.pth metrics.csv {curves.name} {confusion.name} "
            f"config.json{' test_metrics.json' if self.test_metrics else ''}\n"
            f"try next: python run_grad_cam.py --checkpoint {weights}\n"
            f"          python demo.py --checkpoint {weights} --whole_image --image {face}"
        )

    def _write_metrics(self) -> None:
        """Write metrics.csv; after last.pth, which contains the same rows."""
        table = pd.DataFrame(self.history)
        columns = {"index": False, "float_format": "%.6g", "na_rep": "nan"}
        self._write("metrics.csv", table.to_csv(lineterminator="\n", **columns))

    def _write(self, name: str, text: str) -> None:
        checkpoint.write_atomically(self.folder / name, lambda file: file.write(text.encode()))


class _NetworkAndLosses(nn.Module):
    """Images and labels -> losses and logits. Network and criterion as one module, so that the
    gradients of both are averaged over the processes."""

    def __init__(self, model, criterion, compiled: bool, autocast: torch.dtype | None):
        super().__init__()
        self.autocast = autocast
        self.model = torch.compile(model, dynamic=False) if compiled else model
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(images)
        return self.criterion(output, labels), output.logits


def format_row(row: Row, epochs: int, *, is_best: bool) -> str:
    """Format an epoch as one line, its columns aligned with the lines before."""
    width = len(str(epochs))
    return (
        f"epoch {row['epoch']:{width}d}/{epochs}  lr {row['lr']:<9.3g}loss {row['loss']:.3f} "
        f"(ce {row['cross_entropy']:.3f}, affinity {row['affinity']:.3f}, "
        f"partition {row['partition']:.3f})  train {100 * row['train_accuracy']:5.2f} %  "
        f"val {100 * row['val_accuracy']:5.2f} %  "
        f"balanced {100 * row['val_balanced_accuracy']:5.2f} %  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:.0f} img/s" + ("  *" if is_best else "")
    )


def _percents(row: Row, prefix: str = "val_") -> str:
    accuracy, balanced = (
        100 * row[f"{prefix}{name}"] for name in ("accuracy", "balanced_accuracy")
    )
    return f"{accuracy:.2f} % (balanced {balanced:.2f} %)"


def _git_commit() -> str | None:
    """The commit of this code, with "+" if files have been changed; None outside of git."""
    words = "describe --always --abbrev=40 --exclude=* --dirty=+".split()
    command = ["git", "-C", Path(__file__).parent, *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _describe(part: torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler) -> dict:
    """Class and initial settings of an optimizer or a schedule, in plain types."""
    settings = part.state_dict()
    if isinstance(part, torch.optim.Optimizer):
        groups = settings["param_groups"]
        names = groups[0].keys() - {"params"}
        settings = {name: [group.get(name) for group in groups] for name in sorted(names)}
    return {"class": type(part).__name__, **json.loads(json.dumps(settings, default=str))}
