"""What a training run prints and leaves in its folder beside the checkpoints."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils import plots
from utils.checkpoint import write_atomically
from utils.run import Run

History = Sequence[dict[str, float]]  # one row an epoch, the columns of metrics.csv


def best_row(history: History) -> dict[str, float]:
    """The first epoch of the highest validation accuracy."""
    return max(history, key=lambda row: row["val_accuracy"])


def write_metrics(folder: Path, history: History) -> None:
    """metrics.csv, whole and atomically: it never disagrees with the checkpoint beside it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=history[0].keys())
    writer.writeheader()
    for row in history:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    content = text.getvalue().encode()
    write_atomically(folder / "metrics.csv", lambda file: file.write(content))


def draw_pictures(run: Run, history: History, confusion: np.ndarray) -> None:
    """curves.png, and confusion_matrix.png of the best epoch."""
    best = best_row(history)
    plots.plot_curves(history, run.output_dir / "curves.png", title=f"DAN on {run.title}")
    plots.plot_confusion(
        confusion,
        run.class_names,
        run.output_dir / "confusion_matrix.png",
        title=f"{run.title}, epoch {best['epoch']}: {100 * best['val_accuracy']:.2f} %",
    )


def format_row(row: dict[str, float], epochs: int, *, is_best: bool) -> str:
    """An epoch in one line, aligned under the last one's."""
    width = len(str(epochs))
    return (
        f"epoch {row['epoch']:{width}d}/{epochs}  lr {row['lr']:<8.3g}loss {row['loss']:.3f} "
        f"(ce {row['cross_entropy']:.3f}, affinity {row['affinity']:.3f}, "
        f"partition {row['partition']:.3f})  train {100 * row['train_accuracy']:5.2f} %  "
        f"val {100 * row['val_accuracy']:5.2f} %  "
        f"balanced {100 * row['val_balanced_accuracy']:5.2f} %  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:.0f} img/s" + ("  *" if is_best else "")
    )


def print_end(run: Run, history: History) -> None:
    """The accuracy, where the files are, and what to try next."""
    best, last = best_row(history), history[-1]
    weights = run.output_dir / "best.pth"
    print(
        f"\n{run.title}: best accuracy {_percents(best)} at epoch {best['epoch']}, "
        f"last {_percents(last)}\n"
        f"files in {run.output_dir}/: best.pth last.pth metrics.csv curves.png "
        "confusion_matrix.png config.json\n"
        f"try next: python run_grad_cam.py --checkpoint {weights}\n"
        f"          python demo.py --checkpoint {weights} --image PHOTO"
    )


def _percents(row: dict[str, float]) -> str:
    accuracy, balanced = 100 * row["val_accuracy"], 100 * row["val_balanced_accuracy"]
    return f"{accuracy:.2f} % (balanced {balanced:.2f} %)"
