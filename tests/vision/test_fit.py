import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision import fit, models
from vision.batches import Examples
from vision.infer import predict

SETTINGS = fit.Settings(
    seed=0,
    dtype=torch.float32,
    epochs=3,
    batch_size=50,
    optimizer="muon",
    lr=0.1,
    other_lr=0.02,
    momentum=0.6,
    weight_decay=0.0,
    warmup=0.1,
    label_smoothing=0.1,
    flip="alternate",
    crop_padding=1,
    image_scales=[1.0],
    patience=None,
)
EMPTY = Examples(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))


def striped(count: int, seed: int, noise: int = 60) -> Examples:
    """Four classes that differ in colour and in the direction of their stripes, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    stripes = torch.arange(8) % 2 * 80
    plain = torch.full((4, 8, 8, 3), 80)
    plain[0] += stripes[:, None, None]
    plain[1] += stripes[None, :, None]
    plain[2, ..., 0] += 60
    plain[3, ..., 2] += 60
    grain = torch.randint(-noise, noise + 1, (count, 8, 8, 3), generator=generator)
    return Examples((plain[labels] + grain).clamp(0, 255).to(torch.uint8), labels)


def network(train: Examples, seed: int = 0) -> models.Classifier:
    torch.manual_seed(seed)
    model = models.build("convnet", {"widths": [8, 16], "depth": 1}, 3, 4, [0.4] * 3, [0.2] * 3)
    model.initialize_from(train.images)
    return model


@pytest.mark.parametrize(
    "change",
    [{}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"optimizer": "sgd", "momentum": 0.9}],
    ids=["fp32", "bf16", "fp16", "sgd"],
)
def test_it_learns(change: dict[str, object]) -> None:
    train, val = striped(600, seed=1), striped(200, seed=2)
    fitted = fit.fit(network(train), train, val, replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert fitted.history[-1].val_accuracy is not None
    assert fitted.history[-1].val_accuracy > 0.9
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_seed_gives_bit_identical_weights_and_another_seed_others(dtype: torch.dtype) -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)

    def weights(seed: int) -> list[Tensor]:
        model = network(train)
        fit.fit(model, train, val, replace(SETTINGS, seed=seed, dtype=dtype))
        return list(model.state_dict().values())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_history_says_what_the_model_does() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    model = network(train)
    fitted = fit.fit(model, train, val, replace(SETTINGS, epochs=2))
    assert [epoch.epoch for epoch in fitted.history] == [1, 2]
    logits = predict(model, val.images, 100, torch.float32)
    best = fitted.history[fitted.best_epoch - 1]
    assert best.val_loss == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-4)
    assert best.val_accuracy == pytest.approx((logits.argmax(1) == val.labels).float().mean().item())
    assert fitted.history[0].lr == pytest.approx(0.1)
    assert fitted.history[1].lr < 0.1


def test_the_training_loss_is_the_smoothed_cross_entropy_of_the_epochs_images() -> None:
    train = striped(64, seed=1)
    still = replace(
        SETTINGS, epochs=1, batch_size=64, flip="none", crop_padding=0, optimizer="sgd", lr=1e-9, other_lr=1e-9
    )
    model = network(train)
    with torch.no_grad():
        logits = network(train).train()(train.images)
    fitted = fit.fit(model, train, EMPTY, still)
    smoothed = -(0.9 * F.one_hot(train.labels, 4) + 0.1 / 4).mul(logits.log_softmax(1)).sum(1).mean().item()
    assert fitted.history[0].train_loss == pytest.approx(smoothed, rel=1e-4)
    assert fitted.history[0].train_accuracy == pytest.approx((logits.argmax(1) == train.labels).float().mean().item())


class Told(nn.Module):
    """A model whose validation loss follows a script: its logits for class 0 are set anew in each validation."""

    validations: Tensor

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))
        self.script = script

    def forward(self, images: Tensor) -> Tensor:
        logits = self.weight.expand(len(images), 4)
        if self.training:
            return logits
        worse = self.script[int(self.validations)]
        self.validations += 1
        return logits - worse * F.one_hot(torch.zeros(len(images), dtype=torch.int64), 4)


def test_the_best_epochs_weights_are_kept_and_patience_ends_training() -> None:
    train = striped(60, seed=1)
    val = Examples(train.images, torch.zeros_like(train.labels))
    model = Told([3, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    fitted = fit.fit(model, train, val, replace(SETTINGS, epochs=10, patience=3, lr=1e-6, other_lr=1e-6))
    assert fitted.best_epoch == 2
    assert fitted.stopped_early
    assert len(fitted.history) == 5
    assert model.validations == 2


def test_without_a_validation_split_the_lowest_training_loss_is_best() -> None:
    train = striped(300, seed=1)
    fitted = fit.fit(network(train), train, EMPTY, SETTINGS)
    losses = [epoch.train_loss for epoch in fitted.history]
    assert fitted.best_epoch == losses.index(min(losses)) + 1
    assert not fitted.stopped_early
    assert {(epoch.val_loss, epoch.val_accuracy) for epoch in fitted.history} == {(None, None)}


def test_a_loss_that_is_not_finite_ends_training_with_the_place() -> None:
    train = striped(300, seed=1)
    hopeless = replace(SETTINGS, optimizer="sgd", lr=1e30, other_lr=1e30)
    with pytest.raises(fit.Diverged, match="training loss in epoch 1"):
        fit.fit(network(train), train, EMPTY, hopeless)


def test_progress_and_epochs_are_told() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    progress: list[fit.Progress] = []
    epochs: list[fit.Epoch] = []
    fitted = fit.fit(network(train), train, val, SETTINGS, progress.append, epochs.append)
    assert epochs == fitted.history
    assert progress[-1].share == pytest.approx(1)
    assert [p.share for p in progress] == sorted(p.share for p in progress)
    ends = [[p.share for p in progress if p.epoch == epoch][-1] for epoch in (1, 2, 3)]
    assert ends == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(p.images_per_s > 0 for p in progress)
    assert all(math.isfinite(p.loss) and 0 <= p.accuracy <= 1 for p in progress)


class Watching(nn.Module):
    """Remembers the size of the training images of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.shape[1])
        return self.weight.expand(len(images), 4)


@pytest.mark.parametrize(
    ("epochs", "sizes"),
    [(1, [8]), (2, [6, 8]), (3, [4, 6, 8]), (6, [4, 4, 6, 6, 8, 8]), (4, [4, 6, 8, 8])],
)
def test_images_grow_in_equal_parts_of_the_epochs_and_end_at_the_last_scale(epochs: int, sizes: list[int]) -> None:
    train = striped(50, seed=1)
    model = Watching()
    fit.fit(model, train, EMPTY, replace(SETTINGS, epochs=epochs, image_scales=[0.5, 0.75, 1.0]))
    assert model.seen == sizes
