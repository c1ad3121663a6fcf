"""What a search refuses before it trains anything, and how it says what failed."""

from pathlib import Path
from typing import Any

import optuna
import pytest

import search
from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, SearchParameter, load_params


def searching(*space: dict[str, Any], **preprocess: Any) -> Params:
    document = load_params().model_dump()
    document["search"]["space"] = list(space)
    document["preprocess"] |= preprocess
    return Params.model_validate(document)


RATE = {"parameter": "train.lr", "low": 0.1, "high": 0.2}


@pytest.mark.parametrize(
    ("params", "line"),
    [
        (searching(RATE | {"parameter": "train.lrr"}), "space.0: train.lrr cannot be searched; did you mean train.lr?"),
        (searching(RATE | {"parameter": "tracking.enabled"}), "search.space.0: tracking.enabled cannot be searched"),
        (searching(RATE | {"parameter": "search.trials"}), "search.space.0: search.trials cannot be searched"),
        (searching(RATE, RATE), "search.space.1: train.lr is given twice"),
        (
            searching({"parameter": "train.optimizer.momentum", "low": 0.5, "high": 1.5}),
            "search.space.0: with train.optimizer.momentum 1.5: train.optimizer.momentum: must be less than 1",
        ),
        (
            searching({"parameter": "train.epochs", "low": 1.5, "high": 3}),
            "search.space.0: with train.epochs 1.5: train.epochs: must be a valid integer (got 1.5)",
        ),
        (
            searching({"parameter": "train.optimizer.name", "choices": ["muon", "adamx"]}),
            "search.space.0: with train.optimizer.name \"adamx\": train.optimizer.name: must be 'muon', 'sgd',",
        ),
        (searching(RATE, val_fraction=0.0), "preprocess.val_fraction: a search goes by validation images"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(params: Params, line: str) -> None:
    with pytest.raises(UserError) as refusal:
        search.check(params)
    assert line in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_the_projects_own_space_and_folds_can_be_searched() -> None:
    search.check(load_params())
    search.check(searching(RATE, val_fraction=0.0, folds=5))


def test_whole_numbers_stay_whole_and_lists_stay_lists() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    epochs = SearchParameter(parameter="train.epochs", low=3, high=9)
    rate = SearchParameter(parameter="train.lr", low=0.001, high=1, log=True)
    widths = SearchParameter(parameter="model.convnet.widths", choices=[[8, 16], [16, 32], None])
    for _ in range(30):
        trial = study.ask()
        assert search.suggested(trial, epochs) in range(3, 10)
        assert isinstance(trial.params["train.epochs"], int)
        assert 0.001 <= search.suggested(trial, rate) <= 1
        assert search.suggested(trial, widths) in ([8, 16], [16, 32], None)


def test_what_is_fixed_is_all_that_results_depend_on_but_what_is_searched() -> None:
    fixed = search.fixed_parameters(searching(RATE))
    assert {
        "seed",
        "download.dataset",
        "preprocess.fold",
        "model.convnet.widths",
        "train.optimizer.momentum",
    } <= fixed.keys()
    assert not any(name == "train.lr" or name.startswith(("search", "report", "tracking")) for name in fixed)
    assert fixed["model.convnet.widths"] == load_params().model.convnet.widths


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("> python x\ntrain: params.yaml: no\nERROR: failed to run\n", "train: params.yaml: no"),
        ("preprocess: done in 1.0 s\nERROR: failed to run\n", "ERROR: failed to run"),
        ("what nobody expected\n\n", "what nobody expected"),
        ("", "it printed nothing"),
    ],
)
def test_the_line_that_says_what_failed_is_found(tmp_path: Path, printed: str, told: str) -> None:
    log = tmp_path / "log"
    log.write_text(printed)
    assert search.reason(log) == told
