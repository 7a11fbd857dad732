"""Find images of the same photo: copies, also flipped, recompressed, resized or cropped by 10 %.

`find_matches` searches thumbnails: their low frequencies are projected onto the directions that
tell images apart but hardly change with a crop, where copies are close to each other. Pairs that
are close are aligned and compared. `same_photo` then compares the images themselves, which tells
two expressions of one person apart.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 24  # pixels of a thumbnail
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue
# Crops of an image, (x, width, y, height) as fractions of it; the first is the whole image.
_SIZES = {1.0: [0.0], 0.95: [0.0, 0.05], 0.9: [0.0, 0.05, 0.1]}
_AXES = [(start, size) for size, starts in _SIZES.items() for start in starts]
_WINDOWS = [(x, w, y, h) for x, w in _AXES for y, h in _AXES if w == h]
_CENTER = (0.025, 0.95, 0.025, 0.95)  # from here an alignment reaches all of them
_FREQUENCIES = (10, 6, 6)  # along an axis, of luma and of two colour differences
_DIRECTIONS = 16
_SAMPLE = 500  # images from which the directions are learnt
_CLUSTERS = 8  # that each image is in
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


def find_matches(thumbnails: np.ndarray, workers: int = 1) -> list[Match]:
    """Find all pairs of images that seem to show the same photo.

    Images with the very same thumbnail are paired with the first of them only.

    Args:
        thumbnails: (N, SIDE, SIDE, 3) uint8.
        workers: threads that compare pairs.

    Returns:
        Matches. A pair may match in several ways, of which some hold for the images themselves.
    """
    firsts, matches = {}, []
    for index, picture in enumerate(thumbnails):
        first = firsts.setdefault(hash(picture.tobytes()), index)
        if first != index:
            matches.append(Match(first, index, False, (0.0, 1.0, 0.0, 1.0)))
    if not firsts:
        return []
    unique = np.array(list(firsts.values()))
    with ThreadPoolExecutor(workers) as pool:  # NumPy computes without holding the interpreter
        for first, second, flipped in _close_pairs(thumbnails, unique):
            # Either may be a crop of the other.
            pairs = np.stack([np.append(first, second), np.append(second, first)], axis=1)
            parts = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
            for found in pool.map(partial(_compare_pairs, thumbnails, flipped), parts):
                matches += found
    return matches


def _compare_pairs(thumbnails: np.ndarray, flipped: bool, pairs: np.ndarray) -> list[Match]:
    """pairs: (n, 2), the shown and the other image of each"""
    shown = thumbnails[pairs[:, 0]][:, :, :: -1 if flipped else 1]
    start = np.array([_CENTER], np.float32)
    close, windows = _are_copies(shown, thumbnails[pairs[:, 1]], start, *_THUMBNAIL_LIMITS)
    return [
        Match(*pair, flipped, tuple(window))
        for pair, window in zip(pairs[close].tolist(), windows.tolist(), strict=True)
    ]


def detail(image: np.ndarray) -> np.ndarray:
    """Shrink an image for `same_photo`: (h, w, 3) -> (_DETAIL, _DETAIL, 3), both uint8 RGB."""
    small = cv2.resize(image, (_DETAIL, _DETAIL), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (5, 5), 0)


def same_photo(
    shown: Sequence[np.ndarray], other: Sequence[np.ndarray], matches: Sequence[Match]
) -> np.ndarray:
    """Whether the images of each match show the same photo, (n,) bool, given their details."""
    shown = [
        image[:, ::-1] if match.flipped else image
        for image, match in zip(shown, matches, strict=True)
    ]
    windows = np.array([match.window for match in matches], np.float32)
    return _are_copies(np.stack(shown), np.stack(other), windows, *_DETAIL_LIMITS)[0]


# ---- search --------------------------------------------------------------------------------------


def _close_pairs(
    thumbnails: np.ndarray, unique: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield (first, second, flipped): pairs of images, given as two arrays of indices, of which one
    may be a crop of the other, or of its mirror image."""
    count = min(len(unique), _SAMPLE)
    sample = np.random.default_rng(0).choice(unique, count, replace=False)
    directions, radius = _learn_directions(thumbnails[sample])
    features, mirrored = [], []
    for start in range(0, len(unique), _CHUNK):
        spectra = _spectra(thumbnails[unique[start : start + _CHUNK]], _WINDOWS[:1])[:, 0]
        features.append(spectra @ directions)
        mirrored.append((spectra * _MIRROR) @ directions)
    features, mirrored = np.concatenate(features), np.concatenate(mirrored)
    # Images are compared within clusters, around a few of them.
    count = min(len(unique), int(2 * len(unique) ** 0.5))
    centers = features[np.random.default_rng(0).choice(len(unique), count, replace=False)]
    per_image = min(_CLUSTERS, count)
    nearest = _nearest(features, centers, per_image)
    members = [hits // per_image for hits in _group(nearest.ravel(), count)]
    for flipped, queries in ((False, features), (True, mirrored)):
        groups = _group(_nearest(queries, centers, 1).ravel(), count)
        pairs = []
        for mine, theirs in zip(groups, members, strict=True):
            i, j = np.nonzero(_distances(queries[mine], features[theirs]) < radius**2)
            i, j = mine[i], theirs[j]
            pairs.append(np.minimum(i, j) * len(unique) + np.maximum(i, j))
        first, second = divmod(np.unique(np.concatenate(pairs)), len(unique))
        different = first != second
        yield unique[first[different]], unique[second[different]], flipped


def _learn_directions(thumbnails: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the directions in which images differ most, relative to the crops of one image: linear
    discriminant analysis (Fisher, 1936) with a class for each image.

    Returns:
        The projection of spectra onto them, (F, _DIRECTIONS) float32, and how far from an image its
        crops then lie at most.
    """
    spectra = _spectra(thumbnails, _WINDOWS).astype(np.float64)
    whole, changes = spectra[:, 0], (spectra[:, 1:] - spectra[:, :1]).reshape(-1, spectra.shape[2])
    within = changes.T @ changes / len(changes)
    within += 1e-7 * np.eye(len(within))  # flat images do not change at all
    whitening = np.linalg.inv(np.linalg.cholesky(within)).T
    centered = (whole - whole.mean(axis=0)) @ whitening
    directions = whitening @ np.linalg.eigh(centered.T @ centered)[1][:, -_DIRECTIONS:]
    radius = np.quantile(np.linalg.norm(changes @ directions, axis=1), 0.999)
    # Directions learnt from few images fit the crops of these too well.
    radius = max(1.0, (1 + 50 / len(thumbnails)) * float(radius))
    return directions.astype(np.float32), radius


def _nearest(points: np.ndarray, centers: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the nearest centers of each point: (n, d), (m, d) -> (n, count)."""
    return np.concatenate(
        [  # copied, as a view would keep a part's distances to all centers
            np.argpartition(_distances(part, centers), count - 1)[:, :count].copy()
            for part in np.array_split(points, 1 + len(points) // _CHUNK)
        ]
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between rows: (n, d), (m, d) -> (n, m)."""
    return (a**2).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b**2).sum(axis=1)


def _group(clusters: np.ndarray, count: int) -> list[np.ndarray]:
    """(n,) numbers of clusters -> for each cluster, the indices where it stands."""
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.searchsorted(clusters[order], np.arange(1, count)))


def _spectra(thumbnails: np.ndarray, windows: list[tuple[float, ...]]) -> np.ndarray:
    """Return the low frequencies (DCT) of windows of images: (n, SIDE, SIDE, 3) -> (n, windows, F)
    float32, of length 1."""
    pictures = thumbnails.astype(np.float32) - 128
    luma = pictures @ _LUMA
    parts = []
    axes = sorted({window[:2] for window in windows})
    columns, rows = ([axes.index(window[i : i + 2]) for window in windows] for i in (0, 2))
    channels = (luma, pictures[..., 0] - luma, pictures[..., 2] - luma)
    for channel, count in zip(channels, _FREQUENCIES, strict=True):
        k, x = np.arange(count)[:, None], np.arange(SIDE)
        waves = np.cos(np.pi * k * (x + 0.5) / SIDE) * np.where(k, 2**0.5, 1)
        resampled = waves @ _resampling(np.array(axes), SIDE)  # (axes, count, SIDE)
        operator = resampled.reshape(-1, SIDE).astype(np.float32)
        products = operator @ (channel @ operator.T)
        products = products.reshape(-1, len(axes), count, len(axes), count)
        chosen = products[:, rows, :, columns]  # (windows, n, count, count)
        parts.append(chosen.reshape(len(windows), len(pictures), -1).swapaxes(0, 1))
    spectra = np.concatenate(parts, axis=2)
    return spectra / (np.linalg.norm(spectra, axis=2, keepdims=True) + 1e-6)


# Mirroring an image changes the sign of every other frequency along x.
_MIRROR = np.concatenate([np.tile((-1.0) ** np.arange(n), n) for n in _FREQUENCIES])
_MIRROR = _MIRROR.astype(np.float32)


# ---- comparison ----------------------------------------------------------------------------------


def _are_copies(
    shown: np.ndarray,
    other: np.ndarray,
    windows: np.ndarray,
    min_agreement: float,
    per_crop: float,
    max_difference: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether a window of each picture, near the given one, is the other picture, (n,) bool,
    and those windows: (k, 4) where k are."""
    fine = [pictures @ _LUMA for pictures in (shown, other)]
    side = fine[0].shape[1] // 2
    coarse = [luma.reshape(-1, side, 2, side, 2).mean((2, 4)) for luma in fine]
    windows = _align(*coarse, windows)
    agreement, _ = _compare(*(luma[..., None] for luma in coarse), windows)
    result = agreement > _MIN_COARSE_AGREEMENT
    if not result.any():
        return result, windows[result]
    windows = _align(*(luma[result] for luma in fine), windows[result])
    agreement, difference = _compare(shown[result], other[result], windows)
    cropped = 1 - windows[:, 1::2].min(axis=1).clip(0.85, 1)
    close = (agreement > min_agreement - per_crop * cropped) & (difference < max_difference)
    result[result] = close
    return result, windows[close]


def _compare(
    shown: np.ndarray, other: np.ndarray, windows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return Lin's concordance coefficient between windows of pictures and the other pictures, and
    the largest difference of a region, in standard deviations: (n,) each."""
    side = other.shape[1]
    columns, rows = (_resampling(windows[:, i : i + 2], side)[:, None] for i in (0, 2))
    shown, other = (np.moveaxis(x, 3, 1).astype(np.float32) for x in (shown, other))
    shown = rows @ shown @ columns.swapaxes(2, 3)
    difference, count = shown - other, len(other)
    regions = difference.reshape(count, -1, 4, side // 4, 4, side // 4).mean((3, 5))
    largest = np.abs(regions).reshape(count, -1).max(axis=1)
    shown, other, difference = (x.reshape(count, -1) for x in (shown, other, difference))
    variance = other.var(axis=1) + 9  # at least that of noise
    spread = shown.var(axis=1) + variance + (shown.mean(axis=1) - other.mean(axis=1)) ** 2
    return 1 - (difference**2).mean(axis=1) / spread, largest / np.sqrt(variance)


def _align(shown: np.ndarray, other: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Move and scale windows (x, width, y, height) until they show the other pictures best, in two
    steps of the Gauss-Newton method. shown, other: (n, side, side) float32; windows: (n or 1, 4)"""
    side = other.shape[1]
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    target = (other - other.mean((1, 2), keepdims=True)).reshape(len(other), -1, 1)
    for _ in range(2):
        across, down = windows[:, :2], windows[:, 2:]
        rows, strips = _resampling(down, side), shown @ _resampling(across, side).swapaxes(1, 2)
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
