"""Frames of a camera as they come, and a window to show them in."""

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from utils.demo.video import Frame, plausible_fps
from utils.errors import UserError


class Camera:
    """A camera, given by its index, or a stream, by its address. `path` is its name in reports.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, address: str):
        if address.isdecimal():
            self.path = Path(f"camera-{address}")
            self.capture = cv2.VideoCapture(int(address))
        else:
            self.path = Path("camera")
            self.capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG)
        if not self.capture.isOpened():
            raise UserError(f"--camera {address}: no such camera or stream, or it is in use")
        self.stopped = threading.Event()
        self.newest: queue.Queue[tuple[float, np.ndarray] | None] = queue.Queue(maxsize=1)

    def frames(self) -> Iterator[Frame]:
        """Yield the newest frame whenever one is asked for, until Ctrl-C or the camera's end.

        Frames are numbered as they are yielded, and have the times at which they came.

        Raises:
            UserError: there is not a single frame.
        """
        # A KeyboardInterrupt would be lost if it were raised within a call of OpenCV.
        handler = signal.signal(signal.SIGINT, lambda number, frame: self.stopped.set())
        reader = threading.Thread(target=self._read)
        reader.start()
        fps, index, start = plausible_fps(self.capture), 0, None
        try:
            while (received := self.newest.get()) is not None and not self.stopped.is_set():
                now, image = received
                start = start or now
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield Frame(self.path, image, index, now - start, fps)
                index += 1
            if self.stopped.is_set():
                return
        finally:
            self.stopped.set()
            reader.join()
            signal.signal(signal.SIGINT, handler)
        if index == 0:
            raise UserError(f"{self.path}: gives no picture; check the camera")
        print(f"{self.path}: the camera has gone, or its stream ended", file=sys.stderr)

    def _read(self) -> None:
        """Keep the newest frame, and None at the camera's end."""
        received, stopped = True, False
        while received and not stopped:
            received, image = self.capture.read()
            # Without its main thread the program is ending, and waits for this one.
            stopped = self.stopped.is_set() or not threading.main_thread().is_alive()
            with suppress(queue.Empty):
                self.newest.get_nowait()
            self.newest.put((time.monotonic(), image) if received else None)
        self.capture.release()


def open_window(title: str) -> None:
    """Open a window for `show`; raise a UserError if the installed OpenCV has none."""
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
