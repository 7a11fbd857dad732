"""Export a trained DAN to ONNX, or without the state of its optimizer.

    python utils/export_onnx.py --checkpoint models/rafdb/best.pth
    python utils/export_onnx.py --checkpoint models/rafdb/best.pth --weights_only small.pth

The ONNX network takes cut-out faces as they are, "faces" (N, S, S, 3) uint8 RGB for any N, and
returns "probabilities" (N, C). Its metadata hold class_names, image_size and toy as JSON, and
dataset.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import checkpoint, cli
from utils.checkpoint import TrainedDAN, read_trained
from utils.data.transforms import IMAGENET_MEAN, IMAGENET_STD, preprocess
from utils.errors import UserError, exit_on_user_error
from utils.labels import AFFECTNET
from utils.toy.render import draw_face


class FacesToProbabilities(nn.Module):
    """A network with normalisation before and softmax after it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> Tensor:
        """faces: (N, S, S, 3) uint8 RGB -> (N, C)."""
        images = (faces.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        return self.network(images.permute(0, 3, 1, 2)).logits.softmax(dim=1)


def export(trained: TrainedDAN) -> bytes:
    """Convert a trained network to the content of an ONNX file.

    Raises:
        UserError: a package is missing or too old, or ONNX Runtime's predictions differ from
            PyTorch's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch's exporter needs it
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install {error.name}") from None
    if torch.__version__ < "2.7":  # whose exporter does not fit today's onnxscript
        raise UserError(f"the export needs PyTorch 2.7 or newer, not {torch.__version__}")
    size = trained.image_size
    program = torch.onnx.export(
        FacesToProbabilities(trained.inference_network()).eval(),
        (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
        dynamo=True,
        dynamic_shapes={"faces": {0: torch.export.Dim("N")}},
        output_names=["probabilities"],
        opset_version=18,
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's, with paths and lines of source code
    about = {"class_names": trained.class_names, "image_size": size, "toy": trained.toy}
    about = {name: json.dumps(value) for name, value in about.items()}
    program.model.metadata_props.update(about, dataset=trained.dataset)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    verify(trained, session)
    return content


@torch.no_grad()
def verify(trained: TrainedDAN, session: Any) -> None:
    """Compare an ONNX Runtime session's predictions with those of the network as trained."""
    size = trained.image_size
    rng = np.random.default_rng(0)
    toy = [draw_face(name, rng, size) for name in AFFECTNET]
    faces = np.stack([*toy, *rng.integers(0, 256, (4, size, size, 3), dtype=np.uint8)])
    images = preprocess(torch.from_numpy(faces).permute(0, 3, 1, 2), size)
    expected = trained.network()(images).logits.softmax(dim=1)
    trained.check_predictions(expected)
    (probabilities,) = session.run(None, {"faces": faces})
    difference = np.abs(probabilities - expected.numpy()).max()
    if not difference <= 1e-4:
        raise UserError(
            f"{trained.path}: not exported, as ONNX Runtime's probabilities differ from "
            f"PyTorch's by up to {difference:.2g}; update torch, onnxscript and onnxruntime"
        )


def without_optimizer(trained: TrainedDAN) -> dict:
    """What all scripts read of a checkpoint, except to continue its run."""
    return {
        "iter": trained.epoch,
        "model_state_dict": trained.state_dict,
        "class_names": list(trained.class_names),
        "dataset": trained.dataset,
        "toy": trained.toy,
        "config": trained.config,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(usage="%(prog)s --checkpoint FILE [flags]", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True, help="a best.pth, or a released file")
    cli.add_dataset_flag(parser)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--output", metavar="FILE", help="ONNX file (default: best.onnx beside best.pth)")
    add("--weights_only", metavar="FILE", help="write a checkpoint without optimizer instead")
    args = parser.parse_args(argv)
    trained = read_trained(args.checkpoint, dataset=args.dataset)
    path = Path(args.weights_only or args.output or trained.path.with_suffix(".onnx"))
    if path.exists() and path.samefile(trained.path):
        raise UserError(f"{path}: is the checkpoint itself; give another file to write")
    if args.weights_only:
        checkpoint.save(path, without_optimizer(trained))
    else:
        content = export(trained)
        checkpoint.write_atomically(path, lambda file: file.write(content))
    print(f"{path}: {trained.title}, {trained.num_class} classes, {path.stat().st_size >> 20} MiB")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
