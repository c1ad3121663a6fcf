"""Where a run comes from, so that one finds the way back: the Git commit, the DVC experiment and the data."""

import contextlib
import getpass
import os
import subprocess
import sys

import yaml

from vision.pipeline.paths import ROOT


def commit() -> str:
    """The commit that is checked out; nothing where there is none."""
    return _git("rev-parse", "HEAD")


def tags() -> dict[str, str]:
    """The tags of a run: Git commit, DVC experiment, the DVC hash of the data, and the line that brings it back."""
    head = commit()
    # What a run of the pipeline itself rewrites says nothing about the code.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    found = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": os.path.relpath(sys.argv[0], ROOT),
        "mlflow.source.git.commit": head,
        "mlflow.source.git.dirty": str(bool(changes)).lower() if head else "",
        "dvc.experiment": experiment,
        "dvc.apply": f"dvc exp apply {experiment}" if experiment else "",
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.data": data_hash(),
    }
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        found["mlflow.user"] = getpass.getuser()
    return {key: value for key, value in found.items() if value}


def data_hash() -> str:
    """The hash of data/processed in dvc.lock, which DVC has just written if it is DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return ""
    try:
        lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
        outs = lock["stages"]["preprocess"]["outs"]
        return next(out["md5"] for out in outs if out["path"] == "data/processed")
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration):
        return ""


def _git(*arguments: str) -> str:
    """What Git prints; nothing where there is no Git or no repository.

    Git writes nothing here: killed meanwhile, it would leave a lock behind that keeps DVC from staging files.
    """
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
