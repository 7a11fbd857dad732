"""Videos, frame by frame: reading with timestamps, and writing in containers that play."""

import os
from collections.abc import Iterator
from pathlib import Path

# FFmpeg's and OpenCV's own remarks on files that fail; each failure becomes a UserError here.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from utils.errors import UserError  # noqa: E402

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Each container with a codec that OpenCV's wheels can write into it.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
VIDEO_SUFFIXES = tuple(CODECS)

USUAL_FPS = 30.0  # for files that do not say theirs, or state a clock tick in its place


class VideoReader:
    """A video file, upright as its metadata says.

    Raises:
        UserError: the file is missing or no video.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        self.path = path
        self.capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self.capture.isOpened():
            raise UserError(f"{path}: not a video that OpenCV can read; leave it out")
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 1 <= fps <= 240 else USUAL_FPS
        # By the file's own account, which may be wrong: good for a progress bar, nothing else.
        self.num_frames = max(0, int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None

    def frames(self, step: int = 1) -> Iterator[tuple[int, float, np.ndarray]]:
        """Every `step`-th frame: its index, its time in seconds, (h, w, 3) uint8 RGB.

        Raises:
            UserError: not even the first frame can be decoded.
        """
        index = 0
        while self.capture.grab():
            if index % step == 0:
                seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                decoded, frame = self.capture.retrieve()
                if decoded:
                    yield index, seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1
        if index == 0:
            raise UserError(f"{self.path}: no frame of it can be decoded; leave it out")

    def close(self) -> None:
        self.capture.release()


class VideoWriter:
    """A video without sound, in the container that the file name says; to be closed at the end.

    Args:
        size: width and height in pixels; codecs drop the last row or column of odd ones.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.path = path
        self.num_frames = 0
        codec = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
        self.writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, size)
        if not self.writer.isOpened():
            raise UserError(f"{path}: cannot be written; give another folder")

    def write(self, frame: np.ndarray) -> None:
        """frame: (h, w, 3) uint8 RGB, of the video's size."""
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, and count the frames in it: OpenCV keeps silent when a write fails.

        Raises:
            UserError: frames are missing.
        """
        self.writer.release()
        written, num_written = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG), 0
        while num_written < self.num_frames and written.grab():
            num_written += 1
        written.release()
        if num_written < self.num_frames:
            raise UserError(
                f"{self.path}: cannot be written, it ends after {num_written} of "
                f"{self.num_frames} frames; make room there, or give another folder"
            )
