"""A study of its own for each test."""

from pathlib import Path

import optuna
import pytest

from vision.pipeline.params import Params, load_params
from vision.search import study as studies


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Params:
    """Three epochs per training, in a study named `s` whose database is in a temporary directory."""
    monkeypatch.setattr(studies, "DATABASE", tmp_path / "optuna.db")
    document = load_params().model_dump()
    document["search"] |= {"study": "s", "pruner": "halving", "sampler": "random", "trials": 9}
    document["search"]["space"] = [{"parameter": "train.lr", "low": 0.1, "high": 0.2}]
    document["train"]["epochs"] = 3
    return Params.model_validate(document)


@pytest.fixture
def study(params: Params) -> optuna.Study:
    """The study, open as in the search process."""
    return studies.open_study(studies.open_storage(), params.search, params.seed, params.train.epochs)
