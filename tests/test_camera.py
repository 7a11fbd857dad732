"""Cameras, and faces that are followed from frame to frame."""

import itertools
import json
import math
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image

import demo
from tests.conftest import REPOSITORY
from utils.demo import camera
from utils.demo.camera import Camera, open_window
from utils.demo.predictor import RELEASED, Prediction
from utils.demo.track import Tracker
from utils.demo.video import read_files
from utils.errors import UserError

COPY = Path("out/camera-0_emotions.mp4")


@pytest.fixture
def plug_in(monkeypatch, tmp_path):
    """Plugs in a camera that gives the pictures of an iterator, at 20 frames a second by its own
    account. The working directory is an empty folder."""
    monkeypatch.chdir(tmp_path)
    real = cv2.VideoCapture

    def plug_in(pictures):
        pictures = iter(pictures)

        def read():
            picture = next(pictures, None)
            return picture is not None, picture

        camera = Mock(read=read, get=lambda name: 20.0)
        monkeypatch.setattr(
            cv2, "VideoCapture", lambda *args: camera if args == (0,) else real(*args)
        )
        return camera

    return plug_in


@pytest.fixture
def bgr_face(photo):
    return np.asarray(Image.open(photo).convert("RGB").resize((176, 206)))[..., ::-1].copy()


@pytest.fixture
def run(checkpoint_file):
    def run(*flags):
        flags += ("--detector", "haar", "--json", "o.jsonl", "--output", "out")
        return demo.main(
            ["--camera", "0", "--checkpoint", str(checkpoint_file(8, RELEASED)), *flags]
        )

    return run


def every(seconds, pictures):
    for picture in pictures:
        time.sleep(seconds)
        yield picture


def test_frames_that_come_while_one_is_answered_are_dropped(plug_in, monkeypatch):
    arriving, clock = queue.Queue(), []
    monkeypatch.setattr(camera.time, "monotonic", lambda: clock[-1])

    def pictures():
        while True:
            yield arriving.get()
            arriving.task_done()  # it has been taken, as the next one is asked for

    capture, seen = plug_in(pictures()), []
    frames = Camera("0").frames()
    for now, shades in ((7, [0]), (7.5, [5, 10, 15]), (9, [20]), (9.2, range(25, 150, 5))):
        clock.append(now)
        for shade in shades:
            arriving.put(np.full((72, 88, 3), shade, dtype=np.uint8))
        if seen:
            arriving.join()
        seen.append(next(frames))
    assert [frame.image.mean() for frame in seen] == [0, 15, 20, 145]
    assert [frame.index for frame in seen] == [0, 1, 2, 3]
    assert [frame.seconds for frame in seen] == pytest.approx([0, 0.5, 2, 2.2])  # as they came
    arriving.put(None)
    frames.close()
    assert capture.release.called


def test_a_camera_that_goes_away_leaves_what_was_written(plug_in, run, bgr_face, capsys):
    plug_in(every(0.2, [bgr_face] * 4))
    assert run() == 0
    out, err = capsys.readouterr()
    assert "camera-0 frame 0 (0.00 s): face 1 box" in out and "has gone" in err
    records = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert {record["face"] for record in records} == {1}
    assert [record["frame"] for record in records] == list(range(len(records)))
    frames = list(read_files([COPY]))
    assert os.listdir("out") == [COPY.name] and frames[0].image.shape == bgr_face.shape
    assert len(frames) / 20 == pytest.approx(records[-1]["time"], abs=0.1)


def test_ctrl_c_ends_a_camera_as_the_end_of_a_video_does(plug_in, run, bgr_face):
    """Frames are answered one by one, so that the first is in the copy before there is another."""
    before, answered = signal.getsignal(signal.SIGINT), []

    def pictures():
        yield bgr_face
        deadline = time.monotonic() + 10
        while not COPY.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        answered.append(COPY.exists())
        os.kill(os.getpid(), signal.SIGINT)
        yield from every(0.1, itertools.repeat(bgr_face))

    plug_in(pictures())
    assert run() == 0 and answered == [True]
    assert signal.getsignal(signal.SIGINT) is before
    assert next(read_files([COPY])).image is not None


def test_an_error_elsewhere_ends_the_program_though_the_camera_goes_on():
    code = """
import cv2, numpy as np
from unittest.mock import Mock
from utils.demo.camera import Camera
picture = np.zeros((9, 9, 3), np.uint8)
cv2.VideoCapture = lambda index: Mock(read=lambda: (True, picture), get=lambda name: 20.0)
frames = Camera("0").frames()
next(frames)
raise SystemExit(3)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=REPOSITORY, timeout=60).returncode == 3


def test_a_camera_that_is_not_there_or_gives_nothing_is_one_line(plug_in, run):
    capture = plug_in([])
    with pytest.raises(UserError, match="gives no picture"):
        run()
    capture.isOpened.return_value = False
    with pytest.raises(UserError, match="no such camera or stream"):
        run()


@pytest.mark.parametrize(
    ("keys", "visible"),
    [([-1, ord("q")], [1, 1]), ([-1, 27], [1, 1]), ([-1, -1], [1, 0])],
    ids=["q", "Esc", "closed by mouse"],
)
def test_a_window_shows_the_frames_until_it_is_closed(
    plug_in, run, bgr_face, monkeypatch, keys, visible
):
    shown, keys, visible = [], iter(keys), iter(visible)
    monkeypatch.setattr(cv2, "namedWindow", lambda *arguments: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *arguments: next(visible))
    plug_in(every(0.01, itertools.repeat(bgr_face)))
    assert run("--show") == 0
    assert len(shown) == 2 and shown[0].shape == bgr_face.shape
    # Beside the face the colours are in OpenCV's order again.
    np.testing.assert_array_equal(shown[0][:10, :10], bgr_face[:10, :10])


def test_an_opencv_without_windows_names_the_package_that_has_them(monkeypatch):
    def missing(*arguments):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", missing)
    with pytest.raises(UserError, match="pip install 'opencv-python<5'"):
        open_window("camera")


# ---- tracking ------------------------------------------------------------------------------------


def face(x, value=0.5, number=None):
    return Prediction((x, 10, 40, 40), {"happy": value, "sad": 1 - value}, number=number)


def test_faces_keep_their_numbers_while_they_move_hide_and_others_come():
    tracker = Tracker(0)
    rows = [[0, 100], [8, 90], [85], [5, 20, 80], [10, 78, 300]]
    numbers = [
        [f.number for f in tracker([face(x) for x in row], 0.1 * i)] for i, row in enumerate(rows)
    ]
    # The nearest one keeps the number.
    assert numbers == [[1, 2], [1, 2], [2], [1, 3, 2], [1, 2, 4]]
    assert [f.number for f in tracker([face(10)], 9.0)] == [5]  # too long ago


def test_probabilities_are_averaged_over_the_time_between_the_frames():
    tracker = Tracker(0.5)
    values = [tracker([face(0, v)], t) for t, v in ((0, 0.0), (0.1, 1.0), (0.4, 1.0), (3.0, 0.2))]
    first, second, third, later = (row[0].probabilities for row in values)
    assert second["happy"] == pytest.approx(1 - math.exp(-0.1 / 0.5))
    assert third["happy"] == pytest.approx(1 - math.exp(-0.4 / 0.5))  # of any frame rate
    assert sum(third.values()) == pytest.approx(1)
    assert later["happy"] == 0.2  # a new face


def test_smoothing_can_be_turned_off():
    tracker = Tracker(0)
    for seconds, value in ((0, 0.1), (0.1, 0.9)):
        assert tracker([face(0, value)], seconds) == [face(0, value, number=1)]
