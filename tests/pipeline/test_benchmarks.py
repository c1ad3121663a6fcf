"""The benchmark scripts run, on so little data that their figures mean nothing."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import notebooks
import numpy as np
import overhead
import pytest
import speed
import torch
import unbalanced
import yaml

from cpp_compiler import needs_compiler
from official_formats import CLASSES, make_set
from striped_model import write_striped
from vision.core.device import has_native_bf16
from vision.pipeline.paths import ROOT
from vision.storage import arrays
from vision.storage.arrays import Split


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """6,000 training and 100 test images whose class is their brightness."""
    for split, count in {"train": 6000, "test": 100}.items():
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to((labels * 25)[:, None, None, None], (count, 32, 32, 3))
        np.save(tmp_path / f"{split}_images.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", labels)
    return tmp_path


TINY = "-S model.convnet.widths=[8,8] -S train.epochs=1\n-S train.batch_size=50\n-S train.progressive_resizing=[0.25]\n"

PEER = """
import sys
import time
import torch
import torch.nn.functional as F
import torchvision.transforms as T

open(sys.argv[0]).close()

class CifarNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.whiten = torch.nn.Conv2d(3, 4, 2)
        self.head = torch.nn.Linear(4, 10)
        self.half()
    def forward(self, x):
        return self.head(self.whiten(x).mean((2, 3)))

class Loader:
    batch_size = 500
    def __init__(self):
        data = torch.load("cifar10/train.pt", map_location=torch.device("cuda"))
        images = (data["images"].half() / 255).permute(0, 3, 1, 2)
        self.images = T.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))(images)
        self.labels = data["labels"].cuda()

def evaluate(model, loader, tta_level=0):
    time.sleep(0.1 * tta_level)
    return 0.25 * (tta_level or 1)

@torch.compile
def loss_of(model, images, labels):
    return F.cross_entropy(model(images), labels)

def print_training_details(variables, is_final_entry):
    raise RuntimeError("replaced")

def main(run, model):
    train_loader, step = Loader(), 3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(step):
        loss_of(model, train_loader.images[:500], train_loader.labels[:500]).backward()
    end.record()
    torch.cuda.synchronize()
    val_acc = evaluate(model, train_loader, tta_level=0)
    tta_val_acc = evaluate(model, train_loader, tta_level=2)
    time_seconds = 1e-3 * start.elapsed_time(end) + 100
    print_training_details(locals(), is_final_entry=True)

if __name__ == "__main__":
    raise RuntimeError("not run as a script")
"""


PEER_OF_TWO_NETS = """
import torch
import torch.nn.functional as F

hyp = {"proxy": 4, "net": 8}

def make_net(width):
    layers = [torch.nn.Conv2d(3, width, 2), torch.nn.Flatten(), torch.nn.Linear(961 * width, 10)]
    return torch.nn.Sequential(*layers).half().cuda()

def print_training_details(variables, is_final_entry):
    raise RuntimeError("replaced")

def evaluate(model, loader, tta_level=0):
    return 0.375

def main(run, hyp, model_proxy, model_trainbias, model_freezebias):
    data = torch.load('cifar10/train.pt', map_location='cuda')
    images = (data["images"].half() / 255).permute(0, 3, 1, 2)
    assert [model._orig_mod[0].bias.requires_grad for model in (model_proxy, model_trainbias, model_freezebias)] == [
        False, True, False
    ]
    for current_steps in (1, 2):
        chosen = model_proxy(images[:200])[:, 0].argsort()[-100:]
        inputs, labels = images[:200][chosen], data["labels"][:200][chosen]
        F.cross_entropy(model_trainbias(inputs), labels).backward()
        val_acc, total_time_seconds = 0.125, 0.5
        print_training_details(locals(), is_final_entry=False)
    tta_val_acc = evaluate(model_trainbias, None, tta_level=2)
    print_training_details(locals(), is_final_entry=True)
"""


PEER_WITH_SIZES = """
import os
import time
import torch

