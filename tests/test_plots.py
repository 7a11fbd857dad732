from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.legibility import check_texts, contrast, smallest_difference
from utils.annotate import COLORS
from utils.labels import AFFECTNET, RAFDB
from utils.plots import PALETTE, plot_confusion, plot_curves, plot_tsne


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are saved too."""
    figures, save = [], Figure.savefig

    def note(figure, *arguments, **flags):
        save(figure, *arguments, **flags)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def history(epochs, last=1.0):
    keys = ("loss", "cross_entropy", "affinity", "partition")
    accuracies = ("train_accuracy", "val_accuracy", "val_balanced_accuracy")
    return [
        {"epoch": i, **dict.fromkeys(keys, 2 / i), **dict.fromkeys(accuracies, last * i / epochs)}
        for i in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 11, 40])
def test_curves_are_legible_and_count_epochs_in_whole_numbers(tmp_path, drawn, epochs):
    """A run of one epoch had ticks from 0.945 to 1.050."""
    path = tmp_path / "curves.png"
    plot_curves(history(epochs), path, title="DAN on toy AffectNet")
    assert path.stat().st_size > 1000
    (figure,) = drawn
    check_texts(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick in range(1, epochs + 1) for tick in ticks)


def test_curves_hide_nothing(tmp_path, drawn):
    """Losses near 0 lay on the axis, and one of two equal accuracies under the other."""
    rows = [{**row, "partition": 0.0} for row in history(11)]
    plot_curves(rows, tmp_path / "curves.png", title="DAN")
    losses, accuracies = drawn[0].axes
    assert losses.get_ylim()[0] < -0.02 * losses.get_ylim()[1]
    _, validation, balanced, best = accuracies.lines
    assert validation.get_linewidth() > balanced.get_linewidth() + 1
    assert validation.zorder <= balanced.zorder
    assert not best.get_clip_on()
    for axes in (losses, accuracies):
        kinds = Counter((line.get_marker(), line.get_linestyle()) for line in axes.lines)
        assert max(kinds.values()) == 1


@pytest.mark.parametrize("names", [RAFDB, AFFECTNET])
def test_confusion_matrices_are_legible(tmp_path, drawn, names):
    count = len(names)
    for confusion in (40 * np.eye(count, dtype=int), np.full((count, count), 10000)):
        plot_confusion(confusion, names, tmp_path / "confusion.png", title="AffectNet: 61.20 %")
        check_texts(drawn[-1])
        fields = drawn[-1].axes[0].get_window_extent()
        assert fields.width == pytest.approx(fields.height, rel=0.15)


def test_every_number_of_a_confusion_matrix_stands_out(tmp_path, drawn):
    """They were white on middle blues. WCAG asks for 4.5, which both inks just miss at 71 %."""
    pairs = np.arange(1, 51)
    for part in pairs.reshape(5, 10):
        confusion = np.zeros((10, 10), dtype=int)
        confusion[range(10), range(10)] = part
        confusion[range(10), range(-1, 9)] += 100 - part
        plot_confusion(confusion, list("abcdefghij"), tmp_path / "confusion.png", title="all")
        (image,) = drawn[-1].axes[0].images
        percent = image.get_array()
        assert set(percent.ravel()) == {0, *part, *(100 - part)}
        for text in drawn[-1].axes[0].texts:
            column, row = text.get_position()
            ground = image.cmap(image.norm(percent[row, column]))[:3]
            assert contrast(text.get_color(), ground) > 4.4, percent[row, column]


def test_a_tsne_tells_the_classes_apart(tmp_path, drawn):
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 8
    plot_tsne(rng.normal(size=(80, 2)), labels, AFFECTNET, tmp_path / "tsne.png", title="t-SNE")
    check_texts(drawn[0])
    clouds = drawn[0].axes[0].collections
    assert len({cloud.get_paths()[0].vertices.tobytes() for cloud in clouds}) == 8
    assert sum(len(cloud.get_offsets()) for cloud in clouds) == 80


@pytest.mark.parametrize("palette", [PALETTE, COLORS])
def test_colour_blind_readers_tell_the_colours_apart(palette):
    """By six times what is just noticeable, which most reds and greens do not reach."""
    assert smallest_difference(palette) > 14
    assert smallest_difference(("#B03A2E", "#6B6B00")) < 14
