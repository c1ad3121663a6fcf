"""Every parameter at and beyond its limits: what is outside is one line that names it, and what is inside works.

The parameters and their limits are read from the schema itself, so that a new one is tried too.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import deep_merge
from official_formats import make_set
from stages import Snapshot, Stages, change_params, small_checkout
from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, load_params, parameter_names, validate_params
from vision.pipeline.paths import ROOT
from vision.pipeline.validation import has_control_characters

BASE = yaml.safe_load((ROOT / "params.yaml").read_text())
SCHEMA = Params.model_json_schema()


def described(name: str) -> dict[str, Any]:
    """The JSON schema of a parameter."""
    found = SCHEMA
    for key in name.split("."):
        found = found["properties"][key]
        found = SCHEMA["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found
    return found


PARAMETERS = {name: described(name) for name in parameter_names()}


def kinds(described: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be: one of these."""
    return described.get("anyOf", [described])


# What only code says, and no schema.
RULES = {
    "download.dataset": st.sampled_from(["cifar10", "cifar100"]),  # a folder wants its path too
    "download.checksums": st.none(),  # they want a source too
    "preprocess.fold": st.just(0),  # there are no folds
    "preprocess.classes": st.lists(st.text(), min_size=2, max_size=5, unique=True),
    "train.augment.color_jitter": st.tuples(*[st.floats(0, 1000)] * 3, st.floats(0, 0.5)).map(list),
    "search.space": st.just(BASE["search"]["space"]),
}
ON_ONE_LINE = (
    "download.source",
    "preprocess.groups",
    "model.weights",
    "evaluate.corruptions",
    "report.title",
    "report.intended_use",
    "report.license",
    "tracking.experiment",
)


def inside(name: str) -> st.SearchStrategy[Any]:
    """Values that a parameter may have, its limits among them."""
    return RULES[name] if name in RULES else st.one_of([_inside(name, kind) for kind in kinds(PARAMETERS[name])])


def _inside(name: str, kind: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in kind:
        return st.sampled_from(kind["enum"])
    if "const" in kind:
        return st.just(kind["const"])
    match kind["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = kind.get("minimum"), kind.get("maximum", kind.get("exclusiveMaximum", 2**70 + 1) - 1)
            return st.integers(low, high) | st.sampled_from([low, high])
        case "number":
            low, high = lowest(kind), highest(kind)
            return st.floats(low, high) | st.sampled_from([low, high])
        case "array":
            return st.lists(_inside(name, kind["items"]), min_size=kind.get("minItems", 0), max_size=kind["maxItems"])
        case "string" if "pattern" in kind:
            return st.from_regex(kind["pattern"], fullmatch=True).filter(lambda text: len(text) <= kind["maxLength"])
        case "string":
            text = st.text(min_size=1, max_size=kind["maxLength"])
            return text.filter(
                lambda text: not has_control_characters(text) and bool(text.strip()) if name in ON_ONE_LINE else True
            )
    raise AssertionError(kind)


def lowest(kind: dict[str, Any]) -> float:
    return kind["minimum"] if "minimum" in kind else math.nextafter(kind["exclusiveMinimum"], math.inf)


def highest(kind: dict[str, Any]) -> float:
    if "maximum" in kind:
        return kind["maximum"]
    return math.nextafter(kind["exclusiveMaximum"], -math.inf) if "exclusiveMaximum" in kind else sys.float_info.max


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=2), st.just({}),
    st.dictionaries(st.text(), st.integers(), max_size=2), st.just([[]]), st.just(10**400),
)  # fmt: skip


def outside(name: str) -> st.SearchStrategy[Any]:
    """Values that a parameter may not have: of other types, beyond its limits, and too many or too few."""
    tried = [ANYTHING.filter(lambda value: not any(_is_of(value, kind) for kind in kinds(PARAMETERS[name])))]
    for kind in kinds(PARAMETERS[name]):
        tried += _beyond(name, kind)
    return st.one_of(tried)


