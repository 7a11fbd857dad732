"""Results of the demo: printed lines, JSON lines, and annotated copies."""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.data.images import save_picture, unique_names
from utils.demo.annotate import annotate
from utils.demo.camera import Window
from utils.demo.detect import Detector
from utils.demo.predictor import Prediction
from utils.demo.track import Tracker
from utils.demo.video import CODECS, VIDEO_SUFFIXES, Frame, VideoWriter
from utils.errors import UserError, one_line, writing

MAX_NAME = 115  # bytes of a name that a copy's name keeps; it may join two


class Reporter:
    """Takes frames with their faces in order, and reports them. A context manager.

    Args:
        files: that are going to be read, or the name of a camera alone.
        top: how many classes a printed line names.
        output: folder for annotated copies.
        json_file: gets a JSON object per face, and one per file without a face or unreadable.
        smooth: time constant in seconds for the probabilities of a face in a video.
        live: whether the frames are a camera's.
        show: whether to open a window for the frames.

    Attributes:
        window: shows the frames, if any.

    Raises:
        UserError: results cannot be written, or would overwrite a file that is read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        top: int,
        output: str | None,
        json_file: str | None,
        smooth: float,
        live: bool,
        show: bool,
    ):
        self.top = top
        self.smooth = smooth
        self.num_files = len(files)
        self.num_read = self.num_with_faces = 0
        self.num_copies = 0
        # Of the file that is being reported:
        self.last: Frame | None = None
        self.labels: Counter[str] = Counter()
        self.num_searched = 0
        self.faces: list[Prediction] = []  # kept in the frames up to the next one that is searched
        self.video: VideoWriter | None = None
        self.tracker = Tracker(smooth)

        self.outputs = output_paths(files, Path(output), live=live) if output else {}
        read = set(map(os.path.realpath, files))
        for path in [*self.outputs.values(), *([json_file] if json_file else [])]:
            if os.path.realpath(path) in read:
                raise UserError(f"{path}: is to be read, and would be overwritten; write elsewhere")
        if output:
            with writing(output):
                os.makedirs(output, exist_ok=True)
        self.window = Window(str(files[0])) if show else None
        self.json = None
        if json_file:
            with writing(json_file):
                self.json = open(json_file, "w", encoding="utf-8")

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish_file()
        finally:
            if self.video is not None:
                self.video.close()
            if self.json is not None:
                with writing(self.json.name):
                    self.json.close()

    def add(self, frame: Frame, faces: list[Prediction], detector: Detector | None) -> None:
        """Report a frame.

        Args:
            faces: empty if the frame was not searched.
            detector: that searched it, if any.

        Raises:
            UserError: results cannot be written, or the only file cannot be read.
        """
        if self.last is None or frame.path != self.last.path:
            self._finish_file()
        if frame.error is not None:
            self._write_json({"file": str(frame.path), "error": frame.error})
            if self.num_files == 1:
                raise UserError(frame.error)
            print(f"skipped: {frame.error}", file=sys.stderr)
            return
        self.last = frame
        if frame.searched:
            self.num_searched += 1
            if frame.index is not None:
                faces = self.tracker(faces, frame.seconds)
            self.faces = faces
            self.labels.update(face.label for face in faces)
            self._print_faces(frame, detector)
            for face in faces:
                self._write_json(_record(frame, face))
        if frame.index is not None:
            self._draw_frame(frame)
        elif self.outputs and self.faces:
            picture = annotate(frame.image, self.faces, enlarge=True)
            save_picture(Image.fromarray(picture), self.outputs[frame.path], quality=95)
            self.num_copies += 1

    def _print_faces(self, frame: Frame, detector: Detector | None) -> None:
        where = str(frame.path)
        if frame.index is not None:
            where += f" frame {frame.index} ({frame.seconds:.2f} s)"
        elif not self.faces:
            smallest = detector.min_face(frame.image)
            _print(
                f"{where}: no face found (searched down to {smallest} pixels; if it is all face: "
                "--whole_image)"
            )
        for i, face in enumerate(self.faces):
            number = f" face {i + 1} of {len(self.faces)}" if len(self.faces) > 1 else ""
            if face.number is not None:
                number = f" face {face.number}"
            best, *others = (
                f"{name}  {100 * value:.1f} %"
                for name, value in Counter(face.probabilities).most_common(self.top)
            )
            more = f"  ({', '.join(others)})" if others else ""
            _print(f"{where}:{number} box {list(face.box)}  emotion label: {best}{more}")

    def _draw_frame(self, frame: Frame) -> None:
        if not (self.outputs or self.window):
            return
        picture = annotate(frame.image, self.faces, enlarge=False)  # boxes in the JSON fit it
        if self.window is not None:
            self.window.show(picture)
        if self.outputs:
            if self.video is None:
                size = picture.shape[1::-1]
                self.video = VideoWriter(self.outputs[frame.path], frame.fps, size)
                self.num_copies += 1
            self.video.write(picture, frame.seconds)

    def _finish_file(self) -> None:
        """Count a file, summarize a video, and record a file without faces."""
        if self.last is None:
            return
        path, count = self.last.path, self.labels.total()
        self.num_read += 1
        self.num_with_faces += count > 0
        if self.last.index is not None:
            shares = ", ".join(
                f"{label} {100 * n / count:.0f} %" for label, n in self.labels.most_common()
            )
            _print(f"{path}: {self.num_searched} frames, {count or 'no'} faces  {shares}")
        if count == 0:
            self._write_json({"file": str(path), "faces": 0})
        if self.video is not None:
            self.video.close()
        self.last, self.num_searched, self.faces, self.video = None, 0, [], None
        self.tracker = Tracker(self.smooth)
        self.labels.clear()

    def _write_json(self, record: dict) -> None:
        if self.json is not None:
            with writing(self.json.name):
                print(json.dumps(record), file=self.json, flush=True)


def output_paths(files: Sequence[Path], folder: Path, *, live: bool) -> dict[Path, Path]:
    """Name the annotated copy of each file: no two names are equal, and none is too long."""
    short = [Path(_cut(file.absolute().parent.name), f"{_cut(file.stem)}.x") for file in files]
    paths = {}
    for file, name in zip(files, unique_names(short), strict=True):
        suffix = ".mp4" if live else file.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            suffix = suffix if suffix in CODECS else ".mp4"
        else:
            suffix = ".jpg" if suffix in (".jpg", ".jpeg", ".jfif") else ".png"
        paths[file] = folder / f"{name}_emotions{suffix}"
    return paths


def _cut(name: str) -> str:
    content = os.fsencode(name)
    return name if len(content) <= MAX_NAME else content[:MAX_NAME].decode(errors="ignore")


def _record(frame: Frame, face: Prediction) -> dict:
    record = {"file": str(frame.path)}
    if frame.index is not None:
        record |= {"frame": frame.index, "time": round(frame.seconds, 3), "face": face.number}
    record |= {
        "box": list(face.box),
        "label": face.label,
        "probability": round(face.probabilities[face.label], 6),
        "probabilities": {name: round(value, 6) for name, value in face.probabilities.items()},
    }
    if face.score is not None:
        record["detector_score"] = round(face.score, 4)
    return record


def _print(text: str) -> None:
    tqdm.write(one_line(text).rstrip())  # above a progress bar, if there is one
    sys.stdout.flush()
