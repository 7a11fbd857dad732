"""Evaluate a checkpoint on a data set's held-out images, and write down what came out."""

import argparse
import json

import pandas as pd
import torch
from sklearn.manifold import TSNE
from torch import nn

from utils import plots
from utils.data import FaceLoader
from utils.distributed import World
from utils.engine import Evaluation, evaluate
from utils.errors import UserError
from utils.face_data import FaceData
from utils.failures import explained
from utils.metrics import per_class_table
from utils.outputs import make_folder, writing
from utils.places import evaluation_folder
from utils.run import Run, set_up
from utils.run_folder import note_bad_images
from utils.trained import TrainedModel, read_trained
from utils.trained_on import take_data_flags


def read_checkpoint(args: argparse.Namespace) -> TrainedModel:
    """The network that --evaluate is about; the flags that say on which data, where they were not
    given, become those of its training.

    Raises:
        UserError: it is no DAN, or one of another recipe.
    """
    trained = read_trained(args.checkpoint, dataset=args.dataset)
    take_data_flags(args, trained)
    return trained


def evaluate_trained(
    args: argparse.Namespace,
    trained: TrainedModel,
    data: FaceData,
    world: World,
    network: type[nn.Module],
    fused: type[nn.Module],
) -> Evaluation:
    """Print accuracies and a per-class table; write metrics.json, predictions.csv, pictures.

    Args:
        network, fused: DAN, and its form for inference.

    Raises:
        UserError: the checkpoint is of other classes, heads or data.
    """
    _check_fit(trained, data, args)
    run = set_up(args, data, world, output_dir=evaluation_folder(trained.path))
    loader = FaceLoader(
        data.val,
        batch_size=args.batch_size,
        image_size=trained.image_size,
        device=run.device,
        workers=args.workers,
        world=world,
        skip_bad=args.skip_bad_images,
    )
    model = network(num_class=data.num_class, num_head=trained.num_head)
    trained.load_into(model)
    model = fused(model.to(run.device), dtype=run.autocast)
    with explained(run):
        evaluation = evaluate(model, loader, trained.image_size)
    trained.check_answers(evaluation.probabilities)
    metrics = evaluation.metrics
    run.say(per_class_table(metrics, data.class_names))
    run.say(
        f"\naccuracy {100 * metrics.accuracy:.2f} %, balanced accuracy "
        f"{100 * metrics.balanced_accuracy:.2f} %, {len(evaluation.labels)} images of {run.title}"
    )
    if world.is_main:
        make_folder(run.output_dir)
        with writing(run.output_dir):  # what an earlier evaluation may have left, and this may not
            for name in ("bad_images.csv", *([] if args.tsne else ["tsne.png"])):
                (run.output_dir / name).unlink(missing_ok=True)
    note_bad_images(run, loader)
    if world.is_main:
        _write(run, trained, data, evaluation, with_tsne=args.tsne)
    world.leave()
    return evaluation


def _check_fit(trained: TrainedModel, data: FaceData, args: argparse.Namespace) -> None:
    """The checkpoint must know the very classes of the data, in their order."""
    if trained.class_names != data.class_names:
        raise UserError(
            f"{trained.path}: trained on {trained.dataset} with {trained.num_class} classes "
            f"({', '.join(trained.class_names)}), but the images are {data.name} with "
            f"{data.num_class} ({', '.join(data.class_names)})"
        )
    for flag, own in (("num_head", trained.num_head), ("image_size", trained.image_size)):
        asked = getattr(args, flag)
        if asked not in (None, own):
            raise UserError(
                f"{trained.path}: has {flag} {own}, but --{flag} {asked} was given; leave it out"
            )


def _write(
    run: Run, trained: TrainedModel, data: FaceData, evaluation: Evaluation, *, with_tsne: bool
) -> None:
    folder, metrics, names = run.output_dir, evaluation.metrics, data.class_names
    summary = {
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
        "dataset": run.title,
        **{name: getattr(run.args, name) for name in sorted(run.args.own)},
        "precision": run.precision,
        "images": len(evaluation.labels),
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "per_class": {
            name: {"images": int(n), "recall": _or_none(recall), "precision": _or_none(precision)}
            for name, n, recall, precision in zip(
                names, metrics.support, metrics.recall, metrics.precision, strict=True
            )
        },
        "confusion": metrics.confusion.tolist(),
    }
    with writing(folder / "metrics.json"):
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    table = pd.DataFrame(evaluation.probabilities.numpy(), columns=list(names))
    table.insert(0, "path", [str(data.val.path(i)) for i in evaluation.indices])
    table.insert(1, "label", [names[i] for i in evaluation.labels])
    table.insert(2, "prediction", [names[i] for i in evaluation.predictions])
    with writing(folder / "predictions.csv"):
        table.to_csv(
            folder / "predictions.csv",
            index=False,
            float_format="%.6f",
            errors="surrogateescape",  # paths that are no text stay the bytes that they are
        )
    title = f"{run.title}: {100 * metrics.accuracy:.2f} %"
    plots.plot_confusion(metrics.confusion, names, folder / "confusion_matrix.png", title=title)
    files = "metrics.json predictions.csv confusion_matrix.png"
    if with_tsne:
        plots.plot_tsne(
            _tsne(evaluation.features),
            evaluation.labels.numpy(),
            names,
            folder / "tsne.png",
            title=f"{run.title}: t-SNE of the pooled features",
        )
        files += " tsne.png"
    print(f"files in {folder}/: {files}")


def _tsne(features: torch.Tensor):
    """(N, 512) -> (N, 2); van der Maaten and Hinton, 2008."""
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features.numpy())


def _or_none(fraction: float) -> float | None:
    """JSON has no NaN."""
    return None if fraction != fraction else float(fraction)
