"""A trial of a search: what a training tells the Optuna study that wants it, and whether it is worth going on.

The search starts each trial as a DVC experiment of its own and names it in an environment variable, which DVC passes
on to the stages. Optuna takes its time to import, so that is done in a search alone.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Search
from vision.pipeline.paths import ROOT, main_root

if TYPE_CHECKING:
    import optuna

DATABASE = main_root(ROOT) / "optuna.db"
"""The studies of this checkout, also for an experiment that runs in a copy of it."""

_VARIABLE = "SEARCH_TRIAL"


class Trial:
    """The trial that this process is. This one, for what no search has asked for, goes on to the end."""

    tags: dict[str, str]
    pruned = False

    def __init__(self) -> None:
        """Outside a search there is nothing to say of a run."""
        self.tags = {}

    def goes_on(self, epoch: int, val_accuracy: float | None) -> bool:
        """Tell the study how well the weights validate after an epoch (from 1); False where it is to be `pruned`."""
        return True

    def end(self, reason: str, val_accuracy: float | None = None) -> None:
        """Tell the study why training ended, and how well the kept weights validate."""


class _StudyTrial(Trial):
    def __init__(self, study: "optuna.Study", number: int) -> None:
        import optuna

        self._trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
        self.tags = {"mlflow.parentRunId": study.user_attrs["run_id"]} if study.user_attrs.get("run_id") else {}
        self.tags |= {"search.study": study.study_name, "search.trial": str(number)}

    def goes_on(self, epoch: int, val_accuracy: float | None) -> bool:
        import optuna

        if val_accuracy is None:
            return True
        try:
            with _wanted():
                self._trial.report(val_accuracy, epoch)
                self.pruned = self._trial.should_prune()
        except optuna.exceptions.StorageInternalError as error:
            # What has been trained is worth more than the time that pruning would save.
            logging.getLogger(__name__).warning("%s: %s; the trial goes on", DATABASE, str(error).partition("\n")[0])
        return not self.pruned

    def end(self, reason: str, val_accuracy: float | None = None) -> None:
        with _wanted():
            self._trial.set_user_attr("ended", reason)
            if val_accuracy is not None:
                self._trial.set_user_attr("val_accuracy", val_accuracy)


@contextmanager
def _wanted() -> Iterator[None]:
    """A trial that is over for the search cannot be told anything."""
    import optuna

    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise UserError(f"{DATABASE}: the search that wanted this trial has given it up") from None


def environment(study: str, number: int, jobs: int) -> dict[str, str]:
    """What tells a process, and those that it starts, that it is a trial, and that `jobs` of them run at once."""
    return {_VARIABLE: json.dumps({"study": study, "number": number, "jobs": jobs})}


def jobs() -> int:
    """How many trials the search runs at once that this process is one of; 1 outside a search."""
    return json.loads(os.environ[_VARIABLE])["jobs"] if _VARIABLE in os.environ else 1


def current(params: Params) -> Trial:
    """The trial that this process is."""
    if _VARIABLE not in os.environ:
        return Trial()
    place = json.loads(os.environ[_VARIABLE])
    settings = params.search.model_copy(update={"study": place["study"]})
    return _StudyTrial(open_study(settings, params.seed, params.train.epochs), place["number"])


def open_study(settings: Search, seed: int, epochs: int) -> "optuna.Study":
    """The study of that name, made if there is none.

    Sampler and pruner are not kept in the database: they are as `settings` say now.

    Args:
        settings: the section of params.yaml.
        seed: of the sampler.
        epochs: of a training; no trial is pruned in the first third of them, when little can be told.

    Raises:
        UserError: the file cannot be used.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if settings.pruner == "median":
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 3)
    elif settings.pruner == "halving":
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 3))
    try:
        # Several trials write at once, each for a moment.
        storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", {"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage, study_name=settings.study, direction="maximize", pruner=pruner, load_if_exists=True
        )
        # One that goes on would suggest again, from the same seed, what it suggested first.
        study.sampler = samplers[settings.sampler](seed=(seed + len(study.trials)) % 2**32)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{DATABASE}: Optuna cannot use this database ({reason}); move it away") from None
    return study
