"""What a training run prints and leaves in its folder."""

import csv
import io
import json
import platform
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torchvision

from utils import checkpoint, plots, resume
from utils.data import FaceLoader
from utils.device import device_name
from utils.errors import Interrupted
from utils.face_data import Split
from utils.images import is_readable
from utils.metrics import Metrics
from utils.outputs import make_folder
from utils.run import Run
from utils.training import Training

History = Sequence[dict[str, float]]  # one row an epoch, the columns of metrics.csv


def best_row(history: History) -> dict[str, float]:
    """The first epoch of the highest validation accuracy."""
    return max(history, key=lambda row: row["val_accuracy"])


def prepare(training: Training) -> None:
    """Make the folder and its config.json; clear away what was there, or bring it to where the
    checkpoint of a resumed run stands.

    Raises:
        UserError: the folder cannot be written.
    """
    run = training.run
    content = None if run.resumed is None else training.checkpoint()
    run.world.barrier()  # no process should take what the first one writes now for an older run
    if not run.world.is_main:
        return
    make_folder(run.output_dir)
    if run.lock is not None:
        resume.hold(run.lock, run.output_dir)
    if run.resumed is None:
        resume.clear(run.output_dir)
    else:
        _take_over(training, content)
    config = {
        "dataset": run.dataset,
        "class_names": run.class_names,
        **run.config,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "processes": run.world.size,
        "device_name": device_name(run.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    text = json.dumps(config, indent=2) + "\n"
    checkpoint.write_atomically(
        run.output_dir / "config.json", lambda file: file.write(text.encode())
    )


def _take_over(training: Training, content: dict[str, Any]) -> None:
    """Bring a folder to where the run that goes on in it stands."""
    run, history = training.run, training.history
    resume.clear_temporary(run.output_dir)
    last, best = run.output_dir / "last.pth", run.output_dir / "best.pth"
    elsewhere = run.resumed_from.parent / "best.pth"
    if not last.exists() or not last.samefile(run.resumed_from):
        checkpoint.save(last, content)
        if elsewhere.exists() and not (best.exists() and best.samefile(elsewhere)):
            checkpoint.link(elsewhere, best)
    if history:
        if best_row(history) is history[-1] and not training.progress.steps:
            checkpoint.link(last, best)  # a run may be killed between the two
        _write_metrics(run.output_dir, history)


def end_epoch(training: Training, row: dict[str, float], val_loss: float, metrics: Metrics) -> None:
    """Complete the epoch's row, log it, save last.pth and best.pth."""
    run, history = training.run, training.history
    row["val_loss"] = val_loss
    row["val_accuracy"] = metrics.accuracy
    row["val_balanced_accuracy"] = metrics.balanced_accuracy
    history.append(row)
    is_best = best_row(history) is row
    if is_best:
        training.best_confusion = metrics.confusion
    training.progress = training.fresh_progress()
    content = training.checkpoint()
    if run.world.is_main:
        last = run.output_dir / "last.pth"
        checkpoint.save(last, content)
        if is_best:
            checkpoint.link(last, run.output_dir / "best.pth")
        _write_metrics(run.output_dir, history)
    run.say(format_row(row, run.args.epochs, is_best=is_best))


def save_interrupted(training: Training, steps: int, number: int) -> NoReturn:
    """Save a run that a signal interrupts in an epoch of so many steps, and say how it goes on.

    Raises:
        Interrupted: always.
    """
    run, done = training.run, training.progress.steps
    content = training.checkpoint()
    if not run.world.is_main:
        raise Interrupted(number)
    path = run.output_dir / "last.pth"
    checkpoint.save(path, content)
    where = f"step {done} of {steps}" if done < steps else "its evaluation"
    raise Interrupted(
        number,
        f"interrupted by {signal.Signals(number).name} in epoch {len(training.history) + 1}, "
        f"{where}; saved in {path}; go on with\n{resume_command(run)}",
    )


def resume_command(run: Run) -> str:
    """What was called, but to go on."""
    words, before = [], ""
    for word in run.args.command:
        is_file = before == "--resume" and not word.startswith("--")
        if not (is_file or word.startswith("--resume") or word == "--overwrite"):
            words.append(word)
        before = word
    python = "python"
    if run.world.size > 1:
        python = f"torchrun --nproc_per_node={run.world.local_size}"
        if run.world.size > run.world.local_size:
            python += " ..."  # where the machines meet
    last = str(run.output_dir / "last.pth")
    return f"{python} {shlex.join([*words, '--resume', last])}"


def note_bad_images(run: Run, *loaders: FaceLoader) -> None:
    """List the images that were left out in bad_images.csv; nothing where there are none."""
    paths = {}
    for loader in loaders:
        for bad in run.world.gather(loader.bad):
            for index, reason in bad.items():
                path = str(loader.split.path(index))
                paths[path] = reason.removeprefix(f"{path}: ")
    if not paths or not run.world.is_main:
        return
    target = run.output_dir / "bad_images.csv"
    rows = [["path", "problem"], *sorted(map(list, paths.items()))]
    content = _as_csv(rows)
    if not target.exists() or target.read_bytes() != content:
        checkpoint.write_atomically(target, lambda file: file.write(content))
        run.say(f"images that cannot be read are left out: {len(paths)}, listed in {target}")


def finish(training: Training, split: Split) -> None:
    """curves.png, confusion_matrix.png of the best epoch; the accuracy, and what to try next.

    Args:
        split: held-out images, the first readable one of which the demo may be tried on.
    """
    run, history = training.run, training.history
    if not run.world.is_main:
        return
    best, last = best_row(history), history[-1]
    plots.plot_curves(history, run.output_dir / "curves.png", title=f"DAN on {run.title}")
    plots.plot_confusion(
        training.best_confusion,
        run.class_names,
        run.output_dir / "confusion_matrix.png",
        title=f"{run.title}, epoch {best['epoch']}: {100 * best['val_accuracy']:.2f} %",
    )
    weights = shlex.quote(str(run.output_dir / "best.pth"))
    faces = (split.path(index) for index in range(len(split)))
    face = shlex.quote(str(next(filter(is_readable, faces))))
    bad = " bad_images.csv" if (run.output_dir / "bad_images.csv").exists() else ""
    run.say(
        f"\n{run.title}: best accuracy {_percents(best)} at epoch {best['epoch']}, "
        f"last {_percents(last)}\n"
        f"files in {run.output_dir}/: best.pth last.pth metrics.csv curves.png "
        f"confusion_matrix.png config.json{bad}\n"
        f"try next: python run_grad_cam.py --checkpoint {weights}\n"
        f"          python demo.py --checkpoint {weights} --whole_image --image {face}"
    )


def format_row(row: dict[str, float], epochs: int, *, is_best: bool) -> str:
    """An epoch in one line, aligned under the last one's."""
    width = len(str(epochs))
    return (
        f"epoch {row['epoch']:{width}d}/{epochs}  lr {row['lr']:<9.3g}loss {row['loss']:.3f} "
        f"(ce {row['cross_entropy']:.3f}, affinity {row['affinity']:.3f}, "
        f"partition {row['partition']:.3f})  train {100 * row['train_accuracy']:5.2f} %  "
        f"val {100 * row['val_accuracy']:5.2f} %  "
        f"balanced {100 * row['val_balanced_accuracy']:5.2f} %  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:.0f} img/s" + ("  *" if is_best else "")
    )


def _write_metrics(folder: Path, history: History) -> None:
    """metrics.csv, whole and atomically; after last.pth, which knows it too."""
    rows = [[f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in history]
    content = _as_csv([list(history[0]), *rows])
    checkpoint.write_atomically(folder / "metrics.csv", lambda file: file.write(content))


def _as_csv(rows: Sequence[Sequence]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _percents(row: dict[str, float]) -> str:
    accuracy, balanced = 100 * row["val_accuracy"], 100 * row["val_balanced_accuracy"]
    return f"{accuracy:.2f} % (balanced {balanced:.2f} %)"
