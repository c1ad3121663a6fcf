"""Compute every figure of metrics/ a second time, from data/, models/ and params.yaml.

Uses NumPy and scikit-learn on predictions, labels and the state dict, and the formulas of the default network in
float64, but none of the project's code.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

Figure = bool | int | float
Figures = dict[str, Figure]
"""Figures by file and keys, or by file, row and column: `train.json: val_loss`, `per_class.csv: cat: recall`."""

MEASURED = {
    "seconds",
    "images_per_s",
    "share_of_peak",
    "peak_tflops",
    "threads",
    "cores",
    "fused_blocks",
    "weight_gradients",
}
"""Last keys of figures that depend on the machine, such as times. A compiler decides about the last two."""
OF_EACH_EPOCH = {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
"""Columns of history.csv. The weights of most epochs are not saved, so only the best epoch is computed here.

tests/unit/core/test_loop.py compares all epochs with a loop over single images.
"""


def differences(reported: Mapping[str, Figure], expected: Mapping[str, Any]) -> list[str]:
    """The names of figures that are wrong, missing, or reported but not expected."""
    checked = {name for name in reported if name.rpartition(" ")[2] not in MEASURED}
    return sorted(
        [name for name in checked & expected.keys() if expected[name] != reported[name]]
        + [f"{name}: not expected" for name in checked - expected.keys()]
        + [f"{name}: missing" for name in expected.keys() - reported.keys()]
    )


def reported(root: Path) -> Figures:
    """Read every number in the files of metrics/."""
    figures: Figures = {}
    for path in sorted((root / "metrics").iterdir()):
        if path.suffix == ".json":
            figures |= _leaves(json.loads(path.read_text()), f"{path.name}:")
        else:
            for number, row in enumerate(_table(path)):
                named = list(row.items())
                # The first columns hold the name of the row, in tables that have names.
                names = {"confusion_matrix": 1, "per_class": 1, "corruptions": 2}.get(path.stem, 0)
                title = " ".join(name for _, name in named[:names]) if names else str(number)
                cells = named[names:]
                figures |= {f"{path.name}: {title}: {column}": float(cell) for column, cell in cells if cell}
    return figures


def _leaves(document: Any, prefix: str) -> Figures:
    if isinstance(document, dict):
        return {name: leaf for key, part in document.items() for name, leaf in _leaves(part, f"{prefix} {key}").items()}
    return {prefix: document} if isinstance(document, bool | int | float) else {}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected(root: Path) -> dict[str, Any]:
    """The value of each figure, some with a tolerance; for CIFAR data and the default network."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    history = _table(root / "metrics/history.csv")
    precision = json.loads((root / "metrics/run.json").read_text())["environment"]["precision"]
    network = Network(root / "models", near={"fp32": 1e-3, "bf16": 0.15}[precision])
    return {
        **_dataset(root),
        **_test(root, network, params["evaluate"]),
        **_corruptions(root, network),
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
    """The figures of test.json and the evaluation's tables; also compares stored predictions with the network's."""
    stored: dict[str, np.ndarray] = {}
    reported_temperature = json.loads((root / "metrics/test.json").read_text())["temperature"]
    for split in ("val", "test"):
        rows = _table(root / f"data/predictions/{split}.csv")
        classes = [name[2:] for name in rows[0] if name.startswith("p_")]
        assert [classes[label] for label in _labels(root, split)] == [row["actual"] for row in rows]
        chances = np.array([[np.float32(row[f"p_{name}"]) for name in classes] for row in rows]).astype(np.float64)
        assert [classes[label] for label in chances.argmax(1)] == [row["predicted"] for row in rows]
        images = np.load(root / f"data/processed/{split}_images.npy")
        one_view, averaged = network.logits(images), network.predict_tta(images)
        network.assert_agrees(chances, one_view, averaged, evaluate["tta_fraction"], reported_temperature)
        stored[split] = chances
    val_labels = _labels(root, "val").astype(int)
    val_images = np.load(root / "data/processed/val_images.npy")
    val_logits = network.predict_some_tta(val_images, evaluate["tta_fraction"])
    temperature = _best_temperature(val_logits, val_labels)

    actual, chances = _labels(root, "test").astype(int), stored["test"]
    guessed, surest = chances.argmax(1), chances.max(1)
    hits = guessed == actual
    mistakes = np.flatnonzero(~hits)
    explained = np.load(root / "data/predictions/heat_map_indices.npy")
    assert np.array_equal(explained, mistakes[np.argsort(-surest[mistakes], kind="stable")][:500])
    assert len(np.load(root / "data/predictions/heat_maps.npy")) == len(explained)
    own = chances[np.arange(len(actual)), actual][:, None]
    among_five = (
        ((chances > own).sum(1) < 5).mean(),
        ((chances >= own).sum(1) <= 5).mean(),
    )  # with ties counted as misses, and as hits
    counts = np.zeros((len(classes), len(classes)), int)
    for row, column in zip(actual, guessed, strict=True):
        counts[row, column] += 1
    assert np.array_equal(counts.sum(1), np.bincount(actual, minlength=len(classes)))
    right, predicted, of_class = counts.diagonal(), counts.sum(0), counts.sum(1)
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(of_class, 1)
    f1 = 2 * right / np.maximum(predicted + of_class, 1)

    bins, gap = _calibration(surest, hits)
    with np.errstate(divide="ignore"):
        before = _softmax(reported_temperature * np.log(chances)).max(1)
    bins_before, gap_before = _calibration(before, hits)
    threshold = np.sort(1 - _softmax(val_logits / temperature)[np.arange(len(val_labels)), val_labels])
    threshold = threshold[math.ceil(0.9 * (len(val_labels) + 1)) - 1]
    sets = 1 - chances <= threshold
    low, high = _wilson(hits.sum(), len(hits))
    summary = {
        "accuracy": hits.mean(),
        "accuracy_low": low,
        "accuracy_high": high,
        "cross_entropy": sklearn.metrics.log_loss(actual, chances / chances.sum(1, keepdims=True)),
        "precision_macro": precision.mean(),
        "recall_macro": sklearn.metrics.balanced_accuracy_score(actual, guessed),
        "f1_macro": f1.mean(),
        "calibration_error": gap,
    }
    near = network.near
    confidence = _softmax(one_view / network.temperature).max(1)
    min_confidence = network.description["min_confidence"]
    close = (np.abs(confidence - min_confidence) < near / 3).mean()
    return {
        "test.json: unknown_share": pytest.approx((confidence < min_confidence).mean(), abs=close + 1e-9),
        **{f"test.json: {name}": pytest.approx(value, rel=1e-6) for name, value in summary.items()},
        "test.json: calibration_error_before": pytest.approx(gap_before, abs=1e-5),
        "test.json: calibration_error_one_view": pytest.approx(
            _calibration(confidence, one_view.argmax(1) == actual)[1], abs=near / 3
        ),
        "test.json: temperature": pytest.approx(temperature, rel=near / 3),
        "test.json: prediction_set_coverage": pytest.approx(sets[np.arange(len(actual)), actual].mean(), abs=near / 3),
        "test.json: prediction_set_size": pytest.approx(sets.sum(1).mean(), abs=near),
        "test.json: top5_accuracy": pytest.approx(np.mean(among_five), abs=np.ptp(among_five) / 2 + 1e-9),
        "test.json: accuracy_one_view": network.accuracy(one_view, actual),
        **{
            f"confusion_matrix.csv: {one}: {other}": counts[i, j]
            for i, one in enumerate(classes)
            for j, other in enumerate(classes)
        },
        **{
            f"per_class.csv: {name}: {score}": pytest.approx(values[number])
            for score, values in {
                "precision": precision,
                "recall": recall,
                "recall_low": [_wilson(*counts)[0] for counts in zip(right, of_class, strict=True)],
                "recall_high": [_wilson(*counts)[1] for counts in zip(right, of_class, strict=True)],
                "f1": f1,
                "images": of_class,
            }.items()
            for number, name in enumerate(classes)
        },
        **{
            f"per_class.csv: {name}: prediction_set_size": pytest.approx(sets[actual == i].sum(1).mean(), abs=2 * near)
            for i, name in enumerate(classes)
        },
        **{
            f"{file}.csv: {number}: {column}": pytest.approx(value, abs=1e-5)
            for file, rows in (("calibration", bins), ("calibration_before", bins_before))
            for number, row in enumerate(rows)
            for column, value in row.items()
        },
    }


def _corruptions(root: Path, network: "Network") -> dict[str, Any]:
    """The mean accuracy on corrupted images, and the accuracies for the corruptions that have a short formula."""
    rows = _table(root / "metrics/corruptions.csv")
    if not rows:
        return {}
    images = np.load(root / "data/processed/test_images.npy")
    labels = _labels(root, "test").astype(int)
    mean = images.mean((1, 2), keepdims=True)
    contrast = {"1": 0.75, "2": 0.5, "3": 0.4, "4": 0.3, "5": 0.15}
    expected: dict[str, Any] = {
        "test.json: corrupted_accuracy": pytest.approx(np.mean([float(row["accuracy"]) for row in rows]))
    }
    for row in rows:
        title = f"corruptions.csv: {row['corruption']} {row['severity']}"
        expected[f"{title}: images"] = len(images)
        expected[f"{title}: accuracy"] = Plausible("train_accuracy", len(images))
        if row["corruption"] == "contrast":
            corrupted = np.rint(mean + contrast[row["severity"]] * (images - mean)).astype(np.uint8)
        elif row["corruption"] == "jpeg_compression":
            corrupted = np.stack([_as_jpeg(image, (80, 65, 58, 50, 40)[int(row["severity"]) - 1]) for image in images])
        else:
            continue
        expected[f"{title}: accuracy"] = network.accuracy(network.logits(corrupted), labels)
    return expected


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _calibration(confidence: np.ndarray, hits: np.ndarray) -> tuple[list[dict[str, float]], float]:
    """The bins of calibration.csv, and the expected calibration error."""
    bins: list[dict[str, float]] = []
    columns = ("confidence_from", "confidence_to", "images", "confidence", "accuracy")
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            numbers = (low / 15, (low + 1) / 15, inside.sum(), confidence[inside].mean(), hits[inside].mean())
            bins.append(dict(zip(columns, numbers, strict=True)))
    return bins, sum(one["images"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(hits)


def _wilson(successes: int, trials: int) -> tuple[float, float]:
    """The ends of Wilson's interval with 95% confidence."""
    z = 1.959963984540054
    share, center = successes / trials, (successes + z * z / 2) / (trials + z * z)
    half = z * math.sqrt(share * (1 - share) / trials + (z / trials / 2) ** 2) / (1 + z * z / trials)
    return max(0.0, center - half), min(1.0, center + half)


def _best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy, if one more image has a random label."""
    targets = np.eye(logits.shape[1])[labels]
    targets += (1 / logits.shape[1] - targets) / (len(labels) + 1)

    def loss(log_temperature: float) -> float:
        chances = np.maximum(_softmax(logits / np.exp(log_temperature)), 1e-300)
        return float(-(targets * np.log(chances)).sum(1).mean())

    found = scipy.optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(np.exp(found.x))


def _history(history: list[dict[str, str]], train: dict[str, Any], images: int) -> dict[str, Any]:
    """The columns of history.csv: exact where parameters determine them, else only plausible."""
    epochs, size = train["epochs"], train["batch_size"]
    plan = []
    for epoch in range(1, epochs + 1):
        scale, share = (
            values[-(-epoch * len(values) // epochs) - 1]
            for values in (train["progressive_resizing"], train["hard_example_fraction"])
        )
        shown = images if epoch == 1 else max(size, round(share * images))
        plan.append((scale, shown // size * size))
    steps = [shown // size for _, shown in plan]
    rates = list(_linear(train["lr"], sum(steps), train["warmup"])) if train["schedule"] == "linear" else []
    expected: dict[str, Any] = {}
    for number, row in enumerate(history):
        scale, shown = plan[number]
        first = sum(steps[:number])
        known = {
            "epoch": number + 1,
            "lr": pytest.approx(max(rates[first : first + steps[number]])),
            "image_scale": scale,
            "images": shown,
            **{name: Plausible(name, shown) for name in OF_EACH_EPOCH if row[name]},
        }
        expected |= {f"history.csv: {number}: {name}": value for name, value in known.items()}
    return expected


class Plausible:
    """Equal to every possible figure: a multiple of 1 / images for an accuracy, a finite positive number for a loss."""

    def __init__(self, name: str, images: int) -> None:
        self.images = images if name == "train_accuracy" else None
        self.most = 1.0 if name.endswith("accuracy") else np.inf

    def __eq__(self, figure: object) -> bool:
        assert isinstance(figure, float)
        hits = figure * (self.images or 0)
        return 0 <= figure <= self.most and np.isfinite(figure) and abs(hits - round(hits)) < 1e-6

    __hash__ = None  # type: ignore[assignment]


def _linear(peak: float, steps: int, warmup: float) -> Iterator[float]:
    """The learning rate of each step: it rises linearly, then falls linearly to 0 after the last step."""
    rising = min(round(warmup * steps), steps - 1)
    for step in range(steps):
        if step < rising:
            yield peak * (1 + step) / (rising + 1)
        else:
            yield peak * (1 - (step - rising) / (steps - rising))


def _train(root: Path, network: "Network", train: dict[str, Any], history: list[dict[str, str]]) -> dict[str, Any]:
    """The figures of train.json, and of the best epoch in history.csv, whose weights the network has."""
    losses = [float(row["val_loss"]) for row in history]
    best = losses.index(min(losses))
    assert train["keep"] == "val_loss"
    labels = _labels(root, "val").astype(int)
    logits = network.logits(np.load(root / "data/processed/val_images.npy"))
    validated = {
        "val_loss": pytest.approx(sklearn.metrics.log_loss(labels, _softmax(logits)), rel=network.near),
        "val_accuracy": network.accuracy(logits, labels),
    }
    best_epoch = {f"train.json: {name}": pytest.approx(float(history[best][name]), rel=1e-12) for name in OF_EACH_EPOCH}
    return {
        **best_epoch,
        "train.json: temperature": pytest.approx(_best_temperature(logits, labels), rel=network.near / 3),
        "train.json: min_confidence": pytest.approx(
            np.sort(_softmax(logits / network.temperature).max(1))[int(0.05 * len(labels))], abs=network.near / 3
        ),
        **{f"history.csv: {best}: {name}": value for name, value in validated.items()},
        "train.json: best_epoch": best + 1,
        "train.json: epochs": len(history),
        "train.json: stopped_early": len(history) < train["epochs"],
        "train.json: parameters": network.parameters,
    }


class Network:
    """The formulas of the default network in float64, with the weights on disk.

    `near` is the tolerance for lower precision: absolute for a logit, relative for the mean loss.
    """

    def __init__(self, folder: Path, near: float) -> None:
        self.near = near
        self.description = json.loads((folder / "model.json").read_text())
        state = torch.load(folder / "model.pt", weights_only=True)
        learned = ("weight", "bias")
        self.parameters = sum(value.numel() for name, value in state.items() if name.endswith(learned))
        self.state = {name.removeprefix("network."): value.double() for name, value in state.items()}
        self.temperature = state["temperature"].item()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of images uint8 [N, H, W, 3], not divided by the temperature."""
        return np.concatenate([self._of(part) for part in np.array_split(images, -(-len(images) // 500))])

    def _of(self, images: np.ndarray) -> np.ndarray:
        normalized = (images / 255 - self.description["mean"]) / self.description["std"]
        pixels = torch.from_numpy(normalized).permute(0, 3, 1, 2)
        return convnet(pixels, self.state, training=False, **self.description["options"]).numpy()

    def predict_tta(self, images: np.ndarray) -> np.ndarray:
        """Average the logits of an image, its two shifts at half the weight, and the mirror images of the three."""
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        height, width = images.shape[1:3]
        total = np.zeros((len(images), len(self.description["classes"])))
        for pixels, weight in ((0, 2), (-1, 1), (1, 1)):
            view = padded[:, 1 - pixels : 1 - pixels + height, 1 - pixels : 1 - pixels + width]
            total += weight / 8 * (self.logits(view) + self.logits(view[:, :, ::-1].copy()))
        return total

    def predict_some_tta(self, images: np.ndarray, unsure: float) -> np.ndarray:
        """Logits of averaged views for the fraction `unsure` of the images, and of one view for the others."""
        logits = self.logits(images)
        selected = np.argsort(_softmax(logits / self.temperature).max(1))[: round(unsure * len(images))]
        logits[selected] = self.predict_tta(images[selected])
        return logits

    def assert_agrees(
        self, chances: np.ndarray, one_view: np.ndarray, predict_tta: np.ndarray, unsure: float, temperature: float
    ) -> None:
        """Compare stored probabilities with the network's; the fraction `unsure` of the images has averaged ones."""
        sure = _softmax(one_view / self.temperature).max(1)
        limit = np.sort(sure)[round(unsure * len(sure))]
        from_one, from_all = (
            np.abs(chances - _softmax(logits / temperature)).max(1) for logits in (one_view, predict_tta)
        )
        clearly = np.abs(sure - limit) > self.near
        off = np.where(clearly, np.where(sure < limit, from_all, from_one), np.minimum(from_one, from_all))
        assert off.max() < self.near
        assert np.median(off) < self.near / 10

    def accuracy(self, logits: np.ndarray, labels: np.ndarray) -> Any:
        """The accuracy, with a tolerance for images whose class depends on rounding."""
        first, second = np.sort(logits, axis=1)[:, :-3:-1].T
        doubtful = (first - second < 2 * self.near).mean()
        return pytest.approx((logits.argmax(1) == labels).mean(), abs=doubtful + 1e-9)


def convnet(pixels: Tensor, state: Mapping[str, Tensor], widths: list[int], depth: int, training: bool) -> Tensor:
    """Logits [N, classes] of normalized pixels [N, 3, H, W]; `training` uses the statistics of the batch."""
    features = F.conv2d(pixels, state["first.weight"])
    features = features * features.sigmoid()
    for block in range(len(widths)):
        for place in range(depth):
            features = F.conv2d(features, state[f"blocks.{block}.convs.{place}.weight"], padding=1)
            if place == 0:
                features = F.max_pool2d(features, 2)
            mean, variance, scale, shift = (
                state[f"blocks.{block}.norms.{place}.{part}"][:, None, None]
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
