"""The loop against a plain one, its sums, and what stops it."""

import argparse

import pytest
import torch
from torch import nn

import rafdb
from networks.dan import DAN
from networks.losses import DANLoss, DANLosses
from tests import golden
from tests.conftest import SMALL, training_args
from utils import checkpoint, engine, run_folder
from utils.data import FaceLoader
from utils.device import resolve_precision
from utils.errors import UserError
from utils.readers import read_rafdb
from utils.run import Run
from utils.sampling import shuffled
from utils.seed import generator
from utils.training import LOSS_TERMS, Training
from utils.transforms import Augmentation, preprocess

CPU = torch.device("cpu")
AUGMENT = Augmentation(flip=0.5, geometric=0.5, rotation=20, crop_padding=32 / 224, erasing=0.5)


def make_run(folder, device=CPU, autocast=None, **flags) -> Run:
    args = training_args(**flags)
    return Run(args, "RAF-DB", tuple("abcdefg"), device, autocast, folder)


def make_training(run, num_head=2):
    torch.manual_seed(1)
    model = DAN(num_class=7, num_head=num_head)
    model.to(run.device, memory_format=torch.channels_last)
    criterion = DANLoss(num_class=7).to(run.device)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    return Training(run, model, criterion, optimizer, scheduler)


def make_loader(split, device=CPU):
    return FaceLoader(
        split, batch_size=16, image_size=32, device=device, order=shuffled, seed=5, smallest=2
    )


def test_epoch_equals_a_plain_loop(toy_raf, tmp_path):
    data = read_rafdb(toy_raf)
    loader = make_loader(data.train)
    ours, plain = (make_training(make_run(tmp_path)) for _ in range(2))
    ours.history = [{}, {}]  # two epochs are behind it
    row = engine.train_one_epoch(ours, loader, AUGMENT)

    plain.model.train()
    totals, hits = [0.0] * 4, 0
    for step, (images, labels, *_) in enumerate(loader.epoch(3)):
        output = plain.model(AUGMENT(images, 32, generator(5, 3, step)))
        losses = plain.criterion(output, labels)
        plain.optimizer.zero_grad()
        losses.total.backward()
        plain.optimizer.step()
        totals = [t + loss.item() * len(labels) for t, loss in zip(totals, losses, strict=True)]
        hits += sum(output.logits.argmax(1).eq(labels).tolist())
    assert (step, len(labels)) == (2, 17)  # 49 images in batches of 16: the last one joins them
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for term, total in zip(LOSS_TERMS, totals, strict=True):
        assert row[term] == pytest.approx(total / 49, rel=1e-6)
    assert row["train_accuracy"] == pytest.approx(hits / 49)
    assert (row["epoch"], row["lr"]) == (3, 0.01)


