"""Measure how well a low confidence reveals images of classes that the network has never seen.

    python benchmarks/unknown.py

A network is trained on five classes of CIFAR-10, with a tenth of their images held out. The lowest confidence is the
one that 95% of the held-out images reach. The test images of the five classes and of the five others are then scored.
The area under the ROC curve is the probability that an image of a known class has a higher confidence than one of
another class. Needs data/raw (`dvc repro download`).
"""

import argparse

import numpy as np
from default_training import add_options, predict, read_data, select, train_model
from sklearn.metrics import roc_auc_score

from vision.core.confidence import fit_min_confidence
from vision.core.temperature import fit_temperature

KNOWN = 5
"""The first classes, which the network is trained on."""


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    train, test, classes = read_data(options.data)
    is_known = test.labels < KNOWN
    print("| Seed | Accuracy on known classes | Known images kept | Others called unknown | Area under the ROC curve |")
    print("|---|---|---|---|---|")
    for seed in range(options.seeds):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(train.labels < KNOWN))
        held_out, trained_on = np.split(order, [len(order) // 10])
        model = train_model(select(train, trained_on), classes[:KNOWN], seed, epochs=options.epochs)
        val = select(train, held_out)
        val_logits = predict(model, val.images)
        temperature = fit_temperature(val_logits, val.labels)
        min_confidence = fit_min_confidence(val_logits / temperature)
        logits = predict(model, select(test, np.arange(len(test.labels))).images)
        confidence = (logits / temperature).softmax(1).amax(1).numpy()
        correct = logits.argmax(1).numpy()[is_known] == test.labels[is_known]
        print(
            f"| {seed} | {correct.mean():.2%} | {(confidence[is_known] >= min_confidence).mean():.1%} "
            f"| {(confidence[~is_known] < min_confidence).mean():.1%} | {roc_auc_score(is_known, confidence):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
