"""What a training tells the study, and what the study tells it."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, load_params
from vision.search import trials


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Params:
    monkeypatch.setattr(trials, "DATABASE", tmp_path / "optuna.db")
    given = load_params()
    search = given.search.model_copy(update={"study": "s", "pruner": "halving"})
    return given.model_copy(update={"search": search, "train": given.train.model_copy(update={"epochs": 3})})


def study_of(params: Params) -> optuna.Study:
    return trials.open_study(params.search, params.seed, params.train.epochs)


def be(monkeypatch: pytest.MonkeyPatch, number: int, jobs: int = 1) -> None:
    for variable, value in trials.environment("s", number, jobs).items():
        monkeypatch.setenv(variable, value)


def test_what_no_search_asked_for_goes_on(params: Params) -> None:
    trial = trials.current(params)
    assert trial.goes_on(1, 0.1)
    trial.end("finished", 0.1)
    assert (trial.tags, trial.pruned, trials.jobs()) == ({}, False, 1)
    assert not trials.DATABASE.exists()


def test_the_worse_of_two_trials_is_ended_early(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(params)
    study.set_user_attr("run_id", "abc")
    asked = [study.ask(), study.ask()]
    be(monkeypatch, 0, jobs=2)
    good = trials.current(params)
    assert trials.jobs() == 2
    assert good.tags == {"mlflow.parentRunId": "abc", "search.study": "s", "search.trial": "0"}
    assert good.goes_on(1, 0.8)
    assert good.goes_on(2, 0.9)
    good.end("finished", 0.9)
    be(monkeypatch, 1, jobs=2)
    bad = trials.current(params)
    assert bad.goes_on(1, None)
    assert not bad.goes_on(1, 0.2)
    assert bad.pruned
    bad.end("pruned", 0.2)

    told = study_of(params).trials
    assert told[0].user_attrs == {"ended": "finished", "val_accuracy": 0.9}
    assert told[0].intermediate_values == {1: 0.8, 2: 0.9}
    assert told[1].user_attrs == {"ended": "pruned", "val_accuracy": 0.2}
    assert [trial.state for trial in told] == [TrialState.RUNNING] * 2, "it is for the search to say that it is over"
    assert [trial.number for trial in asked] == [0, 1]


def test_a_trial_that_the_search_has_given_up_ends_in_one_line(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(params)
    study.ask()
    be(monkeypatch, 0)
    trial = trials.current(params)
    study.tell(0, state=TrialState.FAIL)
    with pytest.raises(UserError, match="has given it up"):
        trial.goes_on(1, 0.5)
    with pytest.raises(UserError, match="has given it up"):
        trial.end("finished", 0.5)


def test_a_study_that_goes_on_does_not_suggest_the_same_again(params: Params) -> None:
    def suggested() -> float:
        trial = study_of(params).ask()
        return trial.suggest_float("train.lr", 0.1, 1.0)

    assert len({suggested() for _ in range(4)}) == 4


@pytest.mark.parametrize("content", [b"no database at all, but longer than a header of SQLite " * 40, b"\0" * 5000])
def test_a_damaged_database_is_named(params: Params, content: bytes) -> None:
    trials.DATABASE.write_bytes(content)
    with pytest.raises(UserError, match=r"optuna\.db: Optuna cannot use this database"):
        study_of(params)
    assert trials.DATABASE.read_bytes() == content
