import pytest
import torch
from torch import nn

from vision.infer import autocast, predict


class Corner(nn.Module):
    """Logits that show what was fed in: the top left and the top right pixel, and whether it is in training mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mode = torch.full((len(images),), float(self.training))
        return torch.stack([images[:, 0, 0, 0].float(), images[:, 0, -1, 0].float(), mode], 1)


def images(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_come_back_in_order_and_the_mode_is_restored(batch_size: int) -> None:
    model = Corner().train()
    seen: list[int] = []
    logits = predict(model, images(), batch_size, torch.float32, on_batch=seen.append)
    assert torch.equal(logits, Corner().eval()(images()))
    assert sum(seen) == 5
    assert max(seen) <= batch_size
    assert model.training


def test_flip_averages_an_image_and_its_mirror_image() -> None:
    logits = predict(Corner(), images(), 2, torch.float32, views="flip")
    both = (images()[:, 0, 0, 0].float() + images()[:, 0, -1, 0].float()) / 2
    assert torch.allclose(logits[:, 0], both)
    assert torch.allclose(logits[:, 1], both)


def test_shift_gives_half_the_weight_to_the_unshifted_views() -> None:
    logits = predict(Corner(), images(), 2, torch.float32, views="shift")
    pixels = images()[..., 0].float()
    # The top left pixel as it is, shifted by (1, 1), where row 0 shows row 1 by reflection, and by (-1, -1).
    left = 0.5 * pixels[:, 0, 0] + 0.25 * pixels[:, 1, 1] + 0.25 * pixels[:, 1, 1]
    right = 0.5 * pixels[:, 0, -1] + 0.25 * pixels[:, 1, -2] + 0.25 * pixels[:, 1, -2]
    assert torch.allclose(logits[:, 0], (left + right) / 2)


def test_autocast_computes_in_the_dtype_asked_for() -> None:
    cpu, layer = torch.device("cpu"), nn.Linear(4, 4)
    with autocast(cpu, torch.bfloat16):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
