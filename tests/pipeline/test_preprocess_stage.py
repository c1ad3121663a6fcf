"""The preprocess stage, run as a script on the output of the download stage."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.models import ResNet18_Weights

from official_formats import CLASSES, make_set
from stages import Stages
from vision.pipeline.paths import ROOT
from vision.storage import arrays, tables
from vision.storage.arrays import Split
from vision.storage.names import read_names

DATA = make_set(n_train=500, n_test=100)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    folder = tmp_path_factory.mktemp("preprocess")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    with Stages(folder, tmp_path_factory.mktemp("output")) as stages:
        yield stages


@pytest.fixture
def stages(checkout: Stages) -> Stages:
    """A checkout with DATA as the download stage leaves it."""
    for folder in ("data", "metrics"):
        shutil.rmtree(checkout.checkout / folder, ignore_errors=True)
    train, test = Split(DATA.train_images, DATA.train_labels), Split(DATA.test_images, DATA.test_labels)
    arrays.write_raw(checkout.checkout / "data/raw", train, test, CLASSES)
    return checkout


def preprocess(stages: Stages, status: int = 0, **settings: object) -> str:
    """Run the stage with other parameters and return its output."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["preprocess"] |= settings
    (stages.checkout / "params.yaml").write_text(yaml.safe_dump(document))
    result = stages.run("preprocess")
    assert result.status == status, result.errors
    return result.output + result.errors


def split(root: Path, name: str) -> Split:
    stats = arrays.read_stats(root / "data/processed")
    return arrays.read_split(root / "data/processed", name, len(stats.classes), stats.image_shape)


def as_files(root: Path, *, apart: bool, sizes: tuple[int, ...] = (32,)) -> None:
    """DATA as files, each with its number in its name, the test images `apart` or not there at all."""
    shutil.rmtree(root / "data/raw")
    for name, images, labels in (
        ("train", DATA.train_images, DATA.train_labels),
        *([("test", DATA.test_images, DATA.test_labels)] if apart else []),
    ):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / f"data/raw/{name}/{CLASSES[label]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = sizes[number % len(sizes)]
            Image.fromarray(image).resize((side, side)).save(path)


def as_set(split: Split) -> set[tuple[int, str]]:
    return {
        (int(label), hashlib.sha256(image.tobytes()).hexdigest())
        for image, label in zip(split.images, split.labels, strict=True)
    }


def test_arrays_are_split_as_they_are(stages: Stages) -> None:
    output = preprocess(stages, test_fraction=0.5)
    assert "preprocess: 450 train, 50 val, 100 test; mean" in output
    np.testing.assert_array_equal(split(stages.checkout, "test").images, DATA.test_images)
    np.testing.assert_array_equal(split(stages.checkout, "test").labels, DATA.test_labels)
    whole = Split(DATA.train_images, DATA.train_labels)
    assert as_set(split(stages.checkout, "train")) | as_set(split(stages.checkout, "val")) == as_set(whole)


@pytest.mark.parametrize("size", [24, 64])
def test_arrays_are_resized(stages: Stages, size: int) -> None:
    preprocess(stages, image_size=size)
    assert arrays.read_stats(stages.checkout / "data/processed").image_shape == [size, size, 3]
    images = split(stages.checkout, "test").images
    assert images.shape == (100, size, size, 3)
    wanted = Image.fromarray(DATA.test_images[7]).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[7], np.asarray(wanted))


def test_files_hold_the_same_as_arrays(stages: Stages) -> None:
    as_files(stages.checkout, apart=True)
    output = preprocess(stages)
    assert "preprocess: 450 train, 50 val, 100 test; mean" in output
    assert arrays.read_stats(stages.checkout / "data/processed").classes == list(CLASSES)
    assert as_set(split(stages.checkout, "test")) == as_set(Split(DATA.test_images, DATA.test_labels))
    whole = Split(DATA.train_images, DATA.train_labels)
    assert as_set(split(stages.checkout, "train")) | as_set(split(stages.checkout, "val")) == as_set(whole)


def test_a_test_split_is_held_out_where_there_is_none(stages: Stages) -> None:
    as_files(stages.checkout, apart=False)
    output = preprocess(stages, test_fraction=0.2, val_fraction=0.25, train_limit=200)
    assert "preprocess: 200 train, 100 val, 100 test; mean" in output
    by_class: dict[str, Any] = tables.read_json(stages.checkout / "metrics/dataset.json")["by_class"]
    assert all(counts == {"train": 20, "val": 10, "test": 10} for counts in by_class.values())
    parts = [as_set(split(stages.checkout, name)) for name in ("train", "val", "test")]
    assert len(set.union(*parts)) == 400
    # Another share for validation leaves the test split as it is.
    preprocess(stages, test_fraction=0.2, val_fraction=0)
    assert as_set(split(stages.checkout, "test")) == parts[2]


