"""Cameras, and faces that are followed from frame to frame."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import demo
from tests.conftest import REPOSITORY
from utils.demo.camera import Camera, open_window
from utils.demo.predictor import Prediction
from utils.demo.track import Tracker
from utils.demo.video import read_files
from utils.errors import UserError


class FakeCapture:
    """Gives pictures at a steady rate, from the start again if `at_end` says so."""

    pictures: list[np.ndarray] = []
    interval = 0.0
    permits = None
    at_end = staticmethod(lambda: False)

    def __init__(self, index):
        self.calls = self.count = 0
        type(self).last = self

    def isOpened(self):
        return True

    def get(self, name):
        return 20.0 if name == cv2.CAP_PROP_FPS else 0.0

    def read(self):
        self.calls += 1
        time.sleep(self.interval)
        if self.permits is not None:
            self.permits.acquire(timeout=5)
        if self.count >= len(self.pictures) and not self.at_end():
            return False, None
        self.count += 1
        return True, self.pictures[(self.count - 1) % len(self.pictures)]

    def release(self):
        self.released = True


@pytest.fixture
def capture(monkeypatch, tmp_path):
    """The class of captures that cameras use, to be set up by the test."""
    fake = type("Capture", (FakeCapture,), {})
    real = cv2.VideoCapture

    def open_capture(address, *options):
        return fake(address) if isinstance(address, int) else real(address, *options)

    monkeypatch.setattr(cv2, "VideoCapture", open_capture)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def bgr_face(photo):
    return np.asarray(Image.open(photo).convert("RGB").resize((176, 206)))[..., ::-1].copy()


def grey(shade):
    return np.full((72, 88, 3), shade, dtype=np.uint8)


def test_frames_that_come_while_one_is_answered_are_dropped(capture):
    capture.pictures, capture.permits = [grey(5 * i) for i in range(50)], threading.Semaphore(1)
    frames = Camera("2").frames()
    seen = [next(frames)]
    for newest in (9, 10, 29):
        time.sleep(0.1)
        capture.permits.release(newest + 1 - capture.last.count)
        while capture.last.calls < newest + 2:
            time.sleep(0.001)  # until the thread asks for the one after it
        seen.append(next(frames))
    assert [frame.image.mean() for frame in seen] == [0, 45, 50, 145]
    assert [frame.index for frame in seen] == [0, 1, 2, 3]
    times = [frame.seconds for frame in seen]
    assert times[0] == 0 and min(np.diff(times)) >= 0.09  # as they came
    capture.permits.release(100)
    frames.close()
    assert capture.last.released


def run(checkpoint_file, *flags):
    checkpoint = str(checkpoint_file(8, "affecnet8_epoch5_acc0.6209.pth"))
    flags = ["--detector", "haar", "--json", "o.jsonl", "--output", "out", *flags]
    return demo.main(["--camera", "0", "--checkpoint", checkpoint, *flags])


def test_a_camera_that_goes_away_leaves_what_was_written(
    capture, bgr_face, checkpoint_file, capsys
):
    capture.pictures, capture.interval = [bgr_face] * 4, 0.2
    assert run(checkpoint_file) == 0
    out, err = capsys.readouterr()
    assert "camera-0 frame 0 (0.00 s): face 1 box" in out and "has gone" in err
    records = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert {record["face"] for record in records} == {1}
    assert [record["frame"] for record in records] == list(range(len(records)))
    (copy,) = Path("out").iterdir()
    frames = list(read_files([copy]))
    assert copy.name == "camera-0_emotions.mp4" and frames[0].image.shape == bgr_face.shape
    assert len(frames) / 20 == pytest.approx(records[-1]["time"], abs=0.1)


def test_ctrl_c_ends_a_camera_as_the_end_of_a_video_does(capture, bgr_face, checkpoint_file):
    before, pressed = signal.getsignal(signal.SIGINT), []

    def at_end():
        if Path("out/camera-0_emotions.mp4").exists() and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return True

    capture.pictures, capture.interval, capture.at_end = [bgr_face], 0.1, staticmethod(at_end)
    assert run(checkpoint_file) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert list(read_files([Path("out/camera-0_emotions.mp4")]))[0].image is not None


def test_an_error_elsewhere_ends_the_program_though_the_camera_goes_on():
    code = """
