"""The stage that splits and resizes, run as a script on what download leaves."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.models import ResNet18_Weights

from official_formats import CLASSES, make_set
from vision.pipeline.paths import ROOT
from vision.storage import arrays, tables
from vision.storage.arrays import Split

DATA = make_set(n_train=500, n_test=100)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the code with params.yaml, and DATA as download leaves it."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    train, test = Split(DATA.train_images, DATA.train_labels), Split(DATA.test_images, DATA.test_labels)
    arrays.write_raw(tmp_path / "data/raw", train, test, CLASSES)
    return tmp_path


def preprocess(clone: Path, status: int = 0, **settings: object) -> str:
    """Run the stage with other parameters; all that it printed."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["preprocess"] |= settings
    (clone / "params.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "stages/preprocess.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def split(clone: Path, name: str) -> Split:
    stats = arrays.read_stats(clone / "data/processed")
    return arrays.read_split(clone / "data/processed", name, len(stats.classes), stats.image_shape)


def as_files(clone: Path, *, apart: bool, sizes: tuple[int, ...] = (32,)) -> None:
    """DATA as files, each with its number in its name, the test images `apart` or not there at all."""
    shutil.rmtree(clone / "data/raw")
    for name, images, labels in (
        ("train", DATA.train_images, DATA.train_labels),
        *([("test", DATA.test_images, DATA.test_labels)] if apart else []),
    ):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = clone / f"data/raw/{name}/{CLASSES[label]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = sizes[number % len(sizes)]
            Image.fromarray(image).resize((side, side)).save(path)


def as_set(split: Split) -> set[tuple[int, str]]:
    return {
        (int(label), hashlib.sha256(image.tobytes()).hexdigest())
        for image, label in zip(split.images, split.labels, strict=True)
    }


def test_arrays_are_split_as_they_are(clone: Path) -> None:
    output = preprocess(clone, test_fraction=0.5)
    assert "preprocess: 450 train, 50 val, 100 test; mean" in output
    np.testing.assert_array_equal(split(clone, "test").images, DATA.test_images)
    np.testing.assert_array_equal(split(clone, "test").labels, DATA.test_labels)
    whole = Split(DATA.train_images, DATA.train_labels)
    assert as_set(split(clone, "train")) | as_set(split(clone, "val")) == as_set(whole)


@pytest.mark.parametrize("size", [24, 64])
def test_arrays_are_resized(clone: Path, size: int) -> None:
    preprocess(clone, image_size=size)
    assert arrays.read_stats(clone / "data/processed").image_shape == [size, size, 3]
    images = split(clone, "test").images
    assert images.shape == (100, size, size, 3)
    wanted = Image.fromarray(DATA.test_images[7]).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[7], np.asarray(wanted))


def test_files_hold_the_same_as_arrays(clone: Path) -> None:
    as_files(clone, apart=True)
    output = preprocess(clone)
    assert "preprocess: 450 train, 50 val, 100 test; mean" in output
    assert arrays.read_stats(clone / "data/processed").classes == list(CLASSES)
    assert as_set(split(clone, "test")) == as_set(Split(DATA.test_images, DATA.test_labels))
    whole = Split(DATA.train_images, DATA.train_labels)
    assert as_set(split(clone, "train")) | as_set(split(clone, "val")) == as_set(whole)


def test_a_test_split_is_held_out_where_there_is_none(clone: Path) -> None:
    as_files(clone, apart=False)
    output = preprocess(clone, test_fraction=0.2, val_fraction=0.25, train_limit=200)
    assert "preprocess: 200 train, 100 val, 100 test; mean" in output
    by_class: dict[str, Any] = tables.read_json(clone / "metrics/dataset.json")["by_class"]
    assert all(counts == {"train": 20, "val": 10, "test": 10} for counts in by_class.values())
    parts = [as_set(split(clone, name)) for name in ("train", "val", "test")]
    assert len(set.union(*parts)) == 400
    # Another share for validation leaves the test split as it is.
    preprocess(clone, test_fraction=0.2, val_fraction=0)
    assert as_set(split(clone, "test")) == parts[2]


def test_files_of_many_sizes_need_a_size(clone: Path) -> None:
    as_files(clone, apart=True, sizes=(32, 48, 20))
    output = preprocess(clone, status=1)
    (line,) = [line for line in output.splitlines() if line.startswith("preprocess:")]
    assert "params.yaml: preprocess.image_size: null, but there are images of " in line
    assert "Traceback" not in output
    assert not (clone / "data/processed").exists()
    preprocess(clone, image_size=16)
    assert split(clone, "train").images.shape == (450, 16, 16, 3)


def test_files_of_another_size_in_the_test_split_are_refused(clone: Path) -> None:
    as_files(clone, apart=True)
    for path in clone.glob("data/raw/test/*/*"):
        Image.open(path).resize((40, 30)).save(path)
    output = preprocess(clone, status=1)
    assert "image_size: null, but there are images of 32 x 32 and 40 x 30 pixels; set it, for example to 64" in output


def test_some_classes_alone_are_kept_in_every_split(clone: Path) -> None:
    preprocess(clone, classes=["ship", "cat"], train_limit=60)
    assert arrays.read_stats(clone / "data/processed").classes == ["ship", "cat"]
    assert [len(split(clone, name).labels) for name in ("train", "val", "test")] == [60, 10, 20]
    test = split(clone, "test")
    for label, name in enumerate(["ship", "cat"]):
        expected = DATA.test_images[DATA.test_labels == CLASSES.index(name)]
        assert np.array_equal(test.images[test.labels == label], expected)
    assert "the data has no class 'emu'" in preprocess(clone, status=1, classes=["cat", "emu"])


def test_pixels_are_normalised_as_asked(clone: Path) -> None:
    found = {}
    for name in ("per_channel", "half", "imagenet"):
        preprocess(clone, normalize=name)
        stats = arrays.read_stats(clone / "data/processed")
        found[name] = stats.mean, stats.std
    train = split(clone, "train").images / 255
    assert found["per_channel"][0] == pytest.approx(train.mean((0, 1, 2)))
    assert found["half"] == ([0.5] * 3, [0.5] * 3)
    transform = ResNet18_Weights.DEFAULT.transforms()
    assert found["imagenet"] == (transform.mean, transform.std)
