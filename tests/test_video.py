import numpy as np
import pytest

from utils.errors import UserError
from utils.video import VIDEO_SUFFIXES, VideoReader, VideoWriter

SHADES = (20, 60, 100, 140, 180, 220)


def write(path, fps=10.0, size=(64, 48)):
    writer = VideoWriter(path, fps, size)
    for shade in SHADES:
        frame = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        frame[..., 0] = shade  # red alone
        writer.write(frame)
    writer.close()
    return path


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_what_is_written_can_be_read(tmp_path, suffix):
    video = VideoReader(write(tmp_path / f"clip{suffix}"))
    frames = list(video.frames())
    video.close()
    assert video.fps == pytest.approx(10)
    assert [index for index, _, _ in frames] == list(range(6))
    assert [seconds for _, seconds, _ in frames] == pytest.approx([0.1 * i for i in range(6)])
    for (_, _, image), shade in zip(frames, SHADES, strict=True):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        np.testing.assert_allclose(image.mean(axis=(0, 1)), [shade, 0, 0], atol=12)


def test_every_third_frame_keeps_index_and_time(tmp_path):
    video = VideoReader(write(tmp_path / "clip.avi"))
    frames = list(video.frames(step=3))
    video.close()
    assert [index for index, _, _ in frames] == [0, 3]
    assert frames[1][1] == pytest.approx(0.3)
    assert frames[1][2][..., 0].mean() == pytest.approx(SHADES[3], abs=12)


@pytest.mark.parametrize("content", [b"", b"this is no video", b"\0\0\0\x18ftypmp42" + bytes(200)])
def test_what_is_no_video_is_a_user_error(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a video"):
        VideoReader(path)


def test_a_missing_video_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        VideoReader(tmp_path / "clip.mp4")


def test_a_cut_video_gives_the_frames_before_the_cut(tmp_path):
    path = write(tmp_path / "clip.avi", size=(1280, 960))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    video = VideoReader(path)
    assert 0 < len(list(video.frames())) < len(SHADES)
    video.close()


def test_a_video_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4", 10.0, (64, 48))
