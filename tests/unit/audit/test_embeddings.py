import torch
from torch import nn

from small_training import INPUTS, striped_images
from vision.audit.embeddings import embed, whiten
from vision.core.models.registry import create_model

IMAGES = striped_images(30, seed=0).images


def test_the_features_are_the_input_of_the_last_layer_of_both_views() -> None:
    torch.manual_seed(0)
    model = create_model("convnet", {"widths": [8, 16], "depth": 1}, INPUTS, 4).eval()
    counted: list[int] = []
    found = embed(model, IMAGES, 7, torch.float32, counted.append)
    assert counted == [7, 7, 7, 7, 2]
    torch.testing.assert_close(found, embed(model, IMAGES.flip(2), 30, torch.float32))
    head = model.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(head(found), (model(IMAGES) + model(IMAGES.flip(2))) / 2, atol=1e-4, rtol=1e-4)
        model(IMAGES)  # the hook is gone
    assert len(counted) == 5


def test_whitened_features_are_uncorrelated() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 6, generator=random) @ torch.randn(6, 6, generator=random) + 5
    found = whiten(features)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2000))
    covariance = found.T @ found / 2000
    torch.testing.assert_close(covariance, torch.eye(6) / 6, atol=0.02, rtol=0)


def test_constant_features_are_no_problem() -> None:
    features = torch.zeros(50, 4)
    assert torch.isfinite(whiten(features)).all()
    features[:, 1] = torch.arange(50)
    assert torch.isfinite(whiten(features)).all()
