import warnings
from pathlib import Path
from typing import get_args

import pytest
import yaml
from dvc.utils.serialize import ParseError, load_yaml
from hypothesis import given
from hypothesis import strategies as st

from merging import deep_merge
from vision.core import config, device
from vision.pipeline.errors import UserError
from vision.pipeline.params import Augment, Evaluate, Optimizer, Params, Section, Train, load_params
from vision.pipeline.paths import ROOT
from vision.pipeline.strict_yaml import read_yaml

TEXT = (ROOT / "params.yaml").read_text()


def refusal(tmp_path: Path, text: str | bytes) -> list[str]:
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_params(path)
    return str(error.value).splitlines()


def changed(**sections: dict[str, object]) -> str:
    return yaml.safe_dump(deep_merge(yaml.safe_load(TEXT), sections))


def test_the_projects_own_file_is_valid_and_every_key_has_a_comment() -> None:
    params = load_params()
    assert params.train.lr > 0
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    bare = [line.strip() for line in lines if "#" not in line and not line.strip().startswith("-")]
    sections = [name for name in Params.model_fields if name != "seed"]
    assert sorted(bare) == sorted(f"{name}:" for name in [*sections, "optimizer", "augment"])


def space(**bounds: object) -> dict[str, object]:
    return {"space": [{"parameter": "train.lr", **bounds}]}


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("train", {"lr": -1}, "params.yaml: train.lr: must be greater than 0 (got -1)"),
        ("train", {"lr": float("nan")}, "params.yaml: train.lr: must be a finite number (got nan)"),
        ("train", {"lr": "fast"}, "params.yaml: train.lr: must be a valid number (got 'fast')"),
        ("train", {"epochs": 2.5}, "params.yaml: train.epochs: must be a valid integer (got 2.5)"),
        ("train", {"epochs": True}, "params.yaml: train.epochs: must be a valid integer (got True)"),
        (
            "train",
            {"augment": {"flip": "up"}},
            "params.yaml: train.augment.flip: must be 'none', 'random' or 'alternate' (got 'up')",
        ),
        (
            "train",
            {"augment": {"rotation": 181}},
            "params.yaml: train.augment.rotation: must be less than or equal to 180 (got 181)",
        ),
        ("train", {"augment": {"cutout": 1.5}}, "params.yaml: train.augment.cutout: must be a valid integer (got 1.5)"),
        (
            "train",
            {"augment": {"mixup": -1}},
            "params.yaml: train.augment.mixup: must be greater than or equal to 0 (got -1)",
        ),
        (
            "train",
            {"augment": {"cutmix": float("inf")}},
            "params.yaml: train.augment.cutmix: must be a finite number (got inf)",
        ),
        (
            "train",
            {"augment": {"color_jitter": [0.1, 0.1, 0.1]}},
            "params.yaml: train.augment.color_jitter: must have at least 4 items (got [0.1, 0.1, 0.1])",
        ),
        (
            "train",
            {"augment": {"color_jitter": [0, 0, 0, 0.6]}},
            "params.yaml: train.augment.color_jitter: must have a hue, its last number, of at most 0.5 (got",
        ),
        ("train", {"learning_rat": 1}, "params.yaml: train.learning_rat: unknown key"),
        ("train", {"epoch": 1}, "params.yaml: train.epoch: unknown key; did you mean train.epochs?"),
        (
            "preprocess",
            {"val_fraction": 0.9},
            "params.yaml: preprocess.val_fraction: must be less than or equal to 0.5",
        ),
        (
            "preprocess",
            {"classes": ["cat", "cat"]},
            "params.yaml: preprocess.classes: must have unique names (got ['cat', 'cat'])",
        ),
        ("preprocess", {"train_limit": 0}, "params.yaml: preprocess.train_limit: must be greater than or equal to 1"),
        (
            "model",
            {"convnet": {"widths": [], "depth": 2}},
            "params.yaml: model.convnet.widths: must have at least 1 item (got [])",
        ),
        (
            "model",
            {"convnet": {"widths": [8, "x"], "depth": 2}},
            "params.yaml: model.convnet.widths.1: must be a valid integer (got 'x')",
        ),
        (
            "model",
            {"torchvision": {"stem": "small", "sten": 1}},
            "params.yaml: model.torchvision.sten: unknown key; did you mean model.torchvision.stem?",
        ),
        ("model", {"name": "../x"}, "params.yaml: model.name: must match pattern '^[a-z0-9_]+$' (got '../x')"),
        ("tracking", {"enabled": "yes"}, "params.yaml: tracking.enabled: must be a valid boolean (got 'yes')"),
        ("download", {"source": ""}, "params.yaml: download.source: must not be blank (got '')"),
        (
            "download",
            {"dataset": "mnist"},
            "params.yaml: download.dataset: must be 'cifar10', 'cifar100' or 'folder' (got 'mnist')",
        ),
        (
            "download",
            {"dataset": "folder", "source": "auto"},
            "params.yaml: download.source: must be the path of the folder of images, such as ../photos (got 'auto')",
        ),
        (
            "download",
            {"source": "a.tar.gz", "checksums": {"a.tar.gz": "5dd7"}},
            "params.yaml: download.checksums.a.tar.gz: must be an MD5 (32 digits of 0-9a-f) or a SHA-256 (64)",
        ),
        (
            "download",
            {"source": "a.tar.gz", "checksums": {}},
            "params.yaml: download.checksums: must have at least 1 item (got {})",
        ),
        (
            "download",
            {"source": "a.tar.gz", "checksums": "a.md5"},
            "params.yaml: download.checksums: must be a valid dictionary (got 'a.md5')",
        ),
        (
            "download",
            {"source": "auto", "checksums": {"a.tar.gz": "0" * 32}},
            "params.yaml: download.checksums: must be null for source: auto and for dataset: folder (got {'a.tar.gz': ",
        ),
        ("preprocess", {"test_fraction": 0}, "params.yaml: preprocess.test_fraction: must be greater than 0 (got 0)"),
        ("preprocess", {"folds": 1}, "params.yaml: preprocess.folds: must be greater than or equal to 2 (got 1)"),
        (
            "preprocess",
            {"folds": 5, "fold": 5},
            "params.yaml: preprocess.fold: must be less than preprocess.folds, which is 5 (got 5)",
        ),
        ("preprocess", {"image_size": 4}, "params.yaml: preprocess.image_size: must be greater than or equal to 8"),
        ("search", {"study": "a b"}, "params.yaml: search.study: must match pattern"),
        ("search", {"space": []}, "params.yaml: search.space: must have at least 1 item (got [])"),
        ("search", space(), "params.yaml: search.space.0: must have choices, or low and high with low < high (got {"),
        (
            "search",
            space(low=1),
            "params.yaml: search.space.0: must have choices, or low and high with low < high (got {",
        ),
        (
            "search",
            space(low=2, high=1),
            "params.yaml: search.space.0: must have choices, or low and high with low < high",
        ),
        (
            "search",
            space(low=0, high=1, log=True),
            "params.yaml: search.space.0: must have low > 0 if log is true",
        ),
        ("search", space(low=0, high=1, choices=[1]), "params.yaml: search.space.0: must have either choices, or low"),
        ("search", space(choices=[]), "params.yaml: search.space.0.choices: must have at least 1 item (got [])"),
        ("search", space(low="a", high=1), "params.yaml: search.space.0.low: must be a finite number (got 'a')"),
        (
            "search",
            space(low=0, hihg=1),
            "params.yaml: search.space.0.hihg: unknown key; did you mean search.space.0.high?",
        ),
        ("evaluate", {"batch_size": 10**30}, "params.yaml: evaluate.batch_size: must be less than or equal to 1000000"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, section: str, values: dict[str, object], line: str) -> None:
    lines = refusal(tmp_path, changed(**{section: values}))
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_all_mistakes_are_shown_at_once(tmp_path: Path) -> None:
    text = changed(train={"lr": 0, "epochs": 0, "wat": 1}, evaluate={"tta": "many"})
    assert {line.split(": ")[1] for line in refusal(tmp_path, text)} == {
        "train.lr", "train.epochs", "train.wat", "evaluate.tta",
    }  # fmt: skip


