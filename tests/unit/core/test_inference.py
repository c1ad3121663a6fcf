from collections.abc import Callable

import pytest
import torch
from torch import nn

from vision.core.config import TTA, TTAConfig
from vision.core.inference import autocast, count_extra_views, predict, predict_tta


class Corner(nn.Module):
    """The logits are the top left and the top right pixel, and whether the model is in training mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mode = torch.full((len(images),), float(self.training))
        return torch.stack([images[:, 0, 0, 0].float(), images[:, 0, -1, 0].float(), mode], 1)


def images(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_predict_keeps_the_order_and_restores_the_mode(batch_size: int) -> None:
    model = Corner().train()
    batch_sizes: list[int] = []
    logits = predict(model, images(), batch_size, torch.float32, on_batch=batch_sizes.append)
    assert torch.equal(logits, Corner().eval()(images()))
    assert sum(batch_sizes) == 5
    assert max(batch_sizes) <= batch_size
    assert model.training


class Unsure(Corner):
    """`Corner` with logits so small that no probability is rounded to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) / 100


def predict_unsure(
    tta: TTA, fraction: float = 1.0, on_batch: Callable[[int], object] = lambda count: None
) -> torch.Tensor:
    logits = predict(Unsure(), images(), 2, torch.float32)
    config = TTAConfig(2, torch.float32, tta, fraction)
    return predict_tta(Unsure(), images(), logits, config, on_batch)


def test_without_tta_the_logits_are_unchanged() -> None:
    logits = predict(Unsure(), images(), 2, torch.float32)
    assert predict_tta(Unsure(), images(), logits, TTAConfig(2, torch.float32, "none", 1.0)) is logits


def test_flip_averages_an_image_and_its_mirror_image() -> None:
    logits = 100 * predict_unsure("flip")
    both = (images()[:, 0, 0, 0].float() + images()[:, 0, -1, 0].float()) / 2
    assert torch.allclose(logits[:, 0], both)
    assert torch.allclose(logits[:, 1], both)


def test_shift_gives_half_the_weight_to_the_unshifted_views() -> None:
    logits = 100 * predict_unsure("shift")
    pixels = images()[..., 0].float()
    # The top left pixel of the image, of the one shifted by (1, 1), whose row 0 reflects row 1, and by (-1, -1).
    left = 0.5 * pixels[:, 0, 0] + 0.25 * pixels[:, 1, 1] + 0.25 * pixels[:, 1, 1]
    right = 0.5 * pixels[:, 0, -1] + 0.25 * pixels[:, 1, -2] + 0.25 * pixels[:, 1, -2]
    assert torch.allclose(logits[:, 0], (left + right) / 2)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tta", ["none", "flip", "shift"])
def test_only_images_with_the_lowest_confidence_get_more_views(tta: TTA, fraction: float) -> None:
    counts: list[int] = []
    logits, one_view = predict_unsure(tta, fraction, counts.append), predict(Unsure(), images(), 2, torch.float32)
    selected = one_view.softmax(1).amax(1).argsort()[: round(5 * fraction)]
    others = [i for i in range(5) if i not in selected.tolist()]
    assert torch.equal(logits[others], one_view[others])
    assert torch.allclose(logits[selected], predict_unsure(tta)[selected])
    expected = {"none": 0, "flip": 1, "shift": 5}[tta] * len(selected)
    assert sum(counts) == count_extra_views(5, TTAConfig(2, torch.float32, tta, fraction)) == expected


def test_autocast_computes_in_the_given_dtype() -> None:
    cpu, layer = torch.device("cpu"), nn.Linear(4, 4)
    with autocast(cpu, torch.bfloat16):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
