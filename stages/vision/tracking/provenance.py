"""The provenance of a run: Git commit, DVC experiment and data. Add a tag that every MLflow run gets to `tags`."""

import contextlib
import getpass
import os
import subprocess
import sys

import yaml

from vision.pipeline.paths import ROOT


def tags() -> dict[str, str]:
    """MLflow tags: Git commit, DVC experiment, DVC hash of the data, and the command that restores the experiment."""
    commit = _git("rev-parse", "HEAD")
    # The pipeline rewrites metrics/ and dvc.lock itself, so they do not count as changes of the code.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    found = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": os.path.relpath(sys.argv[0], ROOT),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": str(bool(changes)).lower() if commit else "",
        "dvc.experiment": experiment,
        "dvc.apply": f"dvc exp apply {experiment}" if experiment else "",
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.data": _data_hash(),
    }
    with contextlib.suppress(KeyError, OSError):  # in a container the user may have no name
        found["mlflow.user"] = getpass.getuser()
    return {key: value for key, value in found.items() if value}


def _data_hash() -> str:
    """The MD5 of data/processed in dvc.lock; empty if DVC does not run this stage."""
    if "DVC_STAGE" in os.environ:
        with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError, StopIteration):
            lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
            outs = lock["stages"]["preprocess"]["outs"]
            return next(out["md5"] for out in outs if out["path"] == "data/processed")
    return ""


def _git(*arguments: str) -> str:
    """The output of a Git command; empty if it fails."""
    # Without --no-optional-locks, a killed process would leave a lock file that keeps DVC from staging files.
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
