"""Build learning-rate schedules, which change the learning rate at every step."""

from typing import assert_never

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
    """Build the schedule of a training of `steps` steps.

    The learning rate rises linearly to its peak, then follows `name`: "constant" keeps it, "step" divides it by 10
    after 1/2 and again after 3/4 of the remaining steps, "cosine" and "linear" lower it to 0. "one_cycle" (Smith 2018,
    arXiv:1708.07120) rises along a cosine from 1/25 of the peak, and falls along a cosine to almost 0.

    Args:
        optimizer: its learning rates are the peaks.
        name: see above.
        steps: of the whole training.
        warmup: fraction of the steps in which the learning rate rises, in [0, 1).

    Returns:
        The schedule, or None if the learning rate never changes.
    """
    if name == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        rise = max(warmup, 2 / (steps + 1))  # OneCycleLR needs at least one step
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=rise, cycle_momentum=False)
    warmup_steps = min(round(warmup * steps), steps - 1)
    decay_steps = steps - warmup_steps
    decay: LRScheduler
    match name:
        case "constant":
            decay = ConstantLR(optimizer, factor=1)
        case "step":
            decay = MultiStepLR(optimizer, [max(1, round(decay_steps * fraction)) for fraction in (0.5, 0.75)])
        case "cosine":
            decay = CosineAnnealingLR(optimizer, decay_steps)
        case "linear":
            decay = LinearLR(optimizer, 1, 0, decay_steps)
        case _:
            assert_never(name)
    if not warmup_steps:
        return None if name == "constant" else decay
    rise_schedule = LinearLR(optimizer, 1 / (warmup_steps + 1), 1, warmup_steps)
    return SequentialLR(optimizer, [rise_schedule, decay], [warmup_steps])