def test_a_missing_key_a_misspelt_section_and_a_section_that_is_none(tmp_path: Path) -> None:
    misspelt = TEXT.replace("  lr:", "  lrr:")
    assert refusal(tmp_path, misspelt) == ["params.yaml: train.lrr: unknown key; did you mean train.lr?"]
    missing, unknown = refusal(tmp_path, misspelt.replace("lrr:", "zzz:"))
    assert missing == "params.yaml: train.lr: missing"
    assert unknown.startswith("params.yaml: train.zzz: unknown key; known keys: device, precision, deterministic, ")
    assert "params.yaml: 1: a key must be a string" in refusal(tmp_path, TEXT + "1: 2\n")
    misspelt = TEXT.replace("train:", "trian:")
    assert refusal(tmp_path, misspelt) == ["params.yaml: trian: unknown key; did you mean train?"]
    assert refusal(tmp_path, changed().replace("seed: 0", "seed: 0\nextra: 1"))[0].startswith(
        "params.yaml: extra: unknown"
    )
    document = yaml.safe_load(TEXT) | {"train": 3}
    assert refusal(tmp_path, yaml.safe_dump(document)) == ["params.yaml: train: must be a section of keys (got 3)"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a mapping of sections"),
        ("- a\n- b\n", "must be a mapping of sections"),
        ("seed: 0\nseed: 1\n", 'line 2: found duplicate key "seed"'),
        ("train: {lr: 1\n", "line 2: expected"),
        (b"\x80\x81", "not a text file"),
        ("seed: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
        ("seed: 2024-13-45\n", "not valid YAML (month must be in 1..12"),
        ("!!map [1]\n", "line 1: expected a mapping node"),
    ],
)
def test_a_file_that_is_no_such_mapping_is_refused_in_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    lines = refusal(tmp_path, text)
    assert len(lines) == 1
    assert says in lines[0]