hyp = {
    "batch_size": 100, "aug": {}, "train_epochs": 0.55, "decay_epochs": 0.5, "whiten_bias_epochs": 0.1,
    "res_schedule": [24, 32], "lr_floor": 0.5,
}

@torch.compile(mode="max-autotune", fullgraph=True)
def nothing():
    raise RuntimeError

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 10)
        self.half()
    def forward(self, x):
        x = x.mean((2, 3)).to(self.head.weight.dtype)
        return 0 * self.head(x) + torch.arange(10).flip(0)

class CifarLoader:
    def __init__(self, path, train=True, batch_size=500, aug=None):
        kind = "train" if train else "test"
        data = torch.load(f"{os.environ['CIFAR_DATA']}/{kind}.pt", map_location="cuda")
        self.images = (data["images"].half() / 255).permute(0, 3, 1, 2)
        self.labels, self.epoch = data["labels"], 0
    def normalize(self, images):
        return images
    def __len__(self):
        return 10
    def __iter__(self):
        self.epoch += 1
        yield self.images[:100], self.labels[:100]

def make_optimizers(model, steps):
    assert steps == 5
    return "first", "second"

def reset_all(model, loader, first, second):
    assert (loader.epoch, first, second) == (0, "first", "second")
    time.sleep(0.3)

def run_steps(model, loader, first, second, decay_steps, whiten_bias_steps, max_steps, ctx, lr_floor):
    assert (first, second, decay_steps, whiten_bias_steps, max_steps, lr_floor) == ("first", "second", 5, 1, 6, 0.5)
    ctx.validate(model, step=6)

def setup():
    time.sleep(60)
