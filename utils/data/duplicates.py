"""Find images of the same photo: copies, also flipped, recompressed, resized or cropped by 10 %.

`find_matches` searches thumbnails: they are projected onto the directions that tell images apart
but hardly change with a crop, where copies are close to each other. Pairs that are close are
aligned and compared. `same_photo` then compares the images themselves, which tells two expressions
of one person apart.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 24  # pixels of a thumbnail
_SMALL = 12  # of the form in which thumbnails are searched
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue
# Crops of an image, (x, width, y, height) as fractions of it; the first is the whole image.
_SIZES = {1.0: [0.0], 0.95: [0.0, 0.05], 0.9: [0.0, 0.05, 0.1]}
_WINDOWS = [(x, w, y, w) for w, starts in _SIZES.items() for x in starts for y in starts]
_CENTER = (0.025, 0.95, 0.025, 0.95)  # from here an alignment reaches all of them
_DIRECTIONS = 16
_SAMPLE = 500  # images from which the directions are learnt
# Limits of thumbnails, and of images of _DETAIL pixels: agreement after alignment, how much less it
# may be per width cropped, and the largest difference of a region in standard deviations. Measured
# on toy faces, on photos of 40 people taken in one session and on photos in general: copies are
# within them, images of different people are not.
_THUMBNAIL_LIMITS = (0.996, 0.14, 0.24)
_DETAIL = 64
_DETAIL_LIMITS = (0.9945, 0.02, 0.11)
_MIN_COARSE_AGREEMENT = 0.85  # at half the size, worth a closer look
_CHUNK = 256  # images or pairs at a time, which bounds the memory


class Match(NamedTuple):
    """Two images, as indices, that seem to show the same photo."""

    shown: int
    other: int
    flipped: bool  # one is the mirror image of the other
    window: tuple[float, ...]  # of the shown image, mirrored if flipped: x, width, y, height


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image for `find_matches`: (h, w, 3) -> (SIDE, SIDE, 3), both uint8 RGB."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (3, 3), 0)  # fine detail differs between copies


def detail(image: np.ndarray) -> np.ndarray:
    """Shrink an image for `same_photo`: (h, w, 3) -> (_DETAIL, _DETAIL, 3), both uint8 RGB."""
    small = cv2.resize(image, (_DETAIL, _DETAIL), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (5, 5), 0)


def find_matches(thumbnails: np.ndarray) -> list[Match]:
    """Find all pairs of images that seem to show the same photo: (N, SIDE, SIDE, 3) uint8.

    A pair may match in several ways, of which some hold for the images themselves. Images with the
    very same thumbnail are paired with the first of them only.
    """
    firsts, matches = {}, []
    for index, picture in enumerate(thumbnails):
        first = firsts.setdefault(hash(picture.tobytes()), index)
        if first != index:
            matches.append(Match(first, index, False, (0.0, 1.0, 0.0, 1.0)))
    if not firsts:
        return []
    start = np.array([_CENTER], np.float32)
    for pairs, flipped in _close_pairs(thumbnails, np.array(list(firsts.values()))):
        pairs = np.concatenate([pairs, pairs[:, ::-1]])  # either may be a crop of the other
        for part in _chunks(pairs):
            shown, other = thumbnails[part[:, 0]], thumbnails[part[:, 1]]
            if flipped:
                shown = shown[:, :, ::-1]
            close, windows = _are_copies(shown, other, start, _THUMBNAIL_LIMITS)
            for pair, window in zip(part[close].tolist(), windows.tolist(), strict=True):
                matches.append(Match(*pair, flipped, tuple(window)))
    return matches


def same_photo(
    shown: Sequence[np.ndarray], other: Sequence[np.ndarray], matches: Sequence[Match]
) -> np.ndarray:
    """Whether the images of each match show the same photo, (n,) bool, given their details."""
    shown = [
        image[:, ::-1] if match.flipped else image
        for image, match in zip(shown, matches, strict=True)
    ]
    windows = np.array([match.window for match in matches], np.float32)
    return _are_copies(np.stack(shown), np.stack(other), windows, _DETAIL_LIMITS)[0]


# ---- search --------------------------------------------------------------------------------------


def _close_pairs(thumbnails: np.ndarray, unique: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield (pairs, flipped): (n, 2) indices of images of which one may be a crop of the other, or
    of its mirror image."""
    count = min(len(unique), _SAMPLE)
    sample = np.random.default_rng(0).choice(unique, count, replace=False)
    directions, radius = _learn_directions(thumbnails[sample])
    # Mirrored directions see an image as the directions see its mirror image.
    mirrored = directions.reshape(_SMALL, _SMALL, -1)[:, ::-1].reshape(directions.shape)
    both = np.concatenate([directions, mirrored], axis=1)
    projected = [_vectors(thumbnails[part]) @ both for part in _chunks(unique)]
    features, mirrored = np.split(np.concatenate(projected), 2, axis=1)
    # Sorted by the direction in which images differ most, those that are close to a few images that
    # follow each other are a small part of all.
    order = np.argsort(features[:, -1])
    unique, features, mirrored = unique[order], features[order], mirrored[order]
    squares = (features**2).sum(axis=1)
    for flipped, queries in ((False, features), (True, mirrored)):
        pairs = []
        for part in _chunks(np.argsort(queries[:, -1])):
            some = queries[part]
            ends = some[0, -1] - radius, some[-1, -1] + radius
            start, stop = np.searchsorted(features[:, -1], ends)
            # |a - b|^2 < radius^2, as a comparison of the product a b
            products = some @ features[start:stop].T
            products -= squares[start:stop] / 2
            least = ((some**2).sum(axis=1) - radius**2) / 2
            i, j = np.divmod(np.flatnonzero(products > least[:, None]), stop - start)
            i, j = part[i], start + j
            pairs.append(np.minimum(i, j) * len(unique) + np.maximum(i, j))
        pairs = np.stack(np.divmod(np.unique(np.concatenate(pairs)), len(unique)), axis=1)
        yield unique[pairs[pairs[:, 0] != pairs[:, 1]]], flipped


