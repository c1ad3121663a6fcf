"""The composition of the augmentations."""

from dataclasses import replace

import pytest
import torch

from vision.core.augment.mixup import Mixed
from vision.core.augment.pipeline import Augmentation
from vision.core.config import AugmentConfig

OFF = AugmentConfig(flip="none", crop_padding=0, rotation=0.0, color_jitter=[0.0] * 4, cutout=0)
ALL = AugmentConfig(
    flip="alternate",
    crop_padding=2,
    rotation=10.0,
    color_jitter=[0.2] * 4,
    cutout=3,
    blur=1.5,
    noise=0.1,
    mixup=0.4,
    cutmix=0.4,
)
IMAGES = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(20)


def augment(augmentation: Augmentation) -> Mixed:
    return augmentation.mix(augmentation.transform(IMAGES, INDICES), INDICES)


def test_without_augmentation_images_are_unchanged_and_a_batch_draws_no_random_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    augmentation = Augmentation(OFF, IMAGES, generator)
    state = generator.get_state()
    images, other_labels, weights = augment(augmentation)
    assert images is IMAGES
    assert other_labels is None
    assert weights is None
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": "random"},
        {"crop_padding": 2},
        {"rotation": 10.0},
        {"color_jitter": [0.2, 0.0, 0.0, 0.0]},
        {"cutout": 3},
        {"blur": 1.5},
        {"noise": 0.1},
        {"mixup": 0.4},
        {"cutmix": 0.4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_parameter_changes_the_images(change: dict[str, object]) -> None:
    config = replace(OFF, **change)  # type: ignore[arg-type]
    images, _, weights = augment(Augmentation(config, IMAGES, torch.Generator().manual_seed(0)))
    assert images.shape == IMAGES.shape
    assert not torch.equal(images.float(), IMAGES.float())
    assert (weights is not None) == (change.keys() <= {"mixup", "cutmix"})


def test_a_restored_state_continues_with_the_same_images() -> None:
    generator = torch.Generator().manual_seed(0)
    augmentation = Augmentation(ALL, IMAGES, generator)
    augment(augmentation)
    state, generator_state = augmentation.state_dict(), generator.get_state()
    state["flip_state"] = state["flip_state"].clone()  # the next batch changes it
    expected = [augment(augmentation).images for _ in range(3)]

    other_generator = torch.Generator().manual_seed(1)
    restored = Augmentation(ALL, IMAGES, other_generator)
    restored.load_state_dict(state)
    other_generator.set_state(generator_state)
    for images in expected:
        assert torch.equal(augment(restored).images, images)
