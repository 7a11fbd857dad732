"""The only training and evaluation loop."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils import checkpoint, run_folder
from utils.data import FaceLoader, Order
from utils.errors import UserError
from utils.metrics import Metrics, classification_metrics
from utils.readers import FaceData
from utils.run import Run
from utils.seed import generator
from utils.transforms import Augmentation, preprocess

LOSS_TERMS = ("loss", "cross_entropy", "affinity", "partition")
# Steps between two looks at the losses; each look asks the device without waiting for it.
LOOK_EVERY = 16


@dataclass
class Training:
    """All that a training run changes; what a checkpoint has to hold."""

    model: nn.Module
    criterion: nn.Module  # (output, labels) -> (total, cross-entropy, affinity, partition)
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv

    def checkpoint(self, run: Run) -> dict[str, Any]:
        """Plain types and tensors only; the first three named as in the released files."""
        return {
            "iter": len(self.history),
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "criterion_state_dict": self.criterion.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "rng_state": torch.get_rng_state(),
            "class_names": list(run.class_names),
            "dataset": run.dataset,
            "metrics": self.history,
            "config": run.config,
        }


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to a split, in the split's order, on the CPU."""

    probabilities: Tensor  # (N, C) float32
    labels: Tensor  # (N,)
    features: Tensor  # (N, 512), the backbone's, averaged over the positions
    losses: tuple[float, ...] | None  # means of LOSS_TERMS where a criterion was given

    @property
    def predictions(self) -> Tensor:
        """(N,) class indices."""
        return self.probabilities.argmax(dim=1)

    @property
    def metrics(self) -> Metrics:
        return classification_metrics(
            self.labels.numpy(),
            self.predictions.numpy(),
            num_class=self.probabilities.shape[1],
        )


def fit(
    run: Run, training: Training, data: FaceData, augment: Augmentation, *, order: Order
) -> None:
    """Train for `--epochs`; after each evaluate, log, and save last.pth and best.pth.

    Args:
        augment: the recipe's, for training images.
        order: the recipe's sampling of them, `shuffled` or `balanced`.
    """
    args = run.args
    shared = {
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "device": run.device,
        "workers": args.workers,
    }
    train_loader = FaceLoader(data.train, **shared, order=order, seed=args.seed, drop_single=True)
    val_loader = FaceLoader(data.val, **shared)
    best, best_metrics = None, None
    for epoch in range(1, args.epochs + 1):
        row = train_one_epoch(run, training, train_loader, augment, epoch)
        evaluation = evaluate(
            training.model, val_loader, args.image_size, run.autocast, training.criterion
        )
        metrics = evaluation.metrics
        row["val_loss"] = evaluation.losses[0]
        row["val_accuracy"] = metrics.accuracy
        row["val_balanced_accuracy"] = metrics.balanced_accuracy
        training.history.append(row)
        is_best = best is None or metrics.accuracy > best["val_accuracy"]
        if is_best:
            best, best_metrics = row, metrics
        run_folder.write_metrics(run.output_dir, training.history)
        checkpoint.save(run.output_dir / "last.pth", training.checkpoint(run))
        if is_best:
            checkpoint.link(run.output_dir / "last.pth", run.output_dir / "best.pth")
        print(run_folder.format_row(row, args.epochs, is_best=is_best), flush=True)
    run_folder.draw_pictures(run, training.history, best_metrics.confusion)
    run_folder.print_end(run, training.history)


