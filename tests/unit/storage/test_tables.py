import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import (
    ClassScores,
    CorruptionScore,
    Environment,
    HistoryRow,
    RunRecord,
    SplitCounts,
    TrainMetrics,
)
from vision.storage import tables

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@given(st.lists(st.tuples(NAMES, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=5))
def test_tables_are_read_as_written_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    tables.write_csv(path, ["name", "value"], rows)
    assert [(row["name"], float(row["value"])) for row in tables.read_csv(path)] == rows


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    tables.write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        tables.write_json(path, {"accuracy": math.nan})
    assert tables.read_json(path) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]


EPOCH = {"epoch": 1, "lr": 0.1, "image_scale": 1.0, "images": 10, "train_loss": 2.3, "train_accuracy": 0.1}
TRAIN = {"best_epoch": 1, "epochs": 1, "stopped_early": False, "train_loss": 2.3, "train_accuracy": 0.1}


@pytest.mark.parametrize(
    "model",
    [
        TrainMetrics(**TRAIN, val_loss=2.0, val_accuracy=0.2, parameters=5),  # type: ignore[arg-type]
        TrainMetrics(**TRAIN, parameters=5),  # type: ignore[arg-type]
        RunRecord(
            mlflow=None,
            tensorboard="tensorboard/a",
            environment=Environment(device="cpu", device_name="x", precision="fp32", versions={}, threads=2),
        ),
    ],
    ids=["train", "train without validation", "run"],
)
def test_a_model_is_read_as_written(tmp_path: Path, model: BaseModel) -> None:
    tables.write_json(tmp_path / "model.json", model)
    assert tables.read_json(tmp_path / "model.json", type(model)) == model


def test_a_field_that_is_not_set_is_absent_and_one_that_is_none_is_null(tmp_path: Path) -> None:
    tables.write_json(tmp_path / "train.json", TrainMetrics(**TRAIN, parameters=5))  # type: ignore[arg-type]
    assert list(tables.read_json(tmp_path / "train.json")) == [*TRAIN, "parameters"]
    environment = Environment(device="cpu", device_name="x", precision="fp32", versions={})
    tables.write_json(tmp_path / "run.json", RunRecord(mlflow=None, tensorboard=None, environment=environment))
    document = tables.read_json(tmp_path / "run.json")
    assert (document["mlflow"], document["tensorboard"]) == (None, None)


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    history = [
        HistoryRow.model_validate({**EPOCH, "val_loss": None, "val_accuracy": None}),
        HistoryRow.model_validate({**EPOCH, "val_loss": 1.5, "val_accuracy": 1 / 3}),
    ]
    tables.write_rows(tmp_path / "history.csv", history)
    assert tables.read_csv(tmp_path / "history.csv", HistoryRow) == history
    header, first, _ = (tmp_path / "history.csv").read_text().splitlines()
    assert header == "epoch,lr,image_scale,images,train_loss,train_accuracy,val_loss,val_accuracy"
    assert first == "1,0.1,1.0,10,2.3,0.1,,"

    scores = [ClassScores(name="a,b", precision=0.5, recall=1 / 3, recall_low=0, recall_high=1, f1=0.4, images=3)]
    tables.write_rows(tmp_path / "per_class.csv", scores)
    assert tables.read_csv(tmp_path / "per_class.csv", ClassScores) == scores
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        "class,precision,recall,recall_low,recall_high,f1,images,prediction_set_size",
        f'"a,b",0.5,{1 / 3},0.0,1.0,0.4,3,',
    ]


def test_a_header_without_rows_is_read_only_if_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "corruptions.csv"
    tables.write_rows(path, [], CorruptionScore)
    assert path.read_text() == "corruption,severity,images,accuracy\n"
    assert tables.read_csv(path, CorruptionScore, allow_empty=True) == []
    with pytest.raises(UserError, match="has no rows"):
        tables.read_csv(path, CorruptionScore)
    path.write_text("")
    with pytest.raises(UserError, match="has no rows"):
        tables.read_csv(path, CorruptionScore, allow_empty=True)


def test_values_out_of_range_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ClassScores(name="cat", precision=1.5, recall=0.5, recall_low=0, recall_high=1, f1=0.5, images=3)
    (tmp_path / "a.csv").write_text("class,precision,recall,recall_low,recall_high,f1,images\ncat,1.5,0.5,0,1,0.5,3\n")
    with pytest.raises(UserError, match=r"a.csv: line 2: precision: must be less than or equal to 1 \(got '1.5'\)"):
        tables.read_csv(tmp_path / "a.csv", ClassScores)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": 1, "val": 2, "test": 3, "more": 4}', "more: unknown key"),
        ('{"train": 1, "val": 2}', "test: missing"),
        ('{"train": 1, "val": 2, "test": "3"}', r"test: must be a valid integer \(got '3'\)"),
        ("{", "not valid JSON"),
    ],
)
def test_json_that_does_not_match_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=f"a.json: {message}.*; delete it and run `dvc repro`"):
        tables.read_json(tmp_path / "a.json", SplitCounts)