def _is_of(value: object, kind: dict[str, Any]) -> bool:
    """Whether the value is of the type."""
    if "enum" in kind:
        return value in kind["enum"]
    if "const" in kind:
        return value == kind["const"]
    match kind["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case _:
            return isinstance(value, list)


def _beyond(name: str, kind: dict[str, Any]) -> list[st.SearchStrategy[Any]]:
    """Values of the right type that are too much or too little."""
    tried: list[st.SearchStrategy[Any]] = []
    match kind.get("type"):
        case "integer":
            tried.append(st.integers(max_value=kind["minimum"] - 1))
            if (high := kind.get("maximum", kind.get("exclusiveMaximum", math.inf) - 1)) != math.inf:
                tried.append(st.integers(min_value=int(high) + 1))
        case "number":
            tried += [st.floats(max_value=math.nextafter(lowest(kind), -math.inf)), st.sampled_from([math.nan])]
            tried.append(st.floats(min_value=math.nextafter(highest(kind), math.inf)))
        case "array" if "maxItems" in kind and "$ref" not in kind["items"]:
            item, least = _inside(name, kind["items"]), kind.get("minItems", 0)
            tried.append(st.lists(item, min_size=kind["maxItems"] + 1, max_size=kind["maxItems"] + 3))
            if least:
                tried.append(st.lists(item, max_size=least - 1))
            for wrong in _beyond(name, kind["items"]):
                tried.append(st.lists(wrong, min_size=max(1, least), max_size=max(2, least)))
        case "array":
            tried.append(st.just([]))
        case "string" if "pattern" in kind:
            tried += [st.sampled_from(["", " ", "../x", "a b", "ä", "a\n"]), st.just("a" * (kind["maxLength"] + 1))]
        case "string" if name in ON_ONE_LINE:
            tried += [st.just("a" * (kind["maxLength"] + 1)), st.text(st.sampled_from(" \n\0\x1b\u2028"), min_size=1)]
    return tried


def with_value(name: str, value: object) -> dict[str, Any]:
    """The project's own parameters, but for one."""
    document = json.loads(json.dumps(BASE))
    *sections, key = name.split(".")
    inner = document
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return document


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_is_inside_is_accepted_and_what_is_outside_is_one_line_that_names_it(name: str) -> None:
    @settings(database=None)  # each example is a value inside and one outside
    @given(inside(name), outside(name))
    def each(good: object, bad: object) -> None:
        validate_params(with_value(name, good), "params.yaml")
        with pytest.raises(UserError) as error:
            validate_params(with_value(name, bad), "params.yaml")
        lines = str(error.value).splitlines()
        assert all(line.startswith(f"params.yaml: {name}") or line.endswith(" more errors") for line in lines)
        assert len(lines) == 1 or isinstance(bad, (list, dict))  # a line for each wrong part
        assert all(len(line) < 400 and line.isprintable() for line in lines)

    each()


def numbers(name: str) -> list[float]:
    """The least and the largest number that a parameter may be."""
    if name in RULES:
        return []
    found: list[float] = []
    for kind in kinds(PARAMETERS[name]):
        if kind.get("type") == "number":
            found += [lowest(kind), highest(kind)]
        elif kind.get("type") == "integer":
            found += [kind["minimum"], kind.get("maximum", kind.get("exclusiveMaximum", 2**70 + 1) - 1)]
    return found


@pytest.mark.parametrize("name", [name for name in PARAMETERS if numbers(name)])
def test_limits_are_read_from_the_file_as_they_are_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for value in numbers(name):
        path.write_text(yaml.safe_dump(with_value(name, value)))
        found: Any = load_params(path)
        for key in name.split("."):
            found = getattr(found, key)
        assert found == value


# In the real stages.

PLAIN = {"widths": [8], "depth": 1, "kernel": 3, "padding": "same", "batch_norm": False, "hidden": [], "dropout": 0.0}
ALMOST_ONE = math.nextafter(1, 0)
LEAST = 5e-324


def train(**values: Any) -> dict[str, Any]:
    return {"train": values}


def convnet(**values: Any) -> dict[str, Any]:
    return {"model": {"convnet": {"widths": [8, 16], "depth": 1} | values}}


def optimizer(name: str, lr: float | None = None, **values: Any) -> dict[str, Any]:
    return {"train": ({} if lr is None else {"lr": lr}) | {"optimizer": {"name": name} | values}}


def augment(**values: Any) -> dict[str, Any]:
    return {"train": {"augment": values}}


def plain_cnn(**values: Any) -> dict[str, Any]:
    return {"model": {"name": "plain_cnn", "plain_cnn": PLAIN | values}, "train": {"optimizer": {"name": "sgd"}}}


WORKS = ""
SCHEDULES = ("constant", "step", "cosine", "linear", "one_cycle")
DIVERGED = "diverged: * loss is not finite*; lower train.lr (now *)"
PREPROCESS = {
    "the largest images": ({"image_size": 1024, "train_limit": 20}, WORKS),
    "the smallest images": ({"image_size": 8}, WORKS),
    "more samples than images": ({"samples_per_class": 50}, WORKS),
    "as many folds as images": ({"folds": 20, "fold": 19}, WORKS),
    "more folds than images": ({"folds": 1000, "fold": 999}, "params.yaml: preprocess.folds: *; use fewer"),
    "half of them": ({"val_fraction": 0.5, "test_fraction": 0.5}, WORKS),
    "next to none of them": ({"val_fraction": LEAST}, "params.yaml: preprocess.val_fraction: takes 0 images, *"),
    "no validation": ({"val_fraction": 0, "test_fraction": LEAST}, WORKS),
    "the least training images": ({"train_limit": 10}, WORKS),
    "too few training images": ({"train_limit": 9}, "params.yaml: preprocess.train_limit: takes 9 images, *"),
    "an endless limit": ({"train_limit": 2**70}, WORKS),
    "two classes": ({"classes": ["cat", "dog"]}, WORKS),
    "no such class": ({"classes": ["cat", "\0\n\u2028"]}, "params.yaml: preprocess.classes: the data has no class *"),
    "an empty name": ({"classes": ["cat", ""]}, "params.yaml: preprocess.classes: the data has no class ''; *"),
}
TRAIN: dict[str, tuple[dict[str, Any], str]] = {
    **{f"muon at {lr:g}": (train(lr=lr), WORKS) for lr in (LEAST, 1e30)},
    **{f"{name} at the least rate": (optimizer(name, lr=LEAST), WORKS) for name in ("sgd", "adam", "adamw")},
    "adamw_lr at its most": (optimizer("muon", adamw_lr=1e30), f"{DIVERGED} or train.optimizer.adamw_lr (now 1e+30)"),
    "sgd at its most": (deep_merge(optimizer("sgd", lr=1e30, momentum=ALMOST_ONE), train(epochs=3, batch_size=2)), DIVERGED),
    "adam at its most": (optimizer("adam", lr=1e30), DIVERGED),
    "weight_decay at its most": (deep_merge(optimizer("sgd", weight_decay=1e6), train(epochs=3)), DIVERGED),
    "weight_decay of adamw at its most": (deep_merge(optimizer("adamw", lr=1e30, weight_decay=1e6), train(epochs=3)), DIVERGED),
    "momentum at its most": (optimizer("muon", momentum=ALMOST_ONE), WORKS),
    "batches beyond the data": (train(batch_size=1_000_000), WORKS),
    "batches of two": (train(batch_size=2), WORKS),
    **{f"{name} with warm-up nearly to the end": (train(schedule=name, warmup=ALMOST_ONE, epochs=2), WORKS) for name in SCHEDULES},
    **{f"{name} of one step": (train(schedule=name, warmup=0.999, batch_size=1_000_000), WORKS) for name in SCHEDULES},
    "gradients clipped to nothing": (train(clip_grad_norm=LEAST), WORKS),
    "gradients hardly clipped": (train(clip_grad_norm=1e30), WORKS),
    "labels smoothed to nothing": (train(label_smoothing=ALMOST_ONE), WORKS),
    "the widest shift": (augment(crop_padding=64), WORKS),
    "the widest rotation": (augment(rotation=180), WORKS),
    "the least rotation": (augment(rotation=LEAST), WORKS),
    "the largest square": (augment(cutout=4096), WORKS),
    "the widest blur": (augment(blur=1000), WORKS),
    "the most noise": (augment(noise=1000), WORKS),
    "the least blur and noise": (augment(blur=LEAST, noise=LEAST), WORKS),
    "the most color": (augment(color_jitter=[1000, 1000, 1000, 0.5]), WORKS),
    "the least color": (augment(color_jitter=[LEAST] * 4), WORKS),
    **{f"{name} at {alpha:g}": (augment(**{name: alpha}), WORKS) for name in ("mixup", "cutmix") for alpha in (LEAST, 1000)},
    "the least images": (train(progressive_resizing=[0.001]), WORKS),
    "many scales": (train(progressive_resizing=[0.001, 1] * 50), WORKS),
    "the least shares": (train(hard_example_fraction=[0.001] * 100, epochs=2), WORKS),
    "an average of all": (train(ema_decay=ALMOST_ONE), WORKS),
    "an average of nothing": (train(ema_decay=LEAST), WORKS),
    "endless patience": (train(patience=2**70), WORKS),
    "checkpoints at once": (train(checkpoint_seconds=LEAST), WORKS),
    "checkpoints never": (train(checkpoint_seconds=sys.float_info.max), WORKS),
    "frozen for ever": ({"model": {"freeze_epochs": 2**70}}, WORKS),
    "the last seed": ({"seed": 2**32 - 1}, WORKS),
    "one channel": (convnet(widths=[1]), WORKS),
    "one channel four times": (convnet(widths=[1] * 4, depth=16), WORKS),
    "the deepest": (convnet(widths=[8] * 4, depth=16), WORKS),
    "images enlarged": ({"model": {"image_size": 256}}, WORKS),
    "images shrunk to two pixels": ({"model": {"image_size": 2}}, WORKS),
    "images of a pixel in both ways": ({"model": {"image_size": 2}, "train": {"progressive_resizing": [0.001]}}, "params.yaml: train.progressive_resizing: the network cannot take images of 2x2 pixels, *"),
    "plain_cnn, as it is": (plain_cnn(), WORKS),
    "plain_cnn, one channel": (plain_cnn(widths=[1], hidden=[1] * 8), WORKS),
    "plain_cnn, all dropped": (plain_cnn(hidden=[8], dropout=ALMOST_ONE), WORKS),
    "plain_cnn, the widest filter": (plain_cnn(kernel=15), WORKS),
    "plain_cnn, the widest filter and no padding": (plain_cnn(kernel=15, padding="valid"), WORKS),
    "plain_cnn, too deep without padding": (plain_cnn(kernel=15, padding="valid", depth=16), "params.yaml: model.plain_cnn.widths: an image of 32x32 pixels is too small for *"),
    "plain_cnn, smaller images": ({**plain_cnn(), "train": {"optimizer": {"name": "sgd"}, "progressive_resizing": [0.5]}}, "params.yaml: train.progressive_resizing: the network cannot take images *"),
    "plain_cnn and muon": ({**plain_cnn(), "train": {"optimizer": {"name": "muon"}}}, "params.yaml: train.optimizer.name: muon *"),
    "a network too wide": (convnet(widths=[4096] * 4, depth=16), "params.yaml: model.convnet: * parameters are more than *; use fewer"),
    **{f"torchvision's {name}": ({"model": {"name": name, "torchvision": {"stem": "standard"}}, "train": {"optimizer": {"name": "sgd"}}}, says) for name, says in {"alexnet": "params.yaml: train.progressive_resizing: *", "vit_b_32": "params.yaml: train.progressive_resizing: *", "squeezenet1_1": WORKS, "inception_v3": "params.yaml: train.progressive_resizing: *"}.items()},
    "a stem that is not for it": ({"model": {"name": "squeezenet1_1"}}, "params.yaml: model.torchvision.stem: small is for ResNets and VGGs; use standard for squeezenet1_1"),
}  # fmt: skip
EVALUATE = {
    "one image a batch": {"batch_size": 1},
    "all images in a batch": {"batch_size": 1_000_000},
    "none again": {"tta_fraction": 0},
    "next to none again": {"tta_fraction": LEAST},
    "all again": {"tta_fraction": 1},
}
REPORT: dict[str, dict[str, Any]] = {
    "the longest title": {"title": "<x" * 500},
    "a title of all kinds": {"title": "\u202e\"'`{{ 7 * 7 }}&amp;<script>\U0001f40d"},
    "as many as can be": {"predictions": 500, "mistakes": 500, "confused_pairs": 100},
    "as few as can be": {"predictions": 1, "mistakes": 1, "confused_pairs": 1},
}
ROWS = [
    *((name, "preprocess", {"preprocess": values}, line) for name, (values, line) in PREPROCESS.items()),
    *((name, "train", sections, line) for name, (sections, line) in TRAIN.items()),
    *((name, "evaluate", {"evaluate": values}, WORKS) for name, values in EVALUATE.items()),
    *((name, "report", {"report": values}, WORKS) for name, values in REPORT.items()),
]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with small_checkout(tmp_path_factory.mktemp("limits"), make_set(n_train=200, n_test=60)) as made:
        yield made


@pytest.fixture(scope="module")
def snapshot(stages: Stages) -> Snapshot:
    return Snapshot(stages.checkout)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "sections", "line"), [pytest.param(*row, id=name) for name, *row in ROWS])
def test_what_is_accepted_works_or_is_one_line(
    stage: str, sections: dict[str, Any], line: str, stages: Stages, snapshot: Snapshot
) -> None:
    try:
        change_params(stages.checkout, **sections)
        result = stages.run(stage)
    finally:
        snapshot.restore()
    if not re.fullmatch(re.escape(f"{stage}: {line}\n" if line else "").replace(r"\*", ".*"), result.errors):
        pytest.fail(f"expected {line}\ngot {result.errors}")
    assert result.status == (1 if line else 0)
