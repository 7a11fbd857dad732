"""Photos, folders and videos as one stream of pictures with the faces in them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.faces import Face, cut_out
from utils.images import read_rgb
from utils.video import VIDEO_SUFFIXES, VideoReader

# Pictures that wait for a batch to fill take at most this much memory.
MAX_BYTES = 128_000_000


@dataclass(frozen=True)
class View:
    """A photo, or a frame of a video; the frames that were not looked at have faces None."""

    source: Path
    faces: list[Face] | None
    cut_outs: np.ndarray  # (number of faces, size, size, 3) uint8
    image: np.ndarray | None  # (h, w, 3) uint8, where it is to be drawn on
    frame: int | None = None
    seconds: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Viewer:
    """Reads files and looks for faces.

    Args:
        find: (h, w, 3) uint8 RGB -> its faces.
        size: side of the cut-out faces in pixels.
        every: of a video, the first frame and each `every`-th after it are looked at.
        keep_images: whether views carry their pictures, and the frames in between come too.
    """

    find: Callable[[np.ndarray], list[Face]]
    size: int
    every: int = 1
    keep_images: bool = False

    def __call__(self, paths: Sequence[Path]) -> Iterator[View]:
        """Views in the order of the files; one that cannot be read is one line on stderr.

        Raises:
            UserError: the only file cannot be read.
        """
        for path in paths:
            try:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    yield from self._video(path)
                else:
                    yield self._look(path, read_rgb(path))
            except UserError as error:
                if len(paths) == 1:
                    raise
                print(f"skipped: {error}", file=sys.stderr)

    def _look(self, path: Path, image: np.ndarray, **frame) -> View:
        faces = self.find(image)
        cut_outs = np.empty((len(faces), self.size, self.size, 3), dtype=np.uint8)
        for i, face in enumerate(faces):
            cut_outs[i] = cut_out(image, face, self.size)
        return View(path, faces, cut_outs, image if self.keep_images else None, **frame)

    def _video(self, path: Path) -> Iterator[View]:
        from utils.progress import progress  # which photos do without

        video = VideoReader(path)
        none = np.empty((0, self.size, self.size, 3), dtype=np.uint8)
        bar = progress(total=video.num_frames, desc=path.name, unit="frame")
        try:
            for index, seconds, image in video.frames(1 if self.keep_images else self.every):
                bar.update(index + 1 - bar.n)
                frame = {"frame": index, "seconds": seconds, "fps": video.fps}
                if index % self.every == 0:
                    yield self._look(path, image, **frame)
                else:
                    yield View(path, None, none, image, **frame)
        finally:
            bar.close()
            video.close()


def in_batches(views: Iterable[View], batch_size: int) -> Iterator[list[View]]:
    """Views in their order, grouped so that each group but the last has at least `batch_size`
    faces, or as many pictures as memory is set aside for."""
    batch, faces, size = [], 0, 0
    for view in views:
        batch.append(view)
        faces += len(view.cut_outs)
        size += view.cut_outs.nbytes + (0 if view.image is None else view.image.nbytes)
        if faces >= batch_size or size >= MAX_BYTES:
            yield batch
            batch, faces, size = [], 0, 0
    if batch:
        yield batch
