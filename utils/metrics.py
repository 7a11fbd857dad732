"""How well predictions match labels."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class Metrics:
    """Fractions in [0, 1]; C classes. Where a class has no images its recall is NaN, where it
    was never predicted its precision is."""

    accuracy: float
    balanced_accuracy: float  # mean recall of the classes that have images
    recall: np.ndarray  # (C,)
    precision: np.ndarray  # (C,)
    confusion: np.ndarray  # (C, C) counts, rows are labels, columns predictions

    @property
    def support(self) -> np.ndarray:
        """(C,) images of each class."""
        return self.confusion.sum(axis=1)


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, *, num_class: int
) -> Metrics:
    """labels, predictions: (N,) integers in [0, num_class), N >= 1."""
    confusion = confusion_matrix(labels, predictions, labels=np.arange(num_class))
    hits = confusion.diagonal()
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: there is nothing to speak of
        recall = hits / confusion.sum(axis=1)
        precision = hits / confusion.sum(axis=0)
    return Metrics(
        accuracy=float(hits.sum() / confusion.sum()),
        balanced_accuracy=float(np.nanmean(recall)),
        recall=recall,
        precision=precision,
        confusion=confusion,
    )


def per_class_table(metrics: Metrics, class_names: tuple[str, ...]) -> str:
    """Images, recall and precision of each class as aligned text, one row a class."""
    width = max(len(name) for name in class_names)
    lines = [f"{'class':<{width}}  images  recall  precision"]
    rows = zip(class_names, metrics.support, metrics.recall, metrics.precision, strict=True)
    for name, support, recall, precision in rows:
        lines.append(
            f"{name:<{width}}  {support:6d}  {_percent(recall):>6}  {_percent(precision):>9}"
        )
    return "\n".join(lines)


def _percent(fraction: float) -> str:
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"