def test_evaluation_shows_every_image_once_and_weights_by_batch(toy_raf, tmp_path):
    """Batches of 16 and 5 give what all 21 images give at once."""
    split = read_rafdb(toy_raf).val
    training = make_training(make_run(tmp_path))
    loader = FaceLoader(split, batch_size=16, image_size=32, device=CPU)
    result = engine.evaluate(training.model, loader, 32, criterion=training.criterion)
    whole = FaceLoader(split, batch_size=21, image_size=32, device=CPU)
    images, labels, *_ = next(whole.epoch())
    with torch.no_grad():
        output = training.model.eval()(preprocess(images, 32))
        losses = training.criterion(output, labels)
    torch.testing.assert_close(result.probabilities, output.logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert result.labels.tolist() == split.labels.tolist()
    torch.testing.assert_close(result.features, output.features.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert result.losses[1] == pytest.approx(losses.cross_entropy.item(), rel=1e-4)
    assert result.losses[2] == pytest.approx(losses.affinity.item(), rel=1e-4)


def test_same_seed_same_weights_whatever_the_workers(toy_raf, tmp_path):
    flags = ["--raf_path", str(toy_raf), *SMALL, "--epochs", "1"]
    states = []
    for number, more in enumerate([[], ["--workers", "2"], ["--seed", "1"]]):
        folder = tmp_path / str(number)
        rafdb.main([*flags, "--output_dir", str(folder), *more])
        states.append(checkpoint.load(folder / "last.pth")["model_state_dict"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


class TurnsBad(nn.Module):
    """A criterion whose loss is not finite from a call on."""

    def __init__(self, call: int, value: float):
        super().__init__()
        self.criterion = DANLoss(num_class=7)
        self.calls_left = call
        self.value = value

    def forward(self, output, labels) -> DANLosses:
        losses = self.criterion(output, labels)
        if self.training:
            self.calls_left -= 1
        return losses._replace(total=losses.total * (1 if self.calls_left > 0 else self.value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(toy_raf, tmp_path, value):
    training = make_training(make_run(tmp_path, epochs=5))
    # An epoch's three steps and, in train mode too, the two of its evaluation go well.
    training.criterion = training.losses_of.criterion = TurnsBad(call=3 + 2 + 2, value=value)
    with pytest.raises(UserError, match=rf"{value} in epoch 2, step 2"):
        engine.fit(training, read_rafdb(toy_raf), AUGMENT, order=shuffled)
    content = checkpoint.load(tmp_path / "last.pth")
    assert content["iter"] == 1
    assert all(v.isfinite().all() for v in content["model_state_dict"].values())
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_best_is_the_best_and_last_the_last(toy_raf, tmp_path, monkeypatch):
    """Saved whatever the accuracy: the released code kept nothing below 0.89."""
    accuracies = iter([0.1, 0.3, 0.3, 0.2])
    evaluate = engine.evaluate

    def scripted(*args):
        result = evaluate(*args)
        metrics = argparse.Namespace(**vars(result.metrics))
        metrics.accuracy = next(accuracies)
        return argparse.Namespace(metrics=metrics, losses=result.losses)

    monkeypatch.setattr(engine, "evaluate", scripted)
    training = make_training(make_run(tmp_path, epochs=4))
    engine.fit(training, read_rafdb(toy_raf), AUGMENT, order=shuffled)
    assert checkpoint.load(tmp_path / "best.pth")["iter"] == 2
    assert checkpoint.load(tmp_path / "last.pth")["iter"] == 4


def test_bf16_losses_agree_with_float32(toy_raf, tmp_path):
    """What autocast changes in the first steps stays within 2 %."""
    split = read_rafdb(toy_raf).train
    loader = FaceLoader(split, batch_size=49, image_size=64, device=CPU)
    rows = []
    for autocast in (None, torch.bfloat16):
        training = make_training(make_run(tmp_path, autocast=autocast, image_size=64), num_head=4)
        # Weights of a trained network's scale: at random ones, each step amplifies any rounding.
        training.model.load_state_dict(golden.state_dict(training.model))
        training.optimizer.param_groups[0]["lr"] = 0.001
        training.scheduler = torch.optim.lr_scheduler.StepLR(training.optimizer, step_size=9)
        for _ in range(3):
            training.history.append(engine.train_one_epoch(training, loader, AUGMENT))
            training.progress = training.fresh_progress()
        rows += training.history
    for plain, bf16 in zip(rows[:3], rows[3:], strict=True):
        for term in LOSS_TERMS[:3]:
            assert bf16[term] == pytest.approx(plain[term], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_epoch_agrees_with_the_cpu(toy_raf, tmp_path):
    cuda = torch.device("cuda")
    split = read_rafdb(toy_raf).train
    rows = []
    for device in (CPU, cuda):
        run = make_run(tmp_path, device=device, autocast=resolve_precision("fp32", device))
        loader = make_loader(split, device)
        rows.append(engine.train_one_epoch(make_training(run), loader, AUGMENT))
    for term in LOSS_TERMS[:3]:
        assert rows[1][term] == pytest.approx(rows[0][term], rel=0.02)


def test_columns_of_an_epoch_stay_apart():
    """AffectNet's fifth learning rate is the longest."""
    row = {"epoch": 5, "lr": 1e-4 * 0.6**4, "seconds": 1.0, "images_per_second": 80.0}
    row |= dict.fromkeys((*LOSS_TERMS, "train_accuracy", "val_accuracy"), 0.5)
    row["val_balanced_accuracy"] = 1.0
    line = run_folder.format_row(row, 40, is_best=True)
    assert line.startswith("epoch  5/40  lr 1.3e-05  loss 0.500 (ce 0.500, affinity 0.500, ")
    row["lr"] = 5e-4 * 0.6**3
    assert "lr 0.000108 loss" in run_folder.format_row(row, 40, is_best=True)
