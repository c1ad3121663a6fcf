"""The numbers, tables and page of an audit."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from vision.audit import page, tables
from vision.audit.data import AuditData
from vision.audit.duplicates import Pairs, find_groups
from vision.audit.findings import Findings, Labels, count_findings
from vision.audit.label_errors import LabelErrors
from vision.audit.outliers import Outliers

CLASSES = ["<b>cat</b>", "dog"]
SPLITS = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
LABELS = [0, 0, 0, 1, 1, 0, 1, 0, 1, 0]
NAMES = [*"01234", "5", "6", "0", "1", "2"]
PAIRS = [(1, 7, 0.99), (0, 1, 0.98), (2, 6, 0.95), (3, 8, 0.92)]
"""Images in training and test, both in training, in training and validation, in training and test."""


def make_findings(labels: bool = True, pairs: list[tuple[int, int, float]] = PAIRS) -> Findings:
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    data = AuditData(CLASSES, images, np.array(LABELS), np.array(SPLITS), NAMES)
    columns = [np.array([pair[column] for pair in pairs]) for column in range(3)]
    found = Pairs(columns[0].astype(int), columns[1].astype(int), columns[2].astype(np.float32))
    checked = Labels(
        np.array([0, 2, 5, 6]),
        np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5], [0.2, 0.8]]),
        LabelErrors(np.array([1]), np.array([0.25])),
    )
    outliers = Outliers(np.array([4, 9]), np.array([0.75, 0.5], np.float32))
    correct = np.array([True, True, False])
    return Findings(data, found, find_groups(found, 10), outliers, checked if labels else None, correct)


def test_the_numbers_are_counted() -> None:
    assert count_findings(make_findings()).model_dump(exclude_unset=True) == {
        "images": 10,
        "labels_checked": 4,
        "label_errors": 1,
        "near_duplicates": 7,
        "near_duplicate_pairs": 4,
        "near_duplicate_groups": 3,
        "pairs_across_splits": 3,
        "pairs_of_different_classes": 1,
        "class_imbalance": 1.5,
        "test_images": 3,
        "test_images_without_duplicates": 1,
        "accuracy": pytest.approx(2 / 3),
        "accuracy_without_duplicates": 0.0,
    }


def test_what_is_not_known_is_absent() -> None:
    everywhere = [(test - 7, test, 0.9) for test in (7, 8, 9)]
    metrics = count_findings(make_findings(labels=False, pairs=everywhere)).model_dump(exclude_unset=True)
    assert not {"labels_checked", "label_errors", "accuracy_without_duplicates"} & metrics.keys()
    none = count_findings(make_findings(pairs=[]))
    assert none.accuracy == none.accuracy_without_duplicates
    assert (none.near_duplicates, none.near_duplicate_groups) == (0, 0)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_tables_name_every_image(tmp_path: Path) -> None:
    tables.write_tables(tmp_path, make_findings())
    assert read(tmp_path / "duplicates.csv") == [
        ["group", "image", "split", "class", "nearest", "nearest_split", "correlation"],
        ["1", "0", "train", "<b>cat</b>", "1", "train", "0.98"],
        ["1", "1", "train", "<b>cat</b>", "0", "test", "0.99"],
        ["1", "0", "test", "<b>cat</b>", "1", "train", "0.99"],
        ["2", "2", "train", "<b>cat</b>", "6", "val", "0.95"],
        ["2", "6", "val", "dog", "2", "train", "0.95"],
        ["3", "3", "train", "dog", "1", "test", "0.92"],
        ["3", "1", "test", "dog", "3", "train", "0.92"],
    ]
    assert read(tmp_path / "outliers.csv")[1:] == [["4", "train", "dog", "0.75"], ["2", "test", "<b>cat</b>", "0.5"]]
    assert read(tmp_path / "label_errors.csv") == [
        ["image", "split", "given", "predicted", "p_given", "p_predicted", "quality"],
        ["2", "train", "<b>cat</b>", "dog", "0.25", "0.75", "0.25"],
    ]
    tables.write_tables(tmp_path / "more", make_findings(labels=False))
    assert sorted(path.name for path in (tmp_path / "more").iterdir()) == ["duplicates.csv", "outliers.csv"]


def test_the_page_needs_no_script_and_no_other_file() -> None:
    text = page.render(make_findings())
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;cat&lt;/b&gt;" in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert sum(address.startswith("data:image/png;base64,") for address in addresses) == 1 + 2 * 4 + 2


def test_the_page_shows_pairs_of_training_and_test_first() -> None:
    text = page.render(make_findings())
    captions = re.findall(r'<span class="name">([^<]*)</span><span class="name">([^<]*)</span>', text)
    assert captions == [
        ("train 1", "test 0"),
        ("train 3", "test 1"),
        ("train 2", "val 6"),
        ("train 0", "train 1"),
    ]


def test_the_page_says_what_was_not_found_or_searched() -> None:
    text = page.render(make_findings(labels=False, pairs=[]))
    assert "The labels were not checked" in text
    assert "There are no near-duplicates." in text


def test_the_page_has_a_few_hundred_pictures_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_PAIRS", "MAX_OUTLIERS", "MAX_LABEL_ERRORS"):
        monkeypatch.setattr(page, name, 1)
    text = page.render(make_findings())
    assert text.count("data:image/png") == 1 + 2 + 1
