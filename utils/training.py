"""All that a training run changes: what a checkpoint has to hold, and a resume to put back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.run import Run

LOSS_TERMS = ("loss", "cross_entropy", "affinity", "partition")
# What is no setting in the state of PyTorch's schedulers, since it changes from step to step,
SCHEDULE_COUNTERS = ("last_epoch", "_step_count", "_last_lr", "T_cur", "T_i")
# and in the groups of its optimizers: what schedulers set there, and the choice of a kernel.
SCHEDULED = ("params", "lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
KERNELS = ("foreach", "fused", "capturable")


@dataclass
class Progress:
    """How far an epoch has come, and what its row of metrics.csv is made of."""

    steps: int
    sums: Tensor  # (5,) float64 on the device: loss terms and hits of this process's images
    images: int  # of this process
    seconds: float  # before the epoch was last interrupted
    row: dict[str, float] | None = None  # of metrics.csv, once all steps are done


class Training:
    """A network in training.

    Args:
        run: its surroundings.
        model: images -> DANOutput.
        criterion: (output, labels) -> (total, cross-entropy, affinity, partition).
        optimizer: of the parameters of both.
        scheduler: steps once an epoch.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ):
        self.run = run
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.history: list[dict[str, float]] = []  # the rows of metrics.csv
        self.best_confusion: np.ndarray | None = None  # (C, C), of the best epoch
        self.progress = self.fresh_progress()
        self.losses_of: nn.Module = _LossesOf(run, model, criterion)
        if run.world.size > 1:
            self.losses_of = DistributedDataParallel(self.losses_of, gradient_as_bucket_view=True)

    def fresh_progress(self) -> Progress:
        sums = torch.zeros(len(LOSS_TERMS) + 1, dtype=torch.float64, device=self.run.device)
        return Progress(steps=0, sums=sums, images=0, seconds=0.0)

    def checkpoint(self) -> dict[str, Any]:
        """Plain types and tensors only; the first three named as in the released files. To be
        called by all processes."""
        world, progress = self.run.world, self.progress
        images = world.sum(torch.tensor(progress.images))
        return {
            "iter": len(self.history),
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "criterion_state_dict": self.criterion.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "rng_state": torch.get_rng_state(),
            "progress": {
                "steps": progress.steps,
                "sums": world.sum(progress.sums).tolist(),
                "images": images.item(),
                "seconds": progress.seconds,
                "row": progress.row,
            },
            "class_names": list(self.run.class_names),
            "dataset": self.run.dataset,
            "data_fingerprint": self.run.data_fingerprint,
            "metrics": self.history,
            "best_confusion": None if self.best_confusion is None else self.best_confusion.tolist(),
            "config": self.run.config,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Put back what `checkpoint` gave.

        Raises:
            UserError: it holds weights alone, or is of another network, optimizer or schedule.
        """
        parts = ("model", "optimizer", "criterion", "scheduler")
        try:
            states = {part: content[f"{part}_state_dict"] for part in parts}
            random, progress = content["rng_state"], content["progress"]
            self.history = list(content["metrics"])
            confusion = content["best_confusion"]
        except KeyError as error:
            raise UserError(
                f"{self.run.resumed_from}: holds no {error.args[0]}, so no run can go on from it; "
                "give a last.pth of a run"
            ) from None
        recipe = self._settings()
        try:
            for part, state in states.items():
                getattr(self, part).load_state_dict(state)
            torch.set_rng_state(random)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.run.resumed_from}: does not fit this network and recipe ({reason})"
            ) from None
        # States bring settings along, such as a weight decay, or the epochs of a schedule.
        loaded = self._settings()
        changed = [name for name, own in recipe.items() if loaded.get(name) != own]
        if changed:
            raise UserError(
                f"{self.run.resumed_from}: the recipe's optimizer or learning-rate schedule is no "
                f"longer the run's ({', '.join(changed)}); put that back, leave out --epochs if "
                "the schedule depends on it, or start a new run with another --output_dir"
            )
        self.best_confusion = None if confusion is None else np.array(confusion)
        self.progress = self.fresh_progress()
        self.progress.steps = progress["steps"]
        self.progress.seconds = progress["seconds"]
        self.progress.row = progress["row"]
        if self.run.world.is_main:  # each process goes on with sums of its own, which add up
            self.progress.sums += self.progress.sums.new_tensor(progress["sums"])
            self.progress.images = progress["images"]

    def _settings(self) -> dict[str, Any]:
        """Those of optimizer and schedule, by name; for the optimizer's groups in a list."""
        groups = self.optimizer.state_dict()["param_groups"]
        names = groups[0].keys() - {*SCHEDULED, *KERNELS}
        if "max_momentum" in groups[0]:
            names -= {"momentum", "betas"}  # a schedule moves them, too
        optimizer = {name: [group.get(name) for group in groups] for name in sorted(names)}
        return {**optimizer, **_without_counters(self.scheduler.state_dict())}


def _without_counters(schedule: Any) -> Any:
    """A scheduler's state, and those of the schedulers in it."""
    if isinstance(schedule, dict):
        names = schedule.keys() - SCHEDULE_COUNTERS
        return {name: _without_counters(schedule[name]) for name in sorted(names)}
    if isinstance(schedule, list):
        return [_without_counters(part) for part in schedule]
    return schedule


class _LossesOf(nn.Module):
    """Images and labels -> losses and logits: network and criterion as one module, so that the
    gradients of both are averaged over the processes."""

    def __init__(self, run: Run, model: nn.Module, criterion: nn.Module):
        super().__init__()
        self.autocast = run.autocast
        self.model = torch.compile(model, dynamic=False) if run.args.compile else model
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(images)
        return self.criterion(output, labels), output.logits
