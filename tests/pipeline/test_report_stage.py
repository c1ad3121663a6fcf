"""The report shows the content of the files, for data of every shape, and a browser displays it."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from browser import chromium, open_report
from vision.datasets.sample_grid import sample_grid
from vision.evaluation.corruptions.table import CORRUPTIONS
from vision.evaluation.scores import summarize
from vision.pipeline.errors import UserError
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.report import charts
from vision.report.page import blend_heat, escape_markdown, format_duration, heat, render, render_card
from vision.report.results import read_results
from vision.storage import arrays, tables

MAX_HEAT_MAPS = 25
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make_project(
    root: Path,
    *,
    classes: Sequence[str] = CIFAR,
    shape: tuple[int, int, int] = (32, 32, 3),
    test: int = 300,
    epochs: int = 10,
    val: int = 50,
    right: float = 0.9,
    mlflow: bool = True,
    images: tuple[np.ndarray, np.ndarray] | None = None,
    corrupted: bool = False,
) -> Path:
    """Make a folder as the other stages leave it: the code, params.yaml, and files that match one another.

    The predictions are random; `right` is the share of correct ones. `images` are test images and their labels; colored
    noise by default. `corrupted` adds accuracies on corrupted images.
    """
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", root)
    total, labels = len(classes), np.arange(len(classes))
    if images is None:
        actual = rng.permutation(np.resize([0, *labels], test))  # classes of different sizes
        tints = rng.integers(0, 200, (total, 1, 1, shape[2]))
        pixels = (tints[actual] + rng.integers(0, 56, (test, *shape))).astype(np.uint8)
    else:
        pixels, actual = images
        test = len(actual)

    # A mistake is mostly made for a neighbour, so that some pairs are confused more often than others.
    others = (actual + rng.choice([1, total - 1, total // 2 or 1], test, p=[0.6, 0.3, 0.1])) % total
    predicted = np.where(rng.random(test) < right, actual, others)
    logits = rng.normal(0, 1, (test, total))
    logits[np.arange(test), predicted] = logits.max(axis=1) + rng.gamma(2, 1.5, test)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence = probabilities.max(axis=1)
    hits = predicted == actual

    split = arrays.Split(pixels, actual.astype(np.uint8))
    nothing = arrays.Split(pixels[:val], split.labels[:val])
    stats = arrays.Stats(list(classes), list(shape), [0.5] * shape[2], [0.25] * shape[2], "0" * 64)
    splits = {"train": split, "val": nothing, "test": split}
    names = {name: list(map(str, range(len(part.labels)))) for name, part in splits.items()}
    arrays.write_processed(root / "data" / "processed", splits, names, stats)
    sample_grid(split, classes, 10).savefig(root / "data" / "samples.png")
    tables.write_csv(
        root / "data" / "predictions" / "test.csv",
        ["image", "actual", "predicted", *(f"p_{name}" for name in classes)],
        (
            [i, classes[actual[i]], classes[predicted[i]], *(float(p) for p in probabilities[i].astype(np.float32))]
            for i in range(test)
        ),
    )
    mistakes = np.flatnonzero(~hits)[:MAX_HEAT_MAPS]
    heat_maps = arrays.HeatMaps(mistakes, rng.integers(0, 256, (len(mistakes), 7, 7), dtype=np.uint8))
    arrays.write_heat_maps(root / "data" / "predictions", heat_maps)

    metrics = root / "metrics"
    counts = confusion_matrix(actual, predicted, labels=labels)
    tables.write_csv(
        metrics / "confusion_matrix.csv",
        ["actual", *classes],
        ([name, *row] for name, row in zip(classes, counts.tolist(), strict=True)),
    )
    scores = precision_recall_fscore_support(actual, predicted, labels=labels, zero_division=0)
    columns = zip(classes, *(score.tolist() for score in scores), strict=True)
    tables.write_csv(
        metrics / "per_class.csv",
        ["class", "precision", "recall", "recall_low", "recall_high", "f1", "images", "prediction_set_size"],
        (
            [name, precision, recall, 0.9 * recall, 0.1 + 0.9 * recall, f1, images, 1.25 if val else ""]
            for name, precision, recall, f1, images in columns
        ),
    )
    bins = []
    for start, end in ((i / 10, (i + 1) / 10) for i in range(10)):
        inside = (confidence > start) & (confidence <= end)
        if inside.any():
            bins.append([start, end, int(inside.sum()), float(confidence[inside].mean()), float(hits[inside].mean())])
    for name in ("calibration", "calibration_before"):
        tables.write_csv(
            metrics / f"{name}.csv", ["confidence_from", "confidence_to", "images", "confidence", "accuracy"], bins
        )
    drawn = rng.random(75 if corrupted else 0).tolist()
    tables.write_csv(
        metrics / "corruptions.csv",
        ["corruption", "severity", "images", "accuracy"],
        [(list(CORRUPTIONS)[i // 5], i % 5 + 1, test, accuracy) for i, accuracy in enumerate(drawn)],
    )
    calibrated = {
        "calibration_error_before": 0.0987,
        "temperature": 0.543,
        "prediction_set_coverage": 0.8976,
        "prediction_set_size": 1.23,
        "unknown_share": 0.0543,
    }
    tables.write_json(
        metrics / "test.json",
        {
            **summarize(actual, probabilities),
            **(calibrated if val else {}),
            "accuracy_one_view": float(hits.mean()) * 0.99,
            "calibration_error_one_view": 0.0123,
            **({"corrupted_accuracy": float(np.mean(drawn))} if corrupted else {}),
        },
    )
    progress = np.linspace(0.5, 1, epochs)
    history = [
        [i + 1, 0.05, 1.0, test, 2 - 1.5 * p, 0.9 * p, *((1.9 - 1.3 * p, 0.88 * p) if val else ("", ""))]
        for i, p in enumerate(progress.tolist())
    ]
    tables.write_csv(
        metrics / "history.csv",
        ["epoch", "lr", "image_scale", "images", "train_loss", "train_accuracy", "val_loss", "val_accuracy"],
        history,
    )
    validated = {
        "val_loss": history[-1][6],
        "val_accuracy": history[-1][7],
        "temperature": 0.567,
        "min_confidence": 0.4567,
    }
    tables.write_json(
        metrics / "train.json",
        {
            "best_epoch": epochs,
            "epochs": epochs,
            "stopped_early": False,
            "train_loss": history[-1][4],
            "train_accuracy": history[-1][5],
            **(validated if val else {}),
            "parameters": 1234567,
        },
    )
    speed = {"seconds": 110.2, "images_per_s": 4091.7, "share_of_peak": 0.7312, "peak_tflops": 0.9}
    tables.write_json(metrics / "speed.json", speed)
    by_class = {
        name: {
            "train": int((actual == i).sum()),
            "val": int((actual[:val] == i).sum()),
            "test": int((actual == i).sum()),
        }
        for i, name in enumerate(classes)
    }
    tables.write_json(
        metrics / "dataset.json", {"classes": total, "train": test, "val": val, "test": test, "by_class": by_class}
    )
    model = {"name": "convnet", "options": {"widths": [32], "depth": 2}, **asdict(stats)}
    tables.write_json(root / "models" / "model.json", model)
    run = {
        "run_id": "0123456789abcdef",
        "experiment_id": "1",
        "tracking_uri": "sqlite:///mlflow.db",
        "page": "http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef",
        "name": "puffy-daks",
        "commit": "c0ffee0c0ffee0",
        "dirty": "true",
        "apply": "dvc exp apply puffy-daks",
    }
    environment = {
        "device": "cpu",
        "device_name": "AMD EPYC",
        "precision": "bf16",
        "threads": 2,
        "python": "3.11.7",
        "versions": {"torch": "2.15.0", "torchvision": "0.30.0", "mlflow": "3.17.0", "dvc": "3.66.1"},
    }
    record = {"mlflow": run if mlflow else None, "tensorboard": None}
    tables.write_json(root / "metrics" / "run.json", {**record, "environment": environment})
    return root


def run_report(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "stages/report.py"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def page_of(root: Path) -> str:
    """The page that the stage writes below `root`."""
    done = run_report(root)
    assert done.returncode == 0, done.stderr
    return (root / "report" / "index.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a person reads: no head, no tags, no entities, single spaces."""
    body = re.sub(r"<[^>]+>", " ", page.split("<body>")[1])
    return " ".join(html.unescape(body).split())


