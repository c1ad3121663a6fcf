import torch

from vision.core.augment.generators import make_cpu_generator


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cpu_generator_depends_on_the_state_of_the_generator() -> None:
    first, again, other = (torch.rand(3, generator=make_cpu_generator(seeded(seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
