"""A recipe's accuracy and time beside those of the CIFAR-10 speed records, in turn on one machine.

    python benchmarks/speed.py                                      # recipes/speedrun94, five runs
    python benchmarks/speed.py --airbench ../cifar10-airbench       # and airbench94_muon, alternately
    python benchmarks/speed.py --hiverge ../cifar10-speedrun        # and cifar10_speedrun
    python benchmarks/speed.py --validate                           # score held-out training images: for tuning

Needs torch and numpy alone, and `data/raw` (`dvc repro download` makes it). Our seconds are all from the files on
disk to the test-time augmentation, theirs what the scripts count, which leaves reading the data out; images/s and the
share of the measured peak are those trained on, and the arithmetic of training, over all these seconds. Every contender
runs in a process of its own in each round; on CUDA, where they compile, one process runs several times (`--repeats`).
The pipeline trains a recipe in the same way, but measures, validates and records more.
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
from vision.core.data import ImageDataset
from vision.core.device import choose, compute_deterministically, flush_denormals, keep_freed_memory
from vision.core.models import classifier

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("images", "labels")
TrainConfig = dict[str, Any]


def settings(params: Path, recipe: Path) -> TrainConfig:
    """Read params.yaml, and a recipe over it, without a YAML library: sections of `key: value`, one a line.

    Raises:
        ValueError: a file is missing or written in another way, or the recipe has a key that params.yaml has not.
    """
    for path in (params, recipe):
        if not path.exists():
            raise ValueError(f"{path} is not there")
    found: TrainConfig = {}
    open_sections = [(-1, found)]  # with their indentation
    for number, line in enumerate(params.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(("#", "- {")):  # the lists of `search` train nothing
            continue
        parts = re.fullmatch(r"( *)(\w+): *([^#]*?) *(#.*)?", line)
        if not parts:
            raise ValueError(f"{params}: line {number}: expected `key: value` (`git checkout {params.name}`?)")
        indent, key, text, _ = parts.groups("")
        while open_sections[-1][0] >= len(indent):
            open_sections.pop()
        section = open_sections[-1][1]
        section[key] = _value(text) if text else {}
        if not text:
            open_sections.append((len(indent), section[key]))
    words = recipe.read_text().split()
    for flag, word in itertools.zip_longest(words[::2], words[1::2], fillvalue=""):
        parts = re.fullmatch(r"((?:\w+\.)*)(\w+)=(\S+)", word)
        if flag != "-S" or not parts:
            raise ValueError(f"{recipe}: expected `-S section.key=value`, not `{flag} {word}`")
        section = found
        for name in parts[1].split(".")[:-1]:
            section = section.get(name, {})
        if parts[2] not in section:
            raise ValueError(f"{recipe}: {params.name} has no {parts[1]}{parts[2]}")
        section[parts[2]] = _value(parts[3])
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def our_runs(
    given: TrainConfig, data: Path, device: torch.device, dtype: torch.dtype, options: argparse.Namespace
) -> Iterator[dict[str, float]]:
    """Train and test `options.repeats` times, seeded from `options.seed` on; warm up before on CUDA or to compile."""
    keep_freed_memory()
    flush_denormals()
    if given["train"]["deterministic"]:
        compute_deterministically()
    others = ("device", "precision", "deterministic", "checkpoint_seconds")
    train_settings = {key: value for key, value in given["train"].items() if key not in others}
    evaluate = given["evaluate"]
    kept: classifier.Classifier | None = None
    warm_up = 0.0
    for number in range(-1 if device.type == "cuda" or options.compile else 0, options.repeats):
        seed = options.seed + number % options.repeats
        started = time.perf_counter()
        images, labels = (torch.tensor(np.load(data / f"train_{kind}.npy"), device=device) for kind in KINDS)
        torch.manual_seed(seed)
        split = torch.randperm(len(labels), device=device).split(5000) if options.validate else ()
        if split:
            train = ImageDataset(images[torch.cat(split[1:])], labels[torch.cat(split[1:])].long())
            test = ImageDataset(images[split[0]], labels[split[0]].long())
        else:
            train = ImageDataset(images, labels.long())
            test = ImageDataset(*(torch.tensor(np.load(data / f"test_{kind}.npy"), device=device) for kind in KINDS))
        pixels = train.images.float() / 255
        mean, std = pixels.mean((0, 1, 2)).tolist(), pixels.std((0, 1, 2)).tolist()
        model = network(given, mean, std).to(device)
        if options.compile:  # once: later runs start from new weights in the compiled model
            if kept is None:
                kept = model
                kept.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
            kept.load_state_dict(model.state_dict())
            model = kept
        model.initialize_from(train.images)
        nothing = ImageDataset(train.images[:0], train.labels[:0])
        fitted = loop.fit(model, train, nothing, loop.TrainConfig(seed=seed, dtype=dtype, freeze=0, **train_settings))
        one_view = inference.predict(model, test.images, evaluate["batch_size"], dtype)
        logits = inference.predict_tta(
            model, test.images, one_view, evaluate["batch_size"], dtype, evaluate["views"], evaluate["unsure"]
        )
        accuracies = [(found.argmax(1) == test.labels).float().mean().item() for found in (one_view, logits)]
        seconds = time.perf_counter() - started
        if number < 0:
            warm_up = seconds
            continue
        yield {
            "one_view": accuracies[0],
            "averaged": accuracies[1],
            "seconds": seconds,
            "warm_up": warm_up,
            "images": sum(epoch.images for epoch in fitted.history),
            "flops": _flops(given, fitted.history),
        }


def network(given: TrainConfig, mean: list[float], std: list[float]) -> classifier.Classifier:
    """Make the recipe's network for CIFAR-10."""
    chosen = given["model"]
    options = chosen.get(chosen["name"], chosen["torchvision"])
    return classifier.build(chosen["name"], options, [32, 32, 3], 10, mean, std, chosen["image_size"])


