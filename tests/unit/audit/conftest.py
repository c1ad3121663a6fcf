"""Images that look like photos as far as the search for near-duplicates is concerned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def make_scenes(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """Smooth random images, uint8 [count, side, side, 3], each unlike all others."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.randn(count, colors, size, size, generator=generator), size=(side, side), mode="bicubic")
        for size, colors in ((4, 3), (8, 3), (16, 1), (32, 1))
    ]
    pixels = 128 + 40 * (layers[0] + 0.7 * layers[1] + 0.5 * layers[2] + 0.5 * layers[3])
    return pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="session")
def scenes() -> np.ndarray:
    """300 images, uint8 [300, 32, 32, 3]."""
    return make_scenes(300)
