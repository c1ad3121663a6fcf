from typing import Any

import pytest
import torch

from cpp_compiler import needs_compiler
from small_training import small_convnet, striped_images, train_config
from vision.core import loop
from vision.core.device import select_device
from vision.core.kernels import select_kernels


def fit(**changes: Any) -> loop.EpochMetrics:
    train, val = striped_images(600, seed=1), striped_images(200, seed=2)
    return loop.fit(small_convnet(train), train, val, train_config(**changes)).history[-1]


@needs_compiler
def test_a_compiled_training_agrees_with_an_eager_one() -> None:
    eager, compiled = (fit(dtype=torch.bfloat16, compile=mode) for mode in (None, "default"))
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=0.02)
    assert compiled.train_loss != eager.train_loss  # compiled code rounds less often
    assert compiled.val_accuracy == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "changes"),
    [("reduce-overhead", {"freeze_epochs": 1}), ("max-autotune", {"augment": {"mixup": 0.4}})],
    ids=["reduce-overhead", "max-autotune"],
)
def test_the_other_modes_agree_with_an_eager_training_in_fp32(mode: str, changes: dict[str, Any]) -> None:
    eager, compiled = (fit(compile=compile, **changes) for compile in (None, mode))
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=1e-3)
    assert compiled.val_accuracy == eager.val_accuracy


def test_a_compiled_training_uses_no_kernels_of_this_project() -> None:
    device, dtype = select_device("cpu", "auto")
    model = small_convnet(striped_images(64, seed=1))
    config = train_config(compile="default", dtype=dtype, batch_size=64)
    assert select_kernels(model, config, device).names() == {"fused_blocks": False, "weight_gradients": "pytorch"}
