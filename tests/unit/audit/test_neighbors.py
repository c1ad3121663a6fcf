import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from vision.audit import neighbors, thumbnails
from vision.audit.outliers import rank_outliers


@pytest.mark.parametrize("cells", [1, 1000, 2**25])
def test_neighbors_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(neighbors, "_CELLS", cells)
    features = torch.nn.functional.normalize(torch.randn(70, 5, generator=torch.Generator().manual_seed(0)))
    counted: list[int] = []
    found = neighbors.nearest_neighbors(70, 4, lambda part: features[part] @ features.T, counted.append)
    distances, indices = NearestNeighbors(n_neighbors=4, metric="cosine").fit(features).kneighbors()
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(1 - found.similarities, distances, atol=1e-6)
    assert sum(counted) == 70


def test_few_images_have_few_neighbors() -> None:
    features = torch.eye(3)
    assert neighbors.nearest_neighbors(3, 10, lambda part: features[part] @ features.T).indices.shape == (3, 2)


def test_thumbnails_are_compared_with_mirror_images_too(scenes: np.ndarray) -> None:
    images = torch.from_numpy(scenes[:40])
    own = thumbnails.make_thumbnails(images)
    mirrored = thumbnails.make_thumbnails(images.flip(2))
    found = thumbnails.correlate(own, mirrored)
    means = images.float().view(40, 8, 4, 8, 4, 3).mean((2, 4))
    means -= means.mean((1, 2), keepdim=True)
    rows, flipped = (torch.nn.functional.normalize(part.flatten(1)) for part in (means, means.flip(2)))
    torch.testing.assert_close(found, torch.maximum(rows @ rows.T, rows @ flipped.T), atol=1e-5, rtol=0)
    for other, flip in ((own, False), (mirrored, True)):
        correlation, is_mirrored = thumbnails.correlate_pairs(own, other)
        torch.testing.assert_close(correlation, torch.ones(40))
        assert (is_mirrored == flip).all()


def test_the_image_far_from_all_others_is_the_first_outlier() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0]) + 0.1 * torch.randn(300, 3, generator=random))
    features[123] = torch.tensor([0.0, 1, 0])
    near = neighbors.nearest_neighbors(300, 5, lambda part: features[part] @ features.T)
    outliers = rank_outliers(near)
    assert outliers.indices[0] == 123
    assert len(outliers.indices) == 3
    assert (np.diff(outliers.distances) <= 0).all()
    expected = np.sort(1 - (features[123] @ features.T).numpy())[:6].sum() / 5  # its distance to itself is 0 or 1 - 1
    assert outliers.distances[0] == pytest.approx(expected, abs=1e-5)
