"""Class names, their order, and the published number of images per class."""

# RAF-DB stores labels as 1-7, in this order.
RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

# AffectNet's codes 0-7. AffectNet-7 drops contempt. The annotations also use 8 (none),
# 9 (uncertain) and 10 (non-face), which no recipe trains on.
AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")

RAFDB_COUNTS = {
    "train": (1290, 281, 717, 4772, 1982, 705, 2524),
    "test": (329, 74, 160, 1185, 478, 162, 680),
}
AFFECTNET_COUNTS = {
    "train": (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750),
    "val": (500, 500, 500, 500, 500, 500, 500, 499),
}
# Codes 0-6: angry, disgust, fear, happy, sad, surprise, neutral. FER+ publishes votes, no counts.
FER2013_COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "val": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}

# Names that data sets use for the same expression.
SYNONYMS = {
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "anger": "angry",
    "surprised": "surprise",
    "fearful": "fear",
    "scared": "fear",
    "disgusted": "disgust",
    "contemptuous": "contempt",
}


def canonical(name: str) -> str:
    """One name for all synonyms of an expression."""
    return SYNONYMS.get(name.strip().lower(), name.strip().lower())


def title(dataset: str, *, toy: bool) -> str:
    """The data set's name as shown to people; a toy accuracy must not pass for a real one."""
    return f"toy {dataset}" if toy else dataset
