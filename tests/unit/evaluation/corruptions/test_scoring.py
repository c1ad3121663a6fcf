"""The accuracy on corrupted images: computed ones, and those of a folder with the files of CIFAR-10-C."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from official_formats import CLASSES
from vision.core.config import TTAConfig
from vision.evaluation.corruptions.scoring import find_source, mean_accuracy, score_corruptions
from vision.evaluation.corruptions.table import CORRUPTIONS, SEVERITIES, corrupt
from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

NAMES = list(CORRUPTIONS)
CONFIG = TTAConfig(7, torch.float32, "none", 0.0)


class Corner(nn.Module):
    """Predicts the class that the first value of an image names."""

    temperature = torch.ones(())

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(10)[images[:, 0, 0, 0].long() % 10]


def split(count: int = 20) -> Split:
    random = np.random.default_rng(0)
    labels = (np.arange(count) % 10).astype(np.uint8)
    return Split(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels)


def write_cifar_c(folder: Path, test: Split) -> Path:
    """Write files in which an image holds its label, but in the first 2 * severity images of each severity."""
    folder.mkdir()
    for name in NAMES:
        blocks = []
        for severity in SEVERITIES:
            images = np.zeros_like(test.images) + test.labels[:, None, None, None]
            images[: 2 * severity] += 1
            blocks.append(images)
        np.save(folder / f"{name}.npy", np.concatenate(blocks))
    np.save(folder / "labels.npy", np.tile(test.labels, 5))
    return folder


def test_a_row_has_the_accuracy_of_its_corruption_and_severity() -> None:
    labels = np.arange(20) % 10

    def source(name: str, severity: int) -> Iterator[Tensor]:
        images = torch.from_numpy(labels).byte()[:, None, None, None].expand(-1, 4, 4, 3).clone()
        images[: NAMES.index(name) + severity] += 1
        yield from images.split(6)

    rows = score_corruptions(Corner(), source, labels, CONFIG)  # type: ignore[arg-type]
    assert [(row.corruption, row.severity) for row in rows] == [(name, n) for name in NAMES for n in SEVERITIES]
    for row in rows:
        assert row.images == 20
        assert row.accuracy == pytest.approx(1 - (NAMES.index(row.corruption) + row.severity) / 20)
    assert mean_accuracy(rows) == pytest.approx(np.mean([row.accuracy for row in rows]))


def test_false_is_off_and_true_is_computed() -> None:
    test = split()
    assert find_source(False, test, ["a", "b"]) is None
    source = find_source(True, test, ["a", "b"])
    assert source is not None
    for name in ("fog", "contrast"):
        expected = torch.cat(list(corrupt(torch.from_numpy(test.images), name, 2)))
        assert torch.equal(torch.cat(list(source(name, 2))), expected)


def test_a_folder_gives_the_published_images(tmp_path: Path) -> None:
    test = split()
    source = find_source(str(write_cifar_c(tmp_path / "CIFAR-10-C", test)), test, list(CLASSES))
    assert source is not None
    rows = score_corruptions(Corner(), source, test.labels, CONFIG)  # type: ignore[arg-type]
    assert [row.accuracy for row in rows] == pytest.approx([1 - severity / 10 for severity in SEVERITIES] * 15)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.tile(split().labels[::-1], 5), "must be the labels of the test split in its order, five times"),
        ("labels", split().labels, "must be the labels of the test split in its order, five times"),
        ("labels", np.tile(split().labels, 5).astype(float), "must be the labels of the test split"),
        ("fog", np.zeros((99, 32, 32, 3), np.uint8), r"has uint8 \[99, 32, 32, 3\], expected uint8 \[100, 32, 32, 3\]"),
        ("fog", np.zeros((100, 32, 32, 3), np.float32), r"has float32 \[100, 32, 32, 3\], expected uint8"),
        ("fog", np.zeros((100, 30, 32, 3), np.uint8), r"has uint8 \[100, 30, 32, 3\], expected"),
        ("snow", np.array([{}], dtype=object), "damaged"),
        ("snow", None, "not found; evaluate.corruptions must be the folder of CIFAR-10-C"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, name: str, array: np.ndarray | None, message: str) -> None:
    test = split()
    folder = write_cifar_c(tmp_path / "CIFAR-10-C", test)
    path = folder / f"{name}.npy"
    path.unlink()
    if array is not None:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=f"{name}.npy: {message}") as error:
        find_source(str(folder), test, list(CLASSES))
    assert len(str(error.value).splitlines()) == 1


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    test = split()
    path = write_cifar_c(tmp_path / "CIFAR-10-C", test) / "frost.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"frost\.npy: damaged"):
        find_source(str(path.parent), test, list(CLASSES))


def test_a_folder_is_only_for_the_classes_of_cifar10(tmp_path: Path) -> None:
    test = split()
    folder = write_cifar_c(tmp_path / "CIFAR-10-C", test)
    with pytest.raises(UserError, match=r"evaluate\.corruptions: .* ten classes of CIFAR-10"):
        find_source(str(folder), test, list(reversed(CLASSES)))
