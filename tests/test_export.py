"""Export to ONNX, the Predictor that runs such files, and checkpoints without optimizer."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tests.bench.yardstick import NORMALIZE
from tests.conftest import REPOSITORY, TinyDAN
from utils import checkpoint, export_onnx
from utils.checkpoint import read_trained
from utils.demo.predictor import Predictor
from utils.errors import UserError
from utils.export_onnx import export
from utils.labels import RAFDB

pytestmark = pytest.mark.skipif(torch.__version__ < "2.7", reason="too old for the export")


def main(*argv):
    export_onnx.main(list(map(str, argv)))


@pytest.fixture
def best(small_run, quick):
    """A run's best.pth, which is not to be changed."""
    return small_run / "best.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small_run):
    """The same as best.onnx."""
    path = tmp_path_factory.mktemp("exported") / "best.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "DAN", TinyDAN)
        main("--checkpoint", small_run / "best.pth", "--output", path)
    return path


@pytest.mark.parametrize("count", [1, 17])
def test_predictions_are_those_of_the_plain_network(best, exported, count):
    model = TinyDAN(num_class=7, num_head=2).eval()
    model.load_state_dict(torch.load(best, weights_only=True)["model_state_dict"])
    faces = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = NORMALIZE(torch.from_numpy(faces).permute(0, 3, 1, 2) / 255)
    with torch.no_grad():
        expected = model(images).logits.softmax(dim=1).numpy()
    predictor = Predictor(exported, detector=None)
    rows = [list(face.probabilities.values()) for face in predictor.classify(list(faces))]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert predictor.class_names == RAFDB and predictor.network.toy
    assert predictor.network.image_size == 32


def test_the_readmes_program_needs_onnx_runtime_alone(exported):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "onnxruntime" in block)
    code += "import sys\nassert 'torch' not in sys.modules"
    Image.new("RGB", (40, 50)).save(exported.with_name("face.jpg"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] in RAFDB


def test_the_file_tells_its_data_set_and_nothing_of_the_exporters_source(exported):
    model = onnx.load(exported)
    assert ("dataset", "RAF-DB") in [(entry.key, entry.value) for entry in model.metadata_props]
    assert "File " not in str(model.graph.node[0])  # of stack traces


def test_a_real_dan_gives_the_demo_the_same_answers_without_torch(checkpoint_file, photo, tmp_path):
    path = checkpoint_file(8, "best.pth", ours=True)
    main("--checkpoint", path, "--output", tmp_path / "best.onnx")
    code = "import sys, demo; demo.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    flags = "--detector haar --json o.jsonl --checkpoint best.onnx --image".split()
    command = [sys.executable, "-c", code, *flags, photo]
    subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, check=True)
    record = json.loads((tmp_path / "o.jsonl").read_text())
    (face,) = Predictor(path, "cpu", "haar")(Image.open(photo))
    assert tuple(record["box"]) == face.box
    assert record["probabilities"] == pytest.approx(face.probabilities, abs=1e-4)


def test_a_file_whose_predictions_differ_is_refused(best, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "IMAGENET_MEAN", (0.5, 0.4, 0.4))
    with pytest.raises(UserError, match=r"differ .* by up to 0\.\d"):
        main("--checkpoint", best, "--output", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_optimizer_is_read_as_the_original(best, tmp_path):
    small = tmp_path / "small.pth"
    main("--checkpoint", best, "--weights_only", small)
    content = torch.load(small, weights_only=True)
    assert "optimizer_state_dict" not in content and content["toy"] is True
    first, second = read_trained(best), read_trained(small)
    for name in ("class_names", "dataset", "toy", "image_size", "config", "epoch"):
        assert getattr(first, name) == getattr(second, name)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first.network()(images).logits, second.network()(images).logits)


def test_a_released_file_without_optimizer_keeps_its_class_order(checkpoint_file, tmp_path):
    small = tmp_path / "small.pth"
    flags = ["--weights_only", small, "--dataset", "RAF-DB"]
    main("--checkpoint", checkpoint_file(7, "unnamed.pth"), *flags)
    assert read_trained(small).class_names == RAFDB


@pytest.mark.parametrize("flag", ["--output", "--weights_only"])
def test_the_checkpoint_is_not_overwritten(best, flag):
    before = best.read_bytes()
    with pytest.raises(UserError, match="the checkpoint itself"):
        main("--checkpoint", best, flag, best)
    assert best.read_bytes() == before


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_package_missing_for_the_export_is_named(best, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}$"):
        export(read_trained(best))


def test_a_package_missing_for_the_predictor_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime$"):
        Predictor(exported)


@pytest.mark.parametrize("length", [0, 100, 30_000])
def test_a_damaged_onnx_file_is_refused(exported, tmp_path, length):
    path = tmp_path / "bad.onnx"
    path.write_bytes(exported.read_bytes()[:length] or b"text")
    with pytest.raises(UserError, match="not an ONNX file, or damaged"):
        Predictor(path)


def test_an_onnx_file_of_another_network_is_refused(tmp_path):
    relu = '<ir_version: 8, opset_import: ["": 18]> net (float[1] x) => (float[1] y) {y = Relu(x)}'
    onnx.save(onnx.parser.parse_model(relu), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="another network"):
        Predictor(tmp_path / "a.onnx")


@pytest.mark.parametrize("device", ["cuda:1", "gpu"])
def test_an_onnx_file_runs_on_the_cpu_only(exported, device):
    with pytest.raises(UserError, match=f"--device {device}: .onnx files run on the CPU"):
        Predictor(exported, device)
