"""Figures of a search: its history, the importance of each parameter and a slice along each."""

import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from vision.tracking.run import Run

PLOTS: dict[str, Callable[..., Any]] = {
    "search_history": plots.plot_optimization_history,
    "search_importance": plots.plot_param_importances,
    "search_slices": plots.plot_slice,
}


def log_figures(study: optuna.Study, run: Run) -> None:
    """Log the figures as artifacts of the search's run; with fewer than two complete trials there are none."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 2:
        return
    matplotlib.use("agg")
    for name, plot in PLOTS.items():
        with warnings.catch_warnings():
            # Optuna warns of experimental plots, and of trials with equal values.
            for category in (optuna.exceptions.ExperimentalWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            axes = np.ravel(plot(study, target_name="validation accuracy"))  # one plot, or one per parameter
        figure = axes[0].figure
        figure.set_size_inches(max(8, 4 * len(axes)), 4.5)
        figure.set_layout_engine("constrained")
        for axis in (one.xaxis for one in axes):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_locator(NullLocator())
                axis.set_tick_params(rotation=45)  # labels overlap at the upper end otherwise
            elif name == "search_history":
                axis.set_major_locator(MaxNLocator(integer=True))  # trial numbers
        run.log_figure(name, figure)
