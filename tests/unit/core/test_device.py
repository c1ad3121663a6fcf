import hashlib
import subprocess
import sys

import pytest
import torch

from vision.core.device import choose, environment
from vision.pipeline.paths import ROOT

TRAINING = """
import sys, torch
from vision import fit, models
from vision.batches import Examples
from vision.device import compute_deterministically
if sys.argv[1] == "deterministic":
    compute_deterministically()
images = torch.randint(0, 256, (200, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
train = Examples(images, torch.arange(200) % 4)
torch.manual_seed(0)
model = models.build("convnet", {"widths": [8, 16], "depth": 1}, [16, 16, 3], 4, [0.4] * 3, [0.2] * 3)
model.initialize_from(images)
settings = fit.Settings(
    seed=0, dtype=torch.bfloat16, epochs=3, batch_size=50, freeze=0, optimizer="muon", lr=0.1, other_lr=0.02,
    momentum=0.6, nesterov=True, weight_decay=0.0, schedule="linear", warmup=0.1, clip_norm=1.0, label_smoothing=0.1,
    flip="alternate", crop_padding=1, rotation=5.0, color_jitter=[0.1] * 4, cutout=3, mixup=0.4, cutmix=0.4,
    image_scales=[0.75, 1.0], image_shares=[1.0, 0.5], ema=0.5, keep="val_loss", patience=None,
)
fit.fit(model, train, train, settings)
sys.stdout.buffer.write(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
"""

DECAYING = """
import sys, torch
from vision.device import flush_denormals
torch.set_num_threads(2)
if sys.argv[1] == "flushed":
    flush_denormals()
momentum = torch.full((1_000_000,), 1e-37)
for _ in range(50):
    momentum.mul_(0.9)
print(momentum.count_nonzero().item())
"""


@pytest.mark.parametrize(("way", "left"), [("flushed", 0), ("kept", 1_000_000)])
def test_what_fades_away_becomes_zero_in_every_thread(way: str, left: int) -> None:
    """In processes of their own, as it is the process's."""
    done = subprocess.run(
        [sys.executable, "-c", DECAYING, way], cwd=ROOT / "stages", capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == left


def test_auto_finds_a_device_and_a_precision_that_work() -> None:
    device, dtype = choose("auto", "auto")
    layer = torch.nn.Conv2d(3, 4, 3).to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        assert layer(torch.ones(1, 3, 8, 8, device=device)).dtype == dtype


def test_what_is_asked_for_is_chosen() -> None:
    assert choose("cpu", "fp32") == (torch.device("cpu"), torch.float32)
    assert choose("cpu", "bf16") == (torch.device("cpu"), torch.bfloat16)


def test_fp16_on_a_cpu_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"train\.precision: fp16 needs a CUDA device, this is cpu"):
        choose("cpu", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"train\.device: cuda is not available here \(available: .*cpu\)"):
        choose("cuda", "auto")


def test_the_environment_names_device_precision_and_versions() -> None:
    found = environment(torch.device("cpu"), torch.bfloat16)
    assert (found["device"], found["precision"]) == ("cpu", "bf16")
    assert found["device_name"]
    assert torch.__version__.startswith(found["versions"]["torch"])  # type: ignore[index]


@pytest.mark.slow
def test_deterministic_kernels_change_no_bit_on_a_cpu_and_there_is_one_for_each_operation() -> None:
    """With all of training's features on; in processes of their own, as the choice is the process's."""
    digests = set()
    for kernels in ("deterministic", "any"):
        command = [sys.executable, "-c", TRAINING, kernels]
        done = subprocess.run(command, cwd=ROOT / "stages", capture_output=True, check=True)
        assert len(done.stdout) > 5000
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(digests) == 1
