"""The aliases in MLflow's registry, on a real store, by real processes at once."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from processes import run_concurrently
from vision.tracking.registry import register

CLASSES = '["cat", "dog"]'


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def enter(
    client: MlflowClient, val_accuracy: float | None, classes: str = CLASSES, split: str = "ab", name: str = "pets"
) -> None:
    tags = {"classes": classes, "split_digest": split} | (
        {} if val_accuracy is None else {"val_accuracy": repr(val_accuracy)}
    )
    register(client, name, client.create_logged_model("0").model_id, tags)


def held(client: MlflowClient, alias: str) -> ModelVersion:
    return client.get_model_version_by_alias("pets", alias)


def test_the_champion_is_the_one_that_validates_best_and_the_challenger_the_newest(client: MlflowClient) -> None:
    champions = []
    for accuracy in (None, 0.5, 0.4, 0.5, 0.6, None, 0.1):
        enter(client, accuracy)
        versions = client.search_model_versions("name = 'pets'")
        assert int(held(client, "challenger").version) == len(versions)
        champion = client.get_registered_model("pets").aliases.get("champion")
        champions.append(champion and int(champion))
    assert champions == [None, 2, 2, 2, 5, 5, 5], "it moves to what beats it, and to nothing else"


def test_accuracies_on_other_classes_or_validation_images_are_not_compared(
    client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    enter(client, 0.5)
    enter(client, 0.9, classes='["cat", "dog", "frog"]')
    enter(client, 0.9, split="cd")
    assert int(held(client, "champion").version) == 1
    assert held(client, "challenger").tags["split_digest"] == "cd"
    of_pets = "MLflow: version {} of pets cannot be compared with version 1 (different {}), which stays champion"
    assert capfd.readouterr().err.splitlines() == [of_pets.format(2, "classes"), of_pets.format(3, "split_digest")]
    enter(client, 0.6)
    assert int(held(client, "champion").version) == 4
    assert capfd.readouterr().err == ""


def test_a_choice_by_hand_stays_until_a_newer_one_is_better(client: MlflowClient) -> None:
    for accuracy in (0.5, 0.9, 0.6):
        enter(client, accuracy)
    client.set_registered_model_alias("pets", "champion", "3")
    enter(client, 0.55)
    assert int(held(client, "champion").version) == 3
    enter(client, 0.7)
    assert int(held(client, "champion").version) == 5


def test_the_champion_may_be_deleted(client: MlflowClient) -> None:
    for accuracy in (0.5, 0.9):
        enter(client, accuracy)
    client.delete_model_version("pets", "2")
    enter(client, 0.4)
    assert int(held(client, "champion").version) == 1


ENTER = """
import sys, mlflow
from vision.tracking.spool import send
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
experiment_id = client.get_experiment_by_name("pets").experiment_id
print("ready", flush=True)
sys.stdin.readline()
for accuracy in map(float, sys.argv[2:]):
    run_id = client.create_run(experiment_id).info.run_id
    client.create_logged_model(experiment_id, source_run_id=run_id)
    send(client, run_id, {"register": {"val_accuracy": repr(accuracy)}}, None)
"""


@pytest.mark.slow
def test_of_many_at_once_the_best_is_champion_and_the_newest_challenger(client: MlflowClient, tmp_path: Path) -> None:
    client.create_experiment("pets")
    accuracies = [[str((7 * number + 3 * turn) % 16 / 16) for turn in range(4)] for number in range(4)]
    run_concurrently([[ENTER, f"sqlite:///{tmp_path}/mlflow.db", *some] for some in accuracies])
    versions = client.search_model_versions("name = 'pets'")
    assert len(versions) == 16
    best = max(float(version.tags["val_accuracy"]) for version in versions)
    assert float(held(client, "champion").tags["val_accuracy"]) == best
    assert int(held(client, "challenger").version) == 16


@pytest.mark.parametrize(("experiment", "name"), [("cifar10", "cifar10"), ("a/b: 'c'.d", "a-b- -c--d")])
def test_a_name_that_mlflow_takes(client: MlflowClient, experiment: str, name: str) -> None:
    enter(client, 0.5, name=experiment)
    assert client.get_registered_model(name).aliases["champion"] == 1
