"""Draws DAN's architecture: the way of a face, one head opened up, and where the losses attach.

python utils/draw_overview.py static/overview.png
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser
from utils.diagram import RADIUS, SMALL, Diagram
from utils.errors import UserError, exit_on_user_error
from utils.outputs import check_file, writing
from utils.plots import BLUE, GREEN, ORANGE, PALETTE, PINK
from utils.toy.drawing import ToyFace, draw_face

AMBER, SKY, GREY = PALETTE[4], PALETTE[5], "#595959"
WIDTH, HEIGHT = 11.5, 6.85  # inches
PIXELS = 1760  # of the width, twice what a README shows
LOSSES, WAY, HEAD = 6.34, 4.32, 1.42  # heights of the three rows
LOGITS = np.array([[0.1, 0.2, 0.05, 0.9, 0.35, 0.15, 0.1]]).T  # of somebody surprised


def draw_overview() -> Figure:
    """The drawing; shapes leave the batch out, and are those of 224x224 images."""
    diagram = Diagram(WIDTH, HEIGHT)
    face = draw_face("surprise", np.random.default_rng((0, 2)), 224)
    _draw_way(diagram, face)
    _draw_losses(diagram)
    _draw_zoom(diagram)
    _draw_spatial_attention(diagram, _where_features_are(face))
    _draw_channel_attention(diagram)
    return diagram.figure


def _draw_way(diagram: Diagram, face: ToyFace) -> None:
    """Face -> backbone -> features -> heads -> fusion -> classifier -> logits."""
    diagram.image((0.75, WAY), (1.1, 1.1), face.image)
    diagram.text((0.75, WAY - 0.72), "3×224×224", points=SMALL)
    diagram.arrow((1.34, WAY), (1.65, WAY))
    diagram.box((2.18, WAY), (1.06, 0.9), "ResNet-18\nbackbone", BLUE)
    diagram.arrow((2.71, WAY), (3.02, WAY))
    diagram.cuboid((3.42, WAY), (0.45, 0.55), 0.35, BLUE)
    diagram.text((3.42, WAY - 0.54), "features", points=SMALL)
    diagram.text((3.42, WAY - 0.74), "512×7×7", points=SMALL)

    heights = [WAY + offset for offset in (0.72, 0.24, -0.72)]
    fork, join = 4.1, 6.1
    diagram.arrow((3.82, WAY), (fork, WAY), head=False)
    diagram.arrow((fork, heights[0]), (fork, heights[-1]), head=False)
    for name, y in zip(("head 0", "head 1", "head K−1"), heights, strict=True):
        diagram.arrow((fork, y), (4.4, y))
        diagram.box((4.95, y), (1.1, 0.36), name, SKY)
        diagram.arrow((5.5, y), (join, y), head=False)
        diagram.text((5.79, y + 0.14), "512", points=SMALL)
    diagram.text((4.95, WAY - 0.24), "⋮", points=14)
    diagram.arrow((join, heights[0]), (join, heights[-1]), head=False)
    diagram.arrow((join, WAY), (6.8, WAY))
    diagram.text((6.42, WAY + 0.15), "K×512", points=SMALL)

    diagram.box((7.34, WAY), (1.08, 0.9), "log-softmax\nover the\nK heads", GREEN)
    diagram.arrow((7.88, WAY), (8.8 - RADIUS, WAY))
    diagram.text((8.26, WAY - 0.15), "K×512", points=SMALL)
    diagram.operator((8.8, WAY), "+")
    diagram.text((8.8, WAY + 0.47), "sum over\nthe heads", points=SMALL)
    diagram.arrow((8.8 + RADIUS, WAY), (9.45, WAY))
    diagram.text((9.18, WAY + 0.15), "512", points=SMALL)
    diagram.box((9.98, WAY), (1.06, 0.9), "Linear\n512 → C\nBatchNorm", AMBER)
    diagram.arrow((10.51, WAY), (10.92, WAY))
    diagram.text((10.7, WAY + 0.15), "C", points=SMALL)
    diagram.cells((11.02, WAY), (0.17, 1.0), LOGITS, AMBER)
    diagram.text((11.02, WAY - 0.66), "logits", points=SMALL)
    sizes = "K = 4 heads,  C = 7 or 8 classes"
    diagram.text((8.55, WAY - 0.72), sizes, points=SMALL, colour=GREY)


def _draw_losses(diagram: Diagram) -> None:
    """The three terms, each above what it is computed from."""
    diagram.text((1.05, LOSSES), "training loss  =", bold=True)
    terms = (
        (3.42, 2.75, "affinity loss", "$|g − c_y|^2$ / variance of the centres"),
        (7.1, 2.75, "partition loss", "log(1 + K / variance of the heads)"),
        (10.27, 2.2, "cross-entropy", "logits against the label $y$"),
    )
    for x, width, name, formula in terms:
        diagram.panel((x, LOSSES), (width, 0.72), ORANGE, share=0.2, z=3)
        diagram.text((x, LOSSES + 0.1), name, bold=True, va="baseline")
        diagram.text((x, LOSSES - 0.2), formula, points=SMALL, va="baseline")
    for x in (5.26, 8.82):
        diagram.text((x, LOSSES), "+", bold=True, points=14)

    below = LOSSES - 0.36
    diagram.arrow((3.42, WAY + 0.4), (3.42, WAY + 0.72), colour=ORANGE, dashed=True)
    diagram.box((3.42, WAY + 0.9), (1.2, 0.36), "average pool", ORANGE, share=0.2, points=SMALL)
    diagram.arrow((3.42, WAY + 1.08), (3.42, below), colour=ORANGE, dashed=True)
    diagram.text((3.55, WAY + 1.34), "$g$: 512", points=SMALL, ha="left")
    diagram.arrow((8.26, WAY + 0.03), (8.26, below), colour=ORANGE, dashed=True)
    diagram.arrow((11.02, WAY + 0.53), (11.02, below), colour=ORANGE, dashed=True)


def _draw_zoom(diagram: Diagram) -> None:
    """The frame of the opened head, spread out from the last of the heads."""
    bottom, top, middle = 0.14, 3.04, WIDTH / 2
    diagram.panel((middle, (bottom + top) / 2), (WIDTH - 0.3, top - bottom), SKY, share=0.12)
    for side in (-1, 1):
        corner = (middle + side * (WIDTH / 2 - 0.2), top)
        diagram.arrow((4.95 + side * 0.55, WAY - 0.9), corner, colour=SKY, dashed=True, head=False)
    diagram.text((0.35, top - 0.2), "Inside each head", bold=True, ha="left")
    note = "BN is BatchNorm"
    diagram.text((WIDTH - 0.35, top - 0.2), note, points=SMALL, colour=GREY, ha="right")


def _draw_spatial_attention(diagram: Diagram, attended: np.ndarray) -> None:
    """Features -> the same, multiplied by a map of weights."""
    diagram.panel((3.92, HEAD + 0.03), (7.1, 2.3), BLUE, share=0.06)
    diagram.text((3.92, HEAD + 0.96), "spatial attention", bold=True, va="baseline")
    diagram.arrow((0.15, HEAD), (1.18, HEAD))
    diagram.text((0.8, HEAD + 0.15), "512×7×7", points=SMALL)
    diagram.box((1.6, HEAD), (0.84, 0.74), "conv 1×1\n512 → 256\nBN", BLUE, points=SMALL)
    fork, join = 2.78, 4.45
    diagram.arrow((2.02, HEAD), (fork, HEAD), head=False)
    diagram.text((2.4, HEAD + 0.15), "256×7×7", points=SMALL)
    diagram.arrow((fork, HEAD + 0.59), (fork, HEAD - 0.59), head=False)
    for kernel, offset in (("3×3", 0.59), ("1×3", 0), ("3×1", -0.59)):
        y, inwards = HEAD + offset, np.sign(offset)
        diagram.arrow((fork, y), (3.02, y))
        text = f"conv {kernel}, BN\n256 → 512"
        diagram.box((3.58, y), (1.12, 0.47), text, BLUE, points=SMALL)
        if offset:
            diagram.arrow((4.14, y), (join, y), (join, HEAD + inwards * RADIUS))
        else:
            diagram.arrow((4.14, y), (join - RADIUS, y))
    diagram.operator((join, HEAD), "+")
    diagram.arrow((join + RADIUS, HEAD), (5.33, HEAD))
    diagram.text((4.96, HEAD + 0.15), "512×7×7", points=SMALL)
    diagram.box((5.72, HEAD), (0.78, 0.74), "ReLU,\nsum over\nchannels", BLUE, points=SMALL)
    diagram.arrow((6.11, HEAD), (6.31, HEAD))
    diagram.cells((6.53, HEAD), (0.45, 0.45), attended, BLUE)
    diagram.text((6.53, HEAD - 0.37), "1×7×7", points=SMALL)
    product = 7.1
    diagram.arrow((6.76, HEAD), (product - RADIUS, HEAD))
    diagram.arrow((0.45, HEAD), (0.45, 0.44), (product, 0.44), (product, HEAD - RADIUS))
    diagram.operator((product, HEAD), "x")
    diagram.text((product - 0.03, HEAD + 0.31), "512×7×7", points=SMALL)
    diagram.arrow((product + RADIUS, HEAD), (7.77, HEAD))


def _draw_channel_attention(diagram: Diagram) -> None:
    """Spatially weighted features -> their means, multiplied by a weight a channel."""
    diagram.panel((9.42, HEAD + 0.03), (3.6, 2.3), PINK, share=0.1)
    diagram.text((9.42, HEAD + 0.96), "channel attention", bold=True, va="baseline")
    diagram.box((8.12, HEAD), (0.7, 0.74), "average\npool", PINK, points=SMALL)
    diagram.arrow((8.47, HEAD), (8.95, HEAD))
    diagram.text((8.69, HEAD + 0.15), "512", points=SMALL)
    diagram.box((9.35, HEAD), (0.8, 0.74), "Linear\n512 → 32\nBN, ReLU", PINK, points=SMALL)
    diagram.arrow((9.75, HEAD), (9.93, HEAD))
    diagram.box((10.31, HEAD), (0.76, 0.74), "Linear\n32 → 512\nsigmoid", PINK, points=SMALL)
    product = 11.0
    diagram.arrow((10.69, HEAD), (product - RADIUS, HEAD))
    diagram.arrow((8.69, HEAD), (8.69, 0.72), (product, 0.72), (product, HEAD - RADIUS))
    diagram.operator((product, HEAD), "x")
    diagram.text((product, HEAD + 0.3), "512", points=SMALL)
    diagram.arrow((product + RADIUS, HEAD), (WIDTH - 0.15, HEAD))


def _where_features_are(face: ToyFace) -> np.ndarray:
    """(7, 7) in [0, 1]: how much of each position are brows, eyes and mouth."""
    share = face.features.reshape(7, 32, 7, 32).mean(axis=(1, 3))
    return share / share.max()


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("output", metavar="FILE", help="picture to write: .png, .svg, .pdf")
    args = parser.parse_args()
    with exit_on_user_error():
        check_file(args.output)
        if not args.output.lower().endswith((".png", ".svg", ".pdf")):
            raise UserError(f"{args.output}: no picture's name; let it end in .png, .svg or .pdf")
        with writing(args.output):
            draw_overview().savefig(args.output, dpi=PIXELS / WIDTH)
        print(f"{args.output}: the architecture")


if __name__ == "__main__":
    main()
