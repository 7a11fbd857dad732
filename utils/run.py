"""A run's surroundings: device, precision, seed, folder, configuration, and its network."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import FileLock
from torch import nn

from utils import checkpoint, labels, resume
from utils.cli import MSCELEB, NOT_OF_THE_TRAINING
from utils.device import device_name, resolve_device, resolve_precision
from utils.distributed import ALONE, World
from utils.errors import UserError
from utils.face_data import FaceData
from utils.outputs import check_folder
from utils.places import default_folder
from utils.seed import seed_everything

MSCELEB_URL = "https://drive.google.com/file/d/1u2NtY-5DVlTunfN4yxfxys5n8uh7sc3n/view?usp=sharing"


@dataclass(frozen=True)
class Run:
    """What a run knows of its surroundings."""

    args: argparse.Namespace
    dataset: str
    class_names: tuple[str, ...]
    device: torch.device
    autocast: torch.dtype | None  # bf16, or None for plain float32
    output_dir: Path
    world: World = ALONE
    data_fingerprint: str = ""
    resumed_from: Path | None = None
    resumed: dict[str, Any] | None = None  # the content of that checkpoint
    lock: FileLock | None = None  # of output_dir, for a run that writes there all the time

    @property
    def title(self) -> str:
        return labels.title(self.dataset, toy=self.args.toy)

    @property
    def precision(self) -> str:
        return "fp32" if self.autocast is None else "bf16"

    @property
    def config(self) -> dict[str, Any]:
        """Every flag of the training, resolved, in plain types; what checkpoints hold."""
        flags = {k: v for k, v in vars(self.args).items() if k not in NOT_OF_THE_TRAINING}
        return {**flags, "device": str(self.device), "precision": self.precision}

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        self.world.say(text)


def set_up(
    args: argparse.Namespace, data: FaceData, world: World, output_dir: Path | None = None
) -> Run:
    """Resolve folder, device and precision, find what --resume goes on from, seed everything.
    Nothing is written yet.

    Args:
        output_dir: where --output_dir is not given, in place of the data set's own below models/.

    Raises:
        UserError: a device that is not there, a folder that holds another run, a run that cannot
            go on with these flags or data.
    """
    if args.output_dir is None:
        args.output_dir = str(output_dir or default_folder(data.run_name, toy=args.toy))
    folder, fingerprint = Path(args.output_dir), data.fingerprint()
    check_folder(folder)
    path, content, lock = None, None, None
    if not args.evaluate:
        lock = resume.lock_of(folder)
        if world.is_main and os.path.isdir(folder):  # before another run's last step is read
            resume.hold(lock, folder)
        path = resume.find(args, folder, world)
        content = None if path is None else resume.read(path, args, fingerprint)
    device = resolve_device(args.device)
    autocast = resolve_precision(args.precision, device)
    seed_everything(args.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not args.deterministic
        if autocast is None:  # plain float32, where cuDNN's default would round to TF32
            torch.backends.cudnn.allow_tf32 = False
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Run(
        args=args,
        dataset=data.name,
        class_names=data.class_names,
        device=device,
        autocast=autocast,
        output_dir=folder,
        world=world,
        data_fingerprint=fingerprint,
        resumed_from=path,
        resumed=content,
        lock=lock,
    )


def report(run: Run, model: torch.nn.Module) -> None:
    """Print the configuration."""
    parameters = sum(p.numel() for p in model.parameters())
    where = device_name(run.device)
    if run.world.size > 1:
        where = f"{run.world.size} processes, each on {where},"
    flags = "  ".join(f"{key}={value}" for key, value in run.config.items())
    run.say(
        f"DAN, {parameters:,} parameters, {len(run.class_names)} classes, on {where} "
        f"in {run.precision}, torch {torch.__version__}\n{flags}"
    )


def read_pretrained(name: str) -> dict[str, Any] | None:
    """`--pretrained`: the content of a weights file, torchvision's ImageNet weights, or None.

    Raises:
        UserError: no such file, not a weights file, or no network to download from.
    """
    if name == "none":
        return None
    if name == "imagenet":
        url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
        try:
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except OSError as error:  # urllib's errors are OSErrors
            raise UserError(f"--pretrained imagenet: cannot download {url} ({error})") from None
    if not os.path.exists(name):
        where = f"; the MS-Celeb-1M weights are at {MSCELEB_URL}" if name == MSCELEB else ""
        raise UserError(f"{name}: no such weights{where}; or start without: --pretrained none")
    return checkpoint.load(name)


def build(run: Run, network: type[nn.Module], loss: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """DAN with its pre-trained backbone, and its losses, as the flags say, on the device.

    Raises:
        UserError: weights that are not there, or not a ResNet-18's; flags that do not fit.
    """
    args, num_class = run.args, len(run.class_names)
    if args.batch_size < 2:
        raise UserError("--batch_size 1: BatchNorm cannot train on one image; use 2 or more")
    if args.num_center is not None and args.num_center < num_class:
        raise UserError(f"--num_center {args.num_center}: there are {num_class} classes; use more")
    weights = None if run.resumed is not None else read_pretrained(args.pretrained)
    model = network(num_class=num_class, num_head=args.num_head)
    if weights is not None:
        try:
            model.load_backbone(weights)
        except ValueError as error:
            hint = "give an MS-Celeb or torchvision ResNet-18, or --pretrained none"
            raise UserError(f"{args.pretrained}: {error}; {hint}") from None
    criterion = loss(
        num_class=num_class,
        num_center=args.num_center,
        affinity_weight=args.affinity_weight,
        partition_weight=args.partition_weight,
        batch_mean=run.world.mean,
    )
    if run.world.size > 1 and run.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(run.device, memory_format=torch.channels_last)
    return model, criterion.to(run.device)