def table_of(page: str, marker: str) -> list[list[str]]:
    """The cells of the first table after `marker`, row by row, as text."""
    table = page[page.index(marker) :].split("<table", 1)[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [text.strip() for text in map(html.unescape, re.findall(r"<t[hd][^>]*>(?:<span>)?([^<]*)", row))]
        for row in rows
    ]


def tiles_of(page: str, section: str) -> list[tuple[int, str, float, str | None, str]]:
    """(number, predicted, confidence in %, true class where another, correct or wrong) of each picture of a section."""
    part = page[page.index(f'<section id="{section}">') :].split("</section>")[0]
    tiles = []
    for kind, tile in re.findall(r'<figure class="tile (\w+)">(.*?)</figure>', part, re.DOTALL):
        number = int(re.search(r"Test image (\d+)", tile)[1])  # type: ignore[index]
        predicted = html.unescape(re.search(r"<strong>(.*?)</strong>", tile)[1])  # type: ignore[index]
        confidence = float(re.search(r"([\d.]+)%", tile)[1])  # type: ignore[index]
        truth = re.search(r"is (.*?)</span>", tile)
        assert ("✓" in tile, 'aria-label="correct"' in tile) == (kind == "correct", kind == "correct")
        tiles.append((number, predicted, confidence, html.unescape(truth[1]) if truth else None, kind))
    return tiles


