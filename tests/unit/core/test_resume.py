"""Resuming: from every checkpoint on, a training ends with the same bits."""

import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_training import small_convnet, striped_images, train_config
from vision.core import data, loop
from vision.core.data import ImageDataset
from vision.core.trainer import State


class ConvNetWithDropout(nn.Module):
    """The network with dropout before its last layer, which uses PyTorch's global generator."""

    def __init__(self, train: ImageDataset) -> None:
        super().__init__()
        self.inner = small_convnet(train)
        self.inner.head.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], 0.3, self.training))

    @property
    def head(self) -> nn.Module:
        return self.inner.head

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


class Outcome(NamedTuple):
    """What a training results in, except for its times."""

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    callback_epochs: list[int]


def run_fit(
    changes: dict[str, Any],
    on_checkpoint: Callable[[Callable[[], State]], None] = lambda state: None,
    state: State | None = None,
) -> Outcome:
    train, val = striped_images(150, seed=1), striped_images(60, seed=2)
    model = ConvNetWithDropout(train)
    epochs: list[int] = []
    torch.manual_seed(3 if state is None else 4)
    config = train_config(**{"batch_size": 20, **changes})
    callbacks = loop.Callbacks(on_epoch=lambda epoch: epochs.append(epoch.epoch), on_checkpoint=on_checkpoint)
    result = loop.fit(model, train, val, config, callbacks, state)
    times = ("seconds", "images_per_s")
    history = [{name: value for name, value in asdict(e).items() if name not in times} for e in result.history]
    return Outcome(model.state_dict(), history, result.best_epoch, result.stopped_early, epochs)


ALL_AUGMENTATIONS = {"rotation": 10.0, "color_jitter": [0.2] * 4, "cutout": 3, "mixup": 0.4, "cutmix": 0.4}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "optimizer": {"name": "adam"}, "lr": 0.01, "clip_grad_norm": 1.0},
        {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3}, "schedule": "step"},
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "freeze_epochs": 1},
        {"optimizer": {"name": "adamw"}, "lr": 0.01, "schedule": "one_cycle", "clip_grad_norm": 1.0},
        {"schedule": "cosine", "warmup": 0.5, "ema_decay": 0.995},
        {"schedule": "constant", "freeze_epochs": 1, "keep": "val_accuracy"},
        {
            "keep": "last",
            "augment": {"flip": "random"},
            "progressive_resizing": [0.5, 1.0],
            "hard_example_fraction": [1.0, 0.5],
        },
        {"patience": 1, "optimizer": {"name": "sgd"}, "lr": 1e-9},
        {"augment": ALL_AUGMENTATIONS, "ema_decay": 0.995, "hard_example_fraction": [0.6]},
    ],
    ids=["muon", "bf16", "fp16-adam", "sgd", "sgd-frozen", "adamw", "ema", "frozen", "resizing", "patience", "augment"],
)
def test_a_training_resumed_at_any_checkpoint_ends_with_the_same_bits(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_CHUNK_SIZE", 40)  # several checkpoints per epoch
    states: list[bytes] = []

    def save(state: Callable[[], State]) -> None:
        file = io.BytesIO()
        torch.save(state(), file)
        states.append(file.getvalue())

    expected = run_fit(changes, save)
    assert len(states) >= 2 * len(expected.history), "also within an epoch"
    without_checkpoints = run_fit(changes)
    assert without_checkpoints[1:] == expected[1:]
    for state in states:
        resumed = run_fit(changes, state=torch.load(io.BytesIO(state), weights_only=True))
        assert resumed[1:] == expected[1:]
        assert all(torch.equal(resumed.weights[name], value) for name, value in expected.weights.items())


def test_the_history_does_not_depend_on_when_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_fit({})
    monkeypatch.setattr("time.perf_counter", iter(range(10**9)).__next__)  # every call is a second later
    assert run_fit({})[1:] == expected[1:]
