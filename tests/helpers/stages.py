"""Run stage scripts as processes without waiting for their imports: a process that has imported them forks.

    with small_checkout(tmp_path, make_set()) as stages:
        result = stages.run("train")
        print(result.status, result.output, result.errors)

A fork has its own memory, standard output and standard error. It runs the script as `python stages/train.py` would in
the checkout, and ends.
"""

import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from environment import clean_environment
from merging import deep_merge
from official_formats import OfficialSet, checksums, write_binary_archive
from vision.pipeline.paths import ROOT

_FORK_SERVER = """
import gc, importlib, json, os, runpy, sys, traceback
scratch, *modules = sys.argv[1:]
sys.path.insert(0, "stages")
for module in modules:
    importlib.import_module(module)

def run(script):
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(os.path.join(scratch, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv[:] = [script]
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)

gc.collect()
gc.freeze()  # else each fork would copy all pages when it looks for garbage
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
_GROUPS = (("download", "preprocess", "report"), ("train", "evaluate", "torchvision.models"))
"""The modules that each fork server imports. A small process forks several times faster than a large one."""


@dataclass(frozen=True)
class Result:
    """The exit status of a stage, negative if a signal killed it, and what it printed."""

    status: int
    output: str
    errors: str


class Stages:
    """The stages of a checkout, with its code as it is when a stage runs first."""

    def __init__(self, checkout: Path, scratch: Path) -> None:
        """Run the stages of `checkout`; their output goes to files in the folder `scratch`."""
        self.checkout, self.scratch = checkout, scratch

    def __enter__(self) -> Self:
        self._servers: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.kill()
            server.wait()

    def _server(self, stage: str) -> subprocess.Popen[bytes]:
        """The fork server that has imported the stage, started on first use."""
        modules = next(group for group in _GROUPS if stage in group)
        if modules not in self._servers:
            quiet = {"TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(self.scratch)}
            server = self._servers[modules] = subprocess.Popen(
                [sys.executable, "-c", _FORK_SERVER, str(self.scratch), *modules],
                cwd=self.checkout,
                env=clean_environment(**quiet),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            assert _read_line(server) == "ready"
        return self._servers[modules]

    def run(self, stage: str, seconds: float = 60) -> Result:
        """Run a stage to its end, or kill it after `seconds`."""
        process = self._server(stage)
        assert process.stdin is not None
        process.stdin.write(json.dumps(f"stages/{stage}.py").encode() + b"\n")
        child = int(_read_line(process))
        try:
            status = int(_read_line(process, seconds))
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            status = int(_read_line(process))
        return Result(status, *((self.scratch / name).read_text(errors="replace") for name in ("output", "errors")))


def _read_line(process: subprocess.Popen[bytes], seconds: float = 120) -> str:
    """Read the next line of a process's output; raises TimeoutError."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise TimeoutError
    return process.stdout.readline().decode().strip()


@contextmanager
def small_checkout(folder: Path, data: OfficialSet) -> Iterator[Stages]:
    """Make a checkout in `folder` with small data and a small network, and run each stage once, without MLflow."""
    root, scratch = folder / "checkout", folder / "scratch"
    scratch.mkdir()
    shutil.copytree(ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    write_binary_archive(root / "a.tar.gz", data)
    small = {"device": "cpu", "precision": "fp32", "epochs": 1, "batch_size": 50, "lr": 0.01}
    small |= {"progressive_resizing": [1.0]}
    change_params(
        root,
        download={"source": "a.tar.gz", "checksums": checksums(root / "a.tar.gz")},
        model={"convnet": {"widths": [8, 16], "depth": 1}},
        train=small,
        tracking={"enabled": False},
    )
    with Stages(root, scratch) as stages:
        for stage in ("download", "preprocess", "train", "evaluate", "report"):
            result = stages.run(stage)
            assert result.status == 0, result.errors
        yield stages


def change_params(root: Path, **sections: Any) -> None:
    """Change params.yaml."""
    document = deep_merge(yaml.safe_load((root / "params.yaml").read_text()), sections)
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


Tree = dict[str, tuple[int, ...]]


def tree(root: Path) -> Tree:
    """All files and folders below `root`, with the metadata that changes whenever a file is written."""
    found: Tree = {}
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != ".dvc"]  # the lock files of running stages
        for name in folders + names:
            status = Path(where, name).lstat()
            written = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns, status.st_ino)
            found[os.path.relpath(os.path.join(where, name), root)] = (status.st_mode, *written)
    return found


@dataclass
class Snapshot:
    """The content of a folder, which `restore` brings back."""

    root: Path

    def __post_init__(self) -> None:
        self.tree = tree(self.root)
        self.content = {name: (self.root / name).read_bytes() for name in self.tree if (self.root / name).is_file()}

    def restore(self) -> None:
        """Undo all changes since the snapshot was taken."""
        now = tree(self.root)
        changed = {name for name in now.keys() | self.tree.keys() if now.get(name) != self.tree.get(name)}
        for name in sorted(changed & now.keys(), reverse=True):  # files before the folder that they are in
            path = self.root / name
            path.rmdir() if stat.S_ISDIR(now[name][0]) else path.unlink()
        for name in sorted(changed & self.tree.keys()):
            (self.root / name).write_bytes(self.content[name]) if name in self.content else (self.root / name).mkdir()
        self.tree = tree(self.root)
