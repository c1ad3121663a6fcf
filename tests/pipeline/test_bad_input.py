"""Bad input never passes: one clear line on stderr, status 1, no traceback, and no file changed, made or removed.

Each row damages one thing in a small checkout whose stages have all run, and runs the stage that reads it, in a process
of its own.
"""

import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from official_formats import (
    CLASSES,
    binary_files,
    checksums,
    make_set,
    npm_files,
    python_batch,
    python_files,
    write_archive,
    write_binary_archive,
)
from stages import Snapshot, Stages, change_params, small_checkout, tree

DATA = make_set(n_train=200, n_test=60)

Damage = Callable[[Path], object]
"""Changes something in the checkout, which is the working directory meanwhile."""
Row = tuple[str, str, Damage, str]
"""Name, stage, damage, and the line or lines to expect, `*` for any text and `ROOT` for the checkout."""


class Evil:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('evil-was-here').touch()",)


# What can be done to a file, whatever it holds.


def write(path: str, content: str | bytes) -> Damage:
    def damage(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(path: str, share: float = 0.5) -> Damage:
    return lambda root: (root / path).write_bytes(
        (root / path).read_bytes()[: int(share * (root / path).stat().st_size)]
    )


def remove(path: str) -> Damage:
    return lambda root: (root / path).unlink()


def folder_instead(path: str) -> Damage:
    def damage(root: Path) -> None:
        (root / path).unlink()
        (root / path).mkdir()

    return damage


def edit(path: str, change: Callable[[Any], Any]) -> Damage:
    """Change a JSON document; `change` gives another one, or changes the one that it is given."""

    def damage(root: Path) -> None:
        document = json.loads((root / path).read_text())
        changed = change(document)
        (root / path).write_text(json.dumps(document if changed is None else changed))

    return damage


def put(path: str, **values: object) -> Damage:
    """Set keys of a JSON object; `a__b` is the key b of the object under a."""

    def change(document: dict[str, Any]) -> None:
        for name, value in values.items():
            *parents, key = name.split("__")
            inside = document
            for parent in parents:
                inside = inside[parent]
            inside[key] = value

    return edit(path, change)


def lack(path: str, key: str) -> Damage:
    return edit(path, lambda document: {name: value for name, value in document.items() if name != key})


def replace(path: str, old: str, new: str) -> Damage:
    def damage(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return damage


def array(path: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda root: np.save(root / path, change(np.load(root / path)))


def header(shape: str, rest: str = "") -> bytes:
    """An .npy file that says that it holds uint8 of this shape, and holds next to nothing."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}{rest}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(100)


def set_params(**sections: Any) -> Damage:
    return lambda root: change_params(root, **sections)


def both(*damages: Damage) -> Damage:
    def damage(root: Path) -> None:
        for one in damages:
            one(root)

    return damage


# JSON documents.

DOCUMENTS = [
    ("preprocess", "data/raw/classes.json"),
    ("train", "data/processed/stats.json"),
    ("evaluate", "data/processed/stats.json"),
    ("report", "data/processed/stats.json"),
    ("evaluate", "models/model.json"),
    ("evaluate", "metrics/run.json"),
    ("report", "models/model.json"),
    ("report", "metrics/run.json"),
    ("report", "metrics/dataset.json"),
    ("report", "metrics/train.json"),
    ("report", "metrics/test.json"),
]
RUINS = [
    ("missing", remove, "ROOT/{path}: not found; `dvc repro` makes it"),
    ("empty", lambda path: write(path, ""), "ROOT/{path}: not valid JSON (*); delete it and run `dvc repro`"),
    ("binary", lambda path: write(path, b"\xff\x00\xfe" * 99), "ROOT/{path}: not valid JSON (*); delete it and run `dvc repro`"),
    ("cut off", cut, "ROOT/{path}: not valid JSON (*); delete it and run `dvc repro`"),
    ("conflict", lambda path: write(path, "<<<<<<< HEAD\n{}\n"), "ROOT/{path}: not valid JSON (*); delete it and run `dvc repro`"),
    ("deep", lambda path: write(path, "[" * 100_000), "ROOT/{path}: not valid JSON (*); delete it and run `dvc repro`"),
    ("number", lambda path: write(path, "7"), "ROOT/{path}: must be *(got 7); delete it and run `dvc repro`"),
    ("list", lambda path: write(path, "[1]"), "ROOT/{path}: *must be *(got *1*); delete it and run `dvc repro`"),
    ("folder", folder_instead, "ROOT/{path}: Is a directory (set VISION_DEBUG=1 for the traceback)"),
]  # fmt: skip
JSON: list[Row] = [
    (f"{stage}: {path}, {name}", stage, damage(path), line.format(path=path))
    for stage, path in DOCUMENTS
    for name, damage, line in RUINS
]

CLASSES_JSON, STATS, MODEL, RUN = "data/raw/classes.json", "data/processed/stats.json", "models/model.json", "metrics/run.json"  # fmt: skip
DATASET, TRAINED, TESTED = "metrics/dataset.json", "metrics/train.json", "metrics/test.json"
AGAIN = "; delete it and run `dvc repro`"


def swap_classes(document: Any) -> None:
    document["classes"][:2] = reversed(document["classes"][:2])


EDITED: list[tuple[str, str, str, Damage, str]] = [
    ("preprocess", CLASSES_JSON, "one class", write(CLASSES_JSON, '["cat"]'), "must have at least 2 items (got ['cat'])"),
    ("preprocess", CLASSES_JSON, "no class", write(CLASSES_JSON, "[]"), "must have at least 2 items (got [])"),
    ("preprocess", CLASSES_JSON, "a class twice", write(CLASSES_JSON, '["cat", "cat"]'), "must have unique names (got ['cat', 'cat'])"),
    ("preprocess", CLASSES_JSON, "a number", write(CLASSES_JSON, '["cat", 1]'), "1: must be a valid string (got 1)"),
    ("train", STATS, "a mean of text", put(STATS, mean=["a", 0.5, 0.5]), "mean.0: must be a valid number (got 'a')"),
    ("train", STATS, "a mean of another length", put(STATS, mean=[0.5]), "must have a mean and a std for each of 3 channels (got *)"),
    ("train", STATS, "a NaN", put(STATS, mean=[float("nan"), 0.5, 0.5]), "not valid JSON (*)"),
    ("train", STATS, "a number beyond floats", replace(STATS, '"std": [', '"std": [1e999,'), "std.0: must be a finite number (got inf)"),
    ("train", STATS, "a std of 0", put(STATS, std=[0, 0.2, 0.2]), "std.0: must be greater than 0 (got 0*)"),
    ("train", STATS, "a negative std", put(STATS, std=[0.2, -0.2, 0.2]), "std.1: must be greater than 0 (got -0.2)"),
    ("train", STATS, "without std", lack(STATS, "std"), "std: missing"),
    ("train", STATS, "another key", put(STATS, colour="red"), "changed after the preprocess stage wrote it"),
    ("train", STATS, "another mean", put(STATS, mean=[0.5, 0.5, 0.5]), "changed after the preprocess stage wrote it"),
    ("evaluate", STATS, "classes swapped", edit(STATS, swap_classes), "changed after the preprocess stage wrote it"),
    ("report", STATS, "classes swapped", edit(STATS, swap_classes), "changed after the preprocess stage wrote it"),
    ("train", STATS, "without its digest", lack(STATS, "sha256"), "changed after the preprocess stage wrote it"),
    ("train", STATS, "a digest of another type", put(STATS, sha256=7), "changed after the preprocess stage wrote it"),
    ("train", STATS, "null", write(STATS, "null"), "must be an object (got None)"),
    ("train", STATS, "classes null", put(STATS, classes=None), "classes: must be a valid array (got None)"),
    ("train", STATS, "one class", put(STATS, classes=["cat"]), "classes: must have at least 2 items (got ['cat'])"),
    ("train", STATS, "a shape of text", put(STATS, image_shape="32x32"), "image_shape: must be a valid array (got '32x32')"),
    ("train", STATS, "a shape of two", put(STATS, image_shape=[32, 32]), "image_shape: must have at least 3 items (got [32, 32])"),
    ("train", STATS, "no pixels", put(STATS, image_shape=[0, 32, 3]), "image_shape.0: must be greater than or equal to 1 (got 0)"),
    ("train", STATS, "a true for a number", put(STATS, mean=[True, 0.5, 0.5]), "mean.0: must be a valid number (got True)"),
    ("report", DATASET, "without a split", lack(DATASET, "val"), "val: missing"),
    ("report", DATASET, "a negative count", put(DATASET, by_class__cat__val=-1), "by_class.cat.val: must be greater than or equal to 0 (got -1)"),
    ("report", DATASET, "a count of text", put(DATASET, train="many"), "train: must be a valid integer (got 'many')"),
    ("report", DATASET, "a class without counts", put(DATASET, by_class__cat={}), "by_class.cat.train: missing"),
    ("report", TRAINED, "without the best epoch", lack(TRAINED, "best_epoch"), "best_epoch: missing"),
    ("report", TRAINED, "epoch 0", put(TRAINED, best_epoch=0), "best_epoch: must be greater than or equal to 1 (got 0)"),
    ("report", TRAINED, "half an epoch", put(TRAINED, best_epoch=0.5), "best_epoch: must be a valid integer (got 0.5)"),
    ("report", TRAINED, "an accuracy above 1", put(TRAINED, val_accuracy=1.5), "val_accuracy: must be less than or equal to 1 (got 1.5)"),
    ("report", TRAINED, "parameters of text", put(TRAINED, parameters="1 M"), "parameters: must be a valid integer (got '1 M')"),
    ("report", TRAINED, "an infinity", put(TRAINED, val_loss=float("inf")), "not valid JSON (*)"),
    ("report", TESTED, "without accuracy", lack(TESTED, "accuracy"), "accuracy: missing"),
    ("report", TESTED, "an accuracy below 0", put(TESTED, accuracy=-0.1), "accuracy: must be greater than or equal to 0 (got -0.1)"),
    ("report", TESTED, "an accuracy of text", put(TESTED, accuracy="92%"), "accuracy: must be a valid number (got '92%')"),
    ("report", RUN, "without its device", edit(RUN, lambda document: document["environment"].pop("device") and None), "environment.device: missing"),
    ("report", RUN, "an environment of a number", put(RUN, environment=3), "environment: must be an object (got 3)"),
    ("report", RUN, "a version of a number", put(RUN, environment__versions={"torch": 2}), "environment.versions.torch: must be a valid string (got 2)"),
    ("evaluate", RUN, "an MLflow run of text", put(RUN, mlflow="here"), "mlflow: must be an object (got 'here')"),
    ("evaluate", RUN, "an MLflow run without its id", put(RUN, mlflow={"page": "http://a"}), "mlflow.run_id: missing"),
    ("evaluate", RUN, "without MLflow", lack(RUN, "mlflow"), "mlflow: missing"),
    ("evaluate", RUN, "TensorBoard elsewhere", put(RUN, tensorboard="../../x"), "tensorboard: must match pattern '*' (got '../../x')"),
    ("report", RUN, "TensorBoard in a number", put(RUN, tensorboard=5), "tensorboard: must be a valid string (got 5)"),
    ("evaluate", MODEL, "without a name", lack(MODEL, "name"), "name: missing"),
    ("evaluate", MODEL, "a mean of another length", put(MODEL, mean=[0.5] * 4), "must have a mean and a std for each of 3 channels (got *)"),
    ("evaluate", MODEL, "a std of 0", put(MODEL, std=[0.0, 1.0, 1.0]), "std.0: must be greater than 0 (got 0.0)"),
    ("evaluate", MODEL, "options in a list", put(MODEL, options=[1]), "options: must be an object (got [1])"),
    ("evaluate", MODEL, "a huge image", put(MODEL, image_size=10**9), "image_size: must be less than or equal to 2048 (got 1000000000)"),
    ("report", MODEL, "a name of a number", put(MODEL, name=1), "name: must be a valid string (got 1)"),
]  # fmt: skip
JSON += [(f"{stage}: {path}, {name}", stage, damage, f"ROOT/{path}: {line}{AGAIN}") for stage, path, name, damage, line in EDITED]  # fmt: skip

NOT_MADE = "ROOT/models/model.json: not made by the train stage (*); `dvc repro -f train`"
OTHER = "does not fit model.json (*); `dvc repro -f train`"
JSON += [
    ("model.json, another network", "evaluate", put(MODEL, name="resnet18", options={"stem": "small"}), f"ROOT/models/model.pt: {OTHER}"),
    ("model.json, no such network", "evaluate", put(MODEL, name="resnet999"), NOT_MADE),
    ("model.json, other options", "evaluate", put(MODEL, options={"width": 3}), NOT_MADE),
    ("model.json, options of text", "evaluate", put(MODEL, options={"widths": "ab", "depth": 1}), NOT_MADE),
    ("model.json, negative widths", "evaluate", put(MODEL, options={"widths": [-8], "depth": 1}), NOT_MADE),
    ("model.json, no widths", "evaluate", put(MODEL, options={"widths": [], "depth": 1}), NOT_MADE),
    ("model.json, widths beyond memory", "evaluate", put(MODEL, options={"widths": [10**6, 10**6], "depth": 9}), NOT_MADE),
    ("model.json, other widths", "evaluate", put(MODEL, options={"widths": [8, 32], "depth": 1}), f"ROOT/models/model.pt: {OTHER}"),
    ("model.json, other classes", "evaluate", edit(MODEL, swap_classes), "ROOT/models/model.json: trained on other classes or image sizes; `dvc repro -f train`"),
    ("model.json, other images", "evaluate", put(MODEL, image_shape=[16, 16, 3]), "ROOT/models/model.json: trained on other classes or image sizes; `dvc repro -f train`"),
    ("report: other classes in model.json", "report", edit(MODEL, swap_classes), "models/model.json: does not match data/processed; run `dvc repro -f train`"),
    ("report: another accuracy in test.json", "report", put(TESTED, accuracy=1.0), "metrics/test.json: does not match data/predictions/test.csv; run `dvc repro -f evaluate`"),
    ("report: more epochs in train.json", "report", put(TRAINED, epochs=5), "metrics/history.csv: does not match metrics/train.json; run `dvc repro -f train`"),
    ("report: a later best epoch in train.json", "report", put(TRAINED, best_epoch=2), "metrics/history.csv: does not match metrics/train.json; run `dvc repro -f train`"),
    ("report: other test images in dataset.json", "report", put(DATASET, test=5), "metrics/dataset.json: does not match data/processed; run `dvc repro -f preprocess`"),
    ("report: other classes in dataset.json", "report", edit(DATASET, lambda document: document["by_class"].pop("cat") and None), "metrics/dataset.json: does not match data/processed; run `dvc repro -f preprocess`"),
]  # fmt: skip

# Tables.

HISTORY, CONFUSION, PER_CLASS, CALIBRATION = (f"metrics/{name}.csv" for name in ("history", "confusion_matrix", "per_class", "calibration"))  # fmt: skip
PREDICTIONS = "data/predictions/test.csv"
CORRUPTIONS = "metrics/corruptions.csv"
UNFIT = "{} does not match data/predictions/test.csv; run `dvc repro -f evaluate`"


def cell(path: str, line: int, column: int, value: str) -> Damage:
    def damage(root: Path) -> None:
        rows = [row.split(",") for row in (root / path).read_text().splitlines()]
        rows[line - 1][column] = value
        (root / path).write_text("\n".join(map(",".join, rows)) + "\n")

    return damage


def first_line(path: str) -> Damage:
    return lambda root: (root / path).write_text((root / path).read_text().splitlines()[0] + "\n")


TABLES: list[Row] = [
    (f"{path}, {name}", "report", damage(path), f"ROOT/{path}: {line}")
    for path in (HISTORY, CONFUSION, PER_CLASS, CALIBRATION, PREDICTIONS)
    for name, damage, line in [
        ("missing", remove, "not found; `dvc repro` makes it"),
        ("empty", lambda path: write(path, ""), "has no rows; delete it and run `dvc repro`"),
        ("header alone", first_line, "has no rows; delete it and run `dvc repro`"),
        ("binary", lambda path: write(path, b"\xff\x00\xfe\n" * 99), "not a table (*); delete it and run `dvc repro`"),
        ("a huge cell", lambda path: write(path, "a,b\n" + "x" * 10**6), "not a table (*); delete it and run `dvc repro`"),
        ("folder", folder_instead, "Is a directory (set VISION_DEBUG=1 for the traceback)"),
    ]
]  # fmt: skip
DAMAGED = "; delete the file and run `dvc repro`"
TABLES += [
    ("history.csv, words", "report", cell(HISTORY, 2, 4, "low"), f"ROOT/{HISTORY}: line 2: train_loss: must be a valid number, * (got 'low'){DAMAGED}"),
    ("history.csv, NaN", "report", cell(HISTORY, 2, 4, "nan"), f"ROOT/{HISTORY}: line 2: train_loss: must be a finite number (got 'nan'){DAMAGED}"),
    ("history.csv, an accuracy above 1", "report", cell(HISTORY, 2, 7, "7"), f"ROOT/{HISTORY}: line 2: val_accuracy: must be less than or equal to 1 (got '7'){DAMAGED}"),
    ("history.csv, no loss", "report", cell(HISTORY, 2, 4, ""), f"ROOT/{HISTORY}: line 2: train_loss: must be a valid number, * (got ''){DAMAGED}"),
    ("history.csv, half validated", "report", cell(HISTORY, 2, 6, ""), "metrics/history.csv: does not match metrics/train.json; run `dvc repro -f train`"),
    ("history.csv, a row twice", "report", lambda root: (root / HISTORY).open("a").write((root / HISTORY).read_text().splitlines()[1] + "\n"), "metrics/history.csv: does not match metrics/train.json; run `dvc repro -f train`"),
    ("history.csv, a conflict", "report", write(HISTORY, "<<<<<<< HEAD\n1,2\n"), f"ROOT/{HISTORY}: line 2: epoch: missing{DAMAGED}"),
    ("history.csv, another column", "report", cell(HISTORY, 1, 4, "loss"), f"ROOT/{HISTORY}: line 2: train_loss: missing{DAMAGED}"),
    ("confusion_matrix.csv, another count", "report", cell(CONFUSION, 3, 3, "1000"), UNFIT.format("metrics/confusion_matrix.csv:")),
    ("confusion_matrix.csv, another name", "report", cell(CONFUSION, 3, 0, "cow"), UNFIT.format("metrics/confusion_matrix.csv:")),
    ("confusion_matrix.csv, a cell too many", "report", cell(CONFUSION, 3, 3, "1,1"), f"ROOT/{CONFUSION}: line 3: *{DAMAGED}"),
    ("confusion_matrix.csv, a row less", "report", lambda root: (root / CONFUSION).write_text("\n".join((root / CONFUSION).read_text().splitlines()[:-1]) + "\n"), UNFIT.format("metrics/confusion_matrix.csv:")),
    ("per_class.csv, another name", "report", cell(PER_CLASS, 2, 0, "cow"), UNFIT.format("metrics/per_class.csv:")),
    ("per_class.csv, a precision of NaN", "report", cell(PER_CLASS, 2, 1, "nan"), f"ROOT/{PER_CLASS}: line 2: precision: must be * (got 'nan'){DAMAGED}"),
    ("per_class.csv, half an image", "report", cell(PER_CLASS, 2, 6, "0.5"), f"ROOT/{PER_CLASS}: line 2: images: must be a valid integer, * (got '0.5'){DAMAGED}"),
    ("calibration.csv, a confidence above 1", "report", cell(CALIBRATION, 2, 3, "2"), f"ROOT/{CALIBRATION}: line 2: confidence: must be less than or equal to 1 (got '2'){DAMAGED}"),
    ("calibration_before.csv, more images", "report", cell("metrics/calibration_before.csv", 2, 2, "999"), UNFIT.format("metrics/calibration_before.csv:")),
    ("corruptions.csv, missing", "report", remove(CORRUPTIONS), f"ROOT/{CORRUPTIONS}: not found; `dvc repro` makes it"),
    ("corruptions.csv, empty", "report", write(CORRUPTIONS, ""), f"ROOT/{CORRUPTIONS}: has no rows; delete it and run `dvc repro`"),
    ("corruptions.csv, a row although it is off", "report", write(CORRUPTIONS, "corruption,severity,images,accuracy\nfog,1,100,0.5\n"), "metrics/corruptions.csv: does not match metrics/test.json; run `dvc repro -f evaluate`"),
    ("corruptions.csv, a severity of 6", "report", write(CORRUPTIONS, "corruption,severity,images,accuracy\nfog,6,100,0.5\n"), f"ROOT/{CORRUPTIONS}: line 2: severity: must be less than or equal to 5 (got '6'){DAMAGED}"),
    ("corruptions in no folder", "evaluate", set_params(evaluate={"corruptions": "nowhere"}), "ROOT/nowhere/labels.npy: not found; evaluate.corruptions must be the folder of CIFAR-10-C"),
    ("calibration.csv, no images", "report", cell(CALIBRATION, 2, 2, "0"), f"ROOT/{CALIBRATION}: line 2: images: must be greater than or equal to 1 (got '0'){DAMAGED}"),
    ("calibration.csv, more images", "report", cell(CALIBRATION, 2, 2, "999"), UNFIT.format("metrics/calibration.csv:")),
    ("test.csv, no such class", "report", cell(PREDICTIONS, 2, 1, "cow"), f"ROOT/{PREDICTIONS}: damaged, or of other classes ('cow'); delete it and run `dvc repro`"),
    ("test.csv, another prediction", "report", lambda root: cell(PREDICTIONS, 2, 2, "ship" if (root / PREDICTIONS).read_text().splitlines()[1].split(",")[2] != "ship" else "cat")(root), "metrics/confusion_matrix.csv: does not match data/predictions/test.csv; run `dvc repro -f evaluate`"),
    ("test.csv, a row less", "report", lambda root: (root / PREDICTIONS).write_text("\n".join((root / PREDICTIONS).read_text().splitlines()[:-1]) + "\n"), "data/predictions/test.csv: does not match data/processed; run `dvc repro -f evaluate`"),
    ("test.csv, a probability of 7", "report", lambda root: (root / PREDICTIONS).write_text(re.sub(r"0\.\d+", "7", (root / PREDICTIONS).read_text())), f"ROOT/{PREDICTIONS}: has probabilities outside 0 to 1; delete it and run `dvc repro`"),
    ("test.csv, a probability of NaN", "report", lambda root: (root / PREDICTIONS).write_text(re.sub(r"0\.\d+", "nan", (root / PREDICTIONS).read_text())), f"ROOT/{PREDICTIONS}: has probabilities outside 0 to 1; delete it and run `dvc repro`"),
]  # fmt: skip

HEAT_MAPS, EXPLAINED = "data/predictions/heat_maps.npy", "data/predictions/heat_map_indices.npy"
UNMATCHED = f"ROOT/{EXPLAINED}: does not match heat_maps.npy; delete both and run `dvc repro`"
TABLES += [
    ("heat_maps.npy, missing", "report", remove(HEAT_MAPS), f"ROOT/{HEAT_MAPS}: not found; `dvc repro` makes it"),
    ("heat_maps.npy, a row less", "report", array(HEAT_MAPS, lambda maps: maps[1:]), UNMATCHED),
    ("heat_maps.npy, floats", "report", array(HEAT_MAPS, lambda maps: maps / 255), f"ROOT/{HEAT_MAPS}: has dtype float64, expected uint8{AGAIN}"),
    ("heat_maps.npy, no pixels", "report", array(HEAT_MAPS, lambda maps: maps[:, :0]), UNMATCHED),
    ("heat_map_indices.npy, a table", "report", array(EXPLAINED, lambda indices: indices[:, None]), UNMATCHED),
    ("heat_map_indices.npy, no such image", "report", array(EXPLAINED, lambda indices: indices + 10**6), f"ROOT/{EXPLAINED}: names images that do not exist{AGAIN}"),
]  # fmt: skip

# Arrays.

FILES = [
    *(("preprocess", "data/raw", name) for name in ("train", "test")),
    *(("train", "data/processed", name) for name in ("train", "val")),
    *((stage, "data/processed", "test") for stage in ("evaluate", "report")),
]


def zipped(path: str) -> Damage:
    def damage(root: Path) -> None:
        with zipfile.ZipFile(root / path, "w") as archive:
            archive.writestr("a.npy", b"x")

    return damage


def pickled(path: str) -> Damage:
    return lambda root: np.save(root / path, np.array([Evil()]), allow_pickle=True)


ARRAYS: list[Row] = []
for stage, where, split in FILES:
    for kind in ("images", "labels"):
        path = f"{where}/{split}_{kind}.npy"
        line = f"ROOT/{path}: "
        broken = f"{line}damaged (*); delete it and run `dvc repro`"
        apart = f"ROOT/{where}: the {split} images (*) and labels (*) do not match"
        dtype = f"has dtype float64, expected {'uint8' if kind == 'images' else 'uint8 or uint16'}"
        ARRAYS += [
            (f"{stage}: {path}, {name}", stage, damage, says)
            for name, damage, says in [
                ("missing", remove(path), f"{line}not found; `dvc repro` makes it"),
                ("empty", write(path, b""), broken),
                ("truncated", cut(path), broken),
                ("terabytes", write(path, header("(1099511627776, 32, 32, 3)")), broken),
                ("pickled", pickled(path), broken),
                ("fewer", array(path, lambda values: values[1:]), apart),
                ("foreign", write(path, b"no array"), broken),
                ("a zip", zipped(path), broken),
                ("beyond integers", write(path, header("(99999999999999999999999,)")), broken),
                ("a header cut off", write(path, header("'''")), broken),
                ("a header of code", write(path, header("(__import__('os').mkdir('evil-was-here'),)")), broken),
                ("floats", array(path, lambda values: values.astype(float)), f"{line}{dtype}{AGAIN}"),
                ("one number", array(path, lambda values: values[(0,) * values.ndim]), apart),
                ("folder", folder_instead(path), f"{line}Is a directory (set VISION_DEBUG=1 for the traceback)"),
            ][: None if split == "train" else 6]
        ]  # fmt: skip
    labels, images = f"{where}/{split}_labels.npy", f"{where}/{split}_images.npy"
    ARRAYS += [
        (f"{stage}: {labels}, out of range", stage, array(labels, lambda values: values + 1), f"ROOT/{labels}: has the label 10, but there are 10 classes{AGAIN}"),
        (f"{stage}: {labels}, far out of range", stage, array(labels, lambda values: values.astype(np.uint16) + 65000), f"ROOT/{labels}: has the label 65009, but there are 10 classes{AGAIN}"),
        (f"{stage}: {images}, grey", stage, array(images, lambda values: values[..., :1]), f"ROOT/{images}: has images of shape [32, 32, 1], expected [32, 32, 3]{AGAIN}"),
        (f"{stage}: {images}, no pixels", stage, array(images, lambda values: values[:, :0]), f"ROOT/{images}: has images of shape [0, 32, 3], expected *{AGAIN}"),
    ]  # fmt: skip
    if split != "val":
        none = both(array(labels, lambda values: values[:0]), array(images, lambda values: values[:0]))
        ARRAYS.append((f"{stage}: {labels}, no images", stage, none, f"ROOT/{labels}: has no images{AGAIN}"))
    if where == "data/processed":
        small = array(images, lambda values: values[:, ::2, ::2])
        ARRAYS.append((f"{stage}: {images}, smaller", stage, small, f"ROOT/{images}: has images of shape [16, 16, 3], expected [32, 32, 3]{AGAIN}"))  # fmt: skip
ARRAYS.append(
    (
        "one class alone in data/raw", "preprocess", array("data/raw/train_labels.npy", np.zeros_like),
        f"ROOT/data/raw/train_labels.npy: has no image of class 'automobile'{AGAIN}",
    )
)  # fmt: skip

# Weights.

WEIGHTS = "models/model.pt"


def state(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(root: Path) -> None:
        found = torch.load(root / WEIGHTS, weights_only=True)
        changed = change(found)
        torch.save(found if changed is None else changed, root / WEIGHTS)

    return damage


def spoil(value: float) -> Damage:
    return state(lambda found: found["network.last.weight"].view(-1)[3:4].fill_(value) and None)


def endless(found: dict[str, torch.Tensor]) -> None:
    """A tensor of a terabyte whose one number is stored once."""
    found["network.last.weight"] = torch.zeros(1).expand(10**6, 10**6)


def saved(thing: object) -> Damage:
    return lambda root: torch.save(thing, root / WEIGHTS)


UNOPENED = f"ROOT/{WEIGHTS}: holds other objects than tensors, so it was not unpickled; `dvc repro -f train`"
UNSAVED = f"ROOT/{WEIGHTS}: damaged, or not written by torch.save (*); `dvc repro -f train`"
MODELS: list[Row] = [
    ("weights missing", "evaluate", remove(WEIGHTS), f"ROOT/{WEIGHTS}: not found; `dvc repro` makes it"),
    ("weights empty", "evaluate", write(WEIGHTS, b""), UNSAVED),
    ("weights truncated", "evaluate", cut(WEIGHTS), UNSAVED),
    ("weights truncated by little", "evaluate", cut(WEIGHTS, 0.99), UNSAVED),
    ("weights of zeros", "evaluate", write(WEIGHTS, bytes(10_000)), f"ROOT/{WEIGHTS}: *; `dvc repro -f train`"),
    ("weights of text", "evaluate", write(WEIGHTS, "no model"), f"ROOT/{WEIGHTS}: *; `dvc repro -f train`"),
    ("weights that are a bare pickle that runs code", "evaluate", write(WEIGHTS, pickle.dumps(Evil())), UNOPENED),
    ("weights that are a saved object that runs code", "evaluate", saved(Evil()), UNOPENED),
    ("weights with an object that runs code among them", "evaluate", state(lambda found: found.update(evil=Evil())), UNOPENED),
    ("weights in a list", "evaluate", saved([torch.zeros(1)]), f"ROOT/{WEIGHTS}: not a state dict: expected a dictionary of tensors; `dvc repro -f train`"),
    ("weights with a number among them", "evaluate", state(lambda found: found.update(a=1)), f"ROOT/{WEIGHTS}: not a state dict: expected a dictionary of tensors; `dvc repro -f train`"),
    ("weights without one", "evaluate", state(lambda found: found.popitem() and None), f"ROOT/{WEIGHTS}: {OTHER}"),
    ("weights with another", "evaluate", state(lambda found: found.update(a=torch.zeros(1))), f"ROOT/{WEIGHTS}: {OTHER}"),
    ("weights numbered", "evaluate", saved({1: torch.zeros(1)}), f"ROOT/{WEIGHTS}: *; `dvc repro -f train`"),
    ("weights of another shape", "evaluate", state(lambda found: found.update({"network.last.weight": torch.zeros(3, 3)})), f"ROOT/{WEIGHTS}: {OTHER}"),
    ("weights of another dtype", "evaluate", state(lambda found: found.update({"network.last.weight": found["network.last.weight"] * 1j})), f"ROOT/{WEIGHTS}: network.last.weight holds torch.complex64, not torch.float32; `dvc repro -f train`"),
    ("weights of a terabyte", "evaluate", state(endless), f"ROOT/{WEIGHTS}: {OTHER}"),
    ("weights sparse", "evaluate", state(lambda found: found.update({"network.last.weight": found["network.last.weight"].to_sparse()})), f"ROOT/{WEIGHTS}: *; `dvc repro -f train`"),
    ("weights with NaN", "evaluate", spoil(float("nan")), f"ROOT/{WEIGHTS}: network.last.weight has values that are not finite; `dvc repro -f train`"),
    ("weights with an infinity", "evaluate", spoil(float("-inf")), f"ROOT/{WEIGHTS}: network.last.weight has values that are not finite; `dvc repro -f train`"),
    ("weights in a folder", "evaluate", folder_instead(WEIGHTS), f"ROOT/{WEIGHTS}: not a file; `dvc repro -f train`"),
    ("weights in a pipe", "evaluate", both(remove(WEIGHTS), lambda root: os.mkfifo(root / WEIGHTS)), f"ROOT/{WEIGHTS}: not a file; `dvc repro -f train`"),
]  # fmt: skip


def from_weights(path: str) -> Damage:
    return set_params(model={"weights": path})


FROM = "params.yaml: model.weights: start.pt: "
MODELS += [
    ("weights to begin with, missing", "train", from_weights("start.pt"), f"{FROM}not found (looked for ROOT/start.pt). *"),
    ("weights to begin with, of nobody", "train", from_weights("~nobody-of-this-name/x.pt"), "params.yaml: model.weights: ~nobody-of-this-name/x.pt: ~nobody-of-this-name: there is no such user"),
    ("weights to begin with, a folder", "train", from_weights("data"), "params.yaml: model.weights: data: not a file"),
    ("weights to begin with, a device", "train", from_weights("/dev/zero"), "params.yaml: model.weights: /dev/zero: not a file"),
    ("weights to begin with, a name too long", "train", from_weights("x" * 4000), "params.yaml: model.weights: x*: File name too long"),
    ("weights to begin with, with code", "train", both(from_weights("start.pt"), lambda root: torch.save(Evil(), root / "start.pt")), f"{FROM}holds other objects than tensors, so it was not unpickled"),
    ("weights to begin with, of another network", "train", both(from_weights("start.pt"), lambda root: torch.save({"a": torch.zeros(1)}, root / "start.pt")), f"{FROM}does not fit convnet: * is missing"),
    ("weights to begin with, NaN", "train", both(from_weights("start.pt"), lambda root: shutil.copy(root / WEIGHTS, root / "start.pt"), lambda root: torch.save({name: value.float() * float("nan") for name, value in torch.load(root / WEIGHTS).items()}, root / "start.pt")), f"{FROM}* has values that are not finite"),
]  # fmt: skip

# Archives.

MEMBER = "cifar-10-batches-bin/data_batch_1.bin"
SOURCE = "download.source: a.tar.gz: "
WRONG = (
    f"{SOURCE}a.tar.gz has the MD5 *, expected *; download it again, or set download.checksums if the data is your own"
)
TORN = f"{SOURCE}not a complete .tar.gz archive (*)"


def archive(*members: tuple[tarfile.TarInfo, bytes], whole: bool = True) -> Damage:
    """An archive that begins with such members; all that belongs there follows."""

    def damage(root: Path) -> None:
        with tarfile.open(root / "a.tar.gz", "w:gz", compresslevel=1) as made:
            for member, content in members:
                member.size = len(content) if content else member.size
                made.addfile(member, io.BytesIO(content))
            for name, content in binary_files(DATA).items() if whole else ():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))

    return damage


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def raw_archive(*blocks: bytes) -> Damage:
    """An archive of blocks as they are."""

    def damage(root: Path) -> None:
        compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
        with (root / "a.tar.gz").open("wb") as file:
            for block in blocks:
                file.write(compressor.compress(block))
            file.write(compressor.flush())

    return damage


def block(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that says that it has so many bytes."""
    made = member(name, kind)
    made.size = size
    return made.tobuf(tarfile.GNU_FORMAT)


ZEROS = [bytes(2**20)] * 340


def python_archive(**changed: bytes) -> Damage:
    return lambda root: write_archive(root / "a.tar.gz", "cifar-10-batches-py", python_files(DATA) | changed)


def npm_archive(**changed: bytes) -> Damage:
    files = {name.replace("_png", ".png").replace("_json", ".json"): content for name, content in changed.items()}
    return lambda root: write_archive(root / "a.tar.gz", "package", npm_files(DATA) | files)


def png(width: int, height: int) -> bytes:
    """The beginning of a grey PNG picture of any size, and next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def python_labels(*labels: object) -> bytes:
    return pickle.dumps({**python_batch("data_batch_1", DATA.train_images[:40], DATA.train_labels[:40]), b"labels": list(labels) or None})  # fmt: skip


def vouched(damage: Damage) -> Damage:
    """The same, and params.yaml has the checksum of the damaged archive."""
    return both(damage, lambda root: change_params(root, download={"checksums": checksums(root / "a.tar.gz")}))


def relabeled(number: int) -> Damage:
    """Data with a label that is no class."""
    labels = DATA.train_labels.copy()
    labels[0] = number
    data = type(DATA)(DATA.train_images, labels, DATA.test_images, DATA.test_labels)
    return lambda root: write_binary_archive(root / "a.tar.gz", data)


def from_source(path: str, **others: object) -> Damage:
    return set_params(download={"source": path, **others})


def listening(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(root)  # an address is short
        made.bind("a.sock")
        os.chdir(before)


BATCH = f"{SOURCE}data_batch_1* cannot be decoded (*)"
# A checksum that does not match is noticed before anything is unpacked or parsed.
ARCHIVES: list[Row] = [
    ("archive missing", "download", remove("a.tar.gz"), f"{SOURCE}no such file or folder"),
    ("archive empty", "download", write("a.tar.gz", b""), WRONG),
    ("archive of text", "download", write("a.tar.gz", "<html>404</html>"), WRONG),
    *((f"archive truncated to {share:.0%}", "download", cut("a.tar.gz", share), WRONG) for share in (0.001, 0.5, 0.9999)),
    ("archive with a bit turned", "download", lambda root: (root / "a.tar.gz").write_bytes(bytes(byte ^ (4 if place == 300_000 else 0) for place, byte in enumerate((root / "a.tar.gz").read_bytes()))), WRONG),
    ("archive with other content", "download", lambda root: write_binary_archive(root / "a.tar.gz", make_set(200, 60, seed=1)), WRONG),
    ("archive with a batch of a gigabyte", "download", raw_archive(block(MEMBER, 2**30)), WRONG),
    ("archive with zeros of another name", "download", raw_archive(block("zeros", 340 * 2**20), *ZEROS), WRONG),
    ("archive with a long name of half a gigabyte", "download", raw_archive(block("././@LongLink", 340 * 2**20, tarfile.GNUTYPE_LONGNAME), *ZEROS), WRONG),
    ("a pickle that runs code", "download", python_archive(data_batch_1=pickle.dumps(Evil())), WRONG),
    ("a wrong checksum", "download", set_params(download={"checksums": {"a.tar.gz": "0123" * 8}}), f"{SOURCE}a.tar.gz has the MD5 *, expected {'0123' * 8}; download it again, *"),
    ("a checksum of another file", "download", both(from_source("b.tar.gz"), lambda root: (root / "a.tar.gz").rename(root / "b.tar.gz")), "download.source: b.tar.gz: no checksum for b.tar.gz (known: a.tar.gz); set download.checksums"),
    ("the official checksums", "download", set_params(download={"checksums": None}), f"{SOURCE}no checksum for a.tar.gz (known: cifar-10-python.tar.gz, *); set download.checksums"),
    ("a damaged checksum", "download", set_params(download={"checksums": {"a.tar.gz": "0123"}}), "params.yaml: download.checksums.a.tar.gz: must be an MD5 (32 digits of 0-9a-f) or a SHA-256 (64) (got '0123')"),
    ("checksums of no file", "download", set_params(download={"checksums": "a.md5"}), "params.yaml: download.checksums: must be a valid dictionary (got 'a.md5')"),
    ("checksums of a download", "download", set_params(download={"source": "auto"}), "params.yaml: download.checksums: must be null for source: auto and for dataset: folder (got *)"),
    ("source: a pipe", "download", both(from_source("a.fifo"), lambda root: os.mkfifo(root / "a.fifo")), "download.source: a.fifo: neither a file nor a folder"),
    ("source: a socket", "download", both(from_source("a.sock"), listening), "download.source: a.sock: neither a file nor a folder"),
    ("source: a device", "download", from_source("/dev/zero"), "download.source: /dev/zero: neither a file nor a folder"),
    ("source: nobody's", "download", from_source("~nobody-of-this-name/x"), "download.source: ~nobody-of-this-name/x: ~nobody-of-this-name: there is no such user"),
    ("source: a name too long", "download", from_source("x" * 300), "download.source: x*: File name too long"),
    ("source: a path too long", "download", from_source("x/" * 2040), "download.source: x/*"),
    ("source: a link to itself", "download", both(from_source("a.link"), lambda root: (root / "a.link").symlink_to("a.link")), "download.source: a.link: no such file or folder"),
    ("source: an empty folder", "download", both(from_source("a"), lambda root: (root / "a").mkdir()), "download.source: a: does not contain CIFAR-10 (expected a folder *)"),
    ("source: a folder with a pipe for a batch", "download", both(from_source("a"), lambda root: (root / "a").mkdir(), lambda root: os.mkfifo(root / "a/data_batch_1.bin")), "download.source: a: does not contain CIFAR-10 (expected a folder *)"),
]  # fmt: skip
# With a matching checksum, it is data of the user's own, which may still be damaged.
ARCHIVES += [(f"own data: {name}", "download", vouched(damage), line) for name, damage, line in [
    ("archive empty", write("a.tar.gz", b""), TORN),
    ("archive of text", write("a.tar.gz", "<html>404</html>"), TORN),
    *((f"archive truncated to {share:.0%}", cut("a.tar.gz", share), f"{SOURCE}*") for share in (0.001, 0.1, 0.5, 0.9, 0.99, 0.9999)),
    *((f"a {kind} in the place of a batch", archive((member(MEMBER, code, "/etc/passwd"), b"")), f"{SOURCE}*") for kind, code in {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}.items()),
    *((f"{name} alone", archive((member(name), b"x"), whole=False), f"{SOURCE}does not contain CIFAR-10 (expected a folder *)") for name in ("../../evil-was-here", "/tmp/evil-was-here", "cifar-10-batches-bin/../../evil-was-here", "./data_batch_1.bin")),
    ("names without end", raw_archive(*([block("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + b"long\0" + bytes(507)] * 5000)), f"{SOURCE}*"),
    ("a negative size", raw_archive(block(MEMBER, -1), *ZEROS[:1]), f"{SOURCE}*"),
    ("a very negative size", raw_archive(block("x", -(2**40)), *ZEROS[:1]), f"{SOURCE}*"),
    ("a batch that is missing", lambda root: write_archive(root / "a.tar.gz", "cifar-10-batches-bin", {name: content for name, content in binary_files(DATA).items() if name != "data_batch_3.bin"}), f"{SOURCE}cifar-10-batches-bin/data_batch_3.bin is missing"),
    ("a batch that is cut off", lambda root: write_archive(root / "a.tar.gz", "cifar-10-batches-bin", binary_files(DATA) | {"data_batch_1.bin": b"x" * 1000}), BATCH),
    ("a pickle that runs code", python_archive(data_batch_1=pickle.dumps(Evil())), f"{SOURCE}data_batch_1 cannot be decoded (refused: the pickle names builtins.exec)"),
    ("a pickle that runs code by its first protocol", python_archive(data_batch_1=b"cos\nsystem\n(S'touch evil-was-here'\ntR."), f"{SOURCE}data_batch_1 cannot be decoded (refused: the pickle names os.system)"),
    ("a pickle cut off", python_archive(data_batch_1=python_labels()[:1000]), BATCH),
    ("a pickle of nothing", python_archive(data_batch_1=b""), BATCH),
    ("a pickle of a number", python_archive(data_batch_1=pickle.dumps(1)), BATCH),
    ("a pickle that says it is long", python_archive(data_batch_1=b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"x."), BATCH),
    ("a pickle of an array of terabytes", python_archive(data_batch_1=pickle.dumps({b"labels": [1], b"data": np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 3072), (0, 0))}).replace(b"M\x00\x0c", b"J\xff\xff\xff\x7f")), BATCH),
    ("labels that are too few", python_archive(data_batch_1=python_labels(1, 2)), BATCH),
    ("labels of text", python_archive(data_batch_1=python_labels(*["cat"] * 40)), BATCH),
    ("labels below 0", python_archive(data_batch_1=python_labels(*[-1] * 40)), BATCH),
    ("labels that are no class", relabeled(10), f"{SOURCE}data_batch_1.bin cannot be decoded (labels 0 to 10, expected 0 to 9)"),
    ("labels far from any class", relabeled(255), f"{SOURCE}data_batch_1.bin cannot be decoded (labels 0 to 255, expected 0 to 9)"),
    ("a picture that says it is huge", npm_archive(data_batch_1_png=png(100_000, 100_000)), BATCH),
    ("a picture that says it is large", npm_archive(data_batch_1_png=png(12_000, 12_000)), BATCH),
    ("a picture that is a program for a printer", npm_archive(data_batch_1_png=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(evil-was-here) (w) file\n"), BATCH),
    ("labels that are no JSON", npm_archive(train_lables_json=b"[[["), BATCH),
    ("labels nested deeply", npm_archive(train_lables_json=b"[" * 100_000), BATCH),
    ("labels of numbers beyond integers", npm_archive(train_lables_json=b"[" + b"9" * 5000 + b"]"), BATCH),
]]  # fmt: skip

# A folder of images.


def photos(*damages: Damage, classes: int = 2, images: int = 6, source: str = "photos", **preprocess: Any) -> Damage:
    """Make a folder of images and have params.yaml name it, and then damage it."""

    def damage(root: Path) -> None:
        for number in range(classes * images):
            path = root / source / CLASSES[number % classes] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(DATA.train_images[number]).save(path)
        set_params(download={"dataset": "folder", "source": source, "checksums": None}, preprocess=preprocess)(root)
        for one in damages:
            one(root)

    return damage


def jpeg_cut_off(root: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(DATA.train_images[0]).resize((256, 256)).save(buffer, "JPEG")
    (root / "photos/airplane/x.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def raw_photos(*damages: Damage, **preprocess: Any) -> Damage:
    """The same as download leaves it in data/raw."""

    def damage(root: Path) -> None:
        shutil.rmtree(root / "data/raw")
        photos(*damages, source="data/raw/train", **preprocess)(root)

    return damage


PHOTOS = "download.source: photos: "


def emptied(path: str, keep: int) -> Damage:
    """Remove all files of a folder, below it too, but the first `keep`."""

    def damage(root: Path) -> None:
        for file in sorted(file for file in (root / path).rglob("*") if file.is_file())[keep:]:
            file.unlink()

    return damage


UNREADABLE = f"{PHOTOS}has images that cannot be read; repair or remove them:\nairplane/x.jpg: "
X = "photos/airplane/x.jpg"
FOLDERS: list[Row] = [
    ("folder missing", "download", photos(lambda root: shutil.rmtree(root / "photos")), f"{PHOTOS}no such folder (ROOT/photos)"),
    ("folder that is a file", "download", set_params(download={"dataset": "folder", "source": "params.yaml", "checksums": None}), "download.source: params.yaml: no such folder (ROOT/params.yaml)"),
    ("folder with zero classes", "download", photos(lambda root: shutil.rmtree(root / "photos"), lambda root: (root / "photos").mkdir()), f"{PHOTOS}has 0 class folders; expected a sub-folder for each of at least two classes"),
    ("folder with one class only", "download", photos(classes=1), f"{PHOTOS}has 1 class folders; expected a sub-folder for each of at least two classes"),
    ("folder with zero images", "download", photos(emptied("photos", 0)), f"{PHOTOS}has no images in airplane, automobile"),
    ("folder with a class without images", "download", photos(lambda root: (root / "photos/cat").mkdir()), f"{PHOTOS}has no images in cat"),
    ("folder with a file that is no image", "download", photos(write(X, "no image")), f"{UNREADABLE}not an image, or truncated at its beginning"),
    ("folder with an empty file", "download", photos(write(X, b"")), f"{UNREADABLE}not an image, or truncated at its beginning"),
    ("folder with a truncated JPEG", "download", photos(jpeg_cut_off), f"{UNREADABLE}*truncated*"),
    ("folder with a picture of 100,000 x 100,000", "download", photos(write(X, png(100_000, 100_000))), f"{UNREADABLE}*pixels*"),
    ("folder with a picture of 60,000 x 60,000", "download", photos(write(X, png(60_000, 60_000))), f"{UNREADABLE}*pixels*"),
    ("folder with a picture of no pixels", "download", photos(write(X, png(0, 0))), f"{UNREADABLE}*"),
    ("folder with a link", "download", photos(lambda root: (root / X).symlink_to("/etc/passwd")), f"{PHOTOS}airplane/x.jpg is a symbolic link, which is not followed; *"),
    ("folder with a pipe", "download", photos(lambda root: os.mkfifo(root / X)), f"{PHOTOS}airplane/x.jpg is a special file; remove it"),
    ("folder with a line break in a name", "download", photos(lambda root: (root / "photos/airplane/0.png").rename(root / "photos/airplane/a\nb.png")), f"{PHOTOS}airplane/a\\nb.png: the name has control characters or is not UTF-8; rename it"),
    ("raw folder of one image a class", "preprocess", raw_photos(images=1, val_fraction=0, test_fraction=0.5), "params.yaml: preprocess.test_fraction: takes 1 images, fewer than there are classes (2)"),
    ("raw folder with a class of one image", "preprocess", raw_photos(emptied("data/raw/train/airplane", 1), folds=2, test_fraction=0.3), "params.yaml: preprocess.folds: 2 parts of class 'airplane', which has 1 images; use fewer"),
    ("raw folder with a damaged image", "preprocess", raw_photos(cut("data/raw/train/airplane/0.png"), test_fraction=0.4, val_fraction=0.4), "ROOT/data/raw/train/airplane/0.png: *; `dvc repro -f download` restores it"),
    ("raw folder with one class only", "preprocess", raw_photos(lambda root: shutil.rmtree(root / "data/raw/train/airplane")), "ROOT/data/raw: has 1 class folders; expected a sub-folder for each of at least two classes; `dvc repro -f download` writes it again"),
    ("raw folder of many sizes", "preprocess", raw_photos(lambda root: Image.fromarray(DATA.train_images[0]).resize((40, 30)).save(root / "data/raw/train/airplane/0.png"), test_fraction=0.4, val_fraction=0.4), "params.yaml: preprocess.image_size: null, but there are images of * pixels; set it, for example to 64"),
]  # fmt: skip

# params.yaml.

PARAMS = "params.yaml"


def laughs(root: Path) -> None:
    lines = ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (root / PARAMS).write_text("\n".join(lines))


DOCUMENT = "params.yaml: "
YAML: list[tuple[str, Damage, str]] = [
    ("params.yaml missing", remove(PARAMS), "ROOT/params.yaml: not found; run `git checkout params.yaml` to restore it"),
    ("params.yaml empty", write(PARAMS, ""), f"{DOCUMENT}must be a mapping of sections"),
    ("params.yaml of blanks", write(PARAMS, " \n\n# nothing\n"), f"{DOCUMENT}must be a mapping of sections"),
    ("params.yaml binary", write(PARAMS, b"\x80\x81\xff" * 99), f"{DOCUMENT}not a text file (expected YAML in UTF-8)"),
    ("params.yaml of NUL", write(PARAMS, bytes(1000)), f"{DOCUMENT}not valid YAML (*)"),
    ("params.yaml in UTF-16", write(PARAMS, "seed: 0".encode("utf-16")), f"{DOCUMENT}not a text file (expected YAML in UTF-8)"),
    ("params.yaml a list", write(PARAMS, "- a\n"), f"{DOCUMENT}must be a mapping of sections"),
    ("params.yaml with a key twice", replace(PARAMS, "seed: 0", "seed: 0\nseed: 1"), f'{DOCUMENT}line 2: found duplicate key "seed"'),
    ("params.yaml with a key of a section twice", replace(PARAMS, "  epochs: 1", "  epochs: 1\n  'epochs': 2"), f'{DOCUMENT}line *: found duplicate key "epochs"'),
    ("params.yaml of 50 MB", lambda root: (root / PARAMS).open("a").write("# " + "x" * 50_000_000), f"{DOCUMENT}has 50,* bytes; at most 262,144 are allowed"),
    ("params.yaml nested deeply", write(PARAMS, "[" * 100_000), f"{DOCUMENT}line 1: nested too deeply"),
    ("params.yaml nested deeply in blocks", write(PARAMS, "- " * 50_000), f"{DOCUMENT}line 1: nested too deeply"),
    ("params.yaml of a billion laughs", laughs, f"{DOCUMENT}line 1: anchors and aliases (a0) are not supported; write the value itself"),
    ("params.yaml with a value that holds itself", write(PARAMS, "a: &a [*a]\n"), f"{DOCUMENT}line 1: anchors and aliases (a) are not supported; write the value itself"),
    ("params.yaml with code", write(PARAMS, "seed: !!python/object/apply:os.mkdir ['evil-was-here']\n"), f"{DOCUMENT}line 1: could not determine a constructor for the tag *"),
    ("params.yaml with an open bracket", replace(PARAMS, "  lr: ", "  lr: ["), f"{DOCUMENT}line *: *"),
    ("params.yaml with a tab", replace(PARAMS, "  lr: ", "\tlr: "), f"{DOCUMENT}line *: *"),
    ("params.yaml with a 13th month", replace(PARAMS, "seed: 0", "seed: 2024-13-45"), f"{DOCUMENT}not valid YAML (month must be in 1..12*)"),
    ("params.yaml of two documents", lambda root: (root / PARAMS).open("a").write("---\nseed: 1\n"), f"{DOCUMENT}line *: expected a single document in the stream, but found another document"),
    ("params.yaml with a number of thousands of digits", replace(PARAMS, "seed: 0", "seed: " + "9" * 5000), f"{DOCUMENT}not valid YAML (*)"),
    ("params.yaml with a number of thousands of bits", replace(PARAMS, "seed: 0", "seed: 0x" + "f" * 9000), f"{DOCUMENT}seed: must be less than 4294967296 (got a number of thousands of digits)"),
    ("params.yaml with a thousand keys", lambda root: (root / PARAMS).open("a").write("".join(f"key{n}: 1\n" for n in range(1000))), "\n".join([*[f"{DOCUMENT}key{n}: unknown key; known keys: *" for n in range(20)], f"{DOCUMENT}and 980 more errors"])),
    ("params.yaml with a key of two lines", replace(PARAMS, "seed: 0", 'seed: 0\n"a\\nb": 1'), f"{DOCUMENT}a\\nb: unknown key; known keys: *"),
    ("params.yaml with half a character", replace(PARAMS, "seed: 0", 'seed: "\\ud800"'), f"{DOCUMENT}seed: must be * (got '\\ud800')"),
    ("params.yaml with a key that is a list", replace(PARAMS, "seed: 0", "seed: 0\n? [a]\n: 1"), f"{DOCUMENT}(*): a key must be a string"),
    ("params.yaml with a key that is a number", replace(PARAMS, "seed: 0", "seed: 0\n1: 1"), f"{DOCUMENT}1: a key must be a string"),
    ("params.yaml without a section", lambda root: (root / PARAMS).write_text((root / PARAMS).read_text().partition("search:")[0]), f"{DOCUMENT}search: missing"),
    ("params.yaml with several mistakes", set_params(train={"lr": 0, "wat": 1}, evaluate={"tta": "many"}), f"{DOCUMENT}train.lr: must be greater than 0 (got 0)\n{DOCUMENT}train.wat: unknown key; known keys: *\n{DOCUMENT}evaluate.tta: must be 'none', 'flip' or 'shift' (got 'many')"),
    ("params.yaml a folder", folder_instead(PARAMS), f"{DOCUMENT}not a regular file; move it away and run `git checkout params.yaml`"),
    ("params.yaml a pipe", both(remove(PARAMS), lambda root: os.mkfifo(root / PARAMS)), f"{DOCUMENT}not a regular file; move it away and run `git checkout params.yaml`"),
    ("params.yaml a link to itself", both(remove(PARAMS), lambda root: (root / PARAMS).symlink_to(PARAMS)), "ROOT/params.yaml: Too many levels of symbolic links (set VISION_DEBUG=1 for the traceback)"),
    ("a source with NUL", set_params(download={"source": "a\0b"}), f"{DOCUMENT}download.source: must have no line breaks and no control characters (got 'a\\x00b')"),
    ("a source of two lines", set_params(download={"source": "a\nb"}), f"{DOCUMENT}download.source: must have no line breaks and no control characters (got 'a\\nb')"),
    ("a source of blanks", set_params(download={"source": "  "}), f"{DOCUMENT}download.source: must not be blank (got '  ')"),
    ("a source without end", set_params(download={"source": "x" * 10_000}), f"{DOCUMENT}download.source: must have at most 4096 characters (got 'x*…)"),
    ("a title without end", set_params(report={"title": "x" * 100_000}), f"{DOCUMENT}report.title: must have at most 1000 characters (got 'x*…)"),
    ("a title with NUL", set_params(report={"title": "a\0"}), f"{DOCUMENT}report.title: must have no line breaks and no control characters (got 'a\\x00')"),
    ("an experiment of blanks", set_params(tracking={"experiment": " "}), f"{DOCUMENT}tracking.experiment: must not be blank (got ' ')"),
    ("an experiment of two lines", set_params(tracking={"experiment": "a\nb"}), f"{DOCUMENT}tracking.experiment: must have no line breaks and no control characters (got 'a\\nb')"),
]  # fmt: skip
PARAMETERS: list[Row] = [(name, "download", damage, line) for name, damage, line in YAML]
PARAMETERS += [(f"{stage}: params.yaml empty", stage, write(PARAMS, ""), f"{DOCUMENT}must be a mapping of sections") for stage in ("preprocess", "train", "evaluate", "report")]  # fmt: skip
PARAMETERS += [
    ("classes that are not there", "preprocess", set_params(preprocess={"classes": ["cat", "emu"]}), f"{DOCUMENT}preprocess.classes: the data has no class 'emu'; it has airplane, *"),
    ("more folds than images", "preprocess", set_params(preprocess={"folds": 1000}), f"{DOCUMENT}preprocess.folds: 1000 parts of class 'airplane', which has 20 images; use fewer"),
    ("a fraction of no image", "preprocess", set_params(preprocess={"val_fraction": 1e-300}), f"{DOCUMENT}preprocess.val_fraction: takes 0 images, fewer than there are classes (10)"),
    ("a limit of one image", "preprocess", set_params(preprocess={"train_limit": 1}), f"{DOCUMENT}preprocess.train_limit: takes 1 images, fewer than there are classes (10)"),
    ("groups that are not there", "preprocess", set_params(preprocess={"groups": "no.csv"}), f"{DOCUMENT}preprocess.groups: ROOT/no.csv: No such file or directory; `python tools/audit.py` writes audit/duplicates.csv"),
    ("groups of an image that is not there", "preprocess", both(set_params(preprocess={"groups": "a.csv"}), write("a.csv", "image,group\n5000,1\n")), f"{DOCUMENT}preprocess.groups: ROOT/a.csv: line 2: data/raw has no training image 5000; audit this data again"),
    ("groups without a column", "preprocess", both(set_params(preprocess={"groups": "a.csv"}), write("a.csv", "image\n5\n")), f"{DOCUMENT}preprocess.groups: ROOT/a.csv: line 2: has no image or no group; expected the columns image, group"),
    ("groups in a picture", "preprocess", both(set_params(preprocess={"groups": "a.csv"}), write("a.csv", b"\xff\xd8" * 99)), f"{DOCUMENT}preprocess.groups: ROOT/a.csv: not a table (*); expected a CSV file with the columns image, group"),
    ("names of validation images that are not there", "evaluate", remove("data/processed/val_names.txt"), "ROOT/data/processed/val_names.txt: not found; `dvc repro` makes it"),
    ("a name less than test images", "evaluate", write("data/processed/test_names.txt", "0\n"), f"ROOT/data/processed/test_names.txt: does not have one name for each of * images{AGAIN}"),
    ("a network of billions", "train", set_params(model={"convnet": {"widths": [4096] * 4, "depth": 16}}), f"{DOCUMENT}model.convnet: 9,*,* parameters are more than 1,000,000,000; use fewer"),
    ("linear layers of billions", "train", set_params(model={"name": "plain_cnn", "plain_cnn": {"widths": [4096] * 3, "depth": 16, "kernel": 15, "padding": "same", "batch_norm": False, "hidden": [100_000] * 8, "dropout": 0.5}}), f"{DOCUMENT}model.plain_cnn: *,*,* parameters are more than 1,000,000,000; use fewer"),
    ("a network that leaves nothing", "train", set_params(model={"name": "plain_cnn", "plain_cnn": {"widths": [8] * 8, "depth": 1, "kernel": 3, "padding": "same", "batch_norm": False, "hidden": [], "dropout": 0.5}}), f"{DOCUMENT}model.plain_cnn.widths: an image of 32x32 pixels is too small for 8 blocks; use fewer*"),
    ("no such network", "train", set_params(model={"name": "resnet999"}), f"{DOCUMENT}model.name: 'resnet999' is neither a network of this project nor one of torchvision's"),
    ("patience without validation images", "train", both(set_params(train={"patience": 1, "keep": "val_loss"}), array("data/processed/val_labels.npy", lambda values: values[:0]), array("data/processed/val_images.npy", lambda values: values[:0])), f"{DOCUMENT}train.patience: needs validation images, but there are none; *"),
    ("a device that is not there", "train", set_params(train={"device": "mps"}), f"{DOCUMENT}train.device: mps is not available here (available: *)"),
    ("a precision that is not there", "evaluate", set_params(train={"device": "cpu", "precision": "fp16"}), f"{DOCUMENT}train.precision: fp16 needs a CUDA device, but the device is cpu; use auto, bf16 or fp32"),
]  # fmt: skip

ROWS = [*JSON, *TABLES, *ARRAYS, *MODELS, *ARCHIVES, *FOLDERS, *PARAMETERS]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with small_checkout(tmp_path_factory.mktemp("bad"), DATA) as made:
        yield made


@pytest.fixture(scope="module")
def snapshot(stages: Stages) -> Snapshot:
    return Snapshot(stages.checkout)


def pattern(stage: str, lines: str, root: Path) -> str:
    expected = "".join(f"{stage}: {line}\n" for line in lines.replace("ROOT", str(root)).splitlines())
    return re.escape(expected).replace(r"\*", "[^\n]*")


@pytest.mark.sample(40)
@pytest.mark.parametrize(("stage", "damage", "line"), [pytest.param(*row, id=name) for name, *row in ROWS])
def test_bad_input_is_one_line_and_changes_nothing(
    stage: str, damage: Damage, line: str, stages: Stages, snapshot: Snapshot
) -> None:
    root = stages.checkout
    try:
        damage(root)
        before = tree(root)
        result = stages.run(stage)
        after = tree(root)
    finally:
        snapshot.restore()
    if not re.fullmatch(pattern(stage, line, root), result.errors):
        pytest.fail(f"expected {line}\ngot {result.errors}")
    assert result.status == 1
    assert after == before
