"""Heat maps of what each attention head attends to, for a batch of images and all heads at once.

The maps are taken at the output of a head's spatial attention `sa`, the features weighted by the
head's own attention map: it still has positions, and it differs between the heads. The backbone's
layers are shared, so they would give all heads the same map. The channel attention that follows
averages over the positions, so that the gradient of a class is constant over each channel:
Grad-CAM, XGrad-CAM and HiResCAM are then the same map, of which only Grad-CAM is offered.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "attention"  # the head's own spatial attention map
METHODS = ("gradcam++", "gradcam", "eigencam", ATTENTION)
CLASS_AGNOSTIC = ("eigencam", ATTENTION)  # the same map for every class


@torch.enable_grad()
def head_maps(
    model: nn.Module,
    images: Tensor,
    *,
    method: str = "gradcam++",
    target: int | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Compute one map per image and head from one forward and one backward pass.

    Args:
        model: DAN in evaluation mode. Frozen parameters (`requires_grad_(False)`) save memory.
            Without heads there is one map, of the backbone's last block, as in Grad-CAM's paper.
        images: (N, 3, H, W) on the model's device, preprocessed.
        method: one of METHODS.
        target: the class to explain, each image's predicted one by default.

    Returns:
        Probabilities (N, C) on the CPU, and maps (N, K, h, w) >= 0 in float32, with h and w as of
        the features.
    """
    layers = [head.sa for head in model.heads] or [model.features]
    activations = []

    def cut(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Make the output a leaf of the graph, so that backward stops there."""
        activations.append(output.detach().requires_grad_())
        return activations[-1]

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(cut))
        logits, features, _ = model(images)
    if method == ATTENTION:
        maps = [layer.attention_map(features).squeeze(1) for layer in layers]
    else:
        scores = logits.max(dim=1).values if target is None else logits[:, target]
        gradients = torch.autograd.grad(scores.sum(), activations)
        pairs = zip(activations, gradients, strict=True)
        maps = [class_activation_map(method, *pair) for pair in pairs]
    maps = torch.stack(maps, dim=1).detach().float().cpu().numpy()
    return logits.detach().float().softmax(dim=1).cpu(), maps


@torch.no_grad()
def class_activation_map(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Combine a layer's activations and a class's gradients, (N, D, h, w), to maps (N, h, w) >= 0.

    Here and not by the package grad-cam, which runs forward and backward once per head, and whose
    constants against division by zero are larger than DAN's squared gradients.
    """
    if method == "eigencam":  # Muhammad and Yeasin, arXiv 2008.00299
        return _first_component(activations).relu()
    if method == "gradcam":  # Selvaraju et al., arXiv 1610.02391
        weights = gradients.mean(dim=(2, 3), keepdim=True)
    else:  # Grad-CAM++, Chattopadhay et al., arXiv 1710.11063, equation 19
        positive = gradients.relu()
        alpha = 1 / (2 + activations.sum(dim=(2, 3), keepdim=True) * positive)
        weights = (alpha * positive).sum(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1).relu()


def _first_component(activations: Tensor) -> Tensor:
    """Project activations (N, D, h, w) onto their first principal component -> (N, h, w).

    Its sign is arbitrary, and the wrong one shows what the head does not attend to: it is turned
    to be high where the activations are.
    """
    pixels = activations.flatten(2).transpose(1, 2)  # (N, h * w, D)
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    projection = left[:, :, 0] * values[:, :1]  # (N, h * w), of mean 0
    sign = (projection * pixels.abs().sum(dim=2)).sum(dim=1, keepdim=True).sign()
    return (sign * projection).unflatten(1, activations.shape[2:])


def normalize(maps: np.ndarray) -> np.ndarray:
    """Stretch each map (..., h, w) to [0, 1]; a constant map becomes 0."""
    maps = maps.astype(np.float64)  # the values of Grad-CAM++ can be tiny
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)
