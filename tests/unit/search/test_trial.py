"""What a training reports to the study, and what it learns from the study."""

import optuna
import pytest
from optuna.trial import TrialState

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params
from vision.search import study as studies
from vision.search.trial import current_trial, parallel_jobs, trial_environment


def set_environment(monkeypatch: pytest.MonkeyPatch, number: int, jobs: int = 1) -> None:
    """Make this process the trial of this number."""
    for variable, value in trial_environment("s", number, jobs).items():
        monkeypatch.setenv(variable, value)


def test_outside_a_search_nothing_is_reported_or_pruned(params: Params) -> None:
    trial = current_trial(params)
    assert trial.report(1, 0.1)
    trial.end("finished", 0.1)
    assert (trial.tags, trial.pruned, parallel_jobs()) == ({}, False, 1)
    assert not studies.DATABASE.exists()


def test_the_worse_of_two_trials_is_pruned(
    params: Params, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.set_user_attr("run_id", "abc")
    asked = [study.ask(), study.ask()]
    set_environment(monkeypatch, 0, jobs=2)
    good = current_trial(params)
    assert parallel_jobs() == 2
    assert good.tags == {"mlflow.parentRunId": "abc", "search.study": "s", "search.trial": "0"}
    assert good.report(1, 0.8)
    assert good.report(2, 0.9)
    good.end("finished", 0.9)
    set_environment(monkeypatch, 1, jobs=2)
    bad = current_trial(params)
    assert bad.report(1, None)
    assert not bad.report(1, 0.2)
    assert bad.pruned
    bad.end("pruned", 0.2)

    trials = study.trials
    assert trials[0].user_attrs == {"ended": "finished", "val_accuracy": 0.9}
    assert trials[0].intermediate_values == {1: 0.8, 2: 0.9}
    assert trials[1].user_attrs == {"ended": "pruned", "val_accuracy": 0.2}
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 2, "the search process sets the final state"
    assert [trial.number for trial in asked] == [0, 1]


def test_the_trial_of_a_second_study_is_found_by_its_number(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers count in a study, Optuna's trial ids in the database."""
    storage = studies.open_storage()
    for name in ("other", "s"):
        search = params.search.model_copy(update={"study": name})
        study = studies.open_study(storage, search, params.seed, params.train.epochs)
        for _ in range(3):
            study.ask()
    set_environment(monkeypatch, 1)
    assert current_trial(params).report(1, 0.5)
    assert [trial.intermediate_values for trial in study.trials] == [{}, {1: 0.5}, {}]
    other = optuna.load_study(study_name="other", storage=storage)
    assert not any(trial.intermediate_values for trial in other.trials)


def test_a_trial_that_the_search_has_ended_stops_with_one_line(
    params: Params, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.ask()
    set_environment(monkeypatch, 0)
    trial = current_trial(params)
    study.tell(0, state=TrialState.FAIL)
    with pytest.raises(UserError, match="has ended this trial already"):
        trial.report(1, 0.5)
    with pytest.raises(UserError, match="has ended this trial already"):
        trial.end("finished", 0.5)


def test_a_trial_that_does_not_exist_stops_with_one_line(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, 7)
    storage = studies.open_storage()
    for existing in ([], ["s"]):
        with pytest.raises(UserError, match=r"optuna\.db: study s has no trial 7"):
            current_trial(params)
        assert optuna.get_all_study_names(storage) == existing, "no study is created"
        studies.open_study(storage, params.search, params.seed, params.train.epochs)


def test_a_damaged_database_does_not_stop_the_training(
    params: Params, study: optuna.Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study.ask()
    set_environment(monkeypatch, 0)
    trial = current_trial(params)
    studies.DATABASE.write_bytes(b"damaged " * 1000)
    assert trial.report(1, 0.5)
    assert "the trial continues" in caplog.text