def train_one_epoch(
    run: Run, training: Training, loader: FaceLoader, augment: Augmentation, epoch: int
) -> dict[str, float]:
    """One pass over the loader, and one step of the schedule; the epoch's row of metrics.csv.

    Raises:
        UserError: a loss is not finite.
    """
    model, criterion, optimizer = training.model.train(), training.criterion, training.optimizer
    started = time.perf_counter()
    sums = torch.zeros(len(LOSS_TERMS) + 1, dtype=torch.float64, device=run.device)
    watch = _LossWatch(len(loader), epoch, run.device)
    num_images = 0
    bar = tqdm(
        loader.epoch(epoch), desc=f"epoch {epoch}", total=len(loader), leave=False, disable=None
    )
    for step, (images, labels) in enumerate(bar):
        inputs = augment(images, run.args.image_size, generator(run.args.seed, epoch, step))
        with torch.autocast(run.device.type, run.autocast, enabled=run.autocast is not None):
            output = model(inputs)
        losses = criterion(output, labels)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        # Sums stay on the device, weighted by batch size: reading them here would wait for it.
        hits = (output.logits.detach().argmax(dim=1) == labels).sum()
        sums += torch.stack([*(loss.detach() * len(labels) for loss in losses), hits])
        num_images += len(labels)
        watch.look(step, losses.total.detach(), bar)
    watch.finish()
    means = (sums / num_images).tolist()
    seconds = time.perf_counter() - started
    lr = optimizer.param_groups[0]["lr"]
    training.scheduler.step()
    return {
        "epoch": epoch,
        "lr": lr,
        **dict(zip(LOSS_TERMS, means, strict=False)),
        "train_accuracy": means[-1],
        "val_loss": math.nan,
        "val_accuracy": math.nan,
        "val_balanced_accuracy": math.nan,
        "seconds": seconds,
        "images_per_second": num_images / seconds,
    }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: FaceLoader,
    image_size: int,
    autocast: torch.dtype | None = None,
    criterion: nn.Module | None = None,
) -> Evaluation:
    """Every image of the loader once, without augmentation; with the losses of a criterion."""
    model.eval()
    probabilities, features, all_labels = [], [], []
    sums = torch.zeros(len(LOSS_TERMS), dtype=torch.float64, device=loader.device)
    for images, labels in tqdm(
        loader.epoch(), desc="evaluate", total=len(loader), leave=False, disable=None
    ):
        with torch.autocast(loader.device.type, autocast, enabled=autocast is not None):
            output = model(preprocess(images, image_size))
        probabilities.append(output.logits.float().softmax(dim=1))
        features.append(output.features.float().mean(dim=(2, 3)))
        all_labels.append(labels)
        if criterion is not None:
            sums += torch.stack([loss * len(labels) for loss in criterion(output, labels)])
    labels = torch.cat(all_labels).cpu()
    return Evaluation(
        probabilities=torch.cat(probabilities).cpu(),
        labels=labels,
        features=torch.cat(features).cpu(),
        losses=None if criterion is None else tuple((sums / len(labels)).tolist()),
    )


class _LossWatch:
    """Stops an epoch whose loss is no longer finite, without waiting for the device.

    Each step's loss is noted on the device; now and then the notes start on their way to the
    host, and are read at the next look, when they have long arrived.
    """

    def __init__(self, steps: int, epoch: int, device: torch.device):
        self.epoch = epoch
        self.device = device
        self.losses = torch.zeros(steps, device=device)
        self.arriving = None  # (losses on the host, event)

    def look(self, step: int, loss: Tensor, bar: tqdm) -> None:
        self.losses[step] = loss
        if (step + 1) % LOOK_EVERY:
            return
        if self.arriving is not None:
            losses, event = self.arriving
            if event is not None and not event.query():
                return
            self._check(losses)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
        noted, event = self.losses[: step + 1], None
        if self.device.type == "cuda":
            host = torch.empty_like(noted, device="cpu", pin_memory=True)
            noted = host.copy_(noted, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.arriving = noted, event

    def finish(self) -> None:
        self._check(self.losses.cpu())

    def _check(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise UserError(
                f"the loss became {losses[bad[0]].item()} in epoch {self.epoch}, step "
                f"{bad[0].item() + 1}; last.pth holds the epoch before, if there was one; "
                "try a smaller --lr or --precision fp32"
            )
