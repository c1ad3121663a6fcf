"""Simulate how often tools/compare.py is wrong: false alarms without a difference, and its power with one.

    python benchmarks/significance.py            # half a minute

Trainings are simulated: each of 10,000 test images has a difficulty, and each seed an effect on all of them. Their
strengths are such that two seeds disagree about 5% to 6% of the images, and that the accuracy of a seed varies as
stated. A row counts how many of 1,000 comparisons report a difference at the level of 5%. "bootstrap" resamples the
seeds, and is not used by compare.py. Needs only NumPy and SciPy.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from vision.evaluation.significance import compare_models, compare_seeds

IMAGES = 10_000
SEED_EFFECTS = (0.0, 0.05, 0.1)
"""Standard deviations of a seed's effect, in log-odds."""
DIFFERENCES = (0.0, 0.005)
SEEDS = (1, 3, 5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    easiness = random.normal(8, 6, IMAGES)
    print("| standard deviation over seeds | true difference | seeds | compare.py reports one | bootstrap |")
    print("|---|---|---|---|---|")
    for effect, difference, seeds in itertools.product(SEED_EFFECTS, DIFFERENCES, SEEDS):
        shift = find_shift(easiness, difference)
        results = np.array(list(compare_often(random, easiness, effect, shift, seeds, options.comparisons)))
        spread, reported, bootstrap = results[:, 0].std(), results[:, 1].mean(), results[:, 2].mean()
        by_bootstrap = f"{bootstrap:.1%}" if seeds > 1 else ""
        print(f"| {spread:.2%} | {difference:.1%} | {seeds} | {reported:.1%} | {by_bootstrap} |", flush=True)


def find_shift(easiness: np.ndarray, difference: float) -> float:
    """How much easier all images must be, in log-odds, for an accuracy that is higher by `difference`."""
    accuracy = expit(easiness).mean()
    return brentq(lambda shift: expit(easiness + shift).mean() - accuracy - difference, 0, 5) if difference else 0.0


def compare_often(
    random: np.random.Generator, easiness: np.ndarray, effect: float, shift: float, seeds: int, times: int
) -> Iterator[tuple[float, bool, bool]]:
    """Simulate comparisons: the accuracy of a training, and whether compare.py and a bootstrap report a difference."""
    for _ in range(times):
        first, second = (
            random.random((seeds, IMAGES)) < expit(easiness + change + random.normal(0, effect, (seeds, 1)))
            for change in (0, shift)
        )
        differences = second.mean(1) - first.mean(1)
        found = compare_seeds(differences.tolist()) if seeds > 1 else compare_models(first[0], second[0])
        means = differences[random.integers(0, seeds, (1000, seeds))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        yield float(first[0].mean()), found.is_significant, bool(low > 0 or high < 0)


if __name__ == "__main__":
    main()
