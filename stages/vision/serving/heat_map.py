"""Where the network looked, by occlusion (Zeiler and Fergus 2014, arXiv:1311.2901).

A patch of the image is covered with its mean color. The more the class loses by it, the more the network depends on
that patch. This needs only the network's answers, so it works for every model, exported graphs too.
"""

import numpy as np

GRID = 8
"""Patches along each side; GRID x GRID is one batch."""
PATCH = 0.25
"""Side of a patch, relative to the image's; patches overlap."""


def cover_patches(pixels: np.ndarray) -> list[np.ndarray]:
    """Make the images, uint8 [H, W, 3] each, with one patch covered, row by row of the grid."""
    color = pixels.mean((0, 1)).round().astype(np.uint8)
    images = []
    for row in _patches(pixels.shape[0]):
        for column in _patches(pixels.shape[1]):
            images.append(pixels.copy())
            images[-1][row, column] = color
    return images


def heat_map(probability: float, covered: np.ndarray) -> np.ndarray:
    """Compute how much each patch matters for a class.

    The loss is measured in log-odds, which tell 0.999 from 0.99; probabilities themselves would all look alike.

    Args:
        probability: of the class, for the whole image.
        covered: of the class, for the images of `cover_patches`: [GRID * GRID].

    Returns:
        [GRID, GRID] in [0, 1]: 0 where the class loses nothing or gains, 1 where it loses most.
    """
    loss = np.clip(_log_odds(np.float64(probability)) - _log_odds(covered), 0, None).reshape(GRID, GRID)
    return loss / max(loss.max(), 1e-6)


def _patches(side: int) -> list[slice]:
    """The patches along a side, with their centers evenly spaced and the outer ones cut off at the border."""
    half = max(1, round(side * PATCH / 2))
    centers = [round((number + 0.5) * side / GRID) for number in range(GRID)]
    return [slice(max(0, center - half), center + half) for center in centers]


def _log_odds(probability: np.ndarray | np.float64) -> np.ndarray:
    clipped = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))
