"""The train stage with fused blocks: what it records, and that it uses PyTorch's operators where it has to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cpp_compiler import needs_compiler
from official_formats import make_set
from stages import Stages, change_params, small_checkout
from vision.core.device import has_native_bf16


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with small_checkout(tmp_path_factory.mktemp("fused"), make_set(n_train=200, n_test=60)) as stages:
        change_params(stages.checkout, model={"convnet": {"widths": [32, 32]}}, train={"precision": "bf16"})
        yield stages


def train(stages: Stages, fused_blocks: str) -> tuple[bool, bytes]:
    """Train; return what metrics/run.json says about fused blocks, and the weights."""
    change_params(stages.checkout, train={"fused_blocks": fused_blocks})
    result = stages.run("train")
    assert (result.status, result.errors) == (0, "")
    record = json.loads((stages.checkout / "metrics/run.json").read_text())
    return record["environment"]["fused_blocks"], (stages.checkout / "models/model.pt").read_bytes()


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="this CPU emulates bfloat16")
def test_the_record_says_whether_blocks_were_fused_and_the_weights_are_the_same_again(stages: Stages) -> None:
    fused, weights = train(stages, "auto")
    assert fused is True
    cache = stages.scratch / "cifar10-pipeline/compiled"
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert train(stages, "auto") == (True, weights)
    off, other_weights = train(stages, "off")
    assert off is False
    assert other_weights != weights
    path: Path = stages.checkout / "stages/vision/core"
    assert not list(path.rglob("*.so")), "DVC would train again"
