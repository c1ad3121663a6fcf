import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from small_training import INPUTS, NO_IMAGES, small_convnet, striped_images, train_config
from vision.core import avx512_weight_gradient, convolution, loop
from vision.core.config import TrainConfig
from vision.core.convolution import AMX
from vision.core.data import ImageDataset
from vision.core.inference import predict
from vision.core.models.registry import create_model
from vision.core.trainer import balanced_weights

NO_AUGMENTATION = {"flip": "none", "crop_padding": 0}
ALL_AUGMENTATIONS = {"rotation": 10.0, "color_jitter": [0.2] * 4, "cutout": 3, "mixup": 0.4, "cutmix": 0.4}


def almost_fixed(**changes: Any) -> TrainConfig:
    """A configuration without augmentation, whose learning rate changes almost nothing."""
    changes = {"optimizer": {"name": "sgd"}, "augment": NO_AUGMENTATION, "lr": 1e-9, "label_smoothing": 0.0} | changes
    return train_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"dtype": torch.float16, "optimizer": {"name": "adam"}, "lr": 0.01, "clip_grad_norm": 1.0},
        {"dtype": torch.float16, "freeze_epochs": 1, "clip_grad_norm": 1.0},
        {"optimizer": {"name": "sgd", "momentum": 0.9}},
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "freeze_epochs": 1},
        {"optimizer": {"name": "adamw"}, "lr": 0.01, "schedule": "one_cycle"},
        {"ema_decay": 0.5},
        {"augment": {"rotation": 10.0}},
        {"augment": {"color_jitter": [0.2, 0.2, 0.2, 0.05]}},
        {"augment": {"cutout": 3}},
        {"augment": {"blur": 1.0, "noise": 0.1}},
        {"augment": {"mixup": 0.4}},
        {"augment": {"cutmix": 0.4}},
    ],
    ids=[
        "fp32",
        "bf16",
        "fp16",
        "fp16-clipped",
        "fp16-frozen",
        "sgd",
        "sgd-frozen",
        "adamw",
        "ema",
        "rotation",
        "color_jitter",
        "cutout",
        "blur and noise",
        "mixup",
        "cutmix",
    ],
)
def test_the_network_learns(changes: dict[str, Any]) -> None:
    train, val = striped_images(600, seed=1), striped_images(200, seed=2)
    result = loop.fit(small_convnet(train), train, val, train_config(**changes))
    assert result.history[-1].val_accuracy is not None
    assert result.history[-1].val_accuracy > 0.9
    assert result.history[-1].train_loss < result.history[0].train_loss


@pytest.mark.parametrize(
    "augment",
    [
        {},
        {"flip": "random"},
        {"crop_padding": 2},
        {"rotation": 30.0},
        {"color_jitter": [0.5, 0.5, 0.5, 0.1]},
        {"cutout": 3},
        {"blur": 2.0},
        {"noise": 0.1},
        {"mixup": 0.4},
        {"cutmix": 0.4},
    ],
    ids=lambda augment: next(iter(augment), "none"),
)
def test_the_network_gets_augmented_images(augment: dict[str, Any]) -> None:
    train = striped_images(64, seed=1)
    model = small_convnet(train)
    batches: list[Tensor] = []
    model.register_forward_pre_hook(lambda model, inputs: batches.append(inputs[0].clone()) if model.training else None)
    loop.fit(model, train, NO_IMAGES, train_config(epochs=1, batch_size=32, augment=NO_AUGMENTATION | augment))
    originals = {image.float().numpy().tobytes() for image in train.images}
    seen = [image.float().numpy().tobytes() for images in batches for image in images]
    assert len(seen) == 64
    if augment:
        assert not set(seen) <= originals
    else:
        assert set(seen) == originals


