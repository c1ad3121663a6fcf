"""Measure what tools/audit.py finds on real CIFAR-10: labels that were changed, and copies that were planted.

    python benchmarks/data_audit.py labels             # trains 3 folds for each of 3 seeds
    python benchmarks/data_audit.py duplicates         # needs models/ from `dvc repro`; a minute per seed

`labels` changes 3% of the training labels at random, trains networks by cross-validation on the rest, and ranks the
labels. The precision is the share of changed labels among the first 3%. CIFAR-10's own label errors count as mistakes.

`duplicates` puts copies of random training images in place of other ones: 1,000 of each kind. Recall is the share of
copies that are found as a pair with their source. Precision is the share of the pairs with a copy whose other image
has the same source, or is a natural near-duplicate of the source: their correlation without the copy is at least 0.95.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import torch
from PIL import Image
from speed import build_network, read_params, train_config

from vision.artifacts.trained_model import load_model
from vision.audit.duplicates import Pairs, compare_pixels, find_candidates, select_pairs
from vision.audit.embeddings import embed, whiten
from vision.audit.label_errors import find_label_errors
from vision.audit.neighbors import nearest_neighbors
from vision.audit.similarity import NEIGHBORS
from vision.core import inference, loop
from vision.core.config import TTAConfig
from vision.core.data import ImageDataset
from vision.core.device import keep_freed_memory, select_device
from vision.core.temperature import fit_temperature
from vision.datasets.splitting import SplitConfig, split_indices
from vision.pipeline.paths import ROOT

CHANGED = 0.03
SHIFT = 2
BRIGHTNESS = 0.1
NATURAL = 0.95
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def main() -> None:
    """Measure one part and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["labels", "duplicates"])
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1000, help="of each kind")
    options = parser.parse_args()
    keep_freed_memory()
    measure = {"labels": measure_labels, "duplicates": measure_duplicates}[options.part]
    for seed in range(options.seeds):
        measure(options, seed)


# Label errors.


def measure_labels(options: argparse.Namespace, seed: int) -> None:
    """Change labels, rank all labels, and print how many of the changed ones come first."""
    from cleanlab.rank import get_label_quality_scores

    random = np.random.default_rng(seed)
    images, labels = (np.load(options.data / f"train_{kind}.npy") for kind in ("images", "labels"))
    changed = random.choice(len(labels), round(CHANGED * len(labels)), replace=False)
    given = labels.copy()
    given[changed] = (labels[changed] + random.integers(1, 10, len(changed))) % 10
    is_changed = np.isin(np.arange(len(labels)), changed)
    started = time.perf_counter()
    probabilities = predict_folds(options, images, given, seed)
    seconds = time.perf_counter() - started
    accuracy = (probabilities.argmax(1) == labels).mean()
    print(f"seed {seed}: {options.folds} folds, {options.epochs} epochs, {seconds:.0f} s, accuracy {accuracy:.2%}")
    for method in METHODS:
        ranked = get_label_quality_scores(given, probabilities, method=method).argsort()
        share = is_changed[ranked[: len(changed)]].mean()
        print(f"  precision and recall of the first {len(changed):,} by {method}: {share:.1%}")
    found = find_label_errors(given, probabilities).indices
    hits = is_changed[found].sum()
    print(
        f"  find_label_errors: {len(found):,}, precision {hits / len(found):.1%}, recall {hits / len(changed):.1%}",
        flush=True,
    )


