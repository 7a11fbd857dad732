"""How well predictions match labels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class Metrics:
    """Fractions in [0, 1] from a confusion matrix. A class without images has no recall (NaN), one
    that was never predicted has no precision.

    Args:
        confusion: (C, C) counts, rows are labels, columns predictions.
    """

    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        return float(np.nanmean(self.recall))

    @property
    def support(self) -> np.ndarray:
        """(C,) images of each class."""
        return self.confusion.sum(axis=1)

    @cached_property
    def recall(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.confusion.diagonal() / self.support

    @cached_property
    def precision(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.confusion.diagonal() / self.confusion.sum(axis=0)


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, *, num_class: int
) -> Metrics:
    """labels, predictions: (N,) integers in [0, num_class), N >= 1."""
    return Metrics(confusion_matrix(labels, predictions, labels=np.arange(num_class)))


def per_class_table(metrics: Metrics, class_names: tuple[str, ...]) -> str:
    """Images, recall and precision of each class as aligned text."""
    width = max(len(name) for name in class_names)
    lines = [f"{'class':<{width}}  images  recall  precision"]
    rows = zip(class_names, metrics.support, metrics.recall, metrics.precision, strict=True)
    for name, support, recall, precision in rows:
        recall, precision = ("-" if np.isnan(x) else f"{100 * x:.2f}" for x in (recall, precision))
        lines.append(f"{name:<{width}}  {support:6d}  {recall:>6}  {precision:>9}")
    return "\n".join(lines)
