"""Find images of the same photo: copies, also flipped, recompressed, resized or cropped by 10 %.

`find_matches` searches thumbnails for pairs whose low frequencies agree, between each image and
windows of the others and of their mirror images; aligns the two, and compares them. `same_photo`
then compares the images themselves, which tells two expressions of one person apart.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 24  # pixels of a thumbnail
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue
# The windows of an image that are searched: their size, and their starts along each axis, as
# fractions of the image. Aligning bridges the gaps between them.
_SIZES = {1.0: [0.0], 0.95: [0.01, 0.04], 0.9: [0.01, 0.037, 0.063, 0.09]}
_AXES = [(start, size) for size, starts in _SIZES.items() for start in starts]
_WINDOWS = [(x, w, y, h) for x, w in _AXES for y, h in _AXES if w == h]
_FREQUENCIES = (7, 3, 3)  # along an axis, of luma and of two colour differences
_MIN_COSINE = 0.982  # between the frequencies of two candidates
_CLUSTERS = 3  # that each image is in
# Limits of thumbnails, and of images of _DETAIL pixels: agreement that is worth aligning, agreement
# then, how much less it may be per width cropped, and the largest difference of a region in
# standard deviations. Measured on toy faces, on photos of 40 people taken in one session and on
# photos in general: copies are within them, images of different people are not.
_THUMBNAIL_LIMITS = (0.93, 0.996, 0.14, 0.24)
_DETAIL = 64
_DETAIL_LIMITS = (0.8, 0.9945, 0.02, 0.11)
_CHUNK = 1024  # images at a time, which bounds the memory
_MAX_COSINES = 10**7  # at a time


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


def find_matches(thumbnails: np.ndarray) -> list[Match]:
    """Find all pairs of images that seem to show the same photo.

    Images with the very same thumbnail are paired with the first of them only.

    Args:
        thumbnails: (N, SIDE, SIDE, 3) uint8.

    Returns:
        Matches. A pair may match in several ways, of which some hold for the images themselves.
    """
    firsts, matches = {}, []
    for index, picture in enumerate(thumbnails):
        first = firsts.setdefault(blake2b(picture, digest_size=16).digest(), index)
        if first != index:
            matches.append(Match(first, index, False, (0.0, 1.0, 0.0, 1.0)))
    if not firsts:
        return []
    unique = np.array(list(firsts.values()))
    for shown, other, windows, flipped in _candidates(thumbnails, unique):
        for start in range(0, len(shown), _CHUNK):
            part = slice(start, start + _CHUNK)
            pictures = thumbnails[shown[part]][:, :, :: -1 if flipped else 1]
            close, aligned = _are_copies(
                pictures, thumbnails[other[part]], windows[part], *_THUMBNAIL_LIMITS
            )
            for i, window in zip(np.flatnonzero(close) + start, aligned, strict=True):
                matches.append(Match(int(shown[i]), int(other[i]), flipped, tuple(window.tolist())))
    return matches


def same_photo(shown: np.ndarray, other: np.ndarray, match: Match) -> bool:
    """Whether the images of a match, (h, w, 3) uint8, show the same photo."""
    if match.flipped:
        shown = np.ascontiguousarray(shown[:, ::-1])
    size = (_DETAIL, _DETAIL)
    small = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (shown, other))
    pictures = (cv2.GaussianBlur(image, (5, 5), 0)[None] for image in small)
    window = np.array([match.window], np.float32)
    return bool(_are_copies(*pictures, window, *_DETAIL_LIMITS)[0][0])


# ---- search --------------------------------------------------------------------------------------


def _candidates(
    thumbnails: np.ndarray, unique: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """Yield (shown, other, windows, flipped): a window of each shown image, which is mirrored if
    flipped, may be what the other image shows."""
    chunks = [unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK)]
    whole = np.concatenate([_spectra(thumbnails[chunk], _WINDOWS[:1])[:, 0] for chunk in chunks])
    # Images are compared within clusters, around a few of them.
    count = min(len(unique), int(2 * len(unique) ** 0.5))
    centers = whole[np.random.default_rng(0).choice(len(unique), count, replace=False)]
    per_image = min(_CLUSTERS, count)
    nearest = [
        np.argpartition(-part @ centers.T, per_image - 1)[:, :per_image].copy()
        for part in np.array_split(whole, len(chunks))
    ]
    members = [hits // per_image for hits in _group(np.concatenate(nearest).ravel(), count)]
    for chunk in chunks:
        views = _spectra(thumbnails[chunk], _WINDOWS)
        for flipped in (False, True):
            queries = (views * _MIRROR if flipped else views).reshape(-1, views.shape[-1])
            hits = []
            groups = _group((queries @ centers.T).argmax(axis=1), count)
            for mine, theirs in zip(groups, members, strict=True):
                for part in np.array_split(mine, 1 + len(mine) * len(theirs) // _MAX_COSINES):
                    cosines = queries[part] @ whole[theirs].T
                    i, j = np.nonzero(cosines > _MIN_COSINE)
                    hits.append((part[i], unique[theirs[j]], cosines[i, j]))
            query, other, cosines = map(np.concatenate, zip(*hits, strict=True))
            best = np.argsort(-cosines)  # of several windows the best
            query, other = query[best], other[best]
            shown = chunk[query // len(_WINDOWS)]
            _, first = np.unique(shown * len(thumbnails) + other, return_index=True)
            first = first[shown[first] != other[first]]
            windows = np.array(_WINDOWS, np.float32)[query[first] % len(_WINDOWS)]
            if flipped:
                windows[:, 0] = 1 - windows[:, 0] - windows[:, 1]
            yield shown[first], other[first], windows, flipped


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
        resampled = waves @ _resampling(*np.array(axes).T, SIDE)[0]  # (axes, count, SIDE)
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
    min_unaligned: float,
    min_agreement: float,
    per_crop: float,
    max_difference: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether a window of each picture, near the given one, is the other picture, (n,) bool,
    and those windows: (k, 4) where k are."""
    lumas = shown @ _LUMA, other @ _LUMA
    agreement, _ = _compare(*(luma[..., None] for luma in lumas), windows)
    result = agreement > min_unaligned
    if not result.any():
        return result, windows[result]
    shown, other = shown[result], other[result]
    windows = _align(*(luma[result] for luma in lumas), windows[result])
    agreement, difference = _compare(shown, other, windows)
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
    columns, rows = (_resampling(*windows[:, i : i + 2].T, side)[0][:, None] for i in (0, 2))
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
    """Move and scale windows (x, width, y, height) until they show the other pictures best, in four
    steps of the Gauss-Newton method. shown, other: (n, SIDE, SIDE) float32"""
    side = other.shape[1]
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    windows = windows.copy()
    target = (other - other.mean((1, 2), keepdims=True)).reshape(len(other), -1, 1)
    for _ in range(4):
        columns, by_start = _resampling(*windows[:, :2].T, side)
        rows, by_top = _resampling(*windows[:, 2:].T, side)
        strips = shown @ columns.swapaxes(1, 2)
        picture, by_y = rows @ strips, by_top @ strips
        by_x = rows @ (shown @ by_start.swapaxes(1, 2))
        picture = picture - picture.mean((1, 2), keepdims=True)
        # Contrast and brightness are fitted too.
        terms = [picture, np.ones_like(picture), by_x, by_x * unit, by_y, by_y * unit[:, None]]
        terms = np.stack(terms, axis=1).reshape(len(other), len(terms), -1)
        normal = terms @ terms.swapaxes(1, 2)
        normal[:, range(6), range(6)] *= 1.001  # flat pictures make it singular
        normal[:, range(6), range(6)] += 1e-3
        solution = np.linalg.solve(normal, terms @ target)[:, :, 0]
        windows += (solution[:, 2:] / solution[:, :1].clip(0.2)).clip(-0.1, 0.1)
        windows[:, 1::2] = windows[:, 1::2].clip(0.8, 1.02)
        windows[:, ::2] = windows[:, ::2].clip(-0.02, 1.02 - windows[:, 1::2])
    return windows


def _resampling(start: np.ndarray, size: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrices that resample windows along an axis to side pixels, and their derivatives by
    the start: (n,) fractions -> (n, side, side)."""
    unit = (np.arange(side, dtype=np.float32) + 0.5) / side
    place = (start[:, None] + size[:, None] * unit) * side - 0.5

    def weights(shift: float) -> np.ndarray:
        distance = (place + shift).clip(0, side - 1)[..., None] - np.arange(side, dtype=np.float32)
        return np.maximum(0, 1 - np.abs(distance))

    return weights(0), (weights(0.5) - weights(-0.5)) * side
