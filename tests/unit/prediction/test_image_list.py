import os
from pathlib import Path

import pytest

from vision.pipeline.errors import UserError
from vision.prediction.image_list import list_images


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_and_folders_in_the_order_given_each_folder_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/b.PNG", "photos/a/deep/er.webp", "photos/a.jpg", "photos/notes.txt", "other/z.gif", "photo"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert list_images(["photo", "photos", "other/z.gif"]) == [
        "photo", "photos/a.jpg", "photos/a/deep/er.webp", "photos/b.PNG", "other/z.gif",
    ]  # fmt: skip
    assert list_images(["photos/"]) == list_images(["./photos"]) == list_images(["photos"])
    monkeypatch.chdir(tmp_path / "photos")
    assert list_images(["."]) == ["a.jpg", "a/deep/er.webp", "b.PNG"]
    assert list_images([str(tmp_path / "other")]) == [f"{tmp_path}/other/z.gif"]


def test_a_file_that_is_given_twice_is_listed_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        touch(tmp_path / name)
    assert list_images([f"{tmp_path}/b.png", str(tmp_path), f"{tmp_path}/./a.png"]) == [
        f"{tmp_path}/b.png",
        f"{tmp_path}/a.png",
    ]


def test_hidden_files_and_folders_are_skipped_but_not_those_that_are_given(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".hidden/c.png"):
        touch(tmp_path / name)
    assert list_images([str(tmp_path)]) == [f"{tmp_path}/a.png"]
    assert list_images([f"{tmp_path}/.b.png", f"{tmp_path}/.hidden"]) == [
        f"{tmp_path}/.b.png",
        f"{tmp_path}/.hidden/c.png",
    ]


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    touch(tmp_path / "photos/a.png")
    touch(tmp_path / "other/b.png")
    (tmp_path / "photos/file.png").symlink_to(tmp_path / "other/b.png")
    (tmp_path / "photos/folder").symlink_to(tmp_path / "other")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    names = [os.path.relpath(path, tmp_path) for path in list_images([str(tmp_path / "photos")])]
    assert names == ["photos/a.png", "photos/file.png", "photos/folder/b.png"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("none", r"none: no such file or folder$"), ("empty", r"empty: no images \(\.avif, .*\.webp\)")],
)
def test_what_is_missing_is_named(path: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path / "empty/deep/notes.txt")
    with pytest.raises(UserError, match=message):
        list_images([str(tmp_path / path)])
