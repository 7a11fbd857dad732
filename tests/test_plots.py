"""The figures of a run: they are written, and show what they should."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from utils.labels import AFFECTNET
from utils.training.plots import plot_comparison, plot_confusion, plot_curves, plot_tsne


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


def history(epochs):
    keys = ("loss", "cross_entropy", "affinity", "partition")
    accuracies = ("train_accuracy", "val_accuracy", "val_balanced_accuracy")
    return [
        {"epoch": i, **dict.fromkeys(keys, 2 / i), **dict.fromkeys(accuracies, i / epochs)}
        for i in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 11, 40])
def test_curves_count_epochs_in_whole_numbers(tmp_path, drawn, epochs):
    """A run of one epoch had ticks from 0.945 to 1.050."""
    plot_curves(history(epochs), tmp_path / "curves.png", title="DAN on toy AffectNet")
    losses, accuracies = drawn[0].axes
    for axes in (losses, accuracies):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick in range(1, epochs + 1) for tick in ticks)
    np.testing.assert_allclose(losses.lines[0].get_ydata(), 2 / np.arange(1, epochs + 1))
    curves = {line.get_label(): line.get_ydata()[-1] for line in accuracies.lines}
    assert curves["validation"] == 100


def test_a_confusion_matrix_shows_percentages_of_each_row(tmp_path, drawn):
    confusion = np.eye(8, dtype=int) * 3
    confusion[0, 1], confusion[7, 7] = 1, 0
    plot_confusion(confusion, AFFECTNET, tmp_path / "confusion.png", title="AffectNet")
    axes = drawn[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert (texts[0, 0], texts[1, 0], texts[0, 1], texts[7, 7]) == ("75", "25", "0", "0")
    assert axes.get_yticklabels()[0].get_text() == "neutral (4)"


def test_a_tsne_tells_the_classes_apart(tmp_path, drawn):
    labels = np.arange(80) % 8
    features = np.random.default_rng(0).normal(size=(80, 9)) + 99 * np.eye(8, 9)[labels]
    plot_tsne(features, labels, AFFECTNET, tmp_path / "tsne.png", title="t-SNE")
    clouds = drawn[0].axes[0].collections
    assert [cloud.get_label() for cloud in clouds] == list(AFFECTNET)
    assert [len(cloud.get_offsets()) for cloud in clouds] == [10] * 8


def test_a_comparison_has_a_band_of_one_standard_deviation(tmp_path, drawn):
    runs = pd.DataFrame({"a": [0.1, 0.4], "b": [0.3, 0.8]}, index=[1, 2])
    plot_comparison([("heads 4", runs), ("heads 2", runs[["a"]])], tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    curves = {line.get_label(): [*line.get_ydata()] for line in axes.lines}
    assert curves == {"heads 4 (n = 2)": [20, 60], "heads 2 (n = 1)": [10, 40]}
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((20 - 200**0.5, 60 + 800**0.5))
