import copy
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.core import amx_convolution, data, loop
from vision.core.amx_convolution import side_by_side
from vision.core.data import ImageDataset
from vision.core.inference import predict
from vision.core.models import classifier
from vision.core.trainer import State

SETTINGS = loop.TrainConfig(
    seed=0,
    dtype=torch.float32,
    epochs=3,
    batch_size=50,
    freeze=0,
    optimizer="muon",
    lr=0.1,
    other_lr=0.02,
    momentum=0.6,
    nesterov=True,
    weight_decay=0.0,
    schedule="linear",
    warmup=0.1,
    clip_norm=None,
    label_smoothing=0.1,
    flip="alternate",
    crop_padding=1,
    rotation=0,
    color_jitter=[0.0, 0.0, 0.0, 0.0],
    cutout=0,
    mixup=0.0,
    cutmix=0.0,
    image_scales=[1.0],
    image_shares=[1.0],
    ema=None,
    keep="val_loss",
    patience=None,
)
EMPTY = ImageDataset(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))


def striped(count: int, seed: int, noise: int = 60) -> ImageDataset:
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
    return ImageDataset((plain[labels] + grain).clamp(0, 255).to(torch.uint8), labels)


def network(train: ImageDataset, seed: int = 0) -> classifier.Classifier:
    torch.manual_seed(seed)
    model = classifier.build("convnet", {"widths": [8, 16], "depth": 1}, [8, 8, 3], 4, [0.4] * 3, [0.2] * 3)
    model.initialize_from(train.images)
    return model


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"dtype": torch.float16, "optimizer": "adam", "lr": 0.01, "clip_norm": 1.0},
        {"dtype": torch.float16, "freeze": 1, "clip_norm": 1.0},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "one_cycle"},
        {"ema": 0.5},
        {"rotation": 10.0},
        {"color_jitter": [0.2, 0.2, 0.2, 0.05]},
        {"cutout": 3},
        {"mixup": 0.4},
        {"cutmix": 0.4},
    ],
    ids=[
        "fp32",
        "bf16",
        "fp16",
        "fp16-clipped",
        "fp16-frozen",
        "sgd",
        "adamw",
        "ema",
        "rotation",
        "color_jitter",
        "cutout",
        "mixup",
        "cutmix",
    ],
)
def test_it_learns(change: dict[str, object]) -> None:
    train, val = striped(600, seed=1), striped(200, seed=2)
    fitted = loop.fit(network(train), train, val, replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert fitted.history[-1].val_accuracy is not None
    assert fitted.history[-1].val_accuracy > 0.9
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": "random"},
        {"crop_padding": 2},
        {"rotation": 30.0},
        {"color_jitter": [0.5, 0.5, 0.5, 0.1]},
        {"cutout": 3},
        {"mixup": 0.4},
        {"cutmix": 0.4},
    ],
    ids=lambda change: next(iter(change), "nothing"),
)
def test_the_network_sees_images_that_are_varied_as_asked(change: dict[str, object]) -> None:
    train = striped(64, seed=1)
    model = network(train)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].clone()) if model.training else None)
    still = replace(SETTINGS, epochs=1, batch_size=32, flip="none", crop_padding=0, image_scales=[1.0])
    loop.fit(model, train, EMPTY, replace(still, **change))  # type: ignore[arg-type]
    known = {image.float().numpy().tobytes() for image in train.images}
    shown = [image.float().numpy().tobytes() for images in seen for image in images]
    assert len(shown) == 64
    if change:
        assert not set(shown) <= known
    else:
        assert set(shown) == known