def _learn_directions(thumbnails: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the directions in which images differ most, relative to the crops of one image: linear
    discriminant analysis (Fisher, 1936) with a class for each image.

    Returns:
        The projection of vectors onto them, (F, _DIRECTIONS) float32 with the most telling one
        last, and how far from an image its crops then lie at most.
    """
    pictures = np.moveaxis(thumbnails, 3, 1).astype(np.float32)
    crops = [_crop(pictures, np.array([window], np.float32)) for window in _WINDOWS]
    whole, *others = [_vectors(np.moveaxis(crop, 1, 3)) for crop in crops]
    changes = np.concatenate(others) - np.tile(whole, (len(others), 1))
    within = changes.T @ changes / len(changes)
    # Few images, or flat ones, do not tell how they change in every direction.
    within += 3e-4 / len(thumbnails) * np.eye(len(within))
    whitening = np.linalg.inv(np.linalg.cholesky(within)).T
    centered = (whole - whole.mean(axis=0)) @ whitening
    directions = whitening @ np.linalg.eigh(centered.T @ centered)[1][:, -_DIRECTIONS:]
    radius = np.quantile(np.linalg.norm(changes @ directions, axis=1), 0.999)
    # Directions learnt from few images fit the crops of these too well.
    radius = max(1.0, (1 + 50 / len(thumbnails)) * float(radius))
    return directions.astype(np.float32), radius


def _vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Shrink thumbnails further, to vectors of length 1: (n, SIDE, SIDE, 3) -> (n, F) float32."""
    size = (_SMALL, _SMALL)
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in thumbnails]
    vectors = np.stack(small).reshape(len(small), -1).astype(np.float32) - 128
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


# ---- comparison ----------------------------------------------------------------------------------


