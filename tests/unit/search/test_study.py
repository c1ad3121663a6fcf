"""The study and its database: resuming, ranking, damage."""

import optuna
import pytest
from optuna.trial import TrialState

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params
from vision.search import study as studies


def reopen(params: Params) -> optuna.Study:
    return studies.open_study(studies.open_storage(), params.search, params.seed, params.train.epochs)


def add_trial(study: optuna.Study, accuracy: float | None, reason: str, reported: float | None = None) -> None:
    """A trial that has ended as the search process records it; `reported` is the accuracy of its last epoch."""
    trial = study.ask()
    trial.suggest_float("train.lr", 0.1, 0.2)
    trial.set_user_attr("ended", reason)
    if accuracy is not None:
        trial.set_user_attr("val_accuracy", accuracy)
    if (reported := accuracy if reported is None else reported) is not None:
        trial.report(reported, 1)
    if reason == "finished":
        study.tell(trial, accuracy)
    else:
        study.tell(trial, state=TrialState.PRUNED)


def test_a_resumed_study_does_not_suggest_the_same_again(params: Params) -> None:
    assert len({reopen(params).ask().suggest_float("train.lr", 0.1, 1.0) for _ in range(4)}) == 4


@pytest.mark.parametrize("content", [b"no database at all, but longer than a header of SQLite " * 40, b"\0" * 5000])
def test_a_damaged_database_is_named(params: Params, content: bytes) -> None:
    studies.DATABASE.write_bytes(content)
    with pytest.raises(UserError, match=r"optuna\.db: Optuna cannot use this database"):
        reopen(params)
    assert studies.DATABASE.read_bytes() == content


def test_interrupted_trials_are_tried_again_first(params: Params, study: optuna.Study) -> None:
    studies.prepare_study(study, params)
    interrupted = [study.ask().suggest_float("train.lr", 0.1, 0.2) for _ in range(2)]
    resumed = reopen(params)
    studies.prepare_study(resumed, params)
    assert [trial.state for trial in resumed.trials[:2]] == [TrialState.FAIL] * 2
    assert [resumed.ask().suggest_float("train.lr", 0.1, 0.2) for _ in range(2)] == interrupted


def test_other_parameters_need_another_study(params: Params, study: optuna.Study) -> None:
    studies.prepare_study(study, params)
    study.ask()
    changed = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 4})})
    with pytest.raises(UserError, match=r"search\.study: s has trials with other parameters \(train\.epochs\)"):
        studies.prepare_study(study, changed)
    other_rate = params.model_copy(update={"train": params.train.model_copy(update={"lr": 0.123})})
    studies.prepare_study(study, other_rate)  # train.lr is searched


def test_complete_trials_come_before_pruned_ones(study: optuna.Study) -> None:
    assert studies.count_finished(study) == 0
    for accuracy, reason in ((0.5, "finished"), (0.9, "pruned"), (0.7, "finished"), (None, "diverged")):
        add_trial(study, accuracy, reason)
    study.ask()
    assert [trial.number for trial in studies.rank_trials(study)] == [2, 0, 1, 3]
    assert studies.count_finished(study) == 4
    assert "the best of 4 trials is s-2, validation accuracy 70.00%; `dvc exp apply s-2`" in studies.format_best(study)
    head, _, best, *others = studies.format_table(study, rows=3).splitlines()
    assert head == "| trial | validation accuracy | ended | train.lr |"
    assert best.startswith("| s-2 | 70.00% | finished | 0.1")
    assert len(others) == 2


def test_a_study_that_diverged_says_what_to_change(study: optuna.Study) -> None:
    add_trial(study, None, "diverged")
    assert studies.format_best(study) == "search: the only trial diverged; search smaller learning rates"
    add_trial(study, None, "diverged")
    assert studies.format_best(study) == "search: all 2 trials diverged; search smaller learning rates"


def test_trials_that_diverged_come_last(study: optuna.Study) -> None:
    """A trial may report accuracies, higher ones than a pruned trial, before it diverges."""
    add_trial(study, None, "diverged", reported=0.4)
    add_trial(study, 0.3, "pruned")
    assert [trial.number for trial in studies.rank_trials(study)] == [1, 0]
    assert "the best of 2 trials is s-1, validation accuracy 30.00%" in studies.format_best(study)
