"""All augmentations of a training batch, composed in the order in which they are applied."""

from typing import Any

import torch
from torch import Tensor

from vision.core.augment.blur import GaussianBlur
from vision.core.augment.color_jitter import ColorJitter
from vision.core.augment.crop_flip import RandomCropFlip
from vision.core.augment.cutout import Cutout
from vision.core.augment.mixup import Mixed, MixupCutmix
from vision.core.augment.noise import GaussianNoise
from vision.core.augment.rotate import RandomRotation
from vision.core.config import AugmentConfig


class Augmentation:
    """The augmentations of `config`; those that are off draw no random numbers and cost nothing.

    `transform` changes images one by one, and `mix` combines the images of a batch.
    """

    def __init__(self, config: AugmentConfig, train_images: Tensor, generator: torch.Generator) -> None:
        """Compose the augmentations.

        Args:
            config: which augmentations, and how strong.
            train_images: uint8 [N, H, W, C], the training images at full size.
            generator: on the device of the images; all random numbers derive from it.
        """
        # Some of these draw random numbers here, so a seed's result depends on this order too.
        self.crop_flip = RandomCropFlip(config.flip, config.crop_padding, len(train_images), generator)
        self.rotation = RandomRotation(config.rotation, generator)
        self.color_jitter = ColorJitter(config.color_jitter, generator)
        self.cutout = Cutout(config.cutout, train_images, generator)
        self.blur = GaussianBlur(config.blur, train_images.shape[1], generator)
        self.noise = GaussianNoise(config.noise, generator)
        self.mixup_cutmix = MixupCutmix(config.mixup, config.cutmix, generator)

    def transform(self, images: Tensor, indices: Tensor) -> Tensor:
        """Augment each image on its own.

        Args:
            images: uint8 [B, H, W, C]; H and W may be smaller than those of the training images.
            indices: int64 [B], the position of each image in the training split; no index occurs twice.

        Returns:
            [B, H, W, C], uint8, or float32 in [0, 255] if pixels were interpolated, recolored, blurred or noisy.
        """
        images = self.crop_flip(images, indices)
        for transform in (self.rotation, self.color_jitter, self.cutout, self.blur, self.noise):
            images = transform(images)
        return images

    def mix(self, images: Tensor, labels: Tensor) -> Mixed:
        """Mix the images [B, H, W, C] of a batch, and their labels int64 [B], by MixUp or CutMix."""
        return self.mixup_cutmix(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, except for the state of `generator`."""
        return {
            "flip_state": self.crop_flip.flip_state,
            "cpu_generators": [generator.get_state() for generator in self._cpu_generators()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, for the same configuration and number of training images."""
        self.crop_flip.flip_state.copy_(state["flip_state"])
        for generator, generator_state in zip(self._cpu_generators(), state["cpu_generators"], strict=True):
            generator.set_state(generator_state)

    def _cpu_generators(self) -> list[torch.Generator]:
        generators = (self.color_jitter.cpu_generator, self.mixup_cutmix.cpu_generator)
        return [generator for generator in generators if generator is not None]
