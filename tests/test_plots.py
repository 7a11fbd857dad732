"""The figures of a run: they are written, and show what they should."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.errors import UserError
from utils.labels import AFFECTNET
from utils.training.plots import plot_confusion, plot_curves, plot_tsne


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
    assert {line.get_label() for line in losses.lines} == {
        "total", "cross-entropy", "affinity", "partition"
    }  # fmt: skip
    training, validation, *_ = accuracies.lines
    assert validation.get_ydata()[-1] == 100 and training.get_label() == "training"


def test_a_confusion_matrix_shows_percentages_of_each_row(tmp_path, drawn):
    confusion = np.eye(8, dtype=int) * 3
    confusion[0, 1] = 1
    plot_confusion(confusion, AFFECTNET, tmp_path / "confusion.png", title="AffectNet")
    axes = drawn[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[0, 0] == "75.0" and texts[1, 0] == "25.0" and texts[0, 1] == "0"
    assert axes.get_xlabel() == "prediction"
    assert axes.get_yticklabels()[0].get_text() == "neutral (4)"


def test_a_tsne_tells_the_classes_apart(tmp_path, drawn):
    labels = np.arange(80) % 8
    points = np.random.default_rng(0).normal(size=(80, 2))
    plot_tsne(points, labels, AFFECTNET, tmp_path / "tsne.png", title="t-SNE")
    clouds = drawn[0].axes[0].collections
    assert [cloud.get_label() for cloud in clouds] == list(AFFECTNET)
    np.testing.assert_array_equal(clouds[3].get_offsets(), points[labels == 3])


def test_figures_are_written_or_an_error_names_the_file(tmp_path):
    plot_curves(history(2), tmp_path / "curves.png", title="DAN")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(UserError, match="gone/curves.png: cannot be written"):
        plot_curves(history(2), tmp_path / "gone/curves.png", title="DAN")
