import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from official_formats import (
    CIFAR100_CLASSES,
    CLASSES,
    make_set,
    write_binary_archive,
    write_checksums,
    write_cifar100_archive,
    write_cifar100_checksums,
    write_npm_archive,
    write_python_archive,
)
from vision.pipeline.paths import ROOT
from vision.storage import arrays

DATA = make_set(n_train=500, n_test=100)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the code whose checksums are those of DATA, and where nothing but the stage writes."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "stages", clone / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    write_checksums(clone / "stages/vision/datasets/cifar10.md5", DATA)
    shutil.copy(ROOT / "params.yaml", clone)
    (tmp_path / "temporary").mkdir()
    return clone


def environment(clone: Path) -> dict[str, str]:
    """With a cache and a temporary directory of the clone's own, and without npm."""
    places = {"XDG_CACHE_HOME": "cache", "HOME": "home", "TMPDIR": "temporary", "PATH": "nothing"}
    return {**os.environ, **{key: str(clone.parent / name) for key, name in places.items()}}


def download(clone: Path, source: str | None = None) -> subprocess.CompletedProcess[str]:
    if source is not None:
        params = (clone / "params.yaml").read_text()
        (clone / "params.yaml").write_text(params.replace("source: auto", f"source: {json.dumps(source)}"))
    command = [sys.executable, "stages/download.py"]
    return subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=60)


def raw_files(clone: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (clone / "data/raw").iterdir()}


