"""Compare settings of the training by their accuracy on corrupted validation images.

    python benchmarks/robustness.py "" "train.augment.noise=0.1" "train.augment.noise=0.1 train.augment.blur=1.0"

Each argument is a setting: changes of params.yaml as after `-S`, separated by spaces; "" is params.yaml as it is. The
settings are trained one after the other, `--rounds` times with other seeds. Needs `data/processed` (run
`dvc repro preprocess`).

The table has the accuracy with one view: on all validation images without corruption, and on the first `--images` of
them with speckle noise, Gaussian blur, spatter and saturation, each at five severities. The 15 corruptions of
`evaluate.corruptions` are left for the test, which then says how a setting copes with corruptions that it was not
chosen for.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
from dvc.utils.hydra import apply_overrides

from train import move_to_device, train_config
from vision.artifacts.initial_model import make_model
from vision.core import inference, loop
from vision.core.config import TTAConfig
from vision.core.device import flush_denormals
from vision.evaluation.corruptions.scoring import score_corruptions
from vision.evaluation.corruptions.table import EXTRA_CORRUPTIONS, corrupt
from vision.pipeline.device import set_up_device
from vision.pipeline.params import Params, load_params
from vision.pipeline.paths import ROOT
from vision.storage import arrays
from vision.storage.arrays import Split, Stats


class Run(NamedTuple):
    """A training: the clean accuracy, that on each extra corruption, and the seconds that it took."""

    clean: float
    corrupted: dict[str, float]
    seconds: float


def read_setting(setting: str) -> Params:
    """Read params.yaml with the changes of a setting."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(ROOT / "params.yaml", folder))
        if setting.strip():
            apply_overrides(path, setting.split())
        return load_params(path)


def read_data(folder: Path, limit: int | None) -> tuple[Stats, Split, Split]:
    """Read the training and validation splits, the first `limit` images of each."""
    stats = arrays.read_stats(folder)
    train, val = (arrays.read_split(folder, name, len(stats.classes), memory_map=False) for name in ("train", "val"))
    train, val = (Split(split.images[:limit], split.labels[:limit]) for split in (train, val))
    return stats, train, val


def run(params: Params, data: tuple[Stats, Split, Split], images: int) -> Run:
    """Train once and score the validation images, the first `images` of them with corruptions."""
    stats, train_split, val_split = data
    device, dtype = set_up_device(params.train)
    train, val = move_to_device(train_split, device), move_to_device(val_split, device)
    started = time.perf_counter()
    model, _ = make_model(params, stats, train.images)
    loop.fit(model, train, val, train_config(params, dtype))
    seconds = time.perf_counter() - started
    config = TTAConfig(params.evaluate.batch_size, dtype, "none", 0.0)
    logits = inference.predict(model, val.images, config.batch_size, dtype)
    source = partial(corrupt, torch.from_numpy(val_split.images[:images]))
    rows = score_corruptions(model, source, val_split.labels[:images], config, tuple(EXTRA_CORRUPTIONS))
    corrupted = {
        name: statistics.mean(row.accuracy for row in rows if row.corruption == name) for name in EXTRA_CORRUPTIONS
    }
    return Run((logits.argmax(1) == val.labels).double().mean().item(), corrupted, seconds)


def format_row(setting: str, runs: list[Run]) -> str:
    """Return the row of a setting: means over its runs."""
    means = [statistics.mean(one.corrupted[name] for one in runs) for name in EXTRA_CORRUPTIONS]
    cells = [statistics.mean(one.clean for one in runs), statistics.mean(means), *means]
    seconds = statistics.median(one.seconds for one in runs)
    shares = " | ".join(f"{cell:.2%}" for cell in cells)
    return f"| {setting or 'params.yaml'} | {len(runs)} | {shares} | {seconds:.0f} |"


def main() -> None:
    """Train all settings in turn and print the table after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--data", type=Path, default=ROOT / "data/processed")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="validation images that are corrupted")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N images of each split only")
    options = parser.parse_args()
    flush_denormals()
    data = read_data(options.data, options.limit)
    params = {setting: read_setting(setting) for setting in options.settings}
    runs: dict[str, list[Run]] = {setting: [] for setting in params}
    for seed in range(options.rounds):
        for setting, found in runs.items():
            found.append(run(params[setting].model_copy(update={"seed": seed}), data, options.images))
            print(format_row(setting, found[-1:]), file=sys.stderr, flush=True)
        columns = ["setting", "n", "clean", "corrupted", *EXTRA_CORRUPTIONS, "training, s, median"]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(format_row(setting, found) for setting, found in runs.items()), flush=True)


if __name__ == "__main__":
    main()
