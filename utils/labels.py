"""Class names, their order and the published class counts of each data set, defined once."""

# RAF-DB writes its labels as 1-7, in this order.
RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

# AffectNet's codes 0-7; AffectNet-7 is the same without the last one. The annotations go on
# with 8 none, 9 uncertain and 10 non-face, which no recipe uses.
AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")

# Images per class as published, in the order of the names above.
RAFDB_COUNTS = {
    "train": (1290, 281, 717, 4772, 1982, 705, 2524),
    "test": (329, 74, 160, 1185, 478, 162, 680),
}
AFFECTNET_COUNTS = {
    "train": (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750),
    "val": (500, 500, 500, 500, 500, 500, 500, 499),
}


def is_name(name: object) -> bool:
    """Whether something can name a class or a data set: text that can be printed on a line."""
    return isinstance(name, str) and name.strip() != "" and name.isprintable()


def title(dataset: str, *, toy: bool) -> str:
    """A data set's name for people: nobody should take a toy accuracy for one on real faces."""
    return f"toy {dataset}" if toy else dataset
