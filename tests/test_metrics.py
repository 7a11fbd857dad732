"""Metrics against scikit-learn's own and against counting by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from utils.metrics import classification_metrics, per_class_table


def test_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, 5, 200), np.arange(5)])
    predictions = np.where(rng.random(205) < 0.6, labels, rng.integers(0, 5, 205))
    ours = classification_metrics(labels, predictions, num_class=5)
    assert ours.accuracy == pytest.approx(sk.accuracy_score(labels, predictions))
    assert ours.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predictions))
    np.testing.assert_allclose(ours.recall, sk.recall_score(labels, predictions, average=None))
    precision = sk.precision_score(labels, predictions, average=None)
    np.testing.assert_allclose(ours.precision, precision)
    np.testing.assert_array_equal(ours.support, np.bincount(labels))


def test_class_without_images_counts_for_nothing():
    ours = classification_metrics(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2]), num_class=4)
    assert ours.accuracy == 0.75 and ours.balanced_accuracy == 0.75
    assert np.isnan(ours.recall[[1, 3]]).all() and ours.precision[1] == 0
    assert np.isnan(ours.precision[3])
    table = per_class_table(ours, ("a", "b", "c", "d"))
    assert table.splitlines()[1].split() == ["a", "2", "50.00", "100.00"]
    assert table.splitlines()[4].split() == ["d", "0", "-", "-"]
