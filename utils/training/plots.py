"""The figures of runs: learning curves, confusion matrix, t-SNE, a comparison."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from utils.errors import writing

# Okabe and Ito's palette, which colour-blind readers can tell apart, but for its yellow, which is
# faint on white, the wine of Tol's.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def plot_curves(
    history: Sequence[dict[str, float]], path: Path, *, title: str, held_out: str = "validation"
) -> None:
    """Plot losses and accuracies by epoch.

    Args:
        history: one dict per epoch, as in metrics.csv.
        held_out: what the images are called that the best epoch is chosen on.
    """
    table = pd.DataFrame(history).set_index("epoch")
    losses = table[["loss", "cross_entropy", "affinity", "partition"]]
    losses = losses.set_axis(["total", "cross-entropy", "affinity", "partition"], axis=1)
    accuracies = 100 * table[["train_accuracy", "val_accuracy", "val_balanced_accuracy"]]
    accuracies.columns = ["training", held_out, f"{held_out}, balanced"]
    chosen = accuracies[held_out]
    best = chosen.idxmax()
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    right.axvline(best, color="0.6", linewidth=0.8, label="best epoch")
    right.set_ylim(0, 102)
    # Solid lines below dotted ones: balanced accuracy often coincides with accuracy.
    styles = cycler(color=PALETTE[:4], marker=MARKERS[:4], linestyle=["-", "-", ":", "-."])
    for axes, curves in ((left, losses), (right, accuracies)):
        axes.set_prop_cycle(styles)
        axes.plot(curves, label=curves.columns, markersize=3.5)
        axes.set_xlim(0.5, len(table) + 0.5)
        axes.legend(frameon=False)
    _label_axes(left, "training loss")
    _label_axes(right, "accuracy (%)")
    figure.suptitle(
        f"{title}: best {chosen[best]:.2f} % at epoch {best}, last {chosen.iloc[-1]:.2f} %"
    )
    _save(figure, path)


def plot_confusion(
    confusion: np.ndarray, class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """confusion: (C, C) counts, rows are labels. Each row is shown as percentages of itself."""
    images = confusion.sum(axis=1)
    percent = 100 * confusion / np.maximum(images, 1)[:, None]
    side = max(4.5, 0.65 * len(class_names) + 1.5)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    # The darkest third of the colours is left out: black text is not legible on it.
    shades = {"cmap": "Blues", "vmin": 0, "vmax": 150, "aspect": "auto"}
    display = ConfusionMatrixDisplay(percent.round(1))
    display.plot(
        ax=axes, values_format="g", colorbar=False, im_kw=shades, text_kw={"color": "black"}
    )
    ticks = range(len(class_names))
    rows = [f"{name} ({n})" for name, n in zip(class_names, images, strict=True)]
    axes.set_xticks(ticks, class_names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, rows)
    axes.set(xlabel="prediction (% of the label's images)", ylabel="label (images)")
    axes.set_title(title, fontsize=11)
    _save(figure, path)


def plot_tsne(
    features: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Plot a t-SNE (van der Maaten and Hinton, 2008) of features (N, D); labels: (N,) classes."""
    perplexity = min(30, (len(labels) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    figure = Figure(figsize=(6.6, 5), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(class_names):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        mine = points[labels == index]
        axes.scatter(*mine.T, s=22, color=color, marker=marker, label=name, linewidths=0)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    figure.legend(frameon=False, loc="outside right center")
    _save(figure, path)


def plot_comparison(groups: Sequence[tuple[str, pd.DataFrame]], path: Path) -> None:
    """Plot the mean validation accuracy by epoch, with a band of one standard deviation.

    Args:
        groups: label and accuracies of each group; a row per epoch, a column per run.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=PALETTE))
    for label, accuracies in groups:
        percent = 100 * accuracies
        # No mean and no deviation where a run has none: of the others they would be too good.
        mean, deviation = percent.mean(axis=1, skipna=False), percent.std(axis=1, skipna=False)
        label = textwrap.fill(f"{label} (n = {accuracies.shape[1]})", 80)
        (line,) = axes.plot(mean, marker=".", label=label)
        band = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
        axes.fill_between(mean.index, mean - deviation, mean + deviation, **band)
    _label_axes(axes, "validation accuracy (%)")
    columns = 1 if len(groups) <= 4 else 2
    figure.legend(frameon=False, loc="outside lower center", fontsize=9, ncols=columns)
    _save(figure, path)


def _label_axes(axes: Axes, ylabel: str) -> None:
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with writing(path):
        figure.savefig(path, dpi=150, bbox_inches="tight")  # of a legend, too
