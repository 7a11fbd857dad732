"""Evaluate a checkpoint on a data set's held-out images, and write the results down."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from utils.checkpoint import TrainedDAN
from utils.data.datasets import FaceData
from utils.data.loader import FaceLoader
from utils.distributed import World
from utils.errors import UserError, writing
from utils.labels import canonical
from utils.training import plots
from utils.training.engine import evaluate
from utils.training.metrics import SCORES


def evaluate_checkpoint(
    args: argparse.Namespace, trained: TrainedDAN, data: FaceData, world: World
) -> None:
    """Print accuracies and a table by class; write metrics.json, predictions.csv and figures.

    Raises:
        UserError: the data have a class that the checkpoint does not know.
    """
    # ---- predictions ----
    class_mapping = match_classes(trained, data)
    split = data.held_out
    loader = FaceLoader(
        split,
        batch_size=args.batch_size,
        image_size=trained.image_size,
        workers=args.workers,
        world=world,
    )
    model = trained.inference_network(world.device, world.autocast)
    result = evaluate(model, loader, trained.image_size)
    world.shutdown()
    trained.check_predictions(result.probabilities)
    if trained.class_names != data.class_names:
        pairs = ", ".join(f"{ours} = {theirs}" for ours, theirs in class_mapping.items())
        world.print_once(
            f"{trained.path}: trained on {trained.dataset}; of its {trained.num_class} classes "
            f"those of {data.name} are used: {pairs}"
        )
        columns = [trained.class_names.index(name) for name in class_mapping.values()]
        probabilities = result.probabilities[:, columns]
        result = replace(result, probabilities=probabilities / probabilities.sum(1, keepdim=True))
    if not world.is_main:
        return

    # ---- scores ----
    names, labels, metrics = list(data.class_names), result.labels.numpy(), result.metrics
    per_class = metrics.per_class.set_axis(names)
    percent = per_class * [1, 100, 100, 100]  # but for the number of images
    print(percent.to_string(float_format="{:.2f}".format, na_rep="-"))
    print(
        f"\naccuracy {100 * metrics.accuracy:.2f} %, balanced accuracy "
        f"{100 * metrics.balanced_accuracy:.2f} %, macro-F1 {100 * metrics.macro_f1:.2f} %, "
        f"{len(labels)} images of {data.title}"
    )

    # ---- files ----
    root = data.root or split.root
    without_nan = per_class.astype(object).where(per_class.notna(), None)  # which JSON lacks
    summary = {
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
        "dataset": data.title,
        "data": str(root),
        "precision": world.precision,
        "images": len(labels),
        **{score: getattr(metrics, score) for score in SCORES},
        "class_mapping": class_mapping,
        "per_class": without_nan.to_dict("index"),
        "confusion": metrics.confusion.tolist(),
    }
    table = pd.DataFrame(result.probabilities.numpy(), columns=names)
    table.insert(0, "path", [str(split.path(i)) for i in range(len(labels))])
    table.insert(1, "label", [names[i] for i in labels])
    table.insert(2, "prediction", [names[i] for i in result.predictions])
    folder = Path(args.output_dir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
        # File names may hold bytes that are not valid text.
        options = {"float_format": "%.6f", "errors": "surrogateescape"}
        table.to_csv(folder / "predictions.csv", index=False, **options)
        for path in folder.glob("tsne.*"):  # of an earlier evaluation
            path.unlink()
    files = ["metrics.json", "predictions.csv", f"confusion_matrix.{args.figures}"]
    where = f"{data.title} ({root.name})"
    title = f"{trained.path.name} on {where}: {100 * metrics.accuracy:.2f} %"
    plots.plot_confusion(metrics.confusion, names, folder / files[-1], title=title)
    if args.tsne:
        files.append(f"tsne.{args.figures}")
        title = f"{where}: t-SNE of the pooled features"
        features = result.features.numpy()
        plots.plot_tsne(features, labels, names, folder / files[-1], title=title)
    print(f"files in {folder}/: {' '.join(files)}")


def match_classes(trained: TrainedDAN, data: FaceData) -> dict[str, str]:
    """Find the network's class for each class of the data, by name or synonym.

    Raises:
        UserError: there is none for a class.
    """
    if trained.class_names == data.class_names:
        return {name: name for name in data.class_names}
    known = {canonical(name): name for name in trained.class_names}
    missing = [name for name in data.class_names if canonical(name) not in known]
    if missing:
        raise UserError(
            f"{trained.path}: trained on {trained.dataset} with the classes "
            f"{', '.join(trained.class_names)}, but {data.name} also has {', '.join(missing)}; "
            "leave that out (AffectNet's contempt with --num_class 7)"
        )
    return {name: known[canonical(name)] for name in data.class_names}
