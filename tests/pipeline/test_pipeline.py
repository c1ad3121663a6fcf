"""The pipeline as its users run it: real DVC, real MLflow, real files, on a small data set in the official format.

The tests share one clone and go on from each other's results, in the order of this file.
"""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

import recomputed
from project import REPOSITORY, Project


def runs(project: Project) -> list[Run]:
    """All MLflow runs of the project's own store, the newest first."""
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cifar10")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_every_output_is_there_and_says_the_same(project: Project) -> None:
    dataset = project.json("metrics/dataset.json")
    assert (dataset["train"], dataset["val"], dataset["test"]) == (900, 100, 200)
    test = project.json("metrics/test.json")
    assert test["accuracy"] > 0.9, "the classes are easy to tell apart"

    predictions = project.table("data/predictions/test.csv")
    assert len(predictions) == 200
    right = np.mean([row["actual"] == row["predicted"] for row in predictions])
    assert test["accuracy"] == pytest.approx(right)
    for row in predictions[:20]:
        probabilities = {name[2:]: float(value) for name, value in row.items() if name.startswith("p_")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(probabilities, key=probabilities.__getitem__) == row["predicted"]

    matrix = project.table("metrics/confusion_matrix.csv")
    assert sum(int(row[row["actual"]]) for row in matrix) == round(right * 200)
    assert [sum(int(n) for name, n in row.items() if name != "actual") for row in matrix] == [20] * 10
    history = project.table("metrics/history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    train = project.json("metrics/train.json")
    assert train["val_accuracy"] == pytest.approx(float(history[train["best_epoch"] - 1]["val_accuracy"]))
    page = (project.root / "report/index.html").read_text()
    assert f"{test['accuracy']:.2%}" in page


def test_every_figure_is_what_other_code_computes_anew(project: Project) -> None:
    found, expected = recomputed.reported(project.root), recomputed.expected(project.root)
    assert len(found) > 200
    assert recomputed.differences(found, expected) == []
    for name, figure in found.items():
        if name.rpartition(" ")[2] not in recomputed.MEASURED:
            assert recomputed.differences({**found, name: -1 - figure}, expected) == [name]
    assert recomputed.differences({**found, "test.json: new": 1.0}, expected) == ["test.json: new: not expected"]
    stats = project.json("data/processed/stats.json")
    pixels = np.load(project.root / "data/processed/train_images.npy") / 255
    assert stats["mean"] == pytest.approx(pixels.mean((0, 1, 2)))
    assert stats["std"] == pytest.approx(pixels.std((0, 1, 2)))


def test_the_mlflow_run_holds_what_the_stages_found(project: Project) -> None:
    (run,) = runs(project)
    assert run.info.run_id == project.json("metrics/run.json")["mlflow"]["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == pytest.approx(project.json("metrics/test.json")["accuracy"])
    assert run.data.metrics["val/accuracy"] == pytest.approx(
        float(project.table("metrics/history.csv")[-1]["val_accuracy"])
    )
    assert run.data.params["train.epochs"] == "3"
    for stage in ("train", "evaluate", "report"):
        assert 100 < run.data.metrics[f"{stage}_peak_memory_mib"] < 4000
    assert run.data.tags["dvc.data"] == project.lock()["preprocess"]["outs"][0]["md5"]
    assert run.inputs is not None
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "data/processed"
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
    artifacts = {
        file.path for folder in ("figures", "report") for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"figures/confusion_matrix.png", "figures/samples.png", "report/index.html"} <= artifacts
    assert run.data.tags["ended"] == "finished"
    fused_blocks = project.json("metrics/run.json")["environment"]["fused_blocks"]
    assert run.data.tags["fused_blocks"] == json.dumps(fused_blocks)
    accuracy = project.json("metrics/test.json")["accuracy"]
    assert run.data.tags["mlflow.note.content"].startswith(f"- **{accuracy:.2%}** test accuracy")
    page = project.json("metrics/run.json")["mlflow"]["page"]
    assert f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?" in page
    assert page in (project.root / "report/index.html").read_text()
    champion = client.get_model_version_by_alias("cifar10", "champion")
    assert champion.run_id == run.info.run_id
    assert float(champion.tags["val_accuracy"]) == project.json("metrics/train.json")["val_accuracy"]


@pytest.mark.slow
def test_the_logged_model_predicts_the_same_without_this_repository(project: Project) -> None:
    (run,) = runs(project)
    script = """
import io, sys, numpy as np, mlflow, pandas as pd
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
files = [io.BytesIO() for number in range(7)]
for file, pixels in zip(files, np.load(sys.argv[3])):
    Image.fromarray(pixels).save(file, "PNG")
table = model.predict(pd.DataFrame({"image": [file.getvalue() for file in files]}))
print(table.drop(columns="error").to_csv(index=False))
"""
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    images = project.root / "data/processed/test_images.npy"
    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    printed = project.run("python", "-I", "-c", script, uri, f"models:/{output.model_id}", str(images))
    rows = list(csv.DictReader(printed[printed.index("class,probability") :].splitlines()))
    classes = project.json("models/model.json")["classes"]
    assert [list(row) for row in rows] == [["class", "probability", "unknown", *(f"p_{name}" for name in classes)]] * 7
    assert all(float(row["probability"]) == float(row[f"p_{row['class']}"]) for row in rows)
    assert [sum(float(row[f"p_{name}"]) for name in classes) for row in rows] == pytest.approx([1] * 7, abs=1e-5)
    actual = [classes[label] for label in np.load(project.root / "data/processed/test_labels.npy")[:7]]
    assert sum(row["class"] == name for row, name in zip(rows, actual, strict=True)) >= 5


def test_the_champion_classifies_image_files(project: Project) -> None:
    """tools/predict.py with the model that MLflow holds."""
    data = project.root / "data/processed"
    photos = project.root.parent / "photos"
    photos.mkdir()
    for number, pixels in enumerate(np.load(data / "test_images.npy")[:12]):
        Image.fromarray(pixels).save(photos / f"{number:02}.png")
    table = project.root.parent / "photos.csv"
    model = "models:/cifar10@champion"
    output = project.run("python", "tools/predict.py", str(photos), "--model", model, "--output", str(table))
    assert ["… and 2 more", f"wrote {table}"] == output.splitlines()[-3:-1]
    rows = project.table(str(table))
    assert [row["image"] for row in rows] == [str(photos / f"{number:02}.png") for number in range(12)]
    classes = project.json("models/model.json")["classes"]
    actual = [classes[label] for label in np.load(data / "test_labels.npy")[:12]]
    assert sum(row["class"] == name for row, name in zip(rows, actual, strict=True)) >= 10
    for row in rows:
        probabilities = {name: float(row[f"p_{name}"]) for name in classes}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert (row["class"], float(row["probability"])) == max(probabilities.items(), key=lambda pair: pair[1])


def test_the_model_is_exported(project: Project) -> None:
    """tools/export.py, which writes a file only if it computes what the model does."""
    path = project.root.parent / "model.pt2"
    output = project.run("python", "tools/export.py", "--format", "pt2", "--output", str(path))
    line, done = output.splitlines()
    assert line.startswith(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB; probabilities of 1,008 images differ by at most "
    )
    assert line.endswith(", no change of class")
    assert done.startswith("export: done in ")


def test_a_second_repro_does_nothing(project: Project) -> None:
    before = project.lock()
    output = project.run("dvc", "repro")
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output
    assert project.lock() == before
    assert len(runs(project)) == 1
    assert project.run("git", "status", "--porcelain") == ""


def outdated(project: Project) -> set[str]:
    """The stages whose dependencies have changed, by `dvc status`."""
    return set(json.loads(project.run("dvc", "status", "--json").splitlines()[-1]))


def outdated_after_changes_in(project: Project, *folders: str) -> set[str]:
    """The stages whose dependencies have changed when all code in these folders has."""
    contents = {path: path.read_bytes() for folder in folders for path in (project.root / folder).rglob("*.py")}
    assert contents
    for path, content in contents.items():
        path.write_bytes(content + b"# changed\n")
    found = outdated(project)
    for path, content in contents.items():
        path.write_bytes(content)
    return found


def test_only_code_that_makes_outputs_is_a_dependency(project: Project) -> None:
    cache = project.root / "stages/vision/core/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "other.cpython-399.pyc").write_bytes(b"bytecode")
    no_outputs = [f"stages/vision/{package}" for package in ("pipeline", "tracking", "search")]
    assert outdated_after_changes_in(project, "tools", *no_outputs) == set()
    assert outdated_after_changes_in(project, "stages/vision/report") == {"report"}
    assert outdated_after_changes_in(project, "stages/vision/core") == {"train", "evaluate"}
    assert outdated(project) == set()


def test_corrupted_images_are_scored_if_they_are_on(project: Project) -> None:
    assert project.table("metrics/corruptions.csv") == []
    assert "corrupted_accuracy" not in project.json("metrics/test.json")
    assert "Corrupted images" not in (project.root / "report/index.html").read_text()
    project.set(evaluate={"corruptions": True})
    output = project.run("dvc", "repro")
    assert running(output) == ["evaluate", "report"]
    rows = project.table("metrics/corruptions.csv")
    assert len(rows) == 75
    mean = project.json("metrics/test.json")["corrupted_accuracy"]
    assert 0.3 < mean < project.json("metrics/test.json")["accuracy_one_view"]
    assert recomputed.differences(recomputed.reported(project.root), recomputed.expected(project.root)) == []
    assert f"The mean accuracy is {mean:.2%}" in (project.root / "report/index.html").read_text()
    (run,) = runs(project)
    assert run.data.metrics["test_corrupted_accuracy"] == mean
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    assert "metrics/corruptions.csv" in {file.path for file in client.list_artifacts(run.info.run_id, "metrics")}
    project.run("git", "checkout", "--quiet", "params.yaml")
    project.run("dvc", "repro")


@pytest.mark.slow
def test_an_experiment_retrains_evaluates_and_reports_and_nothing_else(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "--name", "slow", "-S", "train.lr=0.01")
    assert running(output) == ["train", "evaluate", "report"]
    newest, first = runs(project)
    assert newest.info.run_name == "slow"
    assert newest.data.tags["dvc.experiment"] == "slow"
    assert newest.data.params["train.lr"] == "0.01"
    assert newest.data.params["train.lr"] != first.data.params["train.lr"]
    # It has not learned much, so that its figures are not all 0 or 1.
    assert 0.2 < project.json("metrics/test.json")["accuracy"] < 0.9
    assert recomputed.differences(recomputed.reported(project.root), recomputed.expected(project.root)) == []
    shown = project.run("dvc", "exp", "show", "--no-pager", "--csv")
    assert "slow" in shown
    assert "accuracy" in shown.splitlines()[0]
    assert "test.json" in project.run("dvc", "metrics", "diff")


@pytest.mark.slow
def test_a_change_of_the_report_only_reports(project: Project) -> None:
    before = len(runs(project))
    output = project.run("dvc", "exp", "run", "--name", "titled", "-S", "report.title=A new title")
    assert running(output) == ["report"]
    assert "A new title" in (project.root / "report/index.html").read_text()
    assert len(runs(project)) == before


def test_a_killed_training_resumes_and_makes_the_same_outputs(project: Project) -> None:
    made = project.output_hashes("train", "evaluate")
    recorded = len(runs(project))
    project.set(train={"checkpoint_seconds": 0.01})  # another training for DVC, with the same outputs
    process = project.start("dvc", "repro", "train")
    assert process.stdout is not None
    assert any("epoch   2:" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project.root / "models/model.pt").exists()
    project.run("dvc", "repro", "evaluate")
    assert project.output_hashes("train", "evaluate") == made
    newest, *_ = after = runs(project)
    assert len(after) == recorded + 1, "a training that began anew would be a run of its own"
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    history = client.get_metric_history(newest.info.run_id, "train/loss")
    assert [entry.step for entry in history] == [1, 2, 3]
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_an_experiment_in_a_temporary_copy_is_recorded_in_the_main_checkout(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "--temp", "--name", "elsewhere", "-S", "train.epochs=1")
    assert running(output) == ["train", "evaluate", "report"]
    newest = runs(project)[0]
    assert newest.info.run_name == "elsewhere"
    assert newest.info.status == "FINISHED"
    assert "test_accuracy" in newest.data.metrics
    assert newest.info.artifact_uri is not None
    assert (project.root / "mlruns") in Path(newest.info.artifact_uri.removeprefix("file://")).parents


@pytest.mark.slow
def test_plots_and_metrics_are_drawn_by_dvc(project: Project) -> None:
    project.run("dvc", "plots", "show")
    page = (project.root / "dvc_plots/index.html").read_text()
    for title in ("Loss by epoch", "Accuracy by epoch", "actual and predicted class", "F1 by class", "Calibration"):
        assert title in page
    shown = project.run("dvc", "metrics", "show")
    for figure in ("accuracy", "cross_entropy", "calibration_error", "val_accuracy"):
        assert figure in shown


@pytest.mark.slow
def test_a_mistake_in_params_stops_before_anything_is_done(project: Project) -> None:
    project.set(train={"lr": -1, "epoch": 3})
    output = project.run("dvc", "repro", status=255)
    assert "params.yaml: train.lr: must be greater than 0 (got -1)" in output
    assert "params.yaml: train.epoch: unknown key; did you mean train.epochs?" in output
    assert "Traceback" not in output
    project.run("git", "checkout", "--quiet", "params.yaml")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_training_that_diverges_says_so_and_fails_its_run(project: Project) -> None:
    command = ["-S", "train.optimizer.name=sgd", "-S", "train.lr=1e30"]
    output = project.run("dvc", "exp", "run", *command, status=255)
    assert "train: diverged: training loss is not finite in epoch 1" in output
    assert "lower train.lr" in output
    assert "Traceback" not in output
    newest, *_ = runs(project)
    assert newest.info.status == "FAILED"
    assert newest.data.tags["ended"].startswith("diverged: training loss is not finite in epoch 1")
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


def recipes() -> list[Any]:
    """All recipes. Those that differ from another one only in numbers belong to the soak."""
    similar = {"conv16_32", "robust", "speedrun96", "three_conv", "tutorial_improved", "two_conv"}
    names = sorted(path.name for path in (REPOSITORY / "recipes").iterdir())
    return [pytest.param(name, marks=pytest.mark.soak if name in similar else ()) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_runs_and_what_stands_behind_it_wins(project: Project, recipe: str) -> None:
    words = (project.root / "recipes" / recipe).read_text().split()
    # An average of a thousand steps would be of the first weights here.
    small = ["-S", "model.convnet.widths=[8,16]", "-S", "train.epochs=3", "-S", "train.ema_decay=null"]
    if {"train.batch_size=500", "train.batch_size=1536"} & set(words):
        small += ["-S", "train.batch_size=50"]
    output = project.run("dvc", "exp", "run", "-n", recipe, *words, *small)
    assert "WARNING" not in output
    model = project.json("models/model.json")
    given = yaml.safe_load((project.root / "params.yaml").read_text())["model"]
    assert (model["name"], model["options"]) == (given["name"], given[model["name"]])
    assert project.json("metrics/train.json")["epochs"] == 3
    newest, *_ = runs(project)
    assert newest.info.run_name == recipe
    assert newest.info.status == "FINISHED"
    assert newest.data.metrics["test_accuracy"] > 0.25, "chance is 0.1"
    assert 0 < newest.data.metrics["train/share_of_peak"] < 2
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_recipe_after_another_trains_its_own_network(project: Project) -> None:
    """`dvc exp run -S` leaves the first recipe's values in params.yaml."""
    for recipe in ("tutorial", "two_conv"):
        words = (project.root / "recipes" / recipe).read_text().split()
        project.run("dvc", "exp", "run", "-n", f"{recipe}-in-turn", *words, "-S", "train.epochs=1")
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    assert (params["train"]["precision"], params["train"]["lr"]) == ("auto", 0.001)
    options = project.json("models/model.json")["options"]
    assert options == params["model"]["plain_cnn"]
    assert (options["kernel"], options["padding"]) == (3, "same")
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_model_of_some_classes_is_where_one_of_others_begins(project: Project) -> None:
    def train(name: str, *settings: str) -> dict[str, torch.Tensor]:
        words = [word for setting in settings for word in ("-S", setting)]
        project.run("dvc", "exp", "run", "-n", name, *words)
        return torch.load(project.root / "models/model.pt", weights_only=True)

    first = train("first", "preprocess.classes=[airplane,automobile,bird,cat,deer]")
    weights = project.root.parent / "first.pt"
    shutil.copy(project.root / "models/model.pt", weights)
    others = "preprocess.classes=[dog,frog,horse]"
    second = train("second", others, f"model.weights={weights}", "model.freeze_epochs=3", "train.epochs=3")
    assert project.json("models/model.json")["classes"] == ["dog", "frog", "horse"]
    assert second["network.last.weight"].shape == (3, 16)
    body = {name for name in first if name.startswith(("network.first", "network.blocks"))}
    assert all(torch.equal(first[name], second[name]) for name in body), "the last layer alone was trained"
    newest, *_ = runs(project)
    assert newest.data.params["model.weights"] == str(weights)
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_network_of_torchvision_trains_on_enlarged_images_and_is_logged(project: Project) -> None:
    words = [
        "model.name=shufflenet_v2_x0_5",
        "model.torchvision.stem=standard",
        "model.image_size=64",
        "train.epochs=1",
    ]
    project.run("dvc", "exp", "run", "-n", "shuffle", *(word for setting in words for word in ("-S", setting)))
    newest, *_ = runs(project)
    assert newest.info.status == "FINISHED"
    assert newest.outputs is not None
    assert "model.plain_cnn.widths" not in newest.data.params
    assert newest.data.params["model.torchvision.stem"] == "standard"
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.name=vit_b_32", "model.torchvision.stem=standard"], "the network cannot take images of 20x20 pixels"),
        (
            ["model.name=plain_cnn", "train.optimizer.name=sgd"],
            "the network cannot take images of 20x20 pixels, 0.625 of their",
        ),
        (
            ["model.name=plain_cnn"],
            "params.yaml: train.optimizer.name: muon keeps the norm of each filter fixed, so it needs",
        ),
        (
            ["model.name=resnet17"],
            "params.yaml: model.name: 'resnet17' is neither a network of this project nor one of",
        ),
        (["model.weights=models/mine.pt"], "params.yaml: model.weights: models/mine.pt: not found (looked for "),
        (["train.keep=last", "train.patience=3"], "params.yaml: train.patience: must be null if train.keep is last"),
        (["preprocess.fold=1"], "params.yaml: preprocess.fold: must be 0 if preprocess.folds is null"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(project: Project, settings: list[str], says: str) -> None:
    document = yaml.safe_load((project.root / "params.yaml").read_text())
    for setting in settings:
        path, value = setting.split("=")
        *sections, key = path.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[key] = yaml.safe_load(value)
    (project.root / "params.yaml").write_text(yaml.safe_dump(document))
    (line,) = project.run("python", "stages/train.py", status=1).splitlines()
    assert says in line
    project.run("git", "checkout", "--quiet", ".")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_is_killed_in_mlflow_and_leaves_no_output(project: Project, number: int) -> None:
    project.set(train={"epochs": 10_000 + number})  # one that has no checkpoint to go on from
    recorded = len(runs(project))
    process = project.start("dvc", "repro")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "epoch   2:" in line:
            break
    # As a terminal does it: the whole process group gets the signal.
    os.killpg(process.pid, number)
    lines += process.stdout.readlines()
    assert process.wait(timeout=60) != 0
    output = "".join(lines)
    assert "train: interrupted; `dvc repro` resumes from the last checkpoint" in output
    assert "Traceback" not in output
    newest, *_ = after = runs(project)
    assert len(after) == recorded + 1
    assert newest.info.status == "KILLED"
    assert list((project.root / "models").glob("*")) == []
    assert not list(project.root.rglob("*.partial"))
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_without_tracking_and_validation_everything_runs(fresh: Project) -> None:
    fresh.set(preprocess={"val_fraction": 0, "train_limit": 500, "normalize": "half"}, tracking={"enabled": False})
    fresh.set(train={"patience": 2})
    output = fresh.run("dvc", "repro", status=255)
    assert "train: params.yaml: train.patience: needs validation images, but there are none" in output
    assert "Traceback" not in output
    fresh.set(train={"patience": None})
    started = time.time()
    output = fresh.run("dvc", "repro")
    assert running(output) == ["train", "evaluate", "report"]
    assert "\ntrain: 3 epochs; " in output
    assert fresh.json("metrics/dataset.json")["train"] == 500
    assert fresh.json("metrics/dataset.json")["val"] == 0
    assert fresh.json("metrics/run.json")["mlflow"] is None
    assert "val_accuracy" not in fresh.json("metrics/train.json")
    assert fresh.table("metrics/history.csv")[0]["val_loss"] == ""
    header = (fresh.root / "data/predictions/val.csv").read_text().splitlines()
    assert header == (fresh.root / "data/predictions/test.csv").read_text().splitlines()[:1]
    assert fresh.json("data/processed/stats.json")["mean"] == [0.5, 0.5, 0.5]
    assert not (fresh.root / "mlflow.db").exists()
    assert not (fresh.root / "mlruns").exists()
    assert (fresh.root / "report/index.html").stat().st_mtime > started


def running(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
