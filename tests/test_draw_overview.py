import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line
from PIL import Image
from torch import nn

from networks.dan import DAN
from tests.legibility import check_texts, extents
from utils.draw_overview import PIXELS, draw_overview

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = [sys.executable, str(REPOSITORY / "utils/draw_overview.py")]


@pytest.fixture(scope="module")
def figure():
    figure = draw_overview()
    figure.set_dpi(PIXELS / figure.get_figwidth())
    return figure


def test_texts_keep_clear_of_the_edge_and_of_each_other(figure):
    check_texts(figure)


def test_texts_are_inside_boxes_or_outside(figure):
    """With some air at the box's line."""
    boxes = [box.get_window_extent() for box in figure.findobj(FancyBboxPatch)]
    assert len(boxes) > 20
    found = extents(figure)
    for box in boxes:
        inner, outer = box.padded(-4), box.padded(1)
        for text, extent in found:
            inside = inner.containsx(extent.x0) and inner.containsx(extent.x1)
            inside = inside and inner.containsy(extent.y0) and inner.containsy(extent.y1)
            assert inside or not outer.overlaps(extent), text


def test_no_arrow_crosses_a_text(figure):
    arrows = figure.findobj(FancyArrowPatch)
    assert len(arrows) > 30
    found = extents(figure)
    for arrow in arrows:
        line = arrow.get_path().transformed(arrow.axes.transData)
        for part in map(Line, line.to_polygons(closed_only=False)):
            for text, extent in found:
                assert not part.intersects_bbox(extent, filled=False), text


def test_every_text_is_legible_where_a_readme_shows_it(figure):
    """880 pixels wide: letters of at least 10 pixels."""
    scale = 880 / PIXELS * figure.dpi / 72
    assert min(text.get_fontsize() for text, _ in extents(figure)) * scale >= 10


def test_the_drawing_is_of_the_network(figure):
    """Layers and shapes in the drawing are those of a head and a classifier that run."""
    model = DAN(num_class=7, num_head=4).eval()
    head = model.heads[0]
    layers, shapes = set(), {(1, 7, 7), (3, 224, 224)}

    def note(module, inputs, output):
        for x in (*inputs, *([output] if isinstance(output, torch.Tensor) else output)):
            shapes.add(tuple(x.shape[1:]))
        if isinstance(module, nn.Conv2d):
            kernel = "×".join(map(str, module.kernel_size))
            layers.add(f"conv {kernel} {module.in_channels} → {module.out_channels}")
        elif isinstance(module, nn.Linear):
            width = "C" if module is model.fc else module.out_features
            layers.add(f"Linear {module.in_features} → {width}")

    for module in (model, model.features, *head.modules(), model.fc):
        module.register_forward_hook(note)
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, 224, 224)).features
        assert head.sa.attention_map(features).shape[1:] == (1, 7, 7)
    assert {(7,), (4, 512), (512, 7, 7), (256, 7, 7), (512,)} <= shapes

    drawn_layers, drawn_shapes = set(), set()
    for text in (text.get_text() for text, _ in extents(figure)):
        if "→" in text:
            kind, widths = text.replace(", BN", "").split("\n")[:2]
            drawn_layers.add(f"{kind} {widths}")
        elif match := re.fullmatch(r"(?:features\n|\$g\$: )?([CK\d×]+)", text):
            numbers = match[1].replace("K", "4").replace("C", "7")
            drawn_shapes.add(tuple(map(int, numbers.split("×"))))
    assert drawn_layers == layers
    assert drawn_shapes <= shapes
    assert len(drawn_shapes) == 7


def test_the_script_writes_the_picture_from_anywhere(tmp_path):
    subprocess.run([*SCRIPT, "overview.png"], cwd=tmp_path, check=True)
    path = tmp_path / "overview.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.width == PIXELS


@pytest.mark.parametrize("name", ["missing/overview.png", "overview.nonsense", "folder.png"])
def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    failed = subprocess.run([*SCRIPT, name], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {name}: ") and failed.stderr.count("\n") == 1
