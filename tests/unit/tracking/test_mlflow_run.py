import http.server
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data import get_source
from mlflow.entities import Run as StoredRun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Tracking, load_params
from vision.pipeline.paths import ROOT
from vision.prediction.mlflow_format import ModelSettings, save_mlflow_model
from vision.storage.arrays import Stats
from vision.tracking import mlflow_run, provenance
from vision.tracking import spool as spool_module
from vision.tracking import store as store_module

STATS = Stats(["cat", "dog", "frog"], [32, 32, 3], [0.5] * 3, [0.25] * 3, split_digest="ab" * 32)
KIND = "mlflow.experimentKind"
ON = Tracking(enabled=True, experiment="pets", registry=True, tensorboard=False)
ROW = {"train/lr": 0.1, "train/loss": 2.0, "train/accuracy": 0.25, "train/seconds": 1.5}


class Net(nn.Module):
    """uint8 [N, 32, 32, 3] -> probabilities of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.permute(0, 3, 1, 2).float() / 255).softmax(1)


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mlflow.db of a finished run, in which a real model was logged, and what goes with it."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        model = Net().eval()
        figure = Figure()
        figure.subplots().plot([1, 2])
        (folder / "index.html").write_text("<h1>report</h1>")
        with mlflow_run.training_run(params(), STATS) as run:
            for epoch in range(1, 4):
                run.log_metrics(ROW | {"train/loss": 1 / epoch}, epoch)
            run.log_model(lambda path: save_mlflow_model(path, model, images, ModelSettings(STATS.classes, 0.5)))
            run.register_model(0.75)
            run.log_metrics({"best_epoch": 3})
        with mlflow_run.resumed_run(ON, run.record) as resumed:
            resumed.log_metrics({"test_accuracy": 0.75})
            resumed.set_description("- **75%**")
            resumed.set_tags({"evaluate": {"views": "flip", "batch_size": 10}})
            resumed.log_figure("confusion", figure)
            resumed.log_artifact(folder / "index.html", "report")
            resumed.log_model_card("# A card")
    np.save(folder / "images.npy", images)
    with torch.inference_mode():
        np.save(folder / "expected.npy", model(torch.tensor(images)).numpy())
    (folder / "record.json").write_text(json.dumps(run.record))
    return folder


@pytest.fixture
def store(created: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, with MLFLOW_TRACKING_URI set to its database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{created}/mlflow.db")
    return created


def params(experiment: str = "pets") -> Params:
    return load_params().model_copy(
        update={"tracking": Tracking(enabled=True, experiment=experiment, registry=True, tensorboard=False)}
    )


def at(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Have the code believe that it lies in this checkout."""
    for room in (mlflow_run, provenance, spool_module, store_module):
        monkeypatch.setattr(room, "ROOT", root)


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def stored(folder: Path, record: dict[str, Any]) -> StoredRun:
    return client(folder).get_run(record["mlflow"]["run_id"])


def test_the_run_tells_what_made_the_model(store: Path) -> None:
    run = stored(store, record_of(store))
    assert run.info.status == "FINISHED"
    assert run.data.params["train.patience"] == "null"
    assert run.data.params["model.convnet.widths"] == json.dumps(params().model.convnet.widths)
    assert {"seed", "preprocess.val_fraction"} <= run.data.params.keys()
    assert not {key for key in run.data.params if key.startswith(("evaluate", "report"))}
    # Of the machine there are samples too if this took long.
    assert {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")} == {
        "train/loss": 1 / 3, "train/accuracy": 0.25, "train/lr": 0.1, "train/seconds": 1.5,
        "best_epoch": 3, "test_accuracy": 0.75,
    }  # fmt: skip
    history = client(store).get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.inputs is not None
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.digest, data.tags[0].value) == (STATS.split_digest[:36], "training")
    assert get_source(data).uri == "data/processed"  # type: ignore[attr-defined]


