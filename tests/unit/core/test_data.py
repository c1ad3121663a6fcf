import torch
from torch import Tensor

from small_training import train_config
from vision.core.augment.pipeline import Augmentation
from vision.core.data import Batch, ImageDataset, batches_per_epoch, epoch_indices, iter_batches


def numbered_dataset(count: int) -> ImageDataset:
    """Images whose pixels and labels are their index (the pixels modulo 256)."""
    labels = torch.arange(count)
    return ImageDataset(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous(), labels)


def one_epoch(count: int, candidates: Tensor, batch_size: int, generator: torch.Generator) -> list[Batch]:
    indices = epoch_indices(candidates, batch_size, generator)
    return [batch for batches in iter_batches(numbered_dataset(count), indices, batch_size) for batch in batches]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_epoch_has_each_image_at_most_once_with_its_label_and_index() -> None:
    batches = one_epoch(103, torch.arange(103), 10, seeded(0))
    assert [len(batch.labels) for batch in batches] == [10] * 10
    assert batches_per_epoch(103, 10) == 10
    indices = torch.cat([batch.indices for batch in batches])
    assert len(set(indices.tolist())) == 100
    for batch in batches:
        assert torch.equal(batch.labels, batch.indices)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert batch.images.dtype == torch.uint8
        assert batch.other_labels is None
        assert batch.weights is None


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    batches = one_epoch(7, torch.arange(7), 10, seeded(0))
    assert [sorted(batch.labels.tolist()) for batch in batches] == [list(range(7))]
    assert batches_per_epoch(7, 10) == 1


def test_an_epoch_has_only_the_candidates() -> None:
    candidates = torch.arange(0, 100, 3)
    batches = one_epoch(100, candidates, 17, seeded(0))
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == candidates.tolist()
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices) for batch in batches)


def test_the_seed_determines_the_order_and_each_epoch_has_its_own() -> None:
    def two_epochs(seed: int) -> list[list[int]]:
        generator = seeded(seed)
        epochs = [one_epoch(50, torch.arange(50), 5, generator) for _ in range(2)]
        return [torch.cat([batch.indices for batch in batches]).tolist() for batches in epochs]

    first, second = two_epochs(0)
    assert first != second
    assert two_epochs(0) == [first, second]
    assert two_epochs(1) != [first, second]


def test_small_batches_are_yielded_several_at_a_time_and_large_ones_one_by_one() -> None:
    def sizes(batch_size: int) -> list[list[int]]:
        indices = epoch_indices(torch.arange(1205), batch_size, seeded(0))
        lists = iter_batches(numbered_dataset(1205), indices, batch_size)
        return [[len(batch.labels) for batch in batches] for batches in lists]

    assert sizes(20) == [[20] * 25, [20] * 25, [20] * 10]
    assert sizes(600) == [[600], [600]]


def test_batches_are_augmented_and_mixed() -> None:
    dataset = numbered_dataset(100)
    config = train_config(augment={"flip": "none", "crop_padding": 0, "mixup": 1.0}).augment
    augmentation = Augmentation(config, dataset.images, seeded(0))
    for batches in iter_batches(dataset, torch.arange(100), 10, augmentation):
        for batch in batches:
            assert batch.other_labels is not None
            assert batch.weights is not None
            expected = batch.weights * batch.labels + (1 - batch.weights) * batch.other_labels
            assert torch.allclose(batch.images[:, 0, 0, 0], expected, atol=1e-4)
