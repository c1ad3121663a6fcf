"""The Optuna study of a search and its database, `optuna.db`."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from vision.pipeline.errors import UserError
from vision.pipeline.formatting import format_value
from vision.pipeline.params import Params, Search
from vision.pipeline.paths import ROOT, main_root
from vision.search.space import fixed_parameters

DATABASE = main_root(ROOT) / "optuna.db"
"""The studies of this checkout. An experiment that runs in a copy of the checkout uses the same file."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of the trials that count: trained to the end, or stopped early by the pruner or by divergence."""


def open_storage() -> RDBStorage:
    """Open the database, which is created if it does not exist.

    Raises:
        UserError: the file is not a usable database.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _report_unusable_database():
        # Seconds to wait while other trials write.
        return RDBStorage(f"sqlite:///{DATABASE}", {"connect_args": {"timeout": 60}})


def open_study(storage: RDBStorage, search: Search, seed: int, epochs: int) -> optuna.Study:
    """Open the study named `search.study`, which is created if it does not exist.

    The database does not hold the sampler and the pruner: both are created from `search` each time.

    Args:
        storage: the open database.
        search: the section `search` of params.yaml.
        seed: seed of the sampler; the number of existing trials is added to it, so that a resumed study does not
            suggest the same points again.
        epochs: epochs of a training. No trial is pruned in the first third of them.

    Raises:
        UserError: the database cannot be read or written.
    """
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    with _report_unusable_database():
        study = optuna.create_study(
            storage=storage,
            study_name=search.study,
            direction="maximize",
            pruner=_create_pruner(search.pruner, epochs),
            load_if_exists=True,
        )
        study.sampler = samplers[search.sampler](seed=(seed + len(study.get_trials(deepcopy=False))) % 2**32)
    return study


def load_study(storage: RDBStorage, name: str, search: Search, epochs: int) -> optuna.Study:
    """Load an existing study, to report to it; the arguments are those of `open_study`.

    Raises:
        KeyError: there is no such study.
        UserError: the database cannot be read.
    """
    with _report_unusable_database():
        return optuna.load_study(study_name=name, storage=storage, pruner=_create_pruner(search.pruner, epochs))


def prepare_study(study: optuna.Study, params: Params) -> None:
    """Make a new or an existing study ready for more trials.

    Trials that a killed search left running are marked as failed, and their parameters are queued to be tried first.

    Raises:
        UserError: the study has trials with other fixed parameters, or it is new and DVC experiments have the names
            that its trials would get.
    """
    fixed = fixed_parameters(params)
    if study.get_trials(deepcopy=False):
        before = study.user_attrs.get("fixed", {})
        changed = [name for name in sorted({*fixed, *before}) if before.get(name) != fixed.get(name)]
        if changed:
            raise UserError(
                f"params.yaml: search.study: {study.study_name} has trials with other parameters "
                f"({', '.join(changed)}), which do not compare with new trials; choose another name"
            )
    elif taken := [name for name in list_experiments() if re.fullmatch(rf"{study.study_name}-\d+", name)]:
        raise UserError(
            f"params.yaml: search.study: experiments named like trials of {study.study_name} exist already; choose "
            f"another name, or run `dvc exp remove {' '.join(sorted(taken))}`"
        )
    study.set_user_attr("fixed", fixed)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def list_experiments() -> list[str]:
    """Names of all DVC experiments of this checkout, whichever commit they started from."""
    command = ["git", "-C", str(ROOT), "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    return [name.rpartition("/")[2] for name in output.split()]


def count_finished(study: optuna.Study) -> int:
    """Number of trials that are complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def rank_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials, best first.

    Complete trials come first, by accuracy. Pruned trials follow, by the last accuracy that they reported. Trials that
    diverged come last.
    """

    def rank(trial: FrozenTrial) -> tuple[bool, bool, float]:
        return trial.state == TrialState.COMPLETE, not _diverged(trial), trial.value or 0.0

    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=rank, reverse=True)


def format_table(study: optuna.Study, rows: int = 10) -> str:
    """The best trials as a Markdown table; the study has at least one finished trial."""
    ranked = rank_trials(study)
    parameters = list(ranked[0].params)
    lines = [["trial", "validation accuracy", "ended", *parameters], ["---"] * (3 + len(parameters))]
    for trial in ranked[:rows]:
        accuracy = trial.user_attrs.get("val_accuracy")
        cells = [f"{study.study_name}-{trial.number}", "" if accuracy is None else f"{accuracy:.2%}"]
        values = [format_value(trial.params.get(name, ""), digits=4) for name in parameters]
        lines.append([*cells, trial.user_attrs.get("ended", ""), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_best(study: optuna.Study) -> str:
    """One line that names the best trial and the command that applies it; the study has a finished trial."""
    ranked = rank_trials(study)
    best = ranked[0]
    if _diverged(best):
        trials = "the only trial" if len(ranked) == 1 else f"all {len(ranked)} trials"
        return f"search: {trials} diverged; search smaller learning rates"
    name = f"{study.study_name}-{best.number}"
    return (
        f"search: the best of {len(ranked)} trial{'s'[: len(ranked) != 1]} is {name}, validation accuracy "
        f"{best.user_attrs['val_accuracy']:.2%}; `dvc exp apply {name}` applies it to the workspace"
    )


def _diverged(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("ended") == "diverged"


def _create_pruner(name: str | None, epochs: int) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 3)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 3))
    return optuna.pruners.NopPruner()


@contextmanager
def _report_unusable_database() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{DATABASE}: Optuna cannot use this database ({reason}); move it away") from None
