import pytest

from small_training import train_config
from vision.core.plan import plan_epochs, value_in_epoch


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (6, [1, 1, 2, 2, 3, 3]), (4, [1, 2, 3, 3])],
)
def test_values_get_equal_parts_of_the_epochs_and_the_last_epoch_the_last_value(
    epochs: int, expected: list[int]
) -> None:
    assert [value_in_epoch([1, 2, 3], epoch, epochs) for epoch in range(1, epochs + 1)] == expected


def test_the_first_epoch_uses_all_images_and_each_at_least_one_batch() -> None:
    config = train_config(epochs=4, batch_size=50, hard_example_fraction=[0.5, 0.5, 0.25, 0.01])
    for num_images, expected in ((230, [(230, 4), (115, 2), (58, 1), (50, 1)]), (30, [(30, 1)] * 4)):
        assert [(plan.num_images, plan.steps) for plan in plan_epochs(config, num_images)] == expected


def test_smaller_and_fewer_images_are_less_work() -> None:
    config = train_config(epochs=2, batch_size=50, progressive_resizing=[0.5, 1.0], hard_example_fraction=[1.0, 0.5])
    first, second = plan_epochs(config, 200)
    # 200 images with 1/4 of the pixels, then 100 at full size.
    assert (first.start, first.end) == pytest.approx((0, 1 / 3))
    assert (second.start, second.end) == pytest.approx((1 / 3, 1))
