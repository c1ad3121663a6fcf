"""Recompute every value in metrics/ from data/, models/ and params.yaml, without the project's code.

The scores come from NumPy and scikit-learn, the logits from the formulas of the default network, in float64.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

Value = bool | int | float
Values = dict[str, Value]
"""Values by file, row and column, or by file and keys: `per_class.csv: cat: recall`, `train.json: val_loss`."""

MACHINE_DEPENDENT = {"seconds", "images_per_s", "share_of_peak", "peak_tflops", "threads", "cores"}
"""Last keys of values that depend on the machine, such as times; they cannot be recomputed."""
EPOCH_METRICS = {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
"""Columns of history.csv that depend on the weights of that epoch, of which only those of the best epoch are stored.

For other epochs a unit test of the training loop compares them to a loop over images.
"""


def mismatches(found: Mapping[str, Value], expected: Mapping[str, Any]) -> list[str]:
    """List the names of values that are wrong, missing or not recomputed."""
    checked = {name for name in found if name.rpartition(" ")[2] not in MACHINE_DEPENDENT}
    return sorted(
        [name for name in checked & expected.keys() if expected[name] != found[name]]
        + [f"{name}: not recomputed" for name in checked - expected.keys()]
        + [f"{name}: missing" for name in expected.keys() - found.keys()]
    )


def read_values(root: Path) -> Values:
    """Read each number in metrics/."""
    values: Values = {}
    for path in sorted((root / "metrics").iterdir()):
        if path.suffix == ".json":
            values |= _leaves(json.loads(path.read_text()), f"{path.name}:")
        else:
            for number, row in enumerate(_table(path)):
                named = list(row.items())
                # In two tables the first column names the row; in the others the row number does.
                title = named[0][1] if path.stem in ("confusion_matrix", "per_class") else str(number)
                cells = named[1:] if title == named[0][1] else named
                values |= {f"{path.name}: {title}: {column}": float(cell) for column, cell in cells if cell}
    return values


def _leaves(document: Any, prefix: str) -> Values:
    if isinstance(document, dict):
        return {name: leaf for key, part in document.items() for name, leaf in _leaves(part, f"{prefix} {key}").items()}
    return {prefix: document} if isinstance(document, bool | int | float) else {}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def recompute(root: Path) -> dict[str, Any]:
    """Recompute each value, exactly or approximately. The checkout has CIFAR data and the default network."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    history = _table(root / "metrics/history.csv")
    precision = json.loads((root / "metrics/run.json").read_text())["environment"]["precision"]
    network = Network(root / "models", tolerance={"fp32": 1e-3, "bf16": 0.15}[precision])
    return {
        **_dataset(root),
        **_test(root, network, params["evaluate"]),
        **_history(history, params["train"], _count(root, "train")),
        **_train(root, network, params["train"], history),
    }


def _labels(root: Path, split: str, stage: str = "processed") -> np.ndarray:
    return np.load(root / f"data/{stage}/{split}_labels.npy")


def _count(root: Path, split: str) -> int:
    return len(_labels(root, split))


def _dataset(root: Path) -> dict[str, Any]:
    classes = json.loads((root / "data/raw/classes.json").read_text())
    labels = {split: _labels(root, split) for split in ("train", "val", "test")}
    raw = {split: _labels(root, split, "raw") for split in ("train", "test")}
    assert np.array_equal(np.sort(np.r_[labels["train"], labels["val"]]), np.sort(raw["train"]))
    assert np.array_equal(labels["test"], raw["test"])
    sizes = {f"dataset.json: {split}": len(found) for split, found in labels.items()}
    by_class = {
        f"dataset.json: by_class {name} {split}": int((found == number).sum())
        for number, name in enumerate(classes)
        for split, found in labels.items()
    }
    return {"dataset.json: classes": len(classes), **sizes, **by_class}


