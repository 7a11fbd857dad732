"""Heat maps of what each attention head looks at, for a batch and for all heads at once.

A head's map belongs to its spatial attention `sa`, whose output is the features weighted by the
head's own map: the last place in DAN that still has positions, and the first that differs between
heads. Layers of the backbone are shared, so theirs would be the same map for every head, and the
channel attention behind `sa` averages over the positions. Because of that average a gradient is
the same at all positions of a channel, and Grad-CAM, XGrad-CAM and HiResCAM agree here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "attention"  # the head's own spatial map, which needs neither a class nor gradients
# The other methods, by their class in the grad-cam package.
CAM_CLASSES = {
    "gradcam++": "GradCAMPlusPlus",
    "gradcam": "GradCAM",
    "scorecam": "ScoreCAM",
    "xgradcam": "XGradCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "ablationcam": "AblationCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
}
METHODS = (*CAM_CLASSES, ATTENTION)
# Whose maps are the same whatever class is asked for.
OF_NO_CLASS = (ATTENTION, "eigencam")
# These ask the network again for every channel of every head, 512 times an image and head, and
# ScoreCAM holds a copy of the image for each: they are best called with one image at a time.
PER_CHANNEL = ("scorecam", "ablationcam")


class HeadMaps(NamedTuple):
    """What `head_maps` returns for N images, K heads and C classes; all on the CPU."""

    probabilities: Tensor  # (N, C)
    targets: Tensor  # (N,) the classes that the maps explain
    maps: np.ndarray  # (N, K, h, w) float32, not negative, h and w as of the features


def head_maps(
    model: nn.Module,
    images: Tensor,
    *,
    method: str = "gradcam++",
    targets: Sequence[int | None] | None = None,
    each_head: Callable[[], object] = lambda: None,
) -> HeadMaps:
    """One map an image and head, from one forward and at most one backward pass.

    Args:
        model: DAN in evaluation mode. Frozen parameters (`requires_grad_(False)`) save memory.
        images: (N, 3, H, W) on the model's device, preprocessed.
        method: one of METHODS.
        targets: for each image the class to explain, None for the predicted one.
        each_head: called after each head by the methods that PER_CHANNEL names, which are slow.

    Raises:
        ValueError: the model is in training mode, or there is no such method.
    """
    if model.training:
        raise ValueError("heat maps need a model in evaluation mode: call model.eval()")
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    layers = [head.sa for head in model.heads]
    if method == ATTENTION:
        with torch.no_grad():
            output = model(images)
            maps = torch.cat([layer.attention_map(output.features) for layer in layers], dim=1)
        logits, maps = output.logits, maps.float().cpu().numpy()
        targets = _classes(logits, targets)
    else:
        logits, targets, maps = _class_activation_maps(
            model, layers, images, method, targets, each_head
        )
    return HeadMaps(logits.detach().float().softmax(dim=1).cpu(), targets, maps)


def normalise(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) -> each map stretched to [0, 1] by itself; a constant one becomes 0."""
    maps = maps.astype(np.float64)  # the weights of Grad-CAM++ can be tiny
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)


