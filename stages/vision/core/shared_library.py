"""C++ code that is compiled on the machine that uses it, and cached.

The code has a plain C interface, without PyTorch's headers, and is called with ctypes: it compiles in two seconds. With
PyTorch's headers (torch.utils.cpp_extension) it takes half a minute.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-exceptions", "-Wno-psabi"),
    # Results must not depend on the compiler: no automatic fused multiply-add. The other two change no result.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILERS = ("g++", "c++", "clang++")
_COMPILER_SECONDS = 120
_DIGEST_SIZE = hashlib.sha256().digest_size


class BuildError(Exception):
    """The library cannot be compiled or loaded. The message says why, in one line."""


@functools.cache
def find_shared_library(source: Path, parameter: str) -> ctypes.CDLL | None:
    """Load the library of a C++ file as `load_shared_library` does. If that fails, log a warning and return None.

    Args:
        source: the C++ file.
        parameter: the parameter that switches its use off.
    """
    try:
        return load_shared_library(source)
    except BuildError as error:
        logger.warning(
            "%s: %s; using PyTorch's operators; training is slower. "
            "Install a C++ compiler such as g++, or set %s to off.",
            parameter, error, parameter,
        )  # fmt: skip
        return None


def load_shared_library(source: Path) -> ctypes.CDLL:
    """Compile a C++ file if there is no library of it in the cache, and load it.

    The cache is the folder TORCH_EXTENSIONS_DIR, or else `cifar10-pipeline/compiled` in the user's cache folder. A
    library in the cache is used only if source, compiler, flags, instruction sets of the CPU and the version of PyTorch
    are the same, and if it is undamaged. Several processes may call this at the same time.

    Raises:
        BuildError: there is no C++ compiler, the compilation fails, or the library cannot be stored or loaded.
    """
    compiler = _find_compiler()
    try:
        path = _cache_folder() / f"{source.stem}-{_key(source, compiler)}.so"
        if not _is_undamaged(path):
            _compile(source, compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        reason = next((line for line in lines if "error" in line), f"exit status {error.returncode}")
        raise BuildError(f"{compiler[0]} failed: {reason}") from None
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error).partition("\n")[0]) from None


def _find_compiler() -> list[str]:
    """Return the command of the C++ compiler: the environment variable CXX, or the first one that is installed."""
    if command := shlex.split(os.environ.get("CXX", "")):
        return command
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"no C++ compiler found ({', '.join(_COMPILERS)})")


def _cache_folder() -> Path:
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar10-pipeline/compiled"


def _key(source: Path, compiler: list[str]) -> str:
    """Hash everything that the library depends on.

    The macros that the compiler defines contain its version, and the instruction sets that `-march=native` stands for.
    """
    macros = _run([*compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    facts = [source.read_text(), macros, *compiler, *_FLAGS, torch.__version__]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _compile(source: Path, compiler: list[str], path: Path) -> None:
    """Compile into a folder of this process, then rename, so that no process ever loads an incomplete file.

    The library is linked without `-fopenmp`. It then uses the OpenMP library that PyTorch has loaded; another one would
    compete with it for the cores. The digest of the library follows it in the file, where the loader ignores it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        compiled, library = Path(folder, "compiled.o"), Path(folder, path.name)
        _run([*compiler, *_FLAGS, "-c", str(source), "-o", str(compiled)])
        _run([*compiler, "-shared", str(compiled), "-o", str(library)])
        with library.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            file.write(digest)
        os.replace(library, path)


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=_COMPILER_SECONDS).stdout


def _is_undamaged(path: Path) -> bool:
    """Whether there is a library that ends with its digest. To load a damaged one could crash the process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_DIGEST_SIZE]).digest() == content[-_DIGEST_SIZE:]