def _test(root: Path, network: "Network", evaluate: dict[str, Any]) -> dict[str, Any]:
    """Recompute test.json and its tables from the stored predictions, after comparing those to the network's."""
    rows = _table(root / "data/predictions/test.csv")
    classes = [name[2:] for name in rows[0] if name.startswith("p_")]
    actual = _labels(root, "test").astype(int)
    assert [classes[label] for label in actual] == [row["actual"] for row in rows]
    probabilities = np.array([[np.float32(row[f"p_{name}"]) for name in classes] for row in rows]).astype(np.float64)
    images = np.load(root / "data/processed/test_images.npy")
    network.check_probabilities(probabilities, images, evaluate["tta_fraction"])

    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    assert [classes[label] for label in predicted] == [row["predicted"] for row in rows]
    correct = predicted == actual
    own = probabilities[np.arange(len(actual)), actual][:, None]
    # Two values, because images with equal probabilities may count either way.
    top5 = ((probabilities > own).sum(1) < 5).mean(), ((probabilities >= own).sum(1) <= 5).mean()
    counts = np.zeros((len(classes), len(classes)), int)
    for row, column in zip(actual, predicted, strict=True):
        counts[row, column] += 1
    assert np.array_equal(counts.sum(1), np.bincount(actual, minlength=len(classes)))
    true_positives, by_prediction, by_class = counts.diagonal(), counts.sum(0), counts.sum(1)
    precision, recall = true_positives / np.maximum(by_prediction, 1), true_positives / np.maximum(by_class, 1)
    f1 = 2 * true_positives / np.maximum(by_prediction + by_class, 1)

    bins: list[dict[str, float]] = []
    columns = ("confidence_from", "confidence_to", "images", "confidence", "accuracy")
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            values = (low / 15, (low + 1) / 15, inside.sum(), confidence[inside].mean(), correct[inside].mean())
            bins.append(dict(zip(columns, values, strict=True)))
    gaps = [row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins]
    summary = {
        "accuracy": correct.mean(),
        "cross_entropy": sklearn.metrics.log_loss(actual, probabilities / probabilities.sum(1, keepdims=True)),
        "precision_macro": precision.mean(),
        "recall_macro": sklearn.metrics.balanced_accuracy_score(actual, predicted),
        "f1_macro": f1.mean(),
        "calibration_error": sum(gaps) / len(actual),
    }
    return {
        **{f"test.json: {name}": pytest.approx(value, rel=1e-6) for name, value in summary.items()},
        "test.json: top5_accuracy": pytest.approx(np.mean(top5), abs=np.ptp(top5) / 2 + 1e-9),
        "test.json: accuracy_one_view": network.accuracy(network.logits(images), actual),
        **{
            f"confusion_matrix.csv: {one}: {other}": counts[i, j]
            for i, one in enumerate(classes)
            for j, other in enumerate(classes)
        },
        **{
            f"per_class.csv: {name}: {score}": pytest.approx(column[number])
            for score, column in {"precision": precision, "recall": recall, "f1": f1, "images": by_class}.items()
            for number, name in enumerate(classes)
        },
        **{
            f"calibration.csv: {number}: {column}": pytest.approx(value)
            for number, row in enumerate(bins)
            for column, value in row.items()
        },
    }


