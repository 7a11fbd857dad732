"""The loop against a plain one, its sums, and what stops it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from networks.dan import DAN
from networks.losses import DANLoss, DANLosses
from tests import golden
from tests.conftest import CPU, SMALL, TinyDAN, train_raf
from utils import checkpoint, cli, progress
from utils.data.datasets import read_rafdb
from utils.data.loader import FaceLoader, shuffled
from utils.data.transforms import Augmentation, preprocess
from utils.device import generator, resolve_precision
from utils.distributed import World
from utils.errors import UserError
from utils.training import engine
from utils.training.run import LOSS_TERMS, Run

AUGMENT = Augmentation(flip=0.5, geometric=0.5, rotation=20, crop_padding=32 / 224, erasing=0.5)


def make_run(folder, data, *flags, world=None, network=TinyDAN, num_head=2, lr=0.01) -> Run:
    parser = cli.RecipeParser("", "test", batch_size=16, lr=lr, epochs=1)
    args, _ = cli.parse(parser, [*SMALL, "--seed", "5", "--output_dir", str(folder), *flags])
    world = world or World()
    torch.manual_seed(1)
    model = world.place(network(num_class=7, num_head=num_head))
    criterion = world.place(DANLoss(num_class=7, batch_mean=world.mean))
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    return Run(args, None, data, world, model, criterion, optimizer, scheduler)


def make_loader(split, world=None):
    return FaceLoader(
        split, batch_size=16, image_size=32, world=world, order=shuffled, seed=5, min_images=2
    )


def test_epoch_equals_a_plain_loop(toy_raf, tmp_path):
    data = read_rafdb(toy_raf)
    loader = make_loader(data.train)
    ours, plain = (make_run(tmp_path, data, network=DAN) for _ in range(2))
    ours.history = [{}, {}]  # two epochs are behind it
    row = engine.train_one_epoch(ours, loader, AUGMENT)

    plain.model.train()
    totals, hits = [0.0] * 4, 0
    for step, (images, labels, *_) in enumerate(loader.epoch(3)):
        draws = AUGMENT.draw(len(images), 32, generator(5, 3, step))
        output = plain.model(preprocess(images, 32, draws))
        losses = plain.criterion(output, labels)
        plain.optimizer.zero_grad()
        losses.total.backward()
        plain.optimizer.step()
        totals = [t + loss.item() * len(labels) for t, loss in zip(totals, losses, strict=True)]
        hits += sum(output.logits.argmax(1).eq(labels).tolist())
    assert (step, len(labels)) == (2, 17)  # 49 images in batches of 16: the last one joins them
    torch.testing.assert_close(ours.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    for term, total in zip(LOSS_TERMS, totals, strict=True):
        assert row[term] == pytest.approx(total / 49, rel=1e-6)
    assert row["train_accuracy"] == pytest.approx(hits / 49)
    assert (row["epoch"], row["lr"]) == (3, 0.01)
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # of the next epoch


def test_evaluation_shows_every_image_once_and_weights_by_batch(toy_raf, tmp_path):
    """Batches of 16 and 5 give what all 21 images give at once."""
    split = read_rafdb(toy_raf).val
    training = make_run(tmp_path, read_rafdb(toy_raf))
    loader = FaceLoader(split, batch_size=16, image_size=32)
    result = engine.evaluate(training.model, loader, 32, criterion=training.criterion)
    whole = FaceLoader(split, batch_size=21, image_size=32)
    images, labels, *_ = next(whole.epoch())
    with torch.no_grad():
        output = training.model.eval()(preprocess(images, 32))
        losses = training.criterion(output, labels)
    torch.testing.assert_close(result.probabilities, output.logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert result.labels.tolist() == split.labels.tolist()
    torch.testing.assert_close(result.features, output.features.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert result.losses[1] == pytest.approx(losses.cross_entropy.item(), rel=1e-4)
    assert result.losses[2] == pytest.approx(losses.affinity.item(), rel=1e-4)


def test_same_seed_same_weights_whatever_the_workers(toy_raf, tmp_path, quick):
    states = []
    for number, more in enumerate([[], ["--workers", "2"], ["--seed", "1"]]):
        train_raf(toy_raf, tmp_path / str(number), "--epochs", "1", *more)
        states.append(checkpoint.load(tmp_path / str(number) / "last.pth")["model_state_dict"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


class TurnsBad(nn.Module):
    """A criterion whose loss is not finite from a call in training on."""

    def __init__(self, call: int, value: float):
        super().__init__()
        self.criterion = DANLoss(num_class=7)
        self.calls_left = call
        self.value = value

    def forward(self, output, labels) -> DANLosses:
        losses = self.criterion(output, labels)
        self.calls_left -= self.training
        return losses._replace(total=losses.total * (1 if self.calls_left > 0 else self.value))


@pytest.mark.parametrize(("value", "every"), [(float("nan"), 50), (float("inf"), 1)])
def test_a_loss_that_is_not_finite_stops_the_run(
    toy_raf, tmp_path, monkeypatch, quick, value, every
):
    """At the end of the epoch, or before if that is far."""
    monkeypatch.setattr(engine, "CHECK_LOSS_EVERY", every)
    data = read_rafdb(toy_raf)
    run = make_run(tmp_path, data, "--epochs", "5")
    # An epoch's three steps and, in train mode too, the two of its evaluation go well.
    run.criterion = run.forward.criterion = TurnsBad(call=3 + 2 + 2, value=value)
    with pytest.raises(UserError, match=rf"{value} in epoch 2, step 2"):
        engine.fit(run, data, AUGMENT, order=shuffled)
    assert run.criterion.calls_left == (0 if every == 1 else -1)
    content = checkpoint.load(tmp_path / "last.pth")
    assert content["iter"] == 1
    assert all(v.isfinite().all() for v in content["model_state_dict"].values())
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_best_is_the_best_and_last_the_last(toy_raf, tmp_path, monkeypatch, quick):
    """Saved whatever the accuracy: the released code kept nothing below 0.89. NaN is no answer."""
    # Images of 21 that are right in each epoch; the fourth has a NaN among its answers.
    hits, evaluate = iter([2, 6, 6, 21, 4]), engine.evaluate

    def scripted(*args):
        result, right = evaluate(*args), next(hits)
        wrong = (result.labels + 1) % 7
        predicted = torch.where(torch.arange(21) < right, result.labels, wrong)
        probabilities = nn.functional.one_hot(predicted, 7).float()
        if right == 21:
            probabilities[0] = torch.nan
        return replace(result, probabilities=probabilities)

    monkeypatch.setattr(engine, "evaluate", scripted)
    data = read_rafdb(toy_raf)
    engine.fit(make_run(tmp_path, data, "--epochs", "5"), data, AUGMENT, order=shuffled)
    assert checkpoint.load(tmp_path / "best.pth")["iter"] == 2
    assert checkpoint.load(tmp_path / "last.pth")["iter"] == 5


def test_exhausted_gpu_memory_names_the_batch_size(toy_raf, tmp_path, monkeypatch, quick):
    def exhausted(self, images, labels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("utils.training.run._NetworkAndLosses.forward", exhausted)
    data = read_rafdb(toy_raf)
    with pytest.raises(UserError, match="--batch_size 16 at 32 pixels .* try --batch_size 8"):
        engine.fit(make_run(tmp_path, data), data, AUGMENT, order=shuffled)


def test_compile_and_deterministic_reach_pytorch(toy_raf, tmp_path, monkeypatch, quick):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: calls.append(type(model)) or model)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    train_raf(toy_raf, tmp_path, "--epochs", "1", "--compile", "--deterministic")
    assert calls == [True, TinyDAN]


def test_bf16_losses_agree_with_float32(toy_raf, tmp_path):
    """What autocast changes in the first steps stays within 2 %."""
    data = read_rafdb(toy_raf)
    loader = FaceLoader(data.train, batch_size=49, image_size=64)
    rows = {}
    for autocast in (None, torch.bfloat16):
        kwargs = {"world": World(CPU, autocast), "network": DAN, "num_head": 4, "lr": 0.001}
        run = make_run(tmp_path, data, "--image_size", "64", **kwargs)
        # Weights of a trained network's scale: at random ones, each step amplifies any rounding.
        run.model.load_state_dict(golden.state_dict(run.model))
        run.scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, factor=1)
        rows[autocast] = []
        for _ in range(3):
            row = engine.train_one_epoch(run, loader, AUGMENT)
            rows[autocast].append([row[term] for term in LOSS_TERMS[:3]])
            run.history.append(row)
            run.progress = run._new_progress()
    np.testing.assert_allclose(rows[torch.bfloat16], rows[None], rtol=0.02)
    assert rows[torch.bfloat16] != rows[None]


def test_a_log_says_early_when_the_run_will_be_over(toy_raf, tmp_path, quick, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_FIRST", 1e-9)
    train_raf(toy_raf, tmp_path, "--epochs", "4")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1
    assert re.fullmatch(r"epoch 1 of 4, step: 1 of 12, \d\d:\d\d elapsed, \d\d:\d\d left", lines[0])


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
def test_cuda_epoch_agrees_with_the_cpu(toy_raf, tmp_path):
    data = read_rafdb(toy_raf)
    rows = []
    for device in (CPU, torch.device("cuda")):
        world = World(device, resolve_precision("fp32", device))
        run = make_run(tmp_path, data, world=world, network=DAN)
        rows.append(engine.train_one_epoch(run, make_loader(data.train, world), AUGMENT))
    for term in LOSS_TERMS[:3]:
        assert rows[1][term] == pytest.approx(rows[0][term], rel=0.02)


@needs_cuda
def test_deterministic_runs_on_cuda_are_bit_identical(toy_raf, tmp_path):
    for name in ("one", "other"):
        flags = ["--device", "cuda", "--deterministic", "--epochs", "2"]
        train_raf(toy_raf, tmp_path / name, *flags)
    one, other = (checkpoint.load(tmp_path / name / "last.pth") for name in ("one", "other"))
    weights = one["model_state_dict"], other["model_state_dict"]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