@torch.enable_grad()
def _class_activation_maps(
    model: nn.Module,
    layers: Sequence[nn.Module],
    images: Tensor,
    method: str,
    classes: Sequence[int | None] | None,
    each_head: Callable[[], object],
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Logits, targets and maps by a method of the grad-cam package.

    The package is asked for what makes the methods differ, the map of one layer given activations
    and gradients. Its own loop would run forward and backward once a layer, and through the whole
    network.
    """
    import pytorch_grad_cam  # here because it takes seconds to import

    with _cut_at(layers) as outputs:
        logits, features, _ = model(images)
    chosen = _classes(logits, classes)
    scores = [_Score(int(c), row.detach()) for c, row in zip(chosen, logits, strict=True)]
    # No layers given: it would hook them. The output is all that its methods may see of the model.
    cam = getattr(pytorch_grad_cam, CAM_CLASSES[method])(_Logits(model), target_layers=[])
    leaves = [outputs[layer] for layer in layers]
    if cam.uses_gradients:
        total = torch.stack([score(row) for score, row in zip(scores, logits, strict=True)]).sum()
        gradients = [_numpy(gradient) for gradient in torch.autograd.grad(total, leaves)]
    else:
        gradients = [None] * len(leaves)
    if method == "ablationcam":  # it changes what a layer puts out, behind the backbone
        images = features.detach()
        passed_on = _without_backbone(model)
    else:
        passed_on = nullcontext()
    maps = []
    with _without_bars(), passed_on:
        for layer, leaf, gradient in zip(layers, leaves, gradients, strict=True):
            activations = _numpy(leaf)
            if method == "gradcam++":
                activations, gradient = _balanced(activations, gradient)
            one = cam.get_cam_image(images, layer, scores, activations, gradient, False)
            if method in ("eigencam", "eigengradcam"):
                one = _oriented(one, activations if gradient is None else activations * gradient)
            maps.append(np.maximum(one, 0))
            if method in PER_CHANNEL:
                each_head()
    return logits, chosen, np.stack(maps, axis=1).astype(np.float32)


class _Logits(nn.Module):
    """Hands out the logits alone, as the grad-cam package expects of a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class _Score:
    """The logit of a class plus a constant that makes it positive for the image as it is.

    AblationCAM divides by the score, so that a negative one would turn its map upside down; no
    other method sees a constant.
    """

    def __init__(self, category: int, logits: Tensor):
        self.category = category
        self.offset = 1 - logits.min()

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[self.category] + self.offset


@contextmanager
def _cut_at(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the layers' outputs as leaves of the graph: what is before them is not derived."""
    outputs = {}

    def cut(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs[layer] = output.detach().requires_grad_()
        return outputs[layer]

    handles = [layer.register_forward_hook(cut) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_backbone(model: nn.Module) -> Iterator[None]:
    """Let the model take features (N, 512, h, w) instead of images."""
    backbone, model.features = model.features, nn.Identity()
    try:
        yield
    finally:
        model.features = backbone


@contextmanager
def _without_bars() -> Iterator[None]:
    """ScoreCAM and AblationCAM show a progress bar an image and head, and have no switch for it."""
    from pytorch_grad_cam import ablation_cam, score_cam

    bars = {module: module.tqdm for module in (ablation_cam, score_cam)}
    try:
        for module in bars:
            module.tqdm = SimpleNamespace(tqdm=iter)
        yield
    finally:
        for module, own in bars.items():
            module.tqdm = own


def _classes(logits: Tensor, asked: Sequence[int | None] | None) -> Tensor:
    """(N,) int64 on the CPU: the classes asked for, the predicted ones elsewhere."""
    predicted = logits.argmax(dim=1).tolist()
    if asked is None:
        return torch.tensor(predicted)
    return torch.tensor([p if a is None else a for a, p in zip(asked, predicted, strict=True)])


def _balanced(activations: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale both, (N, 512, h, w), so that gradients are far from 0 and the products stay.

    The map is the same but for its size. The package adds 1e-6 to the squared gradients of
    Grad-CAM++, and DAN's, whose activations are in the thousands, are about 1e-11: unscaled, the
    weights would be the cubes of the gradients and no longer those of the paper's equation 19.
    """
    scale = np.abs(gradients).max(axis=(1, 2, 3), keepdims=True) / 1000
    scale = np.where(scale > 0, scale, 1)
    return activations * scale, gradients / scale


def _oriented(maps: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Give principal components the sign that is high where there is much of their evidence.

    A component's sign is arbitrary, and with the wrong one a map shows what the head leaves out.

    Args:
        maps: (N, h, w) projections on the first principal component.
        evidence: (N, 512, h, w) whose component it is.
    """
    total = np.abs(evidence).sum(axis=1)
    total -= total.mean(axis=(1, 2), keepdims=True)
    agreement = (maps * total).sum(axis=(1, 2), keepdims=True)
    return np.where(agreement < 0, -maps, maps)


def _numpy(tensor: Tensor) -> np.ndarray:
    """Contiguous, since the package views activations in other shapes."""
    return tensor.detach().float().contiguous().cpu().numpy()
