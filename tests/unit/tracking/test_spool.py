"""Runs whose store fails while they are open and recovers, with a real server and real SQLite files."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from torch import nn

from processes import run_concurrently
from servers import MlflowServer, mlflow_server
from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Tracking, load_params
from vision.pipeline.paths import ROOT
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run, spool, store
from vision.tracking.run import Run
from vision.tracking.spool import Spool, send

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
    store.connect(f"sqlite:///{folder}/server.db")  # makes the tables, which takes a server longer
    with mlflow_server(f"sqlite:///{folder}/server.db", folder, workers=1) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an SQLite store."""
    for module in (mlflow_run, spool, store):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return tmp_path


def params() -> Params:
    return load_params().model_copy(update={"tracking": ON})


def log_epoch(run: Run, number: int) -> None:
    run.log_metrics({"train/loss": 1 / number}, number)


def log_the_end(run: Run) -> None:
    """What a training logs after its last epoch."""
    run.log_model(lambda path: save_mlflow_model(path, Net().eval(), IMAGES, ModelSettings(STATS.classes, 0.5)))
    run.log_metrics({"best_epoch": 4})
    run.register_model(0.75)
    run.set_tags({"ended": "finished"})


def log_scores(run: Run, folder: Path) -> None:
    """What the stages after the training log."""
    (folder / "index.html").write_text("<h1>report</h1>")
    run.log_metrics({"test_accuracy": 0.75})
    run.set_description("**75%**")
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
    for name in ("best_epoch", "test_accuracy"):
        assert len(client.get_metric_history(run_id, name)) == 1
    assert run.data.tags["mlflow.note.content"] == "**75%**"
    assert {file.path for file in client.list_artifacts(run_id)} == {"figures", "report"}

    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert run.outputs is not None
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert model.status == "READY"
    assert model.params["train.patience"] == "null"
    figures = {metric.key: metric.value for metric in model.metrics or []}
    assert figures == {"best_epoch": 4, "test_accuracy": 0.75}
    versions = client.search_model_versions("name = 'pets'")
    assert [version.source for version in versions if version.run_id == run_id] == [f"models:/{model.model_id}"]
    return run