import cv2, numpy as np
from tests import test_camera
from utils.demo.camera import Camera
cv2.VideoCapture = test_camera.FakeCapture
test_camera.FakeCapture.pictures = [np.zeros((9, 9, 3), np.uint8)]
test_camera.FakeCapture.at_end = lambda self: True
frames = Camera("0").frames()
next(frames)
raise SystemExit(3)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=REPOSITORY, timeout=60).returncode == 3


def test_a_camera_that_is_not_there_or_gives_nothing_is_one_line(capture, checkpoint_file):
    with pytest.raises(UserError, match="gives no picture"):
        run(checkpoint_file)
    capture.isOpened = lambda self: False
    with pytest.raises(UserError, match="no such camera or stream"):
        run(checkpoint_file)


def test_a_window_shows_the_frames_until_it_is_closed(
    capture, bgr_face, checkpoint_file, monkeypatch
):
    shown, keys = [], iter([-1, ord("q")])
    monkeypatch.setattr(cv2, "namedWindow", lambda *arguments: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *arguments: 1.0)
    capture.pictures, capture.interval, capture.at_end = [bgr_face], 0.01, staticmethod(lambda: 1)
    assert run(checkpoint_file, "--show") == 0
    assert len(shown) == 2 and shown[0].shape == bgr_face.shape
    background = np.abs(shown[0][:10, :10].astype(int) - bgr_face[:10, :10]).max()
    assert background == 0  # the colours are in OpenCV's order again


def test_an_opencv_without_windows_names_the_package_that_has_them(monkeypatch):
    def missing(*arguments):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", missing)
    with pytest.raises(UserError, match="pip install 'opencv-python<5'"):
        open_window("camera")


# ---- tracking ------------------------------------------------------------------------------------


def face(x, value, size=40):
    return Prediction((x, 10, size, size), {"happy": value, "sad": 1 - value})


def test_faces_keep_their_numbers_while_they_move_hide_and_others_come():
    tracker = Tracker(0)
    numbers = [
        [f.number for f in tracker([face(x, 0.5) for x in row], 0.1 * i)]
        for i, row in enumerate([[0, 100], [8, 90], [85], [5, 20, 80], [10, 78]])
    ]
    assert numbers[:3] == [[1, 2], [1, 2], [2]]
    assert numbers[3] == [1, 3, 2]  # the nearest one keeps the number
    assert numbers[4] == [1, 2]
    assert [f.number for f in tracker([face(10, 0.5)], 9.0)] == [4]  # too long ago


def test_probabilities_are_averaged_over_the_time_between_the_frames():
    tracker, times, values = Tracker(0.5), [0, 0.1, 0.4, 3.0], [0.0, 1.0, 1.0, 0.2]
    smoothed = [
        tracker([face(i, value)], t)[0].probabilities
        for i, (t, value) in enumerate(zip(times, values, strict=True))
    ]
    assert smoothed[1]["happy"] == pytest.approx(1 - math.exp(-0.1 / 0.5))
    assert smoothed[2]["happy"] == pytest.approx(1 - math.exp(-0.4 / 0.5))  # of any frame rate
    assert smoothed[3]["happy"] == 0.2  # a new face
    assert all(sum(row.values()) == pytest.approx(1) for row in smoothed)
    tracker = Tracker(0)
    assert [tracker([face(0, v)], t)[0] for t, v in ((0, 0.1), (0.1, 0.9))] == [
        Prediction((0, 10, 40, 40), {"happy": v, "sad": 1 - v}, number=1) for v in (0.1, 0.9)
    ]
