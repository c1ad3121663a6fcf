"""Measure what `train.class_weights` and `train.logit_adjustment` are worth if some classes have few images.

    python benchmarks/unbalanced.py

CIFAR-10 is thinned: the first class keeps all of its training images, the last one a fiftieth, and those between them
numbers that fall exponentially (Cui et al. 2019, arXiv:1901.05555). The test split stays balanced. The three kinds of
training run in turn. Needs data/raw (`dvc repro download`).
"""

import argparse
import statistics
from typing import Any

import numpy as np
from default_training import Data, add_options, predict, read_data, select, train_model
from sklearn.metrics import recall_score

RATIO = 50
"""Training images of the first class, divided by those of the last one."""
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "class_weights: balanced": {"class_weights": "balanced"},
    "logit_adjustment: 1.0": {"logit_adjustment": 1.0},
}
"""Changes of the section `train`."""


def main() -> None:
    """Print a row for each training, and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    data = read_data(options.data)
    recalls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    print("| Seed | Parameters | Macro recall | Recall of the three smallest classes |")
    print("|---|---|---|---|")
    for seed in range(options.seeds):
        train = select(data.train, thin(data, seed))
        for kind, changes in KINDS.items():
            model = train_model(train, data.classes, seed, epochs=options.epochs, **changes)
            predicted = predict(model, select(data.test, np.arange(len(data.test.labels))).images).argmax(1).numpy()
            recall = recall_score(data.test.labels, predicted, average=None)
            recalls[kind].append(recall.mean())
            print(f"| {seed} | {kind} | {recall.mean():.2%} | {recall[-3:].mean():.2%} |", flush=True)
    before, *others = KINDS
    for kind in others:
        differences = [100 * (b - a) for a, b in zip(recalls[before], recalls[kind], strict=True)]
        spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
        print(f"\n{kind}: macro recall {statistics.mean(differences):+.2f}{spread} points, n = {len(differences)}")


def thin(data: Data, seed: int) -> np.ndarray:
    """Choose training images: exponentially fewer from class to class. Returns their indices, shuffled."""
    random = np.random.default_rng(seed)
    labels, last = data.train.labels, len(data.classes) - 1
    chosen = []
    for number in range(len(data.classes)):
        of_class = np.flatnonzero(labels == number)
        chosen.append(random.permutation(of_class)[: max(1, round(len(of_class) * RATIO ** (-number / last)))])
    return random.permutation(np.concatenate(chosen))


if __name__ == "__main__":
    main()
