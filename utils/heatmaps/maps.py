"""Heat maps of what each attention head attends to, for a batch of images and all heads at once.

The maps are taken at the output of a head's spatial attention `sa`, the features weighted by the
head's own attention map: it still has positions, and it differs between the heads. The backbone's
layers are shared, so they would give all heads the same map. The channel attention that follows
averages over the positions, so that the gradient of a class is constant over each channel:
Grad-CAM, XGrad-CAM and HiResCAM are then the same map, of which only Grad-CAM is offered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError

ATTENTION = "attention"  # the head's own spatial attention map
# The other methods, by their class in the grad-cam package.
CAM_CLASSES = {
    "gradcam++": "GradCAMPlusPlus",
    "gradcam": "GradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
}
METHODS = (*CAM_CLASSES, ATTENTION)
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

    Raises:
        ValueError: the model is in training mode.
        UserError: its heads have no spatial attention.
    """
    if model.training:
        raise ValueError("heat maps need a model in evaluation mode: call model.eval()")
    layers = _spatial_attentions(model, method)
    with _cut_at(layers) as outputs:
        logits, features, _ = model(images)
    classes = logits.argmax(dim=1)
    for i, target in enumerate(targets or ()):
        if target is not None:
            classes[i] = target
    if method == ATTENTION:
        with torch.no_grad():
            maps = [_to_numpy(layer.attention_map(features).squeeze(1)) for layer in layers]
    else:
        activations = [outputs[layer] for layer in layers]
        score = logits.gather(1, classes.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(score, activations)
        maps = [
            _class_activation_map(model, method, _to_numpy(a), _to_numpy(g))
            for a, g in zip(activations, gradients, strict=True)
        ]
    probabilities = logits.detach().float().softmax(dim=1)
    return HeadMaps(probabilities.cpu(), classes.cpu(), np.stack(maps, axis=1))


def normalize(maps: np.ndarray) -> np.ndarray:
    """Stretch each map (..., h, w) to [0, 1]; a constant map becomes 0."""
    maps = maps.astype(np.float64)  # the values of Grad-CAM++ can be tiny
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)


def _spatial_attentions(model: nn.Module, method: str) -> list[nn.Module]:
    layers = [getattr(head, "sa", None) for head in model.heads]
    for head, layer in zip(model.heads, layers, strict=True):
        if not isinstance(layer, nn.Module):
            raise UserError(
                f"{type(head).__name__} has no spatial attention `sa`, whose output the heat maps "
                "show; name the module that still has positions so"
            )
        if method == ATTENTION and not hasattr(layer, "attention_map"):
            raise UserError(
                f"{type(layer).__name__} has no attention_map(features), which --method "
                f"{ATTENTION} shows; use another method"
            )
    return layers


@contextmanager
def _cut_at(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the layers' outputs as leaves of the graph, so that backward stops there."""
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


def _class_activation_map(
    model: nn.Module, method: str, activations: np.ndarray, gradients: np.ndarray
) -> np.ndarray:
    """Let the grad-cam package turn one head's activations and gradients into maps.

    Only this differs between the methods. The package's own loop would run forward and backward
    through the whole network once for every head.

    Args:
        activations, gradients: (N, 512, h, w).

    Returns:
        (N, h, w) float32, not negative.
    """
    import pytorch_grad_cam  # takes seconds

    if method == "gradcam++":
        activations, gradients = _balance(activations, gradients)
    cam = getattr(pytorch_grad_cam, CAM_CLASSES[method])(model, target_layers=[])  # hooks nothing
    maps = cam.get_cam_image(None, None, None, activations, gradients, False)
    if method == "eigencam":
        maps = _orient(maps, activations)
    return np.maximum(maps, 0).astype(np.float32)


def _balance(activations: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale gradients (N, 512, h, w) up and activations down by the same factor per image.

    Grad-CAM++ is invariant to it up to the scale of the map. The package adds 1e-6 to the squared
    gradients, and DAN's, whose activations are in the thousands, are about 1e-11: unscaled, the
    weights would be the cubes of the gradients instead of equation 19 of the paper.
    """
    scale = np.abs(gradients).max(axis=(1, 2, 3), keepdims=True) / 1000
    scale = np.where(scale > 0, scale, 1)
    return activations * scale, gradients / scale


def _orient(maps: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Flip the sign of principal components (N, h, w) that are low where activations are high.

    The sign of a component is arbitrary; the wrong one shows what the head does not attend to.
    """
    total = np.abs(activations).sum(axis=1)  # (N, h, w)
    total -= total.mean(axis=(1, 2), keepdims=True)
    agreement = (maps * total).sum(axis=(1, 2), keepdims=True)
    return np.where(agreement < 0, -maps, maps)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    # Contiguous, since the package views activations in other shapes.
    return tensor.detach().float().contiguous().cpu().numpy()