def test_filters_learn_the_same_from_images_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = striped(200, seed=1), striped(200, seed=2)
    seen: list[torch.Size] = []

    def noted(images: Tensor, margin: int) -> Tensor:
        seen.append(images.shape)
        return side_by_side(images, margin)

    def validated(tiles: bool) -> tuple[float, float]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles})
        torch.manual_seed(0)
        model = classifier.build("convnet", {"widths": [128, 128], "depth": 2}, [8, 8, 3], 4, [0.4] * 3, [0.2] * 3)
        model.initialize_from(train.images)
        fitted = loop.fit(model, train, val, replace(SETTINGS, dtype=torch.bfloat16, epochs=2, keep="last"))
        last = fitted.history[-1]
        assert last.val_loss is not None
        return last.train_loss, last.val_loss

    monkeypatch.setattr(amx_convolution, "side_by_side", noted)
    alone = validated(tiles=False)
    assert seen == []
    together = validated(tiles=True)
    # Two convolutions see 3x3 pixels and one sees 1x1 in each of the eight steps; the first one has few channels.
    assert len(seen) == 8 * 2 * 3
    assert together == pytest.approx(alone, rel=0.05)


EVERYTHING = {"rotation": 10.0, "color_jitter": [0.2] * 4, "cutout": 3, "mixup": 0.4, "cutmix": 0.4}


@pytest.mark.parametrize("change", [{}, {"dtype": torch.bfloat16}, {**EVERYTHING, "image_scales": [0.75, 1.0]}])
def test_one_seed_gives_bit_identical_weights_and_another_seed_others(change: dict[str, object]) -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)

    def weights(seed: int) -> list[Tensor]:
        model = network(train)
        loop.fit(model, train, val, replace(SETTINGS, seed=seed, **change))  # type: ignore[arg-type]
        return list(model.state_dict().values())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_history_says_what_the_model_does() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    model = network(train)
    fitted = loop.fit(model, train, val, replace(SETTINGS, epochs=2))
    assert [epoch.epoch for epoch in fitted.history] == [1, 2]
    logits = predict(model, val.images, 100, torch.float32)
    best = fitted.history[fitted.best_epoch - 1]
    assert best.val_loss == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-4)
    assert best.val_accuracy == pytest.approx((logits.argmax(1) == val.labels).float().mean().item())
    assert fitted.history[0].lr == pytest.approx(0.1)
    assert fitted.history[1].lr < 0.1


def test_the_training_loss_is_the_smoothed_cross_entropy_of_the_epochs_images() -> None:
    train = striped(64, seed=1)
    still = replace(SETTINGS, epochs=1, batch_size=64, flip="none", crop_padding=0, optimizer="sgd", lr=1e-9)
    model = network(train)
    with torch.no_grad():
        logits = network(train).train()(train.images)
    fitted = loop.fit(model, train, EMPTY, still)
    smoothed = -(0.9 * F.one_hot(train.labels, 4) + 0.1 / 4).mul(logits.log_softmax(1)).sum(1).mean().item()
    assert fitted.history[0].train_loss == pytest.approx(smoothed, rel=1e-4)
    assert fitted.history[0].train_accuracy == pytest.approx((logits.argmax(1) == train.labels).float().mean().item())


