"""A recipe gives the same parameters whatever ran before it, although `dvc exp run -S` edits params.yaml in place."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from vision.pipeline.params import Params, load_params, parameter_names
from vision.pipeline.paths import ROOT

RECIPES = sorted((ROOT / "recipes").iterdir())
LEFT_TO_THE_USER = {
    "seed",
    "preprocess.image_size",
    "preprocess.test_fraction",
    "preprocess.groups",
    "preprocess.samples_per_class",
    "train.device",
    "train.deterministic",
    "train.fast_weight_gradients",
    "train.fused_blocks",
    "train.compile",
    "train.checkpoint_seconds",
    "evaluate.batch_size",
    "evaluate.corruptions",
}
"""Parameters of the user's data and machine, and of what is measured besides."""
SET_BY_RECIPES = [
    name
    for name in parameter_names()
    if name.split(".")[0] in ("preprocess", "model", "train", "evaluate") and name not in LEFT_TO_THE_USER
]


def overrides(recipe: Path) -> list[str]:
    words = recipe.read_text().split()
    assert set(words[::2]) == {"-S"}
    return words[1::2]


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_sets_every_parameter_that_the_trained_model_depends_on(recipe: Path) -> None:
    named = [word.partition("=")[0] for word in overrides(recipe)]
    missing = [
        f"for recipe in recipes/*; do echo '-S {name}=...' >> $recipe; done"
        for name in SET_BY_RECIPES
        if name not in named
    ]
    assert not missing, "run, with the value of params.yaml:\n" + "\n".join(missing)
    unknown = sorted(set(named) - set(SET_BY_RECIPES))
    assert not unknown, f"{recipe} sets parameters that are left to the user: {unknown}"
    assert len(set(named)) == len(named)


def apply(path: Path, *words: str) -> Params:
    """The parameters that `dvc exp run -S ...` leaves in params.yaml, by the function that DVC calls for it."""
    apply_overrides(path, list(words))
    return load_params(path)


@pytest.mark.sample(2)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_gives_the_same_parameters_after_any_other(recipe: Path, params_file: Path) -> None:
    fresh = apply(params_file, *overrides(recipe))
    for other in RECIPES:
        apply(params_file, *overrides(other))
        assert apply(params_file, *overrides(recipe)) == fresh, f"after {other.name}"
    apply(params_file, "train.augment.mixup=0.4", "preprocess.folds=5", "train.keep=last", "model.freeze_epochs=1")
    assert apply(params_file, *overrides(recipe)) == fresh


def test_what_is_written_behind_a_recipe_wins(params_file: Path) -> None:
    behind = ["seed=range(2)", "train.lr=0.05,0.1", "model.weights=/five.pt"]
    sweeps = get_hydra_sweeps({str(params_file): overrides(ROOT / "recipes/few") + behind})
    assert len(sweeps) == 4
    found = [apply(params_file, *sweep[str(params_file)]) for sweep in sweeps]
    assert {(one.seed, one.train.lr) for one in found} == {(0, 0.05), (0, 0.1), (1, 0.05), (1, 0.1)}
    assert {(one.model.weights, one.preprocess.train_limit) for one in found} == {("/five.pt", 250)}
