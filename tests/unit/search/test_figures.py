"""The figures of a search, drawn by Optuna from a real study."""

import warnings
from typing import TYPE_CHECKING

import optuna
import pytest

from vision.search.figures import log_figures
from vision.tracking.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Recorder(Run):
    """A run that remembers its figures."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Figure] = {}

    def log_figure(self, name: str, figure: "Figure") -> None:
        self.figures[name] = figure


def complete_trial(study: optuna.Study) -> None:
    trial = study.ask()
    rate = trial.suggest_float("train.lr", 0.01, 1.0, log=True)
    padding = trial.suggest_int("train.augment.crop_padding", 0, 4)
    study.tell(trial, rate + padding)


def test_the_figures_show_history_importance_and_a_slice_per_parameter(study: optuna.Study) -> None:
    for _ in range(4):
        complete_trial(study)
    run = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_figures(study, run)
    assert run.figures.keys() == {"search_history", "search_importance", "search_slices"}
    history = run.figures["search_history"].axes[0]
    assert history.get_ylabel() == "validation accuracy"
    slices = [axes for axes in run.figures["search_slices"].axes if axes.get_xlabel().startswith("train.")]
    scales = {axes.get_xlabel(): axes.get_xscale() for axes in slices}
    assert scales == {"train.lr": "log", "train.augment.crop_padding": "linear"}
    for figure in run.figures.values():
        figure.canvas.draw()


def test_equal_trials_draw_without_a_warning(study: optuna.Study) -> None:
    for _ in range(2):
        trial = study.ask()
        trial.suggest_categorical("train.lr", [0.1])
        trial.suggest_float("train.label_smoothing", 0.1, 0.1)
        study.tell(trial, 1.0)
    run = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_figures(study, run)
    assert len(run.figures) == 3


@pytest.mark.parametrize("trials", [0, 1])
def test_fewer_than_two_trials_have_no_figures(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        complete_trial(study)
    run = Recorder()
    log_figures(study, run)
    assert run.figures == {}
