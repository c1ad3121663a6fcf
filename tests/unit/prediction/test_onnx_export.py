from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vision.artifacts.trained_model import ModelConfig, build_model
from vision.pipeline.errors import UserError
from vision.pipeline.params import load_params
from vision.prediction.onnx_export import export_onnx, fold_batch_norm, model_metadata
from vision.prediction.onnx_network import OnnxNetwork

CLASSES = ["cat", "dog", "frog"]
METADATA = model_metadata(CLASSES, 0.5, "models")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
PLAIN = load_params().model.plain_cnn.model_dump()


def make_network(name: str, options: dict[str, Any], image_size: int | None = None) -> nn.Module:
    """A network with random weights, and with statistics of batches if it normalizes them."""
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, [32, 32, 3], [0.5] * 3, [0.25] * 3, name, options, image_size)
    model = build_model(config).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.from_numpy(IMAGES))
    return nn.Sequential(model, nn.Softmax(1)).eval()


@pytest.mark.parametrize(
    ("name", "options", "image_size"),
    [
        ("convnet", {"widths": [8, 16], "depth": 2}, None),
        pytest.param("convnet", {"widths": [8, 16], "depth": 1}, 48, marks=pytest.mark.slow),
        pytest.param("plain_cnn", PLAIN, None, marks=pytest.mark.slow),
        pytest.param("plain_cnn", PLAIN | {"batch_norm": True, "dropout": 0.3}, None, marks=pytest.mark.slow),
        pytest.param("resnet18", {"stem": "small"}, None, marks=pytest.mark.slow),
        pytest.param("vgg11", {"stem": "small"}, None, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", {"stem": "standard"}, None, marks=pytest.mark.slow),
    ],
)
def test_networks_compute_the_same_for_any_batch_size(
    name: str, options: dict[str, Any], image_size: int | None
) -> None:
    network = make_network(name, options, image_size)
    exported = OnnxNetwork(export_onnx(network, IMAGES[:2], METADATA).SerializeToString())
    assert exported.classes == CLASSES
    assert exported.image_size == (32, 32)
    for count in (1, 7, 20):
        images = torch.from_numpy(IMAGES[:count])
        with torch.inference_mode():
            torch.testing.assert_close(exported(images), network(images), atol=1e-5, rtol=0)


class PooledNorm(nn.Module):
    """A convolution, pooling and batch normalization whose factors have the given signs."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor(factors))
            self.norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
        self.norm.running_mean = torch.tensor([0.3, 0.0, -0.3])
        self.norm.running_var = torch.tensor([0.5, 1.0, 2.0])

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.max_pool2d(self.conv(images.permute(0, 3, 1, 2) / 255), 2)
        return self.norm(features).mean((2, 3)).softmax(1)


@pytest.mark.parametrize(("factors", "left"), [([0.5, 1.0, 2.0], 0), ([0.5, -1.0, 2.0], 1)])
def test_batch_norm_after_pooling_is_folded_if_all_factors_are_positive(factors: list[float], left: int) -> None:
    network = PooledNorm(factors).eval()
    model = export_onnx(network, IMAGES[:2], METADATA)
    assert Counter(node.op_type for node in model.graph.node)["BatchNormalization"] == left
    assert not [tensor.name for tensor in model.graph.initializer if "running" in tensor.name] or left
    with torch.inference_mode():
        expected = network(torch.from_numpy(IMAGES))
    torch.testing.assert_close(OnnxNetwork(model.SerializeToString())(torch.from_numpy(IMAGES)), expected)


def test_features_that_are_used_twice_are_not_folded() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 1, 4, 4] x) => (float[N, 1, 2, 2] y)
       <float[1, 1, 1, 1] w = {2}, float[1] s = {3}, float[1] b = {1}, float[1] m = {0}, float[1] v = {1}>
    {
       c = Conv(x, w)
       p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
       n = BatchNormalization(p, s, b, m, v)
       y = Add(n, p)
    }"""
    model = onnx.parser.parse_model(text)
    fold_batch_norm(model)
    assert "BatchNormalization" in [node.op_type for node in model.graph.node]


class Unexportable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.eigvals(images[:, :3, :3, 0].float()).real.softmax(1)


def test_an_operation_without_a_counterpart_is_one_line() -> None:
    with pytest.raises(UserError, match=r"PyTorch cannot export the network to ONNX \(.+\)") as error:
        export_onnx(Unexportable().eval(), IMAGES[:2], METADATA)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=r"model\.onnx: not found; `python tools/export.py"):
        OnnxNetwork(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match=r"model\.onnx: ONNX Runtime cannot load it \(.+\)"):
        OnnxNetwork(path)
    model = export_onnx(PooledNorm([1.0] * 3).eval(), IMAGES[:2], METADATA)
    for metadata in ({}, {"classes": "text"}, {"classes": '["cat", "dog"]'}, {"classes": "3"}):
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=r"model\.onnx: not written by tools/export\.py"):
            OnnxNetwork(path)
