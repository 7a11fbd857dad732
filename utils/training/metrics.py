"""How well predictions match labels."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


class Metrics(NamedTuple):
    """Fractions in [0, 1]. A class without images has no recall and no F1 (NaN), one that was never
    predicted has no precision; means are over the classes that have images."""

    accuracy: float
    balanced_accuracy: float  # mean recall
    macro_f1: float
    recall: np.ndarray  # (C,), as the next three
    precision: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # images
    confusion: np.ndarray  # (C, C) counts, rows are labels, columns predictions


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, *, num_class: int
) -> Metrics:
    """labels, predictions: (N,) integers in [0, num_class), N >= 1."""
    classes = np.arange(num_class)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=np.nan
    )
    f1 = np.where(support > 0, f1, np.nan)
    means = (float(np.nanmean(values)) for values in (labels == predictions, recall, f1))
    confusion = confusion_matrix(labels, predictions, labels=classes)
    return Metrics(*means, recall, precision, f1, support, confusion)


def per_class_table(metrics: Metrics, class_names: tuple[str, ...]) -> str:
    """Images, recall, precision and F1 of each class as aligned text."""
    width = max(len(name) for name in class_names)
    lines = [f"{'class':<{width}}  images  recall  precision      F1"]
    columns = (metrics.support, metrics.recall, metrics.precision, metrics.f1)
    for name, support, *shares in zip(class_names, *columns, strict=True):
        recall, precision, f1 = ("-" if np.isnan(x) else f"{100 * x:.2f}" for x in shares)
        lines.append(f"{name:<{width}}  {support:6d}  {recall:>6}  {precision:>9}  {f1:>6}")
    return "\n".join(lines)
