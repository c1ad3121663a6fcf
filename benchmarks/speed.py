"""Compare accuracy and time of a recipe with those of the CIFAR-10 speed records, in turn on one machine.

    python benchmarks/speed.py                                      # recipes/speedrun94, five runs
    python benchmarks/speed.py --airbench ../cifar10-airbench       # and airbench94_muon, in turn
    python benchmarks/speed.py --hiverge ../cifar10-speedrun        # and cifar10_speedrun
    python benchmarks/speed.py --fulcrum ../cifar-10-speedrun       # and its recipes E5 and E1
    python benchmarks/speed.py --validate                           # score held-out training images, for tuning
    python benchmarks/speed.py --limit 4000 --rounds 1              # try the command on the first 4,000 images

Needs only torch and numpy, and `data/raw` (run `dvc repro download`). The seconds are those of preparing and training,
without reading the data, building and compiling; those of the averaged views stand beside them. images/s are those
trained on, and the share of the measured peak is the arithmetic of training, both per second of training. Each
contender runs in a separate process in each round. On CUDA, where they compile, a process runs several times
(`--repeats`). The pipeline trains a recipe in the same way, but also validates and records.

A peer's process gets the settings that the pipeline gives its own: it keeps freed memory and treats denormal numbers
as 0. A second row has each peer as downloaded, without them (`--no-as-downloaded` leaves it out).
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import peers
import torch
from contender import Run, read_clock

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


def read_split(options: argparse.Namespace, split: str) -> list[np.ndarray]:
    """Read the images and labels of a split, the first `--limit` of them."""
    return [np.load(options.data / f"{split}_{name}.npy")[: options.limit] for name in ARRAYS]


def load_data(options: argparse.Namespace, device: torch.device) -> tuple[ImageDataset, ImageDataset]:
    """Read the training and test splits; with --validate, both are parts of the training split."""
    images, labels = (torch.tensor(array, device=device) for array in read_split(options, "train"))
    if options.validate:
        held_out, *others = torch.randperm(len(labels), device=device).split(len(labels) // 10)
        train = torch.cat(others)
        return ImageDataset(images[train], labels[train].long()), ImageDataset(
            images[held_out], labels[held_out].long()
        )
    test_images, test_labels = (torch.tensor(array, device=device) for array in read_split(options, "test"))
    return ImageDataset(images, labels.long()), ImageDataset(test_images, test_labels.long())


class OurRuns:
    """Our trainings of a recipe."""

    def __init__(self, params: Params, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> None:
        """Take the recipe's parameters, with the kernels that they ask for."""
        self.params, self.options, self.device, self.dtype = params, options, device, dtype
        if params["train"]["deterministic"]:
            compute_deterministically()
        if options.compile:
            params["train"]["compile"] = options.compile

    def __iter__(self) -> Iterator[Run]:
        """Train and test `repeats` times, with the seeds from `seed` on; warm up before, on CUDA or to compile."""
        warm_up = 0.0
        if self.device.type == "cuda" or self.options.compile:
            started = read_clock()
            self.run(self.options.seed + self.options.repeats - 1)
            warm_up = read_clock() - started
        for repeat in range(self.options.repeats):
            yield {**self.run(self.options.seed + repeat), "warm_up": warm_up}

    def run(self, seed: int) -> Run:
        """Train and test once."""
        torch.manual_seed(seed)
        train, test = load_data(self.options, self.device)
        started = read_clock()
        model = self.build_model(train)
        config = train_config(self.params, seed, self.dtype)
        result = loop.fit(model, train, ImageDataset(train.images[:0], train.labels[:0]), config)
        trained = read_clock()
        evaluate = self.params["evaluate"]
        tta = TTAConfig(evaluate["batch_size"], self.dtype, evaluate["tta"], evaluate["tta_fraction"])
        one_view = inference.predict(model, test.images, tta.batch_size, self.dtype)
        logits = inference.predict_tta(model, test.images, one_view, tta)
        tta_seconds = read_clock() - trained
        one_view_accuracy, accuracy = (
            (found.argmax(1) == test.labels).float().mean().item() for found in (one_view, logits)
        )
        return Run(
            one_view=one_view_accuracy,
            tta=accuracy,
            seconds=trained - started,
            tta_seconds=tta_seconds,
            images=sum(epoch.images for epoch in result.history),
            flops=count_flops(self.params, result.history),
        )

    def build_model(self, train: ImageDataset) -> Classifier:
        """Build and initialize the network."""
        pixels = train.images.float() / 255
        mean, std = pixels.mean((0, 1, 2)).tolist(), pixels.std((0, 1, 2)).tolist()
        model = build_network(self.params, mean, std).to(self.device)
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