def test_fast_weight_gradients_are_used_on_auto_where_the_cpu_supports_them_and_never_on_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, val = striped_images(200, seed=1), striped_images(200, seed=2)
    computed: list[torch.Size] = []

    def record(features: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
        computed.append(features.shape)
        return AMX.compute(features, grad_output, kernel_size)

    def losses(amx: bool, **changes: Any) -> tuple[float, float]:
        monkeypatch.setattr(convolution, "cpu_capabilities", lambda: {"amx_bf16": amx})
        torch.manual_seed(0)
        model = create_model("convnet", {"widths": [128, 128], "depth": 2}, INPUTS, 4)
        model.initialize_from(train.images)
        config = train_config(dtype=torch.bfloat16, epochs=2, keep="last", fused_blocks="off", **changes)
        last = loop.fit(model, train, val, config).history[-1]
        assert last.val_loss is not None
        return last.train_loss, last.val_loss

    monkeypatch.setattr(convolution, "AMX", AMX._replace(compute=record))
    monkeypatch.setattr(avx512_weight_gradient, "cpu_capabilities", dict)
    expected = losses(amx=False, fast_weight_gradients="auto")
    assert losses(amx=True, fast_weight_gradients="off") == expected
    assert computed == []
    found = losses(amx=True, fast_weight_gradients="auto")
    # In each of the eight steps, two convolutions have maps of 3x3 and one of 1x1; the first one has few channels.
    assert len(computed) == 8 * 3
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": torch.bfloat16}, {"augment": ALL_AUGMENTATIONS, "progressive_resizing": [0.75, 1.0]}]
)
def test_the_seed_determines_every_bit_of_the_weights(changes: dict[str, Any]) -> None:
    train, val = striped_images(300, seed=1), striped_images(100, seed=2)

    def weights(seed: int) -> list[Tensor]:
        model = small_convnet(train)
        loop.fit(model, train, val, train_config(seed=seed, **changes))
        return list(model.state_dict().values())

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_history_agrees_with_predictions_of_the_trained_model() -> None:
    train, val = striped_images(300, seed=1), striped_images(100, seed=2)
    model = small_convnet(train)
    result = loop.fit(model, train, val, train_config(epochs=2))
    assert [epoch.epoch for epoch in result.history] == [1, 2]
    logits = predict(model, val.images, 100, torch.float32)
    best = result.history[result.best_epoch - 1]
    assert best.val_loss == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-4)
    assert best.val_accuracy == pytest.approx((logits.argmax(1) == val.labels).float().mean().item())
    assert result.history[0].lr == pytest.approx(0.1)
    assert result.history[1].lr < 0.1


def test_the_training_loss_is_the_smoothed_cross_entropy_of_the_epochs_images() -> None:
    train = striped_images(64, seed=1)
    model = small_convnet(train)
    with torch.no_grad():
        logits = small_convnet(train).train()(train.images)
    result = loop.fit(model, train, NO_IMAGES, almost_fixed(epochs=1, batch_size=64, label_smoothing=0.1))
    smoothed = -(0.9 * F.one_hot(train.labels, 4) + 0.1 / 4).mul(logits.log_softmax(1)).sum(1).mean().item()
    assert result.history[0].train_loss == pytest.approx(smoothed, rel=1e-4)
    assert result.history[0].train_accuracy == pytest.approx((logits.argmax(1) == train.labels).float().mean().item())


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    every = striped_images(90, seed=1)
    rare = (every.labels != 3) | (torch.arange(90) < 20)  # class 3 has few images
    train = ImageDataset(every.images[rare], every.labels[rare])
    model = small_convnet(train)
    with torch.no_grad():
        logits = small_convnet(train).train()(train.images)
    config = almost_fixed(epochs=1, batch_size=len(train.labels), label_smoothing=0.1, class_weights="balanced")
    result = loop.fit(model, train, NO_IMAGES, config)
    weights = compute_class_weight("balanced", classes=np.arange(4), y=train.labels.numpy())
    assert weights[3] > 1.5 * weights[0]
    losses = F.cross_entropy(logits, train.labels, label_smoothing=0.1, reduction="none")
    expected = (torch.from_numpy(weights)[train.labels] * losses).mean().item()
    assert result.history[0].train_loss == pytest.approx(expected, rel=1e-4)


