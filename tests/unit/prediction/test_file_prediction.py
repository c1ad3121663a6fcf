import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from photos import BRIGHT, DARK, make_photos, make_unreadable
from vision.prediction.file_prediction import Batch, predict_files
from vision.prediction.fingerprint import prediction_fingerprint
from vision.prediction.image_list import list_images
from vision.prediction.predictor import BATCH_SIZE, ModelSource, Predictor

CLASSES = ["red", "green", "blue"]


class MeanColor(nn.Module):
    """The "probabilities" of three classes: the mean of each channel in the upper half, from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, : images.shape[1] // 2].float().mean((1, 2)) / 255 * self.gain


def make_predictor(**changes: object) -> Predictor:
    network = MeanColor().eval()
    source = ModelSource("models", "models", "")
    fields = {"network": network, "classes": CLASSES, "image_size": (32, 32), "dtype": torch.float32} | changes
    return Predictor(source=source, device=torch.device("cpu"), **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """1,001 files, three of which are no images."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(1001):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(folder / f"{number:04}.png")
    for number in (0, 499, 777):
        (folder / f"{number:04}.png").write_bytes(b"")
    return list_images([str(folder)])


def test_batches_have_fixed_limits_and_all_files_in_order(images: list[str]) -> None:
    counts: list[int] = []
    batches = list(predict_files(make_predictor(), images, on_read=counts.append))
    assert [batch.end for batch in batches] == [500, 1000, 1001]
    assert sum(counts) == 1001
    bad = [images[0], images[499], images[777]]
    assert [file for batch in batches for file in batch.images] == [file for file in images if file not in bad]
    assert [list(batch.errors) for batch in batches] == [bad[:2], bad[2:], []]
    assert batches[0].errors[bad[0]] == "not an image, or truncated at its beginning"
    numbers = [int(Path(file).stem) for batch in batches for file in batch.images]
    expected = np.array([(number % 256, number // 256, 0) for number in numbers]) / 255
    np.testing.assert_allclose(np.concatenate([batch.probabilities for batch in batches]), expected, atol=1e-6)


def test_a_later_start_gives_the_same_batches(images: list[str]) -> None:
    def content(batch: Batch) -> tuple[object, ...]:
        return batch.end, batch.images, batch.probabilities.tobytes(), batch.errors

    whole = [content(batch) for batch in predict_files(make_predictor(), images)]
    assert [content(batch) for batch in predict_files(make_predictor(), images, BATCH_SIZE)] == whole[1:]


def test_photos_of_every_kind_are_rotated_flattened_and_scaled(tmp_path: Path) -> None:
    photos = make_photos(tmp_path)
    kinds = {str(path): kind for kind, path in photos.items()}
    (batch,) = predict_files(make_predictor(), list_images([str(tmp_path)]))
    assert set(batch.images) == set(kinds)
    for file, color in zip(batch.images, batch.probabilities * 255, strict=True):
        expected = {"alpha": (255,) * 3}.get(kinds[file], BRIGHT)
        if "gray" in kinds[file]:
            expected = (np.dot(BRIGHT, [0.299, 0.587, 0.114]),) * 3
        assert np.abs(color - expected).max() < 6, kinds[file]
        assert np.abs(color - DARK).max() > 100, kinds[file]


def test_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    files = {kind: str(path) for kind, path in make_unreadable(tmp_path).items()}
    files["pipe"] = str(tmp_path / "pipe.png")
    os.mkfifo(files["pipe"])
    files["gone"] = str(tmp_path / "gone.png")
    files["link"] = str(tmp_path / "link.png")
    Path(files["link"]).symlink_to(files["gone"])
    files["line"] = str(tmp_path / "two\nlines.png")
    files["name"] = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    for kind in ("line", "name"):
        Image.new("RGB", (4, 4)).save(files[kind], "PNG")
    (batch,) = predict_files(make_predictor(), list(files.values()))
    assert batch.images == []
    assert batch.probabilities.shape == (0, 3)
    reasons = {kind: batch.errors[file] for kind, file in files.items()}
    assert reasons["empty"] == reasons["text"] == "not an image, or truncated at its beginning"
    assert "truncated" in reasons["truncated"]
    assert reasons["pipe"] == "a special file"
    assert reasons["gone"] == reasons["link"] == "no such file"
    assert reasons["line"] == reasons["name"] == "the name has control characters or is not UTF-8; rename it"


def test_the_fingerprint_is_that_of_model_files_and_settings(images: list[str], tmp_path: Path) -> None:
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for file in files:
        Path(file).write_bytes(b"content")
    first = prediction_fingerprint(make_predictor(), files)
    assert prediction_fingerprint(make_predictor(), files) == first
    other = MeanColor()
    other.gain.data[0] += 1e-6
    changed = [
        prediction_fingerprint(make_predictor(), files[::-1]),
        prediction_fingerprint(make_predictor(), files[:1]),
        prediction_fingerprint(make_predictor(network=other), files),
        prediction_fingerprint(make_predictor(network=nn.Sequential(MeanColor(), nn.ReLU())), files),
        prediction_fingerprint(make_predictor(network=nn.Sequential(MeanColor(), nn.SiLU())), files),
        prediction_fingerprint(make_predictor(classes=["red", "green", "brown"]), files),
        prediction_fingerprint(make_predictor(image_size=(32, 33)), files),
        prediction_fingerprint(make_predictor(dtype=torch.bfloat16), files),
    ]
    Path(files[0]).write_bytes(b"Content")
    changed.append(prediction_fingerprint(make_predictor(), files))
    Path(files[1]).unlink()
    changed.append(prediction_fingerprint(make_predictor(), files))
    assert len({first, *changed}) == 1 + len(changed)
