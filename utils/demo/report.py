"""Results of the demo: printed lines, JSON lines, and annotated copies."""

import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.data.images import save_picture, unique_names
from utils.demo.annotate import annotate
from utils.demo.camera import open_window, show
from utils.demo.detect import Detector
from utils.demo.predictor import Prediction
from utils.demo.track import Tracker
from utils.demo.video import CODECS, VIDEO_SUFFIXES, Frame, VideoWriter
from utils.errors import UserError, one_line, writing

MAX_NAME = 115  # bytes of a name that a copy's name keeps; it may join two

Result = tuple[Frame, list[Prediction]]  # no faces if the frame was not searched


class Reporter:
    """Prints and writes the faces of photos, videos or a camera; close it at the end.

    Args:
        files: that are going to be read, or the name of a camera alone.
        args: the flags of demo.py, of which it takes top, output, json, smooth, camera and show.

    Raises:
        UserError: results cannot be written, or would overwrite a file that is read.
    """

    def __init__(self, files: Sequence[Path], args: Namespace):
        self.top, self.smooth, self.window = args.top, args.smooth, args.show
        self.live = args.camera is not None
        self.num_files = len(files)
        self.num_read = self.num_with_faces = self.num_copies = 0
        self.outputs = self._copies(files, Path(args.output)) if args.output else {}
        json_file = args.json or os.devnull
        read = set(map(os.path.realpath, files))
        for path in (*self.outputs.values(), json_file):
            if os.path.realpath(path) in read:
                raise UserError(f"{path}: is to be read, and would be overwritten; write elsewhere")
        if args.output:
            with writing(args.output):
                os.makedirs(args.output, exist_ok=True)
        if args.show:
            open_window(str(files[0]))
        with writing(json_file):
            self.json = open(json_file, "w", encoding="utf-8")

    def _copies(self, files: Sequence[Path], folder: Path) -> dict[Path, Path]:
        """Name the annotated copy of each file: no two names are equal, and none is too long."""
        short = [Path(_cut(file.absolute().parent.name), f"{_cut(file.stem)}.x") for file in files]
        paths = {}
        for file, name in zip(files, unique_names(short), strict=True):
            suffix = file.suffix.lower()
            if self.live or suffix in VIDEO_SUFFIXES:
                suffix = suffix if suffix in CODECS else ".mp4"
            else:
                suffix = ".jpg" if suffix in (".jpg", ".jpeg", ".jfif") else ".png"
            paths[file] = folder / f"{name}_emotions{suffix}"
        return paths

    def close(self) -> None:
        with writing(self.json.name):
            self.json.close()

    def report(self, results: Iterable[Result], detector: Detector | None) -> None:
        """Report frames in order, all of one file after those of another.

        Args:
            detector: that searched them, if any.

        Raises:
            UserError: results cannot be written, or the only file cannot be read.
        """
        for path, group in groupby(results, key=lambda result: result[0].path):
            frame, faces = next(group)
            if frame.error is not None:
                self._write_json({"file": str(path), "error": frame.error})
                if self.num_files == 1:
                    raise UserError(frame.error)
                print(f"skipped: {frame.error}", file=sys.stderr)
                continue
            if frame.index is None:
                found = self._report_photo(frame, faces, detector)
            else:
                rest = group  # noqa: B031, goes on after its first element
                found = self._report_video(path, chain([(frame, faces)], rest))
            self.num_read += 1
            self.num_with_faces += found
            if not found:
                self._write_json({"file": str(path), "faces": 0})
            if self.live:
                break  # the frames of a camera would not end

    def _report_photo(
        self, frame: Frame, faces: list[Prediction], detector: Detector | None
    ) -> bool:
        """Report a photo, and return whether it has faces."""
        if not faces:
            _print(
                f"{frame.path}: no face found (searched down to {detector.min_face(frame.image)} "
                "pixels; if it is all face: --whole_image)"
            )
            return False
        self._report_faces(frame, faces)
        if self.outputs:
            picture = annotate(frame.image, faces, enlarge=True)
            save_picture(Image.fromarray(picture), self.outputs[frame.path], quality=95)
            self.num_copies += 1
        return True

    def _report_video(self, path: Path, results: Iterable[Result]) -> bool:
        """Report the frames of a video or camera, and return whether they have faces."""
        tracker, labels, num_searched = Tracker(self.smooth), Counter(), 0
        shown: list[Prediction] = []  # kept in the frames up to the next one that is searched
        copy: VideoWriter | None = None
        try:
            for frame, faces in results:
                if frame.searched:
                    shown = tracker(faces, frame.seconds)
                    num_searched += 1
                    labels.update(face.label for face in shown)
                    self._report_faces(frame, shown)
                if self.outputs or self.window:
                    picture = annotate(frame.image, shown, enlarge=False)  # the JSON's boxes fit it
                if self.outputs:
                    if copy is None:
                        size = picture.shape[1::-1]
                        copy = VideoWriter(self.outputs[path], frame.fps, size)
                        self.num_copies += 1
                    copy.write(picture, frame.seconds)
                if self.window and not show(str(path), picture):
                    break
        finally:
            if copy is not None:
                copy.close()
        count = labels.total()
        shares = (f"{label} {100 * n / count:.0f} %" for label, n in labels.most_common())
        _print(f"{path}: {num_searched} frames, {count or 'no'} faces  {', '.join(shares)}")
        return count > 0

    def _report_faces(self, frame: Frame, faces: list[Prediction]) -> None:
        """Print a line and write a JSON object for each face of a frame."""
        where = str(frame.path)
        if frame.index is not None:
            where += f" frame {frame.index} ({frame.seconds:.2f} s)"
        for i, face in enumerate(faces):
            number = f" face {i + 1} of {len(faces)}" if len(faces) > 1 else ""
            if face.number is not None:
                number = f" face {face.number}"
            best, *others = (
                f"{name}  {100 * value:.1f} %"
                for name, value in Counter(face.probabilities).most_common(self.top)
            )
            more = f"  ({', '.join(others)})" if others else ""
            _print(f"{where}:{number} box {list(face.box)}  emotion label: {best}{more}")
            self._write_json(_record(frame, face))

    def _write_json(self, record: dict) -> None:
        with writing(self.json.name):
            print(json.dumps(record), file=self.json, flush=True)


def _cut(name: str) -> str:
    return os.fsencode(name)[:MAX_NAME].decode(errors="ignore")


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