def test_the_logits_of_frequent_classes_are_raised_in_the_loss() -> None:
    every = striped_images(90, seed=1)
    rare = (every.labels != 3) | (torch.arange(90) < 20)  # class 3 has few images
    train = ImageDataset(every.images[rare], every.labels[rare])
    model = small_convnet(train)
    with torch.no_grad():
        logits = small_convnet(train).train()(train.images)
    config = almost_fixed(epochs=1, batch_size=len(train.labels), label_smoothing=0.1, logit_adjustment=1.5)
    result = loop.fit(model, train, NO_IMAGES, config)
    counts = np.bincount(train.labels.numpy())
    adjusted = logits + torch.from_numpy(1.5 * np.log(counts / counts.sum()))
    expected = F.cross_entropy(adjusted, train.labels, label_smoothing=0.1).item()
    assert result.history[0].train_loss == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(F.cross_entropy(logits, train.labels, label_smoothing=0.1).item(), rel=1e-2)


def test_a_class_without_images_has_no_weight() -> None:
    assert balanced_weights(torch.tensor([0, 0, 0, 2])).tolist() == pytest.approx([2 / 3, 0, 2])


class ReferenceLoop:
    """SGD with Nesterov momentum over single images, in float64, with label smoothing."""

    def __init__(self, network: nn.Module, *datasets: ImageDataset) -> None:
        self.network = copy.deepcopy(network).double()
        self.momentum_buffers = [torch.zeros_like(param) for param in self.network.parameters()]
        pairs = [pair for dataset in datasets for pair in zip(*dataset, strict=True)]
        self.labels = {image.numpy().tobytes(): int(label) for image, label in pairs}

    def losses(self, images: Tensor, smoothing: float) -> Iterator[tuple[Tensor, bool]]:
        """Yield the loss of each image, and whether the prediction is correct."""
        for image in images:
            label = self.labels[image.numpy().tobytes()]
            logits = self.network(((image.double() / 255 - 0.4) / 0.2).permute(2, 0, 1)[None])[0]
            probabilities = logits.exp() / logits.exp().sum()
            loss = -(1 - smoothing) * probabilities[label].log() - smoothing / 4 * probabilities.log().sum()
            yield loss, int(logits.argmax()) == label

    def step(self, images: Tensor, lr: float) -> list[tuple[float, bool]]:
        """Train on a batch; return the losses and whether the predictions were correct."""
        self.network.zero_grad()
        results = []
        for loss, correct in self.losses(images, smoothing=0.1):
            (loss / len(images)).backward()
            results.append((loss.item(), correct))
        with torch.no_grad():
            for param, momentum_buffer in zip(self.network.parameters(), self.momentum_buffers, strict=True):
                assert param.grad is not None
                momentum_buffer.mul_(0.9).add_(param.grad)
                param.sub_(lr * (param.grad + 0.9 * momentum_buffer))
        return results


def test_the_history_agrees_with_a_loop_over_single_images_in_float64() -> None:
    train, val = striped_images(60, seed=1), striped_images(40, seed=2)
    options = {"widths": [4], "depth": 1, "kernel": 3, "padding": "same", "batch_norm": False, "hidden": [8]}
    torch.manual_seed(0)
    model = create_model("plain_cnn", {**options, "dropout": 0.0}, INPUTS, 4)
    reference = ReferenceLoop(model.network, train, val)
    batches: list[Tensor] = []
    model.register_forward_pre_hook(lambda model, inputs: batches.append(inputs[0].clone()) if model.training else None)
    optimizer = {"name": "sgd", "momentum": 0.9}
    config = almost_fixed(epochs=2, batch_size=20, lr=0.05, warmup=0.0, optimizer=optimizer, label_smoothing=0.1)
    result = loop.fit(model, train, val, config)

    for i, epoch in enumerate(result.history):
        steps = range(3 * i, 3 * i + 3)
        trained = [pair for step in steps for pair in reference.step(batches[step], lr=0.05 * (1 - step / 6))]
        with torch.no_grad():
            validated = [(loss.item(), correct) for loss, correct in reference.losses(val.images, smoothing=0)]
        assert epoch.lr == pytest.approx(0.05 * (1 - 3 * i / 6))
        assert (epoch.images, epoch.image_scale) == (60, 1)
        for found, pairs in {
            (epoch.train_loss, epoch.train_accuracy): trained,
            (epoch.val_loss, epoch.val_accuracy): validated,
        }.items():
            losses, correct = zip(*pairs, strict=True)
            assert found == pytest.approx((sum(losses) / len(losses), sum(correct) / len(correct)), rel=1e-5)


