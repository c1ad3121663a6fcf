"""A trial of an Optuna study, as the training process sees it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params
from vision.search import study as studies
from vision.search.trial import Trial


class StudyTrial(Trial):
    """Reports to the study's database; the search process reads it when the trial ends."""

    def __init__(self, params: Params, study_name: str, number: int) -> None:
        """Open the trial of this number.

        Raises:
            UserError: the database cannot be used, or it does not have the trial.
        """
        super().__init__()
        storage = studies.open_storage()
        settings = params.search.model_copy(update={"study": study_name})
        study = studies.open_study(storage, settings, params.seed, params.train.epochs)
        try:
            study_id = storage.get_study_id_from_name(study_name)
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        except KeyError:
            raise UserError(
                f"{studies.DATABASE}: study {study_name} has no trial {number}; unset SEARCH_TRIAL to train without it"
            ) from None
        self._trial = optuna.trial.Trial(study, trial_id)
        self.tags = {"search.study": study_name, "search.trial": str(number)}
        if run_id := study.user_attrs.get("run_id"):
            self.tags["mlflow.parentRunId"] = run_id

    def report(self, epoch: int, val_accuracy: float | None) -> bool:
        """Report the validation accuracy after an epoch (from 1); False if the pruner stops the training."""
        if val_accuracy is None:
            return True
        try:
            with _report_abandoned_trial():
                self._trial.report(val_accuracy, epoch)
                self.pruned = self._trial.should_prune()
        except optuna.exceptions.StorageInternalError as error:
            # Losing the pruner costs less than losing the training.
            logging.getLogger(__name__).warning(
                "%s: %s; the trial continues", studies.DATABASE, str(error).partition("\n")[0]
            )
        return not self.pruned

    def end(self, reason: str, val_accuracy: float | None = None) -> None:
        """Report why training ended, and the best accuracy."""
        with _report_abandoned_trial():
            self._trial.set_user_attr("ended", reason)
            if val_accuracy is not None:
                self._trial.set_user_attr("val_accuracy", val_accuracy)


@contextmanager
def _report_abandoned_trial() -> Iterator[None]:
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise UserError(
            f"{studies.DATABASE}: the search has ended this trial already; its result is not recorded"
        ) from None
