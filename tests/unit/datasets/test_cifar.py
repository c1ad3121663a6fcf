import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from official_formats import (
    CIFAR100_CLASSES,
    CLASSES,
    OfficialSet,
    binary_files,
    checksums,
    cifar100_files,
    cifar100_split,
    make_set,
    npm_files,
    python2_pickle,
    python_batch,
    python_files,
    write_archive,
    write_binary_archive,
    write_cifar100_archive,
    write_npm_archive,
    write_python_archive,
)
from vision.datasets import cifar
from vision.datasets.cifar import DATASETS, Dataset, Decoded
from vision.pipeline.errors import UserError

CIFAR10, CIFAR100 = DATASETS["cifar10"], DATASETS["cifar100"]

Writer = Callable[[Path, OfficialSet], None]


@pytest.fixture(scope="module")
def data() -> OfficialSet:
    return make_set(n_train=50, n_test=20)


@pytest.fixture(scope="module")
def hundred() -> OfficialSet:
    return make_set(n_train=200, n_test=100, classes=100)


def read(path: Path, dataset: Dataset = CIFAR10) -> Decoded:
    """Read an archive or folder with the checksums that it has."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return cifar.read(dataset, path, checksums(*files))


def assert_same(decoded: Decoded, data: OfficialSet, classes: Sequence[str] = CLASSES) -> None:
    train, test, names = decoded
    np.testing.assert_array_equal(train.images, data.train_images)
    np.testing.assert_array_equal(train.labels, data.train_labels)
    np.testing.assert_array_equal(test.images, data.test_images)
    np.testing.assert_array_equal(test.labels, data.test_labels)
    for array in (train.images, train.labels, test.images, test.labels):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
    assert names == list(classes)


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")


def test_the_official_checksums_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for dataset, known in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert dataset.sources[known.filename] == known.url
        assert dataset.checksums[known.filename] == known.tgz_md5
        for name, md5 in (*known.train_list, *known.test_list):
            assert dataset.checksums[name] == md5
        assert len(set(dataset.checksums.values())) == len(dataset.checksums)
    assert CIFAR100.checksums["meta"] == datasets.CIFAR100.meta["md5"]


@pytest.mark.parametrize("write", [write_binary_archive, write_python_archive, write_npm_archive])
def test_every_format_gives_the_same_arrays(write: Writer, data: OfficialSet, tmp_path: Path) -> None:
    write(tmp_path / "archive.tar.gz", data)
    assert_same(read(tmp_path / "archive.tar.gz"), data)


@pytest.mark.parametrize(
    ("write", "folder"), [(write_binary_archive, "cifar-10-batches-bin"), (write_python_archive, "cifar-10-batches-py")]
)
def test_an_unpacked_folder_or_its_parent(write: Writer, folder: str, data: OfficialSet, tmp_path: Path) -> None:
    write(tmp_path / "archive.tar.gz", data)
    unpack(tmp_path / "archive.tar.gz", tmp_path / "unpacked")
    assert_same(read(tmp_path / "unpacked"), data)
    assert_same(read(tmp_path / "unpacked" / folder), data)


def test_cifar_100_from_an_archive_an_unpacked_folder_or_its_parent(hundred: OfficialSet, tmp_path: Path) -> None:
    write_cifar100_archive(tmp_path / "archive.tar.gz", hundred)
    unpack(tmp_path / "archive.tar.gz", tmp_path / "unpacked")
    for path in ("archive.tar.gz", "unpacked", "unpacked/cifar-100-python"):
        assert_same(read(tmp_path / path, CIFAR100), hundred, CIFAR100_CLASSES)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_pickled_again_by_python_3(
    protocol: int, data: OfficialSet, hundred: OfficialSet, tmp_path: Path
) -> None:
    for name, batch in data.batches().items():
        (tmp_path / name).write_bytes(pickle.dumps(python_batch(name, *batch), protocol))
    assert_same(read(tmp_path), data)
    split = pickle.dumps(cifar100_split("train", hundred.train_images, hundred.train_labels), protocol)
    write_archive(tmp_path / "100.tar.gz", "cifar-100-python", cifar100_files(hundred) | {"train": split})
    assert_same(read(tmp_path / "100.tar.gz", CIFAR100), hundred, CIFAR100_CLASSES)


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(1, 4), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_binary_records_follow_the_published_layout(
    tmp_path_factory: pytest.TempPathFactory, seed: int, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("records")
    generator = np.random.default_rng(seed)
    records = [generator.integers(0, 256, (count, 3073), np.uint8) for count in counts]
    for name, batch in zip(CIFAR10.formats["cifar-10-batches-bin"], records, strict=True):
        batch[:, 0] %= 10
        (folder / name).write_bytes(batch.tobytes())
    train, test, _ = read(folder)
    image, y, x, channel = generator.integers(0, (sum(counts[:5]), 32, 32, 3))
    train_records = np.concatenate(records[:5])
    assert train.images[image, y, x, channel] == train_records[image, 1 + channel * 1024 + y * 32 + x]
    np.testing.assert_array_equal(train.labels, train_records[:, 0])
    np.testing.assert_array_equal(test.labels, records[5][:, 0])


# Nothing is decoded before its checksum matches.


class Evil:
    """Removes a folder when it is unpickled."""

    def __init__(self, call: Callable[..., Any], victim: Path) -> None:
        self.call, self.victim = call, victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        if self.call is os.system:
            return self.call, (f"rmdir {self.victim}",)
        return self.call, (
            str(self.victim) if self.call is shutil.rmtree else f"__import__('os').rmdir({str(self.victim)!r})",
        )


def test_other_content_than_the_checksum_says_is_not_decoded(data: OfficialSet, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_python_archive(path, data)
    known = checksums(path)
    path.write_bytes(b"\x1f\x8b no archive")
    (found,) = checksums(path).values()
    with pytest.raises(UserError) as caught:
        cifar.read(CIFAR10, path, known)
    assert str(caught.value) == (
        f"a.tar.gz has the MD5 {found}, expected {known['a.tar.gz']}; "
        "download it again, or set download.checksums if the data is your own"
    )


def test_a_changed_file_of_a_folder_is_named(data: OfficialSet, tmp_path: Path) -> None:
    for name, content in binary_files(data).items():
        (tmp_path / name).write_bytes(content)
    known = checksums(*tmp_path.iterdir())
    changed = bytearray((tmp_path / "data_batch_3.bin").read_bytes())
    changed[1000] ^= 1
    (tmp_path / "data_batch_3.bin").write_bytes(changed)
    with pytest.raises(UserError, match=r"^data_batch_3\.bin has the MD5 \w{32}, expected \w{32}; download it again"):
        cifar.read(CIFAR10, tmp_path, known)
    shutil.copy(tmp_path / "data_batch_1.bin", tmp_path / "data_batch_3.bin")
    with pytest.raises(UserError, match=r"^data_batch_3\.bin has the MD5"):
        cifar.read(CIFAR10, tmp_path, known)


def test_a_sha256_is_compared_as_well(data: OfficialSet, tmp_path: Path) -> None:
    import hashlib

    write_binary_archive(tmp_path / "a.tar.gz", data)
    digest = hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    assert_same(cifar.read(CIFAR10, tmp_path / "a.tar.gz", {"a.tar.gz": digest}), data)
    with pytest.raises(UserError, match=rf"^a\.tar\.gz has the SHA256 {digest}, expected 0{{64}};"):
        cifar.read(CIFAR10, tmp_path / "a.tar.gz", {"a.tar.gz": "0" * 64})


def test_the_official_checksums_refuse_small_data_and_other_names(data: OfficialSet, tmp_path: Path) -> None:
    write_python_archive(tmp_path / "cifar-10-python.tar.gz", data)
    with pytest.raises(UserError, match=r"expected c58f30108f718f92721af3b95e74349a; download it again"):
        cifar.read(CIFAR10, tmp_path / "cifar-10-python.tar.gz", CIFAR10.checksums)
    write_python_archive(tmp_path / "other.tar.gz", data)
    with pytest.raises(
        UserError,
        match=r"^no checksum for other\.tar\.gz \(known: cifar-10-python\.tar\.gz, .*; set download\.checksums$",
    ):
        cifar.read(CIFAR10, tmp_path / "other.tar.gz", CIFAR10.checksums)


# Verified data of the user's own may still be damaged or hostile.


@pytest.mark.parametrize("call", [os.system, eval, np.fromfile, shutil.rmtree])
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    call: Callable[..., Any], data: OfficialSet, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    evil = pickle.dumps({b"labels": Evil(call, victim), b"data": 0}, 2)
    write_archive(tmp_path / "evil.tar.gz", "cifar-10-batches-py", python_files(data) | {"data_batch_2": evil})
    with pytest.raises(
        UserError, match=f"^data_batch_2 cannot be decoded .refused: the pickle names .*{call.__name__}"
    ):
        read(tmp_path / "evil.tar.gz")
    assert victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        python2_pickle([1, 2]),
        python2_pickle({b"labels": [1]}),
        python2_pickle({b"labels": [1], b"data": np.zeros((2, 3072), np.uint8)}),
        python2_pickle({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}),
        python2_pickle({b"labels": [300], b"data": np.zeros((1, 3072), np.uint8)}),
        python2_pickle({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}),
        python2_pickle({b"labels": [-1], b"data": np.zeros((1, 3072), np.uint8)}),
        python2_pickle({b"labels": [b"cat"], b"data": np.zeros((1, 3072), np.uint8)}),
        python2_pickle({b"labels": [[1], [1]], b"data": np.zeros((2, 3072), np.uint8)}),
        python2_pickle({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}),
    ],
)
def test_a_damaged_pickle_is_one_line(content: bytes, data: OfficialSet, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-py", python_files(data) | {"data_batch_4": content})
    with pytest.raises(UserError, match=r"\Adata_batch_4 cannot be decoded \([^\n]*\)\Z"):
        read(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"half"])
def test_a_damaged_png_is_one_line(content: bytes, data: OfficialSet, tmp_path: Path) -> None:
    files = npm_files(data)
    half = files["test_batch.png"][: len(files["test_batch.png"]) // 2]
    files["test_batch.png"] = half if content == b"half" else content
    write_archive(tmp_path / "a.tgz", "package", files)
    with pytest.raises(UserError, match=r"\Atest_batch\.png cannot be decoded \([^\n]*\)\Z"):
        read(tmp_path / "a.tgz")


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_binary_batch_with_part_of_a_record(size: int, data: OfficialSet, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", binary_files(data) | {"test_batch.bin": bytes(size)})
    with pytest.raises(UserError, match=r"^test_batch\.bin cannot be decoded \("):
        read(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("cut", [0, 1, 10, 1000, -1000])
def test_a_truncated_archive(cut: int, data: OfficialSet, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_binary_archive(path, data)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"\Anot a complete \.tar\.gz archive \([^\n]*\)\Z"):
        read(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_instead_of_a_batch_is_not_followed(kind: bytes, data: OfficialSet, tmp_path: Path) -> None:
    files = binary_files(data)
    del files["data_batch_1.bin"]
    write_archive(tmp_path / "plain.tar.gz", "cifar-10-batches-bin", files)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as made, tarfile.open(tmp_path / "plain.tar.gz") as plain:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.type, member.linkname = kind, "/etc/passwd"
        made.addfile(member)
        for other in plain:
            made.addfile(other, plain.extractfile(other))
    with pytest.raises(UserError, match=r"^(not a complete .*|cifar-10-batches-bin/data_batch_1\.bin is missing)$"):
        read(tmp_path / "a.tar.gz")


def test_what_is_not_there(data: OfficialSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no such file or folder$"):
        cifar.read(CIFAR10, tmp_path / "absent", CIFAR10.checksums)
    with pytest.raises(UserError, match=r"^does not contain CIFAR-10 \(expected a folder cifar-10-batches-py or "):
        read(tmp_path)
    files = binary_files(data)
    del files["data_batch_5.bin"]
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", files)
    unpack(tmp_path / "a.tar.gz", tmp_path / "unpacked")
    for path in ("a.tar.gz", "unpacked"):
        with pytest.raises(UserError, match=r"^cifar-10-batches-bin/data_batch_5\.bin is missing$"):
            read(tmp_path / path)


def test_one_cifar_in_place_of_the_other(data: OfficialSet, hundred: OfficialSet, tmp_path: Path) -> None:
    write_python_archive(tmp_path / "10.tar.gz", data)
    write_cifar100_archive(tmp_path / "100.tar.gz", hundred)
    with pytest.raises(UserError, match=r"^does not contain CIFAR-100 \(expected a folder cifar-100-python\)$"):
        read(tmp_path / "10.tar.gz", CIFAR100)
    with pytest.raises(UserError, match=r"^does not contain CIFAR-10 \(expected a folder cifar-10-batches-py or "):
        read(tmp_path / "100.tar.gz")


ONE = {b"fine_labels": [1], b"data": np.zeros((1, 3072), np.uint8)}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train", b"not a pickle", r"^train cannot be decoded \(.*\)$"),
        ("train", python2_pickle({b"wrong": [1], b"data": ONE[b"data"]}), r"^train cannot be decoded \(.*fine_labels"),
        ("test", python2_pickle(ONE | {b"fine_labels": [1, 2]}), r"^test cannot be decoded \(2 labels for images"),
        ("test", python2_pickle(ONE | {b"fine_labels": [100]}), r"^test .* \(labels 100 to 100, expected 0 to 99\)$"),
        ("test", pickle.dumps(ONE | {b"fine_labels": Evil(eval, Path())}), r"^test .* \(refused: the pickle names"),
        ("meta", python2_pickle({}), r"^meta cannot be decoded "),
        ("meta", pickle.dumps({b"fine_label_names": Evil(eval, Path())}), r"^meta .* \(refused: the pickle names"),
    ],
)
def test_a_damaged_file_of_cifar_100(
    name: str, content: bytes, says: str, hundred: OfficialSet, tmp_path: Path
) -> None:
    write_archive(tmp_path / "a.tar.gz", "cifar-100-python", cifar100_files(hundred) | {name: content})
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.tar.gz", CIFAR100)