def format_table(runs_by_name: dict[str, list[Run]]) -> str:
    """Return a Markdown table with a row per contender, and the ratios of the times of each round."""
    rows = [
        "| | averaged views | one view | n | training, s, median | from, to | averaged views, s | warm-up, s "
        "| images/s | share of peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in runs_by_name.items():
        seconds = [run["seconds"] for run in runs]
        images_per_s = statistics.median(run["images"] / run["seconds"] for run in runs)
        share = statistics.median(run["flops"] / run["seconds"] / run["peak"] for run in runs)
        rows.append(
            f"| {name} | {_format_spread([run['tta'] for run in runs])} "
            f"| {_format_spread([run['one_view'] for run in runs])} | {len(runs)} "
            f"| {statistics.median(seconds):.2f} | {min(seconds):.2f}, {max(seconds):.2f} "
            f"| {statistics.median(run['tta_seconds'] for run in runs):.2f} "
            f"| {statistics.median(run['warm_up'] for run in runs):.0f} | {images_per_s:,.0f} | {share:.0%} |"
        )
    ours, *others = runs_by_name
    for other in others:
        pairs = zip(runs_by_name[ours], runs_by_name[other], strict=True)
        ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
        rows.append(
            f"\n{ours} takes {statistics.median(ratios):.3f} of the time of {other} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})"
        )
    return "\n".join(rows)


def _format_spread(accuracies: list[float]) -> str:
    values = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}%{spread}"


def main() -> None:
    """Run the contenders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/speedrun94")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    for option, names in peers.CHECKOUTS.items():
        scripts = " and ".join(peers.SCRIPTS[name] for name in names)
        parser.add_argument(f"--{option}", type=Path, metavar="CHECKOUT", help=f"with {scripts}")
    parser.add_argument(
        "--as-downloaded", action=argparse.BooleanOptionalAction, default=True,
        help="a second row for each peer, without the settings of our process",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="runs per round")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    modes = ("default", "reduce-overhead", "max-autotune")
    parser.add_argument("--compile", choices=modes, help="train.compile of our network; peers always compile on CUDA")
    parser.add_argument("--validate", action="store_true", help="hold out 5,000 training images and score those")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N images of each split only")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.contender:
        print_runs(options)
        return
    checkouts = find_checkouts(options)
    check(options, checkouts)
    contenders = [options.recipe.name, *checkouts]
    if options.as_downloaded:
        contenders += [name + AS_DOWNLOADED for name in checkouts]
    found: dict[str, list[Run]] = {name: [] for name in contenders}
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


AS_DOWNLOADED = ", as downloaded"


def find_checkouts(options: argparse.Namespace) -> dict[str, Path]:
    """Return the selected peers with their checkouts."""
    selected = {option: getattr(options, option) for option in peers.CHECKOUTS}
    return {name: path.resolve() for option, path in selected.items() if path for name in peers.CHECKOUTS[option]}


def check(options: argparse.Namespace, checkouts: dict[str, Path]) -> None:
    """Exit with a line per problem, if the runs are not possible or would not be comparable."""
    missing = [
        *(options.data / f"{split}_{kind}.npy" for split in ("train", "test") for kind in ARRAYS),
        *(path / peers.SCRIPTS[name] for name, path in checkouts.items()),
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
    unused = ("classes", "image_size", "folds", "train_limit", "groups")
    if any(preprocess[key] is not None for key in unused) or preprocess["normalize"] != "per_channel":
        problems.append("preprocess: only val_fraction is supported here")
    if (params["model"]["weights"], params["model"]["freeze_epochs"]) != (None, 0):
        problems.append("model.weights and model.freeze_epochs are not supported here")
    if preprocess["val_fraction"] and not options.validate:
        problems.append("the recipe holds out images: use --validate, or preprocess.val_fraction=0.0")
    if options.validate and checkouts:
        problems.append("--validate: the peers train on all images and are scored on the test split")
    if checkouts and device.type not in ("cpu", "cuda"):
        problems.append(f"the peers run on a CPU or on CUDA, not on {device.type}")
    if problems:
        sys.exit("\n".join(f"speed.py: {problem}" for problem in problems))


def print_runs(options: argparse.Namespace) -> None:
    """Run one contender; print a line of JSON per run."""
    params = read_params(ROOT / "params.yaml", options.recipe)
    device, dtype = select_device(params["train"]["device"], params["train"]["precision"])
    peer = options.contender.removesuffix(AS_DOWNLOADED)
    if options.contender == peer:  # as stages/train.py does, before the first tensor, which starts threads
        keep_freed_memory()
        flush_denormals()
    checkouts = find_checkouts(options)
    if peer in checkouts and device.type == "cuda":
        dtype = torch.half  # the peers' precision
    peak = flops.peak_flops(device, dtype)
    if peer in checkouts:
        data = {split: read_split(options, split) for split in ("train", "test")}
        runs = peers.iter_runs(peer, checkouts[peer], data, device, options.repeats, options.seed)
    else:
        runs = iter(OurRuns(params, options, device, dtype))
    for run in runs:
        print(json.dumps({**run, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
