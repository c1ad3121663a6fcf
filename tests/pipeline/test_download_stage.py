import contextlib
import hashlib
import http.server
import os
import re
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
    checksums,
    make_set,
    write_binary_archive,
    write_cifar100_archive,
    write_npm_archive,
    write_python_archive,
)
from stages import change_params
from vision.pipeline.paths import ROOT
from vision.storage import arrays

DATA = make_set(n_train=500, n_test=100)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the code, and a folder for temporary files."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "stages", clone / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", clone)
    (tmp_path / "temporary").mkdir()
    return clone


def environment(clone: Path) -> dict[str, str]:
    """A cache and a temporary directory of the clone's own, and no npm."""
    folders = {"XDG_CACHE_HOME": "cache", "HOME": "home", "TMPDIR": "temporary", "PATH": "nothing"}
    return {**os.environ, **{key: str(clone.parent / name) for key, name in folders.items()}}


def run(clone: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "stages/download.py"]
    return subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=60)


def download(clone: Path, source: str, *files: Path, **others: str) -> subprocess.CompletedProcess[str]:
    """Run the stage with this source and the checksums of these files."""
    change_params(clone, download={"source": source, "checksums": checksums(*files) or None, **others})
    return run(clone)


def raw_files(clone: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (clone / "data/raw").iterdir()}


def test_the_same_bytes_from_every_format(clone: Path) -> None:
    seen = []
    for number, write in enumerate((write_binary_archive, write_python_archive, write_npm_archive)):
        path = clone / f"archive{number}.tar.gz"
        write(path, DATA)
        result = download(clone, path.name, path)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == f"download: read from {path.name}"
        assert lines[1] == "download: 500 training and 100 test images, checksums match, in data/raw"
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
    folder = clone / "cifar-10-batches-py"
    assert download(clone, str(folder), *folder.iterdir()).returncode == 0
    assert len(raw_files(clone)) == 5


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def other_data(path: Path) -> None:
    write_binary_archive(path, make_set(n_train=500, n_test=100, seed=1))


WRONG = r"a\.tar\.gz has the MD5 \w{32}, expected \w{32}; download it again, or set download\.checksums if .*"


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("harm", "message"), [(Path.unlink, "no such file or folder"), (truncate, WRONG), (other_data, WRONG)]
)
def test_a_mistake_is_one_line_and_leaves_the_old_data(harm: Callable[[Path], None], message: str, clone: Path) -> None:
    path = clone / "a.tar.gz"
    write_binary_archive(path, DATA)
    assert download(clone, "a.tar.gz", path).returncode == 0
    before = raw_files(clone)
    harm(path)
    result = run(clone)
    assert result.returncode == 1
    assert re.fullmatch(rf"download: download\.source: a\.tar\.gz: {message}\n", result.stderr)
    assert raw_files(clone) == before


def test_cifar_100(clone: Path) -> None:
    hundred = make_set(n_train=200, n_test=100, classes=100)
    write_cifar100_archive(clone / "a.tar.gz", hundred)
    result = download(clone, "a.tar.gz", clone / "a.tar.gz", dataset="cifar100")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [
        "download: read from a.tar.gz",
        "download: 200 training and 100 test images, checksums match, in data/raw",
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
    result = download(clone, "photos", dataset="folder")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [
        "download: read from photos",
        "download: 40 images of 2 classes, each decoded once as a check, in data/raw",
    ]
    assert len(list(clone.glob("data/raw/train/*/*.png"))) == 40

    (clone / "photos/airplane/0.png").write_bytes(b"")
    before = sorted(clone.rglob("data/**/*"))
    result = run(clone)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-2:] == [
        "download: download.source: photos: has images that cannot be read; repair or remove them:",
        "download: airplane/0.png: not an image, or truncated at its beginning",
    ]
    assert sorted(clone.rglob("data/**/*")) == before


class Server(http.server.ThreadingHTTPServer):
    """Serves an archive on loopback; if `stalls`, it stops in the middle and sets `halfway`."""

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
        self.wfile.write(content[: len(content) // 2])
        if self.server.stalls:
            self.server.halfway.set()
            with contextlib.suppress(ConnectionResetError):
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
# The download stage, with another address and checksum of the official archive.
import dataclasses, sys
sys.path.insert(0, "stages")
import download
from vision.datasets import cifar
from vision.pipeline.stage import run_stage

url, md5 = sys.argv[1:]
name = "cifar-10-python.tar.gz"
cifar.DATASETS["cifar10"] = dataclasses.replace(cifar.DATASETS["cifar10"], sources={name: url}, checksums={name: md5})
run_stage(download.main)
"""


def start(clone: Path, *command: str) -> subprocess.Popen[str]:
    """Start a script in a process group of its own."""
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
    """Whether no process of the group is left within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def command(clone: Path, server: Server) -> list[str]:
    """The download stage with the server's archive."""
    (clone / "driver.py").write_text(DRIVER)
    address = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    return ["driver.py", address, hashlib.md5(server.content).hexdigest()]


def test_killed_in_the_middle_then_run_again_then_from_the_cache(
    clone: Path, server: Server, command: list[str]
) -> None:
    with start(clone, *command) as process:
        assert server.halfway.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert all_gone(process.pid)
    assert not (clone / "data").exists()
    assert not (clone.parent / "cache").exists()

    server.stalls = False
    with start(clone, *command) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{command[1]}: downloaded and verified" in output
    first = raw_files(clone)

    shutil.rmtree(clone / "data")
    server.shutdown()
    with start(clone, *command) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.startswith("download: read from the cache of earlier downloads (")
    assert raw_files(clone) == first


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_cleans_up(number: signal.Signals, clone: Path, server: Server, command: list[str]) -> None:
    with start(clone, *command) as process:
        assert server.halfway.wait(60)
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)  # Ctrl-C in a terminal reaches the whole group
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("driver: interrupted; ")
        assert "Traceback" not in errors
        assert all_gone(process.pid)
    assert list((clone.parent / "temporary").glob("cifar-*")) == []
    assert not (clone / "data").exists()


NPM = """#!{python}
# Takes the place of npm: notes its process id and downloads forever.
import os, pathlib, time
pathlib.Path({note!r}).write_text(str(os.getpid()))
while True:
    time.sleep(1)
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interruption_ends_npm(number: signal.Signals, clone: Path) -> None:
    npm, note = clone.parent / "nothing/npm", clone.parent / "npm.pid"
    npm.parent.mkdir()
    npm.write_text(NPM.format(python=sys.executable, note=str(note)))
    npm.chmod(0o755)
    (clone / "driver.py").write_text(DRIVER.replace("{name: url}", "{name: 'npm:package@1'}"))
    with start(clone, "driver.py", "", "0" * 32) as process:
        for _ in range(300):
            if note.exists() and note.read_text():
                break
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert all_gone(int(note.read_text()))
    if number != signal.SIGKILL:
        assert list((clone.parent / "temporary").glob("cifar-*")) == []