def test_files_of_many_sizes_need_a_size(stages: Stages) -> None:
    as_files(stages.checkout, apart=True, sizes=(32, 48, 20))
    output = preprocess(stages, status=1)
    (line,) = [line for line in output.splitlines() if line.startswith("preprocess:")]
    assert "params.yaml: preprocess.image_size: null, but there are images of " in line
    assert "Traceback" not in output
    assert not (stages.checkout / "data/processed").exists()
    preprocess(stages, image_size=16)
    assert split(stages.checkout, "train").images.shape == (450, 16, 16, 3)


def test_files_of_another_size_in_the_test_split_are_refused(stages: Stages) -> None:
    as_files(stages.checkout, apart=True)
    for path in stages.checkout.glob("data/raw/test/*/*"):
        Image.open(path).resize((40, 30)).save(path)
    output = preprocess(stages, status=1)
    assert "image_size: null, but there are images of 32 x 32 and 40 x 30 pixels; set it, for example to 64" in output


def test_some_classes_alone_are_kept_in_every_split(stages: Stages) -> None:
    preprocess(stages, classes=["ship", "cat"], train_limit=60)
    assert arrays.read_stats(stages.checkout / "data/processed").classes == ["ship", "cat"]
    assert [len(split(stages.checkout, name).labels) for name in ("train", "val", "test")] == [60, 10, 20]
    test = split(stages.checkout, "test")
    for label, name in enumerate(["ship", "cat"]):
        expected = DATA.test_images[DATA.test_labels == CLASSES.index(name)]
        assert np.array_equal(test.images[test.labels == label], expected)
    assert "the data has no class 'emu'" in preprocess(stages, status=1, classes=["cat", "emu"])


def names_of(root: Path, name: str) -> list[str]:
    return read_names(root / "data/processed", name, len(split(root, name).labels))


def test_every_image_has_the_name_of_its_source(stages: Stages) -> None:
    preprocess(stages, classes=["ship", "cat"], folds=2, fold=1)
    raw = {"train": DATA.train_images, "val": DATA.train_images, "test": DATA.test_images}
    for name, images in raw.items():
        indices = [int(text) for text in names_of(stages.checkout, name)]
        assert np.array_equal(images[indices], split(stages.checkout, name).images)
    as_files(stages.checkout, apart=False)
    preprocess(stages)
    for name in raw:
        files = [stages.checkout / "data/raw" / text for text in names_of(stages.checkout, name)]
        images = split(stages.checkout, name).images
        assert all(
            np.array_equal(np.asarray(Image.open(file)), image) for file, image in zip(files, images, strict=True)
        )


@pytest.mark.parametrize("files", [False, True])
def test_the_images_of_a_group_are_in_one_split(stages: Stages, files: bool) -> None:
    if files:
        as_files(stages.checkout, apart=False)
        found = sorted(stages.checkout.glob("data/raw/train/*/*"))
        names = [path.relative_to(stages.checkout / "data/raw").as_posix() for path in found]
    else:
        names = [str(index) for index in range(500)]
    groups = {name: number // 3 for number, name in enumerate(names)}
    table = stages.checkout / "groups.csv"
    table.write_text("image,group\n" + "".join(f"{name},{group}\n" for name, group in groups.items()))
    preprocess(stages, groups="groups.csv", val_fraction=0.3)
    own = [name for name in ("train", "val", "test") if files or name != "test"]
    parts = [{groups[text] for text in names_of(stages.checkout, name)} for name in own]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 167
    table.write_text("image,group\n500,1\n")
    says = "groups.csv: line 2: data/raw has no training image 500; audit this data again"
    assert f"preprocess: params.yaml: preprocess.groups: {table}: {says.partition(': ')[2]}" in preprocess(
        stages, status=1, groups="groups.csv"
    )


def test_pixels_are_normalised_as_asked(stages: Stages) -> None:
    found = {}
    for name in ("per_channel", "half", "imagenet"):
        preprocess(stages, normalize=name)
        stats = arrays.read_stats(stages.checkout / "data/processed")
        found[name] = stats.mean, stats.std
    train = split(stages.checkout, "train").images / 255
    assert found["per_channel"][0] == pytest.approx(train.mean((0, 1, 2)))
    assert found["half"] == ([0.5] * 3, [0.5] * 3)
    transform = ResNet18_Weights.DEFAULT.transforms()
    assert found["imagenet"] == (transform.mean, transform.std)
