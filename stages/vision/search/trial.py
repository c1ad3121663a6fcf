"""What a training reports when it is a trial of a search, and whether the pruner stops it.

The search starts each trial as a DVC experiment and names it in the environment variable SEARCH_TRIAL, which DVC passes
on to the stages. Only a trial imports Optuna, because that import takes long.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params

_VARIABLE = "SEARCH_TRIAL"


class Trial:
    """Stands in for a trial outside a search; does nothing."""

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
        """Report why training ended, and the validation accuracy of the saved weights.

        Args:
            reason: `finished`, `stopped early`, `pruned` or `diverged`.
            val_accuracy: None if there is none.
        """


class StudyTrial(Trial):
    """A trial of an Optuna study. It writes to the study's database, which the search reads when the trial ends."""

    def __init__(self, params: Params, study_name: str, number: int) -> None:
        """Open the trial of this number.

        Raises:
            UserError: the database cannot be used, or it does not have the trial.
        """
        import optuna

        from vision.search.study import DATABASE, load_study, open_storage

        super().__init__()
        storage = open_storage()
        try:
            study = load_study(storage, study_name, params.search, params.train.epochs)
            study_id = storage.get_study_id_from_name(study_name)
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        except KeyError:
            raise UserError(
                f"{DATABASE}: study {study_name} has no trial {number}; unset {_VARIABLE} to train outside the search"
            ) from None
        self._trial = optuna.trial.Trial(study, trial_id)
        self.tags = {"search.study": study_name, "search.trial": str(number)}
        if run_id := study.user_attrs.get("run_id"):
            self.tags["mlflow.parentRunId"] = run_id

    def report(self, epoch: int, val_accuracy: float | None) -> bool:
        """Report the validation accuracy after an epoch (from 1); False if the pruner stops the training.

        Raises:
            UserError: the search has ended this trial.
        """
        import optuna

        if val_accuracy is None:
            return True
        try:
            with _report_ended_trial():
                self._trial.report(val_accuracy, epoch)
                self.pruned = self._trial.should_prune()
        except optuna.exceptions.StorageInternalError as error:
            # Losing the training would cost more than training to the end without the pruner.
            reason = str(error).partition("\n")[0]
            logging.getLogger(__name__).warning("optuna.db: %s; the trial continues", reason)
        return not self.pruned

    def end(self, reason: str, val_accuracy: float | None = None) -> None:
        """Report why training ended, and the validation accuracy of the saved weights.

        Raises:
            UserError: the search has ended this trial.
        """
        with _report_ended_trial():
            self._trial.set_user_attr("ended", reason)
            if val_accuracy is not None:
                self._trial.set_user_attr("val_accuracy", val_accuracy)


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
    trial_info = json.loads(os.environ[_VARIABLE])
    return StudyTrial(params, trial_info["study"], trial_info["number"])


@contextmanager
def _report_ended_trial() -> Iterator[None]:
    import optuna

    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise UserError("optuna.db: the search has ended this trial already; its result is not recorded") from None