def test_the_run_tells_where_it_came_from(store: Path) -> None:
    run = stored(store, record_of(store))
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert run.data.tags.get("mlflow.source.git.commit", "") == head
    assert run.info.run_name == "-".join(filter(None, [params().model.name, head[:7]]))
    assert run.data.tags["evaluate.views"] == "flip"
    assert run.data.tags["mlflow.note.content"] == "- **75%**"
    page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert record_of(store)["mlflow"]["page"] == f"{page}?workflowType=machine_learning"
    assert client(store).get_experiment(run.info.experiment_id).tags[KIND] == "custom_model_development"
    assert not {key for key in run.data.tags if key.startswith("dvc.")}


def test_an_experiment_of_dvc_is_named_and_tagged(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = f"{'0123456789abcdef' * 2}.dir"
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  preprocess:\n    outs:\n    - path: data/samples.png\n      md5: 00\n"
        f"    - path: data/processed\n      hash: md5\n      md5: {md5}\n"
    )
    at(monkeypatch, tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-daks")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    with mlflow_run.training_run(params(), STATS) as run:
        pass
    found = stored(store, run.record)
    assert found.info.run_name == "puffy-daks"
    tags = {key: value for key, value in found.data.tags.items() if key.startswith("dvc.")}
    assert tags == {
        "dvc.experiment": "puffy-daks",
        "dvc.apply": "dvc exp apply puffy-daks",
        "dvc.baseline_rev": "c0ffee",
        "dvc.data": md5,
    }
    assert run.record["mlflow"]["apply"] == "dvc exp apply puffy-daks"
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.digest == md5


def test_artifacts_lie_beside_the_database(store: Path) -> None:
    run_id = record_of(store)["mlflow"]["run_id"]
    assert client(store).list_artifacts(run_id, "figures")[0].path == "figures/confusion.png"
    folder = store / "mlruns" / record_of(store)["mlflow"]["experiment_id"] / run_id / "artifacts"
    assert (folder / "figures/confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report/index.html").read_text() == "<h1>report</h1>"


def test_the_model_carries_its_figures(store: Path) -> None:
    outputs = stored(store, record_of(store)).outputs
    assert outputs is not None
    metrics = client(store).get_logged_model(outputs.model_outputs[0].model_id).metrics or []
    assert {metric.key: metric.value for metric in metrics} == {"best_epoch": 3, "test_accuracy": 0.75}


def test_the_model_card_is_the_readme_of_the_model_and_describes_its_version(store: Path) -> None:
    outputs = stored(store, record_of(store)).outputs
    assert outputs is not None
    model = f"models:/{outputs.model_outputs[0].model_id}"
    location = client(store).get_logged_model(outputs.model_outputs[0].model_id).artifact_location
    assert Path(location.removeprefix("file://"), "README.md").read_text() == "# A card"
    (version,) = [one for one in client(store).search_model_versions() if one.source == model]
    assert version.description == "# A card"


def test_an_older_experiment_becomes_one_of_model_training(store: Path) -> None:
    made = client(store).create_experiment("older")
    assert store_module.get_experiment_id(client(store), "older") == made
    assert client(store).get_experiment(made).tags[KIND] == "custom_model_development"


@pytest.mark.parametrize(
    ("error", "status", "ended"),
    [
        (KeyboardInterrupt(), "KILLED", "killed"),
        (ZeroDivisionError(), "FAILED", "ZeroDivisionError"),
        (UserError("diverged: the loss is not finite"), "FAILED", "diverged: the loss is not finite"),
    ],
)
def test_a_run_that_ends_badly_says_so(store: Path, error: BaseException, status: str, ended: str) -> None:
    with pytest.raises(type(error)), mlflow_run.training_run(params(), STATS) as run:
        raise error
    found = stored(store, run.record)
    assert (found.info.status, found.data.tags["ended"]) == (status, ended)


def test_an_evaluation_leaves_status_and_duration_of_the_training(store: Path) -> None:
    before = stored(store, record_of(store)).info
    with pytest.raises(ZeroDivisionError), mlflow_run.resumed_run(ON, record_of(store)):
        raise ZeroDivisionError
    after = stored(store, record_of(store)).info
    assert (after.status, after.end_time) == (before.status, before.end_time) == ("FINISHED", before.end_time)


def test_a_run_that_is_gone_is_told_and_recorded_nowhere(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mlflow_run.training_run(params(), STATS) as run:
        pass
    run_id = run.record["mlflow"]["run_id"]
    client(store).delete_run(run_id)
    capfd.readouterr()  # MLflow's log, which a stage silences
    elsewhere = f"sqlite:///{tmp_path}/other/mlflow.db"
    for change, reason in [
        ({}, f"run {run_id} is not in sqlite:///{store}/mlflow.db; `mlflow runs restore --run-id {run_id}` restores"),
        ({"run_id": "0" * 32}, f"run {'0' * 32} is not in sqlite:///{store}/mlflow.db"),
        ({"tracking_uri": elsewhere}, f"is not in {elsewhere}"),
    ]:
        record = {"mlflow": run.record["mlflow"] | change, "tensorboard": None}
        with mlflow_run.resumed_run(ON, record) as resumed:
            resumed.log_metrics({"test_accuracy": 0.5})
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("MLflow: ")
        assert reason in line
        assert "`dvc repro -f train`" in line
        assert resumed.record["mlflow"] is None
    assert not (tmp_path / "other").exists()


def test_a_training_that_was_killed_goes_on_in_its_run_and_each_epoch_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = params().tracking.model_copy(update={"tensorboard": True})
    all_params = params().model_copy(update={"tracking": settings})
    rows = [ROW | {"train/loss": 1 / epoch} for epoch in range(1, 5)]
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    records: list[dict[str, Any]] = []

    def killed() -> None:
        with mlflow_run.training_run(all_params, STATS, {"search.trial": "0"}) as run:
            records.append(run.record)
            for epoch, row in enumerate(rows[:3], 1):
                run.log_metrics(row, epoch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    (record,) = records
    assert stored(tmp_path, record).info.status == "KILLED"

    monkeypatch.setenv("DVC_EXP_NAME", "second")
    with mlflow_run.training_run(all_params, STATS, {"search.trial": "1"}, record) as again:
        found = stored(tmp_path, record)
        assert (found.info.status, found.info.run_name) == ("RUNNING", "second")
        for epoch, row in enumerate(rows, 1):
            again.log_metrics(row, epoch)
        again.set_tags({"ended": "finished"})
    assert again.record["mlflow"]["run_id"] == record["mlflow"]["run_id"]
    assert again.record["tensorboard"] == record["tensorboard"]
    found = stored(tmp_path, record)
    assert found.info.status == "FINISHED"
    assert found.info.end_time is not None
    tags = {name: found.data.tags[name] for name in ("search.trial", "dvc.experiment", "ended")}
    assert tags == {"search.trial": "1", "dvc.experiment": "second", "ended": "finished"}
    history = client(tmp_path).get_metric_history(found.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(e, 1 / e) for e in range(1, 5)]
    events = EventAccumulator(str(tmp_path / again.record["tensorboard"])).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_training_that_goes_on_opens_a_new_run_where_its_own_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow_run.training_run(params(), STATS) as run:
        run.log_metrics(ROW, 1)
    record = run.record["mlflow"]
    client(tmp_path).delete_run(record["run_id"])
    for change in ({}, {"run_id": "0" * 32}):
        before = {"mlflow": record | change, "tensorboard": None}
        with mlflow_run.training_run(params(), STATS, resume_from=before) as other:
            other.log_metrics(ROW, 1)
        found = stored(tmp_path, other.record)
        assert found.info.run_id != record["run_id"]
        assert found.data.params["train.patience"] == "null"
        assert found.data.metrics["train/loss"] == 2.0


SILENT = """
import sys
from vision.pipeline import params
from vision.tracking import mlflow_run as tracking
everything = params.load_params()
off = everything.tracking.model_copy(update={"enabled": False})
with tracking.training_run(everything.model_copy(update={"tracking": off}), None) as run:
    run.log_metrics({"train/loss": 1}, 1)
    run.log_metrics({"test_accuracy": 1})
    run.set_tags({"environment": "cpu"})
    run.log_model(None)
    run.register_model(0.5)
    run.set_description("")
    run.log_figure("confusion", None)
    run.log_artifact("index.html")
recorded = {"mlflow": {"run_id": "0", "tracking_uri": "sqlite:///x.db"}, "tensorboard": "tensorboard/x"}
for settings, record in [(everything.tracking, run.record), (off, recorded)]:
    with tracking.resumed_run(settings, record) as resumed:
        resumed.log_metrics({"test_accuracy": 1})
print(run.record["mlflow"], "mlflow" in sys.modules, "torch.utils.tensorboard" in sys.modules)
"""


@pytest.mark.parametrize("enabled", [True, False], ids=["beside MLflow", "alone"])
def test_tensorboard_gets_the_curves_the_scores_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    at(monkeypatch, tmp_path / ".dvc/tmp/exps/standalone/tmpx")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_EXP_NAME", "night")
    settings = Tracking(enabled=enabled, experiment="pets", registry=True, tensorboard=True)
    with mlflow_run.training_run(params().model_copy(update={"tracking": settings}), STATS) as run:
        for epoch in range(1, 4):
            run.log_metrics(ROW | {"train/loss": 1 / epoch}, epoch)
    with mlflow_run.resumed_run(settings, run.record) as resumed:
        resumed.log_metrics({"test_accuracy": 0.75})
        resumed.log_figure("confusion", Figure())
        assert resumed.record == run.record
    (folder,) = (tmp_path / "tensorboard").iterdir()  # in the checkout that lasts
    assert folder.name.startswith("night-")
    assert run.record["tensorboard"] == f"tensorboard/{folder.name}"
    events = EventAccumulator(str(folder)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [event.value for event in events.Scalars("summary/test_accuracy")] == [0.75]
    assert events.Tags()["images"] == ["confusion"]
    assert (run.record["mlflow"] is not None) == (tmp_path / "mlflow.db").exists() == enabled
    if enabled:
        assert stored(tmp_path, run.record).data.metrics["test_accuracy"] == 0.75


def test_without_tracking_mlflow_is_not_imported(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "stages")}
    command = [sys.executable, "-c", SILENT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "None False False\n", done.stderr
    assert not list(tmp_path.iterdir())


TRAIN = """
import sys
from pathlib import Path
from vision.pipeline import params
from vision.storage import arrays, tables
from vision.tracking import mlflow_run
with mlflow_run.training_run(params.load_params(), arrays.Stats(["a", "b"], [1, 1, 1], [0.5], [0.5], "0" * 64)) as run:
    for epoch in range(1, 41):
        run.log_metrics({"train/loss": 1 / epoch, "val/loss": 2 / epoch}, epoch)
    run.log_artifact(Path(sys.argv[0]), "code")
tables.write_json(mlflow_run.ROOT / "run.json", run.record)
"""


@pytest.mark.slow
def test_experiments_in_copies_write_at_once_to_a_new_store_of_the_checkout_that_lasts(tmp_path: Path) -> None:
    root = tmp_path / "my checkout"
    experiments = root / ".dvc/tmp/exps"
    copies = [root, experiments / "standalone/tmpa1", experiments / "tmpb2"]
    for copy in copies:
        shutil.copytree(ROOT / "stages/vision", copy / "stages/vision")
        shutil.copy(ROOT / "params.yaml", copy)
        (copy / "stages/train.py").write_text(TRAIN)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, "stages/train.py"], cwd=copy, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        for copy in copies
    ]
    assert [process.communicate() for process in running] == [("", "")] * len(copies)

    for copy in copies[1:]:
        assert not (copy / "mlflow.db").exists()
        assert not (copy / "mlruns").exists()
    for copy in copies:
        record = json.loads((copy / "run.json").read_text())
        run = stored(root, record)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.name"] == "stages/train.py"
        assert len(client(root).get_metric_history(run.info.run_id, "val/loss")) == 40
        artifacts = root / "mlruns" / record["mlflow"]["experiment_id"] / run.info.run_id / "artifacts"
        assert (artifacts / "code/train.py").read_text() == TRAIN


def test_a_relative_sqlite_file_is_at_the_main_root(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    at(monkeypatch, store / ".dvc/tmp/exps/standalone/tmpx")
    with mlflow_run.training_run(params(), STATS) as run:
        pass
    assert run.record["mlflow"]["tracking_uri"] == "sqlite:///mlflow.db"
    assert stored(store, run.record).info.status == "FINISHED"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with mlflow_run.resumed_run(ON, run.record) as resumed:
        assert resumed.record == run.record


def fails(settings: Params) -> str:
    """The one line that opening a run fails with, and it comes within 10 seconds."""
    started = time.perf_counter()
    with pytest.raises(UserError) as raised, mlflow_run.training_run(settings, STATS):
        pass
    assert time.perf_counter() - started < 10
    (line,) = str(raised.value).splitlines()
    assert len(line) < 600
    return line


def test_a_deleted_experiment(store: Path) -> None:
    made = client(store).create_experiment("former")
    client(store).delete_experiment(made)
    line = fails(params("former"))
    assert line.startswith("tracking.experiment: 'former' was deleted")
    assert f"`mlflow experiments restore --experiment-id {made}`" in line


def test_a_file_that_is_not_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("not a database\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    line = fails(params())
    assert line.startswith(f"MLflow cannot use sqlite:///{tmp_path}/mlflow.db: file is not a database; ")


def test_a_database_of_another_mlflow(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(store / "mlflow.db", tmp_path / "newer.db")
    with sqlite3.connect(tmp_path / "newer.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/newer.db")
    line = fails(params())
    assert line.startswith(f"MLflow cannot use sqlite:///{tmp_path}/newer.db: Detected out-of-date database schema")
    assert "found version fedcba987654" in line
    assert f"`mlflow db upgrade sqlite:///{tmp_path}/newer.db`" in line


class NotMlflow(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def website() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotMlflow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("{website}/404", "error code 404"),
        ("{website}/200", "not in a valid JSON format"),
        ("http://127.0.0.1:{closed}", "Connection refused"),
        ("http://127.0.0.1:{mute}", "Read timed out"),
        ("http://me:secret@mlflow.invalid:5000", "Failed to resolve 'mlflow.invalid'"),
        ("http://me:se@cret@mlflow.invalid:5000", "Failed to resolve 'mlflow.invalid'"),
        ("http://me:secret@mlflow.invalid:none", "Invalid url: http://mlflow.invalid:none/"),
        ("postgres://me:se/cret@localhost/mlflow?password=secret", "unsupported URI 'postgres://localhost/mlflow'"),
        ("postgresql://me:secret@127.0.0.1:{closed}/mlflow", "Connection refused"),
        ("postgresql://me:secret@127.0.0.1:{mute}/mlflow", "connection timeout expired"),
        ("foo://bar", "unsupported URI 'foo://bar'"),
        ("127.0.0.1:5000", "filesystem tracking backend"),
    ],
)
def test_a_server_that_is_none(website: str, uri: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed, socket.socket() as mute:
        closed.bind(("127.0.0.1", 0))  # bound, yet not listening: connections are refused
        mute.bind(("127.0.0.1", 0))
        mute.listen()  # accepts connections and never answers
        uri = uri.format(website=website, closed=closed.getsockname()[1], mute=mute.getsockname()[1])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        line = fails(params())
    public = re.sub("me:.*@|[?].*", "", uri)
    assert line.startswith(f"MLflow cannot use {public}: ")
    assert "correct MLFLOW_TRACKING_URI" in line
    assert reason in line
    assert "tracking.enabled: false" in line
    assert "cret" not in line


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("closed", "Connection refused"),
        ("401", "error code 401.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("403", "error code 403.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_an_evaluation_whose_server_cannot_be_used_keeps_what_it_would_log(
    website: str,
    place: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    at(monkeypatch, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}" if place == "closed" else f"{website}/{place}"
        record = {"mlflow": {"run_id": "0" * 32, "tracking_uri": uri}, "tensorboard": None}
        with mlflow_run.resumed_run(ON, record) as run:
            run.log_metrics({"test_accuracy": 0.75})
    waiting = f"not logged yet: 1 record.s. of run {'0' * 32}, in {tmp_path}/unlogged/{'0' * 32}; "
    for line in capfd.readouterr().err.splitlines():
        assert re.match(f"MLflow: {uri}: .*{reason}.*; {waiting}", line)
    assert (tmp_path / "unlogged" / ("0" * 32)).exists()