def _history(history: list[dict[str, str]], train: dict[str, Any], images: int) -> dict[str, Any]:
    """Recompute from the parameters what each epoch trained on; check the epoch's metrics for plausibility."""
    epochs, size = train["epochs"], train["batch_size"]
    plan = []
    for epoch in range(1, epochs + 1):
        scale, fraction = (
            values[-(-epoch * len(values) // epochs) - 1]
            for values in (train["progressive_resizing"], train["hard_example_fraction"])
        )
        trained = images if epoch == 1 else max(size, round(fraction * images))
        plan.append((scale, trained // size * size))
    steps = [trained // size for _, trained in plan]
    rates = list(_linear(train["lr"], sum(steps), train["warmup"])) if train["schedule"] == "linear" else []
    expected: dict[str, Any] = {}
    for number, row in enumerate(history):
        scale, trained = plan[number]
        first = sum(steps[:number])
        known = {
            "epoch": number + 1,
            "lr": pytest.approx(max(rates[first : first + steps[number]])),
            "image_scale": scale,
            "images": trained,
            **{name: Plausible(name, trained) for name in EPOCH_METRICS if row[name]},
        }
        expected |= {f"history.csv: {number}: {name}": value for name, value in known.items()}
    return expected


class Plausible:
    """Equal to any possible value: an accuracy over that many images, or a finite positive loss."""

    def __init__(self, name: str, images: int) -> None:
        self.images = images if name == "train_accuracy" else None
        self.maximum = 1.0 if name.endswith("accuracy") else np.inf

    def __eq__(self, value: object) -> bool:
        assert isinstance(value, float)
        correct = value * (self.images or 0)
        return 0 <= value <= self.maximum and np.isfinite(value) and abs(correct - round(correct)) < 1e-6

    __hash__ = None  # type: ignore[assignment]


def _linear(peak: float, steps: int, warmup: float) -> Iterator[float]:
    """Yield the learning rate of each step: a linear rise, then a linear fall that reaches 0 after the last step."""
    warmup_steps = min(round(warmup * steps), steps - 1)
    for step in range(steps):
        if step < warmup_steps:
            yield peak * (1 + step) / (warmup_steps + 1)
        else:
            yield peak * (1 - (step - warmup_steps) / (steps - warmup_steps))


def _train(root: Path, network: "Network", train: dict[str, Any], history: list[dict[str, str]]) -> dict[str, Any]:
    """Recompute train.json, and the validation metrics of the best epoch, whose weights the network has."""
    losses = [float(row["val_loss"]) for row in history]
    best = losses.index(min(losses))
    assert train["keep"] == "val_loss"
    labels = _labels(root, "val").astype(int)
    logits = network.logits(np.load(root / "data/processed/val_images.npy"))
    validated = {
        "val_loss": pytest.approx(sklearn.metrics.log_loss(labels, _softmax(logits)), rel=network.tolerance),
        "val_accuracy": network.accuracy(logits, labels),
    }
    best_epoch = {f"train.json: {name}": pytest.approx(float(history[best][name]), rel=1e-12) for name in EPOCH_METRICS}
    return {
        **best_epoch,
        **{f"history.csv: {best}: {name}": value for name, value in validated.items()},
        "train.json: best_epoch": best + 1,
        "train.json: epochs": len(history),
        "train.json: stopped_early": len(history) < train["epochs"],
        "train.json: parameters": network.parameters,
    }


class Network:
    """The default network as formulas in float64, with the weights from disk.

    `tolerance` is the effect of a lower precision: the absolute error of a logit, the relative error of the mean loss.
    """

    def __init__(self, folder: Path, tolerance: float) -> None:
        self.tolerance = tolerance
        self.description = json.loads((folder / "model.json").read_text())
        state = torch.load(folder / "model.pt", weights_only=True)
        learned = ("weight", "bias")
        self.parameters = sum(value.numel() for name, value in state.items() if name.endswith(learned))
        self.state = {name.removeprefix("network."): value.double() for name, value in state.items()}

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Compute logits [N, classes] of images uint8 [N, H, W, 3]."""
        return np.concatenate([self._of(part) for part in np.array_split(images, -(-len(images) // 500))])

    def _of(self, images: np.ndarray) -> np.ndarray:
        normalized = (images / 255 - self.description["mean"]) / self.description["std"]
        pixels = torch.from_numpy(normalized).permute(0, 3, 1, 2)
        return convnet(pixels, self.state, training=False, **self.description["options"]).numpy()

    def predict_tta(self, images: np.ndarray) -> np.ndarray:
        """Average the logits of six views: the image and its mirror image, and at half weight both, shifted."""
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        height, width = images.shape[1:3]
        total = np.zeros((len(images), len(self.description["classes"])))
        for pixels, weight in ((0, 2), (-1, 1), (1, 1)):
            view = padded[:, 1 - pixels : 1 - pixels + height, 1 - pixels : 1 - pixels + width]
            total += weight / 8 * (self.logits(view) + self.logits(view[:, :, ::-1].copy()))
        return total

    def check_probabilities(self, stored: np.ndarray, images: np.ndarray, tta_fraction: float) -> None:
        """Compare the stored probabilities to the network's; the least confident images have averaged ones."""
        one_view = _softmax(self.logits(images))
        confidence = one_view.max(1)
        threshold = np.sort(confidence)[round(tta_fraction * len(confidence))]
        from_one, from_all = (np.abs(stored - each).max(1) for each in (one_view, _softmax(self.predict_tta(images))))
        errors = np.where(confidence < threshold, from_all, from_one)
        close = np.abs(confidence - threshold) <= self.tolerance  # rounding decides how these were computed
        errors[close] = np.minimum(from_one, from_all)[close]
        assert errors.max() < self.tolerance
        assert np.median(errors) < self.tolerance / 10

    def accuracy(self, logits: np.ndarray, labels: np.ndarray) -> Any:
        """Compute the accuracy, with a tolerance for images whose two highest logits are close."""
        first, second = np.sort(logits, axis=1)[:, :-3:-1].T
        uncertain = (first - second < 2 * self.tolerance).mean()
        return pytest.approx((logits.argmax(1) == labels).mean(), abs=uncertain + 1e-9)


def convnet(pixels: Tensor, state: Mapping[str, Tensor], widths: list[int], depth: int, training: bool) -> Tensor:
    """Compute logits [N, classes] of normalized pixels [N, 3, H, W]; `training` uses the statistics of the batch."""
    features = F.conv2d(pixels, state["first.weight"])
    features = features * features.sigmoid()
    for block in range(len(widths)):
        for layer in range(depth):
            features = F.conv2d(features, state[f"blocks.{block}.convs.{layer}.weight"], padding=1)
            if layer == 0:
                features = F.max_pool2d(features, 2)
            mean, variance, scale, shift = (
                state[f"blocks.{block}.norms.{layer}.{part}"][:, None, None]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            if training:
                mean = features.mean((0, 2, 3), keepdim=True)
                variance = ((features - mean) ** 2).mean((0, 2, 3), keepdim=True)
            features = (features - mean) / (variance + 1e-5).sqrt() * scale + shift
            features = features * features.sigmoid()
    return features.amax((2, 3)) @ state["last.weight"].T


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
