"""The only training and evaluation loop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import run_folder
from utils.data import FaceLoader
from utils.errors import Interrupted, UserError
from utils.face_data import FaceData
from utils.failures import explained
from utils.interruptions import Interruptions
from utils.loss_watch import LossWatch
from utils.metrics import Metrics, classification_metrics
from utils.sampling import Order
from utils.seed import generator
from utils.training import LOSS_TERMS, Training
from utils.transforms import Augmentation, preprocess


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to a split, in the split's order, on the CPU."""

    indices: Tensor  # (N,) int64: which images of the split; all of them, but for unreadable ones
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


def fit(training: Training, data: FaceData, augment: Augmentation, *, order: Order) -> None:
    """Train for `--epochs`; after each evaluate, log, and save last.pth and best.pth. Where the run
    was resumed, go on from its last step.

    Args:
        augment: the recipe's, for training images.
        order: the recipe's sampling of them, `shuffled` or `balanced`.

    Raises:
        UserError: memory, a disk, a worker or another process failed; a loss is not finite.
        Interrupted: by a signal; all is saved.
    """
    run, epochs = training.run, training.run.args.epochs
    if run.resumed is not None:
        training.restore(run.resumed)
        step = f", step {training.progress.steps}" if training.progress.steps else ""
        run.say(f"going on from {run.resumed_from}: epoch {len(training.history)} done{step}")
    if len(training.history) < epochs:
        with explained(run), Interruptions(run.world) as interruptions:
            _train(training, data, augment, order, interruptions)
        run.world.leave()
    else:
        run_folder.prepare(training)
        run.say(f"this run has finished its {epochs} epochs; for more, give --epochs")
    run_folder.finish(training, data.val)


def _train(
    training: Training,
    data: FaceData,
    augment: Augmentation,
    order: Order,
    interruptions: Interruptions,
) -> None:
    run, args = training.run, training.run.args
    shared = {
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "device": run.device,
        "workers": args.workers,
        "world": run.world,
        "skip_bad": args.skip_bad_images,
    }
    train_loader = FaceLoader(data.train, **shared, order=order, seed=args.seed, smallest=2)
    val_loader = FaceLoader(data.val, **shared)
    run_folder.prepare(training)
    try:
        with interruptions.of_workers():
            while len(training.history) < args.epochs:
                run_folder.note_bad_images(run, train_loader, val_loader)
                row = train_one_epoch(training, train_loader, augment, interruptions.check)
                run.world.spread_buffers(training.model)
                evaluation = evaluate(
                    training.model,
                    val_loader,
                    args.image_size,
                    run.autocast,
                    training.criterion,
                    interruptions.check,
                )
                run_folder.end_epoch(training, row, evaluation.losses[0], evaluation.metrics)
    except Interrupted as interruption:
        run_folder.save_interrupted(training, len(train_loader), interruption.number)
    run_folder.note_bad_images(run, train_loader, val_loader)


def train_one_epoch(
    training: Training,
    loader: FaceLoader,
    augment: Augmentation,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The epoch that follows the history, from the step where it stands; the schedule's step.

    Args:
        check: called after each step; what it raises leaves `training.progress` as of that step.

    Returns:
        Its row of metrics.csv, without the evaluation's part.

    Raises:
        UserError: a loss is not finite.
    """
    run, progress = training.run, training.progress
    if progress.row is not None:  # interrupted in its evaluation
        return progress.row
    size, seed = run.args.image_size, run.args.seed
    epoch = len(training.history) + 1
    training.model.train()
    watch = LossWatch(len(loader), epoch, run.device)
    first, before, started = progress.steps, progress.seconds, time.perf_counter()
    bar = run.world.progress(
        loader.epoch(epoch, first), desc=f"epoch {epoch}", total=len(loader), initial=first
    )
    for step, (images, labels, places, count) in enumerate(bar, start=first):
        if run.args.skip_bad_images and run.world.fewest(len(labels)) < 2:
            progress.steps = step + 1  # BatchNorm needs two in each process
            continue
        draws = augment.draw(count, size, generator(seed, epoch, step))
        inputs = augment.apply(images, size, draws.of(places))
        losses, logits = training.losses_of(inputs, labels)
        training.optimizer.zero_grad()
        losses.total.backward()
        training.optimizer.step()
        # Sums stay on the device, weighted by batch size: reading them here would wait for it.
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        progress.sums += torch.stack([*(loss.detach() * len(labels) for loss in losses), hits])
        progress.images += len(labels)
        progress.steps = step + 1
        progress.seconds = before + time.perf_counter() - started
        watch.look(step, losses.total.detach(), bar)
        try:
            check()
        except Interrupted:
            watch.finish()  # a network that is lost should not be saved
            raise
    watch.finish()
    images = run.world.sum(torch.tensor(progress.images)).item()
    if not images:
        raise UserError(f"{loader.split.root}: none of its {len(loader.split)} images can be read")
    means = (run.world.sum(progress.sums) / images).tolist()
    seconds = before + time.perf_counter() - started
    progress.row = {
        "epoch": epoch,
        "lr": training.optimizer.param_groups[0]["lr"],
        **dict(zip(LOSS_TERMS, means[:-1], strict=True)),
        "train_accuracy": means[-1],
        "val_loss": math.nan,
        "val_accuracy": math.nan,
        "val_balanced_accuracy": math.nan,
        "seconds": seconds,
        "images_per_second": images / seconds,
    }
    training.scheduler.step()
    return progress.row


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: FaceLoader,
    image_size: int,
    autocast: torch.dtype | None = None,
    criterion: nn.Module | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Every image of the loader once, without augmentation; with the losses of a criterion.

    Where several processes share the loader's batches, each gets the answers of all.
    """
    model.eval()
    world = loader.world
    answers, done = [], 0
    sums = torch.zeros(len(LOSS_TERMS), dtype=torch.float64, device=loader.device)
    for images, labels, places, count in world.progress(
        loader.epoch(), desc="evaluate", total=len(loader)
    ):
        with torch.autocast(loader.device.type, autocast, enabled=autocast is not None):
            output = model(preprocess(images, image_size))
        probabilities = output.logits.float().softmax(dim=1)
        features = output.features.float().mean(dim=(2, 3))
        answers.append((done + places, probabilities, labels, features))
        done += count
        if criterion is not None:
            sums += torch.stack([loss * len(labels) for loss in criterion(output, labels)])
        check()
    mine = [torch.cat(parts).cpu() for parts in zip(*answers, strict=True)]
    together = [torch.cat(parts) for parts in zip(*world.gather(mine), strict=True)]
    order = together[0].argsort()
    indices, probabilities, labels, features = (values[order] for values in together)
    if not len(indices):
        raise UserError(f"{loader.split.root}: none of its {len(loader.split)} images can be read")
    losses = None if criterion is None else tuple((world.sum(sums) / len(labels)).tolist())
    return Evaluation(indices, probabilities, labels, features, losses)
