"""Run the scripts of other CIFAR-10 speed records from their checkouts.

On CUDA a script runs unchanged, but for the pauses in which the GPU cools. For a CPU its source is changed in a
temporary copy: bfloat16 instead of half precision (so their weights have three bits less), a clock instead of CUDA
events, no compilation, no CUDA graphs, no pinned memory. The hyperparameters are unchanged.
"""

import importlib.util
import os
import random
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fulcrum
import numpy as np
import torch
from contender import Run, count_flops, read_clock
from torch import Tensor

SCRIPTS = {
    "airbench": "airbench94_muon.py",
    "hiverge": "cifar10_speedrun.py",
    "fulcrum_e5": "fable-100m/recipes/e5_1.80s_single-gpu.py",
    "fulcrum_e1": "fable-100m/recipes/e1_1.74s_single-gpu_CHAMPION.py",
    "airbench96": "airbench96_faster.py",
}
"""Where the script of a peer is in its checkout."""
CHECKOUTS = {
    "airbench": ("airbench",),
    "hiverge": ("hiverge",),
    "fulcrum": ("fulcrum_e5", "fulcrum_e1"),
    "airbench96": ("airbench96",),
}
"""Which peers a checkout has."""

CHANGES = [(r"\btime\.sleep\(\d+\)", "pass")]
FOR_CPU = [
    (r"(?m)^\s*@torch\.compile.*\n", ""),
    (r"torch\.compile\((\w+)[^()]*\)", r"\1"),
    (r"\.half\(\)", ".bfloat16()"),
    (r"torch\.half\b", "torch.bfloat16"),
    (r"\.cuda\(\)", ""),
    (r"(['\"])cuda\1", '"cpu"'),
    (r"torch\.cuda\.Event\(enable_timing=True\)", "Clock()"),
    (r"\.pin_memory\(\)", ""),
    (r"torch\.cuda\.synchronize\(\)", "pass"),
]


class Clock:
    """A replacement of torch.cuda.Event on a CPU."""

    def record(self) -> None:
        """Record the time."""
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: "Clock") -> float:
        """Return the milliseconds until `later`."""
        return 1e3 * (later.seconds - self.seconds)


def iter_runs(
    name: str, checkout: Path, data: dict[str, list[np.ndarray]], device: torch.device, repeats: int, seed: int
) -> Iterator[Run]:
    """Run a peer's training `repeats` times, with the seeds from `seed` on, after a warm-up on CUDA, where it compiles.

    The clock is that of https://github.com/fulcrumresearch/cifar-10-speedrun: `seconds` include resetting the weights
    and the whitening of each run, and exclude reading the data, building and compiling.

    Args:
        name: one of `SCRIPTS`.
        checkout: its folder.
        data: images, uint8 [N, 32, 32, 3], and labels, uint8 [N], of `train` and `test`.
        device: CPU or CUDA.
        repeats: how many trainings.
        seed: of the first one.
    """
    source = (checkout / SCRIPTS[name]).read_text()
    for pattern, replacement in CHANGES + (FOR_CPU if device.type == "cpu" else []):
        source = re.sub(pattern, replacement, source)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("cifar10").mkdir()
        for split, arrays in data.items():
            images, labels = map(torch.from_numpy, arrays)
            torch.save({"images": images, "labels": labels.long(), "classes": []}, f"cifar10/{split}.pt")
        os.environ["CIFAR_DATA"] = "cifar10"
        Path("peer.py").write_text(source)
        sys.argv[0] = "peer.py"  # the scripts read themselves
        peer = _import_script(Path("peer.py"))
        started = read_clock()
        if name.startswith("fulcrum"):
            train = fulcrum.prepare(peer, device)
        else:
            train = _prepare_two_nets(peer, device) if name == "airbench96" else _prepare_one_net(peer, device)
        warm_up = read_clock() - started
        for run in range(repeats):
            torch.manual_seed(seed + run)
            random.seed(seed + run)
            yield {**train(run), "warm_up": warm_up}


def _prepare_one_net(peer: Any, device: torch.device) -> Callable[[int], Run]:
    flops = count_flops(peer.CifarNet(), 32)
    model = peer.CifarNet().to(device).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        model.compile(mode="max-autotune")
    return _prepare_main(
        peer, device, lambda run: peer.main(run, model), lambda variables: variables["train_loader"].batch_size, flops
    )


def _prepare_two_nets(peer: Any, device: torch.device) -> Callable[[int], Run]:
    """A small network selects the half of each batch that the large one is trained on. Its operations are not counted.

    The large one exists twice: with a trainable bias in the first layer, and with a frozen one.
    """
    options: dict[str, Any] = {"mode": "max-autotune"} if device.type == "cuda" else {"backend": "eager"}
    nets = [peer.make_net(peer.hyp[size]) for size in ("proxy", "net", "net")]
    for net in (nets[0], nets[2]):
        net[0].bias.requires_grad = False
    flops = count_flops(peer.make_net(peer.hyp["net"]).to("cpu"), 32)
    compiled = [torch.compile(net, **options) for net in nets]
    return _prepare_main(
        peer, device, lambda run: peer.main(run, peer.hyp, *compiled), lambda variables: len(variables["inputs"]), flops
    )


STEPS, SECONDS = ("step", "current_steps"), ("time_seconds", "total_time_seconds")


def _prepare_main(
    peer: Any,
    device: torch.device,
    main: Callable[[int | str], object],
    images_per_step: Callable[[dict[str, Any]], int],
    flops_per_image: float,
) -> Callable[[int], Run]:
    """Return a function that calls the script's `main` and takes the results from what it prints at its end."""
    found: dict[str, Any] = {}
    evaluate = peer.evaluate

    def evaluate_and_time(*args: Any, tta_level: int = 0) -> float:
        started = read_clock()
        accuracy: float = evaluate(*args, tta_level=tta_level)
        if tta_level:
            found["tta_seconds"] = read_clock() - started
        return accuracy

    def record(variables: dict[str, Any], is_final_entry: bool) -> None:
        steps, seconds = (next(variables[key] for key in keys if key in variables) for keys in (STEPS, SECONDS))
        found.update(images=steps * images_per_step(variables), seconds=seconds, one_view=variables["val_acc"])
        if is_final_entry:
            found["tta"] = variables["tta_val_acc"]

    def train(run: int) -> Run:
        main(run)
        return Run(
            one_view=found["one_view"],
            tta=found["tta"],
            seconds=found["seconds"] - found["tta_seconds"],
            tta_seconds=found["tta_seconds"],
            images=found["images"],
            flops=flops_per_image * found["images"],
        )

    peer.evaluate, peer.print_training_details = evaluate_and_time, record
    if device.type == "cuda":
        main("warmup")
    return train


def _import_script(path: Path) -> Any:
    if importlib.util.find_spec("torchvision") is None:
        sys.modules.update(_minimal_torchvision())
    spec = importlib.util.spec_from_file_location("peer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    module.__dict__["Clock"] = Clock
    spec.loader.exec_module(module)
    return module


def _minimal_torchvision() -> dict[str, types.ModuleType]:
    """Replace the only class of torchvision that the scripts use, on machines without torchvision."""

    class Normalize:
        def __init__(self, mean: Tensor, std: Tensor) -> None:
            self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

        def __call__(self, images: Tensor) -> Tensor:
            return (images - self.mean.to(images)) / self.std.to(images)

    package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.__dict__["Normalize"] = Normalize
    package.__dict__["transforms"] = transforms
    return {"torchvision": package, "torchvision.transforms": transforms}