SCALARS = ["1e-3", "1.e+3", "0.1", ".5", "1_000", "010", "0o10", "0x1f", "yes", "no", "on", "true", "null", "~", "1:30"]
SCALARS += ["2024-01-02", ".inf", ".nan", "'1'", '"a b"', "[1, 2.5, x]", "{a: 1e3}", "+1", "-0", "1.", "!!str 1", "="]


@pytest.mark.parametrize("scalar", SCALARS)
def test_values_are_read_as_dvc_reads_them(tmp_path: Path, scalar: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"a: {scalar}\n")
    try:
        expected = load_yaml(str(path))
    except ParseError:
        with pytest.raises(UserError):
            read_yaml(path)
    else:
        assert repr(read_yaml(path)) == repr(expected)


PIECES = [
    "a: ",
    "b: ",
    "- ",
    "\n",
    "  ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    "1",
    "x",
    "'",
    '"',
    "!!int ",
    "!!bool ",
    "!!set ",
    "!x ",
    "&a ",
    "*a",
]
PIECES += [
    "|",
    ">",
    "#",
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "<<: ",
    "2024-13-01",
    "0x",
    "\t",
    "\0",
    "\u2028",
    "\ufeff",
    ", ",
    ": ",
    "@",
    "=",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = ""
        try:
            read_yaml(path)
        except UserError as error:
            message = str(error)
        assert message.isprintable()


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("section", "key", "known"),
    [
        (Train, "device", device.Device),
        (Train, "precision", device.Precision),
        (Optimizer, "name", config.OptimizerName),
        (Train, "schedule", config.ScheduleName),
        (Augment, "flip", config.Flip),
        (Evaluate, "tta", config.TTA),
    ],
)
def test_the_schema_offers_what_the_core_knows(section: type[Section], key: str, known: object) -> None:
    assert get_args(section.model_fields[key].annotation) == get_args(known)


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_numbers_are_read_however_they_are_written(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    for written in (repr(value), f"{value:e}", f"{value:.0e}"):
        path.write_text(TEXT.replace(f"  lr: {load_params().train.lr}", f"  lr: {written}"))
        assert load_params(path).train.lr == float(written)
