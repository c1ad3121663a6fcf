"""tools/audit.py in a clone whose data has near-duplicates and changed labels on purpose."""

import re

import numpy as np
import pytest
from mlflow import MlflowClient

import official_formats
from project import Project, clone

pytestmark = pytest.mark.slow

COPIES = range(20)
"""Test images that are mirror images of the training images with the same number."""
CHANGED = range(100, 130)
"""Training images with a changed label."""
HINT = "audit: label errors are not searched: no experiments have all folds; run `dvc exp run --queue"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which `dvc repro` has run once. Tests continue from each other's state, in order."""
    folder = tmp_path_factory.mktemp("audit")
    project = clone(folder)
    data = official_formats.make_set(n_train=1000, n_test=200)
    data.test_images[COPIES] = data.train_images[COPIES][:, :, ::-1]
    data.test_labels[COPIES] = data.train_labels[COPIES]
    data.train_labels[CHANGED] = (data.train_labels[CHANGED] + 1) % 10
    archive = folder / "changed.tar.gz"
    official_formats.write_binary_archive(archive, data)
    project.set(download={"source": str(archive), "checksums": official_formats.checksums(archive)})
    project.commit("data with errors")
    project.run("dvc", "repro")
    project.commit("a run")
    return project


def test_without_folds_all_but_label_errors_is_audited(project: Project) -> None:
    output = project.run("python", "tools/audit.py")
    assert HINT in output
    trained = (project.root / "data/processed/train_names.txt").read_text().split()
    repeated = [number for number in COPIES if str(number) in trained]  # the others are in the validation split
    assert f"{len(repeated)} of 200 test images have one in the training split" in output
    metrics = project.json("audit/metrics.json")
    assert metrics["near_duplicates"] == 40
    assert metrics["test_images_without_duplicates"] == 200 - len(repeated)
    assert "label_errors" not in metrics
    found = {(row["split"], row["image"]) for row in project.table("audit/duplicates.csv")}
    assert {("test", str(number)) for number in COPIES} <= found
    tested = project.table("data/predictions/test.csv")
    correct = [row["actual"] == row["predicted"] for row in tested]
    assert metrics["accuracy"] == pytest.approx(np.mean(correct))
    assert metrics["accuracy_without_duplicates"] == pytest.approx(np.mean(np.delete(correct, repeated)))
    assert not (project.root / "audit/label_errors.csv").exists()
    assert not project.run("git", "status", "--short"), "audit/ is not in Git"


def test_the_numbers_and_the_page_are_in_the_models_run(project: Project) -> None:
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    run = client.get_run(project.json("metrics/run.json")["mlflow"]["run_id"])
    assert run.data.metrics["audit_near_duplicates"] == 40
    assert {file.path for file in client.list_artifacts(run.info.run_id, "audit")} == {
        "audit/index.html",
        "audit/metrics.json",
    }


def test_validation_images_have_predictions_too(project: Project) -> None:
    rows = project.table("data/predictions/val.csv")
    assert len(rows) == 100
    raw = np.load(project.root / "data/raw/train_labels.npy")
    assert [row["actual"] for row in rows] == [official_formats.CLASSES[raw[int(row["image"])]] for row in rows]
    right = np.mean([row["actual"] == row["predicted"] for row in rows])
    assert right == pytest.approx(project.json("metrics/train.json")["val_accuracy"], abs=0.05)


def test_near_duplicates_stay_together_if_the_split_knows_them(project: Project) -> None:
    table = project.root / "groups.csv"
    table.write_text("image,group\n" + "".join(f"{number},{number // 5}\n" for number in range(1000)))
    project.set(preprocess={"groups": "groups.csv"})
    project.run("dvc", "repro", "preprocess")
    names = (project.root / "data/processed/val_names.txt").read_text().split()
    assert len(names) == 100
    assert len({int(name) // 5 for name in names}) == 20
    project.run("git", "restore", "params.yaml", "dvc.lock", "metrics")
    project.run("dvc", "checkout")


def test_folds_find_the_changed_labels(project: Project) -> None:
    folds = ["-S", "preprocess.folds=3", "-S", "preprocess.fold=range(3)"]
    project.run("dvc", "exp", "run", "--queue", *folds)
    project.run("dvc", "exp", "run", "--run-all")
    output = project.run("python", "tools/audit.py")
    assert re.search(r"^audit: label errors by the folds \S+, \S+, \S+$", output, re.MULTILINE)
    rows = project.table("audit/label_errors.csv")
    metrics = project.json("audit/metrics.json")
    assert (metrics["labels_checked"], metrics["label_errors"]) == (1000, len(rows))
    first = {int(row["image"]) for row in rows[: len(CHANGED)]}
    assert len(first & set(CHANGED)) > 20
    assert all(row["given"] != row["predicted"] for row in rows)


def test_predictions_that_dvc_does_not_have_are_named(project: Project) -> None:
    cache = project.root / ".dvc/cache"
    cache.rename(cache.with_name("elsewhere"))
    *_, line = project.run("python", "tools/audit.py", status=1).splitlines()
    cache.with_name("elsewhere").rename(cache)
    assert re.fullmatch(r"audit: \S+: data/predictions/val.csv is not in DVC's cache; get it by `dvc pull`, .*", line)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("models/model.pt", "models/model.pt: not found; `dvc repro` makes it"),
        ("data/processed/train_names.txt", "data/processed/train_names.txt: not found; `dvc repro` makes it"),
        ("data/predictions/test.csv", "data/predictions/test.csv: not found; `dvc repro` makes it"),
        ("metrics/run.json", "metrics/run.json: not found; `dvc repro` makes it"),
    ],
)
def test_a_missing_file_is_one_line(project: Project, path: str, says: str) -> None:
    before = (project.root / "audit/index.html").read_bytes()
    (project.root / path).rename(project.root / "moved")
    output = project.run("python", "tools/audit.py", status=1)
    (project.root / "moved").rename(project.root / path)
    assert output.splitlines() == [f"audit: {project.root}/{says}"]
    assert (project.root / "audit/index.html").read_bytes() == before
