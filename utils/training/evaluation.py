"""Evaluate a checkpoint on a data set's held-out images, and write the results down."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from sklearn.manifold import TSNE

from utils.checkpoint import TrainedDAN
from utils.data.datasets import FaceData
from utils.data.loader import FaceLoader
from utils.distributed import World
from utils.errors import UserError, writing
from utils.labels import canonical
from utils.training import plots
from utils.training.engine import Evaluation, evaluate
from utils.training.metrics import SCORES, per_class_table


def evaluate_checkpoint(
    args: argparse.Namespace, trained: TrainedDAN, data: FaceData, world: World
) -> Evaluation:
    """Print accuracies and a table by class; write metrics.json, predictions.csv and figures.

    Raises:
        UserError: the data have a class that the checkpoint does not know.
    """
    columns = match_classes(trained, data)
    loader = FaceLoader(
        data.held_out,
        batch_size=args.batch_size,
        image_size=trained.image_size,
        workers=args.workers,
        world=world,
    )
    model = trained.inference_network(world.device, world.autocast)
    result = evaluate(model, loader, trained.image_size)
    trained.check_predictions(result.probabilities)
    names = [trained.class_names[column] for column in columns]
    if trained.class_names != data.class_names:
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(data.class_names, names, strict=True))
        left_out = ", ".join(name for name in trained.class_names if name not in names)
        world.print_once(
            f"{trained.path}: trained on {trained.dataset}; its classes are matched by name: "
            f"{pairs}{f'; left out: {left_out}' if left_out else ''}"
        )
        probabilities = result.probabilities[:, columns]
        probabilities /= probabilities.sum(dim=1, keepdim=True)
        result = replace(result, probabilities=probabilities)
    if world.is_main:
        _report(args, trained, data, world, result, names)
    world.shutdown()
    return result


def match_classes(trained: TrainedDAN, data: FaceData) -> list[int]:
    """Which output of the network belongs to each class of the data, by name or synonym.

    Raises:
        UserError: there is none for a class.
    """
    if trained.class_names == data.class_names:
        return list(range(data.num_class))
    known = [canonical(name) for name in trained.class_names]
    missing = [name for name in data.class_names if canonical(name) not in known]
    if missing:
        raise UserError(
            f"{trained.path}: trained on {trained.dataset} with the classes "
            f"{', '.join(trained.class_names)}, but {data.name} also has {', '.join(missing)}"
        )
    return [known.index(canonical(name)) for name in data.class_names]


def _report(
    args: argparse.Namespace,
    trained: TrainedDAN,
    data: FaceData,
    world: World,
    result: Evaluation,
    outputs: list[str],
) -> None:
    """outputs: the network's class for each class of the data."""
    folder, names, split = Path(args.output_dir), data.class_names, data.held_out
    metrics, labels = result.metrics, result.labels.numpy()
    print(per_class_table(metrics, names))
    print(
        f"\naccuracy {100 * metrics.accuracy:.2f} %, balanced accuracy "
        f"{100 * metrics.balanced_accuracy:.2f} %, macro-F1 {100 * metrics.macro_f1:.2f} %, "
        f"{len(labels)} images of {data.title}"
    )
    columns = {"images": metrics.support, "recall": metrics.recall}
    columns |= {"precision": metrics.precision, "f1": metrics.f1}
    per_class = pd.DataFrame(columns, index=list(names), dtype=object)
    per_class = per_class.where(per_class.notna(), None)  # JSON has no NaN
    summary = {
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
        "dataset": data.title,
        "data": str(data.root or split.root),
        "data_flags": {n: v for n, v in vars(args).items() if n in trained.config},
        "precision": world.precision,
        "images": len(labels),
        **{score: getattr(metrics, score) for score in SCORES},
        "class_mapping": dict(zip(names, outputs, strict=True)),
        "per_class": per_class.to_dict("index"),
        "confusion": metrics.confusion.tolist(),
    }
    table = pd.DataFrame(result.probabilities.numpy(), columns=list(names))
    table.insert(0, "path", [str(split.path(i)) for i in range(len(labels))])
    table.insert(1, "label", [names[i] for i in labels])
    table.insert(2, "prediction", [names[i] for i in result.predictions])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        # File names may hold bytes that are not valid text.
        options = {"float_format": "%.6f", "errors": "surrogateescape"}
        table.to_csv(folder / "predictions.csv", index=False, **options)
        for path in folder.glob("tsne.*"):  # of an earlier evaluation
            path.unlink()
    where = f"{data.title} ({(data.root or split.root).name})"
    title = f"{trained.path.name} on {where}: {100 * metrics.accuracy:.2f} %"
    confusion, tsne = (folder / f"{name}.{args.figures}" for name in ("confusion_matrix", "tsne"))
    plots.plot_confusion(metrics.confusion, names, confusion, title=title)
    files = f"metrics.json predictions.csv {confusion.name}"
    if args.tsne:
        perplexity = min(30, (len(labels) - 1) / 3)
        method = TSNE(perplexity=perplexity, init="pca", random_state=0)  # van der Maaten, 2008
        points = method.fit_transform(result.features.numpy())
        title = f"{where}: t-SNE of the pooled features"
        plots.plot_tsne(points, labels, names, tsne, title=title)
        files += f" {tsne.name}"
    print(f"files in {folder}/: {files}")
