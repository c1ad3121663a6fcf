import numpy as np
import pytest
import torch

from vision.core.confidence import fit_min_confidence


def test_95_percent_of_the_images_reach_the_lowest_confidence() -> None:
    logits = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0)) * 3
    confidence = logits.double().softmax(1).amax(1).numpy()
    lowest = fit_min_confidence(logits)
    assert (confidence >= lowest).mean() == 0.95
    assert lowest == pytest.approx(np.quantile(confidence, 0.05), rel=0.01)


@pytest.mark.parametrize("images", [1, 2, 19])
def test_with_few_images_all_reach_it(images: int) -> None:
    logits = torch.randn(images, 3, generator=torch.Generator().manual_seed(images))
    assert fit_min_confidence(logits) == logits.double().softmax(1).amax(1).min()
