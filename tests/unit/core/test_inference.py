import pytest
import torch
from torch import nn

from vision.core.inference import Views, autocast, other_views, predict, predict_tta


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


class Doubting(Corner):
    """`Corner` with logits so small that no probability is rounded to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) / 100


def all_views(views: Views, unsure: float = 1.0, seen: list[int] | None = None) -> torch.Tensor:
    logits = predict(Doubting(), images(), 2, torch.float32)
    seen = [] if seen is None else seen
    return predict_tta(Doubting(), images(), logits, 2, torch.float32, views, unsure, seen.append)


def test_one_view_is_what_was_predicted() -> None:
    assert torch.equal(all_views("one"), predict(Doubting(), images(), 2, torch.float32))


def test_flip_averages_an_image_and_its_mirror_image() -> None:
    logits = 100 * all_views("flip")
    both = (images()[:, 0, 0, 0].float() + images()[:, 0, -1, 0].float()) / 2
    assert torch.allclose(logits[:, 0], both)
    assert torch.allclose(logits[:, 1], both)


def test_shift_gives_half_the_weight_to_the_unshifted_views() -> None:
    logits = 100 * all_views("shift")
    pixels = images()[..., 0].float()
    # The top left pixel as it is, shifted by (1, 1), where row 0 shows row 1 by reflection, and by (-1, -1).
    left = 0.5 * pixels[:, 0, 0] + 0.25 * pixels[:, 1, 1] + 0.25 * pixels[:, 1, 1]
    right = 0.5 * pixels[:, 0, -1] + 0.25 * pixels[:, 1, -2] + 0.25 * pixels[:, 1, -2]
    assert torch.allclose(logits[:, 0], (left + right) / 2)


@pytest.mark.parametrize("unsure", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("views", ["one", "flip", "shift"])
def test_only_the_least_sure_images_are_looked_at_again(views: Views, unsure: float) -> None:
    seen: list[int] = []
    logits, one_view = all_views(views, unsure, seen), predict(Doubting(), images(), 2, torch.float32)
    again = one_view.softmax(1).amax(1).argsort()[: round(5 * unsure)]
    kept = [number for number in range(5) if number not in again.tolist()]
    assert torch.equal(logits[kept], one_view[kept])
    assert torch.allclose(logits[again], all_views(views)[again])
    assert sum(seen) == other_views(5, views, unsure) == {"one": 0, "flip": 1, "shift": 5}[views] * len(again)


def test_autocast_computes_in_the_dtype_asked_for() -> None:
    cpu, layer = torch.device("cpu"), nn.Linear(4, 4)
    with autocast(cpu, torch.bfloat16):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
