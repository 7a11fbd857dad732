"""What a network must show that has learned the toy faces."""

import json

import pytest
import torch

import rafdb
from networks.dan import DAN
from networks.fused import FusedDAN
from tests.grad_cam_meaning import measure
from utils.checkpoint import load
from utils.data import FaceLoader
from utils.engine import evaluate
from utils.readers import read_rafdb
from utils.trained import read_trained


@pytest.fixture(scope="module")
def learned(toy_run, clone):
    """The best network of the run, as it was trained, and the faces it has not seen."""
    trained = read_trained(toy_run / "best.pth")
    model = DAN(num_class=trained.num_class, num_head=trained.num_head)
    trained.load_into(model)
    model.eval().requires_grad_(False)
    return trained, model, read_rafdb(clone / trained.config["raf_path"]).val


def test_learns_people_it_has_not_seen(toy_run):
    """Chance is 14 %."""
    assert load(toy_run / "last.pth")["metrics"][-1]["val_accuracy"] >= 0.9


def test_says_that_it_knows_toy_faces_only(learned, toy_run):
    trained, _, _ = learned
    assert trained.toy and trained.config["image_size"] == rafdb.TOY["image_size"]


def test_evaluates_on_the_toy_test_images(learned, toy_run, run_in_clone):
    split = learned[2]
    out = run_in_clone("python rafdb.py --toy --evaluate --checkpoint models/toy-rafdb/best.pth")
    metrics = json.loads((toy_run / "best-evaluation" / "metrics.json").read_text())
    best = max(row["val_accuracy"] for row in load(toy_run / "last.pth")["metrics"])
    # Training evaluates in bf16 where that is native, --evaluate in float32.
    assert metrics["accuracy"] == pytest.approx(best, abs=2 / len(split))
    assert f"{len(split)} images of toy RAF-DB" in out


def test_inference_form_and_bf16_predict_the_same(learned):
    trained, model, split = learned
    loader = FaceLoader(
        split, batch_size=64, image_size=trained.image_size, device=torch.device("cpu")
    )
    expected = evaluate(model, loader, trained.image_size)
    fused = evaluate(FusedDAN(model), loader, trained.image_size)
    torch.testing.assert_close(fused.probabilities, expected.probabilities, rtol=1e-3, atol=1e-4)
    bf16 = evaluate(FusedDAN(model, torch.bfloat16), loader, trained.image_size)
    # 99.5 % is the aim; one face of these few may lie on the border.
    differing = (bf16.predictions != expected.predictions).sum().item()
    assert differing <= 1 + 0.005 * len(split)


@pytest.mark.parametrize("method", ["attention", "gradcam++"])
def test_heat_maps_lie_on_brows_eyes_and_mouth(learned, method):
    """The renderer knows where they are; 1 would be chance."""
    trained, model, split = learned
    meaning = measure(model, split, num_images=70, image_size=trained.image_size, method=method)
    assert meaning.faces > 60 and meaning.gain > 1.15 and meaning.above > 0.9