"""


def rows(process: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    assert process.returncode == 0, process.stderr
    cells = [line.strip("| ").split(" | ") for line in process.stdout.splitlines() if line.startswith("|")]
    return {name: others for name, *others in cells}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    recipe = tmp_path / "tiny"
    recipe.write_text("-S preprocess.val_fraction=0.0\n" + TINY)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("validate", [[], ["--validate"]])
def test_speed_prints_a_table(data: Path, tiny: Path, validate: list[str]) -> None:
    arguments = ["--recipe", str(tiny), "--data", str(data), "--rounds", "1", "--repeats", "2", *validate]
    predict_tta, one_view, runs, seconds, *_ = rows(run("benchmarks/speed.py", *arguments))["tiny"]
    assert all(re.fullmatch(r"\d+\.\d\d% ± \d+\.\d\d", cell) for cell in (predict_tta, one_view))
    assert runs == "2"
    assert float(seconds) > 0


@pytest.mark.slow
def test_speed_runs_the_scripts_of_peers_on_a_cpu(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "airbench94_muon.py").write_text(PEER)
    (tmp_path / "airbench96_faster.py").write_text(PEER_OF_TWO_NETS)
    tiny.write_text(tiny.read_text() + "-S train.device=cpu")
    arguments = ["--recipe", str(tiny), "--data", str(data), "--rounds", "2"]
    process = run("benchmarks/speed.py", *arguments, "--airbench", str(tmp_path), "--airbench96", str(tmp_path))
    for name in ("airbench", "airbench, as downloaded"):
        predict_tta, one_view, runs, seconds, _, tta_seconds, *_ = rows(process)[name]
        assert (predict_tta, one_view, runs) == ("50.00% ± 0.00", "25.00% ± 0.00", "2")
        assert float(tta_seconds) >= 0.2, "what the script waits in evaluate"
        assert 99 < float(seconds) < 101, "without the averaged views"
        assert re.search(rf"tiny takes \d+\.\d+ of the time of {name} \(.*, n = 2\)", process.stdout)
    predict_tta, one_view, runs, seconds, _, _, _, images_per_s, _ = rows(process)["airbench96"]
    assert (predict_tta, one_view, runs) == ("37.50% ± 0.00", "12.50% ± 0.00", "2")
    assert (seconds, images_per_s) == ("0.50", "400"), "two steps of the hundred selected images"


@pytest.mark.slow
def test_speed_runs_the_recipes_with_a_schedule_of_sizes(data: Path, tiny: Path, tmp_path: Path) -> None:
    for name in ("e5_1.80s_single-gpu.py", "e1_1.74s_single-gpu_CHAMPION.py"):
        script = tmp_path / "fable-100m/recipes" / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(PEER_WITH_SIZES)
    tiny.write_text(tiny.read_text() + "-S train.device=cpu")
    arguments = ["--recipe", str(tiny), "--data", str(data), "--rounds", "1", "--limit", "1000", "--no-as-downloaded"]
    found = rows(run("benchmarks/speed.py", *arguments, "--fulcrum", str(tmp_path)))
    assert list(found)[2:] == ["tiny", "fulcrum_e5", "fulcrum_e1"]
    for name in ("fulcrum_e5", "fulcrum_e1"):
        predict_tta, one_view, runs, seconds, *_ = found[name]
        assert (predict_tta, one_view, runs) == ("10.00%", "10.00%", "1"), "a constant answer, of ten classes"
        assert 0.3 <= float(seconds) < 5, "the reset of the weights is timed"


@pytest.mark.slow
def test_the_settings_of_our_process_are_those_of_a_peer(data: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "airbench94_muon.py").write_text(PEER.replace("0.25 * (tta_level or 1)", DENORMAL))
    tiny.write_text(tiny.read_text() + "-S train.device=cpu")
    arguments = ["--recipe", str(tiny), "--data", str(data), "--rounds", "1", "--limit", "500"]
    found = rows(run("benchmarks/speed.py", *arguments, "--airbench", str(tmp_path)))
    assert found["airbench"][1] == "0.00%"
    assert found["airbench, as downloaded"][1] == "100.00%"


DENORMAL = "float((torch.tensor([1e-39]) * torch.tensor([0.5])).item() != 0)"
"""1 where denormal numbers are not treated as 0."""


@pytest.mark.slow
def test_speed_prints_a_line_per_problem_with_the_options(tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--airbench", str(tmp_path), "--validate", "--rounds", "0"]
    lines = run("benchmarks/speed.py", *arguments).stderr.splitlines()
    assert f"speed.py: {tmp_path}/train_images.npy: not found" in lines
    assert f"speed.py: {tmp_path}/airbench94_muon.py: not found" in lines
    assert "speed.py: --rounds and --repeats must be at least 1" in lines
    assert "speed.py: --validate: the peers train on all images and are scored on the test split" in lines
    assert all(line.startswith("speed.py: ") for line in lines)
    (tmp_path / "empty").touch()
    lines = run("benchmarks/speed.py", "--data", str(tmp_path), "--recipe", str(tmp_path / "empty")).stderr.splitlines()
    assert "speed.py: the recipe holds out images: use --validate, or preprocess.val_fraction=0.0" in lines


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("-S train.wat=1", "params.yaml has no train.wat"),
        ("-S train.lr", "expected `-S section.key=value`, not `-S train.lr`"),
        ("train.lr=1", "expected `-S section.key=value`, not `train.lr=1 `"),
    ],
)
def test_an_invalid_recipe_is_an_error(tmp_path: Path, recipe: str, message: str) -> None:
    (tmp_path / "recipe").write_text(recipe)
    with pytest.raises(ValueError, match=re.escape(message)):
        speed.read_params(ROOT / "params.yaml", tmp_path / "recipe")


def test_read_params_agrees_with_a_yaml_library(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    recipe.touch()
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["search"]["space"] = {}  # read_params skips this list
    assert speed.read_params(ROOT / "params.yaml", recipe) == document
    recipe.write_text("-S train.lr=0.5 -S model.convnet.widths=[1,2]\n-S seed=3\n-S train.augment.flip=none\n")
    changed = speed.read_params(ROOT / "params.yaml", recipe)
    assert (changed["train"]["lr"], changed["model"]["convnet"]["widths"], changed["seed"]) == (0.5, [1, 2], 3)
    assert changed["train"]["augment"]["flip"] == "none"
    (tmp_path / "params.yaml").write_text("train:\n  progressive_resizing:\n  - 1.0\n")
    with pytest.raises(ValueError, match="line 3: expected `key: value`"):
        speed.read_params(tmp_path / "params.yaml", recipe)


@pytest.mark.slow
def test_step_prints_both_tables() -> None:
    process = run("benchmarks/step.py", "--rounds", "1", "--steps", "1", "--batch-size", "8")
    assert process.returncode == 0, process.stderr
    assert "kept / returned: median" in process.stdout
    assert "convolution" in process.stdout


@pytest.mark.slow
def test_inference_prints_a_row_per_batch_and_form() -> None:
    arguments = ["--rounds", "1", "--batches", "1", "3", "--widths", "8", "8", "--size", "8"]
    process = run("benchmarks/inference.py", *arguments)
    assert process.returncode == 0, process.stderr
    found = re.findall(r"^\| (\d) \| ([\w, ]+) \| [\d.]+ \| [\d,]+ \| ([\d.]+) \|", process.stdout, re.M)
    forms = ["PyTorch, fp32", "PyTorch, bf16", "pt2, fp32", "ONNX Runtime, fp32", "ONNX Runtime, int8"]
    assert [(count, form) for count, form, _ in found] == [(count, form) for count in "13" for form in forms]
    assert [ratio for _, form, ratio in found if form == "PyTorch, fp32"] == ["1.00", "1.00"]


@pytest.mark.soak
@needs_compiler
@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="training uses PyTorch's operators here")
def test_convolution_prints_a_row_per_layer_and_network() -> None:
    _, _, *found = rows(run("benchmarks/convolution.py", "--rounds", "1", "--images", "32")).items()
    assert [name for name, _ in found[:2]] == ["64 channels, 9x9", "64 channels, 12x12"]
    assert [name for name, _ in found[-3:]] == ["resnet18, 20x20", "resnet18, 26x26", "resnet18, 32x32"]
    for _, (alone, together, ratio, _) in found:
        assert float(together) / float(alone) == pytest.approx(float(ratio), rel=0.1, abs=0.05)


@pytest.mark.soak
@needs_compiler
@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="training uses PyTorch's operators here")
def test_fused_prints_a_row_per_layer_and_network() -> None:
    _, _, *found = rows(run("benchmarks/fused.py", "--rounds", "1", "--images", "32")).items()
    assert found[0][0] == "default, 20x20: 32 channels, 19x19, pooling"
    assert found[-1][0] == "speedrun94, 32x32: training step"
    assert len(found) == 2 * 5 * (2 * 3 + 1) + 6 * 4


@pytest.mark.soak
def test_notebooks_prints_a_row_per_recipe(data: Path) -> None:
    process = run("benchmarks/notebooks.py", "two_conv", "--data", str(data), "--epochs", "1", "--target", "0.05")
    (row,) = [cells for name, cells in rows(process).items() if name.startswith("`two_conv`, 1 epochs")]
    *accuracies, _, _, theirs, ours, ratio, to_the_same = row
    assert all(float(cell.rstrip("%")) > 30 for cell in accuracies), "the classes differ in brightness"
    assert theirs != "never"
    assert ours != "never"
    assert float(ratio) > 0
    assert to_the_same in (ratio, "never"), "there is one epoch"


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_the_authors_network_is_that_of_the_recipe(name: str) -> None:
    params = speed.read_params(ROOT / "params.yaml", ROOT / "recipes" / name)
    ours = speed.build_network(params, notebooks.HALF, notebooks.HALF).eval()
    theirs = notebooks.build_authors_network(params["model"]["plain_cnn"]).eval()
    # A bias before batch normalization has no effect. Ours has none.
    with torch.no_grad():
        for convolution, normalization in itertools.pairwise(theirs):
            if isinstance(normalization, torch.nn.BatchNorm2d):
                convolution.register_parameter("bias", None)
    values = ours.network.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    assert torch.allclose(ours(images), theirs(ours.normalize(images)), atol=1e-5)


@pytest.mark.slow
def test_notebooks_reports_unknown_recipes_and_missing_data(tmp_path: Path) -> None:
    assert run("benchmarks/notebooks.py", "fast").stderr.startswith("notebooks.py: no notebook fast; choose from ")
    missing = run("benchmarks/notebooks.py", "--data", str(tmp_path)).stderr
    assert missing.startswith(f"notebooks.py: {tmp_path}/train_images.npy: not found; ")


@pytest.mark.slow
def test_notebooks_reports_a_params_yaml_that_dvc_has_rewritten(data: Path, tmp_path: Path) -> None:
    for folder in ("benchmarks", "stages", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    process = run(str(tmp_path / "benchmarks/notebooks.py"), "--data", str(data))
    assert process.returncode == 1
    assert re.fullmatch(
        r"notebooks.py: \S+/params.yaml: line \d+: .* \(`git checkout params.yaml`\?\)\n", process.stderr
    )


@pytest.mark.soak
def test_augment_prints_a_row_for_every_method() -> None:
    _, _, *found = rows(run("benchmarks/augment.py", "--rounds", "1", "--images", "24", "--batch-size", "8")).items()
    names = ["flip", "shift", "rotation", "color_jitter", "cutout", "mixup", "cutmix", "all"]
    assert [name for name, _ in found] == names
    for _, (theirs, ours, ratio, spread, *_) in found:
        assert all(float(cell.replace(",", "")) > 0 for cell in (theirs, ours))
        assert spread == f"{ratio}, {ratio}"


@pytest.mark.slow
def test_images_of_other_classes_are_told_apart(data: Path) -> None:
    """The classes are brightnesses, so one epoch is enough to know five of them."""
    (data / "classes.json").write_text(json.dumps([str(number) for number in range(10)]))
    process = run("benchmarks/unknown.py", "--data", str(data), "--seeds", "1", "--epochs", "1")
    assert process.returncode == 0, process.stderr
    header, _, row = process.stdout.splitlines()
    assert header.count("|") == row.count("|") == 6
    accuracy, kept, unknown, area = (float(cell.strip(" %")) for cell in row.split("|")[2:-1])
    assert max(accuracy, kept, unknown) <= 100
    assert 0 <= area <= 1


@pytest.mark.slow
def test_unbalanced_thins_the_classes_and_prints_a_row_per_training(data: Path) -> None:
    (data / "classes.json").write_text(json.dumps([str(number) for number in range(10)]))
    labels = np.load(data / "train_labels.npy")
    images = np.load(data / "train_images.npy")
    split = Split(images, labels)
    indices = unbalanced.thin(unbalanced.Data(split, split, [str(number) for number in range(10)]), 0)
    counts = np.bincount(labels[indices])
    assert counts[0] == (labels == 0).sum()
    assert counts[9] == round((labels == 9).sum() / 50)
    assert (np.diff(counts) < 0).all()
    process = run("benchmarks/unbalanced.py", "--data", str(data), "--seeds", "1", "--epochs", "1")
    assert process.returncode == 0, process.stderr
    rows = process.stdout.splitlines()[2:5]
    assert [row.split("|")[2].strip() for row in rows] == list(unbalanced.KINDS)
    assert "logit_adjustment: 1.0: macro recall " in process.stdout


@pytest.mark.slow
def test_data_audit_prints_what_was_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in {"train": 1000, "test": 100}.items():
        np.save(tmp_path / f"{split}_images.npy", random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        np.save(tmp_path / f"{split}_labels.npy", np.arange(count, dtype=np.uint8) % 10)
    write_striped(tmp_path)
    options = ("--data", str(tmp_path), "--seeds", "1")
    process = run("benchmarks/data_audit.py", "labels", *options, "--folds", "2", "--epochs", "1")
    assert "precision and recall of the first 30 by self_confidence: " in process.stdout, process.stderr
    process = run(
        "benchmarks/data_audit.py", "duplicates", *options, "--copies", "20", "--models", str(tmp_path / "models")
    )
    assert "mirror: recall 100.0%, precision 100.0%" in process.stdout, process.stderr


@pytest.mark.slow
def test_robustness_prints_a_row_for_every_setting(tmp_path: Path) -> None:
    data = make_set(n_train=200, n_test=50)
    train, val = Split(data.train_images, data.train_labels), Split(data.test_images, data.test_labels)
    stats = arrays.Stats(list(CLASSES), [32, 32, 3], [0.5] * 3, [0.25] * 3, "0" * 64)
    splits = {"train": train, "val": val, "test": val}
    names = {name: list(map(str, range(len(split.labels)))) for name, split in splits.items()}
    arrays.write_processed(tmp_path / "processed", splits, names, stats)
    small = "train.epochs=1 train.batch_size=50 model.convnet.widths=[8,8]"
    settings = [small, f"{small} train.augment.noise=0.1 train.augment.blur=1.0"]
    process = run("benchmarks/robustness.py", *settings, "--data", str(tmp_path / "processed"), "--images", "20")
    header, _, *found = rows(process).items()
    assert [name for name, _ in found] == settings
    for _, cells in found:
        shares = dict(zip(header[1][1:-1], (float(cell.strip("%")) for cell in cells[1:-1]), strict=True))
        assert list(shares)[2:] == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
        assert shares["corrupted"] == pytest.approx(np.mean(list(shares.values())[2:]), abs=0.02)


def test_clock_assigns_time_to_the_innermost_cause() -> None:
    started = time.perf_counter()
    clock = overhead.Clock()
    with clock.during("outer"):
        clock.around(time.sleep, "inner")(0.2)
        time.sleep(0.1)
    clock.switch("end")
    start = clock.spent.pop(overhead.START)
    assert start.wall == start.cpu > 0
    assert set(clock.spent) == {overhead.WORK, "outer", "inner"}
    assert clock.spent["inner"].wall >= 0.2
    assert clock.spent["outer"].wall >= 0.1
    assert clock.spent["inner"].cpu < 0.1, "sleeping takes no time of the CPU"
    assert sum(cost.wall for cost in clock.spent.values()) <= time.perf_counter() - started


STAGE = """
import sys
sys.path.insert(0, "stages")
from vision.pipeline.params import load_params
from vision.tracking import mlflow_run