def predictions_of(root: Path) -> list[dict[str, str]]:
    with (root / "data" / "predictions" / "test.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return page_of(project)


def test_headline_figures_are_those_of_the_files(project: Path, page: str) -> None:
    names = ("train", "speed", "test")
    train, speed, test = (json.loads((project / "metrics" / f"{name}.json").read_text()) for name in names)
    text = text_of(page)
    assert f"Test accuracy {test['accuracy']:.2%}" in text
    assert f"One view {test['accuracy_one_view']:.2%}" in text
    assert f"Macro F1 {test['f1_macro']:.2%}" in text
    interval = f"{100 * test['accuracy_low']:.1f} to {test['accuracy_high']:.1%} with 95% confidence"
    assert f"Test accuracy {test['accuracy']:.2%} {interval}" in text
    assert f"Calibration error {test['calibration_error']:.2%}" in text
    assert "accuracy; 9.87% before temperature scaling" in text
    assert "divided by a temperature of 0.543," in text
    assert "a temperature of its own (0.567), and a difference of 1.23%" in text
    assert "the actual class of 89.8% of the test images" in text
    assert "A set has 1.23 classes on average" in text
    assert "is below 45.7%, as for 5% of the validation images. These are 5.4% of the test images." in text
    assert f"Training time {speed['seconds']} s on AMD EPYC" in text
    assert f"Training speed {speed['images_per_s']:,.0f} images per second, 73.12% of this device" in text
    assert "timed before the training. The training reached 73.12% of it, counted in" in text
    assert f"Parameters {train['parameters']:,}" in text
    assert "was trained on 300 images of 10 classes for 10 epochs, in 110.2 s on AMD EPYC (cpu, bf16)." in text


def test_confusion_table_is_that_of_the_file(project: Path, page: str) -> None:
    with (project / "metrics" / "confusion_matrix.csv").open(encoding="utf-8", newline="") as file:
        expected = list(csv.reader(file))
    rows = table_of(page, 'id="confusion"')
    assert rows[0][1:] == expected[0][1:]
    assert [[row[0], *(cell or "0" for cell in row[1:])] for row in rows[1:]] == expected[1:]


def test_every_score_of_a_class_is_in_the_table(project: Path, page: str) -> None:
    rows = tables.read_csv(project / "metrics" / "per_class.csv")
    assert table_of(page, "Scores by class as a table")[1:] == [
        [
            row["class"],
            f"{float(row['precision']):.1%}",
            f"{float(row['recall']):.1%}",
            f"{100 * float(row['recall_low']):.1f} to {float(row['recall_high']):.1%}",
            f"{float(row['f1']):.1%}",
            row["images"],
            "1.25",
        ]
        for row in rows
    ]


def test_bins_of_confidence_are_those_of_the_file(project: Path, page: str) -> None:
    rows = tables.read_csv(project / "metrics" / "calibration.csv")
    assert [row[1:] for row in table_of(page, "Test images by confidence")[1:]] == [
        [row["images"], f"{float(row['confidence']):.1%}", f"{float(row['accuracy']):.1%}"] for row in rows
    ]


def test_accuracies_on_corrupted_images_are_those_of_the_file(tmp_path: Path, page: str) -> None:
    project = make_project(tmp_path / "corrupted", corrupted=True)
    rows = tables.read_csv(project / "metrics" / "corruptions.csv")
    test = json.loads((project / "metrics" / "test.json").read_text())
    corrupted = page_of(project)
    header, *found = table_of(corrupted, "Accuracy by severity")
    assert header == ["Corruption", "1", "2", "3", "4", "5"]
    assert found == [
        [name.replace("_", " "), *(f"{float(row['accuracy']):.1%}" for row in rows if row["corruption"] == name)]
        for name in CORRUPTIONS
    ]
    mean, clean = test["corrupted_accuracy"], test["accuracy_one_view"]
    assert f"The mean accuracy is {mean:.2%}; without corruption it is {clean:.2%}." in text_of(corrupted)
    assert "Corrupted images" not in text_of(page)
    assert corrupted.count('class="chart"') == page.count('class="chart"') + 1


def test_most_confident_mistakes_come_first(project: Path, page: str) -> None:
    wrong = [
        (int(row["image"]), row["predicted"], float(row[f"p_{row['predicted']}"]), row["actual"])
        for row in predictions_of(project)
        if row["actual"] != row["predicted"]
    ]
    wrong.sort(key=lambda mistake: -mistake[2])
    assert len(wrong) > 20
    assert tiles_of(page, "mistakes") == [
        (number, predicted, round(confidence * 100, 1), actual, "wrong")
        for number, predicted, confidence, actual in wrong[:20]
    ]


def test_a_mistake_has_its_heat_map_beside_it(project: Path, page: str) -> None:
    maps = arrays.read_heat_maps(project / "data/predictions", 300)
    part = page[page.index('<section id="mistakes">') :].split("</section>")[0]
    shown = [int(number) for number in re.findall(r'alt="Test image (\d+)"', part)]
    explained = [int(number) for number in re.findall(r'alt="Heat map of test image (\d+)"', part)]
    assert explained == [number for number in shown if number in maps.indices]
    assert len(explained) > 5
    assert "Heat map" not in page.replace(part, "")


def test_heat_is_bright_where_it_is_high() -> None:
    heat_map = np.zeros((7, 7), np.uint8)
    heat_map[0, 6] = 255
    blended = np.asarray(blend_heat(Image.new("RGB", (32, 32), "gray"), heat_map).convert("L"), dtype=int)
    assert blended.shape == (96, 96)
    assert blended[2, 93] > blended[60, 30] + 50
    tall = blend_heat(Image.new("RGB", (32, 64), "gray"), heat_map)
    assert tall.size == (96, 192)


def test_the_model_card_has_the_figures_of_the_files(project: Path, page: str) -> None:
    card = (project / "report" / "model_card.md").read_text(encoding="utf-8")
    test = json.loads((project / "metrics/test.json").read_text())
    assert card.startswith("# CIFAR-10: model card\n")
    assert f"{test['accuracy']:.2%} (95% interval {test['accuracy_low']:.2%} to {test['accuracy_high']:.2%})" in card
    assert f"the model in use) | {test['accuracy_one_view']:.2%} |" in card
    assert "below 45.67% is reported as unknown" in card
    assert "| test images reported as unknown | 5.43% |" in card
    for row in tables.read_csv(project / "metrics" / "per_class.csv"):
        assert f"| {row['class']} | {float(row['recall']):.2%} |" in card
    assert "torch 2.15.0, torchvision 0.30.0" in card
    assert "commit `c0ffee0` with uncommitted changes" in card
    assert "Model and code: MIT." in card
    assert f"## Intended use\n\n{load_params().report.intended_use}\n" in card
    by_class = json.loads((project / "metrics/dataset.json").read_text())["by_class"]
    counts = [split["train"] for split in by_class.values()]
    assert f"not balanced: the largest has {max(counts)} training images, the smallest {min(counts)}." in card
    assert "None" not in card
    assert not re.search(r"\n\n\n|[{}]|\n\|[^\n]*\n[^|\n]", card)  # no template left, an empty line after each table


def test_a_hostile_name_stays_text_in_the_model_card(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", classes=["<b>cat</b>", "a|b", "[x](http://x)"], val=0)
    results = read_results(root)
    card = render_card(load_params(), results)
    assert "&lt;b&gt;cat&lt;/b&gt;" in card
    assert "a\\|b" in card
    assert "[x](" not in card
    assert "unknown" not in card
    assert "There were no validation images" in card


def test_predictions_are_spread_over_the_test_images_and_marked(project: Path, page: str) -> None:
    rows, tiles = predictions_of(project), tiles_of(page, "predictions")
    numbers = [number for number, *_ in tiles]
    assert len(set(numbers)) == 40
    assert numbers[0] == 0
    assert numbers[-1] == len(rows) - 1
    assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1
    assert {kind for *_, kind in tiles} == {"correct", "wrong"}
    for number, predicted, _, truth, kind in tiles:
        row = rows[number]
        assert predicted == row["predicted"]
        assert (kind, truth) == (("correct", None) if row["actual"] == predicted else ("wrong", row["actual"]))


def test_pictures_are_the_test_images_pixel_by_pixel(project: Path, page: str) -> None:
    images = arrays.read_split(project / "data" / "processed", "test", len(CIFAR)).images
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="Test image (\d+)', page)
    assert len(found) == 40 + 20 + 10
    for source, number in found:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), images[int(number)])


def test_confused_pairs_are_the_most_frequent_ones(project: Path, page: str) -> None:
    counts = {
        (row["actual"], name): (int(row[name]), int(row[name]) / sum(int(row[other]) for other in CIFAR))
        for row in tables.read_csv(project / "metrics" / "confusion_matrix.csv")
        for name in CIFAR
        if name != row["actual"]
    }
    rows = table_of(page, "<h3>Most confused</h3>")[1:]
    frequent = sorted(counts.values(), reverse=True, key=lambda value: value[0])[:10]
    assert [int(row[1]) for row in rows] == [count for count, _ in frequent]
    for pair, count, share, _ in rows:
        actual, predicted = pair.split(" → ")
        assert (int(count), share) == (counts[actual, predicted][0], f"{counts[actual, predicted][1]:.1%}")


def test_every_parameter_and_version_is_listed(project: Path, page: str) -> None:
    text = text_of(page)
    for section, values in load_params(project / "params.yaml").model_dump(exclude={"search"}).items():
        pairs = values if isinstance(values, dict) else {section: values}
        for name, value in pairs.items():
            assert f"{name} {value if isinstance(value, str) else json.dumps(value)}" in text
    run = json.loads((project / "metrics" / "run.json").read_text())
    for name, version in run["environment"]["versions"].items():
        assert f"{name} {version}" in text
    assert run["mlflow"]["run_id"] in text
    assert "commit c0ffee0 with uncommitted changes to code or parameters, which the experiment includes." in text
    assert "dvc exp apply puffy-daks restores this experiment." in text
    assert f'<a href="{run["mlflow"]["page"]}">puffy-daks</a>' in page


def test_same_files_give_the_same_page_and_the_stage_says_where_it_is(project: Path, page: str) -> None:
    done = run_report(project)
    path = project / "report" / "index.html"
    assert f"report: open {path} in a browser" in done.stdout
    assert path.read_text(encoding="utf-8") == page
    assert sorted(path.parent.iterdir()) == [path, path.parent / "model_card.md"]


def rendered(root: Path) -> str:
    """The page as the stage makes it, without a process of its own."""
    return render(load_params(root / "params.yaml"), read_results(root))


def with_page(root: Path) -> Path:
    (root / "report").mkdir()
    (root / "report" / "index.html").write_text(rendered(root), encoding="utf-8")
    return root


def test_one_epoch_two_classes_no_validation_no_mistakes_no_tracking(tmp_path: Path) -> None:
    root = make_project(
        tmp_path, classes=["cat", "dog"], shape=(48, 120, 3), test=30, epochs=1, val=0, right=1.1, mlflow=False
    )
    text = text_of(rendered(root))
    assert "for 1 epoch, in" in text
    assert "There is no validation split. The model has the weights of the last epoch." in text
    assert "30 training, 0 validation and 30 test images." in text
    assert text.count("No test image is misclassified.") == 2
    assert "tracking was disabled" in text


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report of as many classes as CIFAR-100 has."""
    classes = [f"a longer name {i}" for i in range(100)]
    return with_page(make_project(tmp_path_factory.mktemp("hundred"), classes=classes, test=1000, right=0.6))


@pytest.mark.slow
def test_hundred_classes_stay_below_three_megabytes(hundred: Path) -> None:
    page = (hundred / "report" / "index.html").read_text(encoding="utf-8")
    rows = table_of(page, 'id="confusion"')
    assert len(rows) == 101
    assert rows[0][1:] == [row[0] for row in rows[1:]] == read_results(hundred).classes
    assert len(page) < 3e6


def test_gray_images_and_large_images_are_shown_small(tmp_path: Path) -> None:
    page = rendered(make_project(tmp_path, classes=["a", "b", "c"], shape=(300, 200, 1), test=20, right=0.5))
    source = re.search(r'src="data:image/png;base64,([^"]+)" alt="Test image 0"', page)
    assert source
    assert Image.open(io.BytesIO(base64.b64decode(source[1]))).size == (64, 96)


def test_class_names_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    page = rendered(make_project(tmp_path, classes=[evil, 'a"b', "$x_$", "& so on"], test=60, right=0.5))
    assert "<script" not in page
    assert html.escape(evil, quote=False) in page
    assert table_of(page, 'id="confusion"')[0][1:] == [evil, 'a"b', "$x_$", "& so on"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (119.94, "119.9 s"), (725, "12 min 05 s"), (12_000, "3 h 20 min")]
)
def test_durations_are_easy_to_read(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_heat_shows_mistakes_beside_a_strong_diagonal() -> None:
    rows = heat(np.array([[98, 2, 0], [1, 99, 0], [0, 0, 0]]))
    assert rows[0].tolist() == [0.98, 1, 0]
    assert rows[1].tolist() == [0.5, 0.99, 0]
    assert rows[2].tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 40 test images, which tests copy."""
    return make_project(tmp_path_factory.mktemp("small"), test=40)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics/test.json", None, "metrics/test.json: not found; `dvc repro` makes it"),
        ("metrics/test.json", "{}", "metrics/test.json: accuracy: missing"),
        (
            "metrics/run.json",
            '{"mlflow": null, "tensorboard": null, "environment": 3}',
            "metrics/run.json: environment: must be an object (got 3)",
        ),
        ("metrics/history.csv", "<<<<<<< HEAD\n1,2\n", "metrics/history.csv: line 2: epoch: missing"),
        ("metrics/per_class.csv", "class,precision,recall,f1,images\n", "metrics/per_class.csv: has no rows"),
        ("data/predictions/test.csv", "image,actual,predicted\n0,cow,cow\n", "test.csv: damaged, or of other classes"),
        ("data/predictions/test.csv", "image,actual,predicted,p_cat\n0,cat,cat,0.9\n", "does not match"),
        ("data/samples.png", None, "samples.png: not found"),
        ("data/samples.png", "no picture", "samples.png: not a picture"),
    ],
)
def test_bad_files_are_named_in_one_line(
    small: Path, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    root = shutil.copytree(small, tmp_path / "copy")
    (root / name).unlink() if content is None else (root / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_results(root)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_stage_fails_in_one_line_and_keeps_the_page(small: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small, tmp_path / "copy")
    (root / "report").mkdir()
    (root / "report" / "index.html").write_text("yesterday's")
    (root / "metrics" / "train.json").unlink()
    done = run_report(root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"report: {root / 'metrics' / 'train.json'}: not found; `dvc repro` makes it\n"
    assert (root / "report" / "index.html").read_text() == "yesterday's"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report of two classes, one with a long name, and wide images."""
    names = ["cat", "d" * 60]
    return with_page(make_project(tmp_path_factory.mktemp("wide"), classes=names, shape=(20, 90, 3), epochs=1, val=0))


@pytest.mark.usefixtures("page")
@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["project", "wide", "hundred"])
def test_browser_draws_all_and_asks_for_nothing(browser: Browser, name: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    for size in (PHONE, DESKTOP):
        window, messages = open_report(browser, root, viewport=size)
        widths = window.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
        assert len(widths) > 40
        assert min(widths) > 0
        assert messages == []
        window.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
        assert window.evaluate("document.documentElement.scrollWidth") <= size["width"]
        window.close()


@pytest.mark.usefixtures("page")
def test_panels_next_to_each_other_are_filled(browser: Browser, project: Path) -> None:
    """Both are as tall as the taller one, so shorter content would leave a blank below it."""
    window, _ = open_report(browser, project, viewport=DESKTOP)
    blank = """
    panels => panels.map(panel =>
        panel.getBoundingClientRect().bottom - Math.max(...[...panel.querySelectorAll("img, p, table, figcaption")].map(
            content => content.getBoundingClientRect().bottom)))
    """
    below = window.locator("#classes .columns > .panel").evaluate_all(blank)
    assert len(below) == 2
    assert all(20 < pixels < 60 for pixels in below)
    window.close()


BLENDED = """
elements => elements.map(element => {
    const channels = color => color.match(/[0-9.]+/g).map(Number);
    const layers = [];
    for (let node = element; node; node = node.parentElement) {
        const [red, green, blue, alpha = 1] = channels(getComputedStyle(node).backgroundColor);
        layers.unshift([red, green, blue, alpha]);
    }
    const over = (below, [r, g, b, a]) => below.map((channel, i) => channel * (1 - a) + [r, g, b][i] * a);
    const background = layers.reduce(over, [0, 0, 0]);
    return [channels(getComputedStyle(element).color).slice(0, 3), background];
})
"""


def luminance(color: Sequence[float]) -> float:
    """WCAG's relative luminance of sRGB channels in [0, 255]."""
    channels = np.asarray(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.usefixtures("page")
@pytest.mark.sample(1)
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_has_contrast_in_both_themes(browser: Browser, project: Path, theme: Any) -> None:
    window, _ = open_report(browser, project, color_scheme=theme)
    window.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    selector = "p, a, dt, dd, td, th, caption, strong, figcaption, figcaption span, summary, h1, h2, h3, code"
    colors = window.eval_on_selector_all(selector, BLENDED)
    contrasts = [(max(map(luminance, pair)) + 0.05) / (min(map(luminance, pair)) + 0.05) for pair in colors]
    assert len(contrasts) > 300
    assert min(contrasts) >= 4.5
    window.close()


@pytest.mark.usefixtures("page")
def test_dark_mode_is_dark_and_shows_dark_charts(browser: Browser, project: Path) -> None:
    chosen = {}
    for theme in ("light", "dark"):
        window, _ = open_report(browser, project, color_scheme=theme, viewport=PHONE)
        body = window.eval_on_selector_all("body", BLENDED)[0][1]
        assert (luminance(body) < 0.05) == (theme == "dark")
        chosen[theme] = window.eval_on_selector_all("img.chart", "all => all.map(image => image.currentSrc)")
        window.close()
    light, dark = charts.PALETTES["light"].text, charts.PALETTES["dark"].text
    assert len(chosen["light"]) == 4
    for in_light, in_dark in zip(chosen["light"], chosen["dark"], strict=True):
        assert light in drawing(in_light)
        assert dark in drawing(in_dark)
        assert light not in drawing(in_dark)


def drawing(source: str) -> str:
    return base64.b64decode(source.partition("base64,")[2]).decode()


def test_markdown_shows_an_escaped_name_unchanged() -> None:
    assert escape_markdown("sea lion-2.0") == "sea lion-2.0"
    assert escape_markdown("<script>alert(1)<script> & co") == "&lt;script&gt;alert(1)&lt;script&gt; &amp; co"
    assert escape_markdown("[x](javascript:alert(1)) `b` *c* d_e") == r"\[x\](javascript:alert(1)) \`b\` \*c\* d\_e"
