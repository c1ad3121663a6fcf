"""Learning-rate schedules, step by step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from vision.core.config import ScheduleName


def build_schedule(optimizer: Optimizer, name: ScheduleName, steps: int, warmup: float) -> LRScheduler | None:
    """How the learning rate goes, step by step: up to its peak over the share `warmup` of all `steps`, then by `name`.

    "constant" stays, "step" falls to a tenth after half and again after three quarters of the steps that are left,
    "cosine" and "linear" fall to zero. "one_cycle" (Smith 2018, arXiv:1708.07120) has a rise of its own, along a cosine
    from a 25th of the peak, and falls along a cosine to nearly zero. None: it stays at its peak from the first step on.
    """
    if name == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        rise = max(warmup, 2 / (steps + 1))  # torch wants one step at least
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=rise, cycle_momentum=False)
    rising = min(round(warmup * steps), steps - 1)
    left = steps - rising
    if name == "constant":
        falling: LRScheduler = ConstantLR(optimizer, factor=1)
    elif name == "step":
        falling = MultiStepLR(optimizer, [max(1, round(left * part)) for part in (0.5, 0.75)])
    elif name == "cosine":
        falling = CosineAnnealingLR(optimizer, left)
    else:
        falling = LinearLR(optimizer, 1, 0, left)
    if not rising:
        return None if name == "constant" else falling
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (rising + 1), 1, rising), falling], [rising])