def _flops(given: TrainConfig, history: list[loop.EpochMetrics]) -> float:
    """Of the forward and backward passes of all epochs; counted on a network of its own, on the CPU."""
    model = network(given, [0.5] * 3, [0.25] * 3)
    sizes = {epoch.image_scale: max(2, round(32 * epoch.image_scale)) for epoch in history}
    flops = {
        scale: flops.training_flops(model, torch.zeros(1, size, size, 3, dtype=torch.uint8))
        for scale, size in sizes.items()
    }
    return sum(epoch.images * flops[epoch.image_scale] for epoch in history)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table, a row a contender, and the ratios of the times round by round."""
    rows = [
        "| | averaged views | one view | n | seconds, median | from, to | warm-up | images/s | share of peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        images_per_s = statistics.median(run["images"] / run["seconds"] for run in runs)
        share = statistics.median(run["flops"] / run["seconds"] / run["peak"] for run in runs)
        rows.append(
            f"| {name} | {_spread(runs, 'averaged')} | {_spread(runs, 'one_view')} | {len(runs)} "
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


def _spread(runs: list[dict[str, float]], key: str) -> str:
    values = [100 * run[key] for run in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}%{spread}"


def main() -> None:
    """Run the contenders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/speedrun94")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    for name, script in peers.SCRIPTS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"a checkout that holds {script}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="runs a round")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--compile", action="store_true", help="compile our network too")
    parser.add_argument("--validate", action="store_true", help="hold out 5,000 training images and score those")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.one:
        print_runs(options)
        return
    check(options)
    contenders = [options.recipe.name, *(name for name in peers.SCRIPTS if getattr(options, name))]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name in contenders:
            seed = ["--seed", str(options.seed + number * options.repeats)]
            command = [sys.executable, *sys.argv, "--one", name, *seed]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith("{"):
                        found[name].append(json.loads(line))
                        print(f"round {number + 1} of {options.rounds}: {name}: {line}", end="", file=sys.stderr)
            if process.returncode:
                sys.exit(f"speed.py: {name} failed")
    print(table(found))


def check(options: argparse.Namespace) -> None:
    """Exit with one line where the runs could not be made, or would not be what the table says."""
    chosen = [name for name in peers.SCRIPTS if getattr(options, name)]
    missing = [
        *(options.data / f"{split}_{kind}.npy" for split in ("train", "test") for kind in KINDS),
        *(getattr(options, name) / peers.SCRIPTS[name] for name in chosen),
    ]
    problems = [f"{path} is not there" for path in missing if not path.exists()]
    if options.rounds < 1 or options.repeats < 1:
        problems.append("--rounds and --repeats must be at least 1")
    try:
        given = settings(ROOT / "params.yaml", options.recipe)
        device, _ = choose(given["train"]["device"], given["train"]["precision"])
    except ValueError as error:
        sys.exit("\n".join(f"speed.py: {problem}" for problem in [*problems, str(error)]))
    preprocess = given["preprocess"]
    unused = ("classes", "image_size", "folds", "train_limit")
    if any(preprocess[key] is not None for key in unused) or preprocess["normalize"] != "per_channel":
        problems.append("of preprocess, val_fraction alone is followed here")
    if (given["model"]["weights"], given["model"]["freeze"]) != (None, 0):
        problems.append("model.weights and model.freeze are not followed here")
    if preprocess["val_fraction"] and not options.validate:
        problems.append("the recipe holds images out: use --validate, or preprocess.val_fraction=0.0")
    if options.validate and chosen:
        problems.append("--validate: the peers train on all images and are scored on the test split")
    if chosen and device.type not in ("cpu", "cuda"):
        problems.append(f"the peers run on a CPU or on CUDA, not on {device.type}")
    if problems:
        sys.exit("\n".join(f"speed.py: {problem}" for problem in problems))


def print_runs(options: argparse.Namespace) -> None:
    """Run one contender, a line of JSON a run."""
    given = settings(ROOT / "params.yaml", options.recipe)
    device, dtype = choose(given["train"]["device"], given["train"]["precision"])
    if options.one in peers.SCRIPTS and device.type == "cuda":
        dtype = torch.half  # what they compute in
    peak = flops.peak_flops(device, dtype)
    if options.one in peers.SCRIPTS:
        arrays = {f"{s}_{k}": np.load(options.data / f"{s}_{k}.npy") for s in ("train", "test") for k in KINDS}
        checkout = getattr(options, options.one).resolve()
        runs = peers.runs(options.one, checkout, arrays, device, options.repeats, options.seed)
    else:
        runs = our_runs(given, options.data, device, dtype, options)
    for run in runs:
        print(json.dumps({**run, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