settings = load_params().tracking.model_copy(update={"enabled": False})
with mlflow_run.resumed_run(settings, {"mlflow": None, "tensorboard": None}) as run:
    run.log_metrics({"test_accuracy": 0.5})
"""


@pytest.mark.slow
def test_a_stage_under_the_clock_writes_the_time_per_cause(tmp_path: Path) -> None:
    (tmp_path / "brew.py").write_text(STAGE)
    process = run("benchmarks/overhead.py", "--into", str(tmp_path), "--stage", str(tmp_path / "brew.py"))
    assert process.returncode == 0, process.stderr
    spent = json.loads((tmp_path / "brew.json").read_text())
    assert set(spent) == {overhead.START, overhead.IMPORTS, overhead.WORK, overhead.M_RUN, overhead.M_LOG}
    assert spent[overhead.IMPORTS][0] == max(seconds for seconds, _ in spent.values())


@pytest.mark.slow
def test_overhead_reports_invalid_options(tmp_path: Path) -> None:
    assert run("benchmarks/overhead.py", "--rounds", "0").stderr == "overhead.py: --rounds must be at least 1\n"
    elsewhere = run("benchmarks/overhead.py", "--compare", str(tmp_path)).stderr
    assert elsewhere == f"overhead.py: --compare {tmp_path}: no dvc.yaml there; give a checkout of this project\n"
