"""Random number generators of the augmentations."""

import torch


def host_generator(generator: torch.Generator) -> torch.Generator:
    """Make a generator on the CPU, seeded by `generator`, for what decides which code runs.

    Reading such a choice from a GPU would make the host wait for it in every step.
    """
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
