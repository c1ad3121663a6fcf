"""What a team shares, on real servers: data and models by S3, runs by MLflow on PostgreSQL, experiments by Git.

The tests share their clones and go on from each other's results, in the order of this file.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import mlflow
import pytest
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from project import Project, clone
from servers import free_port, mlflow_server, wait_until

pytestmark = pytest.mark.slow

POSTGRES = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
"""Where its programs are; Debian keeps them out of PATH."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an S3 server that has one bucket, `team`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with urlopen(Request(f"http://{host}:{port}/team", method="PUT")):
        pass
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def first(folder: Path, bucket: str) -> Project:
    """A clone in which the pipeline has run, its commit in a bare `origin.git` and its outputs in the bucket."""
    made = replace(clone(folder), variables={"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"})
    made.set(train={"epochs": 2})
    made.run("dvc", "remote", "add", "--default", "storage", "s3://team/cifar10")
    made.run("dvc", "remote", "modify", "storage", "endpointurl", bucket)
    made.run("dvc", "repro")
    made.commit("a run")
    made.run("dvc", "push")
    made.run("git", "clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    made.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    # From here on the data is nowhere but in the bucket and in this clone.
    (folder / "cifar-10-binary.tar.gz").unlink()
    return made


def member(first: Project, name: str) -> Project:
    """A fresh clone of the same commit, with nothing in its caches."""
    folder = first.root.parent
    made = replace(first, root=folder / name, home=folder / f"{name}-home")
    made.home.mkdir()
    first.run("git", "clone", "--quiet", str(folder / "origin.git"), str(made.root))
    return made


@pytest.fixture(scope="module")
def second(first: Project) -> Project:
    return member(first, "second")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URI of a database on a PostgreSQL server of its own, which trusts all that comes from this machine."""
    initdb, postgres = shutil.which("initdb", path=POSTGRES), shutil.which("postgres", path=POSTGRES)
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed")
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to be run by root
    # Not in pytest's folders, which are closed to other users and too long for the path of a socket.
    with tempfile.TemporaryDirectory() as made:
        if user is not None:
            shutil.chown(made, user)
        command = [initdb, "--pgdata", f"{made}/data", "--username", "mlflow", "--auth", "trust", "--no-sync"]
        subprocess.run(command, cwd=made, user=user, check=True, stdout=subprocess.DEVNULL)
        port = free_port()
        command = [postgres, "-D", f"{made}/data", "-h", "127.0.0.1", "-p", str(port), "-k", made, "-F"]
        log = Path(made, "log")
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=made, user=user, stderr=output)
        try:
            wait_until(lambda: "ready to accept connections" in log.read_text(), process, log)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # "immediate": what it holds is not needed any more
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(database: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server on PostgreSQL that keeps artifacts in a folder."""
    with mlflow_server(database, folder, workers=2) as running:
        yield running.address


def assert_nothing_runs(project: Project, made: Project, *command: str) -> None:
    """Run the command in a clone and see that what is there came from the remote and is what the other one made."""
    output = project.run(*command)
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output
    for path in ("models/model.pt", "report/index.html", "data/predictions/test.csv"):
        assert (project.root / path).read_bytes() == (made.root / path).read_bytes()
    assert project.lock() == made.lock()
    assert not (project.root / "mlflow.db").exists(), "training would have opened a run"
    assert project.run("git", "status", "--porcelain") == ""


def test_pulling_brings_data_and_model_and_nothing_has_to_run(first: Project, second: Project) -> None:
    second.run("dvc", "pull")
    assert_nothing_runs(second, first, "dvc", "repro")


def test_repro_pulls_what_is_missing_instead_of_making_it(first: Project) -> None:
    assert_nothing_runs(member(first, "third"), first, "dvc", "repro", "--pull")


def test_an_experiment_goes_from_one_clone_to_another(first: Project, second: Project) -> None:
    second.run("dvc", "exp", "run", "--name", "titled", "-S", "report.title=Our title")
    second.run("dvc", "exp", "push", "origin", "titled")
    first.run("dvc", "exp", "pull", "origin", "titled")
    first.run("dvc", "exp", "apply", "titled")
    page = (first.root / "report/index.html").read_text()
    assert "Our title" in page
    assert page == (second.root / "report/index.html").read_text()


@pytest.mark.timeout(600)
def test_two_clones_train_at_once_on_one_server(first: Project, second: Project, server: str, folder: Path) -> None:
    # One of them gives a password (which this server does not ask for); it must not be kept anywhere.
    addresses = {"good": server, "bad": server.replace("//", "//me:se@cret@")}
    rates = {"good": "0.1", "bad": "1e-06"}
    projects = {
        name: replace(
            project, variables={**project.variables, "MLFLOW_TRACKING_URI": addresses[name], "OMP_NUM_THREADS": "1"}
        )
        for name, project in (("good", first), ("bad", second))
    }
    processes = [
        project.start(
            "dvc",
            "exp",
            "run",
            "-n",
            name,
            "-S",
            f"train.lr={rates[name]}",
            "-S",
            f"train.optimizer.adamw_lr={rates[name]}",
        )
        for name, project in projects.items()
    ]
    for process, output in [(process, process.communicate(timeout=500)[0]) for process in processes]:
        assert process.returncode == 0, output
        assert "cret" not in output

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == projects.keys()
    for name, project in projects.items():
        run = runs[name]
        assert (run.info.status, run.data.tags["ended"]) == ("FINISHED", "finished")
        assert run.data.params["train.lr"] == rates[name]
        assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"figures", "metrics", "report"}
        history = client.get_metric_history(run.info.run_id, "val/loss")
        assert [metric.value for metric in history] == pytest.approx(
            [float(row["val_loss"]) for row in project.table("metrics/history.csv")]
        )
        assert run.data.metrics["test_accuracy"] == project.json("metrics/test.json")["accuracy"]
        local = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="report/index.html", tracking_uri=server, dst_path=str(folder / name)
        )
        assert Path(local).read_bytes() == (project.root / "report/index.html").read_bytes()
        record = project.json("metrics/run.json")["mlflow"]
        assert record["run_id"] == run.info.run_id
        assert record["tracking_uri"] == server
        assert (
            record["page"]
            == f"{server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
        )

    versions = client.search_model_versions("name = 'cifar10'")
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs.values()}
    accuracies = {name: project.json("metrics/train.json")["val_accuracy"] for name, project in projects.items()}
    assert accuracies["good"] > accuracies["bad"]
    assert client.get_model_version_by_alias("cifar10", "champion").run_id == runs["good"].info.run_id
    newest = max(int(version.version) for version in versions)
    assert int(client.get_model_version_by_alias("cifar10", "challenger").version) == newest


def test_a_member_loads_the_champion_from_the_server(first: Project, server: str) -> None:
    script = """
import mlflow, numpy as np, torch
network = mlflow.pytorch.load_model("models:/cifar10@champion")
probabilities = network(torch.from_numpy(np.load("test_images.npy"))).detach().numpy()
print(float((probabilities.argmax(1) == np.load("test_labels.npy")).mean()))
"""
    elsewhere = replace(first, root=first.root / "data/processed", variables={"MLFLOW_TRACKING_URI": server})
    found = float(elsewhere.run("python", "-I", "-c", script).splitlines()[-1])
    assert found == pytest.approx(first.json("metrics/test.json")["accuracy_one_view"], abs=0.02)
