"""Label errors by the predictions of folds."""

from typing import Any

import numpy as np
import pytest

from vision.audit.data import AuditData
from vision.audit.fold_predictions import find_folds, join_folds
from vision.audit.label_errors import find_label_errors
from vision.pipeline.errors import UserError

CLASSES = ["cat", "dog", "a,b"]
LABELS = np.array([0, 1, 2, 0, 1, 2])
DATA = AuditData(
    CLASSES, np.zeros((6, 2, 2, 3), np.uint8), LABELS, np.array(["train"] * 3 + ["val"] * 2 + ["test"]), list("012341")
)
PARAMETERS = ["seed", "preprocess.folds", "preprocess.fold", "train.lr"]


def row(fold: float, name: str = "", **values: Any) -> dict[str, Any]:
    settings = {"seed": 0.0, "preprocess.folds": 2.0, "train.lr": 0.1, "accuracy": 0.5, "Experiment": name}
    return settings | {"preprocess.fold": fold} | values


def test_the_newest_complete_folds_are_taken() -> None:
    older, alone = [row(0.0, "a"), row(1.0, "b")], [row(0.0, "c", seed=1.0), row(0.0, "d", **{"train.lr": 0.2})]
    whole = row(0.0, "e", **{"preprocess.folds": "None"})
    assert find_folds([whole, *alone, *older], PARAMETERS) == older
    newer = [row(1.0, "f", accuracy=0.6), row(0.0, "g")]
    assert find_folds([*newer, *alone, *older], PARAMETERS) == newer[::-1]
    other = [row(1.0, "h", seed=1.0), row(0.0, "i", seed=1.0)]
    assert find_folds([alone[0], other[0], *older], PARAMETERS) == [alone[0], other[0]]
    assert find_folds([*other[:1], *alone[1:], whole], PARAMETERS) == []
    assert find_folds([], PARAMETERS) == []


def table(*rows: str, header: str = 'image,actual,predicted,p_cat,p_dog,"p_a,b"') -> str:
    return "\n".join([header, *rows, ""])


FIRST = table("0,cat,cat,0.5,0.25,0.25", '2,"a,b",dog,0.1,0.8,0.1', "7,dog,dog,0,1,0")
SECOND = table("3,cat,dog,0.25,0.75,0", "1,dog,dog,0,1,0")


def test_predictions_of_all_folds_are_joined() -> None:
    """Image 7 is not in the data, image 4 in no fold, and the test image has the name of a training image."""
    found = join_folds({"one": FIRST, "two": SECOND}, DATA)
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.probabilities.tolist() == [[0.5, 0.25, 0.25], [0, 1, 0], [0.1, 0.8, 0.1], [0.25, 0.75, 0]]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (
            table("3,cat,cat,1,0", header="image,actual,predicted,p_cat,p_dog"),
            "was made with other classes",
        ),
        ("", "was made with other classes than data/processed; "),
        (table("3,cow,dog,0.2,0.8,0"), "line 2: damaged ('cow'); "),
        (table("3,cat,dog,0.2"), "line 2: damaged ("),
        (table("3,cat,dog,0.2,x,0"), "line 2: damaged (could not convert string to float: 'x'); "),
        (table("3,cat,dog,0.2,nan,0"), "line 2: has probabilities outside 0 to 1; "),
        (table("0,cat,dog,0.2,0.8,0"), "line 2: image 0 is in two folds; "),
        (table("3,dog,dog,0.2,0.8,0"), "line 2: image 3 has another label in data/processed; "),
    ],
)
def test_damaged_or_foreign_predictions_are_refused_in_one_line(second: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        join_folds({"one": FIRST, "two": second}, DATA)
    assert str(error.value).startswith(f"two: data/predictions/val.csv: {says}")
    assert str(error.value).endswith("; run the folds again")


def test_folds_of_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="the folds have no image of data/processed"):
        join_folds({"one": table("9,cat,cat,1,0,0")}, DATA)


def test_changed_labels_are_found() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 2000)
    logits = random.normal(0, 1, (2000, 4)) + 4 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    changed = random.choice(2000, 60, replace=False)
    labels[changed] = (labels[changed] + 1) % 4
    errors = find_label_errors(labels, probabilities)
    assert np.isin(errors.indices[:50], changed).mean() > 0.9
    assert np.isin(changed, errors.indices).mean() > 0.7
    assert (np.diff(errors.quality) >= 0).all()


def test_sure_and_correct_labels_are_not_suspected() -> None:
    labels = np.arange(100) % 4
    errors = find_label_errors(labels, np.eye(4)[labels] * 0.97 + 0.0075)
    assert errors.indices.shape == errors.quality.shape == (0,)
