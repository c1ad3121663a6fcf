import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from vision.artifacts.pretrained import load_pretrained, pretrained_image_size
from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.registry import create_model
from vision.pipeline.errors import UserError

SMALL_IMAGES = InputSpec([32, 32, 3], [0.5] * 3, [0.2] * 3)


def network(classes: int, seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> Classifier:
    torch.manual_seed(seed)
    options = {"widths": list(widths), "depth": 1}
    return create_model("convnet", options, InputSpec([16, 16, 3], [0.1 * classes] * 3, [0.2] * 3), classes)


@pytest.mark.parametrize("classes", [3, 5])
def test_all_but_the_last_layer_and_the_normalization_is_taken(tmp_path: Path, classes: int) -> None:
    source, model = network(3, seed=1), network(classes)
    head, offset = model.head.weight.clone(), model.offset.clone()  # type: ignore[operator]
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_pretrained(model, "convnet", str(tmp_path / "model.pt"))
    assert torch.equal(model.head.weight, head)  # type: ignore[arg-type]
    assert torch.equal(model.offset, offset)
    for key, value in source.network.state_dict().items():
        if not key.startswith("last"):
            assert torch.equal(model.network.state_dict()[key], value), key


def test_a_state_dict_of_torchvisions_own_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = resnet18(num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    model = create_model("resnet18", {"stem": "standard"}, SMALL_IMAGES, 4)
    load_pretrained(model, "resnet18", str(tmp_path / "resnet18.pth"))
    state = model.network.state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], source.layer4[1].conv2.weight)
    assert state["fc.weight"].shape == (4, 512)


def test_the_size_that_pretrained_weights_want_is_known() -> None:
    assert pretrained_image_size("resnet18") == 224
    with pytest.raises(UserError, match="pretrained is for torchvision's networks, not convnet"):
        pretrained_image_size("convnet")


def test_weights_that_cannot_be_downloaded_can_be_supplied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    model = create_model("resnet18", {"stem": "standard"}, SMALL_IMAGES, 4)
    with pytest.raises(UserError) as error:
        load_pretrained(model, "resnet18", "pretrained")
    assert "params.yaml: model.weights: pretrained: cannot be downloaded or read (" in str(error.value)
    assert "resnet18-f37072fd.pth elsewhere and set model.weights to its path" in str(error.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_the_older_forms_that_torchvision_offers_are_taken(tmp_path: Path) -> None:
    """Without the counters of batches, and with the names that DenseNet's layers had before."""
    torch.manual_seed(1)
    source = create_model("densenet121", {"stem": "standard"}, SMALL_IMAGES, 4).network.state_dict()
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in source.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "old.pth")
    model = create_model("densenet121", {"stem": "standard"}, SMALL_IMAGES, 5)
    load_pretrained(model, "densenet121", str(tmp_path / "old.pth"))
    for name, value in model.network.state_dict().items():
        assert name.startswith("classifier") or torch.equal(value, source[name]), name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "model.pt: not found (looked for "),
        (b"no weights", "model.pt: holds other objects than tensors, so it was not unpickled"),
        (b"", "model.pt: damaged, or not written by torch.save ("),
        ({"network.first.weight": torch.ones(24, 3, 2, 2)}, "does not fit convnet: blocks.0.convs.0.weight is missing"),
        (
            network(3).state_dict() | {"network.first.weight": torch.full((24, 3, 2, 2), torch.nan)},
            "model.pt: first.weight has values that are not finite",
        ),
        ({"epoch": 3}, "model.pt: not a state dict: expected a dictionary of tensors"),
        (network(3, widths=(4, 9)).state_dict(), "blocks.1.convs.0.weight is [9, 4, 3, 3], not [8, 4, 3, 3]"),
    ],
    ids=["missing", "foreign", "empty", "other", "nan", "checkpoint", "shape"],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    model = network(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_pretrained(model, "convnet", str(path))
    assert str(error.value).startswith(f"params.yaml: model.weights: {path}: ")
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