def test_the_same_bytes_from_every_form(clone: Path) -> None:
    seen = []
    for number, write in enumerate((write_binary_archive, write_python_archive, write_npm_archive)):
        path = clone / f"archive{number}.tar.gz"
        write(path, DATA)
        (clone / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        result = download(clone, path.name)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == f"download: read from {path.name}"
        assert lines[1] == "download: 500 training and 100 test images, checksums as pinned, in data/raw"
        assert lines[2].startswith("download: done in ")
        seen.append(raw_files(clone))
    assert seen[0] == seen[1] == seen[2]

    train, test, classes = arrays.read_raw(clone / "data/raw")
    np.testing.assert_array_equal(train.images, DATA.train_images)
    np.testing.assert_array_equal(train.labels, DATA.train_labels)
    np.testing.assert_array_equal(test.images, DATA.test_images)
    np.testing.assert_array_equal(test.labels, DATA.test_labels)
    assert tuple(classes) == CLASSES


def test_a_folder(clone: Path) -> None:
    write_python_archive(clone / "a.tar.gz", DATA)
    with tarfile.open(clone / "a.tar.gz") as archive:
        archive.extractall(clone, filter="data")
    assert download(clone, str(clone / "cifar-10-batches-py")).returncode == 0
    assert len(raw_files(clone)) == 5


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def other_data(path: Path) -> None:
    write_binary_archive(path, make_set(n_train=500, n_test=100, seed=1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "no such file or folder"),
        (truncate, "not a whole .tar.gz archive"),
        (
            other_data,
            "data_batch_5, test_batch: not the content that the checksums in stages/vision/datasets/cifar10.md5 want",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_old_data(harm: Callable[[Path], None], message: str, clone: Path) -> None:
    path = clone / "a.tar.gz"
    write_binary_archive(path, DATA)
    assert download(clone, "a.tar.gz").returncode == 0
    before = raw_files(clone)
    harm(path)
    result = download(clone)
    assert result.returncode == 1
    complaint = [line for line in result.stderr.splitlines() if line.startswith("download: ")]
    assert len(complaint) == 1
    assert complaint[0].startswith("download: download.source: a.tar.gz: ")
    assert message in complaint[0]
    assert "Traceback" not in result.stderr
    assert raw_files(clone) == before


def test_cifar_100(clone: Path) -> None:
    hundred = make_set(n_train=200, n_test=100, classes=100)
    write_cifar100_archive(clone / "a.tar.gz", hundred)
    write_cifar100_checksums(clone / "stages/vision/datasets/cifar100.md5", hundred)
    params = (ROOT / "params.yaml").read_text()
    (clone / "params.yaml").write_text(params.replace("dataset: cifar10 ", "dataset: cifar100 "))
    result = download(clone, "a.tar.gz")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [
        "download: read from a.tar.gz",
        "download: 200 training and 100 test images, checksums as pinned, in data/raw",
    ]
    train, test, classes = arrays.read_raw(clone / "data/raw")
    np.testing.assert_array_equal(train.images, hundred.train_images)
    np.testing.assert_array_equal(test.labels, hundred.test_labels)
    assert classes == list(CIFAR100_CLASSES)


def test_a_folder_of_images(clone: Path) -> None:
    for number in range(40):
        path = clone / f"photos/{CLASSES[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DATA.train_images[number]).save(path)
    (clone / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("dataset: cifar10", "dataset: folder")
    )
    result = download(clone, "photos")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [
        "download: read from photos",
        "download: 40 images of 2 classes, each decoded whole, in data/raw",
    ]
    assert len(list(clone.glob("data/raw/train/*/*.png"))) == 40

    (clone / "photos/airplane/0.png").write_bytes(b"")
    before = sorted(clone.rglob("data/**/*"))
    result = download(clone)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-2:] == [
        "download: download.source: photos: has images that cannot be read; repair or remove them:",
        "download: airplane/0.png: not an image, or cut off at its beginning",
    ]
    assert sorted(clone.rglob("data/**/*")) == before


class Server(http.server.ThreadingHTTPServer):
    """Serves an archive on loopback; with `stalls` it stops in the middle and says so through `halfway`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.stalls, self.halfway = content, True, threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if "Method" in self.headers:  # torchvision only asks whether it is sent elsewhere
            return
        self.wfile.write(content[: len(content) // 2])
        if self.server.stalls:
            self.server.halfway.set()
            self.connection.recv(1)  # returns when the client has gone
        else:
            self.wfile.write(content[len(content) // 2 :])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(clone: Path) -> Iterator[Server]:
    write_python_archive(clone / "official.tar.gz", DATA)
    server = Server((clone / "official.tar.gz").read_bytes())
    yield server
    server.shutdown()
    server.server_close()


DRIVER = """
# The download stage, with another address and checksum of the official archive in the process that downloads it.
import sys
sys.path.insert(0, "stages")
if __name__ == "__mp_main__":
    from torchvision.datasets import CIFAR10
    CIFAR10.url, CIFAR10.tgz_md5 = sys.argv[1:]
if __name__ == "__main__":
    import download
    from vision.stage import run_stage
    run_stage(download.main)
"""


def start(clone: Path, *command: str) -> subprocess.Popen[str]:
    """A stage in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=clone,
        env=environment(clone),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def all_gone(group: int) -> bool:
    """Whether within some seconds no process of the group is left."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_killed_in_the_middle_then_run_again_then_from_the_cache(clone: Path, server: Server) -> None:
    (clone / "driver.py").write_text(DRIVER)
    address = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    command = ["driver.py", address, hashlib.md5(server.content).hexdigest()]

    with start(clone, *command) as process:
        assert server.halfway.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert all_gone(process.pid)
    assert not (clone / "data").exists()
    assert not (clone.parent / "cache").exists()

    server.stalls = False
    with start(clone, *command) as process:
        output, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert "official archive: downloaded and verified" in output
    first = raw_files(clone)

    shutil.rmtree(clone / "data")
    server.shutdown()
    result = download(clone)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("download: read from the cache of earlier downloads (")
    assert raw_files(clone) == first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_cleans_up(number: signal.Signals, clone: Path) -> None:
    with start(clone, "stages/download.py") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "download: official archive: downloading\n"
        time.sleep(0.3)  # the process that downloads is starting
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches them all
        _, complaints = process.communicate(timeout=20)
        assert process.returncode == 130
        assert complaints.splitlines()[-1] == "download: interrupted; `dvc repro` starts this stage again"
        assert "Traceback" not in complaints
        assert all_gone(process.pid)
    assert list((clone.parent / "temporary").glob("cifar10-*")) == []
    assert not (clone / "data").exists()
