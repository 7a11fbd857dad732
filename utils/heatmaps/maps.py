"""Heat maps of what each attention head attends to, for a batch of images and all heads at once.

The maps are taken at the output of a head's spatial attention `sa`, the features weighted by the
head's own attention map: it still has positions, and it differs between the heads. The backbone's
layers are shared, so they would give all heads the same map. The channel attention that follows
averages over the positions, so that the gradient of a class is constant over each channel:
Grad-CAM, XGrad-CAM and HiResCAM are then the same map, of which only Grad-CAM is offered.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "attention"  # the head's own spatial attention map
METHODS = ("gradcam++", "gradcam", "layercam", "eigencam", ATTENTION)
CLASS_AGNOSTIC = ("eigencam", ATTENTION)  # the same map for every class


class HeadMaps(NamedTuple):
    """Heat maps of N images, K heads and C classes; everything on the CPU."""

    probabilities: Tensor  # (N, C)
    targets: Tensor  # (N,) the classes that the maps explain
    maps: np.ndarray  # (N, K, h, w) float32, not negative, h and w as of the features


@torch.enable_grad()
def head_maps(
    model: nn.Module,
    images: Tensor,
    *,
    method: str = "gradcam++",
    targets: Sequence[int | None] | None = None,
) -> HeadMaps:
    """Compute one map per image and head from one forward and one backward pass.

    Args:
        model: DAN in evaluation mode. Frozen parameters (`requires_grad_(False)`) save memory.
        images: (N, 3, H, W) on the model's device, preprocessed.
        method: one of METHODS.
        targets: the class to explain for each image, None for the predicted one.
    """
    # Without heads (the plain ResNet-18): the last block of the backbone, as in Grad-CAM's paper.
    layers = [head.sa for head in model.heads] or [model.features]
    outputs = {}

    def cut(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Make the output a leaf of the graph, so that backward stops there."""
        outputs[layer] = output.detach().requires_grad_()
        return outputs[layer]

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(cut))
        logits, features, _ = model(images)
    classes = logits.argmax(dim=1)
    for i, target in enumerate(targets or ()):
        if target is not None:
            classes[i] = target
    if method == ATTENTION:
        maps = [layer.attention_map(features).squeeze(1) for layer in layers]
    else:
        activations = [outputs[layer] for layer in layers]
        score = logits.gather(1, classes.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(score, activations)
        maps = [
            class_activation_map(method, a.detach().float(), g.float())
            for a, g in zip(activations, gradients, strict=True)
        ]
    maps = torch.stack(maps, dim=1).detach().float().cpu().numpy()
    return HeadMaps(logits.detach().float().softmax(dim=1).cpu(), classes.cpu(), maps)


def class_activation_map(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Combine a layer's activations and a class's gradients, (N, D, h, w), to maps (N, h, w) >= 0.

    Here and not by the package grad-cam, which runs forward and backward once per head, and whose
    constants against division by zero are larger than DAN's squared gradients.
    """
    if method == "gradcam":  # Selvaraju et al., arXiv 1610.02391
        weights = gradients.mean(dim=(2, 3), keepdim=True)
    elif method == "gradcam++":  # Chattopadhay et al., arXiv 1710.11063, equation 19
        positive = gradients.relu()
        alpha = 1 / (2 + activations.sum(dim=(2, 3), keepdim=True) * positive)
        weights = (alpha * positive).sum(dim=(2, 3), keepdim=True)
    elif method == "layercam":  # Jiang et al., TIP 2021
        weights = gradients.relu()
    else:  # Eigen-CAM, Muhammad and Yeasin, arXiv 2008.00299
        return _first_component(activations).relu()
    return (weights * activations).sum(dim=1).relu()


def normalize(maps: np.ndarray) -> np.ndarray:
    """Stretch each map (..., h, w) to [0, 1]; a constant map becomes 0."""
    maps = maps.astype(np.float64)  # the values of Grad-CAM++ can be tiny
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)


def _first_component(activations: Tensor) -> Tensor:
    """Project activations (N, D, h, w) onto their first principal component -> (N, h, w).

    Its sign is arbitrary, and the wrong one shows what the head does not attend to: it is turned
    to be high where the activations are.
    """
    pixels = activations.flatten(2).transpose(1, 2)  # (N, h * w, D)
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh  # (N, h * w, D)
    projection = (centred @ axes[:, :1].mT).squeeze(2)
    energy = pixels.abs().sum(dim=2)
    energy = energy - energy.mean(dim=1, keepdim=True)
    sign = torch.where((projection * energy).sum(dim=1, keepdim=True) < 0, -1, 1)
    return (sign * projection).unflatten(1, activations.shape[2:])
