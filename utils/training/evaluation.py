"""Evaluate a checkpoint on a data set's held-out images, and write the results down."""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from utils.checkpoint import TrainedDAN
from utils.data.datasets import FaceData
from utils.data.loader import FaceLoader
from utils.distributed import World
from utils.errors import UserError, writing
from utils.training import plots
from utils.training.engine import Evaluation, evaluate
from utils.training.metrics import classification_metrics, per_class_table


def evaluate_checkpoint(
    args: argparse.Namespace, trained: TrainedDAN, data: FaceData, world: World
) -> Evaluation:
    """Print accuracies and a table by class; write metrics.json, predictions.csv and figures.

    Raises:
        UserError: the checkpoint is for other classes than the data.
    """
    if trained.class_names != data.class_names:
        raise UserError(
            f"{trained.path}: trained on {trained.dataset} with {trained.num_class} classes "
            f"({', '.join(trained.class_names)}), but the images are {data.name} with "
            f"{data.num_class} ({', '.join(data.class_names)})"
        )
    loader = FaceLoader(
        data.val,
        batch_size=args.batch_size,
        image_size=trained.image_size,
        workers=args.workers,
        world=world,
    )
    model = trained.inference_network(world.device, world.autocast)
    result = evaluate(model, loader, trained.image_size)
    trained.check_predictions(result.probabilities)
    if world.is_main:
        _report(args, trained, data, world, result)
    world.shutdown()
    return result


def _report(
    args: argparse.Namespace, trained: TrainedDAN, data: FaceData, world: World, result: Evaluation
) -> None:
    folder, names = Path(args.output_dir), data.class_names
    labels, predictions = result.labels.numpy(), result.predictions.numpy()
    metrics = classification_metrics(labels, predictions, num_class=data.num_class)
    print(per_class_table(metrics, names))
    print(
        f"\naccuracy {100 * metrics.accuracy:.2f} %, balanced accuracy "
        f"{100 * metrics.balanced_accuracy:.2f} %, {len(labels)} images of {data.title}"
    )
    per_class = zip(names, metrics.support, metrics.recall, metrics.precision, strict=True)
    summary = {
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
        "dataset": data.title,
        "data": str(data.root or data.val.root),
        "data_flags": {n: v for n, v in vars(args).items() if n in trained.config},
        "precision": world.precision,
        "images": len(labels),
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "per_class": {
            name: {"images": int(n), "recall": _or_none(recall), "precision": _or_none(precision)}
            for name, n, recall, precision in per_class
        },
        "confusion": metrics.confusion.tolist(),
    }
    table = pd.DataFrame(result.probabilities.numpy(), columns=list(names))
    table.insert(0, "path", [str(data.val.path(i)) for i in range(len(labels))])
    table.insert(1, "label", [names[i] for i in labels])
    table.insert(2, "prediction", [names[i] for i in predictions])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        table.to_csv(
            folder / "predictions.csv",
            index=False,
            float_format="%.6f",
            errors="surrogateescape",  # file names may hold bytes that are not valid text
        )
        (folder / "tsne.png").unlink(missing_ok=True)  # of an earlier evaluation
    where = f"{data.title} ({(data.root or data.val.root).name})"
    title = f"{trained.path.name} on {where}: {100 * metrics.accuracy:.2f} %"
    plots.plot_confusion(metrics.confusion, names, folder / "confusion_matrix.png", title=title)
    files = "metrics.json predictions.csv confusion_matrix.png"
    if args.tsne:
        perplexity = min(30, (len(labels) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)  # van der Maaten, 2008
        points = tsne.fit_transform(result.features.numpy())
        title = f"{where}: t-SNE of the pooled features"
        plots.plot_tsne(points, labels, names, folder / "tsne.png", title=title)
        files += " tsne.png"
    print(f"files in {folder}/: {files}")


def _or_none(fraction: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(fraction) else float(fraction)
