"""What a search refuses before its first trial, and what it samples."""

from typing import Any

import optuna
import pytest

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, SearchParameter, load_params
from vision.search.space import fixed_parameters, suggest, validate_space


def with_space(*space: dict[str, Any], **preprocess: Any) -> Params:
    document = load_params().model_dump()
    document["search"]["space"] = list(space)
    document["preprocess"] |= preprocess
    return Params.model_validate(document)


RATE = {"parameter": "train.lr", "low": 0.1, "high": 0.2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (with_space(RATE | {"parameter": "train.lrr"}), "space.0: train.lrr cannot be searched; did you mean train.lr"),
        (with_space(RATE | {"parameter": "tracking.enabled"}), "search.space.0: tracking.enabled cannot be searched"),
        (with_space(RATE | {"parameter": "search.trials"}), "search.space.0: search.trials cannot be searched"),
        (with_space(RATE, RATE), "search.space.1: train.lr is given twice"),
        (
            with_space({"parameter": "train.optimizer.momentum", "low": 0.5, "high": 1.5}),
            "space.0: with train.optimizer.momentum 1.5: train.optimizer.momentum: must be less than 1 (got 1.5)",
        ),
        (
            with_space({"parameter": "train.epochs", "low": 1.5, "high": 3}),
            "search.space.0: with train.epochs 1.5: train.epochs: must be a valid integer (got 1.5)",
        ),
        (
            with_space({"parameter": "train.optimizer.name", "choices": ["muon", "adamx"]}),
            "search.space.0: with train.optimizer.name \"adamx\": train.optimizer.name: must be 'muon', 'sgd',",
        ),
        (with_space(RATE, val_fraction=0.0), "preprocess.val_fraction: a search compares trials by validation"),
    ],
)
def test_an_invalid_space_is_one_line(params: Params, message: str) -> None:
    with pytest.raises(UserError) as error:
        validate_space(params)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_default_space_and_folds_are_valid() -> None:
    validate_space(load_params())
    validate_space(with_space(RATE, val_fraction=0.0, folds=5))


def test_integers_stay_integers_and_lists_stay_lists() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    epochs = SearchParameter(parameter="train.epochs", low=3, high=9)
    rate = SearchParameter(parameter="train.lr", low=0.001, high=1, log=True)
    widths = SearchParameter(parameter="model.convnet.widths", choices=[[8, 16], [16, 32], None])
    for _ in range(30):
        trial = study.ask()
        assert suggest(trial, epochs) in range(3, 10)
        assert isinstance(trial.params["train.epochs"], int)
        assert 0.001 <= suggest(trial, rate) <= 1
        assert suggest(trial, widths) in ([8, 16], [16, 32], None)


def test_fixed_parameters_are_all_that_affect_results_and_are_not_searched() -> None:
    fixed = fixed_parameters(with_space(RATE))
    expected = {"seed", "download.dataset", "preprocess.fold", "model.convnet.widths", "train.optimizer.momentum"}
    assert expected <= fixed.keys()
    assert not any(name == "train.lr" or name.startswith(("search", "report", "tracking")) for name in fixed)
    assert fixed["model.convnet.widths"] == load_params().model.convnet.widths