def predict_folds(options: argparse.Namespace, images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Predict each image by a network that was not trained on it: float64 [N, 10]."""
    params = read_params(ROOT / "params.yaml", Path("/dev/null"))
    params["train"]["epochs"] = options.epochs
    device, dtype = select_device("auto", "auto")
    evaluate = params["evaluate"]
    tta = TTAConfig(evaluate["batch_size"], dtype, evaluate["tta"], evaluate["tta_fraction"])
    probabilities = np.zeros((len(labels), 10))
    for fold in range(options.folds):
        config = SplitConfig(folds=options.folds, fold=fold, seed=seed)
        train, val, _ = split_indices(labels, [str(label) for label in range(10)], config)
        dataset, held_out = (
            ImageDataset(torch.from_numpy(images[part]).to(device), torch.from_numpy(labels[part]).long().to(device))
            for part in (train, val)
        )
        torch.manual_seed(seed)
        pixels = dataset.images.float() / 255
        model = build_network(params, pixels.mean((0, 1, 2)).tolist(), pixels.std((0, 1, 2)).tolist()).to(device)
        model.initialize_from(dataset.images)
        nothing = ImageDataset(dataset.images[:0], dataset.labels[:0])
        loop.fit(model, dataset, nothing, train_config(params, seed, dtype))
        one_view = inference.predict(model, held_out.images, tta.batch_size, dtype)
        logits = inference.predict_tta(model, held_out.images, one_view, tta)
        probabilities[val] = (logits / fit_temperature(logits, held_out.labels)).softmax(1).double().cpu().numpy()
    return probabilities / probabilities.sum(1, keepdims=True)


# Near-duplicates.


def compress(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As JPEG of quality 75."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def mirror(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mirrored."""
    return image[:, ::-1]


def shift(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shifted by 2 pixels in one or both directions, with reflected edges."""
    down, right = random.choice([(2, 0), (0, 2), (2, 2)]) * random.choice([-1, 1], 2) + SHIFT
    return np.pad(image, [(SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)], "reflect")[down:, right:][:32, :32]


def brighten(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """10% brighter or darker."""
    return (image * (1 + random.choice([-BRIGHTNESS, BRIGHTNESS]))).round().clip(0, 255).astype(np.uint8)


def change_all(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """All of these at once."""
    for change in (compress, mirror, shift, brighten):
        image = change(image, random)
    return image


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
KINDS: list[Change] = [compress, mirror, shift, brighten, change_all]


def measure_duplicates(options: argparse.Namespace, seed: int) -> None:
    """Plant copies, search, and print recall, precision and times."""
    random = np.random.default_rng(seed)
    model, _ = load_model(options.models)
    train, test = (np.load(options.data / f"{split}_images.npy") for split in ("train", "test"))
    original = np.concatenate([train, test])
    total = options.copies * len(KINDS)
    chosen = random.permutation(len(train))
    sources, places = chosen[:total], chosen[total : 2 * total]
    images = original.copy()
    for number, (source, place) in enumerate(zip(sources, places, strict=True)):
        images[place] = KINDS[number // options.copies](original[source], random)

    clock = Clock()
    device, dtype = select_device("auto", "auto")
    on_device = torch.from_numpy(images).to(device)
    features = whiten(embed(model.to(device), on_device, 1000, dtype)).to(dtype)
    clock.stop("features")
    near = nearest_neighbors(len(images), NEIGHBORS, lambda part: features[part] @ features.T)
    clock.stop("neighbors by features")
    pairs, mirrored = find_candidates(near, on_device, dtype)
    clock.stop("neighbors by pixels")
    found = select_pairs(pairs, compare_pixels(on_device, pairs, mirrored))
    clock.stop(f"compare the pixels of {len(pairs):,} pairs")

    source_of = np.arange(len(images))
    source_of[places] = sources
    kind_of = np.full(len(images), -1)
    kind_of[places] = np.arange(total) // options.copies
    print(f"seed {seed}: {len(images):,} images, {clock.total:.1f} s: {clock}")
    print_found(found, source_of, kind_of, torch.from_numpy(original))


class Clock:
    """Times parts that follow each other."""

    def __init__(self) -> None:
        """Start."""
        self.started = time.perf_counter()
        self.parts: dict[str, float] = {}

    def stop(self, part: str) -> None:
        """End a part."""
        self.parts[part] = time.perf_counter() - self.started - self.total

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """Return the seconds of each part."""
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


def print_found(found: Pairs, source_of: np.ndarray, kind_of: np.ndarray, original: torch.Tensor) -> None:
    """Print recall and precision of the pairs that have a copy, by the kind of the copy."""
    first, second = source_of[found.first], source_of[found.second]
    same = first == second
    with_copy = (kind_of[found.first] >= 0) | (kind_of[found.second] >= 0)
    rows = torch.from_numpy(np.stack([first, second], 1))
    correlation = np.maximum(
        *(compare_pixels(original, rows, torch.full((len(rows),), mirrored)).numpy() for mirrored in (False, True))
    )
    right = same | (correlation >= NATURAL)
    for kind, function in enumerate(KINDS):
        copies = np.flatnonzero(kind_of == kind)
        recall = np.isin(copies, np.concatenate([found.first[same], found.second[same]])).mean()
        of_kind = (kind_of[found.first] == kind) | (kind_of[found.second] == kind)
        print(
            f"  {function.__name__}: recall {recall:.1%}, precision {right[of_kind].mean():.1%} "
            f"({same[of_kind].mean():.1%} of the same source), {of_kind.sum():,} pairs"
        )
    print(
        f"  all: precision {right[with_copy].mean():.1%} ({same[with_copy].mean():.1%} of the same source), "
        f"{with_copy.sum():,} pairs; {(~with_copy).sum():,} pairs without a copy",
        flush=True,
    )


if __name__ == "__main__":
    main()