def wait_until_published(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while list(folder.glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
        log_epoch(run, 1)
        wait_until_published(kept)
        server.kill()
        for number in range(2, 5):
            log_epoch(run, number)
        log_the_end(run)
    gone, left = said(capfd)
    assert re.match(f"MLflow: {server.address}: .*Connection (refused|aborted)", gone)
    assert re.search(f"not logged yet: . record.s. of run {run_id}, in {kept}; ", gone)
    assert f"not logged yet: 8 record(s) of run {run_id}, in {kept}; " in left
    assert left.endswith("`dvc repro -sf report` tries again")

    # The address comes from the record, as it does for whoever has not set the variable.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    assert f"not logged yet: 12 record(s) of run {run_id}" in said(capfd)[-1]

    copied = root / "copied"
    shutil.copytree(kept, copied)
    server.start()
    with mlflow_run.resumed_run(ON, run.record):
        pass
    assert said(capfd) == [f"MLflow: logged 12 record(s) of run {run_id} that waited in {kept}"]
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
    assert mlflow.models.get_model_info("models:/pets@champion").run_id == run_id
    assert mlflow.pytorch.load_model("models:/pets@champion")(torch.tensor(IMAGES)).shape == (5, 2)


@pytest.mark.slow
def test_another_run_in_the_same_store_logs_what_a_server_did_not_answer_to(
    server: MlflowServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with mlflow_run.training_run(params(), STATS) as run:
        log_epoch(run, 1)
        wait_until_published(root / "unlogged" / run.record["mlflow"]["run_id"])
        server.send(signal.SIGSTOP)  # it takes connections, and says nothing
        log_epoch(run, 2)
        log_epoch(run, 3)
    server.send(signal.SIGCONT)
    client = MlflowClient(server.address)
    run_id = run.record["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "RUNNING"
    assert (root / "unlogged" / run_id).exists()
    with mlflow_run.search_run(params(), None):
        pass
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


@pytest.mark.slow
def test_a_database_that_is_locked_in_the_middle(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        log_epoch(run, 1)
        wait_until_published(root / "unlogged" / run.record["mlflow"]["run_id"])
        with lock_dir(root / "mlflow.db"):
            started = time.monotonic()
            log_epoch(run, 2)
            log_epoch(run, 3)
            assert time.monotonic() - started < 1, "the training waits for nothing"
            log_the_end(run)
            time.sleep(max(0, started + 7 - time.monotonic()))  # the first attempt takes 5 s
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    run_id = run.record["mlflow"]["run_id"]
    assert_all_is_there_once(MlflowClient(f"sqlite:///{root}/mlflow.db"), run_id, epochs=3)
    gone, back = said(capfd)
    assert "mlflow.db: database is locked; not logged yet: " in gone
    assert back == f"MLflow: logged 7 record(s) of run {run_id} that waited in {root}/unlogged/{run_id}"


@pytest.mark.slow  # longer than SQLite itself waits
def test_a_database_that_is_locked_at_the_start_is_waited_for(root: Path) -> None:
    store.connect(f"sqlite:///{root}/mlflow.db")
    command = [sys.executable, "-c", LOCK.replace("sys.stdin.read()", "import time; time.sleep(7)"), "mlflow.db"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with mlflow_run.training_run(params(), STATS):
            assert process.wait(timeout=10) == 0


def test_a_database_that_stays_locked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.connect(f"sqlite:///{root}/mlflow.db")
    monkeypatch.setattr(store, "OPENING_LOCK_TIMEOUT", 1)
    with lock_dir(root / "mlflow.db"), pytest.raises(UserError, match=r"mlflow.db: .*locked.*another process holds it"):
        mlflow_run.training_run(params(), STATS).__enter__()


def test_a_run_that_is_deleted_while_it_is_open(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    client = store.connect(store.tracking_uri())
    with mlflow_run.training_run(params(), STATS) as run:
        run_id = run.record["mlflow"]["run_id"]
        log_epoch(run, 1)
        wait_until_published(root / "unlogged" / run_id)
        client.delete_run(run_id)
        log_epoch(run, 2)
    assert f"if the run was deleted, `mlflow runs restore --run-id {run_id}` restores it" in said(capfd)[0]
    with mlflow_run.training_run(params(), STATS):
        pass
    (line,) = said(capfd)
    assert f"not logged yet: 2 record(s) of run {run_id}, in " in line
    assert f"`mlflow runs restore --run-id {run_id}`" in line
    client.restore_run(run_id)
    with mlflow_run.training_run(params(), STATS):
        pass
    assert f"logged 2 record(s) of run {run_id}" in said(capfd)[0]
    assert losses(client, run_id) == [(1, 1.0), (2, 0.5)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_record_that_mlflow_rejects_is_skipped(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_metrics({"no: such: name?": 1.0})
        log_epoch(run, 1)
    run_id = run.record["mlflow"]["run_id"]
    (line,) = said(capfd)
    assert line.startswith(f"MLflow: rejected a record of run {run_id}; skipped (")
    assert "no: such: name?" in line
    assert losses(store.connect(store.tracking_uri()), run_id) == [(1, 1.0)]


def test_environment_variables_stay_as_they_are(root: Path) -> None:
    store.connect(store.tracking_uri())
    before = dict(os.environ)
    with mlflow_run.training_run(params(), STATS) as run:
        log_epoch(run, 1)
        log_the_end(run)
        assert dict(os.environ) == before
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    assert dict(os.environ) == before


@contextmanager
def broken(root: Path) -> Iterator[None]:
    """The store refuses metrics for the block."""
    for old, new in (("metrics", "away"), ("away", "metrics")):
        with closing(sqlite3.connect(root / "mlflow.db")) as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
        if new == "away":
            yield


@pytest.fixture
def run_id(root: Path) -> str:
    client = store.connect(store.tracking_uri())
    return client.create_run(store.get_experiment_id(client, "pets")).info.run_id


def put(waiting: Spool, number: int) -> None:
    waiting.put({"metrics": {"train/loss": 1 / number}, "step": number})


def logged(run_id: str) -> list[int]:
    return [step for step, _ in losses(store.connect(store.tracking_uri()), run_id)]


def test_attempts_that_fail_are_few(root: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Spool(store.tracking_uri(), run_id)
    attempts = []

    def counted(*record: Any) -> None:
        attempts.append(record)
        send(*record)

    monkeypatch.setattr(spool, "send", counted)
    with waiting.publishing():
        with broken(root):
            for number in range(1, 31):
                put(waiting, number)
                time.sleep(0.02)
        assert len(attempts) == 1
    assert len(attempts) == 31
    assert logged(run_id) == list(range(1, 31))


def test_an_attempt_is_repeated_after_a_pause(root: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_PAUSE", 0.1)
    waiting = Spool(store.tracking_uri(), run_id)
    with waiting.publishing():
        with broken(root):
            put(waiting, 1)
            time.sleep(0.5)
        put(waiting, 2)
        wait_until_published(waiting.folder)
        assert logged(run_id) == [1, 2]


def test_the_last_attempt_waits_for_one_that_is_under_way_and_fails(
    root: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()

    def fail_once(*record: Any) -> None:
        if not started.is_set():
            started.set()
            time.sleep(0.5)
            raise ConnectionError("lost")
        send(*record)

    monkeypatch.setattr(spool, "send", fail_once)
    waiting = Spool(store.tracking_uri(), run_id)
    with waiting.publishing():
        put(waiting, 1)
        started.wait()
    assert logged(run_id) == [1]


def test_a_damaged_record_is_skipped(root: Path, run_id: str, capfd: pytest.CaptureFixture[str]) -> None:
    waiting = Spool(store.tracking_uri(), run_id)
    with waiting.publishing(), broken(root):
        for number in (1, 2, 3):
            put(waiting, number)
        damaged = waiting.folder / "00000002.json"
        damaged.write_text('{"tracking')  # as after a power cut
    assert logged(run_id) == [1, 3]
    assert f"MLflow: {damaged}: a record is damaged; skipped" in said(capfd)


def test_a_folder_that_cannot_be_written_ends_nothing(
    root: Path, run_id: str, capfd: pytest.CaptureFixture[str]
) -> None:
    waiting = Spool(store.tracking_uri(), run_id)
    with waiting.publishing():
        waiting.folder.write_text("a file in place of the folder")
        put(waiting, 1)
        waiting.folder.unlink()
        put(waiting, 2)
    (line,) = said(capfd)
    assert line.startswith(f"MLflow: {waiting.folder}: cannot be written (File exists)")
    assert logged(run_id)[-1] == 2


HOLD = """
import sys
from pathlib import Path
from vision.tracking import spool, store
spool.ROOT = store.ROOT = Path(sys.argv[1])
waiting = spool.Spool(store.tracking_uri(), sys.argv[2])
waiting._attempt = lambda now=False: None
with waiting.publishing():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_never_publish_the_same_run_at_once(root: Path, run_id: str) -> None:
    client, uri = store.connect(store.tracking_uri()), store.tracking_uri()
    another_id = client.create_run(store.get_experiment_id(client, "pets")).info.run_id
    killed, other_run, same_run = Spool(uri, run_id), Spool(uri, another_id), Spool(uri, run_id)
    killed._next_attempt = math.inf
    put(killed, 1)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(root), run_id]
    with subprocess.Popen(command, cwd=ROOT / "stages", stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with other_run.publishing():
            pass
        assert logged(run_id) == []
        other.kill()
    with same_run.publishing():
        pass
    assert logged(run_id) == [1]
    assert list((root / "unlogged").iterdir()) == []


def test_a_second_process_of_a_run_overwrites_nothing(root: Path, run_id: str) -> None:
    first, second = (Spool(store.tracking_uri(), run_id) for _ in range(2))
    with broken(root):
        for number, waiting in enumerate((first, second), 1):
            with waiting.publishing():
                put(waiting, number)
    with Spool(store.tracking_uri(), run_id).publishing():
        pass
    assert logged(run_id) == [1, 2]


def test_a_training_that_was_killed_continues_with_what_waits(root: Path) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        log_epoch(run, 1)
    # As a training leaves it that was killed while its store was away.
    run_id = run.record["mlflow"]["run_id"]
    (root / "unlogged" / run_id).mkdir(parents=True)
    second = {"tracking_uri": "sqlite:///mlflow.db", "time": 2, "metrics": {"train/loss": 0.5}, "step": 2}
    (root / "unlogged" / run_id / "00000002.json").write_text(json.dumps(second))
    with mlflow_run.training_run(params(), STATS, resume_from=run.record) as again:
        for number in range(1, 4):
            log_epoch(again, number)
    found = losses(store.connect(store.tracking_uri()), run_id)
    assert sorted(found) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


KILLED = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from vision.tracking import store
from vision.tracking.spool import send
uri, run_id, model, call = sys.argv[1:]
setattr(MlflowClient, call, lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
client = store.connect(uri)
send(client, run_id, {"model": "model"}, Path(model))
send(client, run_id, {"register": {"val_accuracy": "0.5"}}, None)
"""


@pytest.mark.slow
def test_a_run_has_one_model_wherever_its_logging_was_killed(root: Path) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        pass
    uri, run_id = store.tracking_uri(), run.record["mlflow"]["run_id"]
    save_mlflow_model(root / "model", Net().eval(), IMAGES, ModelSettings(STATS.classes, 0.5))
    for call in ("log_outputs", "finalize_logged_model", "set_registered_model_alias"):
        command = [sys.executable, "-c", KILLED, uri, run_id, str(root / "model"), call]
        assert subprocess.run(command, cwd=ROOT / "stages").returncode == -signal.SIGKILL
    with mlflow_run.training_run(params(), STATS, resume_from=run.record) as again:
        for number in range(1, 5):
            log_epoch(again, number)
        log_the_end(again)
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        log_scores(resumed, root)
    client = store.connect(uri)
    assert_all_is_there_once(client, run_id, epochs=4)
    (version,) = client.search_model_versions("name = 'pets'")
    assert version.tags["val_accuracy"] == "0.75"
    assert client.get_model_version_by_alias("pets", "champion").version == version.version


LOG_DATA = """
import sys
from vision.tracking import store
from vision.tracking.spool import send
client = store.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number, run_id in enumerate(sys.argv[2:]):
    send(client, run_id, {"dataset": "data/processed", "digest": str(number), "source": "{}"}, None)
"""


@pytest.mark.slow
def test_runs_that_log_the_same_new_data_at_once_all_have_it(root: Path) -> None:
    client = store.connect(store.tracking_uri())
    experiment_id = store.get_experiment_id(client, "pets")
    run_ids = [[client.create_run(experiment_id).info.run_id for _ in range(5)] for _ in range(4)]
    run_concurrently([[LOG_DATA, store.tracking_uri(), *some] for some in run_ids])
    for some in run_ids:
        entered = [client.get_run(run_id).inputs for run_id in some]
        digests = [[data.dataset.digest for data in inputs.dataset_inputs] for inputs in entered if inputs]
        assert digests == [["0"], ["1"], ["2"], ["3"], ["4"]]
