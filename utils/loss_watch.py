"""A look at the losses that does not wait for the device."""

import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError

# Steps between two looks; each look asks the device without waiting for it.
LOOK_EVERY = 16


class LossWatch:
    """Stops an epoch whose loss is no longer finite.

    Each step's loss is noted on the device; now and then the notes start on their way to the
    host, and are read at the next look, when they have long arrived.
    """

    def __init__(self, steps: int, epoch: int, device: torch.device):
        self.epoch = epoch
        self.device = device
        self.losses = torch.zeros(steps, device=device)
        self.arriving = None  # (losses on the host, event)

    def look(self, step: int, loss: Tensor, bar: tqdm) -> None:
        """Note the loss of a step, a scalar; show the last one that has arrived."""
        self.losses[step] = loss
        if (step + 1) % LOOK_EVERY:
            return
        if self.arriving is not None:
            losses, event = self.arriving
            if event is not None and not event.query():
                return
            self._check(losses)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
        noted, event = self.losses[: step + 1], None
        if self.device.type == "cuda":
            host = torch.empty_like(noted, device="cpu", pin_memory=True)
            noted = host.copy_(noted, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.arriving = noted, event

    def finish(self) -> None:
        """Wait for all losses so far, and look at them."""
        self._check(self.losses.cpu())

    def _check(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise UserError(
                f"the loss became {losses[bad[0]].item()} in epoch {self.epoch}, step "
                f"{bad[0].item() + 1}; last.pth holds the epoch before, if there was one; "
                "try a smaller --lr or --precision fp32"
            )