def test_the_history_is_that_of_a_loop_over_single_images_in_float64() -> None:
    train, val = striped(60, seed=1), striped(40, seed=2)
    options = {"widths": [4], "depth": 1, "kernel": 3, "padding": "same", "batch_norm": False, "hidden": [8]}
    torch.manual_seed(0)
    model = classifier.build("plain", {**options, "dropout": 0.0}, [8, 8, 3], 4, [0.4] * 3, [0.2] * 3)
    exact = copy.deepcopy(model.network).double()
    shown: list[Tensor] = []  # each batch that it learns from
    model.register_forward_pre_hook(lambda model, inputs: shown.append(inputs[0].clone()) if model.training else None)
    settings = replace(STILL, epochs=2, batch_size=20, lr=0.05, warmup=0.0, momentum=0.9, label_smoothing=0.1)
    fitted = loop.fit(model, train, val, settings)

    every = [pair for part in (train, val) for pair in zip(*part, strict=True)]
    label_of = {image.numpy().tobytes(): int(label) for image, label in every}
    moved = [torch.zeros_like(p) for p in exact.parameters()]

    def looked_at(images: Tensor, smoothing: float) -> Iterator[tuple[Tensor, bool]]:
        """The loss of each image, and whether the network is right."""
        for image in images:
            label = label_of[image.numpy().tobytes()]
            logits = exact(((image.double() / 255 - 0.4) / 0.2).permute(2, 0, 1)[None])[0]
            chances = logits.exp() / logits.exp().sum()
            loss = -(1 - smoothing) * chances[label].log() - smoothing / 4 * chances.log().sum()
            yield loss, int(logits.argmax()) == label

    for number, epoch in enumerate(fitted.history):
        losses, hits = [], []
        for step, batch in enumerate(shown[3 * number : 3 * number + 3]):
            exact.zero_grad()
            for loss, hit in looked_at(batch, smoothing=0.1):
                (loss / 20).backward()
                losses.append(loss.item())
                hits.append(hit)
            lr = 0.05 * (1 - (3 * number + step) / 6)
            with torch.no_grad():
                for p, velocity in zip(exact.parameters(), moved, strict=True):
                    assert p.grad is not None
                    velocity.mul_(0.9).add_(p.grad)
                    p.sub_(lr * (p.grad + 0.9 * velocity))  # Nesterov's
        with torch.no_grad():
            validated = [(loss.item(), hit) for loss, hit in looked_at(val.images, smoothing=0)]
        assert epoch.lr == pytest.approx(0.05 * (1 - 3 * number / 6))
        assert (epoch.images, epoch.image_scale) == (60, 1)
        assert (epoch.train_loss, epoch.train_accuracy) == pytest.approx((sum(losses) / 60, sum(hits) / 60), rel=1e-5)
        wanted = (sum(loss for loss, _ in validated) / 40, sum(hit for _, hit in validated) / 40)
        assert (epoch.val_loss, epoch.val_accuracy) == pytest.approx(wanted, rel=1e-5)


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
    val = ImageDataset(train.images, torch.zeros_like(train.labels))
    model = Told([3, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    fitted = loop.fit(model, train, val, replace(SETTINGS, epochs=10, patience=3, lr=1e-6, other_lr=1e-6))
    assert fitted.best_epoch == 2
    assert fitted.stopped_early
    assert len(fitted.history) == 5
    assert model.validations == 2


def test_training_ends_where_the_caller_says_so() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    told: list[int] = []

    def until_the_second(epoch: loop.EpochMetrics) -> bool:
        told.append(epoch.epoch)
        return epoch.epoch < 2

    fitted = loop.fit(network(train), train, val, replace(SETTINGS, epochs=5), on_epoch=until_the_second)
    assert told == [1, 2]
    assert (len(fitted.history), fitted.stopped_early) == (2, True)
    assert fitted.best_epoch in told


def test_patience_begins_when_the_whole_network_trains() -> None:
    train = striped(60, seed=1)
    val = ImageDataset(train.images, torch.zeros_like(train.labels))
    model = Told([1, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    model.head = nn.ParameterList([model.weight])
    settings = replace(SETTINGS, epochs=10, patience=2, freeze=4, optimizer="sgd", lr=1e-9)
    fitted = loop.fit(model, train, val, settings)
    assert (fitted.best_epoch, len(fitted.history)) == (1, 6)


def test_without_a_validation_split_the_last_weights_are_kept() -> None:
    train = striped(300, seed=1)
    model = network(train)
    weights: list[Tensor] = []

    def remember(epoch: loop.EpochMetrics) -> None:
        weights.append(model.network.last.weight.detach().clone())  # type: ignore[operator, union-attr]

    fitted = loop.fit(model, train, EMPTY, SETTINGS, on_epoch=remember)
    assert fitted.best_epoch == len(fitted.history) == 3
    assert torch.equal(model.network.last.weight, weights[-1])  # type: ignore[arg-type, union-attr]
    assert not fitted.stopped_early
    assert {(epoch.val_loss, epoch.val_accuracy) for epoch in fitted.history} == {(None, None)}


def test_a_loss_that_is_not_finite_ends_training_with_the_place() -> None:
    train = striped(300, seed=1)
    hopeless = replace(SETTINGS, optimizer="sgd", lr=1e30)
    with pytest.raises(loop.Diverged, match="training loss in epoch 1"):
        loop.fit(network(train), train, EMPTY, hopeless)


def test_progress_and_epochs_are_told() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    progress: list[loop.Progress] = []
    epochs: list[loop.EpochMetrics] = []
    fitted = loop.fit(network(train), train, val, SETTINGS, progress.append, epochs.append)
    assert epochs == fitted.history
    assert progress[-1].share == pytest.approx(1)
    assert [p.share for p in progress] == sorted(p.share for p in progress)
    ends = [[p.share for p in progress if p.epoch == epoch][-1] for epoch in (1, 2, 3)]
    assert ends == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(p.images_per_s > 0 for p in progress)
    assert all(math.isfinite(p.loss) and 0 <= p.accuracy <= 1 for p in progress)


class Watching(nn.Module):
    """Remembers the size of the training images of each step, and the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seen: list[int] = []
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.shape[1])
            self.shown.append(images)
        return self.weight.expand(len(images), 4)


@pytest.mark.parametrize(
    ("epochs", "sizes"),
    [(1, [8]), (2, [6, 8]), (3, [4, 6, 8]), (6, [4, 4, 6, 6, 8, 8]), (4, [4, 6, 8, 8])],
)
def test_images_grow_in_equal_parts_of_the_epochs_and_end_at_the_last_scale(epochs: int, sizes: list[int]) -> None:
    train = striped(50, seed=1)
    model = Watching()
    loop.fit(model, train, EMPTY, replace(SETTINGS, epochs=epochs, image_scales=[0.5, 0.75, 1.0]))
    assert model.seen == sizes


class Knowing(Watching):
    """Tells by the first pixel of an image how well it knows it: the higher, the less."""

    def forward(self, images: Tensor) -> Tensor:
        known = (20 - images[:, 0, 0, 0].float()) / 4
        return super().forward(images) + torch.stack([known, *[torch.zeros_like(known)] * 3], 1)


STILL = replace(SETTINGS, flip="none", crop_padding=0, optimizer="sgd", lr=1e-9, label_smoothing=0.0)


def numbered(count: int) -> ImageDataset:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    return ImageDataset(images, torch.zeros(count, dtype=torch.int64))


def test_an_epoch_trains_on_the_share_of_images_with_the_highest_loss_when_last_seen() -> None:
    model = Knowing()
    shares = replace(STILL, epochs=4, batch_size=5, image_shares=[0.5, 0.5, 0.25, 1.0])
    fitted = loop.fit(model, numbered(20), EMPTY, shares)
    assert [epoch.images for epoch in fitted.history] == [20, 10, 5, 20]  # all of them in the first epoch
    shown = torch.cat(model.shown)[:, 0, 0, 0].split([epoch.images for epoch in fitted.history])
    hardest = [sorted(part.tolist()) for part in shown]
    assert hardest == [list(range(20)), list(range(10, 20)), list(range(15, 20)), list(range(20))]


def test_the_last_weights_are_kept_without_a_validation_split_even_if_the_training_loss_rises() -> None:
    fitted = loop.fit(Knowing(), numbered(20), EMPTY, replace(STILL, epochs=2, batch_size=5, image_shares=[1.0, 0.25]))
    assert fitted.history[1].train_loss > fitted.history[0].train_loss
    assert fitted.best_epoch == 2


def test_images_of_an_incomplete_batch_come_first_as_they_were_never_seen() -> None:
    model = Knowing()
    loop.fit(model, numbered(20), EMPTY, replace(STILL, epochs=2, batch_size=8, image_shares=[1.0, 0.4]))
    first, second = torch.cat(model.shown)[:, 0, 0, 0].split([16, 8])
    assert set(range(20)) - set(first.tolist()) <= set(second.tolist())


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_at_least_one_whole_batch_is_left_of_an_epoch(share: float) -> None:
    fitted = loop.fit(Watching(), striped(60, seed=1), EMPTY, replace(SETTINGS, image_shares=[share]))
    assert [epoch.images for epoch in fitted.history] == [50, 50, 50]


def test_the_progress_counts_smaller_and_fewer_images_as_less_work() -> None:
    told: list[loop.Progress] = []
    halves = replace(SETTINGS, epochs=2, batch_size=50, image_scales=[0.5, 1.0], image_shares=[1.0, 0.5])
    loop.fit(Watching(), striped(200, seed=1), EMPTY, halves, told.append)
    # 200 images of a quarter of the pixels, then 100 whole ones.
    assert [p.share for p in told if p.epoch == 1][-1] == pytest.approx(1 / 3)
    assert told[-1].share == pytest.approx(1)


@pytest.mark.parametrize(("keep", "best"), [("val_loss", 3), ("val_accuracy", 2), ("last", 4)])
def test_the_best_epoch_goes_by_what_is_asked_for(keep: str, best: int) -> None:
    train = striped(60, seed=1)
    val = ImageDataset(train.images, torch.tensor([0, *[1] * 59]))
    # The logit of class 0 is lowered: enough for all answers to be 1 in the second epoch, surer in the third.
    model = Told([-1.0, 0.5, 3.0, -1.0])
    settings = replace(SETTINGS, epochs=4, keep=keep, lr=1e-6, other_lr=1e-6)  # type: ignore[arg-type]
    fitted = loop.fit(model, train, val, settings)
    assert fitted.best_epoch == model.validations == best


def test_an_average_of_the_weights_is_validated_and_kept() -> None:
    train, val = striped(300, seed=1), striped(100, seed=2)
    model = network(train)
    seen: list[Tensor] = []
    # A training step sees the weights that the step before left, and the validation those that the last one left.
    model.register_forward_hook(lambda module, inputs, logits: seen.append(model.head.weight.detach().clone()))  # type: ignore[operator]
    fitted = loop.fit(model, train, val, replace(SETTINGS, epochs=1, ema=0.8, keep="last"))
    _, *after_each_step = seen
    assert len(after_each_step) == 6
    expected = after_each_step[0]  # the average begins with the weights after the first step
    for weights in after_each_step[1:]:
        expected = 0.8 * expected + 0.2 * weights
    assert torch.allclose(model.head.weight, expected, atol=1e-6)  # type: ignore[arg-type]
    assert not torch.allclose(expected, after_each_step[-1], atol=1e-3)
    logits = predict(model, val.images, 100, torch.float32)
    assert fitted.history[-1].val_loss == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-4)


def test_large_gradients_are_clipped_to_the_norm_over_all_parameters() -> None:
    train = striped(50, seed=1)
    moved = []
    for clip_norm in (None, 1e-3):
        model = network(train)
        before = [p.detach().clone() for p in model.parameters()]
        still = replace(STILL, epochs=1, lr=1.0, momentum=0.0, warmup=0.0, clip_norm=clip_norm)
        loop.fit(model, train, EMPTY, still)
        steps = [(p.detach() - old).flatten() for p, old in zip(model.parameters(), before, strict=True)]
        moved.append(torch.cat(steps))
    assert moved[0].norm() > 0.01
    assert moved[1].norm() == pytest.approx(1e-3, rel=1e-2)
    assert F.cosine_similarity(moved[0], moved[1], dim=0) > 0.999


def test_frozen_layers_stay_as_they_are_statistics_included_and_then_learn() -> None:
    train, val = striped(200, seed=1), striped(100, seed=2)

    def changed(epochs: int) -> set[str]:
        model = network(train)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loop.fit(model, train, val, replace(SETTINGS, epochs=epochs, freeze=2, keep="last"))
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    assert changed(2) == {"network.last.weight"}
    assert {"network.last.weight", "network.blocks.0.convs.0.weight", "network.blocks.0.norms.0.running_mean"} <= (
        changed(3)
    )
    assert "network.first.weight" not in changed(3), "what the network itself does not train stays"


@pytest.mark.parametrize("mix", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_a_mixed_image_has_the_loss_of_both_labels_and_the_accuracy_of_the_one_that_is_more_of_it(
    mix: dict[str, object],
) -> None:
    labels = torch.arange(200) % 2
    black_and_white = ImageDataset((labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3), labels)
    model = Watching()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0]))  # it takes every image for white
    still = replace(STILL, epochs=1, batch_size=200, label_smoothing=0.1, **mix)  # type: ignore[arg-type]
    train = ImageDataset(black_and_white.images.contiguous(), labels)
    fitted = loop.fit(model, train, EMPTY, still)
    white = torch.cat(model.shown).float().mean((1, 2, 3)) / 255
    assert ((white > 0.1) & (white < 0.9)).any()
    logits = torch.tensor([0.0, 1.0, 0.0, -1.0]).expand(200, 4)
    soft = 0.9 * torch.stack((1 - white, white, 0 * white, 0 * white), 1) + 0.1 / 4
    assert fitted.history[0].train_loss == pytest.approx(F.cross_entropy(logits, soft).item(), rel=1e-4)
    assert fitted.history[0].train_accuracy == pytest.approx((white > 0.5).float().mean().item(), abs=0.02)


class Dropping(nn.Module):
    """The network with dropout before its last layer, drawn from torch's own generator."""

    def __init__(self, train: ImageDataset) -> None:
        super().__init__()
        self.inner = network(train)
        self.inner.head.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], 0.3, self.training))

    @property
    def head(self) -> nn.Module:
        return self.inner.head

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


def went(
    change: dict[str, object],
    on_checkpoint: Callable[[Callable[[], State]], None] = lambda state: None,
    state: State | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, float]], tuple[int, bool], list[int]]:
    """The weights, the history but for its times, the rest of the outcome, and the epochs that were told."""
    train, val = striped(150, seed=1), striped(60, seed=2)
    model = Dropping(train)
    told: list[int] = []
    torch.manual_seed(3 if state is None else 4)
    settings = replace(SETTINGS, epochs=3, batch_size=20, **change)  # type: ignore[arg-type]
    fitted = loop.fit(
        model,
        train,
        val,
        settings,
        on_epoch=lambda epoch: told.append(epoch.epoch),
        on_checkpoint=on_checkpoint,
        state=state,
    )
    times = ("seconds", "images_per_s")
    history = [{name: value for name, value in asdict(e).items() if name not in times} for e in fitted.history]
    return model.state_dict(), history, (fitted.best_epoch, fitted.stopped_early), told


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "optimizer": "adam", "lr": 0.01, "clip_norm": 1.0},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "step"},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "one_cycle", "clip_norm": 1.0},
        {"schedule": "cosine", "warmup": 0.5, "ema": 0.995},
        {"schedule": "constant", "freeze": 1, "keep": "val_accuracy"},
        {"keep": "last", "flip": "random", "image_scales": [0.5, 1.0], "image_shares": [1.0, 0.5]},
        {"patience": 1, "optimizer": "sgd", "lr": 1e-9},
        {**EVERYTHING, "ema": 0.995, "image_shares": [0.6]},
    ],
    ids=["muon", "bf16", "fp16-adam", "sgd", "adamw", "ema", "frozen", "shares", "patience", "everything"],
)
def test_from_every_state_on_the_end_is_the_same_bit_for_bit(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_AT_A_TIME", 40)  # several handfuls an epoch
    states: list[bytes] = []

    def keep(state: Callable[[], State]) -> None:
        written = io.BytesIO()
        torch.save(state(), written)
        states.append(written.getvalue())

    weights, history, rest, told = went(change, keep)
    assert len(states) >= 2 * len(history), "also within an epoch"
    untouched = went(change)
    assert untouched[1:] == (history, rest, told)
    for written in states:
        again = went(change, state=torch.load(io.BytesIO(written), weights_only=True))
        assert again[1:] == (history, rest, told)
        assert all(torch.equal(again[0][name], weights[name]) for name in weights)


def test_the_history_does_not_depend_on_when_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = went({})
    monkeypatch.setattr("time.perf_counter", iter(range(10**9)).__next__)  # each look at the clock is a second later
    assert went({})[1:] == seldom[1:]
