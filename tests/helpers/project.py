"""A temporary clone of this project, with a small data set in the official format."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import official_formats
from environment import clean_environment
from merging import deep_merge

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_REPRODUCIBLE = {"metrics/run.json", "metrics/speed.json", "report/index.html", "report/model_card.md"}
"""Outputs that name a run or hold times."""


@dataclass(frozen=True)
class Project:
    """A checkout to run commands in, with its own user directories: nothing outside it is read or written."""

    root: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return clean_environment() | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.home),
            "DVC_GLOBAL_CONFIG_DIR": str(self.home),
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@localhost",
            **self.variables,
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, status: int = 0, timeout: float = 300) -> str:
        """Run a command and return its output; fails on another exit status or after `timeout` seconds."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == status, output
        return output

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", f"--message={message}")

    def set(self, **sections: dict[str, object]) -> None:
        """Change params.yaml."""
        path = self.root / "params.yaml"
        document = deep_merge(yaml.safe_load(path.read_text()), sections)
        # Git could take a rewritten file of the same size and time for unchanged, so write a new one.
        changed = path.with_suffix(".changed")
        changed.write_text(yaml.safe_dump(document, sort_keys=False))
        changed.replace(path)

    def json(self, path: str) -> Any:
        return json.loads((self.root / path).read_text())

    def table(self, path: str) -> list[dict[str, str]]:
        with (self.root / path).open(newline="") as file:
            return list(csv.DictReader(file))

    def lock(self) -> dict[str, Any]:
        """The stages of dvc.lock."""
        return yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]

    def output_hashes(self, *stages: str) -> dict[str, str]:
        """The hashes in dvc.lock of all outputs of these stages that are reproducible."""
        outs = [out for stage in stages for out in self.lock()[stage]["outs"]]
        return {out["path"]: out["md5"] for out in outs if out["path"] not in NOT_REPRODUCIBLE}


def clone(folder: Path) -> Project:
    """Copy all files that Git does not ignore into a new repository with small data, a small network, few epochs."""
    project = Project(folder / "project", folder / "home")
    project.root.mkdir(parents=True)
    project.home.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (project.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, project.root / name)
    (project.root / "dvc.lock").unlink(missing_ok=True)

    archive = folder / "cifar-10-binary.tar.gz"
    official_formats.write_binary_archive(archive, official_formats.make_set(n_train=1000, n_test=200))
    project.set(
        download={"source": str(archive), "checksums": official_formats.checksums(archive)},
        model={"convnet": {"widths": [8, 16], "depth": 2}},
        train={"epochs": 3, "batch_size": 50, "device": "cpu"},
        report={"predictions": 12, "mistakes": 4},
    )
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("a small project")
    return project
