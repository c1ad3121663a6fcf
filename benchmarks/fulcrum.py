"""Run the recipes of https://github.com/fulcrumresearch/cifar-10-speedrun, whose clock all contenders get."""

import math
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contender import Run, count_flops, read_clock
from torch import Tensor


def prepare(peer: Any, device: torch.device) -> Callable[[int], Run]:
    """Build and compile a recipe; returns a function that trains and tests once.

    The repository's own harness also times the reset of the weights and the making of the batches for each run.
    On a CPU the recipe's `setup` is left out, because it does nothing else than compile, capture CUDA graphs and check
    them; its training loop without graphs runs.
    """
    model, state = peer.setup() if device.type == "cuda" else _build(peer)
    loader, steps, batch_size = state["train_loader"], state["total_train_steps"], peer.hyp["batch_size"]
    schedule = peer.hyp["res_schedule"]
    sizes = [schedule[min(step // len(loader), len(schedule) - 1)] for step in range(steps)]
    flops = {size: count_flops(peer.Model().to("cpu"), size) for size in set(sizes)}
    test = peer.CifarLoader("cifar10", train=False, batch_size=2000)
    test_images = test.normalize(test.images)

    def train(run: int) -> Run:
        started = read_clock()
        state_of_run = _reset(peer, model, state)
        if device.type == "cuda":
            peer.train(model, state_of_run, _NO_VALIDATION)
        else:
            _train_without_graphs(peer, model, state_of_run)
        trained = read_clock()
        tta = _score(_predict_six_views(model, test_images), test.labels)
        tta_seconds = read_clock() - trained
        return Run(
            one_view=_score(_predict(model, test_images), test.labels),
            tta=tta,
            seconds=trained - started,
            tta_seconds=tta_seconds,
            images=steps * batch_size,
            flops=batch_size * sum(flops[size] for size in sizes),
        )

    return train


_NO_VALIDATION = types.SimpleNamespace(validate=lambda model, step: None)


def _build(peer: Any) -> tuple[Any, dict[str, Any]]:
    """Build what `setup` builds, without compilation and graphs."""
    model = peer.Model().to(memory_format=torch.channels_last)
    loader = peer.CifarLoader("cifar10", train=True, batch_size=peer.hyp["batch_size"], aug=peer.hyp["aug"])
    total, decay, whiten_bias = (
        math.ceil(peer.hyp[f"{name}_epochs"] * len(loader)) for name in ("train", "decay", "whiten_bias")
    )
    next(iter(loader))  # normalizes and pads all images, which is not timed there either
    return model, {
        "optimizers": peer.make_optimizers(model, decay),
        "train_loader": loader,
        "total_train_steps": total,
        "decay_steps": decay,
        "whiten_bias_train_steps": whiten_bias,
    }


def _reset(peer: Any, model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Give the model new weights, and return the state of the next run."""
    state["train_loader"].epoch = 0
    if state.keys() >= {"fullstep"}:
        return peer.setup()[1]  # writes new batches to where the captured graph reads them
    peer.reset_all(model, state["train_loader"], *state["optimizers"])
    return state


def _train_without_graphs(peer: Any, model: Any, state: dict[str, Any]) -> None:
    steps = (state[f"{name}_steps"] for name in ("decay", "whiten_bias_train", "total_train"))
    options = {"use_res_schedule": True} if hasattr(peer, "res_for_epoch") else {}
    peer.run_steps(
        model, state["train_loader"], *state["optimizers"], *steps,
        ctx=_NO_VALIDATION, lr_floor=peer.hyp["lr_floor"], **options,
    )  # fmt: skip


def _score(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _predict(model: Any, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model.forward(batch) for batch in images.split(2000)])


def _predict_six_views(model: Any, images: Tensor) -> Tensor:
    """Average over mirrored images and over shifts by one pixel along a diagonal, as the harness and airbench do."""
    size = images.shape[-1]
    padded = F.pad(images, (1,) * 4, "reflect")
    shifted = (padded[:, :, :size, :size], padded[:, :, 2:, 2:])
    views = [(images, 0.25), *((view, 0.125) for view in shifted)]
    return sum(
        (weight * (_predict(model, view) + _predict(model, view.flip(-1))) for view, weight in views),
        start=torch.zeros((), device=images.device),
    )
