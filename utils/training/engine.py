"""The training loop and the evaluation loop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.data.datasets import FaceData
from utils.data.loader import FaceLoader, Order
from utils.data.transforms import Augmentation, preprocess
from utils.device import generator
from utils.errors import Interrupted, UserError, plural
from utils.training.metrics import Metrics, classification_metrics
from utils.training.run import LOSS_TERMS, Run
from utils.training.signals import Interruptions

CHECK_LOSS_EVERY = 50  # steps; reading it waits for the device


def fit(run: Run, data: FaceData, augment: Augmentation, *, order: Order) -> None:
    """Train for `--epochs`. After each epoch evaluate, log, and save last.pth and best.pth; a
    resumed run continues with its next step. Test images, if there are others than those that
    choose the best epoch, are looked at once, at the end.

    Args:
        augment: the recipe's, for training images.
        order: how the recipe samples them, `shuffled` or `balanced`.

    Raises:
        UserError: out of memory, the disk is full, a broken image, or a loss is not finite.
        Interrupted: by a signal; everything is saved.
    """
    args, world = run.args, run.world
    make_loader = partial(
        FaceLoader,
        batch_size=args.batch_size,
        image_size=args.image_size,
        workers=args.workers,
        world=world,
    )
    if len(run.history) < args.epochs:
        train_loader = make_loader(data.train, order=order, seed=args.seed, min_images=2)
        val_loader = make_loader(data.val)
        run.open_folder()  # only now, since a broken image may have stopped the run
        try:
            _train(run, train_loader, val_loader, augment)
        finally:
            train_loader.close()
            val_loader.close()
    else:
        run.open_folder()
        world.print_once(
            f"this run has completed {plural(args.epochs, 'epoch')}; give --epochs for more"
        )
    if data.test is not None and run.best_confusion is not None:
        loader = make_loader(data.test)
        for name in ("best", "last"):
            run.load_epoch(name)
            run.add_test(name, evaluate(run.model, loader, args.image_size))
        loader.close()
    world.shutdown()
    run.finish()


def _train(
    run: Run, train_loader: FaceLoader, val_loader: FaceLoader, augment: Augmentation
) -> None:
    args, steps = run.args, len(train_loader)
    bar = run.world.progress(
        total=args.epochs * steps,
        initial=len(run.history) * steps + run.progress.steps,
        unit="step",
        smoothing=0,  # the time that is left includes evaluations
    )
    try:
        with bar, Interruptions(run.world) as signals:
            while len(run.history) < args.epochs:
                bar.set_description_str(
                    f"epoch {len(run.history) + 1} of {args.epochs}, step", False
                )
                row = train_one_epoch(run, train_loader, augment, signals.check, bar)
                run.world.broadcast_buffers(run.model)
                evaluation = evaluate(
                    run.model, val_loader, args.image_size, run.criterion, signals.check
                )
                run.end_epoch(row, evaluation)
    except Interrupted as interruption:
        run.save_interrupted(steps, interruption.signal_number)
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of GPU memory with --batch_size {args.batch_size} at {args.image_size} pixels in "
            f"{run.world.precision}; try --batch_size {max(2, args.batch_size // 2)}, --precision "
            "bf16 or more GPUs (torchrun)"
        ) from None


def train_one_epoch(
    run: Run,
    loader: FaceLoader,
    augment: Augmentation,
    check: Callable[[], None] = lambda: None,
    bar: tqdm | None = None,
) -> dict[str, float]:
    """Train the next epoch, or finish an interrupted one, and step the schedule.

    Args:
        check: called after each step; if it raises, `run.progress` holds what was done.
        bar: of the whole run.

    Returns:
        The epoch's row of metrics.csv, without the evaluation's part.

    Raises:
        UserError: a loss is not finite.
    """
    progress, world = run.progress, run.world
    if progress.row is not None:  # interrupted during its evaluation
        return progress.row
    size, seed = run.args.image_size, run.args.seed
    epoch = len(run.history) + 1
    run.model.train()
    totals = torch.zeros(len(loader), device=world.device)  # of this pass
    first, before, started = progress.steps, progress.seconds, time.perf_counter()
    bar = tqdm(disable=True) if bar is None else bar
    batches = loader.epoch(epoch, first)
    for step, (images, labels, share, count) in enumerate(batches, start=first):
        draws = augment.draw(count, size, generator(seed, epoch, step))
        inputs = preprocess(images, size, draws.of(share))
        losses, logits = run.forward(inputs, labels)
        run.optimizer.zero_grad()
        losses.total.backward()
        update(run, step, len(loader))
        # Sums stay on the device, weighted by batch size: reading them here would wait for it.
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        sums = [loss.detach() * len(labels) for loss in losses]
        progress.sums += torch.stack([*sums, hits, torch.full_like(hits, len(labels))])
        progress.steps = step + 1
        progress.seconds = before + time.perf_counter() - started
        totals[step] = losses.total.detach()
        if progress.steps % CHECK_LOSS_EVERY == 0:
            check_losses(totals, epoch)
            bar.set_postfix_str(f"loss {totals[step].item():.3f}", refresh=False)
        bar.update()
        try:
            check()
        except Interrupted:
            check_losses(totals, epoch)  # do not save a network that has diverged
            raise
    check_losses(totals, epoch)
    *sums, images = world.sum(progress.sums).tolist()
    means = [value / images for value in sums]
    progress.row = {
        "epoch": epoch,
        "lr": run.optimizer.param_groups[0]["lr"] * rate_factor(run, len(loader) - 1, len(loader)),
        **dict(zip(LOSS_TERMS, means[:-1], strict=True)),
        "train_accuracy": means[-1],
        "val_loss": math.nan,
        "val_accuracy": math.nan,
        "val_balanced_accuracy": math.nan,
        "seconds": progress.seconds,
        "images_per_second": images / progress.seconds,
        "val_macro_f1": math.nan,
    }
    run.scheduler.step()
    return progress.row


def update(run: Run, step: int, steps: int) -> None:
    """Update the parameters after a backward pass, with gradient clipping, warm-up and cosine decay
    as the flags say.

    Args:
        step: number of the step, from 0 on, of `steps` in this epoch.
    """
    args, groups = run.args, run.optimizer.param_groups
    if args.clip_grad:
        parameters = [parameter for group in groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, args.clip_grad)
    factor = rate_factor(run, step, steps)
    rates = [group["lr"] for group in groups]  # the scheduler's, which goes on from them
    for group in groups:
        group["lr"] *= factor
    run.optimizer.step()
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def rate_factor(run: Run, step: int, steps: int) -> float:
    """What warm-up and cosine decay multiply the learning rate of a step by."""
    args = run.args
    done = len(run.history) + (step + 1) / steps  # epochs after this step
    factor = min(1.0, done / args.warmup_epochs) if args.warmup_epochs else 1.0
    if args.schedule == "cosine":
        factor *= (1 + math.cos(math.pi * (done - 1 / steps) / args.epochs)) / 2
    return factor


def check_losses(totals: Tensor, epoch: int) -> None:
    """Stop an epoch in which a step's loss, one of `totals`, is not finite."""
    bad = (~totals.isfinite()).nonzero()
    if len(bad):
        raise UserError(
            f"the loss became {totals[bad[0]].item()} in epoch {epoch}, step {bad[0].item() + 1}; "
            "last.pth holds the epoch before, if there was one; try a smaller --lr or --precision "
            "fp32"
        )


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a split, in its order, on the CPU."""

    probabilities: Tensor  # (N, C) float32
    labels: Tensor  # (N,)
    features: Tensor  # (N, 512), the backbone's, averaged over the positions
    losses: tuple[float, ...] | None  # means of LOSS_TERMS if a criterion was given

    @property
    def predictions(self) -> Tensor:
        """(N,) class indices."""
        return self.probabilities.argmax(dim=1)

    @property
    def metrics(self) -> Metrics:
        labels, predictions = self.labels.numpy(), self.predictions.numpy()
        return classification_metrics(labels, predictions, num_class=self.probabilities.shape[1])


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: FaceLoader,
    image_size: int,
    criterion: nn.Module | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predict every image of the loader once, without augmentation, in the precision of its world;
    with the losses of a criterion. Each of several processes gets the predictions of all.
    """
    model.eval()
    world = loader.world
    parts, done = [], 0
    sums = torch.zeros(len(LOSS_TERMS), dtype=torch.float64, device=world.device)
    for images, labels, share, count in world.progress(
        loader.epoch(), desc="evaluate", total=len(loader)
    ):
        with torch.autocast(world.device.type, world.autocast, enabled=world.autocast is not None):
            output = model(preprocess(images, image_size))
        probabilities = output.logits.float().softmax(dim=1)
        features = output.features.float().mean(dim=(2, 3))
        indices = torch.arange(done + share.start, done + share.stop)
        parts.append((indices, probabilities, labels, features))
        done += count
        if criterion is not None:
            sums += torch.stack([loss * len(labels) for loss in criterion(output, labels)])
        check()
    mine = [torch.cat(values).cpu() for values in zip(*parts, strict=True)]
    everyone = [torch.cat(values) for values in zip(*world.gather(mine), strict=True)]
    order = everyone[0].argsort()
    probabilities, labels, features = (values[order] for values in everyone[1:])
    losses = None if criterion is None else tuple((world.sum(sums) / len(labels)).tolist())
    return Evaluation(probabilities, labels, features, losses)
