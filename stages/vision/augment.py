"""Augmentation of whole batches, on the device that the data is on.

Flips and shifts move whole pixels, so both are index maps: output pixel (i, j) of image n is input pixel
(rows[n, i], columns[n, j]). No pixel is invented, and one gather does it all, whatever the combination. Cutout writes
to such indices. Everything here keeps bytes bytes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Flip = Literal["none", "random", "alternate"]


def take_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rearrange each image by its own index maps.

    Args:
        images: [N, H, W, C], any dtype.
        rows: int64 [N, H'], for each output row the input row.
        columns: int64 [N, W'], for each output column the input column.

    Returns:
        [N, H', W', C], a view that is contiguous in [N, W', H', C].
    """
    count, height, width, channels = images.shape
    # Two gathers of long rows are copied as blocks of memory: on a CPU six times faster than one gather of pixels.
    picked = _take_rows(images.reshape(count * height, width * channels), rows, height)
    turned = picked.view(count, -1, width, channels).transpose(1, 2).contiguous()
    picked = _take_rows(turned.view(count * width, -1), columns, width)
    return picked.view(count, columns.shape[1], rows.shape[1], channels).transpose(1, 2)


def _take_rows(table: Tensor, index: Tensor, rows_per_image: int) -> Tensor:
    first = torch.arange(len(index), device=index.device)[:, None] * rows_per_image
    return table.index_select(0, (first + index).flatten())


def reflected(index: Tensor, size: int) -> Tensor:
    """Fold indices that lie up to `size - 1` outside [0, size) back into it, mirrored at the edge pixels."""
    return (size - 1) - (index.abs() - (size - 1)).abs()


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Shift each image, its edges reflected, then mirror it left to right where asked.

    Args:
        images: [N, H, W, C], any dtype.
        down: int64 [N], pixels, each less than H in size.
        right: int64 [N], pixels, each less than W in size.
        mirrored: bool [N].

    Returns:
        [N, H, W, C], strided as `take_pixels` says.
    """
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) - right[:, None]
    return take_pixels(images, reflected(rows, height), reflected(columns, width))


def shrunk(images: Tensor, scale: float) -> Tensor:
    """Shrink uint8 images [N, H, W, C], smoothed (antialiased), to uint8 [N, scale * H, scale * W, C].

    Sizes are rounded, and no less than two pixels.
    """
    if scale == 1:
        return images
    size = [max(2, round(scale * pixels)) for pixels in images.shape[1:3]]
    parts = []
    for part in images.permute(0, 3, 1, 2).split(1000):
        # On a CPU bytes are resized as they are, on other devices only floats can be.
        exact = part if part.device.type == "cpu" else part.float()
        resized = F.interpolate(exact, size, mode="bilinear", antialias=True)
        parts.append(resized.round().clamp(0, 255).to(torch.uint8) if resized.is_floating_point() else resized)
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def cut_out(images: Tensor, top: Tensor, left: Tensor, side: int, colour: Tensor) -> Tensor:
    """Cover a square of each image with one colour.

    Args:
        images: [N, H, W, C], any dtype.
        top: int64 [N], the square's first row; at least one of its rows must lie inside the image.
        left: int64 [N], its first column; the same holds.
        side: pixels, at least 1; what lies outside the image is cut off.
        colour: [C], the dtype of the images.

    Returns:
        [N, H, W, C], strided as the images are.
    """
    count, height, width, _ = images.shape
    along = torch.arange(side, device=images.device)
    # A row or column outside becomes the one at the edge, which is covered anyway.
    rows = (top[:, None] + along).clamp(0, height - 1)
    columns = (left[:, None] + along).clamp(0, width - 1)
    covered = images.clone()
    covered[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None]] = colour
    return covered


class Augment:
    """Random shift (padded random crop) and flip of training batches.

    `flip` is "none", "random" (a coin each time) or "alternate": a coin when an image is first shown, and from then on
    the side that was not shown last, so that the network sees both equally often (after Jordan 2024, "94% on CIFAR-10
    in 3.29 seconds", arXiv:2404.00498, where each image is shown in each epoch). `crop_padding` is the largest shift
    in pixels.
    """

    def __init__(self, flip: Flip, crop_padding: int, images: int, generator: torch.Generator) -> None:
        """Toss the first coins of `images` training images with `generator`, which is on their device."""
        self.flip = flip
        self.crop_padding = crop_padding
        self.generator = generator
        self.coins = self._tossed(images)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Augment images [N, H, W, C] that are numbered [N] in the data set, each number at most once."""
        reach = min(self.crop_padding, images.shape[1] - 1, images.shape[2] - 1)
        if self.flip == "none" and reach == 0:
            return images
        shifts = torch.randint(
            -reach, reach + 1, (2, len(images)), generator=self.generator, device=self.generator.device
        )
        if self.flip == "none":
            mirrored = torch.zeros_like(numbers, dtype=torch.bool)
        elif self.flip == "random":
            mirrored = self._tossed(len(images))
        else:
            mirrored = self.coins[numbers]
            self.coins[numbers] = ~mirrored
        return shift_and_flip(images, shifts[0], shifts[1], mirrored)

    def _tossed(self, count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=self.generator, device=self.generator.device) == 1


class Cutout:
    """Hide a square of each training image (DeVries & Taylor 2017, "Improved regularization of CNNs with cutout").

    Its centre is any pixel of the image, so that part of it may lie outside, as in the paper (arXiv:1708.04552). It has
    the mean colour of the training images, which normalisation per channel takes to 0 as nearly as bytes can. Smaller
    images get a smaller square: the same share of them is hidden.
    """

    def __init__(self, side: int, images: Tensor, generator: torch.Generator) -> None:
        """`side`, in pixels, is for images of the size of the training `images`, uint8 [N, H, W, C]; 0 is off."""
        self.share = side / images.shape[1]
        self.generator = generator
        if side:
            some = images[:: -(-len(images) // 5000)]  # enough to know the mean, and summed in no time
            self.colour = some.float().mean((0, 1, 2)).round().to(images.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Cover a square of each of the images [N, H, W, C], uint8 or float."""
        if self.share == 0:
            return images
        count, height, width, _ = images.shape
        side = max(1, round(self.share * height))
        top, left = (
            torch.randint(size, (count,), generator=self.generator, device=self.generator.device) - side // 2
            for size in (height, width)
        )
        return cut_out(images, top, left, side, self.colour.to(images.dtype))


def host_generator(generator: torch.Generator) -> torch.Generator:
    """Make a generator on the CPU, seeded by `generator`, for what decides which code runs.

    Reading such a choice from a GPU would make the host wait for it in every step.
    """
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
