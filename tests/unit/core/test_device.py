import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vision.core.device import cpu_capabilities, describe_environment, select_device
from vision.pipeline.paths import ROOT

TRAIN = """
import sys, torch
sys.path[:0] = ["stages", "tests/helpers"]
from small_training import train_config
from vision.core import loop
from vision.core.data import ImageDataset
from vision.core.device import compute_deterministically
from vision.core.models.classifier import InputSpec
from vision.core.models.registry import create_model
if sys.argv[1] == "deterministic":
    compute_deterministically()
images = torch.randint(0, 256, (200, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
train = ImageDataset(images, torch.arange(200) % 4)
torch.manual_seed(0)
inputs = InputSpec([16, 16, 3], [0.4] * 3, [0.2] * 3)
model = create_model("convnet", {"widths": [8, 16], "depth": 1}, inputs, 4)
model.initialize_from(images)
augment = {"rotation": 5.0, "color_jitter": [0.1] * 4, "cutout": 3, "mixup": 0.4, "cutmix": 0.4}
config = train_config(
    dtype=torch.bfloat16, augment=augment, clip_grad_norm=1.0, progressive_resizing=[0.75, 1.0],
    hard_example_fraction=[1.0, 0.5], ema_decay=0.5,
)
loop.fit(model, train, train, config)
sys.stdout.buffer.write(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
"""

DECAY = """
import sys, torch
sys.path.insert(0, "stages")
from vision.core.device import flush_denormals
torch.set_num_threads(2)
if sys.argv[1] == "flush":
    flush_denormals()
momentum = torch.full((1_000_000,), 1e-37)
for _ in range(50):
    momentum.mul_(0.9)
print(momentum.count_nonzero().item())
"""


@pytest.mark.parametrize(("setting", "nonzero"), [("flush", 0), ("keep", 1_000_000)])
def test_flush_denormals_applies_to_every_thread(setting: str, nonzero: int) -> None:
    """In a separate process, because the setting is the process's."""
    done = subprocess.run([sys.executable, "-c", DECAY, setting], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == nonzero


def test_auto_selects_a_device_and_a_precision_that_work() -> None:
    device, dtype = select_device("auto", "auto")
    layer = torch.nn.Conv2d(3, 4, 3).to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        assert layer(torch.ones(1, 3, 8, 8, device=device)).dtype == dtype


def test_an_explicit_device_and_precision_are_used() -> None:
    assert select_device("cpu", "fp32") == (torch.device("cpu"), torch.float32)
    assert select_device("cpu", "bf16") == (torch.device("cpu"), torch.bfloat16)


def test_fp16_on_a_cpu_is_an_error_that_names_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"train\.precision: fp16 needs a CUDA device, but the device is cpu"):
        select_device("cpu", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_unavailable_device_is_an_error_that_names_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"train\.device: cuda is not available here \(available: .*cpu\)"):
        select_device("cuda", "auto")


def test_cpu_capabilities_are_those_that_pytorch_reports() -> None:
    backend = SimpleNamespace(get_capabilities=lambda: {"amx_bf16": True})
    assert cpu_capabilities(backend) == {"amx_bf16": True}


def test_cpu_capabilities_without_a_public_function_are_the_flags_of_linux(tmp_path: Path) -> None:
    """As in PyTorch before 2.11."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile\n\nflags\t\t: fpu\n")
    assert cpu_capabilities(SimpleNamespace(), tmp_path / "cpuinfo") == {
        "fpu": True,
        "avx512_bf16": True,
        "amx_tile": True,
    }
    assert cpu_capabilities(SimpleNamespace(), tmp_path / "absent") == {}


def test_both_sources_of_cpu_capabilities_agree_on_this_machine() -> None:
    from_linux = cpu_capabilities(SimpleNamespace())
    if not from_linux or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this machine has only one of them")
    for name in ("avx512_bf16", "amx_tile", "amx_bf16"):
        assert from_linux.get(name, False) == cpu_capabilities().get(name, False)


def test_the_environment_contains_device_precision_and_versions() -> None:
    environment = describe_environment(torch.device("cpu"), torch.bfloat16)
    assert (environment["device"], environment["precision"]) == ("cpu", "bf16")
    assert environment["device_name"]
    assert torch.__version__.startswith(environment["versions"]["torch"])  # type: ignore[index]


@pytest.mark.slow
def test_deterministic_algorithms_exist_for_all_operations_and_change_no_bit_on_a_cpu() -> None:
    """With all features of the training; in separate processes, because the setting is the process's."""
    digests = set()
    for setting in ("deterministic", "default"):
        done = subprocess.run([sys.executable, "-c", TRAIN, setting], cwd=ROOT, capture_output=True, check=True)
        assert len(done.stdout) > 5000
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(digests) == 1
