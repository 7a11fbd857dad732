"""Options of a recipe: warm-up and clipping, a validation part, the plain baseline, pretraining."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rafdb
from networks.dan import DAN
from networks.losses import DANLoss
from tests.conftest import TinyDAN, train_raf
from utils import checkpoint
from utils.checkpoint import read_trained
from utils.data.datasets import read_rafdb
from utils.errors import UserError
from utils.training.engine import update


def updates(gradients, *, lr=1.0, steps=1, **flags) -> np.ndarray:
    """How far each of these gradients moves a parameter, in epochs of so many steps."""
    args = {"warmup_epochs": 0.0, "clip_grad": 0.0, "schedule": "recipe", "epochs": 2, **flags}
    parameter = torch.zeros(len(gradients[0]), requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=lr)
    moved = [parameter.detach().numpy().copy()]
    for number, gradient in enumerate(gradients):
        parameter.grad = torch.tensor(gradient)
        history = [{}] * (number // steps)
        run = SimpleNamespace(args=SimpleNamespace(**args), optimizer=optimizer, history=history)
        update(run, number % steps, steps)
        assert optimizer.param_groups[0]["lr"] == lr  # the schedule's, which goes on from it
        moved.append(parameter.detach().numpy().copy())
    return -np.diff(moved, axis=0)


@pytest.mark.parametrize(
    ("flags", "factors"),
    [
        ({"warmup_epochs": 1.5}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1]),
        ({"schedule": "cosine"}, (1 + np.cos(np.pi * np.arange(8) / 8)) / 2),
    ],
    ids=["warm-up", "cosine"],
)
def test_the_rate_changes_step_by_step(flags, factors):
    """Warm-up rises linearly over 1.5 epochs of four steps, cosine decay falls over two epochs."""
    moved = updates([[1.0]] * 8, lr=0.3, steps=4, **flags)
    np.testing.assert_allclose(moved[:, 0] / 0.3, factors, rtol=1e-5)


def test_clipping_limits_the_norm_of_all_gradients():
    moved = updates([[3.0, 4.0], [0.3, 0.4]], clip_grad=1.0)
    np.testing.assert_allclose(moved, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-5)


def test_a_cosine_run_cannot_grow(toy_raf, tmp_path, quick):
    train_raf(toy_raf, tmp_path, "--epochs", "1", "--schedule", "cosine")
    with pytest.raises(UserError, match=r"--epochs 2 \(it has 1\)"):
        train_raf(toy_raf, tmp_path, "--resume", "--epochs", "2")


def test_the_optimizer_is_a_flag(toy_raf, tmp_path, quick):
    train_raf(toy_raf, tmp_path, "--epochs", "1", "--optimizer", "adam", "--warmup_epochs", "1")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["optimizer_settings"]["class"] == "Adam" and config["warmup_epochs"] == 1
    assert "exp_avg" in checkpoint.load(tmp_path / "last.pth")["optimizer_state_dict"]["state"][0]


# ---- a validation part ---------------------------------------------------------------------------


def test_a_validation_part_is_stratified_seeded_and_part_of_the_training_images(toy_raf):
    data = read_rafdb(toy_raf)
    parts = [data.with_validation(0.3, seed) for seed in (0, 0, 1)]
    assert parts[0].fingerprint() == parts[1].fingerprint() != parts[2].fingerprint()
    for part in parts:
        np.testing.assert_array_equal(part.val.counts(7), [2] * 7)
        together = np.concatenate([part.train.names, part.val.names])
        assert sorted(together) == sorted(data.train.names) and len(set(together)) == 49
        assert part.test is data.val
        labels = dict(zip(data.train.names, data.train.labels, strict=True))
        assert [labels[name] for name in part.val.names] == part.val.labels.tolist()
    assert data.with_validation(0, 0) is data
    with pytest.raises(UserError, match="validation and test images already"):
        parts[0].with_validation(0.1, 0)


def test_test_images_are_looked_at_once_with_the_best_and_the_last_epoch(
    toy_raf, tmp_path, quick, capsys
):
    train_raf(toy_raf, tmp_path, "--epochs", "3", "--val_fraction", "0.3")
    out = capsys.readouterr().out
    assert "val images: best accuracy" in out and "test images, best epoch" in out
    metrics = json.loads((tmp_path / "test_metrics.json").read_text())
    history = checkpoint.load(tmp_path / "last.pth")["metrics"]
    best = max(history, key=lambda row: row["val_accuracy"])
    assert metrics["best"]["epoch"] == best["epoch"] and metrics["last"]["epoch"] == 3
    assert metrics["last"]["images"] == 21
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["chosen_on"] == "val" and sum(config["images"]["val"]) == 14
    for name in ("best", "last"):  # the same as evaluating the checkpoints
        path = tmp_path / f"{name}.pth"
        rafdb.main(["--evaluate", "--checkpoint", str(path), "--device", "cpu", "--workers", "0"])
        evaluated = json.loads((tmp_path / f"{name}-evaluation/metrics.json").read_text())
        assert evaluated["images"] == 21
        assert evaluated["accuracy"] == metrics[name]["accuracy"]
    train_raf(toy_raf, tmp_path, "--resume", "--epochs", "4")  # with the same part
    with pytest.raises(UserError, match=r"--val_fraction 0.2 \(it has 0.3\)"):
        train_raf(toy_raf, tmp_path, "--resume", "--val_fraction", "0.2")


# ---- the plain baseline --------------------------------------------------------------------------


def test_the_baseline_is_resnet18_with_a_linear_classifier():
    torch.manual_seed(0)
    model = DAN(num_class=7, num_head=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = model(images)
        expected = model.fc(model.features(images).mean(dim=(2, 3)))
    torch.testing.assert_close(output.logits, expected)
    assert {key.split(".")[0] for key in model.state_dict()} == {"features", "fc"}
    losses = DANLoss(num_class=7, affinity_weight=0)(output, torch.tensor([1, 2]))
    assert losses.total == losses.cross_entropy and losses.partition == 0


def test_the_baseline_trains_and_is_evaluated(toy_raf, tmp_path, capsys):
    flags = ["--epochs", "1", "--num_head", "0", "--figures", "pdf"]
    train_raf(toy_raf, tmp_path, *flags)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["affinity_weight"], config["num_head"]) == (0, 0)
    trained = read_trained(tmp_path / "best.pth")
    assert trained.num_head == 0 and trained.kind == "ResNet-18"
    rafdb.main(["--evaluate", "--checkpoint", str(tmp_path / "best.pth"), "--device", "cpu"])
    assert "DAN" not in capsys.readouterr().out


# ---- pretraining ---------------------------------------------------------------------------------


def test_a_run_starts_from_another_runs_network_as_far_as_it_fits(tmp_path, capsys):
    torch.manual_seed(0)
    source, target = TinyDAN(num_class=8, num_head=2), TinyDAN(num_class=7, num_head=3)
    torch.save({"model_state_dict": source.state_dict()}, tmp_path / "affecnet8.pth")
    fc = target.fc.weight.clone()
    checkpoint.load_pretrained(target, str(tmp_path / "affecnet8.pth"))
    assert torch.equal(target.features[1].weight, source.features[1].weight)
    assert torch.equal(target.cat_head1.weight, source.cat_head1.weight)
    assert torch.equal(target.fc.weight, fc)  # of seven classes
    assert "taken from it: features, cat_head0, cat_head1" in capsys.readouterr().out
