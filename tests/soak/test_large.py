"""Long trainings and large data sets through the real stages: memory stays within stated limits."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from official_formats import binary_files, make_set
from project import clone

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MIB = 2**20
LIMITS = {"download": 2_300, "preprocess": 2_300, "train": 3_000, "evaluate": 1_400, "report": 500}
"""MiB at the peak of each stage on 500,000 training and 100,000 test images, which are 1,758 MiB themselves."""


def test_memory_does_not_grow_over_200_epochs(tmp_path: Path) -> None:
    project = clone(tmp_path)
    # Images of one size all the time, as larger ones take more; a checkpoint whenever it may be.
    project.set(train={"epochs": 200, "progressive_resizing": [1.0], "checkpoint_seconds": 0.01})
    process = project.start("dvc", "repro", "train")
    assert process.stdout is not None
    lines, held = [], []
    for line in process.stdout:
        lines.append(line)
        if re.search(r"epoch +\d+: train loss", line):
            held.append(memory_of(process.pid, "stages/train.py"))
    assert process.wait() == 0, "".join(lines)
    assert len(held) == 200
    shown = (1, *range(20, 201, 20))
    print(f"MiB after epochs {shown}: {[round(held[epoch - 1] / MIB) for epoch in shown]}")
    # Medians, for what lies on the heap at one moment varies; the first epochs set up what all the others use.
    early, late = np.median(held[20:60]), np.median(held[160:])
    assert late - early < 16 * MIB, "a hundred thousand epochs would take more than 10 GiB"


def test_500_000_images_flow_through_all_stages_in_the_memory_stated(tmp_path: Path) -> None:
    project = clone(tmp_path)
    large = tmp_path / "cifar-10-batches-bin"
    project.set(
        download={"source": str(large), "checksums": write_large_set(large, times=100)},
        train={"epochs": 1, "batch_size": 500},
    )
    output = project.run("dvc", "repro", timeout=3000)
    print(*re.findall(r"^\w+: done in .*", output, re.MULTILINE), sep="\n")
    dataset = project.json("metrics/dataset.json")
    assert (dataset["train"], dataset["val"], dataset["test"]) == (450_000, 50_000, 100_000)
    assert len(project.table("data/predictions/test.csv")) == 100_000
    found = re.findall(r"^(\w+): done in [\d.,]+ s, peak memory ([\d,]+) MiB", output, re.MULTILINE)
    peaks = {stage: int(peak.replace(",", "")) for stage, peak in found}
    assert peaks.keys() == LIMITS.keys()
    assert {stage: peak for stage, peak in peaks.items() if peak > LIMITS[stage]} == {}

    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    metrics = client.get_run(project.json("metrics/run.json")["mlflow"]["run_id"]).data.metrics
    for stage in ("train", "evaluate", "report"):
        assert metrics[f"{stage}_peak_memory_mib"] == pytest.approx(peaks[stage], rel=0.05)
    shutil.rmtree(tmp_path)  # gigabytes


def write_large_set(folder: Path, times: int) -> dict[str, str]:
    """Write the binary batches of 5,000 training and 1,000 test images, each repeated; returns their checksums."""
    folder.mkdir()
    checksums = {}
    for name, content in binary_files(make_set(n_train=5000, n_test=1000)).items():
        digest = hashlib.md5(usedforsecurity=False)
        with (folder / name).open("wb") as file:
            for _ in range(times):
                file.write(content)
                digest.update(content)
        checksums[name] = digest.hexdigest()
    return checksums


def memory_of(pid: int, script: str) -> int:
    """Bytes of RAM that the process below `pid` holds which runs a script."""
    (found,) = (child for child in psutil.Process(pid).children(recursive=True) if runs(child, script))
    return found.memory_info().rss


def runs(process: psutil.Process, script: str) -> bool:
    command = process.cmdline()
    return len(command) == 2 and "python" in command[0] and command[1] == script
