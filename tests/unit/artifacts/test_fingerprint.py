import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vision.artifacts import fingerprint
from vision.artifacts.fingerprint import training_fingerprint
from vision.core import device
from vision.pipeline import paths
from vision.pipeline.params import Params, load_params
from vision.pipeline.paths import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a little data."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    data = tmp_path / "data/processed"
    data.mkdir(parents=True)
    for name in ("train_images", "train_labels", "val_images", "val_labels"):
        np.save(data / f"{name}.npy", np.arange(5))
    (data / "stats.json").write_text("{}")
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


KERNELS: dict[str, bool | str] = {"fused_blocks": False, "weight_gradients": "pytorch"}


def changed(section: str, **values: object) -> Params:
    params = load_params()
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


def test_it_changes_with_what_the_result_depends_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "weights.pt").write_bytes(b"weights")
    there = changed("model", weights="weights.pt")

    def found(
        params: Params | None = None,
        dtype: torch.dtype = torch.float32,
        fused: bool = False,
        gradients: str = "pytorch",
    ) -> str:
        return training_fingerprint(
            params or load_params(), CPU, dtype, {"fused_blocks": fused, "weight_gradients": gradients}
        )

    seen = [found(), found(there), found(changed("train", lr=0.2)), found(changed("model", freeze_epochs=1))]
    seen += [found(load_params().model_copy(update={"seed": 1})), found(dtype=torch.bfloat16), found(fused=True)]
    seen.append(found(gradients="avx512_bf16"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    seen.append(found())
    torch.set_num_threads(threads)
    with monkeypatch.context() as patch:
        patch.setattr(device, "_cpu_name", lambda: "another processor")
        seen.append(found())
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "cpu_capabilities", lambda: {"avx512_bf16": "of another kind"})
        seen.append(found())
    for path in (
        "stages/train.py",
        "stages/vision/core/loop.py",
        "stages/vision/core/models/convnet.py",
        "stages/vision/core/fused_block.cpp",
        "data/processed/train_images.npy",
        "data/processed/val_labels.npy",
        "data/processed/stats.json",
        "weights.pt",
    ):
        with (root / path).open("ab") as file:
            file.write(b"\n")
        seen.append(found(there))
    assert len(set(seen)) == len(seen)
    assert all(len(one) == 16 for one in seen)


def test_it_stays_with_what_changes_nothing(root: Path) -> None:
    before = training_fingerprint(load_params(), CPU, torch.float32, KERNELS)
    (root / "stages/evaluate.py").write_text("")
    (root / "stages/vision/core/models/__pycache__").mkdir()
    (root / "stages/vision/core/models/__pycache__/convnet.cpython-399.pyc").write_bytes(b"bytecode")
    others = [changed("train", checkpoint_seconds=1.0), changed("report", title="Another"), load_params()]
    assert {training_fingerprint(params, CPU, torch.float32, KERNELS) for params in others} == {before}
