"""How well predictions match labels."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


class Metrics(NamedTuple):
    """Fractions in [0, 1]. A class without images has no recall and no F1 (NaN), one that was never
    predicted has no precision; means are over the classes that have images."""

    accuracy: float
    balanced_accuracy: float  # mean recall
    macro_f1: float
    per_class: pd.DataFrame  # images, recall, precision and f1 of each class
    confusion: np.ndarray  # (C, C) counts, rows are labels, columns predictions


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, *, num_class: int
) -> Metrics:
    """labels, predictions: (N,) integers in [0, num_class), N >= 1."""
    classes = np.arange(num_class)
    confusion = confusion_matrix(labels, predictions, labels=classes)
    images = confusion.sum(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=np.nan
    )
    f1 = np.where(images > 0, f1, np.nan)
    means = (float(np.nanmean(values)) for values in (labels == predictions, recall, f1))
    columns = {"images": images, "recall": recall, "precision": precision, "f1": f1}
    return Metrics(*means, pd.DataFrame(columns), confusion)