def _are_copies(
    shown: np.ndarray, other: np.ndarray, windows: np.ndarray, limits: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether a window of each picture, near the given one, is the other picture, (n,) bool,
    and those windows: (k, 4) where k are."""
    fine = [x @ _LUMA for x in (shown, other)]
    side = fine[0].shape[1] // 2
    coarse = [luma.reshape(-1, side, 2, side, 2).mean((2, 4)) for luma in fine]
    windows = _align(*coarse, windows)
    agreement, _ = _compare(*(luma[:, None] for luma in coarse), windows)
    result = agreement > _MIN_COARSE_AGREEMENT
    if not result.any():
        return result, windows[result]
    windows = _align(*(luma[result] for luma in fine), windows[result])
    pictures = (np.moveaxis(x[result], 3, 1).astype(np.float32) for x in (shown, other))
    agreement, difference = _compare(*pictures, windows)
    min_agreement, per_crop, max_difference = limits
    cropped = 1 - windows[:, 1::2].min(axis=1).clip(0.85, 1)
    close = (agreement > min_agreement - per_crop * cropped) & (difference < max_difference)
    result[result] = close
    return result, windows[close]


def _compare(
    shown: np.ndarray, other: np.ndarray, windows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return Lin's concordance coefficient between windows of pictures and the other pictures, and
    the largest difference of a region, in standard deviations: (n,) each."""
    count, channels, side, _ = other.shape
    shown = _crop(shown, windows)
    regions = (shown - other).reshape(count, channels, 4, side // 4, 4, side // 4).mean((3, 5))
    largest = np.abs(regions).reshape(count, -1).max(axis=1)
    shown, other = shown.reshape(count, -1), other.reshape(count, -1)
    variance = other.var(axis=1) + 9  # at least that of noise
    spread = shown.var(axis=1) + variance + (shown.mean(axis=1) - other.mean(axis=1)) ** 2
    return 1 - ((shown - other) ** 2).mean(axis=1) / spread, largest / np.sqrt(variance)


def _align(shown: np.ndarray, other: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Move and scale windows (x, width, y, height) until they show the other pictures best, in two
    steps of the Gauss-Newton method. shown, other: (n, side, side) float32; windows: (n or 1, 4)"""
    side = other.shape[1]
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    target = (other - other.mean((1, 2), keepdims=True)).reshape(len(other), -1, 1)
    for _ in range(2):
        across, down = windows[:, :2], windows[:, 2:]
        rows, columns = _resampling(down, side), _resampling(across, side).swapaxes(1, 2)
        strips = shown @ columns
        picture, by_y = rows @ strips, _derivative(down, side) @ strips
        by_x = rows @ (shown @ _derivative(across, side).swapaxes(1, 2))
        picture = picture - picture.mean((1, 2), keepdims=True)
        # Contrast and brightness are fitted too.
        terms = [picture, np.ones_like(picture), by_x, by_x * unit, by_y, by_y * unit[:, None]]
        terms = np.stack(terms, axis=1).reshape(len(other), len(terms), -1)
        normal = terms @ terms.swapaxes(1, 2)
        normal[:, range(6), range(6)] *= 1.001  # flat pictures make it singular
        normal[:, range(6), range(6)] += 1e-3
        solution = np.linalg.solve(normal, terms @ target)[:, :, 0]
        windows = windows + (solution[:, 2:] / solution[:, :1].clip(0.2)).clip(-0.1, 0.1)
        windows[:, 1::2] = windows[:, 1::2].clip(0.8, 1.02)
        windows[:, ::2] = windows[:, ::2].clip(-0.02, 1.02 - windows[:, 1::2])
    return windows


def _crop(pictures: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Cut windows from pictures (n, channels, side, side) and resize them to the same shape."""
    columns, rows = (_resampling(windows[:, i : i + 2], pictures.shape[2]) for i in (0, 2))
    return rows[:, None] @ pictures @ columns[:, None].swapaxes(2, 3)


def _resampling(windows: np.ndarray, side: int, shift: float = 0.0) -> np.ndarray:
    """Return matrices that resample windows along an axis to side pixels: (n, 2) fractions, start
    and size, -> (n, side, side). The shift, in pixels, moves the windows."""
    start, size = windows.T[..., None]
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    place = ((start + size * unit) * side - np.float32(0.5 - shift)).clip(0, side - 1)
    return np.maximum(0, 1 - np.abs(place[..., None] - np.arange(side, dtype=np.float32)))


def _derivative(windows: np.ndarray, side: int) -> np.ndarray:
    """Return the derivative of `_resampling` by the start."""
    return (_resampling(windows, side, 0.5) - _resampling(windows, side, -0.5)) * side
