import pytest
import torch

from vision.device import choose, environment


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
