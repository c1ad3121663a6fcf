import torch

from vision.batches import Examples, batches_per_epoch, shuffled_batches


def examples(count: int) -> Examples:
    labels = torch.arange(count)
    return Examples(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous(), labels)


def test_an_epoch_shows_each_image_at_most_once_with_its_own_label_and_number() -> None:
    batches = list(shuffled_batches(examples(103), torch.arange(103), 10, torch.Generator().manual_seed(0)))
    assert [len(batch.labels) for batch in batches] == [10] * 10
    assert batches_per_epoch(103, 10) == 10
    numbers = torch.cat([batch.numbers for batch in batches])
    assert len(set(numbers.tolist())) == 100
    for batch in batches:
        assert torch.equal(batch.labels, batch.numbers)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.numbers)
        assert batch.images.dtype == torch.uint8


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    batches = list(shuffled_batches(examples(7), torch.arange(7), 10, torch.Generator().manual_seed(0)))
    assert [sorted(batch.labels.tolist()) for batch in batches] == [list(range(7))]
    assert batches_per_epoch(7, 10) == 1


def test_only_the_chosen_images_are_shown() -> None:
    chosen = torch.arange(0, 100, 3)
    batches = list(shuffled_batches(examples(100), chosen, 17, torch.Generator().manual_seed(0)))
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
