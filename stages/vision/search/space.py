"""The search space: `search.space` of params.yaml, checked before the first trial and sampled for each."""

import difflib
import json
from typing import TYPE_CHECKING, Any

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, SearchParameter, parameter_names, validate_params

if TYPE_CHECKING:
    import optuna

SECTIONS = ("seed", "preprocess", "model", "train")
"""The sections whose parameters can be searched. A trial's result depends on these and on `download` alone."""


def validate_space(params: Params) -> None:
    """Check the search space and both ends of each range against the schema of params.yaml.

    Raises:
        UserError: a parameter is unknown, given twice or not searchable, a value is invalid, or there are no validation
            images to compare trials by.
    """
    searchable = [name for name in parameter_names() if name.split(".")[0] in SECTIONS]
    for index, entry in enumerate(params.search.space):
        name, where = entry.parameter, f"params.yaml: search.space.{index}"
        if name not in searchable:
            near = difflib.get_close_matches(name, searchable, n=1)
            raise UserError(f"{where}: {name} cannot be searched" + (f"; did you mean {near[0]}?" if near else ""))
        if name in [other.parameter for other in params.search.space[:index]]:
            raise UserError(f"{where}: {name} is given twice")
        for value in entry.choices or (entry.low, entry.high):
            document = params.model_dump()
            *sections, key = name.split(".")
            section = document
            for part in sections:
                section = section[part]
            section[key] = value
            validate_params(document, f"{where}: with {name} {json.dumps(value)}")
    if params.preprocess.folds is None and not params.preprocess.val_fraction:
        raise UserError(
            "params.yaml: preprocess.val_fraction: a search compares trials by validation accuracy; set it above 0"
        )


def fixed_parameters(params: Params) -> dict[str, Any]:
    """The parameters that all trials share and that their results depend on, by name."""
    searched = {entry.parameter for entry in params.search.space}
    fixed = {}
    for name in parameter_names():
        if name.split(".")[0] in (*SECTIONS, "download") and name not in searched:
            value: Any = params
            for part in name.split("."):
                value = getattr(value, part)
            fixed[name] = value
    return fixed


def suggest(trial: "optuna.Trial", entry: SearchParameter) -> Any:
    """Sample a value of one parameter; a range between two integers gives integers."""
    name, low, high = entry.parameter, entry.low, entry.high
    if entry.choices is not None:
        # Optuna stores numbers and text, but no lists.
        labels = [json.dumps(value) if isinstance(value, list) else value for value in entry.choices]
        return entry.choices[labels.index(trial.suggest_categorical(name, labels))]
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=entry.log)
    return trial.suggest_float(name, low, high, log=entry.log)
