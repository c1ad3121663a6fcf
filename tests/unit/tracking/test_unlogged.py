"""Runs whose store goes away while they are open and comes back: a server that is killed, a database that is locked."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from torch import nn

from servers import MlflowServer, mlflow_server
from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Tracking, load_params
from vision.pipeline.paths import ROOT
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run, store
from vision.tracking.delivery import now
from vision.tracking.run import Run

STATS = Stats(["cat", "dog"], [8, 8, 3], [0.5] * 3, [0.25] * 3, split_digest="ab" * 32)
ON = Tracking(enabled=True, experiment="pets", registry=True, tensorboard=False)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


class Net(nn.Module):
    """uint8 [N, 8, 8, 3] -> probabilities of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1).float()).softmax(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    store.client(f"sqlite:///{folder}/server.db")  # makes the tables, which takes a server longer
    with mlflow_server(f"sqlite:///{folder}/server.db", folder, workers=1) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, with an SQLite store."""
    for room in (mlflow_run, store):
        monkeypatch.setattr(room, "ROOT", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return tmp_path


def params() -> Params:
    return load_params().model_copy(update={"tracking": ON})


def epoch(number: int) -> dict[str, float | None]:
    return {"epoch": number, "train_loss": 1 / number}


def log_the_end(run: Run) -> None:
    """What a training logs after its last epoch."""
    run.log_metrics({"train/best_epoch": 4})
    run.log_model(Net().eval(), IMAGES, STATS.classes)
    run.register_model(0.75)
    run.set_tags({"ended": "finished"})


def log_scores(run: Run, folder: Path) -> None:
    """What the stages after the training log."""
    (folder / "index.html").write_text("<h1>report</h1>")
    run.log_metrics({"test/accuracy": 0.75})
    run.describe_as("**75%**")
    run.log_figure("confusion", Figure())
    run.log_artifact(folder / "index.html", "report")


def losses(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]


def assert_all_is_there_once(client: MlflowClient, run_id: str, epochs: int) -> StoredRun:
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", "finished")
    assert run.data.params["train.patience"] == "null"
    assert run.inputs is not None
    assert len(run.inputs.dataset_inputs) == 1
    history = client.get_metric_history(run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(e, 1 / e) for e in range(1, epochs + 1)]
    assert [metric.timestamp for metric in history] == sorted(metric.timestamp for metric in history)
    for name in ("train/best_epoch", "test/accuracy"):
        assert len(client.get_metric_history(run_id, name)) == 1
    assert run.data.tags["mlflow.note.content"] == "**75%**"
    assert {file.path for file in client.list_artifacts(run_id)} == {"figures", "report"}

    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert run.outputs is not None
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert model.status == "READY"
    assert model.params["train.patience"] == "null"
    figures = {metric.key: metric.value for metric in model.metrics or []}
    assert figures == {"train/best_epoch": 4, "test/accuracy": 0.75}
    versions = client.search_model_versions("name = 'pets'")
    assert [version.source for version in versions if version.run_id == run_id] == [f"models:/{model.model_id}"]
    return run


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow: ")]


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_and_comes_back_when_all_is_over(
    server: MlflowServer, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    with mlflow_run.training_run(params(), STATS) as run:
        run_id = run.record["mlflow"]["run_id"]
        kept = root / "unlogged" / run_id
        run.log_epoch(epoch(1))
        server.kill()
        for number in range(2, 5):
            run.log_epoch(epoch(number))
        log_the_end(run)
    gone, left = said(capfd)
    assert f"{server.address}: " in gone
    assert re.search("Connection refused|Connection aborted", gone)
    assert str(kept) in gone
    assert f"still unlogged: 8 things of run {run_id} ({server.address}: " in left
    assert left.endswith("`dvc repro -sf report` tries again")

    # The address comes from the record, as it does for whoever has not set the variable.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    assert f"still unlogged: 12 things of run {run_id}" in said(capfd)[-1]

    copied = root / "copied"
    shutil.copytree(kept, copied)
    server.start()
    with mlflow_run.resumed_run(ON, run.record):
        pass
    assert said(capfd) == [f"MLflow: 12 things of run {run_id}, kept in {kept}, logged now"]
    assert not kept.exists()
    client = MlflowClient(server.address)
    before = assert_all_is_there_once(client, run_id, epochs=4)

    # As if the process had been killed before it could remove what it had sent.
    copied.rename(kept)
    with mlflow_run.resumed_run(ON, run.record):
        pass
    assert not kept.exists()
    again = assert_all_is_there_once(client, run_id, epochs=4)
    assert again.info.end_time == before.info.end_time

    mlflow.set_tracking_uri(server.address)
    predictor = mlflow.pyfunc.load_model("models:/pets@champion")
    assert predictor.metadata.run_id == run_id
    assert predictor.predict(IMAGES).shape == (5, 2)


def test_another_run_in_the_same_store_logs_what_a_server_did_not_answer_to(
    server: MlflowServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setattr(store, "QUICK", {"server": 2, "lock": 2})
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_epoch(epoch(1))
        server.send(signal.SIGSTOP)  # it takes connections, and says nothing
        run.log_epoch(epoch(2))
        run.log_epoch(epoch(3))
    server.send(signal.SIGCONT)
    client = MlflowClient(server.address)
    run_id = run.record["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "RUNNING"
    assert (root / "unlogged" / run_id).exists()
    with mlflow_run.search_run(params(), None):
        assert client.get_run(run_id).info.status == "FINISHED"
        # What it was told while it said nothing it may have heard all the same.
        assert losses(client, run_id) == [(number, 1 / number) for number in (1, 2, 3)]
    assert not (root / "unlogged" / run_id).exists()


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def lock_dir(database: Path) -> Iterator[None]:
    """Another process has the database, for the block."""
    command = [sys.executable, "-c", LOCK, str(database)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.communicate()


def test_a_database_that_is_locked_in_the_middle(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "QUICK", {"server": 1, "lock": 1})
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_epoch(epoch(1))
        with lock_dir(root / "mlflow.db"):
            run.log_epoch(epoch(2))
            run.log_epoch(epoch(3))
            log_the_end(run)
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    run_id = run.record["mlflow"]["run_id"]
    assert_all_is_there_once(MlflowClient(f"sqlite:///{root}/mlflow.db"), run_id, epochs=3)
    gone, back = said(capfd)
    assert "mlflow.db: database is locked; what cannot be logged is kept in" in gone
    assert back == f"MLflow: 7 things of run {run_id}, kept in {root}/unlogged/{run_id}, logged now"


@pytest.mark.slow  # longer than SQLite itself waits
def test_a_database_that_is_locked_at_the_start_is_waited_for(root: Path) -> None:
    store.client(f"sqlite:///{root}/mlflow.db")
    command = [sys.executable, "-c", LOCK.replace("sys.stdin.read()", "import time; time.sleep(7)"), "mlflow.db"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with mlflow_run.training_run(params(), STATS):
            assert process.wait(timeout=10) == 0


def test_a_database_that_stays_locked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.client(f"sqlite:///{root}/mlflow.db")
    monkeypatch.setattr(store, "_OPENING", {"server": 5, "lock": 1})
    with lock_dir(root / "mlflow.db"), pytest.raises(UserError, match=r"mlflow.db: .*locked.*another process holds it"):
        mlflow_run.training_run(params(), STATS).__enter__()


def test_a_run_that_is_deleted_while_it_is_open(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    client = store.client(store.tracking_uri())
    with mlflow_run.training_run(params(), STATS) as run:
        run_id = run.record["mlflow"]["run_id"]
        run.log_epoch(epoch(1))
        client.delete_run(run_id)
        run.log_epoch(epoch(2))
    assert f"`mlflow runs restore --run-id {run_id}` brings a deleted run back" in said(capfd)[0]
    with mlflow_run.training_run(params(), STATS):
        pass
    (line,) = said(capfd)
    assert f"still unlogged: 2 things of run {run_id} (" in line
    assert f"`mlflow runs restore --run-id {run_id}`" in line
    client.restore_run(run_id)
    with mlflow_run.training_run(params(), STATS):
        pass
    assert "logged now" in said(capfd)[0]
    assert losses(client, run_id) == [(1, 1.0), (2, 0.5)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_what_mlflow_will_never_take_is_told_and_the_rest_is_logged(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_metrics({"no: such: name?": 1.0})
        run.log_epoch(epoch(1))
    (line,) = said(capfd)
    assert "is left out" in line
    assert "no: such: name?" in line
    assert losses(store.client(store.tracking_uri()), run.record["mlflow"]["run_id"]) == [(1, 1.0)]


def test_a_training_that_goes_on_first_logs_what_was_kept_before_it_was_killed(root: Path) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_epoch(epoch(1))
    # As a training leaves it that was killed while its store was away.
    run_id = run.record["mlflow"]["run_id"]
    kept = root / "unlogged" / run_id
    kept.mkdir(parents=True)
    (kept / "about.json").write_text(json.dumps({"tracking_uri": "sqlite:///mlflow.db", "reason": "locked"}))
    second = {"call": "log", "metrics": [["train/loss", 0.5, now(), 2]]}
    (kept / "00000001.json").write_text(json.dumps(second))
    with mlflow_run.training_run(params(), STATS, before=run.record) as again:
        for number in range(1, 4):
            again.log_epoch(epoch(number))
    assert losses(store.client(store.tracking_uri()), run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


KILLED = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from vision.delivery import Delivery
uri, run_id, model, call = sys.argv[1:]
setattr(MlflowClient, call, lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
deliver = Delivery(uri, run_id)
deliver({"call": "model", "metrics": []}, Path(model))
deliver({"call": "register", "name": "pets", "classes": "[]", "val_accuracy": 0.5}, None)
"""


@pytest.mark.slow
def test_a_run_has_one_model_wherever_its_logging_was_killed(root: Path) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        pass
    uri, run_id = store.tracking_uri(), run.record["mlflow"]["run_id"]
    mlflow_run._save_model(root / "model", Net().eval(), IMAGES, STATS.classes)
    for call in ("log_outputs", "finalize_logged_model", "set_registered_model_alias"):
        command = [sys.executable, "-c", KILLED, uri, run_id, str(root / "model"), call]
        assert subprocess.run(command, cwd=ROOT / "stages").returncode == -signal.SIGKILL
    with mlflow_run.training_run(params(), STATS, before=run.record) as again:
        for number in range(1, 5):
            again.log_epoch(epoch(number))
        log_the_end(again)
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    client = store.client(uri)
    assert_all_is_there_once(client, run_id, epochs=4)
    (version,) = client.search_model_versions("name = 'pets'")
    assert version.tags["val_accuracy"] == "0.75"
    assert client.get_model_version_by_alias("pets", "champion").version == version.version
