"""The pictures of runs: learning curves, confusion matrix, t-SNE, a comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.errors import writing

# Okabe and Ito's palette, which colour-blind readers can tell apart, but for its yellow, which is
# faint on white, the wine of Tol's.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = "osD^vPX*<>"
LINES = ("-", "--", ":", "-.")


def plot_curves(
    history: Sequence[dict[str, float]], path: Path, *, title: str, held_out: str = "validation"
) -> None:
    """Plot losses and accuracies by epoch.

    Args:
        history: one dict per epoch, as in metrics.csv.
        held_out: what the images are called that the best epoch is chosen on.
    """
    figure = _figure(10, 3.8)
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    markers = {"markersize": 4, "markevery": -(-len(epochs) // 20)}  # few enough to tell apart

    def plot(axes: Axes, label: str, key: str, color: str, style: str, scale=1, lw=1.5) -> None:
        values = [scale * row[key] for row in history]
        axes.plot(epochs, values, style, color=color, label=label, lw=lw, **markers)

    plot(losses, "total", "loss", BLUE, "o-")
    plot(losses, "cross-entropy", "cross_entropy", ORANGE, "s--")
    plot(losses, "affinity", "affinity", GREEN, "^-.")
    plot(losses, "partition", "partition", PINK, "D:")
    _label_axes(losses, "training loss")
    top = losses.get_ylim()[1]
    losses.set_ylim(-0.03 * top, top)  # a loss of 0 stays off the axis

    plot(accuracies, "training", "train_accuracy", BLUE, "o-", 100)
    # The wider line shows on both sides of the next, with which it often coincides.
    plot(accuracies, held_out, "val_accuracy", ORANGE, "s-", 100, lw=3)
    plot(accuracies, f"{held_out}, balanced", "val_balanced_accuracy", "black", "^:", 100)
    best = max(history, key=lambda row: row["val_accuracy"])
    # Behind the lines, so that it covers no marker: the curves of one epoch are markers alone.
    star = {"color": "white", "mec": "black", "ms": 15, "clip_on": False, "zorder": 1.9}
    accuracies.plot(best["epoch"], 100 * best["val_accuracy"], "*", ls="", label="best", **star)
    _label_axes(accuracies, "accuracy (%)")
    accuracies.set_ylim(0, 102)
    for axes in (losses, accuracies):
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.legend(frameon=False)
    figure.suptitle(
        f"{title}: best {100 * best['val_accuracy']:.2f} % at epoch {best['epoch']}, "
        f"last {100 * history[-1]['val_accuracy']:.2f} %"
    )
    _save(figure, path)


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """confusion: (C, C) counts, rows are labels. Each row is shown as percentages of itself."""
    count = len(class_names)
    side = max(4.2, 0.62 * count + 1.6)
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    total = confusion.sum(axis=1, keepdims=True)
    percent = 100 * confusion / np.maximum(total, 1)
    # Fields as square as the figure makes them: forced to be square they push labels out of it.
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    style = {"ha": "center", "va": "center", "fontsize": 9 if count <= 12 else 6}
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if value > 71 else "black" if value else "0.45"
        axes.text(column, row, f"{value:.1f}" if value else "0", color=color, **style)
    axes.set_xticks(range(count), class_names, rotation=40, ha="right", rotation_mode="anchor")
    rows = zip(class_names, total[:, 0], strict=True)
    axes.set_yticks(range(count), [f"{name} ({n})" for name, n in rows])
    axes.set_xlabel("prediction")
    axes.set_ylabel("label (images)")
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label="% of the label's images", shrink=0.8)
    _save(figure, path)


def plot_tsne(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """points: (N, 2), labels: (N,) class indices."""
    figure = _figure(6.6, 5)
    axes = figure.subplots()
    for index, name in enumerate(class_names):
        mine = points[labels == index]
        # Colour and marker both tell the classes apart, for more than a palette can.
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        axes.scatter(*mine.T, s=22, color=color, marker=marker, label=name, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.8")
    axes.set_title(title, fontsize=11)
    figure.legend(frameon=False, loc="outside right center", markerscale=1.4)
    _save(figure, path)


def plot_comparison(groups: Sequence[tuple[str, Sequence[Sequence[float]]]], path: Path) -> None:
    """Plot the mean validation accuracy by epoch, with a band of one standard deviation.

    Args:
        groups: label and runs of each; a run is its accuracies by epoch, as fractions.
    """
    figure = _figure(7.5, 4.5)
    axes = figure.subplots()
    for index, (label, runs) in enumerate(groups):
        curves = 100 * np.array(runs)
        epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        color, style = PALETTE[index % len(PALETTE)], LINES[index // len(PALETTE) % len(LINES)]
        dots = {"marker": ".", "markevery": -(-len(epochs) // 20)}
        label = f"{label} (n = {len(curves)})"
        axes.plot(epochs, mean, style, color=color, label=label, **dots)
        if len(curves) > 1:
            deviation = curves.std(axis=0, ddof=1)
            band = {"color": color, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(epochs, mean - deviation, mean + deviation, **band)
    _label_axes(axes, "validation accuracy (%)")
    columns = 1 + (len(groups) > 4)
    figure.legend(frameon=False, loc="outside lower center", fontsize=9, ncols=columns)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot's global state, which needs no display."""
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with writing(path):
        figure.savefig(path, dpi=150)


def _label_axes(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
