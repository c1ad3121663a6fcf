"""Measure how many images per second tools/spark_predict.py classifies, by number of executors.

    python benchmarks/spark.py                            # 10,000 PNG files of 32x32, 200 JPEG photos of 2 megapixels
    python benchmarks/spark.py --images 2000 --photos 50 --executors 1

Starts a standalone Spark cluster on this machine: a master, and a worker with one core and 2 GiB for each executor.
Jobs run one after the other. `job` counts everything from the first task on, so also the start of Python and the
loading of the model in each executor. `steady` leaves out the seconds of a job with four images per executor. It is the
rate of a long job.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PHOTO_SIZE = (1600, 1250)
DIFFERENT = 20
"""Different photos; the others are copies, because encoding takes longer than decoding."""
SUMMARY = re.compile(r"([\d,]+) images, [\d,]+ errors, ([\d.,]+) s,")


def main() -> None:
    """Print a row for each number of executors and kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models", help="as of spark_predict.py")
    parser.add_argument("--images", type=int, default=10_000, help="number of PNG files (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=200, help="number of JPEG files (default: %(default)s)")
    parser.add_argument("--executors", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "PNG 32x32", options.images)
        write_photos(folder / "JPEG 2 MP", options.photos)
        print("executors  images              job/s  steady/s")
        with spark_cluster(folder / "cluster", max(options.executors)) as master:
            for executors in options.executors:
                write_images(folder / "start", 4 * executors)
                start = min(run_job(master, executors, folder / "start", options.model)[1] for _ in range(2))
                for kind in ("PNG 32x32", "JPEG 2 MP"):
                    count, seconds = run_job(master, executors, folder / kind, options.model)
                    steady = f"{count / (seconds - start):8,.0f}" if seconds > start else "       -"
                    print(f"{executors:9}  {count:7,} {kind}  {count / seconds:7,.0f}  {steady}", flush=True)


def write_images(folder: Path, count: int) -> None:
    """Write PNG files of 32x32 random pixels, as large as those of CIFAR-10."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files with the size and the frequencies of photos, about 0.6 MB each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        if number >= DIFFERENT:
            shutil.copyfile(folder / f"{number % DIFFERENT}.jpg", folder / f"{number}.jpg")
            continue
        levels = np.zeros((*PHOTO_SIZE[::-1], 3))
        for scale in (1, 4, 16, 64, 256):
            size = (-(-PHOTO_SIZE[1] // scale), -(-PHOTO_SIZE[0] // scale), 3)
            noise = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).resize(PHOTO_SIZE)
            levels += np.asarray(noise) * scale**0.25 / 11.2
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=85)


@contextmanager
def spark_cluster(folder: Path, workers: int) -> Iterator[str]:
    """Start a master and workers with one core and 2 GiB each; yield the master's URL. Logs are in the folder."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"spark://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(spark_daemon(folder / "master", "master.Master", "--port", str(port), "--webui-port", "0"))
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        for number in range(workers):
            work = folder / f"worker{number}"
            options = ("-c", "1", "-m", "2g", "-d", str(work), "--webui-port", "0")
            stack.enter_context(spark_daemon(work, "worker.Worker", url, *options))
        yield url


@contextmanager
def spark_daemon(folder: Path, name: str, *options: str) -> Iterator[None]:
    """Run a process of a standalone cluster during the block, with its log in the folder."""
    folder.mkdir()
    command = [find_command("spark-class"), f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1", *options]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


def run_job(master: str, executors: int, images: Path, model: str) -> tuple[int, float]:
    """Classify a folder of images; return their number and the seconds that it took."""
    output = images.parent / "predictions"
    settings = {"spark.cores.max": executors, "spark.executor.cores": 1, "spark.driver.host": "127.0.0.1"}
    command = [find_command("spark-submit"), "--master", master]
    for setting, value in settings.items():
        command += ["--conf", f"{setting}={value}"]
    command += [str(ROOT / "tools/spark_predict.py"), str(images), str(output), "--model", model]
    done = subprocess.run(command, capture_output=True, text=True)
    match = SUMMARY.search(done.stdout)
    if done.returncode or match is None:
        sys.exit(f"benchmarks/spark.py: spark-submit failed:\n{done.stderr}")
    shutil.rmtree(output)
    return int(match[1].replace(",", "")), float(match[2].replace(",", ""))


def find_command(name: str) -> str:
    """The path of a command of pyspark, which pip installs beside Python."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        sys.exit(f"benchmarks/spark.py: {name} not found; run `uv sync --group spark`")
    return path


if __name__ == "__main__":
    main()
