"""Compare accuracy and time of a recipe with those of the CIFAR-10 speed records, in turn on one machine.

    python benchmarks/speed.py                                      # recipes/speedrun94, five runs
    python benchmarks/speed.py --airbench ../cifar10-airbench       # and airbench94_muon, in turn
    python benchmarks/speed.py --hiverge ../cifar10-speedrun        # and cifar10_speedrun
    python benchmarks/speed.py --validate                           # score held-out training images, for tuning

Needs only torch and numpy, and `data/raw` (run `dvc repro download`). Our seconds include everything from reading the
files to the end of the test-time augmentation; those of the peers are what their scripts count, which excludes reading
the data. images/s are those trained on, and the share of the measured peak is the arithmetic of training, both per
second of this time. Each contender runs in a separate process in each round. On CUDA, where they compile, a process
runs several times (`--repeats`). The pipeline trains a recipe in the same way, but also validates and records.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import peers
import torch

from vision.core import flops, inference, loop
from vision.core.config import AugmentConfig, OptimizerConfig, TrainConfig, TTAConfig
from vision.core.data import ImageDataset
from vision.core.device import compute_deterministically, flush_denormals, keep_freed_memory, select_device
from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.registry import create_model

ROOT = Path(__file__).resolve().parents[1]
ARRAYS = ("images", "labels")
Params = dict[str, Any]
"""The sections and values of params.yaml."""


def read_params(params: Path, recipe: Path) -> Params:
    """Read params.yaml with the changes of a recipe, without a YAML library; sections have one `key: value` per line.

    Raises:
        ValueError: a file is missing or has another format, or the recipe has a key that params.yaml does not have.
    """
    for path in (params, recipe):
        if not path.exists():
            raise ValueError(f"{path}: not found")
    result: Params = {}
    open_sections = [(-1, result)]  # with their indentation
    for number, line in enumerate(params.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(("#", "- {")):  # training does not use the lists of `search`
            continue
        match = re.fullmatch(r"( *)(\w+): *([^#]*?) *(#.*)?", line)
        if not match:
            raise ValueError(f"{params}: line {number}: expected `key: value` (`git checkout {params.name}`?)")
        indent, key, text, _ = match.groups("")
        while open_sections[-1][0] >= len(indent):
            open_sections.pop()
        section = open_sections[-1][1]
        section[key] = _parse(text) if text else {}
        if not text:
            open_sections.append((len(indent), section[key]))
    words = recipe.read_text().split()
    for flag, word in itertools.zip_longest(words[::2], words[1::2], fillvalue=""):
        match = re.fullmatch(r"((?:\w+\.)*)(\w+)=(\S+)", word)
        if flag != "-S" or not match:
            raise ValueError(f"{recipe}: expected `-S section.key=value`, not `{flag} {word}`")
        section = result
        for name in match[1].split(".")[:-1]:
            section = section.get(name, {})
        if match[2] not in section:
            raise ValueError(f"{recipe}: {params.name} has no {match[1]}{match[2]}")
        section[match[2]] = _parse(match[3])
    return result


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def train_config(params: Params, seed: int, dtype: torch.dtype) -> TrainConfig:
    """Return the configuration of the training that params.yaml describes."""
    others = ("device", "precision", "deterministic", "checkpoint_seconds", "optimizer", "augment")
    return TrainConfig(
        seed=seed,
        dtype=dtype,
        freeze_epochs=params["model"]["freeze_epochs"],
        optimizer=OptimizerConfig(**params["train"]["optimizer"]),
        augment=AugmentConfig(**params["train"]["augment"]),
        **{key: value for key, value in params["train"].items() if key not in others},
    )


def build_network(params: Params, mean: list[float], std: list[float]) -> Classifier:
    """Build the recipe's network for CIFAR-10."""
    section = params["model"]
    options = section.get(section["name"], section["torchvision"])
    inputs = InputSpec([32, 32, 3], mean, std, section["image_size"])
    return create_model(section["name"], options, inputs, 10)


