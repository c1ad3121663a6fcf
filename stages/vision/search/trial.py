"""What a training reports when it is a trial of a search, and whether the pruner stops it.

The search starts each trial as a DVC experiment and names it in the environment variable SEARCH_TRIAL, which DVC passes
on to the stages. Optuna is imported only in a trial, because its import takes long.
"""

import json
import os

from vision.pipeline.params import Params

_VARIABLE = "SEARCH_TRIAL"


class Trial:
    """The trial that this process runs. This class is for a process outside a search: it does nothing."""

    def __init__(self) -> None:
        """Outside a search there are no tags, and nothing is pruned."""
        self.tags: dict[str, str] = {}
        """Tags of the training's MLflow run."""
        self.pruned = False
        """Whether the pruner stopped the training."""

    def report(self, epoch: int, val_accuracy: float | None) -> bool:
        """Report the validation accuracy after an epoch (from 1).

        Returns:
            Whether training continues; False if the pruner stops it.
        """
        return True

    def end(self, reason: str, val_accuracy: float | None = None) -> None:
        """Report why training ended (`finished`, `stopped early`, `pruned`, `diverged`), and the best accuracy."""


def trial_environment(study: str, number: int, jobs: int) -> dict[str, str]:
    """Environment variables that make a process, and its children, a trial of a search that runs `jobs` at a time."""
    return {_VARIABLE: json.dumps({"study": study, "number": number, "jobs": jobs})}


def parallel_jobs() -> int:
    """How many trials the search of this process runs at a time; 1 outside a search."""
    return json.loads(os.environ[_VARIABLE])["jobs"] if _VARIABLE in os.environ else 1


def current_trial(params: Params) -> Trial:
    """The trial that this process runs.

    Raises:
        UserError: the study's database cannot be used, or it does not have the trial.
    """
    if _VARIABLE not in os.environ:
        return Trial()
    from vision.search.study_trial import StudyTrial

    place = json.loads(os.environ[_VARIABLE])
    return StudyTrial(params, place["study"], place["number"])
