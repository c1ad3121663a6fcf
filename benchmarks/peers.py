"""Run the scripts of other CIFAR-10 speed records from their checkouts.

On CUDA a script runs unchanged. For a CPU its source is changed in a temporary copy: bfloat16 instead of half precision
(so their weights have three bits less), a clock instead of CUDA events, no compilation, no pinned memory. The
hyperparameters are unchanged.
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

import numpy as np
import torch
from torch import Tensor

SCRIPTS = {"airbench": "airbench94_muon.py", "hiverge": "cifar10_speedrun.py", "airbench96": "airbench96_faster.py"}

FOR_CPU = [
    (r"(?m)^\s*@torch\.compile.*\n", ""),
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
    name: str, checkout: Path, data: dict[str, np.ndarray], device: torch.device, repeats: int, seed: int
) -> Iterator[dict[str, float]]:
    """Run a peer's training `repeats` times, with the seeds from `seed` on, after a warm-up on CUDA, where it compiles.

    `seconds` are those that the script counts: whitening, training and test-time augmentation, without reading the
    data. `warm_up` is the duration of the warm-up in seconds.
    """
    script = checkout / SCRIPTS[name]
    source = script.read_text()
    if device.type == "cpu":
        for pattern, replacement in FOR_CPU:
            source = re.sub(pattern, replacement, source)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("cifar10").mkdir()
        for split in ("train", "test"):
            images, labels = (torch.from_numpy(data[f"{split}_{kind}"]) for kind in ("images", "labels"))
            torch.save({"images": images, "labels": labels.long(), "classes": []}, f"cifar10/{split}.pt")
        Path("peer.py").write_text(source)
        sys.argv[0] = "peer.py"  # the scripts read themselves
        peer = _import_script(Path("peer.py"))
        result: dict[str, Any] = {}
        train, images_per_step, flops = (
            _prepare_two_nets(peer, device) if name == "airbench96" else _prepare_one_net(peer, device)
        )

        def record(variables: dict[str, Any], is_final_entry: bool) -> None:
            steps, seconds = (next(variables[key] for key in keys if key in variables) for keys in (STEPS, SECONDS))
            result.update(
                one_view=variables["val_acc"],
                tta=variables.get("tta_val_acc"),
                seconds=seconds,
                images=steps * images_per_step(variables),
            )

        peer.print_training_details = record
        started = time.perf_counter()
        if device.type == "cuda":
            train("warmup")
            torch.cuda.synchronize()
        warm_up = time.perf_counter() - started
        for run in range(repeats):
            torch.manual_seed(seed + run)
            random.seed(seed + run)
            train(run)
            yield {**result, "warm_up": warm_up, "flops": flops * result["images"]}


STEPS, SECONDS = ("step", "current_steps"), ("time_seconds", "total_time_seconds")
Peer = tuple[Callable[[int | str], object], Callable[[dict[str, Any]], int], float]
"""A function that trains, the images per step (a function of the script's variables), and the operations per image."""


def _prepare_one_net(peer: Any, device: torch.device) -> Peer:
    flops = _count_flops(peer.CifarNet())
    model = peer.CifarNet().to(device).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        model.compile(mode="max-autotune")
    return lambda run: peer.main(run, model), lambda variables: variables["train_loader"].batch_size, flops


def _prepare_two_nets(peer: Any, device: torch.device) -> Peer:
    """A small network selects the half of each batch that the large one is trained on. Its operations are not counted.

    The large one exists twice: with a trainable bias in the first layer, and with a frozen one.
    """
    options: dict[str, Any] = {"mode": "max-autotune"} if device.type == "cuda" else {"backend": "eager"}
    nets = [peer.make_net(peer.hyp[size]) for size in ("proxy", "net", "net")]
    for net in (nets[0], nets[2]):
        net[0].bias.requires_grad = False
    flops = _count_flops(peer.make_net(peer.hyp["net"]).to("cpu"))
    compiled = [torch.compile(net, **options) for net in nets]
    return lambda run: peer.main(run, peer.hyp, *compiled), lambda variables: len(variables["inputs"]), flops


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


def _count_flops(network: torch.nn.Module) -> float:
    """Count approximately: the whitening layer's bias, trained in the first steps only, is counted in all steps."""
    from vision.core.flops import training_flops

    return training_flops(network.float(), torch.zeros(1, 3, 32, 32))
