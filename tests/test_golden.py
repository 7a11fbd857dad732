"""Parity with the released implementation: its numbers, in float64 on the CPU."""

import numpy as np
import pytest
import torch

from networks.dan import DAN
from networks.losses import DANLoss
from tests import golden


def build(meta: dict) -> tuple[DAN, DANLoss]:
    model = DAN(num_class=meta["num_class"], num_head=meta["num_head"]).double()
    model.load_state_dict(golden.state_dict(model))
    criterion = DANLoss(num_class=meta["num_class"]).double()
    centers = criterion.affinity.centers
    with torch.no_grad():
        centers.copy_(golden.weights("centers", tuple(centers.shape)))
    return model, criterion


@pytest.fixture(scope="module", params=golden.CASES)
def case(request):
    return golden.load(request.param)


def test_state_dict_has_the_released_keys_and_shapes(case):
    model, _ = build(case["meta"])
    state = model.state_dict()
    assert list(state) == case["state_keys"]
    assert [tuple(value.shape) for value in state.values()] == case["state_shapes"]


@torch.no_grad()
def test_evaluation_outputs_and_losses(case):
    model, criterion = build(case["meta"])
    images, labels = golden.batch(case["meta"])
    output = model.eval()(images)
    losses = torch.stack(criterion(output, labels)[1:])
    np.testing.assert_allclose(output.logits, case["eval_logits"], rtol=1e-9)
    np.testing.assert_allclose(output.heads, case["eval_heads"], rtol=1e-9)
    pooled = output.features.mean(dim=(2, 3))
    np.testing.assert_allclose(pooled, case["eval_features_pooled"], rtol=1e-9)
    np.testing.assert_allclose(losses, case["eval_losses"], rtol=1e-9)


def test_gradients_and_three_optimizer_steps(case):
    meta = case["meta"]
    model, criterion = build(meta)
    images, labels = golden.batch(meta)
    parameters = [*model.parameters(), *criterion.parameters()]
    if meta["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.Adam(parameters, lr=1e-4)
    model.train()
    for step in range(meta["steps"]):
        optimizer.zero_grad()
        output = model(images)
        losses = criterion(output, labels)
        losses.total.backward()
        rtol = 1e-9 if step == 0 else 1e-7
        terms = [loss.item() for loss in losses[1:]]
        np.testing.assert_allclose(terms, case["train_losses"][step], rtol=rtol)
        if step == 0:
            np.testing.assert_allclose(output.logits.detach(), case["train_logits"], rtol=1e-9)
            norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
            norms = [norms[name] for name in case["param_names"]]
            np.testing.assert_allclose(norms, case["grad_norms"], rtol=1e-9, atol=1e-9)
            center_grad = criterion.affinity.centers.grad
            np.testing.assert_allclose(center_grad, case["center_grad"], rtol=1e-9, atol=1e-12)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(images).logits, case["after_logits"], rtol=1e-7)
    centers = criterion.affinity.centers.detach()
    np.testing.assert_allclose(centers, case["after_centers"], rtol=1e-7)
    sums = [value.abs().sum().item() for value in model.state_dict().values()]
    # A bias in front of a BatchNorm has a gradient of rounding errors alone, which Adam scales up
    # and which differ from one number of threads to another.
    vanishing = set(case["param_names"][case["grad_norms"] < 1e-9])
    rtol = [1e-5 if key in vanishing else 1e-7 for key in case["state_keys"]]
    difference = np.abs(sums - case["after_state_abs_sum"])
    assert (difference <= rtol * case["after_state_abs_sum"]).all()
