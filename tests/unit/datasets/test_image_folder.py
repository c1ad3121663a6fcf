import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision.datasets import image_folder
from vision.pipeline.errors import UserError


def write(path: Path, color: str = "red", size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes, images at several depths, and other files."""
    photos = tmp_path / "photos"
    for name in ("cat/1.png", "cat/old/2.JPG", "cat/old/deep/3.webp", "dog/1.png", "Ümläut, & <b>/1.gif"):
        write(photos / name)
    for name in ("cat/notes.txt", "list.csv", ".hidden/1.png", "dog/.DS_Store", "dog/.git/1.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("no image")
    write(photos / "loose.png")
    return photos


def copied(source: Path, said: list[str] | None = None) -> Path:
    directory = source.parent / "raw"
    image_folder.copy(str(source), directory, (said if said is not None else []).append)
    return directory


def refusal(source: Path) -> str:
    """The reason why a folder is refused; nothing is left of the attempt."""
    with pytest.raises(UserError) as caught:
        copied(source)
    assert not (source.parent / "raw").exists()
    assert not list(source.parent.glob(".*"))
    prefix = f"download.source: {source}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def test_images_are_copied_and_all_else_is_named(photos: Path) -> None:
    said: list[str] = []
    raw = copied(photos, said)
    kept = {str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_file()}
    names = ("cat/1.png", "cat/old/2.JPG", "cat/old/deep/3.webp", "dog/1.png", "Ümläut, & <b>/1.gif")
    assert kept == {f"train/{name}" for name in names}
    for name in names:
        assert (raw / "train" / name).read_bytes() == (photos / name).read_bytes()
        assert (raw / "train" / name).stat().st_ino != (photos / name).stat().st_ino
    assert said == [
        f"read from {photos}",
        "skipped (not in a class folder, or no image suffix): cat/notes.txt, list.csv, loose.png",
    ]

    train, test, classes = image_folder.read_raw(raw)
    assert classes == ["cat", "dog", "Ümläut, & <b>"]
    assert test is None
    assert train.labels.dtype == np.uint8
    for path, label in zip(train.images, train.labels, strict=True):
        assert path.is_relative_to(raw / "train" / classes[label])


def test_two_splits(photos: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write(photos.parent / "two" / split / name / "1.png")
    write(photos.parent / "two/train/cat/2.png")
    (photos.parent / "two/.hidden").mkdir()
    (photos.parent / "two/LICENSE").touch()
    train, test, classes = image_folder.read_raw(copied(photos.parent / "two"))
    assert classes == ["cat", "dog"]
    assert sorted(train.labels) == [0, 0, 1]
    assert test is not None
    assert sorted(test.labels) == [0, 1]


def test_a_class_may_be_called_train(photos: Path) -> None:
    (photos / "cat").rename(photos / "train")
    _, test, classes = image_folder.read_raw(copied(photos))
    assert classes == ["dog", "train", "Ümläut, & <b>"]
    assert test is None


def test_copies_that_dvc_has_linked_into_its_cache_are_read(photos: Path, tmp_path: Path) -> None:
    image_folder.copy(str(photos), tmp_path / "raw", lambda line: None)
    before, *_ = image_folder.read_raw(tmp_path / "raw")
    for path in before.images:
        cached = tmp_path / "cache" / "-".join(path.parts[-2:])
        cached.parent.mkdir(exist_ok=True)
        path.rename(cached)
        path.symlink_to(cached)
    after, *_ = image_folder.read_raw(tmp_path / "raw")
    assert (after.images, after.labels.tolist()) == (before.images, before.labels.tolist())


def test_images_come_mixed_and_always_the_same_way(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"photos/{'cat' if number < 20 else 'dog'}/{number}.png")
    raw = copied(tmp_path / "photos")
    first, again = image_folder.read_raw(raw)[0], image_folder.read_raw(raw)[0]
    assert first.images == again.images
    assert 0 < first.labels[:20].sum() < 20


def test_more_than_256_classes(tmp_path: Path) -> None:
    for number in range(300):
        write(tmp_path / f"photos/{number:03}/1.png", size=(1, 1))
    train, _, classes = image_folder.read_raw(copied(tmp_path / "photos"))
    assert train.labels.dtype == np.uint16
    assert [classes[label] for label in train.labels] == [path.parent.name for path in train.images]


def test_images_that_cannot_be_decoded_are_all_named(photos: Path) -> None:
    (photos / "dog/1.png").write_bytes(b"")
    content = (photos / "cat/old/2.JPG").read_bytes()
    (photos / "cat/old/2.JPG").write_bytes(content[: len(content) // 2])
    first, second, third = refusal(photos).splitlines()
    assert first == "has images that cannot be read; repair or remove them:"
    assert second.startswith("cat/old/2.JPG: ")
    assert third == "dog/1.png: not an image, or truncated at its beginning"
    for number in range(20):
        (photos / f"cat/{number:02}.png").write_bytes(b"")
    lines = refusal(photos).splitlines()
    assert lines[10].startswith("cat/09.png: ")
    assert lines[11:] == ["and 12 more"]


def empty_class(photos: Path) -> None:
    (photos / "cow").mkdir()


def one_class(photos: Path) -> None:
    for name in ("cat", "Ümläut, & <b>"):
        (photos / name).rename(photos.parent / name)


def no_class(photos: Path) -> None:
    one_class(photos)
    (photos / "dog").rename(photos.parent / "dog")


def third_split(photos: Path) -> None:
    (photos / "cat").rename(photos / "train")
    (photos / "dog").rename(photos / "test")


def no_test_images(photos: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        write(photos / f"{name}/1.png")
    for name in ("cat", "dog", "Ümläut, & <b>"):
        (photos / name).rename(photos.parent / name)


def link(photos: Path) -> None:
    (photos / "dog/2.png").symlink_to("/etc/passwd")


def linked_folder(photos: Path) -> None:
    (photos / "dog/loop").symlink_to(photos)


def linked_class(photos: Path) -> None:
    (photos / "dogs").symlink_to(photos / "dog")


def other_splits(photos: Path) -> None:
    classes = [path for path in photos.iterdir() if path.is_dir()]
    for split in ("train", "Val"):
        for path in classes:
            shutil.copytree(path, photos / split / path.name)
    for path in classes:
        shutil.rmtree(path)


def pipe(photos: Path) -> None:
    os.mkfifo(photos / "dog/2.png")


def control_character(photos: Path) -> None:
    (photos / "dog").rename(photos / "d\nog")


def not_utf_8(photos: Path) -> None:
    (photos / "dog").rename(os.fsdecode(os.fsencode(photos) + b"/d\xffog"))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (empty_class, "has no images in cow"),
        (one_class, "has 1 class folders; expected a sub-folder for each of at least two classes"),
        (no_class, "has 0 class folders; expected a sub-folder for each of at least two classes"),
        (third_split, "has more folders than train and test (Ümläut, & <b>); expected only those two"),
        (no_test_images, "has no images in test/dog"),
        (other_splits, "has the folders Val, train, which are no classes; expected train and test, or classes"),
        (link, "dog/2.png is a symbolic link, which is not followed; `cp -rL FOLDER COPY` makes a copy"),
        (linked_folder, "dog/loop is a symbolic link"),
        (linked_class, "dogs is a symbolic link"),
        (pipe, "dog/2.png is a special file; remove it"),
        (control_character, r"d\nog/1.png: the name has control characters or is not UTF-8; rename it"),
        (not_utf_8, r"d\udcffog/1.png: the name has control characters or is not UTF-8; rename it"),
    ],
)
def test_a_folder_that_is_refused(photos: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(photos)
    message = refusal(photos)
    assert message.startswith(says)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("absent", "absent: no such folder"),
        (__file__, "no such folder"),
        ("~nobody-of-this-name/a", "~nobody-of-this-name: there is no such user"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_source_that_is_none(source: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"\Adownload\.source: [^\n]*{says}[^\n]*\Z"):
        image_folder.copy(source, tmp_path / "raw", print)


def test_raw_data_that_lacks_a_class_is_said(photos: Path) -> None:
    raw = copied(photos)
    (raw / "train/dog/1.png").unlink()
    with pytest.raises(UserError, match=r"raw: has no images in train/dog; `dvc repro -f download` writes it again"):
        image_folder.read_raw(raw)