def load_data(options: argparse.Namespace, device: torch.device) -> tuple[ImageDataset, ImageDataset]:
    """Read the training and test splits; with --validate, both are parts of the training split."""
    images, labels = (torch.tensor(np.load(options.data / f"train_{name}.npy"), device=device) for name in ARRAYS)
    if options.validate:
        held_out, *others = torch.randperm(len(labels), device=device).split(5000)
        train = torch.cat(others)
        return ImageDataset(images[train], labels[train].long()), ImageDataset(
            images[held_out], labels[held_out].long()
        )
    test_images, test_labels = (
        torch.tensor(np.load(options.data / f"test_{name}.npy"), device=device) for name in ARRAYS
    )
    return ImageDataset(images, labels.long()), ImageDataset(test_images, test_labels.long())


class OurRuns:
    """Our trainings of a recipe."""

    def __init__(self, params: Params, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
        """Set up the process as stages/train.py does."""
        self.params, self.options, self.device, self.dtype = params, options, device, dtype
        self.compiled: Classifier | None = None
        keep_freed_memory()
        flush_denormals()
        if params["train"]["deterministic"]:
            compute_deterministically()

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Train and test `repeats` times, with the seeds from `seed` on; warm up before, on CUDA or to compile."""
        warm_up = 0.0
        if self.device.type == "cuda" or self.options.compile:
            warm_up = self.run(self.options.seed + self.options.repeats - 1)["seconds"]
        for repeat in range(self.options.repeats):
            yield {**self.run(self.options.seed + repeat), "warm_up": warm_up}

    def run(self, seed: int) -> dict[str, float]:
        """Train and test once."""
        start = time.perf_counter()
        torch.manual_seed(seed)
        train, test = load_data(self.options, self.device)
        model = self.build_model(train)
        config = train_config(self.params, seed, self.dtype)
        result = loop.fit(model, train, ImageDataset(train.images[:0], train.labels[:0]), config)
        evaluate = self.params["evaluate"]
        tta = TTAConfig(evaluate["batch_size"], self.dtype, evaluate["tta"], evaluate["tta_fraction"])
        one_view = inference.predict(model, test.images, tta.batch_size, self.dtype)
        logits = inference.predict_tta(model, test.images, one_view, tta)
        one_view_accuracy, accuracy = (
            (found.argmax(1) == test.labels).float().mean().item() for found in (one_view, logits)
        )
        seconds = time.perf_counter() - start
        return {
            "one_view": one_view_accuracy,
            "tta": accuracy,
            "seconds": seconds,
            "images": sum(epoch.images for epoch in result.history),
            "flops": count_flops(self.params, result.history),
        }

    def build_model(self, train: ImageDataset) -> Classifier:
        """Build the network; with --compile, later runs load new weights into the model that was compiled first."""
        pixels = train.images.float() / 255
        mean, std = pixels.mean((0, 1, 2)).tolist(), pixels.std((0, 1, 2)).tolist()
        model = build_network(self.params, mean, std).to(self.device)
        if self.options.compile:
            if self.compiled is None:
                self.compiled = model
                self.compiled.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
            self.compiled.load_state_dict(model.state_dict())
            model = self.compiled
        model.initialize_from(train.images)
        return model


def count_flops(params: Params, history: list[loop.EpochMetrics]) -> float:
    """Count the operations of all forward and backward passes, on a separate network on the CPU."""
    model = build_network(params, [0.5] * 3, [0.25] * 3)
    sizes = {epoch.image_scale: max(2, round(32 * epoch.image_scale)) for epoch in history}
    per_image = {
        scale: flops.training_flops(model, torch.zeros(1, size, size, 3, dtype=torch.uint8))
        for scale, size in sizes.items()
    }
    return sum(epoch.images * per_image[epoch.image_scale] for epoch in history)


def format_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table with a row per contender, and the ratios of the times of each round."""
    rows = [
        "| | averaged views | one view | n | seconds, median | from, to | warm-up | images/s | share of peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        images_per_s = statistics.median(run["images"] / run["seconds"] for run in runs)
        share = statistics.median(run["flops"] / run["seconds"] / run["peak"] for run in runs)
        rows.append(
            f"| {name} | {_format_spread(runs, 'tta')} | {_format_spread(runs, 'one_view')} | {len(runs)} "
            f"| {statistics.median(seconds):.2f} | {min(seconds):.2f}, {max(seconds):.2f} "
            f"| {statistics.median(run['warm_up'] for run in runs):.0f} | {images_per_s:,.0f} | {share:.0%} |"
        )
    ours, *others = found
    for other in others:
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(found[ours], found[other], strict=True)]
        rows.append(
            f"\n{ours} takes {statistics.median(ratios):.3f} of the time of {other} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})"
        )
    return "\n".join(rows)


def _format_spread(runs: list[dict[str, float]], key: str) -> str:
    values = [100 * run[key] for run in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}%{spread}"


def main() -> None:
    """Run the contenders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/speedrun94")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    for name, script in peers.SCRIPTS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"a checkout with {script}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="runs per round")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--compile", action="store_true", help="compile our network too")
    parser.add_argument("--validate", action="store_true", help="hold out 5,000 training images and score those")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.contender:
        print_runs(options)
        return
    check(options)
    contenders = [options.recipe.name, *(name for name in peers.SCRIPTS if getattr(options, name))]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name in contenders:
            seed = ["--seed", str(options.seed + number * options.repeats)]
            command = [sys.executable, *sys.argv, "--contender", name, *seed]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith("{"):
                        found[name].append(json.loads(line))
                        print(f"round {number + 1} of {options.rounds}: {name}: {line}", end="", file=sys.stderr)
            if process.returncode:
                sys.exit(f"speed.py: {name} failed")
    print(format_table(found))


def check(options: argparse.Namespace) -> None:
    """Exit with a line per problem, if the runs are not possible or would not be comparable."""
    selected = [name for name in peers.SCRIPTS if getattr(options, name)]
    missing = [
        *(options.data / f"{split}_{kind}.npy" for split in ("train", "test") for kind in ARRAYS),
        *(getattr(options, name) / peers.SCRIPTS[name] for name in selected),
    ]
    problems = [f"{path}: not found" for path in missing if not path.exists()]
    if options.rounds < 1 or options.repeats < 1:
        problems.append("--rounds and --repeats must be at least 1")
    try:
        params = read_params(ROOT / "params.yaml", options.recipe)
        device, _ = select_device(params["train"]["device"], params["train"]["precision"])
    except ValueError as error:
        sys.exit("\n".join(f"speed.py: {problem}" for problem in [*problems, str(error)]))
    preprocess = params["preprocess"]
    unused = ("classes", "image_size", "folds", "train_limit")
    if any(preprocess[key] is not None for key in unused) or preprocess["normalize"] != "per_channel":
        problems.append("preprocess: only val_fraction is supported here")
    if (params["model"]["weights"], params["model"]["freeze_epochs"]) != (None, 0):
        problems.append("model.weights and model.freeze_epochs are not supported here")
    if preprocess["val_fraction"] and not options.validate:
        problems.append("the recipe holds out images: use --validate, or preprocess.val_fraction=0.0")
    if options.validate and selected:
        problems.append("--validate: the peers train on all images and are scored on the test split")
    if selected and device.type not in ("cpu", "cuda"):
        problems.append(f"the peers run on a CPU or on CUDA, not on {device.type}")
    if problems:
        sys.exit("\n".join(f"speed.py: {problem}" for problem in problems))


def print_runs(options: argparse.Namespace) -> None:
    """Run one contender; print a line of JSON per run."""
    params = read_params(ROOT / "params.yaml", options.recipe)
    device, dtype = select_device(params["train"]["device"], params["train"]["precision"])
    if options.contender in peers.SCRIPTS and device.type == "cuda":
        dtype = torch.half  # the peers' precision
    peak = flops.peak_flops(device, dtype)
    if options.contender in peers.SCRIPTS:
        arrays = {f"{s}_{k}": np.load(options.data / f"{s}_{k}.npy") for s in ("train", "test") for k in ARRAYS}
        checkout = getattr(options, options.contender).resolve()
        runs = peers.iter_runs(options.contender, checkout, arrays, device, options.repeats, options.seed)
    else:
        runs = iter(OurRuns(params, options, device, dtype))
    for run in runs:
        print(json.dumps({**run, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
