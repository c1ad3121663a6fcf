"""The whole pipeline on other data than CIFAR-10; only parameters change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import chromium, open_report
from official_formats import CIFAR100_CLASSES, checksums, make_set, write_cifar100_archive
from project import Project, clone

pytestmark = pytest.mark.slow

ODD = [
    "<script>alert(1)<script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "-rf",
    "actual",
    "a, b & 'c' \"d\"",
    "[x](javascript:alert(1)) `b` *c*",
    "Ünï 雪 🐈 \u202e",  # what follows would be written from right to left
    "$x_1$ {{ y }}",
]
FILES = [
    "0.png",
    '"><svg onload=alert(1)>.png',
    "' onerror='alert(1).jpg",
    "\u202egnp.jpg",
    "-o.png",
    "{{ 7 * 7 }}.jpg",
]


WATCH = """
import sys
def hook(event, arguments):
    if event == "socket.bind":
        with open({file!r}, "a") as file:
            print(arguments[1][0], file=file)
sys.addaudithook(hook)
with open({file!r}, "a") as file:
    print("watched", file=file)
"""
"""Runs at the start of each Python process; records the addresses that it binds sockets to."""


def run(project: Project, **parameters: str) -> None:
    options = [word for name, value in parameters.items() for word in ("-S", f"{name.replace('__', '.')}={value}")]
    project.run("dvc", "exp", "run", "-S", "train.epochs=2", *options)


def test_a_folder_whose_classes_have_odd_names(tmp_path: Path) -> None:
    project = replace(clone(tmp_path), variables={"PYTHONPATH": str(tmp_path / "watch")})
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH.format(file=str(tmp_path / "bound")))
    colors = np.random.default_rng(1).integers(0, 256, (len(ODD), 3))
    for label, name in enumerate(ODD):
        for number in range(25):
            path = tmp_path / f"photos/{name}/{FILES[number] if number < len(FILES) else f'{number}.jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).normal(0, 30, (40 + number, 60, 3))
            Image.fromarray((colors[label] + noise).clip(0, 255).astype(np.uint8)).save(path)
    run(
        project,
        download__dataset="folder",
        download__source="../photos",
        download__checksums="null",
        preprocess__image_size="24",
        train__batch_size="10",
    )
    assert project.json("data/processed/stats.json")["image_shape"] == [24, 24, 3]
    dataset = project.json("metrics/dataset.json")
    assert dataset["by_class"] == {name: {"train": 18, "val": 2, "test": 5} for name in sorted(ODD)}
    assert project.json("metrics/test.json")["accuracy"] > 0.5, "the classes are easy to tell apart"
    predictions = project.table("data/predictions/test.csv")
    assert {row["actual"] for row in predictions} == set(ODD)
    for row in predictions:
        assert (project.root / "data/raw" / row["image"]).is_file()
        assert Path(row["image"]).parts[1] == row["actual"]
    with chromium() as browser:
        window, complaints = open_report(browser, project.root)
        for table in (".confusion tbody th", "#classes .rows tbody th", "#data .rows tbody th"):
            assert window.eval_on_selector_all(table, "all => all.map(one => one.textContent)") == sorted(ODD)
        assert window.locator("script, svg, img:not([src^='data:']), a[href^='javascript:']").count() == 0
        assert complaints == []
    assert "Data and pipelines are up to date." in project.run("dvc", "status")
    bound = (tmp_path / "bound").read_text().splitlines()
    assert bound.count("watched") > 5, "DVC and each stage"
    assert set(bound) <= {"watched", "127.0.0.1", "::1"}, "nothing can be reached from outside"

    # DVC keeps the images themselves, and the folder is read again when it is asked to.
    assert len(list(project.root.glob("data/raw/train/*/*"))) == 25 * len(ODD)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "photos/actual/another.png")
    project.run("dvc", "repro", "--force", "--single-item", "download")
    assert "data/raw" in project.run("dvc", "status")


def test_cifar_100(tmp_path: Path) -> None:
    project = clone(tmp_path)
    archive = tmp_path / "cifar-100-python.tar.gz"
    write_cifar100_archive(archive, make_set(n_train=1000, n_test=200, classes=100))
    project.set(download={"checksums": checksums(archive)})
    run(project, download__dataset="cifar100", download__source=str(archive))
    assert project.json("models/model.json")["classes"] == list(CIFAR100_CLASSES)
    test = project.json("metrics/test.json")
    assert test["top5_accuracy"] > 0.1, "twice what guessing reaches"
    assert len(project.table("metrics/confusion_matrix.csv")) == 100
    page = (project.root / "report/index.html").read_text()
    assert f"{test['accuracy']:.2%}" in page
    assert all(f'<th scope="row">{name}</th>' in page for name in CIFAR100_CLASSES)
