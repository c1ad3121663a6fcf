"""Random number generators of the augmentations."""

import torch


def make_cpu_generator(generator: torch.Generator) -> torch.Generator:
    """Make a generator on the CPU that is seeded by `generator`.

    It is for numbers that decide which code runs. If they were drawn on a GPU, the CPU would have to wait for the GPU
    at every step.
    """
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
