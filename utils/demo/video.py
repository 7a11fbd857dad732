"""Photos and videos as one stream of frames; writing videos that last as long as their source."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.data.images import has_suffix, read_rgb
from utils.errors import UserError
from utils.progress import progress

VIDEO_SUFFIXES = frozenset(
    ".264 .265 .3g2 .3gp .asf .avi .dav .divx .dv .f4v .flv .h264 .hevc .m2ts .m2v .m4v .mjpeg "
    ".mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .ogv .qt .rm .rmvb .ts .vob .webm .wmv".split()
)
MAX_BYTES = 128_000_000  # of the frames held in memory for a batch


@dataclass(frozen=True)
class Frame:
    """A photo, a frame of a video or camera, or a file that could not be read."""

    path: Path
    image: np.ndarray | None = None  # (h, w, 3) uint8 RGB
    index: int | None = None  # in the video; None for photos, as are the next two
    seconds: float | None = None  # from the start of the video
    fps: float | None = None  # of the video, on average
    error: str | None = None  # why the file could not be read


def read_files(paths: Sequence[Path], *, every: int = 1) -> Iterator[Frame]:
    """Read photos and every N-th frame of videos, in the given order."""
    for path in paths:
        try:
            if has_suffix(path.name, VIDEO_SUFFIXES):
                yield from _read_video(path, every)
            else:
                yield Frame(path, read_rgb(path))
        except UserError as error:
            yield Frame(path, error=str(error))


def _read_video(path: Path, every: int) -> Iterator[Frame]:
    capture = cv2.VideoCapture(_opencv_name(path), cv2.CAP_FFMPEG)
    fps = plausible_fps(capture)
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # may be wrong
    index, seconds = -1, -math.inf
    with progress(total=total if total > 0 else None, desc=path.name, unit="frame") as bar:
        while capture.grab():
            index += 1
            bar.update()
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = stamp if stamp > seconds else seconds + 1 / fps  # it may have none
            if index % every == 0:
                decoded, image = capture.retrieve()
                if decoded:
                    yield Frame(path, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index, seconds, fps)
    if index < 0:
        raise UserError(f"{path}: not a video that OpenCV can read; convert it or leave it out")


def plausible_fps(capture: cv2.VideoCapture) -> float:
    """Mean frame rate of a video or camera; 30 where it states none, or a clock rate instead."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= 240 else 30.0


def in_batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Group up to `size` frames, memory permitting, whose faces are classified together."""
    batch, num_bytes = [], 0
    for frame in frames:
        batch.append(frame)
        num_bytes += 0 if frame.image is None else frame.image.nbytes
        if len(batch) == size or num_bytes >= MAX_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


class VideoWriter:
    """An MP4 video without sound; close it at the end.

    Its frame rate is constant: frames are repeated or left out according to their times, so that
    it lasts as long as its source.

    Args:
        fps: mean frame rate of the source.
        size: width and height in pixels; encoders drop the last row or column of odd ones.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        while fps < 10:  # a low mean may hide parts with many frames
            fps *= 2
        self.fps = fps
        self.num_written = 0
        self.current: np.ndarray | None = None  # shown until the time of the next one
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        self.writer = cv2.VideoWriter(_opencv_name(path), cv2.CAP_FFMPEG, codec, fps, size)
        if not self.writer.isOpened():
            raise UserError(f"{path}: cannot be written; give another folder")

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Show an image, (h, w, 3) uint8 RGB, from a time in seconds on; the first is at 0."""
        self._repeat_until(round(seconds * self.fps))
        self.current = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)

    def close(self) -> None:
        self._repeat_until(self.num_written + 1)
        self.writer.release()

    def _repeat_until(self, num_frames: int) -> None:
        while self.current is not None and self.num_written < num_frames:
            self.writer.write(self.current)
            self.num_written += 1


def _opencv_name(path: Path) -> str:
    """Make a path absolute, because FFmpeg takes `a:b.mp4` for an address."""
    name = os.path.abspath(path)
    if name.encode(errors="ignore").decode() != name:  # OpenCV would crash
        raise UserError(f"{path}: its name is not valid Unicode; rename it")
    return name
