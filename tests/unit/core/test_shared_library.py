"""Libraries of C++ code: compiled once, cached, and rebuilt when the cached file cannot be used."""

import os
import re
from pathlib import Path

import pytest

from cpp_compiler import needs_compiler
from processes import run_concurrently
from vision.core.shared_library import BuildError, load_shared_library

SOURCE = """
#include <vector>
extern "C" int add(int count) {
    std::vector<int> parts(count);
#pragma omp parallel for
    for (int i = 0; i < count; i++) parts[i] = i;
    int sum = 0;
    for (int part : parts) sum += part;
    return sum;
}
"""
LOAD = """
import sys
from pathlib import Path
from vision.core.shared_library import load_shared_library
print("ready", flush=True)
sys.stdin.readline()
assert load_shared_library(Path(sys.argv[1])).add(5) == 10
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sum.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_a_library_is_compiled_once_and_again_when_its_source_changes(cache: Path, source: Path) -> None:
    assert load_shared_library(source).add(5) == 10
    (library,) = cache.iterdir()
    inode = library.stat().st_ino
    load_shared_library(source)
    assert [path.stat().st_ino for path in cache.iterdir()] == [inode]
    source.write_text(SOURCE.replace("sum = 0", "sum = 7"))
    assert load_shared_library(source).add(5) == 17
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_the_library_brings_no_openmp_of_its_own(cache: Path, source: Path) -> None:
    load_shared_library(source)
    (library,) = cache.iterdir()
    content = library.read_bytes()
    assert b"GOMP_parallel" in content
    assert b"libgomp" not in content


@needs_compiler
@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:5000], lambda content: content + b"x"]
)
def test_a_damaged_library_is_compiled_again(cache: Path, source: Path, damage: object) -> None:
    assert callable(damage)
    load_shared_library(source)
    (library,) = cache.iterdir()
    content = library.read_bytes()
    library.unlink()  # the file that this process has loaded must not change
    library.write_bytes(damage(content))
    assert load_shared_library(source).add(5) == 10
    assert library.read_bytes() == content


@needs_compiler
def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(cache: Path, source: Path) -> None:
    variables = {name: os.environ[name] for name in ("PATH", "TORCH_EXTENSIONS_DIR")}
    run_concurrently([[LOAD, str(source)]] * 3, **variables)
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_without_a_compiler_it_is_an_error_that_names_those_it_looked_for(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"^no C\+\+ compiler found \(g\+\+, c\+\+, clang\+\+\)$"):
        load_shared_library(source)


def test_a_compiler_in_cxx_that_does_not_exist_is_an_error(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(BuildError, match="no-such-compiler"):
        load_shared_library(source)


@needs_compiler
def test_what_the_compiler_rejects_is_an_error_with_its_message(cache: Path, source: Path) -> None:
    source.write_text("int broken( {")
    with pytest.raises(BuildError, match=r"^.*g\+\+ failed: .*sum\.cpp:1.*error"):
        load_shared_library(source)
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_symbol_that_is_not_loaded_is_an_error(cache: Path, source: Path) -> None:
    source.write_text('extern "C" { int absent(); int call() { return absent(); } }')
    with pytest.raises(BuildError, match="undefined symbol: absent"):
        load_shared_library(source)


@needs_compiler
def test_a_cache_folder_that_cannot_be_created_is_an_error_that_names_it(cache: Path, source: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(BuildError, match=re.escape(str(cache))):
        load_shared_library(source)


@needs_compiler
def test_the_cache_is_in_the_users_cache_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_shared_library(source)
    assert len(list((tmp_path / "cifar10-pipeline/compiled").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_shared_library(source)
    assert len(list((tmp_path / "home/.cache/cifar10-pipeline/compiled").iterdir())) == 1
