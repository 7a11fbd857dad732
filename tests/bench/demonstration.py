"""The demo on photos and a video of a face that matplotlib contains: as a whole, and its parts."""

import os
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

import demo
from networks.dan import DAN
from tests.bench.measuring import Table
from tests.bench.pipelines import SIZE, Setup
from utils.checkpoint import read_trained
from utils.data.images import save_picture
from utils.demo.annotate import annotate
from utils.demo.predictor import Predictor
from utils.demo.video import VideoWriter, read_files
from utils.export_onnx import export
from utils.labels import RAFDB

COUNT = 64  # photos of 512x600, frames of 640x480


def write_networks(folder: Path) -> dict[str, Path]:
    """An untrained network as a checkpoint and as an ONNX file, by the name of what runs it."""
    paths = {"PyTorch": folder / "best.pth", "ONNX Runtime": folder / "best.onnx"}
    about = {"class_names": list(RAFDB), "dataset": "RAF-DB", "config": {"image_size": SIZE}}
    state = DAN(num_class=len(RAFDB)).state_dict()
    torch.save({"model_state_dict": state, **about}, paths["PyTorch"])
    paths["ONNX Runtime"].write_bytes(export(read_trained(paths["PyTorch"])))
    return paths


def measure_demo(setup: Setup, table: Table, folder: Path, networks: dict[str, Path]) -> None:
    """On the CPU, whatever the benchmark's device."""
    photo = Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"))
    photos = [folder / f"photo{i}.jpg" for i in range(COUNT)]
    for path in photos:
        photo.save(path, quality=90)
    frame, frames = Image.new("RGB", (640, 480), "grey"), []
    for i in range(COUNT):
        frame.paste(photo.resize((410, 480)), (i, 0))
        frames.append(np.array(frame))
    write_video(folder / "clip.mp4", frames)
    predictors = {name: Predictor(path, "cpu") for name, path in networks.items()}
    inputs = {f"{COUNT} photos": photos, f"a video of {COUNT} frames": [folder / "clip.mp4"]}
    for what, files in inputs.items():
        calls = {
            f"demo, {what}, {name}": partial(run_demo, path, files, folder / "out")
            for name, path in networks.items()
        }
        calls |= parts(predictors, files, folder)
        for name, seconds in zip(calls, setup.watch.medians(*calls.values()), strict=True):
            table.rates(name, COUNT, None, seconds)


def run_demo(checkpoint: Path, files: list[Path], output: Path) -> None:
    flags = ["--device", "cpu", "--output", str(output), "--checkpoint", str(checkpoint)]
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        demo.main([*flags, "--image", *map(str, files)])


def parts(predictors: dict[str, Predictor], files: list[Path], folder: Path) -> dict[str, Callable]:
    """What the demo does, one after the other."""
    images = [frame.image for frame in read_files(files)]
    predictor = predictors["ONNX Runtime"]
    found = predictor(images)
    boxes = [face.box for faces in found for face in faces]
    faces = [image[y : y + h, x : x + w] for image, (x, y, w, h) in zip(images, boxes, strict=True)]
    is_video = len(files) == 1

    def draw_and_write() -> None:
        pairs = zip(images, found, strict=True)
        pictures = [annotate(*pair, enlarge=not is_video) for pair in pairs]
        if is_video:
            write_video(folder / "drawn.mp4", pictures)
        else:
            for picture in pictures:
                save_picture(Image.fromarray(picture), folder / "drawn.jpg", quality=95)

    return {
        "- decode": lambda: list(read_files(files)),
        f"- detect, {predictor.detector.name}": lambda: list(map(predictor.detector, images)),
        **{f"- classify, {name}": partial(p.classify, faces) for name, p in predictors.items()},
        "- draw and write": draw_and_write,
    }


def write_video(path: Path, pictures: list[np.ndarray]) -> None:
    with closing(VideoWriter(path, 25, pictures[0].shape[1::-1])) as writer:
        for i, picture in enumerate(pictures):
            writer.write(picture, i / 25)
