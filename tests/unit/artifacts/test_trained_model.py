import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vision.artifacts.trained_model import ModelConfig, build_model, load_model, save_model
from vision.pipeline.errors import UserError

CONFIG = ModelConfig(
    name="convnet",
    options={"widths": [4, 8], "depth": 1},
    classes=["cat", "dog", "emu"],
    image_shape=[16, 16, 3],
    mean=[0.5, 0.4, 0.3],
    std=[0.2, 0.2, 0.2],
)


def saved(folder: Path) -> torch.Tensor:
    """Save a model and give its logits for `images()`."""
    torch.manual_seed(0)
    model = build_model(CONFIG).eval()
    save_model(folder, model, CONFIG)
    return model(images())


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_saved_model_comes_back_with_its_description(tmp_path: Path) -> None:
    logits = saved(tmp_path)
    model, config = load_model(str(tmp_path))
    assert config == CONFIG
    assert not model.training
    assert torch.equal(model(images()), logits)


def test_one_model_gives_one_file_bit_by_bit(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    assert (tmp_path / "a/model.pt").read_bytes() == (tmp_path / "b/model.pt").read_bytes()


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('evil-was-here').touch()",)


def poison(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    state["network.last.weight"][0] = float("nan")
    torch.save(state, folder / "model.pt")


def widen(folder: Path) -> None:
    document = json.loads((folder / "model.json").read_text())
    document["options"]["widths"] = [8, 8]
    (folder / "model.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model.pt").unlink(), "model.pt: not found"),
        (lambda folder: (folder / "model.json").unlink(), "model.json: not found"),
        (lambda folder: (folder / "model.json").write_text("{}"), "model.json: classes: missing"),
        (lambda folder: (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:1000]), "model.pt: "),
        (lambda folder: (folder / "model.pt").write_bytes(b""), "model.pt: "),
        (lambda folder: (folder / "model.pt").write_bytes(b"no model"), "model.pt: "),
        (lambda folder: (folder / "model.pt").write_bytes(pickle.dumps(Evil())), "model.pt: "),
        (lambda folder: torch.save(Evil(), folder / "model.pt"), "was not unpickled"),
        (lambda folder: torch.save([1, 2], folder / "model.pt"), "model.pt: "),
        (poison, "network.last.weight has values that are not finite"),
        (widen, "does not fit model.json"),
    ],
    ids=[
        "weights",
        "description",
        "empty",
        "truncated",
        "nothing",
        "foreign",
        "pickle",
        "saved-pickle",
        "list",
        "nan",
        "architecture",
    ],
)
def test_damage_is_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "evil-was-here").exists()
