"""What was read in faces, as printed lines, JSON lines, and annotated pictures and videos."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.annotate import annotate
from utils.errors import UserError
from utils.faces import Face
from utils.outputs import JsonLines, write_picture
from utils.pictures import unique_names
from utils.video import VIDEO_SUFFIXES, VideoWriter
from utils.views import View

JPEG_SUFFIXES = (".jpg", ".jpeg")


def output_paths(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the annotated copy of each file goes; no two to the same place.

    Raises:
        UserError: one would overwrite an input.
    """
    inputs = {os.path.realpath(file) for file in files}
    paths = {}
    for file, name in zip(files, unique_names(files), strict=True):
        suffix = file.suffix.lower()
        if suffix not in VIDEO_SUFFIXES:
            suffix = ".jpg" if suffix in JPEG_SUFFIXES else ".png"
        paths[file] = folder / f"{name}_emotions{suffix}"
        if os.path.realpath(paths[file]) in inputs:
            raise UserError(f"{paths[file]}: would be overwritten; give another --output folder")
    return paths


class Findings:
    """Takes views with their probabilities in order, and reports them; to be closed at the end.

    Args:
        class_names: C names.
        top: how many classes a printed line names.
        outputs: where annotated copies go, by source; None for no copies.
        json: gets an object for each face.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        top: int = 1,
        outputs: dict[Path, Path] | None = None,
        json: JsonLines | None = None,
    ):
        self.class_names = class_names
        self.top = top
        self.outputs = outputs
        self.json = json
        self.num_read = 0  # files
        self.num_with_faces = 0
        self.source: Path | None = None  # the file that the last view was from
        self.latest: tuple[list[Face], np.ndarray] = ([], np.empty((0, len(class_names))))
        self.labels = Counter()  # of a video's faces so far
        self.frames = 0  # of a video, looked at so far
        self.writer: VideoWriter | None = None
        self.copies: list[Path] = []  # annotated ones that were written

    def add(self, view: View, probabilities: np.ndarray) -> None:
        """probabilities: (number of the view's faces, C)."""
        if view.source != self.source:
            self._finish_source()
            self.source = view.source
            self.num_read += 1
        if view.faces is not None:
            self.latest = view.faces, probabilities
            self.frames += view.frame is not None
            self._report(view, probabilities)
        if self.outputs is not None:
            self._draw(view, self.outputs[view.source])

    def close(self) -> None:
        self._finish_source()
        self.source = None

    def _report(self, view: View, probabilities: np.ndarray) -> None:
        where = str(view.source)
        if view.frame is not None:
            where += f" frame {view.frame} ({view.seconds:.2f} s)"
        elif not view.faces:
            self._say(view, f"{where}: no face found (if it is all face: --whole_image)")
        for i, (face, row) in enumerate(zip(view.faces, probabilities, strict=True)):
            self.labels[int(row.argmax())] += 1
            number = f" face {i + 1} of {len(view.faces)}" if len(view.faces) > 1 else ""
            self._say(view, f"{where}:{number} box {list(face.box)}  {self._answer(row)}")
            if self.json is not None:
                self.json.add(self._record(view, face, row))

    def _answer(self, row: np.ndarray) -> str:
        """emotion label: happy  93.1 %, and what is next likely."""
        best, *others = (
            f"{self.class_names[i]}  {100 * row[i]:.1f} %"
            for i in np.argsort(-row, kind="stable")[: self.top]
        )
        rest = f"  ({', '.join(others)})" if others else ""
        return f"emotion label: {best}{rest}"

    def _record(self, view: View, face: Face, row: np.ndarray) -> dict:
        record = {"file": str(view.source)}
        if view.frame is not None:
            record |= {"frame": view.frame, "time": round(view.seconds, 3)}
        record |= {
            "box": list(face.box),
            "label": self.class_names[row.argmax()],
            "probability": round(float(row.max()), 6),
            "probabilities": {
                name: round(float(value), 6)
                for name, value in zip(self.class_names, row, strict=True)
            },
        }
        if face.score is not None:
            record["detector_score"] = round(face.score, 4)
        return record

    def _draw(self, view: View, path: Path) -> None:
        faces, probabilities = self.latest  # a frame between two shows what the first of them has
        if view.frame is None and not faces:
            return
        picture = annotate(view.image, faces, probabilities, self.class_names)
        if view.frame is None:
            write_picture(Image.fromarray(picture), path, quality=95)
            self.copies.append(path)
            return
        if self.writer is None:
            self.writer = VideoWriter(path, view.fps, picture.shape[1::-1])
            self.copies.append(path)
        self.writer.write(picture)

    def _finish_source(self) -> None:
        """Sum up a video; count files with faces."""
        if self.source is not None and self.frames:
            faces = self.labels.total()
            shares = ", ".join(
                f"{self.class_names[label]} {100 * count / faces:.0f} %"
                for label, count in self.labels.most_common()
            )
            print(f"{self.source}: {self.frames} frames, {faces or 'no'} faces  {shares}".rstrip())
        self.num_with_faces += bool(self.labels)
        if self.writer is not None:
            self.writer.close()
        self.writer, self.frames = None, 0
        self.labels.clear()

    def _say(self, view: View, text: str) -> None:
        if view.frame is None:
            print(text, flush=True)
        else:  # above the progress bar
            from tqdm import tqdm

            tqdm.write(text)
