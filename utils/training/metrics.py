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

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        return float(np.nanmean(self.f1))

    @cached_property
    def f1(self) -> np.ndarray:
        """(C,); 0 for a class that has images and no hit."""
        with np.errstate(invalid="ignore"):
            f1 = 2 * self.confusion.diagonal() / (self.confusion.sum(axis=0) + self.support)
        return np.where(self.support > 0, f1, np.nan)

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
    """Images, recall, precision and F1 of each class as aligned text."""
    width = max(len(name) for name in class_names)
    lines = [f"{'class':<{width}}  images  recall  precision      F1"]
    columns = (metrics.support, metrics.recall, metrics.precision, metrics.f1)
    for name, support, *shares in zip(class_names, *columns, strict=True):
        recall, precision, f1 = ("-" if np.isnan(x) else f"{100 * x:.2f}" for x in shares)
        lines.append(f"{name:<{width}}  {support:6d}  {recall:>6}  {precision:>9}  {f1:>6}")
    return "\n".join(lines)
