from collections.abc import Callable

import torch
from torch import Tensor

from vision.core.data import Batch, ImageDataset, batches_per_epoch, epoch_indices, iter_batches


def examples(count: int) -> ImageDataset:
    labels = torch.arange(count)
    return ImageDataset(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous(), labels)


def shuffled_batches(
    examples: ImageDataset,
    chosen: Tensor,
    batch_size: int,
    generator: torch.Generator,
    augment: Callable[[Tensor, Tensor], Tensor] = lambda images, numbers: images,
) -> list[Batch]:
    order = epoch_indices(chosen, batch_size, generator)
    return [batch for handful in iter_batches(examples, order, batch_size, augment) for batch in handful]


def test_an_epoch_shows_each_image_at_most_once_with_its_own_label_and_number() -> None:
    batches = shuffled_batches(examples(103), torch.arange(103), 10, torch.Generator().manual_seed(0))
    assert [len(batch.labels) for batch in batches] == [10] * 10
    assert batches_per_epoch(103, 10) == 10
    numbers = torch.cat([batch.numbers for batch in batches])
    assert len(set(numbers.tolist())) == 100
    for batch in batches:
        assert torch.equal(batch.labels, batch.numbers)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.numbers)
        assert batch.images.dtype == torch.uint8


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    batches = shuffled_batches(examples(7), torch.arange(7), 10, torch.Generator().manual_seed(0))
    assert [sorted(batch.labels.tolist()) for batch in batches] == [list(range(7))]
    assert batches_per_epoch(7, 10) == 1


def test_only_the_chosen_images_are_shown() -> None:
    chosen = torch.arange(0, 100, 3)
    batches = shuffled_batches(examples(100), chosen, 17, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([batch.numbers for batch in batches]).tolist()) == chosen.tolist()
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.numbers) for batch in batches)


def test_each_epoch_has_an_order_of_its_own_that_the_seed_determines() -> None:
    def orders(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            [
                number
                for batch in shuffled_batches(examples(50), torch.arange(50), 5, generator)
                for number in batch.numbers.tolist()
            ]
            for _ in range(2)
        ]

    first, second = orders(0)
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1) != [first, second]


def test_small_batches_are_augmented_several_at_a_time_and_large_ones_one_by_one() -> None:
    def sizes(batch_size: int) -> tuple[list[int], list[int]]:
        told: list[int] = []

        def brighter(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            assert torch.equal(images[:, 0, 0, 0].long(), numbers % 256)
            told.append(len(images))
            return images + 1

        generator = torch.Generator().manual_seed(0)
        batches = shuffled_batches(examples(1205), torch.arange(1205), batch_size, generator, brighter)
        assert all(torch.equal(batch.images[:, 0, 0, 0].long(), (batch.numbers + 1) % 256) for batch in batches)
        assert all(torch.equal(batch.labels, batch.numbers) for batch in batches)
        return told, [len(batch.labels) for batch in batches]

    assert sizes(20) == ([500, 500, 200], [20] * 60)
    assert sizes(600) == ([600, 600], [600, 600])
