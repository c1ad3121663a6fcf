import io
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
from vision.pipeline.errors import UserError

Writer = Callable[[Path, OfficialSet], None]


@pytest.fixture(scope="module")
def data() -> OfficialSet:
    return make_set(n_train=50, n_test=20)


def assert_same(parts: list[bytes], data: OfficialSet) -> None:
    assert parts == list(binary_files(data).values())
    assert_decoded(cifar.CIFAR10.decode(parts), data, CLASSES)


def assert_decoded(decoded: cifar.Decoded, data: OfficialSet, classes: Sequence[str]) -> None:
    train, test, names = decoded
    np.testing.assert_array_equal(train.images, data.train_images)
    np.testing.assert_array_equal(train.labels, data.train_labels)
    np.testing.assert_array_equal(test.images, data.test_images)
    np.testing.assert_array_equal(test.labels, data.test_labels)
    assert train.images.dtype == train.labels.dtype == np.uint8
    assert train.images.flags.c_contiguous
    assert names == list(classes)


@pytest.mark.parametrize("write", [write_binary_archive, write_python_archive, write_npm_archive])
def test_every_form_gives_the_same_records(write: Writer, data: OfficialSet, tmp_path: Path) -> None:
    write(tmp_path / "archive.tar.gz", data)
    assert_same(cifar.read_parts(cifar.CIFAR10, tmp_path / "archive.tar.gz"), data)


@pytest.mark.parametrize(
    ("write", "folder"), [(write_binary_archive, "cifar-10-batches-bin"), (write_python_archive, "cifar-10-batches-py")]
)
def test_an_unpacked_folder_or_its_parent(write: Writer, folder: str, data: OfficialSet, tmp_path: Path) -> None:
    write(tmp_path / "archive.tar.gz", data)
    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert_same(cifar.read_parts(cifar.CIFAR10, tmp_path / "unpacked"), data)
    assert_same(cifar.read_parts(cifar.CIFAR10, tmp_path / "unpacked" / folder), data)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_pickled_anew_by_python_3(protocol: int, data: OfficialSet, tmp_path: Path) -> None:
    for name, batch in data.batches().items():
        (tmp_path / name).write_bytes(pickle.dumps(python_batch(name, *batch), protocol))
    assert_same(cifar.read_parts(cifar.CIFAR10, tmp_path), data)


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_records_and_arrays_are_the_same_thing(seed: int, counts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (sum(counts), 32, 32, 3), np.uint8)
    labels = generator.integers(0, 256, sum(counts), np.uint8)
    records = cifar.encode(images, labels)
    image, y, x, channel = generator.integers(0, (len(images), 32, 32, 3))
    assert records[image, 1 + channel * 1024 + y * 32 + x] == images[image, y, x, channel]

    batches = np.split(records, np.cumsum(counts)[:-1])
    again = [cifar.read_records(batch.tobytes()) for batch in batches]
    decoded_images, decoded_labels = cifar.decode(again)
    np.testing.assert_array_equal(decoded_images, images)
    np.testing.assert_array_equal(decoded_labels, labels)


