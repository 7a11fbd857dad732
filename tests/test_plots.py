"""The figures of a run show what they should."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from utils.labels import AFFECTNET
from utils.training.plots import plot_comparison, plot_confusion, plot_curves, plot_tsne

FILE = Path("figure.png")


@pytest.fixture
def saved(monkeypatch):
    """The figures that would be written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


@pytest.mark.parametrize("epochs", [1, 11])
def test_curves_over_whole_epochs(saved, epochs):
    """A run of one epoch had ticks from 0.945 to 1.050."""
    names = ["loss", "cross_entropy", "affinity", "partition"]
    names += ["train_accuracy", "val_accuracy", "val_balanced_accuracy"]
    row = {name: (7 - i) / 10 for i, name in enumerate(names)}
    history = [{"epoch": i, **row, "val_accuracy": 1 / i} for i in range(1, epochs + 1)]
    plot_curves(history, FILE, title="DAN", held_out="test")
    curves = {}
    for axes in saved[0].axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick in range(1, epochs + 1) for tick in ticks)
        curves |= {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    expected = {"total": 0.7, "cross-entropy": 0.6, "affinity": 0.5, "partition": 0.4}
    expected |= {"training": 30, "test": 100, "test, balanced": 10}
    assert curves == pytest.approx(expected | {"best epoch": 0})
    last = 100 / epochs
    assert saved[0].get_suptitle() == f"DAN: best 100.00 % at epoch 1, last {last:.2f} %"


def test_a_confusion_matrix_shows_percentages_of_each_row(saved):
    confusion = np.eye(8, dtype=int) * 2
    confusion[0, 1], confusion[7, 7] = 1, 0
    plot_confusion(confusion, AFFECTNET, FILE, title="AffectNet")
    axes = saved[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert (texts[0, 0], texts[1, 0], texts[0, 1], texts[7, 7]) == ("66.7", "33.3", "0", "0")
    assert axes.get_yticklabels()[0].get_text() == "neutral (3)"


@pytest.mark.parametrize("count", [16, 80])
def test_a_tsne_tells_the_classes_apart(saved, count):
    labels = np.arange(count) % 8
    features = np.random.default_rng(0).normal(size=(count, 9)) + 99 * np.eye(8, 9)[labels]
    plot_tsne(features, labels, AFFECTNET, FILE, title="t-SNE")
    clouds = saved[0].axes[0].collections
    assert [cloud.get_label() for cloud in clouds] == list(AFFECTNET)
    assert [len(cloud.get_offsets()) for cloud in clouds] == [count / 8] * 8


def test_a_comparison_has_a_band_of_one_standard_deviation(saved):
    runs = pd.DataFrame({"a": [0.1, 0.4, 0.6], "b": [0.3, 0.8, np.nan]}, index=[1, 2, 3])
    plot_comparison([("heads 4", runs), ("heads 2", runs[["a"]])], FILE)
    axes = saved[0].axes[0]
    both, single = axes.lines
    assert [both.get_label(), single.get_label()] == ["heads 4 (n = 2)", "heads 2 (n = 1)"]
    # No mean where a run has ended.
    np.testing.assert_allclose(both.get_ydata(), [20, 60, np.nan])
    np.testing.assert_allclose(single.get_ydata(), [10, 40, 60])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((20 - 200**0.5, 60 + 800**0.5))
