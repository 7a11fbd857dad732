"""Frames of a camera as they come, and a window to show them in."""

import atexit
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.demo.video import Frame, plausible_fps
from utils.errors import UserError

TIMEOUT = 10_000  # milliseconds in which a stream must open, and go on


class Camera:
    """A camera or a stream, read by a thread that keeps the newest frame only.

    Args:
        address: the index of a camera, or the address of a stream.

    Attributes:
        path: its name in reports.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, address: str):
        if address.isdecimal():
            self.path = Path(f"camera-{address}")
            self.capture = cv2.VideoCapture(int(address))
        else:
            self.path = Path("camera")
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
            options = [value for limit in limits for value in (limit, TIMEOUT)]
            self.capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, options)
        if not self.capture.isOpened():
            raise UserError(
                f"--camera {address}: there is no such camera or stream, or another program uses "
                "it; give the index of a camera, such as 0, or the address of a stream"
            )
        self.stopped, self.ended = threading.Event(), threading.Event()  # by us, by the camera
        self.newest: queue.Queue[tuple[float, np.ndarray]] = queue.Queue(maxsize=1)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        atexit.register(self.close)  # Python crashes if it ends while the thread reads

    def frames(self, *, every: int) -> Iterator[Frame]:
        """Yield the newest frame whenever one is asked for, until Ctrl-C or the camera's end.

        Frames are numbered as they are yielded, and have the times at which they came.

        Args:
            every: search every N-th frame.

        Raises:
            UserError: there is not a single frame.
        """
        # The first Ctrl-C ends the loop between two frames, the second one interrupts.
        handler = signal.signal(signal.SIGINT, self._stop)
        fps, index, start = plausible_fps(self.capture), 0, 0.0
        try:
            while not self.stopped.is_set():
                try:
                    now, image = self.newest.get(timeout=0.1)
                except queue.Empty:
                    if not (self.ended.is_set() and self.newest.empty()):
                        continue
                    if index == 0:
                        raise UserError(
                            f"{self.path}: gives no picture; check the camera"
                        ) from None
                    print(f"{self.path}: the camera has gone, or its stream ended", file=sys.stderr)
                    return
                start = start if index else now
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield Frame(self.path, image, None, index % every == 0, index, now - start, fps)
                index += 1
        finally:
            signal.signal(signal.SIGINT, handler)
            self.close()

    def close(self) -> None:
        self.stopped.set()
        self.reader.join(TIMEOUT / 1000)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _read(self) -> None:
        while not self.stopped.is_set():
            received, image = self.capture.read()
            if not received:
                break
            try:
                self.newest.get_nowait()
            except queue.Empty:
                pass
            self.newest.put((time.monotonic(), image))
        self.ended.set()
        self.capture.release()


def open_window(title: str) -> None:
    """Open a window for `show`.

    Raises:
        UserError: there is no display, or the installed OpenCV has no windows.
    """
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise UserError("--show: there is no display; leave it out, and give --output")
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except cv2.error:
        raise UserError(
            "--show: the installed OpenCV has no windows; pip uninstall opencv-python-headless "
            "and pip install 'opencv-python<5'"
        ) from None


def show(title: str, picture: np.ndarray) -> bool:
    """Show a picture, (h, w, 3) uint8 RGB; return False once the user has closed the window."""
    cv2.imshow(title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    key = cv2.waitKey(1) & 0xFF
    visible = cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1
    return visible and key not in (ord("q"), 27)  # 27 is Esc
