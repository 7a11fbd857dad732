"""The demo on photos and a video of a face that matplotlib contains: as a whole, and its parts."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

import demo
from networks.dan import DAN
from tests.bench.measuring import Table
from tests.bench.pipelines import SIZE, Setup
from utils.checkpoint import TrainedDAN, save
from utils.data.images import save_picture
from utils.demo.annotate import annotate
from utils.demo.predictor import Predictor
from utils.demo.video import VideoWriter, read_files
from utils.export_onnx import export, without_optimizer
from utils.labels import RAFDB

COUNT = 64  # photos of 512x600, frames of 640x480


def write_networks(folder: Path) -> dict[str, Path]:
    """An untrained network as a checkpoint and as an ONNX file, by the name of what runs it."""
    paths = {"PyTorch": folder / "best.pth", "ONNX Runtime": folder / "best.onnx"}
    trained = TrainedDAN(
        path=paths["PyTorch"],
        state_dict=DAN(num_class=7).state_dict(),
        class_names=RAFDB,
        network_flags={"num_head": 4},
        dataset="RAF-DB",
        image_size=SIZE,
        toy=False,
        config={},
        epoch=0,
    )
    save(trained.path, without_optimizer(trained))
    paths["ONNX Runtime"].write_bytes(export(trained))
    return paths


def measure_demo(setup: Setup, table: Table, folder: Path, networks: dict[str, Path]) -> None:
    """On the CPU, whatever the benchmark's device."""
    photo = Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"))
    photos = [folder / "photos" / f"{i}.jpg" for i in range(COUNT)]
    photos[0].parent.mkdir()
    for path in photos:
        photo.save(path, quality=90)
    clip = folder / "clip.mp4"
    writer = VideoWriter(clip, 25, (640, 480))
    for i in range(COUNT):
        writer.write(frame_of(photo, i), i / 25)
    writer.close()
    _measure(setup, table, folder, networks, f"{COUNT} photos", photos)
    _measure(setup, table, folder, networks, f"a video of {COUNT} frames", [clip])


def frame_of(photo: Image.Image, i: int) -> np.ndarray:
    frame = Image.new("RGB", (640, 480), "grey")
    frame.paste(photo.resize((410, 480)), (i % 64, 0))
    return np.asarray(frame)


def _measure(
    setup: Setup,
    table: Table,
    folder: Path,
    networks: dict[str, Path],
    what: str,
    files: list[Path],
) -> None:
    def whole(checkpoint: Path) -> None:
        flags = ["--device", "cpu", "--output", str(folder / "out"), "--checkpoint"]
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
            demo.main([*flags, str(checkpoint), "--image", *map(str, files)])

    predictors = {name: Predictor(path, "cpu") for name, path in networks.items()}
    images = [frame.image for frame in read_files(files, every=1, all_frames=False)]
    predictor = predictors["ONNX Runtime"]
    found = predictor(images)
    boxes = [face.box for faces in found for face in faces]
    faces = [image[y : y + h, x : x + w] for image, (x, y, w, h) in zip(images, boxes, strict=True)]
    video = files[0].suffix == ".mp4"
    calls: dict[str, Callable] = {
        f"demo, {what}, {name}": partial(whole, path) for name, path in networks.items()
    }
    calls["- decode"] = lambda: list(read_files(files, every=1, all_frames=False))
    calls[f"- detect, {predictor.detector.name}"] = lambda: list(map(predictor.detector, images))
    for name, each in predictors.items():
        calls[f"- classify, {name}"] = partial(each.classify, faces)
    calls["- draw and write"] = partial(_draw, folder, images, found, video)
    for name, seconds in zip(calls, setup.watch.medians(*calls.values()), strict=True):
        table.rates(name, len(images), None, seconds)


def _draw(folder: Path, images: list, found: list, video: bool) -> None:
    pictures = (
        annotate(image, faces, enlarge=not video)
        for image, faces in zip(images, found, strict=True)
    )
    if not video:
        for picture in pictures:
            save_picture(Image.fromarray(picture), folder / "drawn.jpg", quality=95)
        return
    writer = VideoWriter(folder / "drawn.mp4", 25, images[0].shape[1::-1])
    for i, picture in enumerate(pictures):
        writer.write(picture, i / 25)
    writer.close()