@pytest.mark.parametrize("call", [os.system, eval, np.fromfile, shutil.rmtree])
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    call: Callable[..., Any], data: OfficialSet, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    argument = f"rmdir {victim}" if call is os.system else f"__import__('os').rmdir({str(victim)!r})"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return call, (str(victim) if call is shutil.rmtree else argument,)

    files = python_files(data) | {"data_batch_2": pickle.dumps({b"labels": Evil(), b"data": 0}, 2)}
    write_archive(tmp_path / "evil.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(UserError, match=f"^data_batch_2 cannot be read .refused: its pickle names .*{call.__name__}"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "evil.tar.gz")
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
        python2_pickle({b"labels": [b"cat"], b"data": np.zeros((1, 3072), np.uint8)}),
        python2_pickle({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}),
    ],
)
def test_a_damaged_pickle_is_one_line(content: bytes, data: OfficialSet, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-py", python_files(data) | {"data_batch_4": content})
    with pytest.raises(UserError, match=r"^data_batch_4 cannot be read \(.*\)$"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tar.gz")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"half"])
def test_a_damaged_picture_is_one_line(content: bytes, data: OfficialSet, tmp_path: Path) -> None:
    files = npm_files(data)
    half = files["test_batch.png"][: len(files["test_batch.png"]) // 2]
    files["test_batch.png"] = half if content == b"half" else content
    write_archive(tmp_path / "a.tgz", "package", files)
    with pytest.raises(UserError, match=r"^test_batch cannot be read \(.*\)$"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tgz")


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_binary_batch_that_is_not_whole_records(size: int, data: OfficialSet, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", binary_files(data) | {"test_batch.bin": bytes(size)})
    with pytest.raises(UserError, match=r"^test_batch cannot be read .* not whole records of 3,073 bytes"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tar.gz")


@pytest.mark.parametrize("cut", [0, 1, 10, 1000, -1000])
def test_a_truncated_archive(cut: int, data: OfficialSet, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_binary_archive(path, data)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"^not a whole \.tar\.gz archive \(.*\); download it again$"):
        cifar.read_parts(cifar.CIFAR10, path)


def test_garbage_inside_an_archive(data: OfficialSet, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_binary_archive(path, data)
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^not a whole|is missing, or what stands before it is damaged$"):
        cifar.read_parts(cifar.CIFAR10, path)


def special_archive(path: Path, data: OfficialSet, member: tarfile.TarInfo) -> None:
    """The binary archive with `member` in it before the file of the same name."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.addfile(member)
        for name, content in binary_files(data).items():
            regular = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            regular.size = len(content)
            archive.addfile(regular, io.BytesIO(content))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_in_the_place_of_a_batch_is_refused(kind: bytes, data: OfficialSet, tmp_path: Path) -> None:
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    member.type, member.linkname = kind, "/etc/passwd"
    special_archive(tmp_path / "a.tar.gz", data, member)
    with pytest.raises(UserError, match=r"^refused: cifar-10-batches-bin/data_batch_1\.bin in it is a link"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tar.gz")


def test_a_member_of_absurd_size_is_refused_before_it_is_read(data: OfficialSet, tmp_path: Path) -> None:
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    special_archive(tmp_path / "a.tar.gz", data, member)
    member.size = 10**12
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.fileobj.write(member.tobuf())
    with pytest.raises(UserError, match=r"^refused: .*data_batch_1\.bin has 1,000,000,000,000 bytes"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tar.gz")


@pytest.mark.parametrize("name", ["../outside.bin", "/tmp/outside.bin", "cifar-10-batches-bin/../../outside.bin"])
def test_members_elsewhere_are_ignored_and_written_nowhere(name: str, data: OfficialSet, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    special_archive(inside / "a.tar.gz", data, tarfile.TarInfo(name))
    assert_same(cifar.read_parts(cifar.CIFAR10, inside / "a.tar.gz"), data)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "a.tar.gz"]


def test_a_folder_file_of_absurd_size_is_refused(data: OfficialSet, tmp_path: Path) -> None:
    for name, content in binary_files(data).items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "data_batch_3.bin").open("wb") as file:
        file.truncate(cifar.MAX_FILE + 1)
    with pytest.raises(UserError, match=r"^refused: .*data_batch_3\.bin has 536,870,913 bytes"):
        cifar.read_parts(cifar.CIFAR10, tmp_path)


def test_what_is_not_there(data: OfficialSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no such file or folder$"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "absent")
    with pytest.raises(UserError, match=r"^holds no CIFAR-10 .expected a folder cifar-10-batches-bin or"):
        cifar.read_parts(cifar.CIFAR10, tmp_path)
    files = binary_files(data)
    del files["data_batch_5.bin"]
    write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", files)
    with pytest.raises(UserError, match=r"^cifar-10-batches-bin/data_batch_5\.bin is missing, or"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "a.tar.gz")


@pytest.fixture(scope="module")
def hundred() -> OfficialSet:
    return make_set(n_train=200, n_test=100, classes=100)


def test_cifar_100_from_an_archive_an_unpacked_folder_or_its_parent(hundred: OfficialSet, tmp_path: Path) -> None:
    write_cifar100_archive(tmp_path / "archive.tar.gz", hundred)
    with tarfile.open(tmp_path / "archive.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    for path in ("archive.tar.gz", "unpacked", "unpacked/cifar-100-python"):
        parts = cifar.read_parts(cifar.CIFAR100, tmp_path / path)
        assert parts == list(cifar100_files(hundred).values())
        assert_decoded(cifar.CIFAR100.decode(parts), hundred, CIFAR100_CLASSES)


def test_one_cifar_in_the_place_of_the_other(data: OfficialSet, hundred: OfficialSet, tmp_path: Path) -> None:
    write_python_archive(tmp_path / "10.tar.gz", data)
    write_cifar100_archive(tmp_path / "100.tar.gz", hundred)
    with pytest.raises(UserError, match=r"^holds no CIFAR-100 .expected a folder cifar-100-python in it"):
        cifar.read_parts(cifar.CIFAR100, tmp_path / "10.tar.gz")
    with pytest.raises(UserError, match=r"^holds no CIFAR-10 .expected a folder cifar-10-batches-bin or"):
        cifar.read_parts(cifar.CIFAR10, tmp_path / "100.tar.gz")


ONE = {b"fine_labels": [1], b"data": np.zeros((1, 3072), np.uint8)}


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        ("train", b"not a pickle", r"^train cannot be read \(.*\)$"),
        ("train", python2_pickle({b"labels": [1], b"data": ONE[b"data"]}), r"^train cannot be read \(.*fine_labels"),
        ("test", python2_pickle(ONE | {b"fine_labels": [1, 2]}), r"^test cannot be read \(2 labels with pixels"),
        (
            "test",
            python2_pickle(ONE | {b"fine_labels": [100]}),
            r"^test: has the label 100, but there are 100 ",
        ),
        (
            "test",
            pickle.dumps(ONE | {b"fine_labels": Evil()}),
            r"^test cannot be read \(refused: its pickle",
        ),
        ("meta", python2_pickle({}), r"^meta cannot be read \(.*fine_label_names"),
        ("meta", pickle.dumps({b"fine_label_names": Evil()}), r"^meta cannot be read \(refused: its pickle names"),
    ],
)
def test_a_part_of_cifar_100_that_is_damaged(part: str, content: bytes, says: str, hundred: OfficialSet) -> None:
    files = cifar100_files(hundred) | {part: content}
    with pytest.raises(UserError, match=says):
        cifar.CIFAR100.decode(list(files.values()))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_100_pickled_anew_by_python_3(protocol: int, hundred: OfficialSet) -> None:
    files = cifar100_files(hundred)
    files["train"] = pickle.dumps(cifar100_split("train", hundred.train_images, hundred.train_labels), protocol)
    assert_decoded(cifar.CIFAR100.decode(list(files.values())), hundred, CIFAR100_CLASSES)


def test_a_label_that_is_no_class(data: OfficialSet) -> None:
    parts = list(binary_files(data).values())
    parts[1] = b"\x0a" + parts[1][1:]
    with pytest.raises(UserError, match=r"^data_batch_2: has the label 10, but there are 10 classes$"):
        cifar.CIFAR10.decode(parts)