class ScriptedModel(nn.Module):
    """A model whose logits for class 0 are lowered by the next number of `script` in each validation."""

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
        decrease = self.script[int(self.validations)]
        self.validations += 1
        return logits - decrease * F.one_hot(torch.zeros(len(images), dtype=torch.int64), 4)


def test_the_best_weights_are_kept_and_patience_stops_the_training() -> None:
    train = striped_images(60, seed=1)
    val = ImageDataset(train.images, torch.zeros_like(train.labels))
    model = ScriptedModel([3, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    result = loop.fit(model, train, val, almost_fixed(epochs=10, patience=3))
    assert result.best_epoch == 2
    assert result.stopped_early
    assert len(result.history) == 5
    assert model.validations == 2


def test_training_stops_when_the_callback_returns_false() -> None:
    train, val = striped_images(300, seed=1), striped_images(100, seed=2)
    epochs: list[int] = []

    def stop_after_two(epoch: loop.EpochMetrics) -> bool:
        epochs.append(epoch.epoch)
        return epoch.epoch < 2

    callbacks = loop.Callbacks(on_epoch=stop_after_two)
    result = loop.fit(small_convnet(train), train, val, train_config(epochs=5), callbacks)
    assert epochs == [1, 2]
    assert (len(result.history), result.stopped_early) == (2, True)
    assert result.best_epoch in epochs


def test_patience_starts_when_the_whole_network_is_trained() -> None:
    train = striped_images(60, seed=1)
    val = ImageDataset(train.images, torch.zeros_like(train.labels))
    model = ScriptedModel([1, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    model.head = nn.ParameterList([model.weight])
    result = loop.fit(model, train, val, almost_fixed(epochs=10, patience=2, freeze_epochs=4))
    assert (result.best_epoch, len(result.history)) == (1, 6)


@pytest.mark.parametrize(("keep", "best"), [("val_loss", 3), ("val_accuracy", 2), ("last", 4)])
def test_keep_selects_the_best_epoch(keep: str, best: int) -> None:
    train = striped_images(60, seed=1)
    val = ImageDataset(train.images, torch.tensor([0, *[1] * 59]))
    # Lowering the logit of class 0 makes all predictions 1 from the second epoch on, with more confidence in the third.
    model = ScriptedModel([-1.0, 0.5, 3.0, -1.0])
    result = loop.fit(model, train, val, almost_fixed(epochs=4, keep=keep))
    assert result.best_epoch == model.validations == best


def test_without_validation_images_the_last_weights_are_kept() -> None:
    train = striped_images(300, seed=1)
    model = small_convnet(train)
    weights: list[Tensor] = []

    def remember(epoch: loop.EpochMetrics) -> None:
        weights.append(model.network.last.weight.detach().clone())  # type: ignore[operator, union-attr]

    result = loop.fit(model, train, NO_IMAGES, train_config(), loop.Callbacks(on_epoch=remember))
    assert result.best_epoch == len(result.history) == 3
    assert torch.equal(model.network.last.weight, weights[-1])  # type: ignore[arg-type, union-attr]
    assert not result.stopped_early
    assert {(epoch.val_loss, epoch.val_accuracy) for epoch in result.history} == {(None, None)}


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step() -> None:
    train = striped_images(300, seed=1)
    config = train_config(optimizer={"name": "sgd"}, lr=1e30)
    with pytest.raises(loop.DivergenceError, match=r"training loss is not finite in epoch 1, step \d of 6"):
        loop.fit(small_convnet(train), train, NO_IMAGES, config)


def test_callbacks_get_progress_and_epochs() -> None:
    train, val = striped_images(300, seed=1), striped_images(100, seed=2)
    progress: list[loop.Progress] = []
    epochs: list[loop.EpochMetrics] = []
    callbacks = loop.Callbacks(on_progress=progress.append, on_epoch=epochs.append)
    result = loop.fit(small_convnet(train), train, val, train_config(), callbacks)
    assert epochs == result.history
    fractions = [p.fraction for p in progress]
    assert fractions == sorted(fractions)
    last_of_epoch = [[p.fraction for p in progress if p.epoch == epoch][-1] for epoch in (1, 2, 3)]
    assert last_of_epoch == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(p.images_per_s > 0 for p in progress)
    assert all(math.isfinite(p.loss) and 0 <= p.accuracy <= 1 for p in progress)


class RecordingModel(nn.Module):
    """A model with four weights that records the training images of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.batches.append(images)
        return self.weight.expand(len(images), 4)


def test_progressive_resizing_sets_the_image_size_of_each_epoch() -> None:
    model = RecordingModel()
    config = train_config(epochs=4, progressive_resizing=[0.5, 0.75, 1.0])
    result = loop.fit(model, striped_images(50, seed=1), NO_IMAGES, config)
    assert [images.shape[1] for images in model.batches] == [4, 6, 8, 8]
    assert [epoch.image_scale for epoch in result.history] == [0.5, 0.75, 1.0, 1.0]


class BrightnessModel(RecordingModel):
    """A model whose loss for class 0 increases with the first pixel of an image."""

    def forward(self, images: Tensor) -> Tensor:
        logit = (20 - images[:, 0, 0, 0].float()) / 4
        return super().forward(images) + torch.stack([logit, *[torch.zeros_like(logit)] * 3], 1)


def numbered_images(count: int) -> ImageDataset:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    return ImageDataset(images, torch.zeros(count, dtype=torch.int64))


def test_an_epoch_trains_on_the_fraction_of_images_with_the_highest_last_loss() -> None:
    model = BrightnessModel()
    config = almost_fixed(epochs=4, batch_size=5, hard_example_fraction=[0.5, 0.5, 0.25, 1.0])
    result = loop.fit(model, numbered_images(20), NO_IMAGES, config)
    assert [epoch.images for epoch in result.history] == [20, 10, 5, 20]  # the first epoch uses all images
    pixels = torch.cat(model.batches)[:, 0, 0, 0].split([epoch.images for epoch in result.history])
    found = [sorted(part.tolist()) for part in pixels]
    assert found == [list(range(20)), list(range(10, 20)), list(range(15, 20)), list(range(20))]


def test_without_validation_images_the_last_weights_are_kept_even_if_the_training_loss_increases() -> None:
    config = almost_fixed(epochs=2, batch_size=5, hard_example_fraction=[1.0, 0.25])
    result = loop.fit(BrightnessModel(), numbered_images(20), NO_IMAGES, config)
    assert result.history[1].train_loss > result.history[0].train_loss
    assert result.best_epoch == 2


def test_images_of_a_dropped_batch_are_selected_next_because_they_have_not_been_seen() -> None:
    model = BrightnessModel()
    config = almost_fixed(epochs=2, batch_size=8, hard_example_fraction=[1.0, 0.4])
    loop.fit(model, numbered_images(20), NO_IMAGES, config)
    first, second = torch.cat(model.batches)[:, 0, 0, 0].split([16, 8])
    assert set(range(20)) - set(first.tolist()) <= set(second.tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_an_epoch_has_at_least_one_complete_batch(fraction: float) -> None:
    config = train_config(hard_example_fraction=[fraction])
    result = loop.fit(RecordingModel(), striped_images(60, seed=1), NO_IMAGES, config)
    assert [epoch.images for epoch in result.history] == [50, 50, 50]


def test_with_ema_the_average_of_the_weights_is_validated_and_kept() -> None:
    train, val = striped_images(300, seed=1), striped_images(100, seed=2)
    model = small_convnet(train)
    weights: list[Tensor] = []
    # At each training step these are the weights after the step before, and at the validation those after the last.
    model.register_forward_hook(lambda *_: weights.append(model.head.weight.detach().clone()))  # type: ignore[operator]
    result = loop.fit(model, train, val, train_config(epochs=1, ema_decay=0.8, keep="last"))
    _, *after_steps = weights
    assert len(after_steps) == 6
    expected = after_steps[0]  # the average starts with the weights after the first step
    for value in after_steps[1:]:
        expected = 0.8 * expected + 0.2 * value
    assert torch.allclose(model.head.weight, expected, atol=1e-6)  # type: ignore[arg-type]
    assert not torch.allclose(expected, after_steps[-1], atol=1e-3)
    logits = predict(model, val.images, 100, torch.float32)
    assert result.history[-1].val_loss == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-4)


def test_gradients_are_clipped_to_the_norm_over_all_parameters() -> None:
    train = striped_images(50, seed=1)
    updates = []
    for clip_grad_norm in (None, 1e-3):
        model = small_convnet(train)
        before = [param.detach().clone() for param in model.parameters()]
        optimizer = {"name": "sgd", "momentum": 0.0}
        config = almost_fixed(epochs=1, lr=1.0, optimizer=optimizer, warmup=0.0, clip_grad_norm=clip_grad_norm)
        loop.fit(model, train, NO_IMAGES, config)
        differences = [(param.detach() - old).flatten() for param, old in zip(model.parameters(), before, strict=True)]
        updates.append(torch.cat(differences))
    assert updates[0].norm() > 0.01
    assert updates[1].norm() == pytest.approx(1e-3, rel=1e-2)
    assert F.cosine_similarity(updates[0], updates[1], dim=0) > 0.999


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adam", "adamw"])
def test_frozen_layers_and_their_statistics_do_not_change_until_they_are_trained(optimizer: str) -> None:
    train, val = striped_images(200, seed=1), striped_images(100, seed=2)

    def changed_after(epochs: int) -> set[str]:
        model = small_convnet(train)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        config = train_config(epochs=epochs, freeze_epochs=2, keep="last", optimizer={"name": optimizer}, lr=0.01)
        loop.fit(model, train, val, config)
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    assert changed_after(2) == {"network.last.weight"}
    changed = changed_after(3)
    assert {
        "network.last.weight",
        "network.blocks.0.convs.0.weight",
        "network.blocks.0.norms.0.running_mean",
    } <= changed
    assert "network.first.weight" not in changed, "the network never trains its whitening layer"


def test_the_weight_of_a_mixed_image_is_that_of_both_classes() -> None:
    labels = torch.tensor([0] * 150 + [1] * 50)
    images = (labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3).contiguous()  # black and white
    model = RecordingModel()  # the loss of every image is the same
    augment = {**NO_AUGMENTATION, "mixup": 1.0}
    config = almost_fixed(epochs=1, batch_size=200, augment=augment, class_weights="balanced")
    result = loop.fit(model, ImageDataset(images, labels), NO_IMAGES, config)
    white = torch.cat(model.batches).float().mean((1, 2, 3)) / 255
    assert ((white > 0.1) & (white < 0.9)).any()
    weights = (1 - white) * 200 / (2 * 150) + white * 200 / (2 * 50)
    assert result.history[0].train_loss == pytest.approx(weights.mean().item() * math.log(4), rel=1e-2)


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_a_mixed_image_has_the_weighted_loss_of_both_labels_and_the_accuracy_of_the_first(method: str) -> None:
    labels = torch.arange(200) % 2
    images = (labels * 255).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3).contiguous()  # black and white
    model = RecordingModel()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0]))  # predicts white for every image
    config = almost_fixed(epochs=1, batch_size=200, label_smoothing=0.1, augment={**NO_AUGMENTATION, method: 1.0})
    result = loop.fit(model, ImageDataset(images, labels), NO_IMAGES, config)
    white = torch.cat(model.batches).float().mean((1, 2, 3)) / 255
    assert ((white > 0.1) & (white < 0.9)).any()
    logits = torch.tensor([0.0, 1.0, 0.0, -1.0]).expand(200, 4)
    targets = 0.9 * torch.stack((1 - white, white, 0 * white, 0 * white), 1) + 0.1 / 4
    assert result.history[0].train_loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-4)
    assert result.history[0].train_accuracy == pytest.approx((white > 0.5).float().mean().item(), abs=0.02)
