"""Results of the demo: printed lines, JSON lines, and annotated copies."""

import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from itertools import chain, groupby
from pathlib import Path

from PIL import Image

from utils.data.images import has_suffix, save_picture, unique_names
from utils.demo.annotate import annotate
from utils.demo.camera import open_window, show
from utils.demo.detect import Detector
from utils.demo.predictor import Prediction
from utils.demo.track import Tracker
from utils.demo.video import VIDEO_SUFFIXES, Frame, VideoWriter
from utils.errors import UserError, one_line, writing
from utils.progress import print_above

MAX_NAME = 115  # bytes of a name that a copy's name keeps; it may join a folder's and a file's

Result = tuple[Frame, list[Prediction]]


class Reporter:
    """Prints and writes the faces of photos, videos or a camera.

    Args:
        files: those to be read, or only the name of a camera.
        args: the flags of demo.py, of which it takes top, output, json, smooth, camera and show.

    Raises:
        UserError: results cannot be written, or would overwrite a file that is read.
    """

    def __init__(self, files: Sequence[Path], args: Namespace):
        self.args = args
        self.num_files = len(files)
        self.copies = self._name_copies(files) if args.output else {}
        json_file = args.json or os.devnull
        read = set(map(os.path.realpath, files))
        for path in (*self.copies.values(), json_file):
            if os.path.realpath(path) in read:
                raise UserError(f"{path}: is to be read, and would be overwritten; write elsewhere")
        if args.output:
            with writing(args.output):
                os.makedirs(args.output, exist_ok=True)
        if args.show:
            open_window(str(files[0]))
        with writing(json_file):
            self.json = open(json_file, "w", encoding="utf-8")

    def _name_copies(self, files: Sequence[Path]) -> dict[Path, Path]:
        """Name the annotated copy of each file: no two names are equal, and none is too long."""
        short = [Path(_cut(file.absolute().parent.name), f"{_cut(file.stem)}.x") for file in files]
        copies = {}
        for file, name in zip(files, unique_names(short), strict=True):
            if self.args.camera is not None or has_suffix(file.name, VIDEO_SUFFIXES):
                suffix = ".mp4"
            else:
                suffix = ".jpg" if file.suffix.lower() in (".jpg", ".jpeg", ".jfif") else ".png"
            copies[file] = Path(self.args.output, f"{name}_emotions{suffix}")
        return copies

    def close(self) -> None:
        with writing(self.json.name):
            self.json.close()

    def report(self, results: Iterable[Result], detector: Detector | None) -> bool:
        """Report frames in order, file by file, and return whether there is any face.

        Args:
            detector: that searched them, if any.

        Raises:
            UserError: results cannot be written, or no file can be read.
        """
        found, num_errors = False, 0
        with closing(self):
            for path, group in groupby(results, key=lambda result: result[0].path):
                of_file = iter(group)
                frame, faces = next(of_file)
                if frame.error is not None:
                    num_errors += 1
                    self._write_json({"file": str(path), "error": frame.error})
                    if self.num_files == 1:
                        raise UserError(frame.error)
                    print(f"skipped: {frame.error}", file=sys.stderr)
                    continue
                if frame.index is None:
                    self._report_photo(frame, faces, detector)
                    num_faces = len(faces)
                else:
                    num_faces = self._report_video(frame, chain([(frame, faces)], of_file))
                if num_faces == 0:
                    self._write_json({"file": str(path), "faces": 0})
                found = found or num_faces > 0
                if self.args.show:
                    break  # its window has been closed, but the camera would go on
        if num_errors == self.num_files:
            raise UserError(f"--image: none of {self.num_files} files can be read")
        return found

    def _report_photo(
        self, photo: Frame, faces: list[Prediction], detector: Detector | None
    ) -> None:
        self._report_faces(photo, faces)
        if not faces:
            searched = f"searched down to {detector.min_face(photo.image)} pixels"
            _print(f"{photo.path}: no face found ({searched}; if it is all face: --whole_image)")
        elif self.copies:
            picture = annotate(photo.image, faces, enlarge=True)
            save_picture(Image.fromarray(picture), self.copies[photo.path], quality=95)

    def _report_video(self, first: Frame, results: Iterable[Result]) -> int:
        """Report the frames of a video or camera, and return the number of faces."""
        path, copy = first.path, nullcontext()
        if self.copies:
            copy = closing(VideoWriter(self.copies[path], first.fps, first.image.shape[1::-1]))
        tracker, labels, num_frames = Tracker(self.args.smooth), Counter(), 0
        with copy as writer:
            for frame, faces in results:
                faces = tracker(faces, frame.seconds)
                num_frames += 1
                labels.update(face.label for face in faces)
                self._report_faces(frame, faces)
                if writer or self.args.show:
                    # Not enlarged, so that the boxes in the JSON file fit the copy.
                    picture = annotate(frame.image, faces, enlarge=False)
                if writer:
                    writer.write(picture, frame.seconds)
                if self.args.show and not show(str(path), picture):
                    break
        count = labels.total()
        shares = (f"{label} {100 * n / count:.0f} %" for label, n in labels.most_common())
        _print(f"{path}: {num_frames} frames, {count or 'no'} faces  {', '.join(shares)}")
        return count

    def _report_faces(self, frame: Frame, faces: list[Prediction]) -> None:
        """Print a line and write a JSON object for each face of a frame."""
        where, record = str(frame.path), {"file": str(frame.path)}
        if frame.index is not None:
            where += f" frame {frame.index} ({frame.seconds:.2f} s)"
            record |= {"frame": frame.index, "time": round(frame.seconds, 3)}
        for i, face in enumerate(faces, start=1):
            classes = Counter(face.probabilities).most_common(self.args.top)
            shares = ", ".join(f"{name}  {100 * p:.1f} %" for name, p in classes)
            number = face.number or i
            _print(f"{where}: face {number} box {list(face.box)}  emotion label: {shares}")
            if frame.index is not None:
                record["face"] = number
            record |= {
                "box": list(face.box),
                "label": face.label,
                "probability": round(face.probabilities[face.label], 6),
                "probabilities": {name: round(p, 6) for name, p in face.probabilities.items()},
            }
            if face.score is not None:
                record["detector_score"] = round(face.score, 4)
            self._write_json(record)

    def _write_json(self, record: dict) -> None:
        with writing(self.json.name):
            print(json.dumps(record), file=self.json, flush=True)


def _cut(name: str) -> str:
    return os.fsencode(name)[:MAX_NAME].decode(errors="ignore")


def _print(text: str) -> None:
    print_above(one_line(text).rstrip())
